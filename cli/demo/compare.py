"""What the application was told was recorded, against what the server gives back: record by record.

Two records are the same when all is the same that the application knew when it made the call (`FIELDS`); time and
duration are read by the agent, so they are not compared. Sequence numbers say what came twice and in which order.

One record more than told is no fault, if the process was killed: the agent may have kept the record of a call that
had not returned yet. It can only be the last one of the session; it is counted as *in flight*.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

FIELDS: Final = ("kind", "name", "attributes", "value", "unit", "level", "message", "context")


def content_of(record: Mapping[str, Any]) -> str:
    """What is compared of a record, as text: readable, and equal for equal contents."""
    content = {field: record[field] for field in FIELDS if record.get(field) is not None}
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Given:
    """One record as the server gives it back."""

    sequence: int
    content: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Given:
        """From a record of the JSON API."""
        return cls(int(record["sequence"]), content_of(record))


@dataclass(frozen=True, slots=True)
class SessionComparison:
    """How one session came out; the texts are contents as `content_of` makes them.

    `told` and `kept` are numbers of records: those the application was told of, and those of them that the server has.
    `missing` were told and are not there; `duplicated` are there more often than told, or under one sequence number
    twice; `unknown` were never told; `disordered` stand in another place than they were told in; `skipped` are sequence
    numbers that no record has. `killed` says that its process was killed.
    """

    session_id: str
    told: int
    kept: int
    killed: bool = False
    missing: tuple[str, ...] = ()
    duplicated: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    disordered: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()
    in_flight: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every record told is there exactly once, in order, and nothing else is."""
        return not (self.missing or self.duplicated or self.unknown or self.disordered or self.skipped)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sessions that were told of or given, in the order of their ids."""

    sessions: tuple[SessionComparison, ...]

    @property
    def holds(self) -> bool:
        """Whether there was anything to compare, and every session came out well."""
        return any(session.told for session in self.sessions) and all(session.holds for session in self.sessions)

    def total(self, field: str) -> int:
        """The sum of a figure, or of the numbers of records in a list, over all sessions."""
        values = [getattr(session, field) for session in self.sessions]
        return sum(value if isinstance(value, int) else len(value) for value in values)


def compare(
    told: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[Given]], *, killed: Collection[str] = ()
) -> Comparison:
    """Compare the contents told, in order, with the records given, for each session id; `killed` are the sessions whose
    process was killed.
    """
    ids = sorted({*told, *given})
    return Comparison(
        tuple(compare_session(each, told.get(each, ()), given.get(each, ()), killed=each in killed) for each in ids)
    )


def compare_session(
    session_id: str, told: Sequence[str], given: Sequence[Given], *, killed: bool = False
) -> SessionComparison:
    """Compare one session; see `compare`."""
    awaited, known = Counter(told), frozenset(told)
    kept: list[str] = []
    duplicated: list[str] = []
    unknown: list[str] = []
    seen: set[int] = set()
    for record in sorted(given, key=lambda each: each.sequence):
        if record.sequence in seen:
            duplicated.append(record.content)
        elif awaited[record.content] > 0:
            awaited[record.content] -= 1
            kept.append(record.content)
        else:
            (duplicated if record.content in known else unknown).append(record.content)
        seen.add(record.sequence)
    last = max(given, key=lambda each: each.sequence).content if given else ""
    in_flight = [last] if killed and unknown == [last] else []
    return SessionComparison(
        session_id=session_id,
        told=len(told),
        kept=len(kept),
        killed=killed,
        missing=tuple(awaited.elements()),
        duplicated=tuple(duplicated),
        unknown=() if in_flight else tuple(unknown),
        disordered=_disordered(told, kept),
        skipped=tuple(sorted(set(range(max(seen, default=-1) + 1)) - seen)),
        in_flight=tuple(in_flight),
    )


def _disordered(told: Sequence[str], kept: Sequence[str]) -> tuple[str, ...]:
    """The records of `kept` that stand elsewhere than in `told`, what is missing left aside."""
    left = Counter(kept)
    expected = []
    for content in told:
        if left[content] > 0:
            left[content] -= 1
            expected.append(content)
    return tuple(there for place, there in zip(expected, kept, strict=True) if place != there)
