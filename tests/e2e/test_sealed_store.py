"""A sealed store from end to end: nothing on the recording machine's disk or on the wire tells what was recorded; the
server with the key gives all of it; one without keeps it for the day that it gets the key.
"""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from mailboat.agent import Agent
from mailboat.agent.journal_place import memory_folder
from mailboat.server.unsealing import public_key
from testkit.agents import AgentMaker
from testkit.lines import line_to
from testkit.serverkit import PRODUCT
from testkit.servers import Given, Served, served

PLANTED = "planted-secret-4d1a"
RECORDED = 4


def record(agent: Agent) -> None:
    agent.set_installation(f"{PLANTED}-inst", plan=PLANTED)
    agent.feature(f"{PLANTED}.used", text=PLANTED)
    agent.emitter(f"{PLANTED}.placed", "user")(PLANTED)
    agent.event("e", message=PLANTED)


def texts(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def until_given(given: Given, session_id: str, records: int) -> dict[str, Any]:
    """The analytics' view of the session, once so many of its records were loaded."""
    async with asyncio.timeout(60):
        while True:
            overview = await given.get("features", **{"from": "2000-01-01T00:00:00Z"}, origin="all")
            if any(PLANTED in json.dumps(each) for each in overview["features"]):
                return overview
            await asyncio.sleep(0.05)


async def test_disk_and_wire_tell_nothing_and_the_server_everything(
    tmp_path: Path, server: Served, given: Given, make_agent: AgentMaker
) -> None:
    key = await asyncio.to_thread(public_key, server.data)
    passed: list[bytes] = []
    async with line_to(server.process.port, on_bytes=passed.append) as line:
        agent = make_agent(server=line.url, seal_to=key.text, properties={"team": PLANTED})
        async with agent:
            record(agent)
            await agent.flush(durable=True)
            assert PLANTED.encode() not in texts(tmp_path / "store")
            report = await agent.force_sync(timeout=30.0)
            assert report.error is None, report
            record(agent)
        async with make_agent(server=line.url) as other:
            assert (await other.force_sync(timeout=30.0)).complete
        assert PLANTED.encode() not in texts(tmp_path / "store")
        assert PLANTED.encode() not in b"".join(passed)
        async with make_agent(server=line.url, store=tmp_path / "plain") as plain:
            record(plain)
            await plain.force_sync(timeout=30.0)
        assert PLANTED.encode() in texts(tmp_path / "plain"), "it would have been seen"
        assert PLANTED.encode() in b"".join(passed), "it would have been seen"
    assert agent.session_id is not None
    records = await given.records(agent.session_id)
    assert [each["name"] for each in records] == [f"{PLANTED}-inst", f"{PLANTED}.used", f"{PLANTED}.placed", "e"] * 2
    assert records[2]["attributes"] == {"user": PLANTED}
    row = (await given.sessions())[agent.session_id]
    assert row["locked"] is False
    assert (row["installation"], row["info"]["properties"]) == (f"{PLANTED}-inst", {"team": PLANTED})
    await until_given(given, agent.session_id, 2 * RECORDED)
    memory = memory_folder(None)
    assert memory is None or not list(memory.glob(f"{agent.session_id}*"))


async def test_a_server_without_the_key_keeps_it_all_until_it_has_the_key(
    tmp_path: Path, server: Served, given: Given, make_agent: AgentMaker
) -> None:
    elsewhere = tmp_path / "elsewhere"
    key = await asyncio.to_thread(public_key, elsewhere)
    await asyncio.to_thread(public_key, server.data)  # it has one, but another one
    agent = make_agent(seal_to=key.text, purge_sent=True, stop_timeout=30.0)
    async with agent:
        record(agent)
    assert agent.session_id is not None
    assert agent.status.ledger.pending == 0
    answer = await given.get(f"sessions/{agent.session_id}/records")
    assert answer["records"] == []
    (gap,) = answer["gaps"]
    assert gap["reason"] == f"it is sealed to the key {key.id}, which is not here"
    assert (gap["first"], gap["records"]) == (0, RECORDED)
    row = (await given.sessions())[agent.session_id]
    assert (row["locked"], row["delivered"], row["records"]) == (True, True, RECORDED)
    private = elsewhere / "sealing" / f"{key.id}.key"
    await asyncio.to_thread(private.rename, server.data / "sealing" / private.name)
    await server.kill_and_restart()
    overview = await until_given(given, agent.session_id, RECORDED)
    assert overview
    assert len(await given.records(agent.session_id)) == RECORDED
    row = (await given.sessions())[agent.session_id]
    assert (row["locked"], row["installation"]) == (False, f"{PLANTED}-inst")


async def test_a_key_that_comes_while_the_server_runs_is_found(
    tmp_path: Path, server: Served, given: Given, make_agent: AgentMaker
) -> None:
    key = await asyncio.to_thread(public_key, server.data)
    agent = make_agent(seal_to=key.text, stop_timeout=30.0)
    async with agent:
        record(agent)
    assert agent.session_id is not None
    await until_given(given, agent.session_id, RECORDED)


def test_the_private_key_is_made_for_this_user_alone_and_kept_to_itself(tmp_path: Path) -> None:
    def keys_seal(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mailboat.cli", "keys", "seal", "--data", str(tmp_path / "data"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    first = keys_seal()
    assert first.stdout.startswith("mbs_")
    assert first.stdout == keys_seal().stdout
    second = keys_seal("--new")
    assert second.stdout not in ("", first.stdout)
    assert keys_seal().stdout == second.stdout, "the newest is what agents are given"
    folder = tmp_path / "data" / "sealing"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert len(files) == 2
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        private = path.read_text().strip()
        assert private.startswith("mbx_")
        for run in (first, second):
            assert private not in run.stdout + run.stderr


async def test_the_server_never_says_a_private_key(tmp_path: Path, make_agent: AgentMaker) -> None:
    data = tmp_path / "other-data"
    key = await asyncio.to_thread(public_key, data)
    (path,) = (data / "sealing").iterdir()
    private = path.read_text().strip()
    (data / "sealing" / "broken.key").write_text(private[:-3])
    async with served(data) as server:
        agent = make_agent(server=server.url, api_key=server.key, product=PRODUCT, seal_to=key.text, stop_timeout=30.0)
        async with agent:
            record(agent)
        assert agent.status.ledger.accepted == RECORDED
    said = data.with_name(f"{data.name}.log").read_text()
    assert "broken.key" in said
    assert private not in said
    assert private[:-3] not in said
    assert private[4:20] not in said
    assert private.encode() not in b"".join(each.read_bytes() for each in data.glob("*") if each.is_file())


async def test_the_command_line_says_that_it_is_sealed_and_reads_it_with_the_key(
    tmp_path: Path, make_agent: AgentMaker
) -> None:
    key = await asyncio.to_thread(public_key, tmp_path / "keys")
    (private,) = (tmp_path / "keys" / "sealing").iterdir()
    agent = make_agent(seal_to=key.text, server=None)
    async with agent:
        record(agent)
    assert agent.session_id is not None

    def sessions(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mailboat.cli", "sessions", *words, "--store", str(tmp_path / "store")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    closed = await asyncio.to_thread(sessions, "cat", agent.session_id)
    assert (closed.returncode, closed.stdout) == (1, "")
    assert f"sealed: {RECORDED} records can be read with the private key {key.id}" in closed.stderr
    opened = await asyncio.to_thread(sessions, "cat", agent.session_id, "--key", str(private))
    assert (opened.returncode, opened.stderr) == (0, "")
    assert opened.stdout.count(PLANTED) >= RECORDED
    assert len(opened.stdout.splitlines()) == RECORDED
    verified = await asyncio.to_thread(sessions, "verify")
    assert verified.returncode == 0, verified.stderr
    assert f"intact\t{RECORDED} records" in verified.stdout
    shown = await asyncio.to_thread(sessions, "show", agent.session_id, "--json")
    assert json.loads(shown.stdout)["sealed_to"] == key.id
    assert PLANTED not in shown.stdout
    wrong = await asyncio.to_thread(sessions, "cat", agent.session_id, "--key", str(tmp_path / "nowhere"))
    assert wrong.returncode == 2
    assert "nowhere" in wrong.stderr
