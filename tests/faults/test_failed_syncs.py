"""A sync that fails is never tried again on the same file: what it was to keep is written anew."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from mailboat.agent.files import OsFileSystem
from mailboat.agent.store import LIVE, WAITING, Store
from mailboat.protocol.records import Level
from mailboat.protocol.segment import SealReason
from testkit.disk import Disk, SyncedAgain, Unsynced, failure, from_then_on
from testkit.power import PowerDisk
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
        if fd in self.failed_syncs:
            raise SyncedAgain(name)
        if name in self.refused:
            self.failed.append(name)
            self.failed_syncs.add(fd)
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


def test_a_disk_that_refuses_an_error_is_left_in_peace_until_it_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    rig = Rig(tmp_path / "store", files=disk.files)
    rig.recorder.feature("before")
    assert rig.flush(durable=True)
    disk.plan = from_then_on(1, errno.EIO)
    rig.recorder.event("failed", level=Level.ERROR)
    begun, steps = rig.time.clocks.now(), 0
    while rig.time.clocks.now() < begun + 60 and steps < 1000:
        rig.step(rig.writer._pause())
        steps += 1
    assert steps <= 62, "the writer did not wait"
    assert rig.writer.trouble
    told = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert told
    assert len(told) == len(set(told)), "the same was told again"
    disk.plan = lambda _number, _name: None
    disk.calls.clear()
    rig.step(rig.writer._pause())
    assert "sync" in disk.calls, "the error was not synced when the disk was back"
    rig.step(rig.writer._pause())
    assert not rig.writer.trouble
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.gaps) == (["before", "failed"], [])


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


@pytest.mark.parametrize("seed", range(10))
def test_a_journal_that_came_late_survives_the_machine_with_its_name(tmp_path: Path, seed: int) -> None:
    """The disk refused it when the session began, and the session's folder was synced without it."""
    power = PowerDisk(tmp_path / "disk", random.Random(seed), written_back=0.0)
    disk = Disk(lambda _, name: failure(errno.ENOSPC) if name == "allocate" and not well else None, real=power)
    well = False
    rig = Rig(tmp_path / "disk" / "store", files=disk.files)
    rig.recorder.feature("a")
    assert rig.flush(durable=True)
    well = True
    for _ in range(2):
        rig.step(1.0)
    assert rig.journal.crash_proof
    rig.recorder.feature("b")
    rig.step(6.0)
    assert rig.writer._synced_at == rig.time.clocks.now()
    power.lose_power(tmp_path / "after")
    assert only(recovered(tmp_path / "after" / "store", OTHER_BOOT)).names == ["a", "b"]


def test_s5_a_segment_is_sealed_and_synced_before_its_session_leaves_and_the_folders_after(
    rig: Rig, disk: Syncing
) -> None:
    """So what waits is whole, whatever the machine has lost of the rest."""
    rig.recorder.feature("a")
    seen: list[str] = []
    placed = disk.files.rename

    def rename(source: Path, target: Path) -> None:
        assert disk.synced[-1] == "000000.zst"
        content = (source / "000000.zst").read_bytes()
        assert len(content) == rig.segments.states[-1].size
        assert rig.segments.states[-1].sealed
        seen.append(f"{source.parent.name} to {target.parent.name}")
        placed(source, target)

    def sync_folder(path: Path) -> None:
        seen.append(path.name)

    disk.rename, disk.sync_folder = rename, sync_folder  # type: ignore[attr-defined] # in front of the port's
    assert rig.end()
    at = seen.index("live to waiting")
    assert seen[at - 1] == rig.id, "the session's own folder before"
    assert seen[at + 1 :] == ["waiting", "live"], "both others after"


def test_s5_a_session_of_which_a_sync_fails_at_its_end_does_not_leave(rig: Rig, disk: Syncing) -> None:
    rig.recorder.feature("a")
    disk.refused = {f"{at:06d}.zst{end}" for at in range(9) for end in ("", ".part")}
    assert not rig.end()
    store = Store(OsFileSystem(), rig.store.folder.parent.parent, "product", "application")
    assert list(store.files.names(store.folder / WAITING)) == []
    assert only(recovered(store.folder.parent.parent)).names == ["a"]
