"""One request on its way through a web application: what the middlewares record of it, whatever their framework.

* a feature ``http.METHOD.ROUTE`` with the status as an attribute, and a timing of the same name;
* the exception, if one leaves the application.

ROUTE is the route's template (``/orders/{id}``), never the path that was asked for: paths have no end, and hold what
nobody meant to record.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from mailboat.agent.agent import Agent
from mailboat.agent.integrations.hooks import NOT_RECORDED
from mailboat.agent.recorded import is_marked

UNMATCHED: Final = "unmatched"
"""The route of a request that matches none."""

_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "WEBSOCKET"}
)
_FAILED: Final = 500
"""What every framework answers for an exception that leaves the application."""
_OTHER: Final = "OTHER"
"""Any other method: a client may make up as many as it likes, and each would be a feature of its own."""


class Request:
    """A context manager around the handling of one request. `route` and `status` may be set until it ends."""

    def __init__(self, agent: Agent, method: str) -> None:
        self._agent = agent
        self._method = method if method in _METHODS else _OTHER
        self.route = UNMATCHED
        self.status: int | None = None
        self._answer: BaseException | None = None
        self._timing = agent.timing("http")

    def answered(self, answer: BaseException) -> None:
        """This exception is how the application answers, and none to be recorded."""
        self._answer = answer

    def __enter__(self) -> Self:
        self._timing.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name = f"http.{self._method}.{self.route}"
        if error is not None and error is not self._answer and self._is_news(error):
            self._agent.exception(error, f"{self._method} {self.route}")
        status = _FAILED if self.status is None and isinstance(error, Exception) else self.status
        self._timing.end(name, status=status)
        self._agent.feature(name, status=status)

    def _is_news(self, error: BaseException) -> bool:
        return not isinstance(error, NOT_RECORDED) and not is_marked(error, self._agent.session_id)
