"""What a server writes to its log: one line of JSON for each event, and never a key.

``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``message`` stand in every line; one that tells of a request has its
parts as members of their own (see `access_log`), one with a traceback has it as ``exception``.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Final

from mailboat.server.access_log import ACCESS, without_keys

TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        access = getattr(record, ACCESS, None)
        if access is not None:
            del line["message"]
            line |= access
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_keys(json.dumps(line, default=str))


class TextLines(logging.Formatter):
    """A line for people, without keys."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return without_keys(super().format(record))


def set_up(log_format: str) -> None:
    """Have this process log to its standard error, as `ServerConfig.log_format` says."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
