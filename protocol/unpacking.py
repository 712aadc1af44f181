"""Packed records taken apart: one msgpack value after the other, and past what is none.

No record says how long it is, so whatever stands in one that is no msgpack takes the rest with it: an application can
bring that about (``msgspec.Raw`` is packed as it stands), and so can a damaged journal. Reading goes on at the next
bytes that can only be the beginning of a record.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgpack

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.records import Kind

SHORTEST_RECORD: Final = 3
"""Kind, time and name."""

PairsHook = Callable[[Iterable[tuple[Any, Any]]], dict[Any, Any]]

_TIMESTAMPS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
"""How a timestamp begins in msgpack."""

_TIMED: Final = rb"[\x01-\x08](?:\xce(....)|\xcf([\x00-\x7f].{7}))"
_BEGINNING: Final = re.compile(rb"[\x93-\x9f](?=%b)|\xdc(?=..%b)" % (_TIMED, _TIMED), re.DOTALL)
"""How a record begins: an array of its kind and its time, ..."""
_TRIES: Final = 64
"""So many such places are looked at behind what is no record; each costs a copy of what is behind it."""
_BREAKS: Final = 64
"""So many places in a half of a journal are gone past."""
_GUESSES: Final = 6
"""So many places are tried in a block: a server must not be kept busy by blocks that are made for it."""
_KINDS: Final = frozenset(Kind)
_BACK: Final = 3600 * 10**9
_AHEAD: Final = 30 * 24 * _BACK
"""Nanoseconds by which a record may be older or younger than the one before it; what is of another time is none."""


def unpack(raw: bytes) -> list[list[Any]]:
    """The records packed in `raw` as raw fields; `SegmentError` if it holds anything else."""
    records, end = whole_records(raw)
    if end != len(raw):
        raise SegmentError(f"what stands at byte {end} of {len(raw)} is no record, or is cut short")
    return records


def whole_records(raw: bytes) -> tuple[list[list[Any]], int]:
    """The records at the start of `raw` up to the first that is none or cut short, and the place where that begins."""
    records, ends = _placed(raw)
    return records, ends[-1] if ends else 0


def _placed(raw: bytes, start: int = 0) -> tuple[list[list[Any]], list[int]]:
    """As `whole_records`, from `start` on, and where each of them ends."""
    rest = raw[start:] if start else raw
    try:
        records, ends = _whole_records(rest, None)
    except TypeError:  # a map's key is itself a list or a map, as of a dict with tuples for keys: once more, slowly
        records, ends = _whole_records(rest, _as_map)
    return records, [start + end for end in ends] if start else ends


def _whole_records(raw: bytes, pairs_hook: PairsHook | None) -> tuple[list[list[Any]], list[int]]:
    records: list[list[Any]] = []
    ends: list[int] = []
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(len(raw), 1),
        strict_map_key=False,
        unicode_errors="replace",
        object_pairs_hook=pairs_hook,
    )
    unpacker.feed(raw)
    try:
        for record in unpacker:
            if not _is_record(record):
                break
            records.append(record)
            ends.append(unpacker.tell())
    except (ValueError, msgpack.UnpackException, RecursionError):
        pass  # that is where the records end
    if any(mark in raw for mark in _TIMESTAMPS):
        records = [_with_dates(record) for record in records]
    return records, ends


def _with_dates(value: Any) -> Any:  # noqa: ANN401 - whatever a record holds
    if isinstance(value, msgpack.Timestamp):
        return _date(value)
    if isinstance(value, list):
        return [_with_dates(each) for each in value]
    if isinstance(value, dict):
        return {_with_dates(key): _with_dates(each) for key, each in value.items()}
    return value


def _date(timestamp: msgpack.Timestamp) -> str | int:
    try:
        return timestamp.to_datetime().isoformat().replace("+00:00", "Z")
    except OverflowError:  # no agent says a year beyond 9999
        return timestamp.to_unix_nano()


def _is_record(value: object) -> bool:
    return isinstance(value, list) and len(value) >= SHORTEST_RECORD and isinstance(value[0], int)


def _as_map(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    return {str(key) if isinstance(key, list | dict) else key: value for key, value in pairs}


# -- past what is no record ------------------------------------------------------------------------------------------


def whole_pieces(raw: bytes) -> tuple[bytes, int]:
    """The whole records of `raw`, also behind what is none; and how many times there was such, each at least a record
    lost.
    """
    records, ends = _placed(raw)
    pieces, breaks, begun = list[bytes](), 0, 0
    while (ends[-1] if ends else begun) < len(raw):
        breaks += 1
        while len(records) > 1 and not _near(records[-1], _time_of(records[:-1])):
            records, ends = records[:-1], ends[:-1]
        found = _behind(raw, records, [begun, *ends]) if breaks < _BREAKS else None
        if found is None:
            break
        start, following, their_ends = found
        pieces.append(raw[begun : max((end for end in ends if end <= start), default=begun)])
        begun, records, ends = start, following, their_ends
    pieces.append(raw[begun : ends[-1] if ends else begun])
    return b"".join(pieces), breaks


def _behind(raw: bytes, records: list[list[Any]], starts: list[int]) -> tuple[int, list[list[Any]], list[int]] | None:
    """The next whole records that go on beyond `records`, which begin at `starts` and end at the last of these: where
    they begin, themselves, and where they end. They may begin within the last one.
    """
    look, known = starts[-2:][0] + 1, set(starts[:-1])
    for _ in range(_TRIES):
        found = _next_beginning(raw, look, known, _time_of(records))
        if found is None:
            return None
        before = records[: bisect_right(starts, found) - 1]
        following, ends = _placed(raw, found)
        if following and ends[-1] > starts[-1] and _follows(following[0], _time_of(before)):
            return found, following, ends
        look = found + 1
    return None


def around_damage(raw: bytes, count: int) -> tuple[int, int]:
    """Of `raw`, which should be `count` records (and any number of declarations) and is not: how long the whole records
    before what is none are, and where those begin that go on up to the end; together no more than `count`.

    What is no msgpack may be short of what it announces and take in whole records, so those behind it may begin within
    the last record before it. What its time tells to be none of an agent's is none.
    """
    records, ends = _placed(raw)
    lasts = [None, *(_time_of([each]) for each in records)]
    strange = (at for at, each in enumerate(records) if not _near(each, lasts[at]))
    kept = next(strange, len(records))
    records, ends = records[:kept], ends[:kept]
    start = _where_it_goes_on(raw, records, ends, count)
    if ends and ends[-1] == start:
        return 0, start  # all are records, too few or too many of them
    kept = bisect_right(ends, start)
    behind, their_ends = _placed(raw, start)
    beyond = numbered(records[:kept]) + numbered(behind) - count
    if beyond > 0:
        counted = [end for each, end in zip(behind, their_ends, strict=True) if each[0] != Kind.SCHEMA]
        start = counted[beyond - 1] if beyond <= len(counted) else len(raw)
    return (ends[kept - 1] if kept and numbered(records[:kept]) <= count else 0), start


def _where_it_goes_on(raw: bytes, records: list[list[Any]], ends: list[int], count: int) -> int:
    """Where those records begin that are none of `records`, go on up to the end, and make up most of what is missing;
    the end, if there are none.
    """
    starts = [0, *ends]
    known, look = set(starts), 1 if starts[-1] == len(raw) else starts[-2:][0] + 1
    best, most = len(raw), 0
    for _ in range(_GUESSES):
        found = _next_beginning(raw, look, known, _time_of(records))
        if found is None:
            break
        before = records[: bisect_right(ends, found)]
        behind, their_ends = _placed(raw, found)
        known.update(their_ends)
        look = found + 1
        if not their_ends or their_ends[-1] < len(raw):
            look = max([look, *(each + 1 for each in their_ends[-2:-1])])
            continue
        together = numbered(before) + numbered(behind)
        if together > most and _follows(behind[0], _time_of(before)):
            best, most = found, together
        if most >= count - 1:
            break
    return best


def _next_beginning(raw: bytes, look: int, known: set[int], last: int | None) -> int | None:
    for found in _BEGINNING.finditer(raw, look):
        time = int.from_bytes(found[found.lastindex or 0], "big")
        if found.start() not in known and _within_reach(time, last):
            return found.start()
    return None


def _near(record: list[Any], last: int | None) -> bool:
    """Whether this can be an agent's record, if the one before it is of the time `last`."""
    kind, time, *_ = record
    return kind in _KINDS and isinstance(time, int) and _within_reach(time, last)


def _within_reach(time: int, last: int | None) -> bool:
    return last is None or -_BACK < time - last < _AHEAD


def numbered(records: list[list[Any]]) -> int:
    """How many of them have a sequence number; declarations have none."""
    return sum(record[0] != Kind.SCHEMA for record in records)


def _time_of(records: list[list[Any]]) -> int | None:
    """The time of the last of them."""
    return next((record[1] for record in reversed(records) if isinstance(record[1], int)), None)


def _follows(record: list[Any], last: int | None) -> bool:
    """Whether what was found behind damage is a record, and no list within one that looks alike."""
    kind, _, name, *rest = record
    if kind == Kind.POSITIONAL:
        formed = isinstance(name, int)
    else:
        formed = isinstance(name, str) and isinstance(next(iter(rest), None), list if kind == Kind.SCHEMA else dict)
    return formed and _near(record, last)
