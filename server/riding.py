"""Segments that ride along with their offers: which may, what they are found to be, and where they are kept.

They are held to the same as uploads, before anything is kept of them: the bytes of one that was damaged are kept, too,
and its session is rejected, but it stops no other. All riders of a request are written and flushed together, then the
catalog takes them in the transaction that takes the offers. Killed in between, the bytes are in a pack that nobody
knows of, and the agent has no answer and sends them again; killed after it, the agent offers the sessions once more,
and is told that they are here.

A rider that cannot be used (of no offer, or of several products', not as long as its offer says, too large) is passed
over and counted: its offer is answered as if it had come alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol.limits import MAX_RIDER, MAX_RIDING
from mailboat.protocol.negotiation import Rider, Riding
from mailboat.protocol.summary import SegmentState
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.server.blobs import Blobs, LocalBlobs
from mailboat.server.catalog import Arrival, Catalog, Registration, SegmentRow, SessionState, UploadRow
from mailboat.server.following import Held
from mailboat.server.packs import Place, id_of
from mailboat.server.verification import Finding, verify

TERMS: Final = Riding(MAX_RIDER, MAX_RIDING)
"""How much may come, whatever the plan; of which sessions, `policy.advice` tells."""

_UNKNOWN: Final = "00000000-0000-7000-8000-000000000000"
"""Stands for the id that a blob has not got yet."""


class Boarded(Struct, frozen=True):
    """The registrations with what has arrived, how many riders that are, and how many were passed over."""

    registrations: tuple[Registration, ...]
    arrived: int = 0
    refused: int = 0
    size: int = 0


def board(riders: Sequence[Rider], registrations: tuple[Registration, ...], blobs: Blobs) -> Boarded:
    """Look into the riders of a request, and keep them, durably. Blocks; for a thread. Raises `OSError`, and nothing is
    kept then.
    """
    offered = _offered(registrations)
    fitting: dict[tuple[int, int], tuple[memoryview, Finding]] = {}
    room = MAX_RIDING
    for rider in riders:
        place, state = offered.get((rider.session_id, rider.index), (0, None))
        if state is None or not _fits(rider, state, room) or (place, rider.index) in fitting:
            continue
        room -= len(rider.content)
        fitting[place, rider.index] = rider.content, _look_into(rider, registrations[place].product)
    if not fitting:
        return Boarded(registrations, refused=len(riders))
    kept = blobs.put([content for content, _ in fitting.values()])
    arrivals: dict[int, dict[int, Arrival]] = {}
    for upload_id, ((place, index), (content, found)) in zip(kept, fitting.items(), strict=True):
        arrivals.setdefault(place, {})[index] = _arrival(upload_id, len(content), found)
    taken = tuple(replace(each, arrivals=arrivals.get(place, {})) for place, each in enumerate(registrations))
    return Boarded(taken, len(fitting), len(riders) - len(fitting), MAX_RIDING - room)


def _offered(registrations: Sequence[Registration]) -> dict[tuple[str, int], tuple[int, SegmentState]]:
    """Where in `registrations` each wanted segment is offered. A rider names no product: one that is offered to two in
    the same request (an admin's key reaches both) could be of either, and is left out.
    """
    offered: dict[tuple[str, int], tuple[int, SegmentState]] = {}
    products: dict[str, str] = {}
    of_several = set()
    for place, each in enumerate(registrations):
        session_id = each.summary.session_id
        if products.setdefault(session_id, each.product) != each.product:
            of_several.add(session_id)
        if each.state is SessionState.WANTED and each.fresh_uploads:
            offered.update({(session_id, state.index): (place, state) for state in each.summary.segments})
    return {key: found for key, found in offered.items() if key[0] not in of_several}


def unused(registrations: Sequence[Registration], held: Sequence[Sequence[SegmentRow]]) -> list[str]:
    """The blobs that have arrived in vain: their segments were here already."""
    used = {row.upload_id for rows in held for row in rows}
    arrived = (arrival.upload_id for each in registrations for arrival in each.arrivals.values())
    return [upload_id for upload_id in arrived if upload_id not in used]


def remove(blobs: Blobs, blob_ids: Sequence[str]) -> None:
    """Remove some blobs. Blocks; for a thread."""
    for blob_id in blob_ids:
        blobs.remove(blob_id)


async def sweep(catalog: Catalog, blobs: Blobs) -> int:
    """Delete the packs of which the catalog knows nothing any more; how many. Raises `OSError`.

    A pack holds thousands of segments, so there are few, and each costs one look into an index.
    """
    if not isinstance(blobs, LocalBlobs):
        return 0
    swept = 0
    for number in await asyncio.to_thread(blobs.packs.old):
        if not await catalog.any_upload(id_of(Place(number, 0, 0)), id_of(Place(number + 1, 0, 0))):
            await asyncio.to_thread(blobs.packs.discard, number)
            swept += 1
    return swept


def _fits(rider: Rider, state: SegmentState, room: int) -> bool:
    size = len(rider.content)
    return state.sealed and 0 < size == state.size <= min(MAX_RIDER, room)


def _look_into(rider: Rider, product: str) -> Finding:
    size = len(rider.content)
    state = UploadState(_UNKNOWN, size, size, Phase.COMPLETE)
    row = UploadRow(state, product, rider.session_id, rider.index)
    return verify(_InMemory(rider.content), row, Held(rider.content))


def _arrival(upload_id: str, size: int, found: Finding) -> Arrival:
    return Arrival(upload_id, size, found.verification, found.sha256, found.records, found.reason, found.detail)


class _InMemory(Struct, frozen=True):
    """One blob that is nowhere but here, for `verify`."""

    content: memoryview

    def read(self, _: str, offset: int, length: int) -> bytes:
        """See `Blobs.read`."""
        return bytes(self.content[offset : offset + length])
