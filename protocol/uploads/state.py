"""What a server keeps of one upload, and the one table of what may become of it.

An upload lives in one `Phase`. Bytes are only ever added while it is open; its offset never decreases, because every
offset told to a client is a promise that nothing before it will be asked for again (RUFH 4.1.1). Each request that
looks at an open upload or changes it takes a new *epoch*: whoever still writes under an older one has been superseded,
and what it brings from then on is refused. That is what makes an announced offset hold even when the connection it came
from is half dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol.errors import MailboatError
from mailboat.protocol.uploads.digests import Algorithm, Digest
from mailboat.protocol.uploads.values import NO_LIMITS, Limits, Notes


class UploadMisuse(MailboatError, RuntimeError):
    """The calling code broke the order of calls or contradicted itself; never the fault of a peer."""


class Phase(Enum):
    """Where an upload stands. The values are stored in catalogs: they do not change."""

    OPEN = "open"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    INVALID = "invalid"


class Event(Enum):
    """What can happen to an upload."""

    APPEND = "append"
    FINISH = "finish"
    CANCEL = "cancel"
    EXPIRE = "expire"
    OVERRUN = "overrun"
    LOSE = "lose"
    MISMATCH = "mismatch"


# The theory in one place: bytes only while open; an end is reached once and never left, except that a complete upload's
# *resource* may still go (its bytes were handed over when it completed).
# OVERRUN: a client sent more than the length it had stated, so nobody can say any more which bytes are meant (RUFH
# 4.4.2: "marking the upload resource invalid"). LOSE: the server lost bytes that it had announced; to go back is no way
# out, since an offset never decreases (4.1.1). MISMATCH: all bytes came, and they are not those that the client had
# declared by a digest of the whole; nobody can say which of them are wrong.
TRANSITIONS: Mapping[tuple[Phase, Event], Phase] = MappingProxyType(
    {
        (Phase.OPEN, Event.APPEND): Phase.OPEN,
        (Phase.OPEN, Event.FINISH): Phase.COMPLETE,
        (Phase.OPEN, Event.CANCEL): Phase.CANCELLED,
        (Phase.OPEN, Event.EXPIRE): Phase.EXPIRED,
        (Phase.OPEN, Event.OVERRUN): Phase.INVALID,
        (Phase.OPEN, Event.LOSE): Phase.INVALID,
        (Phase.COMPLETE, Event.CANCEL): Phase.CANCELLED,
        (Phase.COMPLETE, Event.EXPIRE): Phase.EXPIRED,
        (Phase.COMPLETE, Event.LOSE): Phase.INVALID,
        (Phase.COMPLETE, Event.MISMATCH): Phase.INVALID,
    }
)


class Creation(Struct, frozen=True):
    """What was said once, when an upload was made, and does not change; and `computed`, the answer to it.

    `partial`: it is only a part of others, so nobody looks into it when it is complete. `parts`: ids of the uploads
    that this one is made of; it takes no bytes itself. `whole`: the digest that its bytes must have in the end.
    `wanted`: the algorithm of a digest that the client wants to be told of the whole; `computed`: that digest, once the
    upload is complete. `notes`: header fields to repeat in answers, in the words of the dialect.
    """

    partial: bool = False
    parts: tuple[str, ...] = ()
    whole: Digest | None = None
    notes: Notes = ()
    wanted: Algorithm | None = None
    computed: Digest | None = None


PLAIN = Creation()


class UploadState(Struct, frozen=True, gc=False):
    """One upload as a catalog stores it, field by field.

    `id`: canonical UUID. `offset`: bytes received and durable. `length`: bytes of the whole, None while unknown.
    `epoch`: number of the request that may write now. `expires`: wall-clock seconds (Unix) at which the resource goes,
    None for never. `dialect`: the tag of the dialect it was made in, for requests that do not tell theirs (a bare
    HEAD); the core carries it and never looks at it. `creation`: what else was said when it was made.
    """

    id: str
    offset: int = 0
    length: int | None = None
    phase: Phase = Phase.OPEN
    epoch: int = 0
    limits: Limits = NO_LIMITS
    expires: float | None = None
    dialect: str = ""
    creation: Creation = PLAIN

    @property
    def complete(self) -> bool:
        """Whether the whole representation was received."""
        return self.phase is Phase.COMPLETE

    @property
    def gone(self) -> bool:
        """Whether the resource can no longer be used at all."""
        return self.phase not in (Phase.OPEN, Phase.COMPLETE)

    def after(self, event: Event) -> UploadState:
        """The state that `event` leads to; raises `UploadMisuse` where `TRANSITIONS` has no row."""
        phase = TRANSITIONS.get((self.phase, event))
        if phase is None:
            raise UploadMisuse(f"upload {self.id} is {self.phase.value}: {event.value} cannot happen to it")
        # A lifetime is that of unfinished uploads, and of parts: what is complete has been handed over.
        lasts = event is Event.FINISH and not self.creation.partial
        return replace(self, phase=phase, expires=None if lasts else self.expires)

    def used_by(self, until: float) -> UploadState:
        """A part that is complete and was used, to be kept until then at the longest (nothing is told of that)."""
        return replace(self, expires=until if self.expires is None else min(self.expires, until))

    def at(self, now: float) -> UploadState:
        """The state at wall-clock time `now`: expired if its time is over."""
        if self.expires is None or now < self.expires or self.gone:
            return self
        return self.after(Event.EXPIRE)

    def fenced(self) -> UploadState:
        """The same upload under a new epoch: whoever wrote under the old one is superseded."""
        return replace(self, epoch=self.epoch + 1)

    def prolonged(self, now: float) -> UploadState:
        """The same upload, to be kept `limits.max_age` from `now`; a lifetime is never shortened (RUFH 4.1.4)."""
        if self.expires is None or self.limits.max_age is None:
            return self
        return replace(self, expires=max(self.expires, now + self.limits.max_age))
