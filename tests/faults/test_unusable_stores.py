"""A store that cannot be used: a clear word in the status, the host unharmed, nothing lost that can be kept, and
everything delivered once the cause is gone.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent, SessionState, uploader
from mailboat.agent.files import OsFileSystem, Place
from mailboat.agent.store import SENT
from testkit.agents import AgentMaker, left_behind
from testkit.servers import Given

NOBODY = 65534


def told_plainly(trouble: str) -> bool:
    return bool(trouble) and trouble.isprintable() and len(trouble) < 500


async def test_a_file_where_the_folder_should_be(
    make_agent: AgentMaker, given: Given, key: str, tmp_path: Path
) -> None:
    store = tmp_path / "in" / "the" / "way"
    store.parent.mkdir(parents=True)
    store.write_text("a file")
    async with make_agent(server=given.url, api_key=key, store=store) as agent:
        for number in range(1000):
            agent.feature("kept.in.memory", number=number)
        report = await agent.force_sync(timeout=1.0)
        status = agent.status
        assert told_plainly(status.trouble), status
        assert str(store) in status.trouble
        assert (status.recorded, status.lost, status.crash_proof) == (1000, {}, False)
        assert not report.complete
        assert report.error
        store.unlink()
        async with asyncio.timeout(20.0):
            while agent.status.trouble:  # as the last attempt has found it
                await agent.force_sync(timeout=0.2)
        agent.feature("after.all")
        assert await agent.flush(durable=True)
        await agent.stop(timeout=20.0)
        assert agent.session_id is not None
        outcome = await agent.delivered(agent.session_id, timeout=5.0)
        assert outcome.state is SessionState.ACCEPTED
    assert len(await given.records(agent.session_id)) == 1001


PROGRAM = """
import asyncio, importlib, json, os, sys
from pathlib import Path
from mailboat.agent import Agent
import aiohttp, concurrent.futures.thread, encodings.idna, getpass, locale, platform
store, server, key, fault, user = sys.argv[1:]

async def main():
    agent = Agent(server=server, api_key=key, product="Acme Studio", application="importer", store=Path(store),
                  synchronize_automatically=False, journal_bytes=128 * 1024, stop_timeout=20.0)
    await before()
    await agent.start()
    for number in range(1500):
        agent.feature("noise", number=number, noise=os.urandom(500))
    flushed = await agent.flush(durable=True)
    report = await agent.force_sync(timeout=0.5)
    status = agent.status
    await after()
    async with asyncio.timeout(20):
        while agent.status.trouble:
            await agent.force_sync(timeout=0.2)
    again = await agent.flush(durable=True)
    await agent.stop()
    done = agent.status
    print(json.dumps({
        "session": agent.session_id, "flushed": flushed, "again": again, "error": report.error,
        "trouble": status.trouble, "recorded": status.recorded, "lost": dict(done.lost),
        "accepted": done.ledger.accepted, "later": done.trouble,
    }))

async def before():
    if fault == "closed folder":
        os.chmod(store, 0)
    if fault == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (400 * 1024, resource.RLIM_INFINITY))
    if fault == "full disk from the start":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

async def after():
    os.chmod(store, 0o700)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if user != "same":
    os.chown(store, int(user), int(user))
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
asyncio.run(main())
"""


async def ran(given: Given, key: str, store: Path, fault: str, user: str) -> dict[str, Any]:
    """What an application that meets the fault, and then its end, has to tell."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(store), given.url, key, fault, user),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    told: dict[str, Any] = json.loads(output)
    return told


@pytest.mark.parametrize("fault", ["closed folder", "full disk", "full disk from the start"])
async def test_the_kernel_refuses(given: Given, key: str, tmp_path: Path, fault: str) -> None:
    user = str(NOBODY) if os.getuid() == 0 and fault == "closed folder" else "same"
    store = tmp_path / "store"
    store.mkdir()
    if user != "same":
        for folder in store.parents:  # pytest's folders are root's own
            if not folder.stat().st_mode & 0o001:
                folder.chmod(0o711)
    told = await ran(given, key, store, fault, user)
    assert told_plainly(told["trouble"]), told
    assert not told["flushed"]
    assert told["again"]
    assert (told["recorded"], told["lost"], told["later"]) == (1500, {}, "")
    assert told["accepted"] == 1500
    records = await given.records(told["session"])
    assert [record["attributes"]["number"] for record in records] == list(range(1500))


@dataclass
class FailingDisk(OsFileSystem):
    """A disk that refuses some calls while `failing`, and counts them."""

    calls: frozenset[str]
    failing: bool = False
    refused: list[str] = field(default_factory=list)

    def _refuse(self, call: str) -> None:
        if self.failing and call in self.calls:
            self.refused.append(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def replace_content(self, path: Path, content: bytes) -> None:
        self._refuse("replace_content")
        super().replace_content(path, content)

    def rename(self, source: Place, target: Place) -> None:
        self._refuse("rename")
        super().rename(source, target)

    def create(self, path: Path) -> int:
        self._refuse("create")
        return super().create(path)


def on(agent: Agent, disk: FailingDisk) -> Agent:
    agent._files = disk
    return agent


@pytest.mark.parametrize("call", ["replace_content", "rename"])
async def test_a_final_word_that_the_disk_does_not_take_down(
    make_agent: AgentMaker, given: Given, key: str, call: str
) -> None:
    """The server has the session; the ledger cannot say so. Later it does, and counts it once."""
    session_id, recorded = await left_behind(make_agent, 10_000, 1)
    disk = FailingDisk(frozenset({call}))
    async with on(make_agent(server=given.url, api_key=key), disk) as agent:
        disk.failing = True
        report = await agent.force_sync(timeout=10.0)
        assert report.error is not None
        assert "No space left" in report.error
        assert told_plainly(agent.status.trouble)
        assert disk.refused
        disk.failing = False
        report = await agent.force_sync(timeout=10.0)
        assert report.error is None, report
        outcome = await agent.delivered(session_id, timeout=5.0)
        assert outcome.state is SessionState.ACCEPTED
        status = agent.status
        assert (status.ledger.accepted, status.waiting_sessions, status.trouble) == (recorded, 0, "")
    async with make_agent(server=given.url, api_key=key) as agent:
        await agent.force_sync(timeout=10.0)
        assert agent.status.ledger.accepted == recorded
    assert len(await given.records(session_id)) == recorded


@dataclass
class HangingDisk(OsFileSystem):
    """A disk that hangs when a session is to be moved to those that were sent, until it may go on."""

    moving: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def rename(self, source: Place, target: Place) -> None:
        if Path(target).parent.name == SENT:
            self.moving.set()
            assert self.go_on.wait(100)
        super().rename(source, target)


@pytest.mark.parametrize("left", ["a stop", "a window"])
async def test_a_disk_that_hangs_while_ends_are_entered_holds_nobody_up(
    make_agent: AgentMaker, given: Given, key: str, left: str
) -> None:
    recorded = [(await left_behind(make_agent, size, 1))[1] for size in (2000, 2000, 2000, 2_000_000, 2_000_000)]
    disk = HangingDisk()
    agent = make_agent(
        server=given.url,
        api_key=key,
        upload_concurrency=1,  # so that a file is to be opened, too, while the disk hangs
        synchronize_automatically=left == "a stop",
        startup_delay=0.0,
    )
    agent._files = disk
    async with asyncio.timeout(60):  # far below what the disk takes
        await agent.start()
        if left == "a window":
            report = await agent.force_sync(timeout=2.0)
            assert report.error == "the time was over"
        await asyncio.to_thread(disk.moving.wait)
        await agent.stop(timeout=0.0)
    assert agent.status.ledger.recorded == sum(recorded)
    disk.go_on.set()
    async with make_agent(server=given.url, api_key=key) as later:
        while not (await later.force_sync(timeout=20.0)).complete:
            pass
        assert later.status.ledger.accepted == sum(recorded)


async def test_an_upload_that_is_cancelled_waits_for_no_disk_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "segment").write_bytes(b"content")
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as disk:
        disk.submit(go_on.wait, 100)

        async def upload() -> None:
            async with uploader._opened(tmp_path / "segment", disk):
                raise AssertionError("it hangs")

        uploading = asyncio.create_task(upload())
        await asyncio.sleep(0)
        uploading.cancel()
        await asyncio.wait([uploading], timeout=60)
        cancelled, closing = uploading.cancelled(), set(uploader._CLOSING)
        go_on.set()
        assert cancelled
        assert len(closing) == 1, "it is closed once it was opened"
        await asyncio.wait(closing)
