"""ARCHITECTURE.md names a test for each invariant: those tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([JSDV]\d+) \|.*\| ([^|]*) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+)`(?: ([a-z]\d)\b)?")


def rows() -> list[tuple[str, str]]:
    return ROW.findall((ROOT / "ARCHITECTURE.md").read_text())


def test_there_are_invariants() -> None:
    names = [name for name, _ in rows()]
    assert len(names) == len(set(names)) > 15


@pytest.mark.parametrize(("invariant", "tests"), rows(), ids=[name for name, _ in rows()])
def test_the_tests_of_an_invariant_are_there(invariant: str, tests: str) -> None:
    named = NAMED.findall(tests)
    assert named, f"{invariant} names no test: {tests}"
    for path, mark in named:
        file = ROOT / "tests" / f"{path}.py"
        assert file.exists(), f"{invariant} names {path}"
        assert not mark or re.search(rf"def test_(\w+_)?{mark}_", file.read_text()), f"{invariant}: no {mark} in {path}"
