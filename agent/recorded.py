"""Which exceptions were recorded already: one that passes a middleware, a logger and a hook is told once.

An exception is marked with the session it was recorded in. The mark is in its own dictionary, so it is gone with the
exception and keeps nothing alive. The dictionary is had from `BaseException` itself: to ask the exception might run
code of the host's.
"""

from __future__ import annotations

from typing import Any, Final

_MARK: Final = "__mailboat_session__"
_DICT: Final = vars(BaseException)["__dict__"]


def mark(error: BaseException, session_id: str | None) -> None:
    """Note that `error` was recorded in this session."""
    _dictionary(error)[_MARK] = session_id


def is_marked(error: BaseException, session_id: str | None) -> bool:
    """Whether `error` was recorded in this session."""
    return session_id is not None and _dictionary(error).get(_MARK) == session_id


def _dictionary(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = _DICT.__get__(error)
    return found
