"""What follows when an upload has all its bytes: they are held to what was declared of them, looked into, and kept as
what they are. Killed anywhere in between, it is done again: the upload is found open, with all its bytes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from aiohttp import web

from mailboat.protocol.uploads.decisions import Refused, check_whole
from mailboat.protocol.uploads.state import UploadState
from mailboat.server.blobs import BlobLost, Blobs
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.context import BLOBS, CATALOG, CLOCK, COUNTERS, VERIFIERS
from mailboat.server.policy import Account, Plan, month_of, rule
from mailboat.server.verification import Finding, digest_of, verify

_LOG: Final = logging.getLogger("mailboat.server")


async def held_to_digest(app: web.Application, state: UploadState) -> Refused | None:
    """The refusal of a complete upload that is not what its client declared of the whole; None where it is."""
    if state.creation.whole is None:
        return None
    loop, algorithm = asyncio.get_running_loop(), state.creation.whole.algorithm
    digest = await loop.run_in_executor(app[VERIFIERS], digest_of, app[BLOBS], state.id, state.offset, algorithm)
    held = check_whole(state, digest)
    return held if isinstance(held, Refused) else None


async def complete(app: web.Application, row: UploadRow, state: UploadState) -> bool:
    """Verify the upload `row`, whose complete `state` is not stored yet, and store it; False when it was overtaken.

    Whatever its bytes are, the exchange goes on as the dialect has it: what is no segment is kept apart, and shown.
    """
    row = replace(row, state=state, updated=app[CLOCK]())
    finding = await asyncio.get_running_loop().run_in_executor(app[VERIFIERS], verify, app[BLOBS], row)
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
    if await app[CATALOG].adopt(stranger, finding.summary):
        return True
    double = replace(row, verification=Verification.QUARANTINED, detail="that segment is here already")
    return await app[CATALOG].finish_upload(double)


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
