"""Very many uploads at once on one server process: its memory is bounded, and nobody waits for one that stalls."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from mailboat.server.keys import create_key
from testkit.serverkit import PRODUCT, RawAppend, ServerProcess, Wire, wired
from testkit.servers import show

KIB, MIB = 1024, 1024 * 1024
AT_ONCE = 16
LENGTH = 64 * MIB
SENT = 512 * KIB

ROOM_FOR_OPEN = 40 * MIB
"""More memory than this is not used for all the uploads that are merely open: they live in the catalog."""
ROOM_FOR_ONE = 640 * KIB
"""More memory than this is not used for one transfer: buffers of the connection and of the body, and its request."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def memory(pid: int) -> int:
    """Bytes that a process has in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * KIB


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await call()
    return time.perf_counter() - start


def told(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)
    median, p99, worst = statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))], ordered[-1]
    return f"{name}: median {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms"


async def opened(client: Wire, number: int) -> list[str]:
    """The paths of so many unfinished uploads."""
    paths: list[str] = []

    async def some(share: int) -> None:
        for _ in range(share):
            made = await client.ask("POST", "/v1/uploads", Upload_Complete="?0", Upload_Length=str(LENGTH))
            assert made.status == 201, made
            paths.append(made.headers["Location"])

    await asyncio.gather(*(some(number // AT_ONCE) for _ in range(AT_ONCE)))
    return paths


async def stalled(client: Wire, server: ServerProcess, paths: list[str]) -> list[RawAppend]:
    """A transfer of each that has sent `SENT` bytes, all of them taken, and sends no more."""
    transfers = [await RawAppend.begin(client, path, LENGTH) for path in paths]
    for transfer in transfers:
        await transfer.send(bytes(SENT))
    blobs = [next(iter(server.data.glob(f"segments/??/{path.rpartition('/')[2]}")), None) for path in paths]
    async with asyncio.timeout(60):
        while None in blobs or sum(blob.stat().st_size for blob in blobs if blob) < SENT * len(paths):
            await asyncio.sleep(0.02)
            names = [path.rpartition("/")[2] for path in paths]
            blobs = [next(iter(server.data.glob(f"segments/??/{name}")), None) for name in names]
    return transfers


async def flowing(transfers: list[RawAppend], rounds: int) -> None:
    """All of them send at the same time."""

    async def send(transfer: RawAppend) -> None:
        for _ in range(rounds):
            await transfer.send(bytes(64 * KIB))

    await asyncio.gather(*map(send, transfers))


@pytest.mark.parametrize(
    ("number", "transferring"),
    [
        (320, 24),
        pytest.param(10_000, 200, marks=[pytest.mark.soak, pytest.mark.timeout(0)], id="10000-200"),
    ],
)
async def test_open_uploads_and_transfers_take_bounded_memory(tmp_path: Path, number: int, transferring: int) -> None:
    key = await asyncio.to_thread(create_key, tmp_path / "data", PRODUCT)
    server = await ServerProcess.start(tmp_path / "data")
    pid = server.process.pid
    async with wired(server.url, key) as client:
        await opened(client, AT_ONCE)  # what the first requests load and keep is no upload's
        start = memory(pid)
        creating = await timed(partial(opened, client, number - 2 * transferring))
        paths = await opened(client, 2 * transferring // AT_ONCE * AT_ONCE + AT_ONCE)
        after_opening = memory(pid)
        first, second = paths[:transferring], paths[transferring : 2 * transferring]
        assert len(second) == transferring
        transfers = await stalled(client, server, first)
        after_stalling = memory(pid)
        most = [after_stalling]
        moving = asyncio.ensure_future(flowing(transfers, 32))
        while not moving.done():
            most.append(memory(pid))
            await asyncio.sleep(0.05)
        await moving
        for transfer in transfers:
            transfer.abort()
        transfers = await stalled(client, server, second)
        asking = [await timed(partial(client.ask, "HEAD", path)) for path in second[::2]]
        taking_over = [await timed(partial(client.append, path, b"x", SENT, complete=False)) for path in second[1::2]]
        offsets = [(await client.ask("HEAD", path)).offset for path in second]
        for transfer in transfers:
            await transfer.close()
    before, opening, stalling, flow = (each // MIB for each in (start, after_opening, after_stalling, max(most)))
    made = (number - 2 * transferring) / creating
    show(f"{number} uploads open, {transferring} in transfer: {before} MiB before, {opening} with all open,")
    show(f"{stalling} with all transfers stalled, at most {flow} while they flow; {made:.0f} made a second")
    show(told("HEAD while a PATCH on the same upload stalls", asking))
    show(told("PATCH that takes over from one that stalls", taking_over))
    assert offsets == [SENT, SENT + 1] * (transferring // 2)  # nothing was lost, and the newest has won
    assert after_opening - start < ROOM_FOR_OPEN
    assert max(most) - after_opening < transferring * ROOM_FOR_ONE + 16 * MIB
    assert await server.stop() == 0
