"""Results as JSON: one file for each measurement.

::

    {"format": 1, "bench": NAME, "about": text, "begun": ISO 8601, "machine": {...}, "versions": {...},
     "settings": {"repetitions": n, "size": bytes, "calls": n, "sessions": n},
     "rows": [{"id": "P1", "about": text, "unit": name, "sense": "cost" | "speed" | "extra",
               "budget": {"limit": x, "sense": as above, "of": "ratio" | "cpu_ratio", "met": bool} | null,
               "reference": name, "subject": name,
               "contenders": [{"name": name, "wall": spread, "cpu": spread, "parts": {name: spread},
                               "ratio": spread | null, "cpu_ratio": spread | null}],
               "absent": [{"name": name, "reason": text}]}]}

    spread = {"median": x, "low": first quartile, "high": third quartile, "values": [x, ...]}

*wall*, *cpu* and *parts* are seconds for one unit (of memory: bytes). *ratio* is taken pair by pair: time over the
reference's time where the sense is cost, speed over its speed where it is speed, and the difference where it is extra;
*cpu_ratio* is always processor time over the reference's, or their difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Outcome, Spread, Standing

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement, done."""

    name: str
    about: str
    begun: str
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    settings: Mapping[str, int]
    outcomes: Sequence[Outcome]

    def to_json(self) -> dict[str, object]:
        """See the module."""
        return {
            "format": FORMAT,
            "bench": self.name,
            "about": self.about,
            "begun": self.begun,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "rows": [_row(outcome) for outcome in self.outcomes],
        }

    def write(self, path: Path) -> None:
        """Write the JSON, making the folder where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def _row(outcome: Outcome) -> dict[str, object]:
    asked = outcome.comparison
    return {
        "id": asked.id,
        "about": asked.about,
        "unit": asked.unit.name,
        "sense": asked.sense.value,
        "budget": _budget(outcome),
        "reference": asked.reference.name,
        "subject": asked.subject.name,
        "contenders": [_contender(standing) for standing in outcome.standings],
        "absent": [{"name": peer.name, "reason": peer.reason} for peer in asked.absent],
    }


def _budget(outcome: Outcome) -> dict[str, object] | None:
    budget = outcome.comparison.budget
    if budget is None:
        return None
    of = "cpu_ratio" if budget.cpu else "ratio"
    return {"limit": budget.limit, "sense": budget.sense.value, "of": of, "met": outcome.met}


def _contender(standing: Standing) -> dict[str, object]:
    return {
        "name": standing.name,
        "wall": standing.wall.to_json(),
        "cpu": standing.cpu.to_json(),
        "parts": {name: spread.to_json() for name, spread in standing.parts.items()},
        "ratio": _maybe(standing.ratio),
        "cpu_ratio": _maybe(standing.cpu_ratio),
    }


def _maybe(spread: Spread | None) -> dict[str, object] | None:
    return None if spread is None else spread.to_json()
