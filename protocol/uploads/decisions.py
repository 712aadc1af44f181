"""The server's side: what follows from a request on an upload. Pure functions from a state to a verdict.

For a request with a body an adapter goes through these steps, in this order:

1. End the older transfer of the same upload, if there is one: it calls `finish_append` with `BodyEnd.CUT`, and its
   bytes are kept. The newest request wins, because a client that asks again has given up on what it asked before.
2. Load the state; `decide_create` or `decide_append`. **Store** ``verdict.state`` before doing anything else: its
   epoch shuts out whoever did not end in step 1, and its length is a statement that later requests must match.
3. If `Accepted`: write the body at ``from_offset``, at most ``max_bytes`` of it, and make it durable. `record_bytes`
   may note durable progress on the way.
4. `finish_append` with the durable offset; store its state; answer.

A verdict's state has to be stored before it is answered, `Refused` included: an answer that tells an offset promises
that this very offset will be accepted next (RUFH 4.6), which holds only under the new epoch.

A body under a digest is kept whole or not at all: nothing of it is recorded on the way, and `finish_append` is told the
digest of what came. Where the digest itself follows the body, the adapter finishes with `Accepted.told`. Where the
verdict stands at ``from_offset`` again, the adapter drops the bytes. An upload that is complete and declared a digest
of the whole, or wants to be told one, has to pass `check_whole` before that is stored.

An upload made of others (`joining`) takes no bytes. Whenever one of its parts is complete, or it is asked for, the
adapter has `joining` say whether it is complete too, and copies the parts before that is stored.

`now` is wall-clock time in Unix seconds: lifetimes are kept across restarts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol.uploads.digests import Algorithm, Digest
from mailboat.protocol.uploads.state import Creation, Event, Phase, UploadMisuse, UploadState
from mailboat.protocol.uploads.values import Append, Create, Limits, Query, stated_length


class Refusal(Enum):
    """Why a request was not carried out; each dialect has its own status and wording for these."""

    MALFORMED = "a field is missing or cannot be read"
    UNSUPPORTED_MEDIA_TYPE = "the body has another media type than appends have"
    METHOD_NOT_ALLOWED = "uploads know no such method"
    UNKNOWN = "there is no such upload"
    GONE = "the upload was cancelled, expired or spoilt"
    COMPLETED = "the upload is complete; nothing was to be appended"
    COMPLETED_EXTENDED = "the upload is complete; bytes were to be appended"
    MISMATCHING_OFFSET = "the upload stands at another offset"
    INCONSISTENT_LENGTH = "statements about the upload's length contradict each other"
    TOO_LARGE = "the upload is larger than the server takes"
    TOO_SMALL = "the upload is smaller than the server keeps resumable"
    APPEND_TOO_LARGE = "one request carries more than the server takes at a time"
    APPEND_TOO_SMALL = "one request carries less than the server takes at a time"
    SUPERSEDED = "a newer request on the same upload took over"
    UNSUPPORTED_VERSION = "the request speaks a version of the protocol that is not spoken here"
    UNKNOWN_ALGORITHM = "a digest of an algorithm that is not computed here"
    MISMATCHING_DIGEST = "the bytes are not those that the digest was made of"
    MADE_OF_PARTS = "the upload is made of others, and takes no bytes itself"
    UNUSABLE_PART = "an upload cannot be a part of another one"


class BodyEnd(Enum):
    """How the body of a request ended."""

    WHOLE = "whole"
    """It came as far as the message itself said."""
    CUT = "cut"
    """It broke off: connection lost, too slow, or ended for a newer request."""
    OVERRUN = "overrun"
    """More than ``max_bytes`` came; what was beyond them was dropped."""


class Accepted(Struct, frozen=True):
    """The body may be written at `from_offset`, under `epoch`, at most `max_bytes` of it (None: no bound)."""

    state: UploadState
    request: Create | Append
    from_offset: int
    max_bytes: int | None

    @property
    def epoch(self) -> int:
        """The epoch under which the body is written."""
        return self.state.epoch

    @property
    def tentative(self) -> bool:
        """Whether the body comes under a digest, so that nothing of it counts before it was checked."""
        return self.request.digest is not None or self.request.digest_follows

    def told(self, digest: Digest) -> Accepted:
        """The same, now that the digest which was to follow the body has come."""
        return replace(self, request=replace(self.request, digest=digest, digest_follows=False))


class Appended(Struct, frozen=True):
    """The body was kept, up to `state.offset`; `state.complete` tells whether that was the last of it."""

    state: UploadState


class Found(Struct, frozen=True):
    """Here stands the upload."""

    state: UploadState


class Cancelled(Struct, frozen=True):
    """The resource is gone. `discard`: its bytes may go too; not so when they were handed over by completion before."""

    state: UploadState
    discard: bool


class Refused(Struct, frozen=True):
    """The request was not carried out.

    `state` is to be stored; None when there is no upload, or the request never came so far as to look at it.
    `provided` is the offset that the request named. `limits` are those that an upload would have had.
    """

    refusal: Refusal
    detail: str
    state: UploadState | None = None
    provided: int | None = None
    limits: Limits | None = None


Verdict = Accepted | Appended | Found | Cancelled | Refused


def decide_create(
    request: Create,
    *,
    upload_id: str,
    limits: Limits,
    now: float,
    dialect: str,
) -> Accepted | Refused:
    """Whether the upload `upload_id` may be made; if so its bytes are taken as for an append at 0."""
    fresh = UploadState(
        id=upload_id,
        limits=limits,
        expires=None if limits.max_age is None else now + limits.max_age,
        dialect=dialect,
        creation=Creation(partial=request.partial, notes=request.notes, wanted=request.wanted),
    )
    verdict = _admit(fresh.fenced(), request, 0)
    if isinstance(verdict, Refused):
        return replace(verdict, state=None, limits=limits)  # nothing was made, so there is nothing to store
    return verdict


def decide_append(state: UploadState, request: Append, *, now: float) -> Accepted | Refused:
    """Whether the body of `request` may be appended to the upload in `state`."""
    state = state.at(now)
    if state.gone:
        return refuse_gone(state)
    if state.creation.parts:
        return Refused(Refusal.MADE_OF_PARTS, "an upload made of others takes no bytes", state)
    if state.complete:
        # RUFH 4.4.2: a body on top of a complete upload contradicts its length, an empty one is merely late
        late = request.content_length == 0
        refusal = Refusal.COMPLETED if late else Refusal.COMPLETED_EXTENDED
        return Refused(refusal, f"the upload is complete, with {state.offset} bytes", state, request.offset)
    state = state.fenced()
    if request.offset != state.offset:
        detail = f"the upload stands at {state.offset}, the request at {request.offset}"
        return Refused(Refusal.MISMATCHING_OFFSET, detail, state, request.offset)
    return _admit(state.prolonged(now), request, state.offset)


def decide_query(state: UploadState, request: Query = Query(), *, now: float) -> Found | Refused:  # noqa: B008 - frozen
    """Where the upload stands. Takes a new epoch: a transfer still under way could outdate the answer.

    An upload that has all its bytes is completed by being asked for, in a dialect where that needs no word of the
    client: it takes its upload for complete when it hears the offset, and will not ask again. That happens when the
    server was killed between the last byte and the completion.
    """
    state = state.at(now)
    if state.gone:
        return refuse_gone(state)
    if state.complete:
        return Found(state)
    whole = request.completes_at_length and state.offset == state.length and not state.creation.parts
    return Found(state.fenced().after(Event.FINISH) if whole else state.fenced())


def decide_cancel(state: UploadState, *, now: float) -> Cancelled | Refused:
    """The upload's resource goes, and with it the bytes of an incomplete upload."""
    state = state.at(now)
    if state.gone:
        return refuse_gone(state)
    return Cancelled(state.fenced().after(Event.CANCEL), discard=not state.complete)


def record_bytes(state: UploadState, accepted: Accepted, *, offset: int) -> UploadState | Refused:
    """Note that `accepted`'s body is durable up to `offset`; refused when a newer request took over meanwhile.

    `state` is the upload as stored now. Raises `UploadMisuse` for an offset outside of what was accepted.
    """
    if accepted.tentative and offset != accepted.from_offset:
        raise UploadMisuse("nothing of a body under a digest is recorded before it was checked")
    return _recorded(state, accepted, offset)


def _recorded(state: UploadState, accepted: Accepted, offset: int) -> UploadState | Refused:
    if state.phase is not Phase.OPEN or state.epoch != accepted.epoch:
        return Refused(Refusal.SUPERSEDED, "a newer request on this upload took over; ask for its offset", state)
    end = None if accepted.max_bytes is None else accepted.from_offset + accepted.max_bytes
    if offset < state.offset or (end is not None and offset > end):
        raise UploadMisuse(f"offset {offset} was neither reached before ({state.offset}) nor accepted (up to {end})")
    return replace(state.after(Event.APPEND), offset=offset)


def finish_append(
    state: UploadState, accepted: Accepted, *, offset: int, end: BodyEnd, now: float, digest: bytes | None = None
) -> Appended | Refused:
    """What has become of the upload, now that `accepted`'s body ended as `end` says and is durable up to `offset`.

    `state` is the upload as stored now. `digest`: that of the body, by the algorithm of the digest it was declared
    under; needed of a whole body if there was one. Raises `UploadMisuse` as `record_bytes` does.
    """
    if not _sound(accepted, offset, end, digest):
        return _dropped(state, accepted, offset, end, now)
    recorded = _recorded(state, accepted, offset)
    if isinstance(recorded, Refused):
        return recorded
    state = recorded.prolonged(now)
    if end is BodyEnd.OVERRUN:
        if accepted.max_bytes is None or offset != accepted.from_offset + accepted.max_bytes:
            raise UploadMisuse(f"a body cannot overrun {accepted.max_bytes} bytes and end at {offset}")
        return _overrun(state)
    return _ended(state, accepted, offset, end)


def _ended(state: UploadState, accepted: Accepted, offset: int, end: BodyEnd) -> Appended | Refused:
    """What follows from a body that has been recorded: completion, if that was the last of it."""
    request = accepted.request
    if end is BodyEnd.CUT or _short(accepted, offset):
        return Appended(state)
    if request.complete and state.length is not None and offset != state.length:
        # RUFH 4.1.3: "offset and length must match" to complete. The bytes stay, the client may explain itself.
        detail = f"the upload was to be complete at {offset} bytes, but its length is {state.length}"
        return Refused(Refusal.INCONSISTENT_LENGTH, detail, state)
    if request.complete or (request.completes_at_length and offset == state.length):
        return Appended(replace(state, length=offset).after(Event.FINISH))
    return Appended(state)


def _sound(accepted: Accepted, offset: int, end: BodyEnd, digest: bytes | None) -> bool:
    """Whether what came of a body may be kept, as far as its digest goes."""
    declared = accepted.request.digest
    if not accepted.tentative:
        return True
    if declared is None:
        return False  # it was to follow, and has not come
    if end is not BodyEnd.WHOLE or _short(accepted, offset):
        return False
    if digest is None:
        raise UploadMisuse("the digest of a whole body is needed, where one was declared")
    return digest == declared.value


def _dropped(state: UploadState, accepted: Accepted, offset: int, end: BodyEnd, now: float) -> Appended | Refused:
    """A body that is not sound: as if it had never come."""
    recorded = _recorded(state, accepted, accepted.from_offset)
    if isinstance(recorded, Refused):
        return recorded
    state = recorded.prolonged(now)
    if end is BodyEnd.OVERRUN:
        detail = f"more came than the {accepted.max_bytes} bytes that could be taken"
        return Refused(Refusal.INCONSISTENT_LENGTH, detail, state)
    if end is BodyEnd.CUT or _short(accepted, offset):
        return Appended(state)
    if accepted.request.digest is None:
        return Refused(Refusal.MALFORMED, "the checksum that was to follow the body has not come, or is none", state)
    detail = f"the {offset - accepted.from_offset} bytes of the body have not the digest {accepted.request.digest}"
    return Refused(Refusal.MISMATCHING_DIGEST, detail, state)


def _short(accepted: Accepted, offset: int) -> bool:
    """Whether fewer bytes came than the message announced: then it was cut, whatever the transport thought."""
    announced = accepted.request.content_length
    return announced is not None and offset - accepted.from_offset < announced


def _overrun(state: UploadState) -> Refused:
    if state.length is not None and state.offset >= state.length:
        detail = f"more came than the {state.length} bytes stated as the upload's length"
        return Refused(Refusal.INCONSISTENT_LENGTH, detail, state.after(Event.OVERRUN))
    limits = state.limits
    if limits.max_size is not None and state.offset >= limits.max_size:
        return Refused(Refusal.TOO_LARGE, f"an upload holds at most {limits.max_size} bytes", state)
    return Refused(Refusal.APPEND_TOO_LARGE, f"a request holds at most {limits.max_append_size} bytes", state)


def check_whole(state: UploadState, digests: Mapping[Algorithm, bytes]) -> UploadState | Refused:
    """Hold a complete upload to the digest that was declared of the whole: the state to store, with the digest that was
    wanted, or what to answer.

    `digests` are those of all its bytes, by each of `whole_digests`. Raises `UploadMisuse` while it is not complete.
    """
    if not state.complete:
        raise UploadMisuse(f"upload {state.id} is not complete: nothing can be said of its whole")
    declared, wanted = state.creation.whole, state.creation.wanted
    if declared is not None and digests[declared.algorithm] != declared.value:
        detail = f"the {state.offset} bytes of the upload have not the digest {declared}"
        return Refused(Refusal.MISMATCHING_DIGEST, detail, state.after(Event.MISMATCH))
    if wanted is None:
        return state
    return replace(state, creation=replace(state.creation, computed=Digest(wanted, digests[wanted])))


def whole_digests(state: UploadState) -> frozenset[Algorithm]:
    """The algorithms by which `check_whole` needs the digest of all the bytes."""
    declared = None if state.creation.whole is None else state.creation.whole.algorithm
    return frozenset(each for each in (declared, state.creation.wanted) if each is not None)


def refuse_gone(state: UploadState) -> Refused:
    """The refusal of any request on an upload that can no longer be used."""
    return Refused(Refusal.GONE, f"the upload is {state.phase.value}", state)


def _admit(state: UploadState, request: Create | Append, offset: int) -> Accepted | Refused:
    """Check a request that stands at the right offset against length and limits; `state` has its new epoch."""
    whole = state.creation.whole or request.whole
    if request.whole not in (None, whole):
        return Refused(Refusal.MISMATCHING_DIGEST, f"the upload's digest was declared as {whole} before", state)
    state = replace(state, creation=replace(state.creation, whole=whole))
    contradiction = _contradiction(state, request, offset)
    if contradiction is not None:
        return Refused(Refusal.INCONSISTENT_LENGTH, contradiction, state)
    length = state.length if state.length is not None else stated_length(request, offset)
    excess = _excess(state.limits, request, offset, length)
    if excess is not None:
        return replace(excess, state=state)
    return Accepted(replace(state, length=length), request, offset, _max_bytes(state.limits, request, offset, length))


def _contradiction(state: UploadState, request: Create | Append, offset: int) -> str | None:
    """What is wrong with the lengths that were stated, in this request and before (RUFH 4.1.3)."""
    known = state.length if state.length is not None else request.length
    if request.length not in (None, known):
        return f"the upload's length was stated as {known}, and now as {request.length}"
    if known is None:
        return None
    if known < offset:
        return f"the upload's length cannot be {known}, it has {offset} bytes already"
    if request.content_length is None:
        return None
    end = offset + request.content_length
    if end > known or (request.complete and end != known):
        return f"the request ends at {end}, but the upload's length is {known}"
    return None


def _excess(limits: Limits, request: Create | Append, offset: int, length: int | None) -> Refused | None:
    """Which limit the request breaks, as far as it can be told before its body."""
    size = request.content_length
    reached = length if length is not None else offset + (size or 0)
    if limits.max_size is not None and reached > limits.max_size:
        return Refused(Refusal.TOO_LARGE, f"an upload holds at most {limits.max_size} bytes, not {reached}")
    if limits.min_size is not None and length is not None and length < limits.min_size:
        return Refused(Refusal.TOO_SMALL, f"an upload holds at least {limits.min_size} bytes, not {length}")
    if size is None:
        return None
    if limits.max_append_size is not None and size > limits.max_append_size:
        return Refused(Refusal.APPEND_TOO_LARGE, f"a request holds at most {limits.max_append_size} bytes, not {size}")
    # The smallest append does not bind the last one, nor a creation that only asks for a resource.
    exempt = request.complete or (isinstance(request, Create) and size == 0)
    if limits.min_append_size is not None and size < limits.min_append_size and not exempt:
        return Refused(Refusal.APPEND_TOO_SMALL, f"a request holds at least {limits.min_append_size} bytes, not {size}")
    return None


def _max_bytes(limits: Limits, request: Create | Append, offset: int, length: int | None) -> int | None:
    """How much of the body may be kept; RUFH 4.4.2: "not sufficient to rely on Content-Length"."""
    bounds = (
        request.content_length,
        limits.max_append_size,
        None if limits.max_size is None else limits.max_size - offset,
        None if length is None else length - offset,
    )
    return min((bound for bound in bounds if bound is not None), default=None)
