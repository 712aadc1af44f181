"""The log, and that no fault of the host's logging comes back by it.

What a handler or a filter of the host's raises reaches whoever has logged: `logging` catches what goes wrong in writing
at most. A filter that relies on an attribute which only the host's own records have is such a mistake. It must neither
end a thread of the agent nor reach the host through `start`, `stop` or `force_sync`.
"""

from __future__ import annotations

import logging
from typing import Any, Final

_WITHOUT_OURS: Final = 2
"""As `stacklevel`: the record names the line that has logged, not one of this file."""


class CarefulLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose calls raise nothing. `failures` counts what could not be logged."""

    def __init__(self, logger: logging.Logger) -> None:
        """Everything goes to `logger`."""
        super().__init__(logger, {})
        self.failures = 0

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401 - as `logging` has them
        """See `logging.Logger.log`."""
        try:
            super().log(level, msg, *args, stacklevel=_WITHOUT_OURS, **kwargs)
        except Exception:  # noqa: BLE001 - of the host's filters and handlers, which may raise anything
            self.failures += 1


log: Final = CarefulLog(logging.getLogger("mailboat"))
