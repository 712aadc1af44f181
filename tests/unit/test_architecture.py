"""ARCHITECTURE.md keeps to the code: the tests and the code that it names are there, each module of agent and protocol
is on its map, and its table of files names each file of a store.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mailboat.agent import journal_place, ledger, locks, places, reserve, store, traffic

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROW = re.compile(r"^\| ([A-Z]\d+) \|.*\| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+)`(?: ([a-z]\d)\b)?")
CODE = re.compile(r"`([\w/]+?)(?:\.(\w+))?`")
PARTS = ("agent", "protocol", "protocol/uploads", "server")
MADE_IN_A_STORE = {
    journal_place.JOURNAL,
    journal_place.JOURNAL_AT,
    store.LAST_WORDS,
    store.REASON,
    store.RECEIPT,
    store.SENDER_LOCK,
    ledger.FILE_NAME,
    locks.LOCK,
    places.NAME,
    reserve.FILE_NAME,
    traffic.FILE_NAME,
}


def rows() -> list[tuple[str, str, str]]:
    return ROW.findall(TEXT)


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def on_the_map() -> list[str]:
    first = re.findall(r"^\| ([^|]*) \|", section("Where to look"), re.MULTILINE)
    return [name for cell in first for name in re.findall(r"`([\w/]+)`", cell)]


def modules(name: str) -> list[Path]:
    """The files that a module's short name stands for; it may name its part, too."""
    candidates = [ROOT / f"{name}.py", *(ROOT / part / f"{name}.py" for part in PARTS)]
    return [path for path in candidates if path.exists()]


def test_there_are_invariants() -> None:
    names = [name for name, _, _ in rows()]
    assert len(names) == len(set(names)) == len(re.findall(r"^\| [A-Z]\d+ \|", TEXT, re.MULTILINE))
    assert {name[0] for name in names} == set("JSKFDV")


@pytest.mark.parametrize(("invariant", "tests"), [(name, tests) for name, _, tests in rows()])
def test_the_tests_of_an_invariant_are_there(invariant: str, tests: str) -> None:
    named = NAMED.findall(tests)
    assert named, f"{invariant} names no test: {tests}"
    for path, mark in named:
        file = ROOT / "tests" / f"{path}.py"
        assert file.exists(), f"{invariant} names {path}"
        assert not mark or re.search(rf"def test_(\w+_)?{mark}_", file.read_text()), f"{invariant}: no {mark} in {path}"


@pytest.mark.parametrize(("invariant", "where"), [(name, where) for name, where, _ in rows()])
def test_the_code_of_an_invariant_is_there(invariant: str, where: str) -> None:
    named = CODE.findall(where)
    assert named or re.match(r"V\d", where), f"{invariant} names no code: {where}"
    for module, member in named:
        found = modules(module)
        assert found, f"{invariant} names {module}"
        made = rf"^\s*(?:async )?(?:def|class) {member}\b|^{member}\b.* = "
        assert any(re.search(made, path.read_text(), re.MULTILINE) for path in found if member) or not member, member


@pytest.mark.parametrize("part", ["agent", "protocol"])
def test_each_module_is_on_the_map(part: str) -> None:
    told = {name.rpartition("/")[2] for name in on_the_map()}
    there = {path.stem for path in (ROOT / part).glob("*.py")} - {"__init__"}
    assert sorted(there - told) == []


def test_what_is_on_the_map_is_there() -> None:
    for name in on_the_map():
        assert modules(name) or (ROOT / name).is_dir(), name


def test_each_file_of_a_store_has_a_row() -> None:
    files = " ".join(re.findall(r"^\| ([^|]*) \|", section("Who writes what"), re.MULTILINE))
    named = {name.rpartition("/")[2] for name in re.findall(r"`([^`]+)`", files)}
    assert sorted(MADE_IN_A_STORE - named) == []
