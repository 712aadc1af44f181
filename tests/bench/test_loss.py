"""The loss benchmark works, in its quick form, and finds of the agent what is promised: all arrives, nothing twice."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = ["outage", "kill -9", "slow server", "stop in flush"]
RESULT = {"recorded": int, "delivered": float, "duplicated": float, "worst_call": float, "exit": float}


def installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.timeout(420)
def test_the_agent_loses_nothing_and_who_is_not_installed_is_not_measured(tmp_path: Path) -> None:
    output = tmp_path / "made" / "loss.json"
    absent = [] if installed("aptabase") else ["Aptabase"]
    command = [sys.executable, "-m", "bench.loss", "--quick", "--only", "mailboat", *absent, "--output", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(output.read_text())
    assert set(made) == {"format", "bench", "begun", "machine", "versions", "settings", "contenders"}
    assert list(made["contenders"]) == ["mailboat", *absent]
    measured = made["contenders"]["mailboat"]
    assert list(measured) == SCRIPTS
    for script, result in measured.items():
        assert {name: type(value) for name, value in result.items()} == RESULT
        assert (result["delivered"], result["duplicated"]) == (1.0, 0.0), script
    settings = made["settings"]
    assert measured["outage"]["recorded"] == settings["rate"] * (2 * settings["before"] + settings["outage"])
    assert measured["stop in flush"]["recorded"] == settings["burst"]
    assert measured["kill -9"]["recorded"] >= settings["rate"]
    assert all(made["contenders"][name] is None for name in absent)
    assert "| mailboat" in done.stdout
    assert done.stdout.count("not measured") == len(absent) * (len(SCRIPTS) + 2)


def test_an_event_that_never_came_or_came_twice_is_told(tmp_path: Path) -> None:
    """The measuring itself: an application that sends some events twice and others never, to the collector."""
    program = """
import asyncio, json, sys
from collections import Counter
from pathlib import Path
import bench.loss as loss
from bench.loss_hosts import CONTENDERS, Contender

class Application(loss.Application):
    async def begin(self, *arguments):
        program = (
            "import sys, urllib.request\\n"
            "def send(*numbers):\\n"
            "    body = ','.join(f'{{\\"loss_id\\": {number}}}' for number in numbers)\\n"
            "    urllib.request.urlopen(sys.argv[1], body.encode()).read()\\n"
            "if sys.argv[2] == 'later': sys.exit()\\n"
            "for number in range(10): print(number, 1000 + number)\\n"
            "send(*range(8)); send(0, 1, 2)\\n"
            "print('end')\\n"
        )
        pipe = asyncio.subprocess.PIPE
        kind = "later" if "--later" in arguments else "now"
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, self.line.url, kind, stdin=pipe, stdout=pipe
        )

async def script(app, figures):
    await app.record(10, 0)

loss.Application, loss.SCRIPTS = Application, {"script": script}
figures = loss.Figures(patience=0.5)
result = asyncio.run(loss.measure("Aptabase", "script", figures, Path(sys.argv[1])))
print(result.recorded, result.delivered, result.duplicated, result.worst_call)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110)
    assert done.stdout.split() == ["10", "0.8", "0.3", "1.009e-06"], done.stderr


def test_the_plot_is_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="of the extra `bench`")
    result = {"recorded": 10, "delivered": 0.5, "duplicated": 0.1, "worst_call": 0.001, "exit": 1.0}
    made = {"contenders": {"mailboat": dict.fromkeys(SCRIPTS, result), "Glean": None}}
    program = (
        "import json, pathlib, sys; from bench.loss_plot import draw; "
        "draw(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    path = tmp_path / "loss.svg"
    subprocess.run([sys.executable, "-c", program, json.dumps(made), str(path)], cwd=REPOSITORY, check=True)
    drawn = path.read_text()
    assert all(script in drawn for script in ("outage", "50.0 % (+10.0 %)", "mailboat"))
    assert "Glean" not in drawn
