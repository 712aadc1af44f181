"""Making any value fit for a record: the slow path, taken only when a record does not pack as it stands, or is too
large.

A failed pack must cost neither the record nor the host anything, so what cannot be said exactly is said as text
(without the secrets that the text names, see `secret_names`), and what is too large, too deep, endless or holds itself
is cut with a marker. The host's own types may do anything here (raise, change while they are read, take a lock), so
this never runs under a lock of ours.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from types import TracebackType
from typing import Any, Final

import msgpack
import msgspec

from mailboat.agent.intrusion import of_a_value
from mailboat.agent.secret_names import REDACTED, is_secret, without_named_secrets
from mailboat.protocol.limits import MAX_CAUSES, MAX_DEPTH, MAX_ENTRIES, MAX_RECORD, MAX_STACK_FRAMES, MAX_TEXT

CUT: Final = "…[cut]"
_CUT_BYTES: Final = CUT.encode()
LOOP: Final = "…[holds itself]"
_INT_LOW: Final = -(2**63)
_INT_HIGH: Final = 2**64
_DECIMAL: Final = 10**4000
"""Python refuses to write larger numbers in decimal digits."""
_DATES: Final = (datetime, date, time, timedelta)
"""Said as the hot path says them, where they are packed as they stand."""
_NARROWER: Final = 4
_PAIR: Final = 2
_SIMPLE_ENTRIES: Final = 64
_STEPS: Final = 7
"""A record that is too large is cut to a quarter, and so on: after so many steps 16 characters and 16 entries are left,
which always fit.
"""

Clean = Callable[[Sequence[Any]], Sequence[Any]]


def simple(value: Any, depth: int = 2) -> bool:  # noqa: ANN401 - a value of the host's
    """Whether `value` is small and made of nothing but texts, bytes, numbers and the built-in containers of those.

    Containers may be nested `depth` deep. What a value's class claims to be is not asked.
    """
    kind = type(value)
    # Lists, and no generators: one that is left unfinished swallows what a signal handler raises just then.
    if kind is dict:
        return _few(value, depth) and all(
            [type(key) is str and simple(each, depth - 1) for key, each in value.items()]  # noqa: C419
        )
    if kind is list or kind is tuple:
        return _few(value, depth) and all([simple(each, depth - 1) for each in value])  # noqa: C419
    return value is None or issubclass(kind, int | float | str | bytes)


def _few(container: Sized, depth: int) -> bool:
    return depth > 0 and len(container) <= _SIMPLE_ENTRIES


def pack_any(fields: Sequence[Any], clean: Clean = lambda fields: fields) -> bytes:
    """The packed record of `fields` (kind and time, then anything), cut until it is no larger than `MAX_RECORD`.

    `clean` is given the fields after all of them were made plain, and gives what is to be packed.
    """
    packed = b""
    for step in range(_STEPS):
        shaping = _Shaping(MAX_TEXT // _NARROWER**step, MAX_ENTRIES // _NARROWER**step)
        packed = msgpack.packb(clean([*fields[:2], *map(shaping.plain, fields[2:])]))
        if len(packed) <= MAX_RECORD:
            break
    return packed


def packable(value: object) -> Any:  # noqa: ANN401 - msgpack takes many types
    """`value` as something that msgpack can pack."""
    return _Shaping(MAX_TEXT, MAX_ENTRIES).plain(value)


class _Shaping:
    """The values of one record being made plain: texts of `text_limit` characters, `entries` in all containers."""

    __slots__ = ("_left", "_path", "_text_limit")

    def __init__(self, text_limit: int, entries: int) -> None:
        self._text_limit = text_limit
        self._left = entries
        self._path: set[int] = set()

    def plain(self, value: object, depth: int = 0) -> object:
        """`value` as plain as msgpack wants it; raises nothing but what comes from outside."""
        return of_a_value(
            lambda: self._container(value, depth) if self._is_container(value) else self._scalar(value),
            lambda error: f"<{type(value).__name__}: unreadable, {type(error).__name__}>",
        )

    def _is_container(self, value: object) -> bool:
        return isinstance(value, Mapping | Sequence | AbstractSet) and not isinstance(
            value, str | bytes | bytearray | memoryview
        )

    def _scalar(self, value: object) -> object:
        """Methods of the built-in types are called by name, since a subclass may have others."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, int):
            fits = int.__le__(_INT_LOW, value) and int.__lt__(value, _INT_HIGH)
            return int.__index__(value) if fits else text_of(value, self._text_limit)
        if isinstance(value, bytes | bytearray | memoryview):
            said = bytes(value[: self._text_limit])
            return said if len(value) <= self._text_limit else said + _CUT_BYTES
        if type(value) in _DATES:
            return _date(value)
        return said_by(value, self._text_limit)

    def _container(self, value: Any, depth: int) -> object:  # noqa: ANN401 - a container of the host's
        if depth >= MAX_DEPTH:
            return f"<{type(value).__name__} of {len(value)}>"
        if id(value) in self._path:
            return LOOP
        self._path.add(id(value))
        try:
            named = value if isinstance(value, Mapping) else by_name(value)
            if named is not None:
                return self._map(named, depth)
            entries = [self.plain(each, depth + 1) for each in self._some(value)]
            return entries if len(entries) >= len(value) else [*entries, CUT]
        finally:
            self._path.discard(id(value))

    def _map(self, value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        entries = self._some(value.items())
        made = {self._key(key): self.plain(each, depth + 1) for key, each in entries}
        if len(entries) < len(value):
            made[CUT] = len(value) - len(entries)
        return made

    def _some(self, entries: Iterable[Any]) -> list[Any]:
        """As many of `entries` as may still be taken."""
        taken = list(islice(entries, max(self._left, 0)))
        self._left -= len(taken)
        return taken

    def _key(self, key: object) -> object:
        return said_by(key, self._text_limit) if self._is_container(key) else self._scalar(key)


def _date(value: object) -> object:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return msgspec.to_builtins(value.astimezone(UTC))  # as msgpack's timestamps are read back
    return msgspec.to_builtins(value)


def by_name(value: object) -> dict[str, Any] | None:
    """The fields of a named tuple by their names, which a list would not tell; None for anything else. Of two fields
    the first may say what the second is, as in other pairs; then that goes, if it is a secret.
    """
    kind = type(value)
    names = getattr(kind, "_fields", None) if issubclass(kind, tuple) else None
    if not isinstance(names, tuple) or not isinstance(value, tuple) or len(names) != tuple.__len__(value):
        return None
    each = list(tuple.__iter__(value))
    if len(each) == _PAIR and isinstance(each[0], str | bytes) and is_secret(*each):
        each[1] = REDACTED
    return dict(zip(map(str, names), each, strict=True))


def said_by(value: object, limit: int = MAX_TEXT) -> str:
    """`text_of`; what an object says of itself, or of what it holds, is without the secrets that it names."""
    text = text_of(value, limit)
    if issubclass(type(value), str):
        return text
    text = without_named_secrets(text)
    return text if len(text) <= limit + len(CUT) else text[:limit] + CUT


def text_of(value: object, limit: int = MAX_TEXT) -> str:
    """`value` as text of at most `limit` characters and a marker, such as UTF-8 can carry."""
    text = of_a_value(
        lambda: str.__getitem__(value if isinstance(value, str) else _said(value), slice(limit + 1)),
        lambda error: f"<{type(value).__name__}: no text, {type(error).__name__}>",
    )
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[:limit] + CUT


def _said(value: object) -> str:
    if isinstance(value, int) and not -_DECIMAL < value < _DECIMAL:
        return hex(value)
    return str(value)


def exception_fields(error: BaseException) -> tuple[str, str, list[list[Any]], list[list[Any]]]:
    """Type, message, stack and causes of an exception, as `records` lays them out. Source lines are not read from
    disk.
    """
    causes: list[list[Any]] = []
    seen = {id(error)}
    current = error
    while len(causes) < MAX_CAUSES:
        relation, current_cause = (
            ("cause", current.__cause__) if current.__cause__ else ("context", current.__context__)
        )
        if (
            current_cause is None
            or id(current_cause) in seen
            or (relation == "context" and current.__suppress_context__)
        ):
            break
        causes.append(
            [relation, _type_name(current_cause), text_of(current_cause), _stack(current_cause.__traceback__)]
        )
        seen.add(id(current_cause))
        current = current_cause
    return _type_name(error), text_of(error), _stack(error.__traceback__), causes


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack(trace: TracebackType | None) -> list[list[Any]]:
    """Outermost call first; of a deeper stack the innermost `MAX_STACK_FRAMES`."""
    frames = deque(traceback.walk_tb(trace), MAX_STACK_FRAMES)
    return [[frame.f_code.co_filename, line, frame.f_code.co_name] for frame, line in frames]
