"""What a starting server does about uploads that its predecessor left unfinished; why is told in `dealings`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from mailboat.protocol.uploads.state import UploadState
from mailboat.server.blobs import Blobs
from mailboat.server.catalog import Catalog, UploadRow
from mailboat.server.verification import whole_frames

BOOT_NOTE: Final = "boot"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LOG: Final = logging.getLogger("mailboat.server")


def boot_id() -> str:
    """What tells one boot of this machine from another; empty where the system does not say, then every start is
    taken for one after power loss.
    """
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


async def recover(catalog: Catalog, blobs: Blobs, now: float) -> int:
    """Bring announced offsets and blobs together; the number of uploads that go on beyond what was announced.

    Must end before the first request is answered. Only uploads whose blob is longer than announced cost more than one
    look at the file.
    """
    boot = await asyncio.to_thread(boot_id)
    same_boot = bool(boot) and await catalog.note(BOOT_NOTE) == boot
    rows = await catalog.open_uploads()
    changed = await asyncio.to_thread(settle, blobs, rows, same_boot=same_boot)
    # Asked for together, so they share a commit; whatever is not noted when this is killed is found again next time.
    await asyncio.gather(*(catalog.store(state, now) for state in changed))
    await catalog.put_note(BOOT_NOTE, boot)
    if changed:
        _LOG.info("%d unfinished uploads go on where the server was killed", len(changed))
    return len(changed)


def settle(blobs: Blobs, rows: tuple[UploadRow, ...], *, same_boot: bool) -> list[UploadState]:
    """Settle the blobs of unfinished uploads, and return the states that have changed. Blocks; for a thread."""
    changed = []
    for row in rows:
        if row.state.creation.parts:
            continue  # copied from its parts, or not yet: never gone on with
        size = blobs.size(row.id)
        if size <= row.state.offset:
            continue  # as announced; or shorter, which the next append will find out and report
        if blobs.tentative(row.id):  # under a digest that was never checked, so none of it counts
            offset = row.state.offset
        elif same_boot:
            offset = size
        else:
            offset = max(row.state.offset, whole_frames(blobs, row.id, size))
        blobs.settle(row.id, offset)
        blobs.confirm(row.id)
        if offset > row.state.offset:
            changed.append(replace(row.state, offset=offset))
    return changed
