"""Segments with records of one's own, written block by block as an agent does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack

from mailboat.protocol import Info, Preamble, SealReason, SegmentWriter
from mailboat.protocol.records import COUNTERS, Kind, Schema, count_raw, schema_of

SESSION = "018f0000-0000-7000-8000-000000000001"
CLOCK = 1_790_000_000_000_000_000
"""Wall clock minus monotonic clock: records begin on 2026-09-21 at 14:13:20 UTC."""
START = CLOCK // 1_000_000_000

Raw = Sequence[Any]


def pack(record: object) -> bytes:
    return bytes(msgpack.packb(record, unicode_errors="surrogatepass"))


class Segment:
    """One segment in the making; `data` are its bytes so far."""

    def __init__(
        self, session_id: str = SESSION, index: int = 0, first: int = 0, info: Info | None = None, salt: int = 7
    ) -> None:
        described = (info or Info(product="Acme Studio")).to_wire()
        self.writer = SegmentWriter(Preamble(session_id, index, salt, first, CLOCK, 0, info=described))
        self.data = b""
        self.schemas: dict[int, Schema] = {}
        self.ends: list[int] = []
        self._keep(self.writer.preamble())

    def block(self, records: Iterable[Raw | bytes], counts: Sequence[int] | None = None) -> bytes:
        """Append one block of raw records (or packed ones, whose `counts` must be told); returns its bytes."""
        given = list(records)
        packed = [record if isinstance(record, bytes) else pack(record) for record in given]
        header, frame = self.writer.block(b"".join(packed), counts or self._counted(given), CLOCK)
        self.writer.add(frame, header)
        self.data += frame
        self.ends.append(len(self.data))
        return frame

    def seal(self, reason: SealReason = SealReason.STOPPED, installation: Mapping[str, Any] | None = None) -> bytes:
        """End it; returns the whole segment."""
        self._keep(self.writer.seal(reason, CLOCK + 10**12, 10**12, installation))
        return self.data

    def _keep(self, frame: bytes) -> None:
        self.writer.add(frame)
        self.data += frame

    def _counted(self, records: Iterable[Raw | bytes]) -> list[int]:
        counts = [0] * len(COUNTERS)
        for record in records:
            assert not isinstance(record, bytes), "counts are needed with packed records"
            if record[0] == Kind.SCHEMA:
                schema = schema_of(record)
                self.schemas[schema.number] = schema
            count_raw(record, counts, self.schemas)
        return counts


def feature(name: str = "import.csv", at: float = 0.0, **attributes: object) -> Raw:
    return [Kind.FEATURE, int(at * 1e9), name, attributes]


def value(name: str, number: object, unit: str | None = None, at: float = 0.0, **attributes: object) -> Raw:
    return [Kind.VALUE, int(at * 1e9), name, attributes, number, unit]


def timing(name: str, seconds: float, at: float = 0.0, **attributes: object) -> Raw:
    return [Kind.TIMING, int(at * 1e9), name, attributes, int(seconds * 1e9)]


def event(name: str, level: int = 20, message: str | None = None, at: float = 0.0, **attributes: object) -> Raw:
    return [Kind.EVENT, int(at * 1e9), name, attributes, level, message]


def exception(
    name: str = "ValueError",
    message: str = "bad",
    at: float = 0.0,
    stack: Sequence[Sequence[object]] = (("/srv/app/main.py", 10, "main"),),
    causes: Sequence[object] = (),
) -> Raw:
    return [Kind.EXCEPTION, int(at * 1e9), name, {}, 40, message, None, [list(each) for each in stack], list(causes)]


def installation(name: str, at: float = 0.0, **properties: object) -> Raw:
    return [Kind.INSTALLATION, int(at * 1e9), name, properties]


def schema(number: int, name: str, *fields: str, kind: int = Kind.FEATURE) -> Raw:
    return [Kind.SCHEMA, 0, name, list(fields), number, kind]


def positional(number: int, *values: object, at: float = 0.0) -> Raw:
    return [Kind.POSITIONAL, int(at * 1e9), number, *values]


TAKING_IN: Sequence[bytes] = (b"", b"\xc1", b"\x92", b"\xda\x00\x60", b"\xdf\xff\xff\xff\xff", b'{"a": 1}')
"""Bytes in the place of a value that are no msgpack, or are short of what they announce."""


def around(evil: bytes) -> Segment:
    """A block of six records, of which the third has `evil` in the place of a value; and another one."""
    segment = Segment()
    of = [pack([1, 10**12 + at, f"n{at}", {"a": at, "b": at}]) for at in range(6)]
    of[2] = of[2][:-1] + evil
    segment.block(of, counts=[6, *[0] * (len(COUNTERS) - 1)])
    segment.block([feature("n6")])
    return segment
