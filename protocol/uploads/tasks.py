"""What a client may be told to do next, and the one table of the steps between which it moves."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from mailboat.protocol.uploads.outcomes import Bad, Good
from mailboat.protocol.uploads.values import Append, Cancel, Create, Query


class Source(Struct, frozen=True):
    """What is to be uploaded: `length` bytes so far, `sealed` when there will be no more."""

    length: int
    sealed: bool

    @property
    def final_length(self) -> int | None:
        """The length, once it is known that it will not change."""
        return self.length if self.sealed else None


class Wait(Struct, frozen=True):
    """Nothing to do until `until` (monotonic seconds), or, if None, until the file has grown."""

    until: float | None


class Done(Struct, frozen=True):
    """The upload is complete, or was cancelled as asked."""

    outcome: Good


class Failed(Struct, frozen=True):
    """This attempt is over; its outcome says what to do instead."""

    outcome: Bad


Task = Create | Query | Append | Cancel | Wait | Done | Failed


class Step(Enum):
    """Where a client stands."""

    ABSENT = "no resource yet"
    UNSURE = "the server's offset is not known"
    READY = "may append"
    BUSY = "a request is under way"
    DONE = "done"
    FAILED = "failed"


# A request leads to knowledge (READY), to doubt (UNSURE; ABSENT while nothing was made) or to an end. After a failure
# the owner may still have the resource cancelled, hence BUSY after FAILED.
STEPS: Final[Mapping[Step, frozenset[Step]]] = MappingProxyType(
    {
        Step.ABSENT: frozenset({Step.BUSY, Step.DONE, Step.FAILED}),
        Step.UNSURE: frozenset({Step.BUSY, Step.FAILED}),
        Step.READY: frozenset({Step.BUSY, Step.FAILED}),
        Step.BUSY: frozenset({Step.ABSENT, Step.UNSURE, Step.READY, Step.DONE, Step.FAILED}),
        Step.DONE: frozenset(),
        Step.FAILED: frozenset({Step.BUSY, Step.DONE}),
    }
)
