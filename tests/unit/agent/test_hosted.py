"""An agent in a thread of its own, for synchronous code: started, called, stopped, and never waited for in vain."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from mailboat.agent import Agent, AgentState, AgentThread
from mailboat.agent.store import WAITING
from testkit.crashing import run, stories
from testkit.forking import in_child
from testkit.recording import only, read_session


def hosted(root: Path) -> AgentThread:
    return AgentThread(Agent(store=root, server=None, product="product", application="application"))


def names(root: Path) -> list[str]:
    (folder,) = (root / "product" / "application" / WAITING).iterdir()
    return read_session(folder).names


def test_it_lives_as_long_as_the_block(tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        host.start()  # without effect
        host.agent.feature("main")
        threads = [threading.Thread(target=host.agent.feature, args=("thread",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert host.call(host.agent.flush(durable=True))
        assert host.agent.status.state is AgentState.RUNNING
    assert host.agent.status.state.value == "stopped"
    assert names(tmp_path) == ["main", *4 * ["thread"]]
    host.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "mailboat-agent"]


def test_an_exception_that_leaves_the_block_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(LookupError), hosted(tmp_path) as host:  # noqa: PT012 - the block is what is tested
        host.agent.feature("before")
        raise LookupError
    assert names(tmp_path) == ["before", "LookupError"]


def test_what_a_call_raises_is_raised_and_a_call_that_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    async def fails() -> None:
        raise LookupError("here")

    cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    with hosted(tmp_path) as host:
        with pytest.raises(LookupError, match="here"):
            host.call(fails())
        with pytest.raises(TimeoutError):
            host.call(endless(), timeout=0.01)
        assert cancelled.wait(30)


def test_outside_of_its_life_and_within_its_thread_a_call_is_refused(tmp_path: Path) -> None:
    host = hosted(tmp_path)
    with pytest.raises(RuntimeError, match="not running"):
        host.call(host.agent.flush())

    async def within() -> str:
        with pytest.raises(RuntimeError, match="thread itself"):
            host.call(host.agent.flush())
        return "refused"

    with host:
        assert host.call(within()) == "refused"


def test_in_a_forked_child_stop_seals_what_the_child_recorded(tmp_path: Path) -> None:
    with hosted(tmp_path) as host:
        host.agent.feature("parent")

        def child() -> list[str]:
            host.agent.feature("child")
            host.stop()
            host.stop()
            return names(tmp_path)

        with in_child(child) as forked:
            assert forked.result() == ["child"]
        host.agent.feature("parent again")
        assert host.agent.status.state is AgentState.RUNNING


PROGRAM = """
from mailboat.agent import AgentThread
host = AgentThread(agent)
host.start()
agent.feature("before")
{}
"""


@pytest.mark.parametrize(
    ("last", "status"),
    [("", 0), ("sys.exit(3)", 3), ("raise LookupError", 1), ("threading.Thread(target=host.stop).start()", 0)],
)
async def test_a_program_that_ends_without_stop_leaves_a_sealed_session(tmp_path: Path, last: str, status: int) -> None:
    end = await run(tmp_path, PROGRAM.format(last))
    assert end.status == status, end.errors
    assert names(tmp_path) == ["before", "LookupError"][: 1 + ("Lookup" in last)]
    assert ("Traceback" in end.errors) == ("Lookup" in last), end.errors


async def test_a_program_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    end = await run(tmp_path, PROGRAM.format("os.kill(os.getpid(), signal.SIGKILL)"))
    assert end.status == -9
    assert only(stories(tmp_path)).names == ["before"]
