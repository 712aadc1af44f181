"""Hooks and log handler together, under what programs do to themselves: the host ends as it would have."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from pathlib import Path

import pytest

from mailboat.agent import Agent
from testkit.crashing import run, stories

LOGGING = """
from mailboat.agent.integrations.logs import LogHandler
logging.getLogger().addHandler(LogHandler(agent))
log = logging.getLogger("app")
"""

CASES = {
    "a finalizer at the very end": (
        """
        class Kept:
            def __del__(self):
                log.error("late")
                raise LookupError("in a finalizer")
        kept = Kept()
        asyncio.run(agent.start())
        """,
        0,
        {("app", "late"): 1, ("LookupError", "in a finalizer"): 1},
        "in a finalizer",
    ),
    "a hook of the host's that logs, and fails": (
        """
        def fails(kind, error, trace):
            log.error("in the hook", exc_info=error)
            raise ValueError("the hook is broken")
        sys.excepthook = fails
        asyncio.run(agent.start())
        raise LookupError("first")
        """,
        1,
        {("LookupError", "first"): 1, ("app", "in the hook"): 1},
        "Error in sys.excepthook",
    ),
    "a runaway recursion": (
        """
        def deeper():
            deeper()
        async def main():
            async with agent:
                try:
                    deeper()
                except RecursionError:
                    log.exception("caught")
                deeper()
        asyncio.run(main())
        """,
        1,
        {("RecursionError", "maximum recursion depth exceeded"): 2},
        "RecursionError",
    ),
    "exceptions without a text": (
        """
        class Dumb(Exception):
            def __str__(self):
                raise RuntimeError("no text")
        async def main():
            await agent.start()
            asyncio.get_running_loop().call_soon(fail)
            await asyncio.sleep(0)
        def fail():
            raise Dumb
        asyncio.run(main())
        raise Dumb
        """,
        1,
        {("__main__.Dumb", "<Dumb: no text, RuntimeError>"): 2},
        "Dumb: <exception str() failed>",
    ),
    "a forked child that fails": (
        """
        async def main():
            async with agent:
                pid = os.fork()
                if not pid:
                    log.error("in the child")
                    raise LookupError("child")
                assert os.waitpid(pid, 0)[1] == 1 << 8
        asyncio.run(main())
        """,
        0,
        {("app", "in the child"): 1, ("LookupError", "child"): 1},
        "LookupError: child",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_host_ends_as_it_would_have(tmp_path: Path, case: str) -> None:
    program, status, expected, said = CASES[case]
    end = await run(tmp_path, program, prelude=LOGGING)
    assert (end.status, said in end.errors) == (status, True), end.errors
    records = [each for story in stories(tmp_path) for each in story.records]
    found = Counter(
        (each.name, each.message) for each in records if each.name != "asyncio"
    )  # asyncio logs what it does
    assert found == expected


def test_an_agent_whose_loop_has_ended_keeps_none_of_the_hosts_objects(tmp_path: Path) -> None:
    class Local:
        """What stands in a frame of the host's."""

    agent = Agent(store=tmp_path, product="Acme Studio", application="importer")

    def host() -> weakref.ref[Local]:
        local = Local()
        asyncio.run(agent.start())
        return weakref.ref(local)

    kept = host()
    gc.collect()
    assert kept() is None
    asyncio.run(agent.stop())
