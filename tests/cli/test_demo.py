"""`mailboat demo`, as a newcomer runs it: once to its end, once interrupted."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mailboat.cli.demo.parsing import Facts, Module, examine_file, standard_library

MARK = "DEMO_OF_THIS_TEST"
PROCESSES = Path("/proc")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """An empty home, a folder for temporary files of its own, and a user's settings that must not matter."""
    folders = {name: tmp_path / name.lower() for name in ("HOME", "TMPDIR")}
    for folder in folders.values():
        folder.mkdir()
    places = {name: str(folder) for name, folder in folders.items()}
    hostile = {"DO_NOT_TRACK": "1", "MAILBOAT_SERVER": "http://127.0.0.1:9", "PYTHONWARNINGS": "error::ResourceWarning"}
    yield {**os.environ, **places, **hostile, MARK: uuid.uuid4().hex}
    assert list(folders["TMPDIR"].iterdir()) == []
    assert list(folders["HOME"].iterdir()) == []


def demo(environment: Mapping[str, str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mailboat.cli", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )


def left_over(environment: Mapping[str, str]) -> list[str]:
    """The processes of that environment which still run, by their command lines."""
    mark = f"{MARK}={environment[MARK]}".encode()
    found = []
    for process in PROCESSES.glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def figures(printed: str) -> dict[str, str]:
    """The rows of the table at the end."""
    table = printed.split("Recorded by the program, and given back by the server\n")[1].splitlines()
    rows = (line.strip().rsplit("  ", 1) for line in table if "  " in line.strip())
    return {name.strip(): value.strip() for name, value in rows}


def number(text: str) -> int:
    return int(text.split(maxsplit=1)[0].replace(",", ""))


@pytest.mark.timeout(240)  # half a minute of work; a machine may be busy with other tests
def test_the_whole_job(environment: Mapping[str, str], tmp_path: Path) -> None:
    with demo(environment, tmp_path) as running:
        printed, complaints = running.communicate(timeout=220)
    assert running.returncode == 0, printed + complaints
    assert complaints == ""
    assert all(line.isascii() and line.isprintable() for line in printed.splitlines())
    found = figures(printed)
    modules = standard_library()
    assert number(found["modules examined"]) == len(modules)
    told = number(found["records, as the program was told"])
    before = number(found["of these told before the kill -9"])
    assert told > before > 1000
    assert number(found["kept across the kill -9"]) == before
    assert number(found["delivered"]) == told
    for nothing in ("missing", "duplicated", "out of order", "never told of"):
        assert found[nothing] == "0"
    assert number(found["in flight at the kill -9, and kept"]) <= 1
    assert found["cuts of the connection during upload"] == "2"
    assert number(found["that did not parse (exceptions)"]) >= sum(map(does_not_parse, modules))


def does_not_parse(module: Module) -> bool:
    """Only of those whose names say that they may not; parsing all again would take as long as the demo."""
    if not {"bad", "data", "tokenizedata"} & set(module.name.replace("_", ".").split(".")):
        return False
    facts: Facts = examine_file(module)
    return facts.fault is not None


@pytest.mark.skipif(not PROCESSES.is_dir(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(
    environment: Mapping[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    with demo(environment, tmp_path) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "examines" in line:
                break
        assert len(left_over(environment)) > 1
        os.killpg(running.pid, number)
        printed, complaints = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "Traceback" not in printed + complaints
    assert left_over(environment) == []
