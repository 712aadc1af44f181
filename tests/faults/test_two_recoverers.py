"""Processes that take up the same crashed sessions at the same time, or begin one: at every call that one makes of the
file system, the other does all its work. Each session comes to rest once, whole, whoever of them did it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.store import LIVE, NEW, QUARANTINED, WAITING, Store
from mailboat.agent.writer import WriterSettings
from testkit.disk import EVERY, Disk, Unsynced
from testkit.guard import Guarded
from testkit.recording import BOOT, Rig, Time, only, waiting


def crashed(root: Path) -> dict[str, list[str]]:
    """Two sessions whose processes died: what was told, by id."""
    time, told = Time(), dict[str, list[str]]()
    for _ in range(2):
        rig = Rig(root, files=Unsynced(), time=time, settings=WriterSettings(segment_bytes=400))
        names = told[rig.id] = []
        for number in range(30):
            names.append(f"r{number}")
            rig.recorder.feature(names[-1], text="x" * 40)
            if number % 10 == 5:
                rig.flush(durable=True, seconds=1.0)
        rig.let_go()
        time.pass_seconds(1.0)
    return told


def take_up(store: Store) -> None:
    store.sweep()
    for session in store.crashed():
        assert bring_to_rest(store, session, BOOT) is None
    store.look()


def begin_and_end(store: Store) -> None:
    """Another process that starts, too, sweeps, records and ends."""
    rig = Rig(store.folder.parent.parent, files=store.files, time=Time(monotonic=10**15))
    take_up(store)
    rig.recorder.feature("late")
    assert rig.end()


def store_at(root: Path, disk: Disk | None = None) -> Store:
    return Store(disk.files if disk is not None else Guarded(root), root, "product", "application")


def interrupted(root: Path, at: int, other: Callable[[Store], None]) -> Disk:
    """The disk of a process, before whose call number `at` the other comes."""
    busy = False

    def plan(number: int, _: str) -> None:
        nonlocal busy
        if number == at and not busy:
            busy = True
            other(store_at(root))

    return Disk(plan, real=Guarded(root), failing=EVERY)


@pytest.mark.parametrize("other", [take_up, begin_and_end])
def test_another_process_at_every_call_of_a_recovery(tmp_path: Path, other: Callable[[Store], None]) -> None:
    made = tmp_path / "made"
    told = crashed(made)
    at, calls = 0, 1
    while at < calls:
        at += 1
        root = tmp_path / str(at)
        shutil.copytree(made, root)
        disk, store = interrupted(root, at, other), store_at(root)
        take_up(store_at(root, disk))
        calls = len(disk.calls)
        found = {story.session_id: story for story in waiting(store)}
        assert {name: found[name].names for name in told} == told, at
        assert [found[name].gaps for name in told] == [[], []]
        assert len(found) == len(told) + (other is begin_and_end)
        for folder in (NEW, LIVE, QUARANTINED):
            assert list(store.files.names(store.folder / folder)) == [], (at, folder)
        for name in found:
            assert all(path.suffix == ".zst" for path in (store.folder / WAITING / name).iterdir()), at
        shutil.rmtree(root)
    assert calls > 60


def test_another_process_at_every_call_with_which_a_session_begins(tmp_path: Path) -> None:
    """It begins all the same, at once, and is nobody else's while it runs."""
    at, calls = 0, 1
    while at < calls:
        at += 1
        root = tmp_path / str(at)
        disk, store = interrupted(root, at, take_up), store_at(root)
        rig = Rig(root, files=disk.files)
        calls = len(disk.calls)
        assert (rig.trouble, rig.journal.crash_proof) == ("", True), at
        rig.recorder.feature("a")
        take_up(store)
        assert rig.end(), at
        assert only(waiting(store)).names == ["a"], at
    assert calls > 10
