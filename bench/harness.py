"""How everything here is measured: two ways of doing the same work by turns, A B A B, and compared pair by pair.

A *contender* does a fixed amount of work and says what that took (`Measured`). A *comparison* has two that matter, the
reference and the subject, and peers for the picture. Each repetition runs all of them once, one right after the other,
so that what the machine is doing besides hits both of a pair alike; the ratio is taken within the pair, and what is
reported is the median of the ratios with their quartiles. User and system time of all processes that took part stands
beside the wall time: on a busy machine it is the steadier of the two.

A measurement is a module with the names of `Measurement`, listed in ``__main__``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, Self

MIN_REPETITIONS = 5
"""Fewer say nothing of the spread."""


class Sense(Enum):
    """What a ratio compares, and which way is good."""

    COST = "cost"
    """Time of the subject over time of the reference: low is good."""
    SPEED = "speed"
    """Speed of the subject over speed of the reference: high is good."""
    EXTRA = "extra"
    """What the subject takes beyond the reference: a difference in its unit, not a ratio; low is good."""

    def compared(self, ours: float, theirs: float) -> float:
        """`ours` beside `theirs`, both of them times."""
        if self is Sense.EXTRA:
            return ours - theirs
        return ours / theirs if self is Sense.COST else theirs / ours


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took: `units` of work done in `wall` seconds with `cpu` seconds of user and system time.

    `parts` divides `cpu` by who spent it, where more than one process took part.
    """

    units: float
    wall: float
    cpu: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def each(self) -> Measured:
        """The same for one unit."""
        parts = {name: seconds / self.units for name, seconds in self.parts.items()}
        return Measured(1.0, self.wall / self.units, self.cpu / self.units, parts)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of doing the work. `run` does it once; it checks that it was done, and raises when it was not."""

    name: str
    run: Callable[[], Awaitable[Measured]]


@dataclass(frozen=True, slots=True)
class Absent:
    """A contender that cannot be had here, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Budget:
    """What a ratio is meant to be: at least `limit` for speeds, at most `limit` otherwise. `cpu` says which one:
    that of processor times, where nothing is ever waited for and wall time only tells what else the machine does, or
    that of wall times.
    """

    limit: float
    sense: Sense
    cpu: bool = False

    def met(self, ratio: float) -> bool:
        """Whether `ratio` is within the budget."""
        return ratio >= self.limit if self.sense is Sense.SPEED else ratio <= self.limit

    def shown(self, unit: Unit) -> str:
        """As a table has it."""
        limit = f"+{self.limit * unit.factor:g} {unit.time}" if self.sense is Sense.EXTRA else f"{self.limit:g} x"
        return f"{'cpu ' if self.cpu else ''}{'≥' if self.sense is Sense.SPEED else '≤'} {limit}"


@dataclass(frozen=True, slots=True)
class Unit:
    """What is counted, and how a figure is shown: seconds for one unit times `factor` are `time`; one unit over its
    seconds, times `rate_factor`, is `rate`.
    """

    name: str
    time: str
    factor: float
    rate: str = ""
    rate_factor: float = 1.0


CALL = Unit("call", "ns", 1e9)
BYTE = Unit("byte", "s/GB", 1e9, "MB/s", 1e-6)
SESSION = Unit("session", "ms", 1e3, "sessions/s")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the plan in ``performance.md`` (`id`), or a row beside it that has no `budget`."""

    id: str
    about: str
    unit: Unit
    sense: Sense
    reference: Contender
    subject: Contender
    peers: tuple[Contender | Absent, ...] = ()
    budget: Budget | None = None

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """All that can be run, in the order in which they take turns."""
        return (self.reference, self.subject, *(peer for peer in self.peers if isinstance(peer, Contender)))

    @property
    def absent(self) -> tuple[Absent, ...]:
        """The peers that cannot be had here."""
        return tuple(peer for peer in self.peers if isinstance(peer, Absent))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a measurement is told: `folder` is a place of its own on the disk to be measured; `size` bytes for
    measurements of bulk, `calls` for those of calls, `sessions` for those of many sessions, `records` for those of
    many records in a store.
    """

    folder: Path
    size: int
    calls: int
    sessions: int
    records: int


class Measurement(Protocol):
    """A module that measures. `comparisons` yields each comparison when what it needs is running."""

    NAME: str
    ABOUT: str
    REPETITIONS: int

    def comparisons(self, settings: Settings) -> AsyncGenerator[Comparison, None]:
        """The comparisons, one after the other; each is run before the next is asked for."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values in short: median and quartiles, and all of them in the order in which they were taken."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the values lies below the first, a quarter above the second."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def to_json(self) -> dict[str, object]:
        """As written to the file of results."""
        low, high = self.quartiles
        return {"median": self.median, "low": low, "high": high, "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Standing:
    """How one contender did. Times are seconds for one unit; ratios are to the reference, and None for itself."""

    name: str
    wall: Spread
    cpu: Spread
    parts: Mapping[str, Spread]
    ratio: Spread | None
    cpu_ratio: Spread | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A comparison that was run: the reference's standing first, then the subject's, then the peers'."""

    comparison: Comparison
    standings: tuple[Standing, ...]

    @property
    def subject(self) -> Standing:
        """The standing that the budget is about."""
        return self.standings[1]

    @property
    def met(self) -> bool | None:
        """Whether the subject is within its budget; None where there is none."""
        budget = self.comparison.budget
        if budget is None:
            return None
        ratio = self.subject.cpu_ratio if budget.cpu else self.subject.ratio
        return None if ratio is None else budget.met(ratio.median)


async def compare(comparison: Comparison, repetitions: int, progress: Callable[[str], object] = str) -> Outcome:
    """Run a comparison: once to warm up, then `repetitions` times. Raises what a contender raises."""
    contenders = comparison.contenders
    taken: dict[str, list[Measured]] = {contender.name: [] for contender in contenders}
    for repetition in range(repetitions + 1):
        for contender in contenders:
            progress(f"{comparison.id}: {contender.name}, {repetition} of {repetitions}")
            measured = (await contender.run()).each()
            if repetition:
                taken[contender.name].append(measured)
    reference = taken[comparison.reference.name]
    return Outcome(comparison, tuple(_standing(name, runs, reference, comparison) for name, runs in taken.items()))


def _standing(name: str, runs: Sequence[Measured], reference: Sequence[Measured], comparison: Comparison) -> Standing:
    itself = name == comparison.reference.name
    pairs = list(zip(runs, reference, strict=True))
    sense = comparison.sense
    wall = [sense.compared(ours.wall, theirs.wall) for ours, theirs in pairs]
    of_cpu = sense if sense is Sense.EXTRA else Sense.COST
    cpu = [of_cpu.compared(ours.cpu, theirs.cpu) for ours, theirs in pairs if theirs.cpu > 0]
    return Standing(
        name,
        Spread(tuple(run.wall for run in runs)),
        Spread(tuple(run.cpu for run in runs)),
        {part: Spread(tuple(run.parts[part] for run in runs)) for part in runs[0].parts},
        None if itself else Spread(tuple(wall)),
        None if itself or not cpu else Spread(tuple(cpu)),
    )


class Stopwatch:
    """Adds up the wall time, and the processor time of this process, that passes inside ``with``; may be entered again
    and again. With `thread` only the processor time of the calling thread.
    """

    def __init__(self, *, thread: bool = False) -> None:
        self._clock = time.thread_time if thread else time.process_time
        self.wall = 0.0
        self.cpu = 0.0

    def __enter__(self) -> Self:
        """Begin to count."""
        self._cpu = self._clock()
        self._wall = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self.wall += time.perf_counter() - self._wall
        self.cpu += self._clock() - self._cpu
