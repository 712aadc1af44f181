"""Whatever a process dies of, its session tells: unhandled exceptions and fatal signals of real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mailboat.agent import Level
from mailboat.protocol.segment import SealReason
from testkit.crashing import files_in, run, stories
from testkit.recording import only
from testkit.sealed import PRIVATE

IN_A_LOOP = """
async def main():
    await agent.start()
    agent.feature("before")
    {}
asyncio.run(main())
"""

FATAL = {
    "SIGSEGV": "ctypes.string_at(0)",
    "SIGABRT": "os.abort()",
    "SIGFPE": "signal.raise_signal(signal.SIGFPE)",
    "SIGBUS": "signal.raise_signal(signal.SIGBUS)",
    "SIGILL": "signal.raise_signal(signal.SIGILL)",
}


@pytest.mark.parametrize("name", FATAL)
async def test_a_fatal_signal_is_the_last_record_of_its_session(tmp_path: Path, name: str) -> None:
    end = await run(tmp_path, IN_A_LOOP.format(FATAL[name]))
    assert end.status == -signal.Signals[name]  # it dies of what it would have died of
    story = only(stories(tmp_path))
    assert story.names == ["before", "process.died"]
    died = story.records[-1]
    assert (died.kind, died.level) == ("event", Level.CRITICAL)
    assert died.message is not None
    assert died.attributes["last_words"].startswith(f"Fatal Python error: {died.message}")
    assert "in main" in died.attributes["last_words"]
    assert died.time >= story.records[0].time
    assert story.reasons == [SealReason.CRASHED]
    assert (story.gaps, story.lost) == ([], {})


async def test_a_fatal_signal_in_a_thread_while_others_record(tmp_path: Path) -> None:
    end = await run(
        tmp_path,
        """
        async def main():
            await agent.start()
            def record():
                while True:
                    agent.feature("again")
            def fall():
                ctypes.string_at(0)
            threading.Thread(target=record, daemon=True).start()
            await agent.flush(durable=True)
            threading.Thread(target=fall).start()
            await asyncio.sleep(60)
        asyncio.run(main())
        """,
    )
    assert end.status == -signal.SIGSEGV
    story = only(stories(tmp_path))
    assert story.names[-1] == "process.died"
    assert set(story.names[:-1]) == {"again"}
    assert story.numbers == list(range(len(story.numbers)))
    assert "in fall" in story.records[-1].attributes["last_words"]
    assert "in record" in story.records[-1].attributes["last_words"]


async def test_an_overflowing_stack_has_last_words(tmp_path: Path) -> None:
    end = await run(tmp_path, IN_A_LOOP.format("faulthandler._stack_overflow()"))
    assert end.status == -signal.SIGSEGV
    assert only(stories(tmp_path)).names == ["before", "process.died"]


async def test_the_hosts_own_faulthandler_is_left_alone(tmp_path: Path) -> None:
    end = await run(tmp_path, IN_A_LOOP.format("ctypes.string_at(0)"), PYTHONFAULTHANDLER="1")
    assert end.status == -signal.SIGSEGV
    assert end.errors.startswith("Fatal Python error: Segmentation fault")
    story = only(stories(tmp_path))
    assert (story.names, story.reasons) == (["before"], [SealReason.CRASHED])


async def test_a_sealed_session_has_none_for_they_would_lie_there_as_they_are(tmp_path: Path) -> None:
    program = IN_A_LOOP.format("assert not faulthandler.is_enabled()\n    os.abort()")
    end = await run(tmp_path, program, MAILBOAT_SEAL_TO=PRIVATE.public.text)
    assert end.status == -signal.SIGABRT, end.errors
    names = files_in(tmp_path)
    assert "000000.zst" in names
    assert "last-words" not in names


async def test_a_faulthandler_that_the_host_enables_later_outlives_the_agent(tmp_path: Path) -> None:
    end = await run(
        tmp_path,
        """
        async def main():
            async with agent:
                agent.feature("before")
                faulthandler.enable()
            ctypes.string_at(0)
        asyncio.run(main())
        """,
    )
    assert end.errors.startswith("Fatal Python error: Segmentation fault")
    story = only(stories(tmp_path))
    assert (story.names, story.reasons) == (["before"], [SealReason.STOPPED])


async def test_after_stop_nothing_of_ours_is_enabled(tmp_path: Path) -> None:
    end = await run(
        tmp_path,
        """
        async def main():
            async with agent:
                assert faulthandler.is_enabled()
            assert not faulthandler.is_enabled()
            other = make()
            await other.start()  # and the place can be taken again
            assert faulthandler.is_enabled()
            os.abort()
        asyncio.run(main())
        """,
    )
    assert end.status == -signal.SIGABRT, end.errors
    assert sorted(story.names for story in stories(tmp_path)) == [[], ["process.died"]]


async def test_a_forked_child_writes_its_last_words_into_a_session_of_its_own_or_nowhere(tmp_path: Path) -> None:
    """Above all not into a file of the host's that got the number of ours."""
    end = await run(
        tmp_path,
        """
        async def main():
            await agent.start()
            agent.feature("parent")
            for record in (False, True):
                pid = os.fork()
                if not pid:
                    assert not faulthandler.is_enabled()
                    if record:
                        agent.feature("child")
                        assert faulthandler.is_enabled()
                    files = [os.open(f"/proc/self/fd/1", os.O_WRONLY) for _ in range(64)]
                    os.abort()
                assert os.waitpid(pid, 0)[1] == signal.SIGABRT
            assert faulthandler.is_enabled()
            os.abort()
        asyncio.run(main())
        """,
    )
    assert end.status == -signal.SIGABRT, end.errors
    assert end.output == ""
    told = sorted(story.names for story in stories(tmp_path))
    assert told == [["child", "process.died"], ["parent", "process.died"]]


UNHANDLED = """
def fail():
    raise LookupError("no such order")
"""

FAILING = {
    "nobody has stopped": (
        "async def main():\n    await agent.start()\n    agent.feature('before')\n    fail()\nasyncio.run(main())",
        1,
        SealReason.CRASHED,
    ),
    "async with": (
        "async def main():\n  async with agent:\n    agent.feature('before')\n    fail()\nasyncio.run(main())",
        1,
        SealReason.STOPPED,
    ),
    "after the loop": (
        "asyncio.run(agent.start())\nagent.feature('before')\nfail()",
        1,
        SealReason.CRASHED,
    ),
    "thread": (
        IN_A_LOOP.format("await asyncio.to_thread(lambda: None)\n    t = threading.Thread(target=fail)\n    t.start()")
        + "t = threading.enumerate()\n",
        0,
        SealReason.STOPPED,
    ),
    "callback": (
        IN_A_LOOP.format("asyncio.get_running_loop().call_soon(fail)\n    await asyncio.sleep(0)"),
        0,
        SealReason.STOPPED,
    ),
    "task": (
        IN_A_LOOP.format(
            "async def job(): fail()\n    asyncio.create_task(job(), name='job')\n    await asyncio.sleep(0)"
            "\n    await asyncio.sleep(0)\n    gc.collect()"
        ),
        0,
        SealReason.STOPPED,
    ),
    "finalizer": (
        IN_A_LOOP.format("X = type('X', (), {'__del__': lambda self: fail()})\n    X()"),
        0,
        SealReason.STOPPED,
    ),
}
COMPARED = ("nobody has stopped", "thread", "task")
"""Run once more without hooks, for what the host does and says then."""

LEVELS = {"thread": Level.ERROR, "callback": Level.ERROR, "task": Level.ERROR, "finalizer": Level.WARNING}


@pytest.mark.parametrize("way", FAILING)
async def test_an_unhandled_exception_is_recorded_and_the_host_notices_nothing(tmp_path: Path, way: str) -> None:
    program, status, reason = FAILING[way]
    end = await run(tmp_path, UNHANDLED + program)
    assert end.status == status, end.errors
    story = only(stories(tmp_path))
    assert story.names == ["before", "LookupError"]
    error = story.records[-1]
    assert (error.kind, error.message, error.level) == ("exception", "no such order", LEVELS.get(way, Level.CRITICAL))
    assert error.stack[-1][2] == "fail"
    assert error.context
    assert story.reasons == [reason]
    assert "LookupError: no such order" in end.errors
    if way not in COMPARED:
        return
    without = await run(tmp_path / "other", UNHANDLED + program, MAILBOAT_HOOKS="0")
    assert (without.status, _told(without.errors)) == (end.status, _told(end.errors))
    assert only(stories(tmp_path / "other")).names == ["before"]


def _told(errors: str) -> list[str]:
    """What the host printed, without what differs from run to run (addresses)."""
    return [line for line in errors.splitlines() if " at 0x" not in line and "handle:" not in line]


async def test_the_record_is_safe_when_the_hook_returns(tmp_path: Path) -> None:
    """Whatever comes after it: here the process is killed by the very hook that the agent calls next."""
    end = await run(
        tmp_path,
        """
        sys.excepthook = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(agent.start())
        raise LookupError
        """,
    )
    assert end.status == -signal.SIGKILL
    assert only(stories(tmp_path)).names == ["LookupError"]


@pytest.mark.parametrize(
    ("error", "begin"),
    [
        ("KeyboardInterrupt", "await agent.start()"),
        ("SystemExit(3)", "await stack.enter_async_context(agent)"),
        ("asyncio.CancelledError", "await stack.enter_async_context(agent)"),
    ],
)
async def test_an_end_in_order_is_not_recorded(tmp_path: Path, error: str, begin: str) -> None:
    end = await run(
        tmp_path,
        f"""
        import contextlib
        async def main():
            async with contextlib.AsyncExitStack() as stack:
                {begin}
                agent.feature("before")
                raise {error}
        asyncio.run(main())
        """,
    )
    assert end.status != 0
    assert only(stories(tmp_path)).names == ["before"]
