"""Making any value fit for a record: the slow path, taken only when a value cannot be packed as it stands.

A failed pack must cost neither the record nor the host anything, so what cannot be said exactly is said as text, and
what is too large or too deep is cut with a marker.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Any, Final

from mailboat.protocol.limits import MAX_CAUSES, MAX_DEPTH, MAX_RECORD, MAX_STACK_FRAMES, MAX_TEXT

CUT: Final = "…[cut]"
_INT_LOW: Final = -(2**63)
_INT_HIGH: Final = 2**64


def packable(  # noqa: PLR0911 - one return for each family of types
    value: object, depth: int = 0, text_limit: int = MAX_TEXT
) -> Any:  # noqa: ANN401 - msgpack takes many types
    """`value` as something that msgpack can pack: other types become text, texts and bytes are cut to `text_limit`."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if _INT_LOW <= value < _INT_HIGH else _text(value, text_limit)
    if isinstance(value, str):
        return _cut(value.encode("utf-8", "backslashreplace").decode(), text_limit)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)[:text_limit]
    if depth >= MAX_DEPTH:
        return _text(value, text_limit)
    if isinstance(value, Mapping):
        return {
            packable(str(key), depth, text_limit): packable(each, depth + 1, text_limit) for key, each in value.items()
        }
    if isinstance(value, Sequence | AbstractSet):
        return [packable(each, depth + 1, text_limit) for each in value]
    return _text(value, text_limit)


def shrink(fields: Sequence[Any], size: int) -> Sequence[Any]:
    """The fields of a record whose packed `size` is beyond `MAX_RECORD`, cut until they are sure to fit."""
    limit = MAX_TEXT
    while size > MAX_RECORD and limit > 1:
        limit //= 4
        fields = [*fields[:2], *(packable(_fewer(each, limit), 0, limit) for each in fields[2:])]
        size = _estimate(fields)
    return fields


def _fewer(value: object, limit: int) -> object:
    """At most `limit` entries of a container, with a marker for the rest; so too within it."""
    if isinstance(value, Mapping):
        kept = {key: _fewer(each, limit) for key, each in list(value.items())[:limit]}
        return kept if len(value) <= limit else {**kept, CUT: len(value) - limit}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        entries = [_fewer(each, limit) for each in value[:limit]]
        return entries if len(value) <= limit else [*entries, CUT]
    return value


def _estimate(value: object) -> int:
    """An upper bound of the packed size."""
    if isinstance(value, str):
        return 5 + 4 * len(value)
    if isinstance(value, bytes):
        return 5 + len(value)
    if isinstance(value, Mapping):
        return 5 + sum(_estimate(key) + _estimate(each) for key, each in value.items())
    if isinstance(value, Sequence):
        return 5 + sum(map(_estimate, value))
    return 9


def _text(value: object, limit: int) -> str:
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - any type of the host's, whose __str__ may do anything
        text = f"<{type(value).__name__}: no text, {type(error).__name__}>"
    return _cut(text.encode("utf-8", "backslashreplace").decode(), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + CUT


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
            [relation, _type_name(current_cause), _text(current_cause, MAX_TEXT), _stack(current_cause.__traceback__)]
        )
        seen.add(id(current_cause))
        current = current_cause
    return _type_name(error), _text(error, MAX_TEXT), _stack(error.__traceback__), causes


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stack(trace: TracebackType | None) -> list[list[Any]]:
    """Outermost call first; of a deeper stack the innermost `MAX_STACK_FRAMES`."""
    frames = [[frame.f_code.co_filename, line, frame.f_code.co_name] for frame, line in traceback.walk_tb(trace)]
    return frames[-MAX_STACK_FRAMES:]
