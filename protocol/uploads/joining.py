"""Uploads made of others: each part is an upload of its own, and one request names the parts in their order.

The parts may still be under way when they are named. Whenever one of them is complete, or the whole is asked for, the
adapter lets `decide_joining` say whether that is complete too; if so, it copies the bytes, makes them durable, and only
then stores the state. Killed in between, it does so again: the parts are still there.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from mailboat.protocol.uploads.decisions import Appended, Refusal, Refused, refuse_gone
from mailboat.protocol.uploads.state import Creation, Event, UploadState
from mailboat.protocol.uploads.values import MAX_PARTS, Join, Limits


def decide_join(
    request: Join,
    parts: Sequence[UploadState | None],
    *,
    upload_id: str,
    limits: Limits,
    now: float,
    dialect: str,
) -> Appended | Refused:
    """Whether the upload `upload_id` may be made of `parts`, the uploads that `request` names, None for one unknown.

    It is open until `decide_joining` completes it; its length is known as soon as that of each part is.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        return Refused(Refusal.UNUSABLE_PART, f"an upload is made of 1 to {MAX_PARTS} others, not of {len(parts)}")
    for url, part in zip(request.parts, parts, strict=True):
        flaw = "is no upload of yours" if part is None else _flaw(part.at(now))
        if flaw:
            return Refused(Refusal.UNUSABLE_PART, f"{url[:200]!r} {flaw}")
    known = [part for part in parts if part is not None]
    length = _sum_of_lengths(known)
    if limits.max_size is not None and (length or 0) > limits.max_size:
        detail = f"an upload holds at most {limits.max_size} bytes, not {length}"
        return Refused(Refusal.TOO_LARGE, detail, limits=limits)
    return Appended(
        UploadState(
            id=upload_id,
            length=length,
            epoch=1,
            limits=limits,
            expires=None if limits.max_age is None else now + limits.max_age,
            dialect=dialect,
            creation=Creation(parts=tuple(part.id for part in known), notes=request.notes),
        )
    )


def _sum_of_lengths(parts: Sequence[UploadState]) -> int | None:
    """Bytes of an upload made of `parts`; None while the length of any is not known."""
    lengths = [part.length for part in parts]
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def decide_joining(state: UploadState, parts: Sequence[UploadState | None], *, now: float) -> UploadState | Refused:
    """Where an upload made of others stands, given those: its state, to be stored if it changed.

    With ``state.complete`` its bytes can be copied from the parts now, ``state.length`` of them; only when that is done
    is it to be stored. Refused when a part is gone for good, and so this upload is, too; or when all together are more
    than may be.
    """
    state = state.at(now)
    if state.gone:
        return refuse_gone(state)
    if state.complete:
        return state
    usable = [part for part in parts if part is not None and not part.at(now).gone]
    if len(usable) < len(parts):
        return Refused(Refusal.GONE, "a part of the upload is gone", state.fenced().after(Event.LOSE))
    length = _sum_of_lengths(usable)
    if length is not None and state.limits.max_size is not None and length > state.limits.max_size:
        detail = f"an upload holds at most {state.limits.max_size} bytes, not {length}"
        return Refused(Refusal.TOO_LARGE, detail, state.fenced().after(Event.OVERRUN))
    state = replace(state, length=length)
    if not all(part.complete for part in usable):
        return state
    return replace(state.fenced(), offset=sum(part.offset for part in usable)).after(Event.FINISH)


def _flaw(part: UploadState) -> str:
    if not part.creation.partial:
        return "was not made as a part"
    return f"is {part.phase.value}" if part.gone else ""
