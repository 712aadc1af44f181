"""What delivers is loaded when an agent starts: what becomes of it where that fails, or a fork comes in between.

Each of the programs is a process in which nothing of it was loaded before.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from testkit.serverkit import PRODUCT
from testkit.servers import Given, Served

_PROGRAM = """
import asyncio, errno, json, os, sys, time
from importlib.abc import MetaPathFinder
from mailboat.agent import Agent, sending

sending.LOAD_INTERVAL = 0.01
WATCHED = "mailboat.agent.rounds"

class Loads(MetaPathFinder):
    '''Is asked for each module that is to be loaded, and does `on_watched` for one of them.'''
    tries = 0
    def find_spec(self, name, path, target=None):
        if name == WATCHED:
            self.tries += 1
            self.on_watched()
    def on_watched(self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

loads = Loads()
sys.meta_path.insert(0, loads)

def make(**settings):
    return Agent(**{
        "server": os.environ["URL"], "api_key": os.environ["KEY"], "product": os.environ["PRODUCT"],
        "application": "importer", "store": os.environ["STORE"], "stop_timeout": 0, "hooks": False, **settings
    })
"""


async def run(server: Served, store: Path, program: str) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """What the program tells as its last line, in JSON."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM + textwrap.dedent(program)),
        env={**os.environ, "STORE": str(store), "URL": server.url, "KEY": server.key, "PRODUCT": PRODUCT},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60.0):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return json.loads(output.splitlines()[-1])


async def test_what_cannot_be_loaded_harms_no_record_and_is_tried_again(
    server: Served, given: Given, tmp_path: Path
) -> None:
    told = await run(
        server,
        tmp_path / "store",
        """
        async def main():
            agent, said, outcomes = make(synchronize_automatically=False), {}, []
            agent.on_outcome(lambda outcome: outcomes.append(outcome.state))
            async with agent:
                agent.feature("recorded")
                said["kept"] = await agent.flush(durable=True)
                agent.pause()
                report = await agent.force_sync(timeout=5.0)
                said["error"], said["trouble"] = report.error, agent.status.trouble
                try:
                    await agent.delivered(agent.session_id, timeout=5.0)
                except TimeoutError as error:
                    said["never"] = str(error)
                said["link"] = agent.status.connectivity
                sys.meta_path.remove(loads)
                while agent.status.trouble:
                    await asyncio.sleep(0.01)
                said["heard"] = agent.status.connectivity
            async with make(synchronize_automatically=False) as second:
                report = await second.force_sync(timeout=30.0)
                said["complete"], said["after"] = report.complete, second.status.trouble
            print(json.dumps({**said, "session": agent.session_id}))
        asyncio.run(main())
        """,
    )
    session = told.pop("session")
    why = "what delivers cannot be loaded: OSError: [Errno 24] Too many open files"
    assert told == {
        "kept": True,
        "error": why,
        "trouble": why,
        "never": f"this process sends nothing: {why}",
        "link": "unknown",
        "heard": "paused",
        "complete": True,
        "after": "",
    }
    assert [each["name"] for each in await given.records(session)] == ["recorded"]


@pytest.mark.parametrize("asked", ["", "await agent.force_sync(timeout=30.0)"], ids=["by itself", "when asked to"])
async def test_it_delivers_as_soon_as_it_can_be_loaded(
    server: Served, given: Given, tmp_path: Path, asked: str
) -> None:
    told = await run(
        server,
        tmp_path / "store",
        f"""
        async def main():
            async with make(synchronize_automatically={not asked}, startup_delay=0.0) as earlier:
                earlier.feature("recorded")
            {"sending.LOAD_INTERVAL = 3600.0" if asked else ""}
            outcomes = []
            agent = make(synchronize_automatically={not asked}, startup_delay=0.0)
            agent.on_outcome(lambda outcome: outcomes.append(outcome.session_id))
            async with agent:
                refused = agent.status.trouble
                sys.meta_path.remove(loads)
                {asked}
                while earlier.session_id not in outcomes:
                    await asyncio.sleep(0.01)
                print(json.dumps([refused != "", agent.status.trouble, earlier.session_id]))
        asyncio.run(main())
        """,
    )
    refused, trouble, session = told
    assert refused
    assert trouble == ""
    assert [each["name"] for each in await given.records(session)] == ["recorded"]


@pytest.mark.parametrize("watched", ["mailboat.agent.rounds", "getpass", "aiofiles"])
async def test_a_process_that_forks_meanwhile_has_a_child_that_can_deliver(
    server: Served, given: Given, tmp_path: Path, watched: str
) -> None:
    """Without the fork's waiting, the child has a module that nobody goes on loading, and waits for it for ever."""
    told = await run(
        server,
        tmp_path / "store",
        f"""
        WATCHED = {watched!r}
        """
        """
        import random, threading
        begun = threading.Event()
        def slowly():
            begun.set()
            time.sleep(0.2)  # so that a fork that does not wait comes in between; nothing fails if it does not
        loads.on_watched = slowly

        async def deliver():
            async with make(synchronize_automatically=False, application="child") as agent:
                agent.feature("of the child", noise=random.randbytes(200_000))  # so that it is uploaded
                report = await agent.force_sync(timeout=30.0)
                return report.complete

        def fork():
            begun.wait()
            pid = os.fork()
            if not pid:
                os._exit(0 if asyncio.run(asyncio.wait_for(deliver(), 20.0)) else 1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        async def main():
            forking = asyncio.get_running_loop().run_in_executor(None, fork)
            async with make(synchronize_automatically=False) as agent:
                agent.feature("of the parent", noise=random.randbytes(200_000))
                report = await agent.force_sync(timeout=30.0)
                print(json.dumps([await forking, report.complete, loads.tries]))
        asyncio.run(main())
        """,
    )
    assert told == [0, True, 1]
    assert len(await given.sessions()) == 2


async def test_an_agent_that_only_records_never_loads_it(server: Served, tmp_path: Path) -> None:
    told = await run(
        server,
        tmp_path / "store",
        """
        async def main():
            async with make(server=None) as agent:
                agent.feature("recorded")
            print(json.dumps([loads.tries, agent.status.recorded, WATCHED in sys.modules]))
        asyncio.run(main())
        """,
    )
    assert told == [0, 1, False]
