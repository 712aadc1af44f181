"""What is said between agent and server, and when it may be said. Pure: no I/O, no clock, no entropy."""

from mailboat.protocol.errors import (
    Code,
    ConfigError,
    DeliveryError,
    MailboatError,
    NotMailboat,
    Problem,
    SegmentError,
    StoreError,
    Unauthorised,
    WireError,
)
from mailboat.protocol.reader import Block, Gap, SegmentReader
from mailboat.protocol.records import Kind, Level, Record
from mailboat.protocol.segment import Preamble, Seal, SealReason
from mailboat.protocol.segment_writer import SegmentWriter
from mailboat.protocol.summary import Info, Status, Summary

__version__ = "0.1.0"
"""Of the whole of mailboat. What is installed says it, too, but to ask takes an agent's host 6 ms."""

__all__ = [
    "Block",
    "Code",
    "ConfigError",
    "DeliveryError",
    "Gap",
    "Info",
    "Kind",
    "Level",
    "MailboatError",
    "NotMailboat",
    "Preamble",
    "Problem",
    "Record",
    "Seal",
    "SealReason",
    "SegmentError",
    "SegmentReader",
    "SegmentWriter",
    "Status",
    "StoreError",
    "Summary",
    "Unauthorised",
    "WireError",
    "__version__",
]
