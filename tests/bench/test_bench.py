"""The benchmarks work, at sizes at which their figures mean nothing, and write the JSON that they document.

They are run as `make bench` runs them, from the repository; what they measure is the installed mailboat.
"""

import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "hot_path": ["--calls", "2500", "--repetitions", "2"],
    "whole_path": ["--calls", "1000", "--repetitions", "1"],
    "footprint": ["--size", "300000", "--sessions", "5", "--repetitions", "1"],
    "upload": ["--size", "300000", "--repetitions", "1"],
    "sealing": ["--calls", "500", "--repetitions", "1"],
    "cuts": ["--size", "2500000", "--repetitions", "1"],
    "takeover": ["--calls", "100", "--repetitions", "1"],
    "backlog": ["--sessions", "20", "--repetitions", "1"],
    "negotiating": ["--sessions", "100", "--repetitions", "1"],
    "ingesting": ["--sessions", "1", "--repetitions", "1"],
}
ROWS = {
    "hot_path": ["P1", "P1b", "P1s", "P1bs"],
    "whole_path": ["P2", "P2e", "P2d", "P2dh", "P2b", "P2be", "P2bd", "P2bdh"],
    "footprint": ["P6", "P6w", "P7s", "P6u", "P7", "P8"],
    "upload": ["P3", "P3p", "P3b"],
    "sealing": ["SEAL", "OPEN"],
    "cuts": ["P5", "P5b"],
    "takeover": ["P5t", "P5tw"],
    "backlog": ["P4"],
    "negotiating": ["P9"],
    "ingesting": ["P10"],
}
SPREAD = {"median": float, "low": float, "high": float, "values": list}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110)


def check_spread(spread: dict[str, Any], repetitions: int) -> None:
    assert {name: type(value) for name, value in spread.items()} == SPREAD
    assert len(spread["values"]) == repetitions
    assert spread["low"] <= spread["median"] <= spread["high"]


def check_row(row: dict[str, Any], repetitions: int) -> None:
    contenders = {each["name"]: each for each in row["contenders"]}
    reference, subject = contenders[row["reference"]], contenders[row["subject"]]
    assert reference["ratio"] is None
    assert reference["cpu_ratio"] is None
    for each in contenders.values():
        assert set(each) == {"name", "wall", "cpu", "parts", "ratio", "cpu_ratio"}
        assert set(each["parts"]) in (set(), {"client", "server"}, {"server", "decoder"})
        for spread in (each["wall"], each["cpu"], *each["parts"].values()):
            check_spread(spread, repetitions)
        if each["parts"]:
            both = [spread["values"][0] for spread in each["parts"].values()]
            assert each["cpu"]["values"][0] == pytest.approx(sum(both))
    pairs = list(zip(subject["wall"]["values"], reference["wall"]["values"], strict=True))
    compared = {"cost": operator.truediv, "speed": lambda ours, theirs: theirs / ours, "extra": operator.sub}
    ratios = [compared[row["sense"]](ours, theirs) for ours, theirs in pairs]
    assert subject["ratio"]["values"] == pytest.approx(ratios)
    if row["budget"] is not None:
        median, limit = subject[row["budget"]["of"]]["median"], row["budget"]["limit"]
        assert row["budget"]["met"] == (median >= limit if row["budget"]["sense"] == "speed" else median <= limit)
    assert all(set(peer) == {"name", "reason"} for peer in row["absent"])


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_works_and_writes_what_it_documents(name: str, tmp_path: Path) -> None:
    output = tmp_path / "made" / "result.json"
    done = run("-m", "bench", name, *TINY[name], "--output", str(output), "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert set(result) == {"format", "bench", "about", "begun", "machine", "versions", "settings", "rows"}
    assert (result["format"], result["bench"]) == (1, name)
    assert {"python", "msgpack", "aiohttp"} <= set(result["versions"])
    beside_peers = [row["id"] for row in result["rows"]]  # such as "P1 PostHog", where that is installed
    assert [row for row in beside_peers if " " not in row] == ROWS[name]
    for row in result["rows"]:
        check_row(row, result["settings"]["repetitions"])
        assert row["about"] in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mailboat-bench-")] == []


def test_without_rich_the_table_is_plain(tmp_path: Path) -> None:
    arguments = ["hot_path", "--calls", "100", "--repetitions", "1", "--output", str(tmp_path / "result.json")]
    hide = "import sys; sys.modules['rich'] = sys.modules['rich.console'] = sys.modules['rich.table'] = None"
    done = run("-c", f"{hide}\nfrom bench.__main__ import main\nmain({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert "agent.feature" in done.stdout
    assert "│" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing"], "there is no measurement 'nothing', there are: hot_path, whole_path"),
        (["--repetitions", "0"], "--repetitions 0: expected a number above zero"),
        (["--output", "x.json"], "--output names one file"),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_reason(arguments: list[str], complaint: str) -> None:
    done = run("-m", "bench", *arguments)
    assert done.returncode != 0
    assert complaint in done.stderr
