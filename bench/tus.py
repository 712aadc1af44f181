"""P3t: one large session, beside public tus clients that upload the same bytes to @tus/server as one upload: tuspy,
aiotus and tus-js-client. P3u: the same clients to our server, with as much as that takes in one upload. P4t: small
sessions, as in P4, beside aiotus and tuspy, which upload the same files, 32 at a time.

Each client runs as it comes, but for tuspy, which would read the whole upload into memory. @tus/server and
tus-js-client are installed by npm into the folder of the measurement, where node and npm are there; tuspy and aiotus
come with ``pip install '.[bench]'``. @tus/server flushes nothing to the disk before it answers, ours does.
tus-js-client's time has the start of node in it, about a tenth of a second.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.backlog import CONCURRENCY, SIZE, Backlog
from bench.harness import (
    BYTE,
    SESSION,
    Absent,
    Budget,
    Comparison,
    Contender,
    Measured,
    Sense,
    Settings,
    Stopwatch,
    Unit,
)
from bench.serving import serving
from bench.sessions import make
from bench.upload import SEGMENT, Uploads
from mailboat.protocol.limits import KIB, MIB

NAME = "tus"
ABOUT = "one large session, and many small ones, beside public tus clients and servers (P3, P4)"
REPETITIONS = 5

MOST = 64 * MIB
"""As much as our server takes of an upload, and tuspy holds in memory."""

SMALL = 1000
"""Small sessions: the slowest peer takes ten seconds for so many."""

NPM_PACKAGES = ("tus-js-client@4.3.1", "@tus/server@2.4.5", "@tus/file-store@2.1.1")
PROGRAMS = Path(__file__).parent.parent / "tests" / "conformance" / "peers"


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P3 and P4 against each pair that can be had."""
    folder = settings.folder / "tus"
    npm = await asyncio.to_thread(_npm, folder / "npm")
    for comparison in (
        _large("P3t", settings.size, "@tus/server", folder, npm, 4.0),
        _large("P3u", min(settings.size, MOST), "mailboat server", folder, npm, None),
        _small(settings, folder, npm),
    ):
        if comparison is not None:
            yield comparison
    shutil.rmtree(folder)


def _large(row: str, size: int, server: str, folder: Path, npm: Path | str, budget: float | None) -> Comparison | None:
    session = make(folder / row / "session", size, min(SEGMENT, size))
    whole = folder / row / "whole"
    with whole.open("wb") as file:
        file.writelines(session.pieces(MIB))
    pairs = _Pairs(folder, [whole], session.size, npm if isinstance(npm, Path) else None)
    peers = _peers(pairs, ("tuspy", "aiotus", "tus-js-client"), (server,), npm)
    what = f"one session of {session.size / MIB:.0f} MiB"
    ours = Contender("mailboat", Uploads(folder / row, session).ours)
    return _compared(row, what, BYTE, ours, peers, budget)


def _small(settings: Settings, folder: Path, npm: Path | str) -> Comparison | None:
    made = [make(folder / "small" / str(each), SIZE, 64 * KIB, each) for each in range(min(settings.sessions, SMALL))]
    pairs = _Pairs(folder, [each.paths[0] for each in made], len(made), npm if isinstance(npm, Path) else None)
    peers = _peers(pairs, ("aiotus", "tuspy"), ("@tus/server", "mailboat server"), npm)
    what = f"{len(made)} waiting sessions of {SIZE / 1000:.0f} KB"
    ours = Contender("mailboat", Backlog(folder / "ours", made).ours)
    return _compared("P4t", what, SESSION, ours, peers, 30.0)


def _compared(
    row: str, about: str, unit: Unit, ours: Contender, peers: Sequence[Contender | Absent], budget: float | None
) -> Comparison | None:
    """Ours beside the first of the peers that is there, the others for the picture; None where there is none."""
    first = next((peer for peer in peers if isinstance(peer, Contender)), None)
    if first is None:
        return None
    others = tuple(peer for peer in peers if peer is not first)
    held = None if budget is None else Budget(budget, Sense.SPEED)
    return Comparison(row, about, unit, Sense.SPEED, first, ours, others, held)


def _peers(pairs: _Pairs, clients: Sequence[str], servers: Sequence[str], npm: Path | str) -> list[Contender | Absent]:
    there = {name: importlib.util.find_spec(module) is not None for name, module in _MODULES.items()}
    node = npm if isinstance(npm, str) else ""
    peers: list[Contender | Absent] = []
    for client in clients:
        for server in servers:
            name = f"{client} to {server}"
            missing = "it is not installed: pip install '.[bench]'" if not there.get(client, True) else ""
            if "tus-js-client" in name or "@tus/server" in name:
                missing = missing or node
            peers.append(Absent(name, missing) if missing else Contender(name, pairs.upload(client, server)))
    return peers


_MODULES = {"tuspy": "tusclient", "aiotus": "aiotus"}


def _npm(folder: Path) -> Path | str:
    """A folder with `NPM_PACKAGES`, or why there is none."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not on PATH"
    folder.mkdir(parents=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *NPM_PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return folder if done.returncode == 0 else f"npm: {done.stderr[-200:]}"


@dataclass(frozen=True, slots=True)
class _Target:
    """Where to upload to, with which key, and how to ask for the processor time of who is there."""

    url: str
    key: str
    cpu: Callable[[], Awaitable[float]]


class _Pairs:
    """A client and a server each. Every run has a new server."""

    def __init__(self, folder: Path, files: Sequence[Path], units: int, npm: Path | None) -> None:
        """`units` of work it is to upload all of `files`."""
        self._folder, self._files, self._units, self._npm = folder, files, units, npm

    def upload(self, client: str, server: str) -> Callable[[], Awaitable[Measured]]:
        """One pair."""
        send = {"tuspy": self._tuspy, "aiotus": self._aiotus, "tus-js-client": self._tus_js}[client]

        async def run() -> Measured:
            try:
                async with self._node() if server == "@tus/server" else self._mailboat() as target:
                    began = await target.cpu()
                    children = os.times()
                    with Stopwatch() as watch:
                        await self._all(send, target)
                    after = os.times()
                    used = watch.cpu + after.children_user + after.children_system
                    used -= children.children_user + children.children_system
                    spent = await target.cpu() - began
                return Measured(self._units, watch.wall, used + spent, {"client": used, "server": spent})
            finally:
                shutil.rmtree(self._folder / "server", ignore_errors=True)

        return run

    async def _all(self, send: Callable[[_Target, Path], Awaitable[str]], target: _Target) -> None:
        queue = iter(self._files)

        async def some() -> None:
            for path in queue:
                if not await send(target, path):
                    raise RuntimeError(f"{path} was not uploaded to {target.url}")

        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENCY, len(self._files))):
                group.create_task(some())

    # -- clients -------------------------------------------------------------------------------------------------

    async def _tuspy(self, target: _Target, path: Path) -> str:
        from tusclient.client import TusClient  # noqa: PLC0415 - where it is installed

        def upload() -> str:
            with path.open("rb") as file:
                # @tus/server refuses the empty metadata that it sends otherwise.
                uploader = TusClient(target.url, headers=_headers(target)).uploader(
                    file_stream=file, metadata={"filename": "segment"}, chunk_size=MOST
                )
                uploader.upload()
                return str(uploader.url)

        return await asyncio.to_thread(upload)

    async def _aiotus(self, target: _Target, path: Path) -> str:
        import aiotus  # noqa: PLC0415 - where it is installed

        with path.open("rb") as file:
            return str(await aiotus.upload(target.url, file, {}, headers=_headers(target)) or "")

    async def _tus_js(self, target: _Target, path: Path) -> str:
        options = {"file": str(path), "endpoint": target.url, "headers": _headers(target)}
        process = await asyncio.create_subprocess_exec(
            "node",
            str(PROGRAMS / "upload.cjs"),
            str(self._npm),
            json.dumps(options),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        return out.decode().strip() if process.returncode == 0 else ""

    # -- servers -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _mailboat(self) -> AsyncIterator[_Target]:
        async with serving("receiving", self._folder / "server") as server:
            yield _Target(f"{server.url}/v1/uploads", server.key, server.cpu)

    @asynccontextmanager
    async def _node(self) -> AsyncIterator[_Target]:
        data = self._folder / "server"
        data.mkdir()
        process = await asyncio.create_subprocess_exec(
            "node",
            str(PROGRAMS / "serve.cjs"),
            str(self._npm),
            str(data),
            "0",
            "absolute",  # aiotus needs that
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None  # noqa: S101 - made just now
            port = int((await process.stdout.readline()).decode().rpartition(" ")[2])

            async def cpu() -> float:
                return await asyncio.to_thread(_cpu_of, process.pid)

            yield _Target(f"http://127.0.0.1:{port}/files", "", cpu)
        finally:
            process.kill()
            await process.wait()


def _headers(target: _Target) -> dict[str, str]:
    return {"Authorization": f"Bearer {target.key}"} if target.key else {}


def _cpu_of(pid: int) -> float:
    """Seconds of processor time of another process, where the system tells (Linux); zero elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
