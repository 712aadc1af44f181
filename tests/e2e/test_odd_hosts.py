"""Programs as they are started, installed and set up elsewhere: each records, and ends as it would have without us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

import mailboat.agent
import mailboat.protocol
from mailboat.agent.config import HOMELESS
from testkit.recording import read_session

linux = pytest.mark.skipif(sys.platform != "linux", reason="it is told by /proc, or asked of Linux")
posix = pytest.mark.skipif(os.name == "nt", reason="there is no such thing on Windows")

NAMES = ["feature", "value", "timing", "event", "ValueError", "emitted"]

LIFE = """
import asyncio, json, os, sys, threading

TOLD = os.path.abspath("told")

async def meanwhile(agent):
    pass

def before():
    pass

def settings():
    return {"store": "store"}

# HERE

from mailboat.agent import Agent, Level

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60.0
    agent = Agent(product="P", application="A", server="http://127.0.0.1:9", stop_timeout=0.0, **settings())
    async with agent:
        agent.feature("feature", rows=1)
        agent.value("value", 2.0, unit="bytes")
        with agent.timing("timing"):
            pass
        agent.event("event", level=Level.CRITICAL, message="m")
        agent.exception(ValueError("error"))
        agent.emitter("emitted", "a")(1)
        await meanwhile(agent)
        kept = await agent.flush(durable=True)
        report = await agent.force_sync(timeout=0.1)
        running = agent.status
    for each in set(threading.enumerate()) - {threading.current_thread()}:
        each.join(30.0)  # they end by themselves, soon after
    told = {
        "kept": kept, "sent": report.complete, "session": agent.session_id, "recorded": running.recorded,
        "lost": dict(running.lost), "crash_proof": running.crash_proof, "trouble": running.trouble,
        "after": agent.status.trouble, "threads": [each.name for each in threading.enumerate()],
    }
    with open(TOLD, "w", encoding="ascii") as file:
        json.dump(told, file)

before()
asyncio.run(main())
"""


def live(folder: Path, *options: str, change: str = "", recorded: int = len(NAMES), **environment: str | None) -> Any:  # noqa: ANN401 - JSON
    """What a program says of its life that is run in `folder` with these options of the interpreter's, changed so."""
    given = {name: text for name, text in {**os.environ, **environment}.items() if text is not None}
    program = LIFE.replace("# HERE", textwrap.dedent(change))
    command = [sys.executable, *options, "-c", program]
    done = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    told = json.loads((folder / "told").read_bytes())
    assert (told["recorded"], told["lost"], told["sent"], told["threads"]) == (recorded, {}, False, ["MainThread"])
    return told | {"errors": done.stderr}


def names_in(folder: Path) -> list[str]:
    """The names of the records of the one session whose store is in `folder`, which has to be whole."""
    (session,) = (folder / "store" / "P" / "A" / "waiting").iterdir()
    story = read_session(session)
    assert story.gaps == []
    return story.names


AS_EVER = {
    "nothing odd": (),
    "no assertions": ("-O",),
    "no docstrings either": ("-OO",),
    "isolated": ("-I",),
    "every warning is an error": ("-X", "dev", "-W", "error", "-X", "warn_default_encoding"),
}


@pytest.mark.parametrize("case", AS_EVER)
def test_however_the_interpreter_was_told_to_run(tmp_path: Path, case: str) -> None:
    told = live(tmp_path, *AS_EVER[case])
    assert (told["kept"], told["crash_proof"], told["trouble"], told["errors"]) == (True, True, "", "")
    assert names_in(tmp_path) == NAMES


CHANGES = {
    "no streams and no arguments": "sys.stdin = sys.stdout = sys.stderr = None\ndel sys.argv",
    "arguments that are no text": r"sys.argv = ['gr\udcf6\udcdfe', '\udcff']",
    "every signal held off": """
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    """,
    "a loop that starts tasks at once": """
        async def meanwhile(agent):
            if hasattr(asyncio, "eager_task_factory"):
                asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    """,
}


@posix
@pytest.mark.parametrize("case", CHANGES)
def test_whatever_the_host_has_made_of_its_process(tmp_path: Path, case: str) -> None:
    told = live(tmp_path, change=CHANGES[case])
    assert (told["kept"], told["crash_proof"], told["trouble"], told["errors"]) == (True, True, "", "")
    assert names_in(tmp_path) == NAMES


@linux
def test_a_process_whose_name_is_no_text(tmp_path: Path) -> None:
    """The kernel cuts a name after 15 bytes, in the middle of a letter perhaps."""
    change = r"""
        def before():
            with open("/proc/self/comm", "wb", buffering=0) as name:
                name.write(b"Gr\xc3\xb6\xc3\x9fer-als-1\xc3")
    """
    assert live(tmp_path, change=change)["kept"]
    assert names_in(tmp_path) == NAMES


def test_a_locale_that_knows_ascii_alone(tmp_path: Path) -> None:
    """Settings are UTF-8 all the same, as TOML is."""
    (tmp_path / "pyproject.toml").write_text('[tool.mailboat]\nversion = "Grüße"\n', "utf-8")
    change = """
        async def meanwhile(agent):
            from mailboat.agent import AgentConfig
            assert AgentConfig.load().version == "Gr\\u00fc\\u00dfe"
    """
    assert live(tmp_path, change=change, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")["kept"]
    assert names_in(tmp_path) == NAMES


def test_a_host_that_goes_to_another_folder_takes_the_store_along(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    change = """
        async def meanwhile(agent):
            os.chdir("elsewhere")
    """
    told = live(tmp_path, change=change)
    assert (told["kept"], told["trouble"]) == (True, "")
    assert names_in(tmp_path) == NAMES
    assert list((tmp_path / "elsewhere").iterdir()) == []


@posix
def test_a_host_that_has_closed_its_standard_streams_prints_into_no_file_of_ours(tmp_path: Path) -> None:
    """A library may go on to print to descriptors 1 and 2, whoever has got these numbers since."""
    change = """
        def settings():
            return {"store": "store", "segment_bytes": 65536}

        async def meanwhile(agent):
            for number in range(3):
                os.close(number)
            for _ in range(4):
                for _ in range(20):
                    agent.feature("more", blob=os.urandom(4096))
                await agent.flush()
                for number in range(3):
                    try:
                        os.write(number, b"what a library prints")
                    except OSError:
                        pass  # nothing is there
    """
    told = live(tmp_path, change=change, recorded=86)
    assert (told["kept"], told["trouble"]) == (True, "")
    assert names_in(tmp_path) == [*NAMES, *["more"] * 80]
    assert len(list(tmp_path.glob("store/P/A/waiting/*/*.zst"))) > 2


@posix
def test_a_user_without_a_home_keeps_records_in_memory(tmp_path: Path) -> None:
    """As containers have that run under the number of a user whom nobody has named."""
    change = """
        import pwd

        def nobody(_):
            raise KeyError("getpwuid(): uid not found")

        pwd.getpwuid = nobody

        def settings():
            return {}
    """
    told = live(tmp_path, change=change, HOME=None, XDG_DATA_HOME=None)
    assert (told["kept"], told["crash_proof"]) == (False, False)
    assert str(HOMELESS) in told["trouble"]
    assert "MAILBOAT_STORE" in told["errors"]
    assert [each.name for each in tmp_path.iterdir() if each.name != "home"] == ["told"]


@posix
def test_a_host_that_may_not_look_where_it_is_is_configured_all_the_same(tmp_path: Path) -> None:
    """A daemon, say, that was started in its owner's folder and has become another user since."""
    (tmp_path / "closed").mkdir()
    program = """
        import os
        from mailboat.agent import AgentConfig
        os.chdir("closed")
        os.chmod(".", 0)
        if os.geteuid() == 0:
            os.setuid(54321)
        try:
            os.stat("mailboat.toml")
        except PermissionError:
            print(repr(AgentConfig.load(product="P").product))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    (tmp_path / "closed").chmod(0o700)
    assert (done.stdout.strip(), done.returncode) == ("'P'", 0), done.stderr


def test_the_agent_in_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "application.zip"
    with zipfile.ZipFile(archive, "w") as into:
        into.mkdir("mailboat")  # as zipapp does, which enters folders, too: this one has no code of its own
        for part in (mailboat.agent, mailboat.protocol):
            root = Path(part.__path__[0])
            for path in root.rglob("*.py"):
                into.write(path, Path("mailboat", root.name, path.relative_to(root)))
    change = f"""
        sys.path.insert(0, {str(archive)!r})
        import mailboat.agent
        assert mailboat.agent.__file__.startswith({str(archive)!r})
    """
    assert live(tmp_path, change=change)["kept"]
    assert names_in(tmp_path) == NAMES
