"""A disk that fails, or a process that is killed, at every single call that a session makes of the file system."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailboat.agent.writer import WriterSettings
from testkit.disk import EVERY, SHORT, Disk, Killed, Plan, from_then_on, killed_at, once
from testkit.guard import Guarded
from testkit.lives import Life
from testkit.recording import Rig, only, recovered, waiting

CODES = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, SHORT]


def disk(root: Path, plan: Plan | None = None) -> Disk:
    """One whose every call may fail, the reading ones, too; nothing here asks what survives the machine. Whatever
    fails, nothing is written in `root` by who may not.
    """
    return Disk(plan, real=Guarded(root), failing=EVERY)


@pytest.fixture
def calls(tmp_path: Path) -> int:
    """How many calls such a life makes."""
    life = Life(tmp_path / "whole", disk(tmp_path / "whole"))
    life.live()
    assert only(life.afterwards()).names == life.told
    return len(life.disk.calls)


@pytest.mark.parametrize("code", CODES)
def test_one_failed_call_costs_nothing(tmp_path: Path, calls: int, code: int) -> None:
    for at in range(1, calls + 1):
        life = Life(tmp_path / str(at), disk(tmp_path / str(at), once(at, code)))
        life.live()
        stories = life.afterwards()
        assert [name for story in stories for name in story.names] == life.told, at
        assert [gap for story in stories for gap in story.gaps] == []
        assert life.lost == 0
        shutil.rmtree(life.root)


@pytest.mark.parametrize("code", CODES)
def test_a_disk_that_fails_for_good_forges_and_doubles_nothing(tmp_path: Path, calls: int, code: int) -> None:
    for at in range(1, calls + 1):
        life = Life(tmp_path / str(at), disk(tmp_path / str(at), from_then_on(at, code)))
        life.live()
        names = [name for story in life.afterwards() for name in story.names]
        assert names == [name for name in life.told if name in set(names)], at
        assert len(names) + life.lost >= len(life.told), at
        shutil.rmtree(life.root)


class Ailing:
    """A session on a disk that fails from one call on until it `heals`; its clock is injected."""

    def __init__(self, root: Path, at: int, code: int) -> None:
        self._failing, self.told = from_then_on(at, code), list[str]()
        self.well = False
        self.disk = disk(root, lambda number, name: None if self.well else self._failing(number, name))
        self.rig = Rig(root, files=self.disk.files, settings=WriterSettings(segment_bytes=200))

    def record(self, count: int) -> None:
        for _ in range(count):
            self.told.append(f"r{len(self.told)}")
            self.rig.recorder.feature(self.told[-1], text="x" * 100)

    def suffer(self) -> None:
        for _ in range(4):
            self.record(150)
            self.rig.flush(durable=True, seconds=1.0)
        self.rig.recorder.event("error", level=40)
        self.told.append("error")
        self.rig.step(6.0)
        self.record(3)


@pytest.mark.parametrize("code", CODES)
def test_within_five_seconds_of_the_end_of_a_fault_all_is_well_again(tmp_path: Path, calls: int, code: int) -> None:
    for at in range(1, calls + 1):
        ailing = Ailing(tmp_path / str(at), at, code)
        ailing.suffer()
        ailing.well = True
        rig = ailing.rig
        for _ in range(5):
            rig.step(1.0)
        assert (rig.writer.trouble, rig.recorder.lost, len(rig.writer._full)) == ("", {}, 0), at
        assert rig.journal.crash_proof, at
        assert rig.flush(durable=True), at
        assert rig.end(), at
        assert only(waiting(rig.store)).names == ailing.told, at
        shutil.rmtree(tmp_path / str(at))


def ended_by(plan: Callable[[int], Plan], at: int, root: Path) -> Life:
    life = Life(root, disk(root, plan(at)))
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
        again = disk(root, killed_at(at))
        try:
            recovered(root, files=again.files)
            killed = False
        except Killed:
            again.bury()
        assert only(recovered(root)).names == life.told, at
    assert at > 10
