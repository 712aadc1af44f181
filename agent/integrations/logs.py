"""Records of the standard library's `logging` as events: one handler, on whatever logger the application chooses.

::

    logging.getLogger().addHandler(LogHandler(agent, level=logging.WARNING))
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from mailboat.agent.agent import Agent
from mailboat.agent.recorded import is_marked

OWN_LOGGER: Final = "mailboat"
"""Nothing of this logger, or one below it, is recorded: what recording says would be recorded for ever."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
"""What every record has; the rest is what the application has given as ``extra``."""

_TAKEN: Final = frozenset({"level", "message", "context", "logger", "file", "line", "function"})
"""Names that an ``extra`` cannot have here; it is recorded with ``extra.`` before its name then."""


class LogHandler(logging.Handler):
    """Records each log record that reaches it with `agent`, at its own level, and never raises.

    An event has the logger's name, the message, and as attributes where it was logged (``file``, ``line``,
    ``function``) and what was given as ``extra``. A record with an exception becomes an exception, with the message as
    its context and ``logger`` as an attribute; but an exception that was recorded already, by whomever, is not recorded
    again, only the line is, as an event. A line that is logged while another one of the same thread is being recorded
    (by a value's own ``__str__``) is left out. It takes no lock.
    """

    def __init__(self, agent: Agent, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._agent = agent
        self._busy = threading.local()
        self.failures = 0
        """Lines that could not be made a record, and those that were left out."""

    def createLock(self) -> None:  # noqa: N802 - the name that logging calls
        """None: an agent records on any thread, and in a signal handler."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """As that of `logging`, but for the lock, which it takes unasked since Python 3.13."""
        found: bool | logging.LogRecord = self.filter(record)
        if found:
            self.emit(found if isinstance(found, logging.LogRecord) else record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """See the class."""
        if record.name == OWN_LOGGER or record.name.startswith(OWN_LOGGER + "."):
            return
        if getattr(self._busy, "now", False):
            self.failures += 1
            return
        self._busy.now = True
        try:
            self._record(record)
        except Exception:  # noqa: BLE001 - a message that cannot be formatted, or the host's objects; counted
            self.failures += 1
        finally:
            self._busy.now = False

    def _record(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        attributes: dict[str, Any] = {
            f"extra.{name}" if name in _TAKEN else name: value
            for name, value in vars(record).items()
            if name not in _STANDARD
        }
        attributes.update(file=record.pathname, line=record.lineno, function=record.funcName)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not is_marked(error, self._agent.session_id):
            self._agent.exception(error, message, level=record.levelno, logger=record.name, **attributes)
        else:
            self._agent.event(record.name, record.levelno, message, **attributes)
