"""force_sync, and the ends of an agent's life, under whatever the network and the application do."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from mailboat.agent import AgentState, SessionState, SyncProgress, SyncReport
from mailboat.agent.files import OsFileSystem
from mailboat.agent.rounds import OTHER_SENDS
from mailboat.agent.store import Store
from testkit.agents import AgentMaker, fill, left_behind
from testkit.oracle import Habits, Told, complaints, victim
from testkit.proxies import CountingProxy, LostLineProxy
from testkit.serverkit import PRODUCT, eventually
from testkit.servers import Given, Served, digests, show, stored
from testkit.strange import http, saying, silence, strange

KIB, MIB = 1024, 1024 * 1024


async def all_there(given: Given, store: Path, sessions: list[tuple[str, int]]) -> None:
    for session_id, recorded in sessions:
        assert len(await given.records(session_id)) == recorded
        assert digests(await given.segments(session_id)) == digests(stored(store, session_id))


async def all_read(given: Given, proxy: LostLineProxy) -> None:
    """Hours pass until the next window: the server has read what had come to its machine, however busy that is."""
    async with asyncio.timeout(30.0):
        while await given.received() < proxy.segment_bytes:  # noqa: ASYNC110 - the server tells when asked
            await asyncio.sleep(0)


async def test_a_backlog_over_several_short_windows(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    sessions = [await left_behind(make_agent, 600 * KIB, seed + at, segment_bytes=256 * KIB) for at in range(4)]
    async with LostLineProxy(server.address) as proxy, make_agent(server=proxy.url) as agent:
        proxy.pace.rate = 1.5 * MIB
        await proxy.close()
        reports: list[SyncReport] = []
        while not reports or not reports[-1].complete:
            await proxy.open()
            window = asyncio.create_task(agent.force_sync(timeout=0.4))
            reports.append(await window)
            await proxy.close()
            await all_read(given, proxy)
            assert len(reports) < 60
        sent = sum(report.bytes_sent for report in reports)
        assert len(reports) > 2
        accepted = [
            each.session_id for report in reports for each in report.sessions if each.state is SessionState.ACCEPTED
        ]
        assert sorted(accepted) == sorted(session_id for session_id, _ in sessions)
        for report in reports:
            assert report.bytes_sent == sum(each.bytes_sent for each in report.sessions)
            assert report.bytes_left == sum(each.bytes_left for each in report.sessions)
        carried = proxy.segment_bytes
    await all_there(given, tmp_path, sessions)
    held = await given.held()
    show(f"{held} bytes in {len(reports)} windows: {carried - held} carried twice, {sent - carried} given to no avail")
    assert carried - held <= held // 100
    assert await given.received() - held <= held // 100


async def test_fifty_mebibytes_over_forty_windows(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    """Row T8: short connections of random length, each of which goes on at the very byte. They end by bytes, not by the
    clock, so that a slow machine has forty of them, too.
    """
    draw = random.Random(seed)
    sessions = [await left_behind(make_agent, 10 * MIB, seed + at, segment_bytes=3 * MIB) for at in range(5)]
    total = sum(len(part) for session_id, _ in sessions for part in stored(tmp_path, session_id))
    marks = sorted(draw.randrange(total) for _ in range(39))
    async with LostLineProxy(server.address) as proxy, make_agent(server=proxy.url) as agent:
        for mark in marks:
            await proxy.open()
            window = asyncio.create_task(agent.force_sync(timeout=60.0))
            await proxy.passed(mark)
            await proxy.close()
            window.cancel()
            await asyncio.gather(window, return_exceptions=True)
            await all_read(given, proxy)
        await proxy.open()
        report = await agent.force_sync(timeout=90.0)
        assert report.complete, report
        carried = proxy.segment_bytes
    await all_there(given, tmp_path, sessions)
    held = await given.held()
    show(f"{held} bytes in 40 windows: {carried - held} carried twice")
    assert carried - held <= held // 100


async def test_cancelled_at_random_points(make_agent: AgentMaker, given: Given, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    sessions = [await left_behind(make_agent, 100 * KIB, seed + at) for at in range(6)]
    async with make_agent() as agent:
        for _ in range(40):
            agent.feature("host.works")
            window = asyncio.create_task(agent.force_sync(timeout=30.0))
            for _ in range(draw.randrange(120)):
                await asyncio.sleep(0)
            if draw.random() < 0.3:  # a little later than that many turns of the loop
                await agent.flush()
            window.cancel()
            await asyncio.gather(window, return_exceptions=True)
        report = await agent.force_sync(timeout=30.0)
        assert report.complete, report
        outcomes = [await agent.delivered(session_id, timeout=5.0) for session_id, _ in sessions]
        assert {outcome.state for outcome in outcomes} == {SessionState.ACCEPTED}
        status = agent.status
        assert status.recorded == 40
        assert status.ledger.recorded == status.ledger.accepted + 40 == sum(each for _, each in sessions) + 40
        assert await agent.flush(durable=True)
    await all_there(given, tmp_path, sessions)


async def test_a_window_that_fails_leaves_the_running_session_near_its_trigger(
    make_agent: AgentMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row T3: what such a window could not offer still counts towards the next 20,000 records."""
    monkeypatch.setattr("mailboat.agent.eligibility.RECORDS_TRIGGER", 100)
    monkeypatch.setattr("mailboat.agent.eligibility.LOOK_INTERVAL", 0.01)
    settings = {"synchronize_automatically": True, "startup_delay": 3600.0, "sync_interval": 3600.0}
    async with strange(saying(http(500))) as bad, make_agent(server=bad.url, **settings) as agent:
        while agent.status.recorded < 99:
            agent.feature("import.csv")
        assert "500" in ((await agent.force_sync()).error or "")
        asked = len(bad.asked)
        agent.feature("import.csv")
        await bad.been_asked(asked + 1)


async def test_the_deadline_holds_against_a_server_that_hangs(make_agent: AgentMaker) -> None:
    await left_behind(make_agent, 1000, 1)
    async with strange(silence) as server:
        agent = make_agent(server=server.url)
        async with agent:
            async with asyncio.timeout(10.0):  # a hundred times what is asked for; without a deadline it is a minute
                report = await agent.force_sync(timeout=0.1)
            assert (report.complete, report.error) == (False, "the time was over")
            assert [each.state for each in report.sessions] == [SessionState.PENDING] * 2
            async with asyncio.timeout(10.0):
                await agent.stop(timeout=0.1)
        assert agent.status.state is AgentState.STOPPED


async def test_a_window_takes_the_place_of_an_automatic_round(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    session = await left_behind(make_agent, 1 * MIB, seed)
    async with CountingProxy(server.address) as proxy:
        proxy.pace.rate = 2 * MIB
        automatic = {"synchronize_automatically": True, "startup_delay": 0.0}
        async with make_agent(server=proxy.url, **automatic) as agent:
            await proxy.passed(200 * KIB)
            first, second = await asyncio.gather(agent.force_sync(timeout=30.0), agent.force_sync(timeout=30.0))
            assert first.complete, first
            assert second.complete, second
        carried = proxy.segment_bytes
    await all_there(given, tmp_path, [session])
    # What the ended round had left with the kernel when its connection was closed is carried, and not wanted any more.
    show(f"a window instead of an automatic round: {carried - await given.held()} bytes carried twice")
    assert await given.received() == await given.held()


async def test_a_progress_callback_that_raises(make_agent: AgentMaker, caplog: pytest.LogCaptureFixture) -> None:
    await left_behind(make_agent, 50 * KIB, 1)
    calls = []

    def progress(now: SyncProgress) -> None:
        calls.append(now)
        raise LookupError("the application's own mistake")

    async with make_agent() as agent:
        report = await agent.force_sync(timeout=30.0, progress=progress)
    assert report.complete, report
    assert len(calls) == 1
    assert "the application's own mistake" in caplog.text


async def test_progress_goes_forward_and_ends_at_the_end(make_agent: AgentMaker) -> None:
    sessions = [await left_behind(make_agent, 900 * KIB, at) for at in range(3)]
    seen: list[SyncProgress] = []
    async with make_agent() as agent:
        report = await agent.force_sync(timeout=30.0, progress=seen.append)
    assert report.complete, report
    assert [each.bytes_sent for each in seen] == sorted(each.bytes_sent for each in seen)
    assert [each.sessions_done for each in seen] == sorted(each.sessions_done for each in seen)
    assert (seen[-1].bytes_sent, seen[-1].bytes_left) == (report.bytes_sent, 0)
    assert (seen[-1].sessions_done, seen[-1].sessions) == (len(sessions), len(sessions) + 1)
    assert len({each.bytes_left for each in seen}) > 4, "what is left goes down while a segment is sent"


async def test_stop_ends_a_window_under_way(make_agent: AgentMaker) -> None:
    await left_behind(make_agent, 1000, 1)
    async with strange(silence) as server:
        agent = make_agent(server=server.url)
        await agent.start()
        window = asyncio.create_task(agent.force_sync(timeout=60.0))
        waiting = asyncio.create_task(agent.delivered(agent.session_id or ""))
        await server.been_asked(1)
        async with asyncio.timeout(10.0):
            await agent.stop(timeout=0.05)
            report = await window
            with pytest.raises(TimeoutError, match="the agent has stopped"):
                await waiting
        assert report.error == "the agent was stopped"


async def test_a_session_has_its_end_in_one_report(make_agent: AgentMaker) -> None:
    """Also where the next window is over before anybody has looked what there is."""
    sessions = {(await left_behind(make_agent, 1000, seed))[0] for seed in range(3)}
    async with make_agent() as agent:
        reports = [await agent.force_sync(timeout=seconds) for seconds in (30.0, 0.0, 30.0)]
        running = agent.session_id
    told = [{each.session_id for each in report.sessions} for report in reports]
    assert told == [{*sessions, running}, {running}, {running}]
    assert [report.complete for report in reports] == [True, False, True]


async def test_what_the_running_session_has_so_far_is_delivered_too(
    make_agent: AgentMaker, given: Given, tmp_path: Path
) -> None:
    """As whoever embeds an agent asks for it: within its life, after a window."""
    async with make_agent(stop_timeout=30.0) as agent:
        session_id = agent.session_id
        assert session_id is not None
        agent.feature("first")
        await agent.force_sync(timeout=30.0)
        outcome = await agent.delivered(session_id, timeout=10.0)
        assert (outcome.state, outcome.records, outcome.bytes_left) == (SessionState.PENDING, 1, 0)
        assert outcome.bytes_sent == sum(map(len, await given.segments(session_id)))
        assert [record["name"] for record in await given.records(session_id)] == ["first"]
        agent.feature("second")
        with pytest.raises(TimeoutError):
            await agent.delivered(session_id, timeout=0.05)  # only `force_sync` sends here
        waiting = asyncio.create_task(agent.delivered(session_id, timeout=30.0))
        await agent.force_sync(timeout=30.0)
        outcome = await waiting
        assert (outcome.state, outcome.records, outcome.bytes_left) == (SessionState.PENDING, 2, 0)
        assert [record["name"] for record in await given.records(session_id)] == ["first", "second"]
    outcome = await agent.delivered(session_id, timeout=1.0)
    assert (outcome.state, outcome.records) == (SessionState.ACCEPTED, 2)
    assert digests(await given.segments(session_id)) == digests(stored(tmp_path / "store", session_id))


async def test_an_agent_that_sends_by_itself_sends_what_is_waited_for(make_agent: AgentMaker, given: Given) -> None:
    async with make_agent(synchronize_automatically=True, startup_delay=3600.0) as agent:
        assert agent.session_id is not None
        for number in range(3):
            agent.feature("waited.for", number=number)
            outcome = await agent.delivered(agent.session_id, timeout=30.0)
            assert (outcome.state, outcome.records, outcome.bytes_left) == (SessionState.PENDING, number + 1, 0)
            assert len(await given.records(agent.session_id)) == number + 1


async def test_who_waits_for_the_running_session_has_its_end_where_that_comes_first(make_agent: AgentMaker) -> None:
    async with strange(silence) as server:
        agent = make_agent(server=server.url)
        await agent.start()
        waiting = asyncio.create_task(agent.delivered(agent.session_id or ""))
        await asyncio.sleep(0)
        await agent.stop(timeout=0.0)
        with pytest.raises(TimeoutError, match="the agent has stopped"):
            await waiting


async def test_twice_and_at_the_wrong_time(make_agent: AgentMaker, given: Given) -> None:
    agent = make_agent(stop_timeout=10.0)
    agent.feature("too.early")
    assert (await agent.force_sync()).error == "the agent is new"
    assert not await agent.flush()
    await agent.stop()
    await agent.start()
    first = agent.session_id
    await agent.start()
    assert agent.session_id == first
    agent.feature("in.time")
    with agent.timing("ends.too.late"):
        await asyncio.gather(agent.stop(), agent.stop())
    agent.feature("too.late")
    await agent.stop()
    assert (await agent.force_sync()).error == "the agent is stopped"
    assert first is not None
    assert [record["name"] for record in await given.records(first)] == ["in.time"]
    outcome = await agent.delivered(first, timeout=1.0)
    assert (outcome.state, outcome.records) == (SessionState.ACCEPTED, 1)
    assert outcome.bytes_sent == sum(map(len, await given.segments(first)))
    assert (agent.status.recorded, agent.status.ledger.accepted) == (1, 1)


async def test_another_process_that_has_the_place_of_the_sender_for_a_moment_costs_no_window(
    make_agent: AgentMaker, given: Given, tmp_path: Path
) -> None:
    """As one has that looks whether sessions are to be given up."""
    session = await left_behind(make_agent, 1000, 1)
    async with make_agent() as agent:
        other = Store(OsFileSystem(), tmp_path / "store", PRODUCT, "importer")
        async with asyncio.timeout(10.0):  # the agent itself has looked, as it started
            while not other.become_sender():  # noqa: ASYNC110 - a lock tells when asked
                await asyncio.sleep(0)
        assert (await agent.force_sync()).error == OTHER_SENDS, "a window without an end ends with the first failure"
        window = asyncio.create_task(agent.force_sync(timeout=30.0))
        await asyncio.sleep(0.3)
        other.cease_sending()
        report = await window
        assert report.complete, report
    await all_there(given, tmp_path, [session])


async def test_one_process_sends_and_another_takes_over_after_kill_9(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    store = tmp_path / "store"
    habits = Habits(seed, str(store), server.url, server.key, "importer", threads=2, automatic=True, syncs=True)
    told = Told(habits)
    async with victim(habits) as (process, pipe):
        while told.records < 300 or told.session_id not in await given.sessions():  # it is the one that sends
            told.take(await pipe.readline())
        agent = make_agent(synchronize_automatically=True, startup_delay=0.0, sync_interval=1.0)
        async with agent:
            agent.feature("of.the.other")
            report = await agent.force_sync(timeout=5.0)
            assert report.error == "another process sends for this store"
            while told.records < 600:
                told.take(await pipe.readline())
            process.kill()
            while line := await pipe.readline():
                told.take(line)
            assert told.session_id is not None
            outcome = await agent.delivered(told.session_id, timeout=30.0)
            assert outcome.state is SessionState.ACCEPTED
    assert complaints(told, await given.records(told.session_id)) == []
    assert digests(await given.segments(told.session_id)) == digests(stored(store, told.session_id))


async def test_what_waits_is_known_before_the_window_opens(make_agent: AgentMaker) -> None:
    """Who sends only in windows has looked into its store by then: their time is not for looking."""
    _, recorded = await left_behind(make_agent, 10 * KIB, 1)
    agent = make_agent(synchronize_automatically=False, server="http://127.0.0.1:1")
    async with agent:
        fill(agent, 5 * KIB, 2)
        await eventually(lambda: agent.status.waiting_sessions == 1)
        status = agent.status
        assert (status.connectivity, status.ledger.pending) == ("unknown", recorded + status.recorded)
    assert agent.status.ledger.pending == recorded + status.recorded


async def test_the_account_without_a_server(make_agent: AgentMaker) -> None:
    """What runs and what waits is pending, whether there is anybody to send it to or not."""
    _, recorded = await left_behind(make_agent, 10 * KIB, 1)
    agent = make_agent(server=None)
    async with agent:
        fill(agent, 5 * KIB, 2)
        await eventually(lambda: agent.status.waiting_sessions == 1)
        status = agent.status
        assert status.ledger.pending == recorded + status.recorded
    assert agent.status.ledger.pending == recorded + status.recorded
