"""What a session says of itself and to whom: its description, what an anonymous one leaves out, and who may read the
files.
"""

from __future__ import annotations

import getpass
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from mailboat.agent.ended import read_preamble
from mailboat.agent.files import OsFileSystem
from mailboat.agent.host import boot_id, process_start
from mailboat.agent.store import WAITING
from mailboat.protocol.segment import Preamble
from testkit.serverkit import eventually

USER, HOST, COMMAND = "ada-of-the-user", "engine-of-the-host", "--argument-of-the-command"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose user, host and command line are known."""
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(sys, "argv", ["program.py", COMMAND])


def made(root: Path, **settings: Any) -> Agent:  # noqa: ANN401 - settings of the agent
    chosen = {"store": root, "server": None, "product": "product", "application": "application", **settings}
    return Agent(**chosen)


async def begun(root: Path, **settings: Any) -> Preamble:  # noqa: ANN401 - settings of the agent
    """The preamble of a session with one record, and one error."""
    async with made(root, **settings) as agent:
        agent.feature("one")
        agent.exception(ValueError("error"))
    return read_preamble(
        OsFileSystem(), root / "product" / "application" / WAITING / str(agent.session_id) / "000000.zst"
    )


@pytest.mark.usefixtures("named")
async def test_a_session_says_what_it_is(tmp_path: Path) -> None:
    settings = {"version": "2.4.1", "environment": "staging", "test_mode": True, "properties": {"plan": "pro"}}
    preamble = await begun(tmp_path, **settings)
    said = preamble.info
    assert {name: said[name] for name in ("product", "application", "version", "environment", "user", "host")} == {
        "product": "product",
        "application": "application",
        "version": "2.4.1",
        "environment": "staging",
        "user": USER,
        "host": HOST,
    }
    assert (said["test"], said["properties"]) == (True, {"plan": "pro"})
    assert COMMAND in str(said["command"])
    assert said["agent"].startswith("mailboat-python/")
    assert (preamble.pid, preamble.process_started, preamble.boot_id) == (os.getpid(), process_start(), boot_id())
    assert preamble.started_wall > preamble.started_monotonic > 0
    assert (preamble.index, preamble.first) == (0, 0)


@pytest.mark.usefixtures("named")
async def test_an_anonymous_one_says_nothing_of_user_host_and_command_line_in_any_file(tmp_path: Path) -> None:
    told = []
    for anonymous in (False, True):
        root = tmp_path / str(anonymous)
        preamble = await begun(root, anonymous=anonymous)
        assert bool(preamble.info.get("anonymous")) is anonymous
        content = b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())
        told.append([text.encode() in content for text in (USER, HOST, COMMAND)])
    assert told == [[True] * 3, [False] * 3]


async def test_nobody_else_may_read_what_is_kept_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        agent = made(tmp_path / "store")
        await agent.start()
        agent.exception(ValueError("error"))
        assert await agent.flush(durable=True)
        await eventually(lambda: any((tmp_path / "store").rglob("reserve")))  # the store's thread sees to it
        running = modes(tmp_path / "store")
        await agent.stop()
        async with made(tmp_path / "store") as other:
            other.feature("one")
            await other.flush()
    finally:
        os.umask(before)
    assert {"journal", "lock", "000000.zst", "reserve"} <= {path.name for path in running}
    for path, (mode, wanted) in {**running, **modes(tmp_path / "store")}.items():
        assert (path, oct(mode)) == (path, oct(wanted))


def modes(root: Path) -> dict[Path, tuple[int, int]]:
    """The mode of each folder and file, and what it should be."""
    return {
        path: (stat.S_IMODE(path.stat().st_mode), 0o700 if path.is_dir() else 0o600)
        for path in (root, *root.rglob("*"))
    }
