"""The demo's children end, each by its own id, in whatever way is needed."""

import os
from pathlib import Path

import pytest

from mailboat.cli.demo.processes import Child, ChildFailed

PARSING = ["mailboat.cli.demo.parsing"]


def gone(child: Child) -> bool:
    try:
        os.kill(child.process.pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_child_ends_with_its_input(tmp_path: Path) -> None:
    async with Child.started("parser", PARSING, log=tmp_path / "log", settings={}) as child:
        assert not gone(child)
    assert child.process.returncode == 0
    assert gone(child)


async def test_a_child_ends_when_the_context_is_left_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with Child.started("parser", PARSING, log=tmp_path / "log", settings={}) as child:
            raise KeyError
    assert gone(child)


async def test_a_child_that_clings_to_life_is_terminated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailboat.cli.demo.processes._PATIENCE", 0.05)
    arguments = ["http.server", "--bind=127.0.0.1", "0"]
    async with Child.started("clinging", arguments, log=tmp_path / "log", settings={"PYTHONUNBUFFERED": "1"}) as child:
        assert "Serving" in await child.line()
    assert child.process.returncode is not None
    assert child.process.returncode < 0


async def test_a_killed_child_is_gone(tmp_path: Path) -> None:
    async with Child.started("parser", PARSING, log=tmp_path / "log", settings={}) as child:
        await child.kill()
        assert gone(child)
    assert child.process.returncode == -9


async def test_a_failed_child_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with Child.started("lost", ["no.such.module"], log=tmp_path / "log", settings={}) as child:
        with pytest.raises(ChildFailed, match=r"the lost failed \(exit status 1\)[^$]*no\.such"):
            await child.output()
    async with Child.started("mute", PARSING, log=tmp_path / "other", settings={}) as child:
        assert child.process.stdin is not None
        child.process.stdin.close()
        with pytest.raises(ChildFailed, match="mute ended before"):
            await child.line()


async def test_the_users_own_settings_do_not_reach_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("MAILBOAT_SERVER", "http://elsewhere.example")
    program = tmp_path / "shows_its_environment.py"
    program.write_text(
        "import os\nprint(sorted(name for name in os.environ if name.startswith(('MAILBOAT', 'DO_NOT'))))\n"
    )
    settings = {"MAILBOAT_API_KEY": "k", "PYTHONPATH": str(tmp_path)}
    async with Child.started("shown", [program.stem], log=tmp_path / "log", settings=settings) as child:
        assert "['MAILBOAT_API_KEY']" in await child.output()
