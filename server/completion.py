"""What follows when an upload has all its bytes: they are held to what was declared of them, looked into, and kept as
what they are. Killed anywhere in between, it is done again: the upload is found open, with all its bytes.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from aiohttp import web
from msgspec import structs
from msgspec.structs import replace

from mailboat.protocol.limits import MAX_PACKAGE, MIB
from mailboat.protocol.negotiation import Reason
from mailboat.protocol.packages import Span, spans
from mailboat.protocol.uploads.decisions import Refused, check_whole, whole_digests
from mailboat.protocol.uploads.state import Creation, Event, UploadState
from mailboat.server.blobs import BlobLost, Blobs
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.context import BLOBS, CATALOG, CLOCK, CONFIG, COUNTERS, NEW_ID, VERIFIERS
from mailboat.server.following import Passing
from mailboat.server.policy import Account, Plan, month_of, rule
from mailboat.server.unsealing import UNSEALING
from mailboat.server.verification import Finding, digest_of, verify

IMPORTED_AGE: Final = 24 * 3600.0
"""Seconds for which a package is kept after its segments were taken: for a client that missed the answer."""

_LOG: Final = logging.getLogger("mailboat.server")


async def held_to_digest(app: web.Application, state: UploadState) -> UploadState | Refused:
    """A complete upload's state with the digest that its client wants to be told of the whole; its refusal, when it is
    not what its client declared.
    """
    loop, digests = asyncio.get_running_loop(), {}
    for algorithm in whole_digests(state):
        reading = loop.run_in_executor(app[VERIFIERS], digest_of, app[BLOBS], state.id, state.offset, algorithm)
        digests[algorithm] = await reading
    return check_whole(state, digests)


async def complete(app: web.Application, row: UploadRow, state: UploadState, passing: Passing | None = None) -> bool:
    """Verify the upload `row`, whose complete `state` is not stored yet, and store it; False when it was overtaken.
    What is known of it already is `passing`.

    Whatever its bytes are, the exchange goes on as the dialect has it: what is no segment is kept apart, and shown.
    """
    row = replace(row, state=state, updated=app[CLOCK]())
    return await (_keep(app, row, passing) if row.session_id is not None else _take_apart(app, row))


async def _keep(app: web.Application, row: UploadRow, passing: Passing | None = None) -> bool:
    """Keep the bytes of `row` as the one segment that they are, or are not."""
    finding = await asyncio.get_running_loop().run_in_executor(app[VERIFIERS], _verify, app[BLOBS], row, passing)
    finding = await _held_to_plan(app, row, finding)
    row = replace(
        row,
        verification=finding.verification,
        sha256=finding.sha256,
        records=finding.records,
        reason=finding.reason,
        detail=finding.detail,
    )
    app[COUNTERS][f"uploads_{finding.verification}"] += 1
    if finding.verification is not Verification.VERIFIED:
        _LOG.warning("upload %s is %s: %s", row.id, finding.verification, finding.detail)
    if finding.summary is None:
        return await app[CATALOG].finish_upload(row)
    stranger = replace(row, session_id=finding.session_id, index=finding.index)
    if await app[CATALOG].adopt(stranger, app[UNSEALING].summary(finding.summary)):
        return True
    if await _is_here(app, stranger):
        return await _imported(app, row, "that segment is here already")
    double = replace(row, verification=Verification.QUARANTINED, detail="that segment is here, with other content")
    return await app[CATALOG].finish_upload(double)


async def reconsider(app: web.Application, row: UploadRow) -> None:
    """Look anew into the complete upload `row`, which was found to be no segment or not the one that it should be:
    it takes its place among the others if it is by now (this server reads more, the plan has changed), and has its
    reason of today if it is not. Raises `OSError` when its bytes cannot be read.

    Each outcome is one transaction, so that it counts once whatever is killed when.
    """
    if row.session_id is None:
        await complete(app, row, row.state)
        return
    finding = await asyncio.get_running_loop().run_in_executor(app[VERIFIERS], partial(_verify, app[BLOBS], row))
    now = app[CLOCK]()
    if finding.verification is Verification.VERIFIED:
        await app[CATALOG].readmit(replace(row, sha256=finding.sha256, records=finding.records, updated=now))
    else:
        await app[CATALOG].mark_rejected(row.id, finding.reason, finding.detail, now)


async def _is_here(app: web.Application, row: UploadRow) -> bool:
    """Whether the segment is here already, with this very content."""
    session = None if row.session_id is None else await app[CATALOG].session(row.product, row.session_id)
    segments = () if session is None else session.segments
    verified = [each for each in segments if each.verification is Verification.VERIFIED]
    return any((each.index, each.sha256) == (row.index, row.sha256) for each in verified)


# -- what holds several segments ---------------------------------------------------------------------------------------


async def _take_apart(app: web.Application, row: UploadRow) -> bool:
    """Keep an upload that nobody asked for: each segment of a package becomes an upload of its own, and is judged as if
    it had come alone.

    The package is noted last. Killed in between, it is taken apart again, and finds the segments here.
    """
    read, size = partial(app[BLOBS].read, row.id), row.state.offset
    found = await asyncio.get_running_loop().run_in_executor(app[VERIFIERS], spans, read, size, MAX_PACKAGE)
    if found is None:
        detail = f"a package of more than {MAX_PACKAGE} segments: send it in parts"
        row = replace(row, verification=Verification.QUARANTINED, reason=Reason.CORRUPTED.value, detail=detail)
        return await app[CATALOG].finish_upload(row)
    if len(found) <= 1:
        return await _keep(app, row)
    for span in found:
        await _import(app, row, span)
    return await _imported(app, row, f"a package of {len(found)} segments")


async def _import(app: web.Application, package: UploadRow, span: Span) -> None:
    """Make an upload of one segment of `package`, and keep it as what it is."""
    now = app[CLOCK]()
    creation = Creation(notes=package.state.creation.notes)
    expires = now + app[CONFIG].upload_max_age  # for the case that this is killed before it is complete
    state = UploadState(app[NEW_ID](), epoch=1, length=span.size, expires=expires, creation=creation)
    row = UploadRow(structs.replace(state, dialect=package.state.dialect), package.product, created=now, updated=now)
    await app[CATALOG].make_upload(row)
    await asyncio.get_running_loop().run_in_executor(app[VERIFIERS], _extract, app[BLOBS], package.id, span, row.id)
    whole = structs.replace(row.state, offset=span.size).after(Event.FINISH)
    await _keep(app, replace(row, state=whole))


async def _imported(app: web.Application, row: UploadRow, detail: str) -> bool:
    """Note that all of `row` is here as other uploads; it is kept for whoever asks after it, and then goes."""
    state = row.state.used_by(app[CLOCK]() + IMPORTED_AGE)
    row = replace(row, state=state, verification=Verification.IMPORTED, sha256="", reason="", detail=detail)
    app[COUNTERS]["uploads_imported"] += 1
    return await app[CATALOG].finish_upload(row)


def _extract(blobs: Blobs, package_id: str, span: Span, blob_id: str) -> None:
    """Copy a segment out of a package into a blob of its own, durably."""
    writer = blobs.append(blob_id, 0)
    try:
        for offset in range(span.start, span.end, MIB):
            writer.write(blobs.read(package_id, offset, min(MIB, span.end - offset)))
        writer.sync()
    finally:
        writer.close()


# -- plans and parts ---------------------------------------------------------------------------------------------------


async def _held_to_plan(app: web.Application, row: UploadRow, finding: Finding) -> Finding:
    """A segment that no negotiation asked for is held against the plan here; what that rejects is kept apart.

    Its bytes are here, so nothing is declined any more.
    """
    if finding.summary is None:
        return finding
    found, now = await app[CATALOG].product(row.product), app[CLOCK]()
    plan = None if found is None else Plan.of(found.plan)
    usage = await app[CATALOG].usage(row.product, month_of(now), [finding.summary.session_id])
    account = Account(usage.records, finding.summary.session_id in usage.taken)
    ruling = rule(finding.summary, plan, finding.summary.info.agent, now, account)
    if ruling.reason is None:
        return finding
    return Finding(Verification.QUARANTINED, reason=ruling.reason.value, detail=ruling.explanation)


async def copy_parts(app: web.Application, state: UploadState) -> None:
    """Make the blob of an upload out of those of its parts, durably; `BlobLost` when they are not what they were."""
    parts, size = state.creation.parts, state.offset
    await asyncio.get_running_loop().run_in_executor(app[VERIFIERS], _copy, app[BLOBS], state.id, parts, size)


def _copy(blobs: Blobs, blob_id: str, parts: tuple[str, ...], size: int) -> None:
    copied = blobs.join(blob_id, parts)
    if copied != size:
        raise BlobLost(f"{blob_id}: its parts should have {size} bytes, and have {copied}")


def _verify(blobs: Blobs, row: UploadRow, passing: Passing | None = None) -> Finding:
    with blobs.opened(row.id) as blob:
        return verify(blob, row, passing)
