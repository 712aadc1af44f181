"""A random test that fails says how to repeat it, and repeating it draws the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

OUTER_CONFTEST = Path(__file__).parents[1] / "conftest.py"
PROGRAM = """
import random

def test_drawn(seed):
    print("drawn", random.Random(seed).random())
    assert {passes}
"""


def run(folder: Path, *, passes: bool, seed: str | None = None) -> str:
    """Run a made-up test under a copy of our conftest, in its own process, and return what it printed."""
    shutil.copy(OUTER_CONFTEST, folder / "conftest.py")
    (folder / "test_made_up.py").write_text(PROGRAM.format(passes=passes))
    environment = {name: value for name, value in os.environ.items() if name != "MAILBOAT_TEST_SEED"}
    if seed:
        environment["MAILBOAT_TEST_SEED"] = seed
    command = [sys.executable, "-m", "pytest", "--rootdir", str(folder), "-p", "no:cacheprovider", "test_made_up.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if passes else 1), done.stdout + done.stderr
    return done.stdout


def line_with(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_failed_test_prints_the_seed_it_can_be_repeated_with(tmp_path: Path) -> None:
    first = run(tmp_path, passes=False)
    told = line_with(first, "repeat with: MAILBOAT_TEST_SEED=")
    seed = told.split("=")[1].split()[0]
    again = run(tmp_path, passes=False, seed=seed)
    assert line_with(again, "drawn") == line_with(first, "drawn")
    assert line_with(again, "repeat with") == told


def test_a_passed_test_prints_no_seed(tmp_path: Path) -> None:
    assert "MAILBOAT_TEST_SEED" not in run(tmp_path, passes=True)


def test_each_run_draws_anew(tmp_path: Path) -> None:
    assert line_with(run(tmp_path, passes=False), "drawn") != line_with(run(tmp_path, passes=False), "drawn")
