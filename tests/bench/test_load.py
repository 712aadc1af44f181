"""The load run works in small: agents deliver all, reports have all, and the check finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.timeout(180)
def test_all_is_delivered_and_told(tmp_path: Path) -> None:
    output = tmp_path / "made" / "load.json"
    command = [sys.executable, "-m", "bench.load", "--agents", "4", "--sessions", "40", "--output", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(output.read_text())
    assert set(made) == {"format", "bench", "begun", "machine", "versions", "settings", "result"}
    result = made["result"]
    assert (result["agents"], result["sessions"], result["faults"]) == (4, 40, 0)
    assert result["records"] >= 40
    assert 0 < result["memory"]["before"] <= result["memory"]["peak"]
    for kind in ("negotiation", "upload"):
        latency = result["latencies"][kind]
        assert latency["requests"] >= 4
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["longest"]
    assert "| negotiation |" in done.stdout


def test_impossible_numbers_are_refused() -> None:
    command = [sys.executable, "-m", "bench.load", "--agents", "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "multiple of 2" in done.stderr
