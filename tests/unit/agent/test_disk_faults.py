"""A disk that fails, or a process that is killed, at every single call that a session makes of the file system."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailboat.agent.writer import WriterSettings
from testkit.disk import Disk, Killed, Plan, from_then_on, killed_at, once
from testkit.recording import Rig, Story, only, recovered


class Life:
    """A session with emitters, errors, rotation, durable flushes and its end; `told` is what was recorded."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root, self.disk = root, disk
        self.told: list[str] = []
        self.lost = 0

    def live(self) -> None:
        rig = Rig(self.root, files=self.disk.files, settings=WriterSettings(segment_bytes=200))
        rig.recorder.emitter("placed", ["a"])
        self._record(rig, 3)
        rig.flush(seconds=1)
        self._record(rig, 3)
        rig.flush(durable=True, seconds=1)
        self._record(rig, 600)
        rig.step(6)
        rig.recorder.event(self._next(), level=40)
        rig.step(1)
        self._record(rig, 1)
        for _ in range(2):
            rig.flush(seconds=1.1)
        rig.end()
        self.lost = rig.recorder.lost.total()

    def _record(self, rig: Rig, count: int) -> None:
        for _ in range(count):
            rig.recorder.feature(self._next(), text="x" * 100)

    def _next(self) -> str:
        self.told.append(f"r{len(self.told)}")
        return self.told[-1]

    def afterwards(self) -> list[Story]:
        """What the next process finds, on a disk that is well again."""
        self.disk.bury()
        return recovered(self.root)


@pytest.fixture
def calls(tmp_path: Path) -> int:
    """How many calls such a life makes."""
    life = Life(tmp_path / "whole", Disk())
    life.live()
    assert only(life.afterwards()).names == life.told
    return len(life.disk.calls)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_one_failed_call_costs_nothing(tmp_path: Path, calls: int, code: int) -> None:
    for at in range(1, calls + 1):
        life = Life(tmp_path / str(at), Disk(once(at, code)))
        life.live()
        assert [name for story in life.afterwards() for name in story.names] == life.told, at
        assert life.lost == 0
        shutil.rmtree(life.root)


def test_a_disk_that_fails_for_good_forges_and_doubles_nothing(tmp_path: Path, calls: int) -> None:
    for at in range(1, calls + 1):
        life = Life(tmp_path / str(at), Disk(from_then_on(at)))
        life.live()
        names = [name for story in life.afterwards() for name in story.names]
        assert names == [name for name in life.told if name in set(names)], at
        assert len(names) + life.lost >= len(life.told), at
        shutil.rmtree(life.root)


def ended_by(plan: Callable[[int], Plan], at: int, root: Path) -> Life:
    life = Life(root, Disk(plan(at)))
    with pytest.raises(Killed):
        life.live()
    return life


def test_killed_at_every_call_all_that_was_told_is_there_once_and_in_order(tmp_path: Path, calls: int) -> None:
    for at in range(1, calls + 1):
        life = ended_by(killed_at, at, tmp_path / str(at))
        names = [name for story in life.afterwards() for name in story.names]
        assert names == life.told or (names == life.told[:-1] and at < calls), at
        shutil.rmtree(life.root)


def test_a_recovery_that_is_killed_at_every_call_is_done_again(tmp_path: Path, calls: int) -> None:
    life = ended_by(killed_at, calls // 2, tmp_path / "crashed")
    life.disk.bury()
    at, killed = 0, True
    while killed:
        at += 1
        root = tmp_path / str(at)
        shutil.copytree(life.root, root)
        disk = Disk(killed_at(at))
        try:
            recovered(root, files=disk.files)
            killed = False
        except Killed:
            disk.bury()
        assert only(recovered(root)).names == life.told, at
    assert at > 10
