"""The lives of an agent: started again after its end or the end of its loop, asked from another loop, and what the
application has kept of it since before it was started.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent, AgentState, AgentThread, Level, session
from mailboat.agent import agent as agent_module
from mailboat.agent.ended import read_preamble
from mailboat.agent.files import OsFileSystem
from mailboat.agent.loops import LOOP_ENDED, LoopEnded, elsewhere
from mailboat.agent.store import LIVE, WAITING
from mailboat.agent.writer import Writer
from mailboat.protocol.limits import MAX_SCHEMAS
from mailboat.protocol.records import Kind
from testkit.forking import in_child
from testkit.recording import read_session

UNREACHABLE = "http://127.0.0.1:9"


def made(root: Path, **settings: Any) -> Agent:  # noqa: ANN401 - settings of the agent
    chosen = {"store": root, "server": None, "product": "product", "application": "application", **settings}
    return Agent(**chosen)


def sessions(root: Path) -> list[Path]:
    """In the order in which they began."""
    return sorted((root / "product" / "application" / WAITING).iterdir())


def recorded(root: Path) -> list[list[str]]:
    """The names of the records of each session, in that order."""
    return [read_session(folder).names for folder in sessions(root)]


# -- again and again ---------------------------------------------------------------------------------------------------


async def test_an_agent_that_was_stopped_begins_another_session(tmp_path: Path) -> None:
    agent, ids = made(tmp_path), []
    for name in ("first", "second", "third"):
        async with agent:
            assert agent.status.state is AgentState.RUNNING
            agent.feature(name)
            agent.event("event")
            ids.append(agent.session_id)
        assert (agent.status.state, agent.status.recorded) == (AgentState.STOPPED, 2)
        agent.feature("ignored")
    assert recorded(tmp_path) == [["first", "event"], ["second", "event"], ["third", "event"]]
    assert len(set(ids)) == 3


def test_one_agent_lives_in_one_loop_after_the_other(tmp_path: Path) -> None:
    agent = made(tmp_path)

    async def live(name: str) -> None:
        async with agent:
            agent.feature(name)

    for name in ("first", "second"):
        asyncio.run(live(name))
    assert recorded(tmp_path) == [["first"], ["second"]]


def test_a_loop_that_ends_without_a_stop_leaves_an_agent_that_can_be_started(tmp_path: Path) -> None:
    agent = made(tmp_path, server=UNREACHABLE, startup_delay=3600.0)

    async def start() -> None:
        await agent.start()
        agent.feature("first")

    asyncio.run(start())
    agent.feature("between")
    assert (agent.status.state, agent.status.reason) == (AgentState.RUNNING, LOOP_ENDED)

    async def again() -> None:
        report = await agent.force_sync()
        assert (report.complete, report.error) == (False, LOOP_ENDED)
        with pytest.raises(TimeoutError, match="event loop"):
            await agent.delivered(agent.session_id or "")
        assert await agent.flush(durable=True)
        await agent.start()
        agent.feature("second")
        assert agent.status.reason != LOOP_ENDED
        await agent.stop(0.0)

    asyncio.run(again())
    assert recorded(tmp_path) == [["first", "between"], ["second"]]


def test_a_thread_of_its_own_can_be_started_again(tmp_path: Path) -> None:
    host = AgentThread(made(tmp_path))
    for name in ("first", "second"):
        with host:
            host.agent.feature(name)
    assert recorded(tmp_path) == [["first"], ["second"]]


async def test_a_start_and_a_stop_wait_for_the_stop_under_way(tmp_path: Path) -> None:
    agent = made(tmp_path)
    await agent.start()
    agent.feature("first")
    stopping = asyncio.create_task(agent.stop())
    await asyncio.sleep(0)
    assert agent.status.state is AgentState.STOPPED
    await agent.stop()
    assert stopping.done(), "the second one returned before the session was sealed"
    agent.feature("ignored")
    await agent.start()
    stopping = asyncio.create_task(agent.stop())
    await asyncio.sleep(0)
    await asyncio.gather(agent.start(), agent.start())
    assert stopping.done()
    assert agent.status.state.value == "running"
    agent.feature("third")
    await agent.stop()
    assert recorded(tmp_path) == [["first"], [], ["third"]]


async def test_a_start_and_a_stop_wait_for_the_start_under_way(tmp_path: Path) -> None:
    agent = made(tmp_path)
    starting = asyncio.create_task(agent.start())
    await asyncio.sleep(0)
    await agent.start()
    assert starting.done()
    agent.feature("first")
    await agent.stop()
    starting = asyncio.create_task(agent.start())
    await asyncio.sleep(0)
    await agent.stop()
    assert starting.done()
    assert agent.status.state is AgentState.STOPPED
    agent.feature("ignored")
    assert recorded(tmp_path) == [["first"], []]


async def test_a_start_waits_for_one_that_comes_to_nothing_and_starts(tmp_path: Path) -> None:
    agent = made(tmp_path)
    cancelled = asyncio.create_task(agent.start())
    await asyncio.sleep(0)
    starting = asyncio.create_task(agent.start())
    await asyncio.sleep(0)
    cancelled.cancel()
    await starting
    assert cancelled.cancelled()
    agent.feature("recorded")
    await agent.stop()
    assert ["recorded"] in recorded(tmp_path)  # the other session ends as empty as it began, in its own time


def test_a_start_whose_loop_was_closed_is_none(tmp_path: Path) -> None:
    agent, loop = made(tmp_path), asyncio.new_event_loop()
    left = loop.create_task(agent.start())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def live() -> None:
        await agent.start()
        agent.feature("recorded")
        await agent.stop()

    asyncio.run(live())
    assert not left.done()
    assert ["recorded"] in recorded(tmp_path)


def test_a_stop_whose_loop_was_closed_is_brought_to_its_end(tmp_path: Path) -> None:
    agent, loop = made(tmp_path), asyncio.new_event_loop()
    loop.run_until_complete(agent.start())
    agent.feature("first")
    left = loop.create_task(agent.stop())
    loop.run_until_complete(asyncio.sleep(0))
    assert agent.status.state is AgentState.STOPPED
    loop.close()

    async def live(left: list[asyncio.Task[None]]) -> None:
        await agent.start()
        left.clear()
        gc.collect()  # what is left of the first stop ends now, and must not end what has begun since
        agent.feature("second")
        with in_child(lambda: agent.feature("of a child")) as child:
            child.result()
        await agent.stop()

    lefts = [left]
    del left
    asyncio.run(live(lefts))
    assert recorded(tmp_path) == [["first"], ["second"]]


def test_who_stops_in_the_moment_in_which_the_loop_ends_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, end = made(tmp_path), Writer._end
    closing, closed = threading.Event(), threading.Event()

    def end_late(*asked: Any, **more: Any) -> bool:  # noqa: ANN401 - as the writer's own
        assert closed.wait(30)
        return end(*asked, **more)

    async def until_it_stops() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closing.set()
            while agent.status.state is AgentState.RUNNING:  # noqa: ASYNC110 - what it waits for is in another thread
                await asyncio.sleep(0)

    async def live() -> None:
        await agent.start()
        agent.feature("recorded")
        host = asyncio.create_task(until_it_stops())
        await asyncio.sleep(0)
        assert not host.done()

    def stop() -> None:
        assert closing.wait(30)
        asyncio.run(agent.stop())

    monkeypatch.setattr(Writer, "_end", end_late)
    stopping = threading.Thread(target=stop)
    stopping.start()
    asyncio.run(live())
    closed.set()
    stopping.join(30)
    assert not stopping.is_alive()
    assert recorded(tmp_path) == [["recorded"]]


def test_a_child_forked_while_another_thread_starts_the_agent_can_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no part in that start, and nobody goes on with it there."""
    agent, opened = made(tmp_path), session.open_session
    opening, forked = threading.Event(), threading.Event()

    def open_late(*told: Any) -> session.Session:  # noqa: ANN401 - as of the session
        opening.set()
        assert forked.wait(30)
        return opened(*told)

    async def live(name: str) -> str:
        async with agent:
            agent.feature(name)
            return str(agent.status.state)

    def child() -> str:
        forked.set()
        return asyncio.run(live("child"))

    monkeypatch.setattr(agent_module, "open_session", open_late)
    starting = threading.Thread(target=lambda: asyncio.run(live("parent")))
    starting.start()
    assert opening.wait(30)
    with in_child(child) as forked_child:
        assert forked_child.result() == "running"
    forked.set()
    starting.join(30)
    assert sorted(recorded(tmp_path)) == [["child"], ["parent"]]


@pytest.mark.parametrize("thread", ["mailboat-store", "mailboat-writer"])
async def test_a_process_that_gets_no_thread_goes_on_without_it_until_it_gets_one(
    thread: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith(thread):
            raise RuntimeError("can't start new thread")
        start(self)

    agent = made(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        async with agent:
            agent.feature("ignored")
            assert (agent.status.state, agent.status.recorded) == (AgentState.NEW, 0)
            assert "can't start new thread" in agent.status.trouble
    async with agent:
        agent.feature("kept")
        assert agent.status.trouble == ""
    assert recorded(tmp_path) == [["kept"]]


def held() -> tuple[list[str], int]:
    """The descriptors of this process, and how many parts of journals are mapped."""
    own = Path("/proc/self")
    return sorted(path.name for path in (own / "fd").iterdir()), (own / "maps").read_text().count("journal")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_start_that_gets_no_thread_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, agent = threading.Thread.start, made(tmp_path)

    def refuse(self: threading.Thread) -> None:
        if self.name == "mailboat-writer":
            raise RuntimeError("can't start new thread")
        start(self)

    await agent.start()
    await agent.stop()
    before = held()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            await agent.start()
            assert agent.status.state is AgentState.NEW
    gc.collect()
    assert held() == before
    assert OsFileSystem().names(tmp_path / "product" / "application" / LIVE) == []


async def test_an_agent_that_is_not_to_track_any_more_does_not_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = made(tmp_path)
    async with agent:
        agent.feature("first")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    async with agent:
        assert agent.status.state is AgentState.DISABLED
        agent.feature("ignored")
    assert recorded(tmp_path) == [["first"]]


async def test_a_child_forked_from_the_second_life_names_the_second_session(tmp_path: Path) -> None:
    agent = made(tmp_path)
    async with agent:
        agent.feature("first")
    async with agent:
        agent.feature("second")

        def child() -> object:
            agent.feature("child")
            asyncio.run(agent.stop())
            return [agent.status.state.value, agent.status.recorded]

        with in_child(child) as forked:
            assert forked.result() == ["stopped", 1]
    assert recorded(tmp_path) == [["first"], ["second"], ["child"]]
    preambles = [read_preamble(OsFileSystem(), folder / "000000.zst") for folder in sessions(tmp_path)]
    parents = dict(zip(("first", "second", "child"), (each.info.get("parent") for each in preambles), strict=True))
    assert parents == {"first": None, "second": None, "child": agent.session_id}


async def test_a_child_that_was_stopped_can_be_started_again(tmp_path: Path) -> None:
    async with made(tmp_path) as agent:
        agent.feature("parent")

        def child() -> object:
            async def live(name: str) -> None:
                async with agent:
                    agent.feature(name)

            asyncio.run(live("first"))
            asyncio.run(live("second"))
            return agent.status.state.value

        with in_child(child) as forked:
            assert forked.result() == "stopped"
    assert sorted(recorded(tmp_path)) == [["first"], ["parent"], ["second"]]


# -- what was kept since before the start ------------------------------------------------------------------------------


@pytest.mark.parametrize("scrub", [None, lambda _name, attributes: attributes])
async def test_calls_that_were_kept_since_before_the_start_record(
    tmp_path: Path, scrub: Callable[[str, dict[str, object]], dict[str, object]] | None
) -> None:
    agent = made(tmp_path, scrub=scrub)
    feature, event = agent.feature, agent.event
    placed, sized = agent.emitter("order.placed", "user_id", "price"), agent.emitter("size", "of", kind=Kind.VALUE)
    assert agent.emitter("order.placed", "user_id", "price") is placed
    feature("ignored", rows=1)
    placed(1)
    placed(1, 2.5)
    for _ in range(2):
        async with agent:
            feature("kept", rows=2)
            event("event", level=Level.WARNING)
            placed(7, 9.5)
            sized(3)
            with pytest.raises(TypeError):
                placed(7)
        placed(8, 1.0)
    first, second = recorded(tmp_path)
    assert first == second == ["kept", "event", "order.placed", "size"]


async def test_declarations_that_cannot_be_are_refused_before_the_start_too(tmp_path: Path) -> None:
    agent = made(tmp_path)
    with pytest.raises(ValueError, match="declares 65 fields"):
        agent.emitter("many", *map(str, range(65)))
    with pytest.raises(ValueError, match="is of kind"):
        agent.emitter("odd", "a", kind=Kind.SCHEMA)
    for number in range(MAX_SCHEMAS):
        agent.emitter(f"emitter {number}", "a")
    agent.emitter("emitter 0", "a")
    with pytest.raises(ValueError, match="one too many"):
        agent.emitter("another", "a")


async def test_an_emitter_that_is_declared_while_another_thread_starts_the_agent_records(tmp_path: Path) -> None:
    agent, emitters, begun, over = made(tmp_path), list[Callable[..., None]](), threading.Event(), threading.Event()

    def declare() -> None:
        number = 0
        while not over.is_set():
            emitters.append(agent.emitter(f"{number}", "value"))
            number = (number + 1) % 1000
            begun.set()

    thread = threading.Thread(target=declare)
    thread.start()
    begun.wait()
    async with agent:
        over.set()
        thread.join()
        for emit in emitters:
            emit(1)
        assert agent.status.recorded == len(emitters)


async def test_what_was_said_of_the_connection_before_the_start_holds(tmp_path: Path) -> None:
    agent = made(tmp_path, server=UNREACHABLE, startup_delay=3600.0, policy=lambda link, _: not link.metered)
    agent.resume()
    agent.pause()
    agent.set_link("lte", metered=True)
    async with agent:
        await asyncio.sleep(0)
        assert agent.status.connectivity == "paused"
        agent.resume()
    agent.pause()
    agent.resume()
    async with agent:
        await asyncio.sleep(0)
        assert agent.status.connectivity == "unknown"


# -- asked from elsewhere ----------------------------------------------------------------------------------------------


async def test_an_agent_can_be_asked_from_another_loop(tmp_path: Path) -> None:
    with AgentThread(made(tmp_path, server=UNREACHABLE, startup_delay=3600.0, stop_timeout=0.0)) as host:
        agent = host.agent
        agent.feature("recorded")
        assert await agent.flush(durable=True)
        async with asyncio.timeout(30.0):
            report = await agent.force_sync()  # without a timeout it ends with the first failure
            assert report.error is not None
            assert "no connection" in report.error
            with pytest.raises(TimeoutError):
                await agent.delivered(agent.session_id or "", timeout=0.01)
            waiting = asyncio.create_task(agent.delivered(agent.session_id or ""))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    assert recorded(tmp_path) == [["recorded"]]


async def test_who_waits_for_another_loop_is_told_of_its_end() -> None:
    begun, ended = threading.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def live() -> None:
        loops.append(asyncio.get_running_loop())
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    await asyncio.get_running_loop().run_in_executor(None, begun.wait)

    async def endless() -> None:
        ended.set()
        await asyncio.get_running_loop().create_future()

    with pytest.raises(LoopEnded):
        await elsewhere(loops[0], endless)
    thread.join()
    for loop in (None, *loops):
        with pytest.raises(LoopEnded):
            await elsewhere(loop, endless)


async def test_a_loop_that_is_closed_in_the_very_moment_leaves_no_coroutine_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    monkeypatch.setattr(loop, "is_running", lambda: True)
    coroutine = asyncio.sleep(0)
    with pytest.raises(LoopEnded):
        await elsewhere(loop, lambda: coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


# -- what it says of itself --------------------------------------------------------------------------------------------


async def test_it_says_why_nothing_is_sent_and_what_waits(tmp_path: Path) -> None:
    agent = made(tmp_path)
    assert agent.status.reason == "no server is configured"
    async with agent:
        agent.feature("one")
        assert (agent.status.reason, agent.status.waiting_sessions) == ("no server is configured", 0)
        with in_child(lambda: agent.status.reason) as forked:
            assert "forked child" in forked.result()
    status = agent.status
    segment = tmp_path / "product" / "application" / WAITING / str(agent.session_id) / "000000.zst"
    size = segment.stat().st_size
    assert (status.waiting_sessions, status.waiting_bytes, status.ledger.pending) == (1, size, 1)


async def test_an_agent_that_has_stopped_says_at_once_that_it_knows_no_outcome(tmp_path: Path) -> None:
    agent = made(tmp_path, server=UNREACHABLE, startup_delay=3600.0, stop_timeout=0.0)
    with pytest.raises(TimeoutError, match="was not started"):
        await agent.delivered("0190a000-0000-7000-8000-000000000000")
    async with agent:
        agent.feature("one")
    for session_id in (agent.session_id or "", "0190a000-0000-7000-8000-000000000000", "../..", ""):
        with pytest.raises(TimeoutError, match="the agent has stopped"):
            await agent.delivered(session_id)
