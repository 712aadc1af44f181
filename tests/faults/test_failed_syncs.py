"""A sync that fails is never tried again on the same file: what it was to keep is written anew."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mailboat.agent.store import LIVE, WAITING
from mailboat.protocol.segment import SealReason
from testkit.disk import Disk, Unsynced, failure
from testkit.recording import OTHER_BOOT, Rig, only, read_session, recovered


class Syncing(Disk):
    """Refuses to sync files of some names, for as long as it is told to; `synced` are the calls that it took."""

    def __init__(self) -> None:
        super().__init__(real=Unsynced())
        self.refused: set[str] = set()
        self.by_number: dict[int, str] = {}
        self.synced: list[str] = []
        self.failed: list[str] = []

    def create(self, path: Path) -> int:
        fd: int = self._call("create", self._real.create, (path,))
        self.by_number[fd] = path.name
        return fd

    def open(self, path: Path) -> int:
        fd: int = self._call("open", self._real.open, (path,))
        self.by_number[fd] = path.name
        return fd

    def sync(self, fd: int) -> None:
        name = self.by_number[fd]
        if name in self.refused:
            self.failed.append(name)
            raise failure(errno.EIO)
        self.synced.append(name)


@pytest.fixture
def disk() -> Syncing:
    return Syncing()


@pytest.fixture
def rig(tmp_path: Path, disk: Syncing) -> Rig:
    return Rig(tmp_path / "store", files=disk.files)


def test_the_segment_is_abandoned_and_its_records_are_written_again(rig: Rig, disk: Syncing) -> None:
    rig.recorder.feature("safe")
    assert rig.flush(durable=True)
    for name in ("a", "b"):
        rig.recorder.feature(name)
        assert rig.flush()
    disk.refused = {"000000.zst"}
    assert rig.flush(durable=True), "another file took it"
    assert disk.failed == ["000000.zst"]
    rig.recorder.feature("c")
    assert rig.flush(durable=True)
    assert disk.failed == ["000000.zst"], "it was tried again"
    disk.refused = set()
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.gaps) == (["safe", "a", "b", "c"], [])
    assert story.reasons == [SealReason.ABANDONED, SealReason.STOPPED]


def test_a_segment_of_which_nothing_was_synced_goes_altogether(rig: Rig, disk: Syncing) -> None:
    rig.recorder.feature("a")
    disk.refused = {"000000.zst"}
    assert rig.flush(durable=True)
    assert not (rig.store.folder / LIVE / rig.id / "000000.zst").exists()
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.reasons) == (["a"], [SealReason.STOPPED])


def test_a_journal_whose_sync_failed_vouches_for_nothing_more(rig: Rig, disk: Syncing, tmp_path: Path) -> None:
    """What was recorded is made durable as blocks from then on."""
    disk.refused = {"journal"}
    rig.recorder.feature("a")
    rig.step(6.0)
    assert disk.failed == ["journal"]
    assert rig.journal.distrusted
    disk.refused = set()
    rig.recorder.feature("b")
    rig.step(6.0)
    assert "journal" not in disk.synced
    assert [state.records for state in rig.writer.states] == [2], "synced in the segment"
    rig.let_go()
    assert only(recovered(tmp_path / "store", OTHER_BOOT)).names == ["a", "b"]


def test_while_no_file_can_be_synced_nothing_is_promised_and_nothing_lost(rig: Rig, disk: Syncing) -> None:
    disk.refused = {"journal", *(f"{at:06d}.zst{end}" for at in range(40) for end in ("", ".part"))}
    told = []
    for number in range(12):
        told.append(f"r{number}")
        rig.recorder.feature(told[-1])
        assert not rig.flush(durable=True, seconds=0.6)
    assert rig.writer.trouble
    assert [state.size for state in rig.writer.states] in ([], [0])
    assert len(list((rig.store.folder / LIVE / rig.id).glob("*.part"))) == 0
    disk.refused = set()
    rig.step(1.5)
    assert rig.flush(durable=True)
    assert rig.writer.trouble == ""
    assert rig.end()
    assert read_session(rig.store.folder / WAITING / rig.id).names == told
