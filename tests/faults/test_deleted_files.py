"""Somebody deletes a running session's files, the folders that lead to them, or the whole store.

It is noticed within a second, the files are made anew, and recording goes on. Nothing is lost that an open file still
gives; the rest is counted.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailboat.agent.ended import legible_records
from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal_place import JOURNAL, JOURNAL_AT
from mailboat.agent.ledger import ACCEPTED, FILE_NAME, Ending
from mailboat.agent.locks import LOCK
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.segment_file import segment_name, segment_paths
from mailboat.agent.store import LIVE, SENDER_LOCK, WAITING, Store
from mailboat.agent.stores import Stores
from mailboat.agent.writer import TICK, WriterSettings
from mailboat.protocol import SealReason, SegmentReader
from mailboat.protocol.errors import StoreError
from mailboat.protocol.limits import MEMORY_FALLBACK, MIB
from mailboat.protocol.records import KIND_COUNTERS
from testkit.disk import EVERY, Disk, Killed, Unsynced, failure, from_then_on, killed_at, once
from testkit.power import PowerDisk
from testkit.recording import BOOT, OTHER_BOOT, Rig, Time, only, read_session, recovered, waiting
from testkit.sealed import KEYS, PRIVATE

Deletion = Callable[[Rig], None]


def folder(rig: Rig) -> Path:
    return rig.store.folder / LIVE / rig.id


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def emptied(path: Path) -> None:
    for each in path.iterdir():
        gone(each)


DELETED: dict[str, Deletion] = {
    "store": lambda rig: gone(rig.store.folder.parent.parent),
    "product": lambda rig: gone(rig.store.folder.parent),
    "application": lambda rig: gone(rig.store.folder),
    "live": lambda rig: gone(rig.store.folder / LIVE),
    "session": lambda rig: gone(folder(rig)),
    "what is in it": lambda rig: emptied(folder(rig)),
    "segment": lambda rig: gone(folder(rig) / segment_name(0)),
    "journal": lambda rig: gone(folder(rig) / JOURNAL),
    "lock": lambda rig: gone(folder(rig) / LOCK),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


AT_LENGTH = ["store", "session", "segment", "journal"]
"""Those for which every single call of a life is tried."""


@pytest.fixture(params=DELETED)
def delete(request: pytest.FixtureRequest) -> Deletion:
    return DELETED[request.param]


def record(rig: Rig, count: int) -> None:
    for _ in range(count):
        rig.recorder.feature(f"r{rig.recorder.recorded}", text="x" * 100)


def names(count: int) -> list[str]:
    return [f"r{number}" for number in range(count)]


def begun(root: Path, disk: Disk | None = None, *, chance: int = 1, segment_bytes: int = MIB) -> Rig:
    """A session of thirty records: synced ones, others that are in a block, and some in the journal alone."""
    files, time = disk.files if disk is not None else Unsynced(), Time(chance=random.Random(chance))
    rig = Rig(root, files=files, time=time, settings=WriterSettings(segment_bytes=segment_bytes))
    for durable in (True, False):
        record(rig, 10)
        assert rig.flush(durable=durable)
    record(rig, 10)
    return rig


def noticed(rig: Rig) -> None:
    """A second has passed, and what rang the writer's bell is done, too."""
    rig.step(TICK)
    rig.step()


def well(rig: Rig) -> bool:
    """Whether the session is where any other process would look for it, and lives."""
    assert not list(Store(OsFileSystem(), rig.store.folder.parent.parent, "product", "application").crashed())
    there = rig.store.files.names(folder(rig))
    return rig.journal.crash_proof and rig.writer.trouble == "" and {JOURNAL, LOCK, segment_name(0)} <= set(there)


# -- nothing is lost ---------------------------------------------------------------------------------------------------


def test_it_is_noticed_within_a_second_and_recording_goes_on(root: Path, delete: Deletion) -> None:
    rig = begun(root)
    before = (folder(rig) / segment_name(0)).read_bytes()
    delete(rig)
    record(rig, 5)
    noticed(rig)
    assert (folder(rig) / segment_name(0)).read_bytes().startswith(before), "what was uploaded of it goes on there"
    noticed(rig)
    assert well(rig)
    record(rig, 5)
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost, story.gaps) == (names(40), {}, [])


def test_a_process_that_is_killed_afterwards_has_lost_nothing(root: Path, delete: Deletion) -> None:
    rig = begun(root)
    delete(rig)
    record(rig, 5)
    noticed(rig)
    record(rig, 5)
    rig.let_go()
    story = only(recovered(root))
    assert (story.names, story.lost, story.reasons) == (names(40), {}, [SealReason.CRASHED])


def test_a_durable_flush_promises_nothing_of_what_nobody_will_find(root: Path, delete: Deletion) -> None:
    rig = begun(root)
    delete(rig)
    record(rig, 5)
    assert rig.flush(durable=True)
    rig.let_go()
    assert only(recovered(root)).names == names(35)


def test_what_it_promises_then_survives_the_machine(tmp_path: Path) -> None:
    for seed in range(30):
        chance = random.Random(seed)
        power = PowerDisk(tmp_path / f"disk-{seed}", chance)
        rig = Rig(power.root / "store", files=power)
        record(rig, 20)
        assert rig.flush(durable=True)
        power.remove_tree(chance.choice([power.root / "store", rig.store.folder, folder(rig)]))
        record(rig, 20)
        assert rig.flush(durable=True)
        power.lose_power(tmp_path / f"after-{seed}")
        rig.let_go()
        story = only(recovered(tmp_path / f"after-{seed}" / "store", boot=OTHER_BOOT))
        assert story.names == names(40), seed


def test_at_the_end(root: Path, delete: Deletion) -> None:
    rig = begun(root)
    delete(rig)
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost, story.reasons) == (names(30), {}, [SealReason.STOPPED])


def test_between_the_seal_and_the_move(root: Path) -> None:
    """The folder is deleted just before it is moved: it is made anew with the seal in it."""
    disk = Disk(real=Unsynced())
    rig = begun(root, disk)
    moves: list[int] = []

    def plan(number: int, name: str) -> None:
        if name == "rename" and not moves:
            moves.append(number)
            shutil.rmtree(root)

    disk.plan = plan
    assert rig.end()
    assert moves
    story = only(waiting(rig.store))
    assert (story.names, story.lost, story.reasons) == (names(30), {}, [SealReason.STOPPED])


def test_just_before_another_segment_follows(root: Path) -> None:
    """Once it is closed, nothing of it could be had any more."""
    rig = begun(root, segment_bytes=100)
    states = rig.segments.states
    gone(folder(rig) / segment_name(len(segment_paths(rig.store.files, folder(rig))) - 1))
    rig.flush()
    assert len(rig.segments.states) > len(states)
    assert rig.end()
    assert only(waiting(rig.store)).names == names(30)


def test_again_and_again(root: Path) -> None:
    rig, draw = begun(root), random.Random(1)
    for _ in range(40):
        DELETED[draw.choice([*DELETED])](rig)
        record(rig, 100)
        noticed(rig)
    count = rig.recorder.recorded
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost) == (names(count), {})


def test_a_burst_goes_on_over_it(root: Path) -> None:
    """The journal has grown, and halves of the deleted file wait to be written."""
    rig = Rig(root, files=Unsynced())
    record(rig, 20_000)
    assert len(rig.journal.halves) > 3
    DELETED["store"](rig)
    record(rig, 20_000)
    noticed(rig)
    record(rig, 100)
    noticed(rig)
    assert well(rig)
    rig.let_go()
    story = only(recovered(root))
    assert (story.names, story.lost) == (names(40_100), {})


def test_a_journal_without_a_file_has_none_to_lose(root: Path) -> None:
    rig = begun(root)
    for _ in range(2):
        rig.recorder.detach()
        record(rig, 5)
    assert rig.end()
    assert only(waiting(rig.store)).names == names(40)


def test_a_sealed_session(root: Path) -> None:
    """Its journal is elsewhere, and only a note in its folder says where."""
    rig = Rig(root, files=Unsynced(), seal_to=PRIVATE.public)
    call = rig.recorder.emitter("declared", ("first",))
    call(1)
    assert rig.flush(durable=True)
    for deleted in (folder(rig), folder(rig) / JOURNAL_AT, root / "memory"):
        gone(deleted)
        call(2)
        noticed(rig)
        noticed(rig)
        assert rig.journal.crash_proof
        call(3)
    rig.let_go()
    story = recovered_sealed(root)
    assert story == [{"first": number} for number in (1, 2, 3, 2, 3, 2, 3)]


def recovered_sealed(root: Path) -> list[object]:
    store = Store(OsFileSystem(), root, "product", "application")
    (session,) = store.crashed()
    assert bring_to_rest(store, session, BOOT) is None
    paths = segment_paths(store.files, store.folder / WAITING / session.path.name)
    return [record.attributes for path in paths for record in SegmentReader(path.read_bytes(), KEYS.unlock)]


# -- what cannot be had any more is counted ----------------------------------------------------------------------------


def rotated(root: Path, disk: Disk | None = None) -> Rig:
    """A session of sixty records: none in its first segment, ten in each of five others, and ten in its journal."""
    rig = Rig(root, files=disk.files if disk is not None else Unsynced(), settings=WriterSettings(segment_bytes=1))
    rig.recorder.emitter("declared", ("first",))
    for _ in range(5):
        record(rig, 10)
        assert rig.flush(durable=True)
    record(rig, 10)
    return rig


def test_segments_that_had_ended_are_lost_and_counted(root: Path) -> None:
    rig = rotated(root)
    assert [state.records for state in rig.segments.states] == [0, 10, 10, 10, 10, 10]
    size = rig.segments.size
    DELETED["store"](rig)
    noticed(rig)
    assert rig.recorder.lost == {"deleted": 40}
    assert (rig.recorder.recorded, rig.recorder.kept) == (60, 20)
    assert [state.index for state in rig.segments.states] == [5, 6]
    assert rig.segments.size < size
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost) == (names(60)[40:], {"deleted": 40})


def test_only_the_missing_ones_count(root: Path) -> None:
    rig = rotated(root)
    gone(folder(rig) / segment_name(1))
    gone(folder(rig) / segment_name(3))
    assert rig.end()
    story = only(waiting(rig.store))
    assert story.names == [*names(20)[10:], *names(60)[30:]]
    assert story.lost == {"deleted": 20}
    assert rig.recorder.kept == 40


def test_a_recovery_counts_them_once(root: Path) -> None:
    """The process has told its journal of them, and their numbers are missing."""
    rig = rotated(root)
    DELETED["session"](rig)
    noticed(rig)
    rig.let_go()
    story = only(recovered(root))
    assert (story.names, story.lost) == (names(60)[40:], {"deleted": 40})


def test_what_nobody_had_noticed_is_counted_by_the_recovery(root: Path) -> None:
    rig = rotated(root)
    gone(folder(rig) / segment_name(1))
    rig.let_go()
    story = only(recovered(root))
    assert story.lost == {"segment_damaged": 10}
    assert len(story.names) == 50


@pytest.mark.parametrize("how", ["unreadable", "overwritten", "cut"])
def test_a_segment_that_cannot_be_read_back_is_lost_and_another_one_follows(root: Path, how: str) -> None:
    disk = Disk(failing=EVERY, real=Unsynced())
    rig = begun(root, disk)
    path = folder(rig) / segment_name(0)
    if how == "overwritten":
        path.write_bytes(bytes(path.stat().st_size))
    elif how == "cut":
        path.write_bytes(b"")
    DELETED["segment"](rig)
    if how == "unreadable":
        disk.plan = lambda _, name: failure(errno.EIO) if name == "read_open" else None
    noticed(rig)
    assert rig.recorder.lost == {"deleted": 20}
    assert rig.recorder.kept == 10
    assert not (folder(rig) / segment_name(0)).exists()
    record(rig, 5)
    noticed(rig)
    assert rig.writer.trouble == ""
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost) == (names(35)[20:], {"deleted": 20})


def test_a_segment_that_was_abandoned_before(root: Path) -> None:
    disk = Disk(real=Unsynced())
    rig = begun(root, disk)
    disk.plan = lambda number, name: failure(errno.EIO) if name == "sync" and number < calls + 3 else None
    calls = len(disk.calls)
    assert rig.flush(durable=True)
    assert [state.index for state in rig.segments.states] == [0, 1]
    gone(folder(rig) / segment_name(0))
    noticed(rig)
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost) == (names(30)[10:], {"deleted": 10})


# -- where it cannot be made anew --------------------------------------------------------------------------------------


def test_meanwhile_memory_is_bounded_and_all_is_there_afterwards(root: Path) -> None:
    rig = begun(root)
    DELETED["store"](rig)
    root.write_text("a file")
    noticed(rig)
    assert str(root) in rig.writer.trouble
    assert not rig.journal.crash_proof
    size = rig.segments.size
    for _ in range(3):
        record(rig, 1000)
        assert not rig.flush(durable=True, seconds=TICK)
    assert rig.segments.size == size, "nothing is written to what nobody will find"
    root.unlink()
    noticed(rig)
    noticed(rig)
    assert well(rig)
    assert rig.recorder.lost == {}
    rig.let_go()
    assert only(recovered(root)).names == names(3030)


def test_beyond_that_records_are_dropped_and_counted(root: Path) -> None:
    rig = begun(root)
    DELETED["store"](rig)
    root.write_text("a file")
    noticed(rig)
    record(rig, 3 * MEMORY_FALLBACK // 100)
    for _ in range(1000):
        rig.recorder.feature("no room")
    lost, kept = rig.recorder.lost["journal_full"], rig.recorder.kept
    assert lost >= 1000
    assert sum(half.size for half in rig.journal.halves) <= MEMORY_FALLBACK
    root.unlink()
    noticed(rig)
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost) == (names(kept), {"journal_full": lost})


def test_a_session_that_ends_so_is_lost_as_a_whole_and_counted(root: Path) -> None:
    rig = rotated(root)
    DELETED["store"](rig)
    root.write_text("a file")
    record(rig, 5)
    assert not rig.end()
    assert str(root) in rig.writer.trouble
    assert rig.recorder.lost == {"deleted": 50, "journal_full": 15}
    assert (rig.recorder.recorded, rig.recorder.kept) == (65, 0)
    assert rig.recorder.kept_counts[:KIND_COUNTERS] == [0] * KIND_COUNTERS


def test_what_is_there_after_all_is_left_to_a_later_process(root: Path) -> None:
    disk = Disk(real=Unsynced())
    rig = rotated(root, disk)
    gone(folder(rig) / LOCK)
    gone(folder(rig) / segment_name(2))
    disk.plan = lambda _, name: failure(errno.ENOSPC) if name == "create" else None
    assert not rig.end()
    assert rig.recorder.lost == {"deleted": 10}
    assert rig.recorder.kept == 50
    disk.bury()
    story = only(recovered(root))
    assert (story.names, story.lost) == ([*names(10), *names(60)[20:]], {"segment_damaged": 10})


def test_a_disk_that_is_full_is_tried_again_once_a_second(root: Path) -> None:
    disk = Disk(real=Unsynced())
    rig = begun(root, disk)
    DELETED["session"](rig)
    disk.plan = lambda _, name: failure(errno.ENOSPC) if name == "append" else None
    noticed(rig)
    assert "No space left" in rig.writer.trouble
    tries = disk.calls.count("append")
    rig.step()
    assert not rig.flush()
    assert disk.calls.count("append") == tries, "each try reads and writes all of it"
    assert rig.store.files.names(folder(rig)) == [JOURNAL, LOCK], "and leaves nothing"
    noticed(rig)
    assert disk.calls.count("append") == tries + 1
    disk.plan = lambda _number, _name: None
    noticed(rig)
    noticed(rig)
    assert well(rig)
    assert rig.end()
    assert only(waiting(rig.store)).names == names(30)


def test_where_it_cannot_be_told_it_is_taken_to_be_there(root: Path) -> None:
    disk = Disk(real=Unsynced(), failing=EVERY)
    rig = begun(root, disk)
    disk.plan = lambda _, name: failure(errno.EACCES) if name == "same_file" else None
    rig.step(TICK)
    assert "Permission denied" in rig.writer.trouble
    assert rig.journal.crash_proof
    assert rig.flush()
    disk.plan = lambda _number, _name: None
    noticed(rig)
    assert rig.writer.trouble == ""
    assert rig.end()
    assert only(waiting(rig.store)).names == names(30)


# -- faults and kills --------------------------------------------------------------------------------------------------


class Life:
    """A session whose files are deleted in the middle; `told` is how many records it was given."""

    def __init__(self, root: Path, delete: Deletion) -> None:
        self.root = root
        self.disk = disk = Disk(real=Unsynced(), failing=EVERY)
        self.rig = begun(root, disk)
        delete(self.rig)
        self.begun = len(disk.calls)
        self.anew = False
        """Whether enough time has passed for everything to be made anew."""

    def live(self) -> None:
        for _ in range(4):
            record(self.rig, 5)
            noticed(self.rig)
        self.anew = True
        for _ in range(3):
            record(self.rig, 5)
            self.rig.flush(durable=True, seconds=TICK)
        self.rig.end()

    def noticed_before(self, at: int) -> bool:
        """Whether the session has seen that something was deleted, before that call."""
        return any(call != "same_file" for call in self.disk.calls[self.begun : self.begun + at - 1])

    def afterwards(self) -> tuple[list[str], int]:
        """The names of the records that the next process finds, and how many it counts as lost or illegible."""
        self.disk.bury()
        store = Store(Unsynced(), self.root, "product", "application")
        store.open()
        for session in store.crashed():
            bring_to_rest(store, session, BOOT)
        found = store.look()
        stories = [read_session(each.path) for each in found.waiting]
        illegible = sum(legible_records(store.files, store.folder / WAITING / each) for each in found.unreadable)
        return [name for story in stories for name in story.names], illegible


def calls_of(root: Path, delete: Deletion) -> int:
    """How many calls such a life makes once its files are deleted."""
    life = Life(root, delete)
    life.live()
    assert life.afterwards() == (names(65), 0)
    return len(life.disk.calls) - life.begun


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("delete", AT_LENGTH, indirect=True)
def test_one_failed_call_costs_no_more_than_what_it_was_to_read(tmp_path: Path, delete: Deletion, code: int) -> None:
    for at in range(1, calls_of(tmp_path / "whole", delete) + 1):
        life = Life(tmp_path / str(at), delete)
        life.disk.plan = once(life.begun + at, code)
        life.live()
        lost = 20 if life.disk.calls[life.begun + at - 1] == "read_open" else 0
        assert life.rig.recorder.lost.total() == lost, at
        assert life.afterwards() == (names(65)[lost:], 0), at
        shutil.rmtree(life.root)


@pytest.mark.parametrize("delete", AT_LENGTH, indirect=True)
def test_a_disk_that_fails_for_good_forges_and_doubles_nothing_and_each_loss_is_counted(
    tmp_path: Path, delete: Deletion
) -> None:
    for at in range(1, calls_of(tmp_path / "whole", delete) + 1):
        life = Life(tmp_path / str(at), delete)
        life.disk.plan = from_then_on(life.begun + at, errno.EIO)
        life.live()
        found, illegible = life.afterwards()
        assert found == [name for name in names(65) if name in set(found)], at
        assert not life.noticed_before(at) or len(found) + illegible + life.rig.recorder.lost.total() >= 65, at
        shutil.rmtree(life.root)


@pytest.mark.parametrize("delete", AT_LENGTH, indirect=True)
def test_killed_at_every_call_nothing_is_forged_or_doubled(tmp_path: Path, delete: Deletion) -> None:
    """What was in deleted files alone dies with the process; once they are made anew, nothing does."""
    anew = 0
    for at in range(1, calls_of(tmp_path / "whole", delete) + 1):
        life = Life(tmp_path / str(at), delete)
        life.disk.plan = killed_at(life.begun + at)
        with pytest.raises(Killed):
            life.live()
        anew += life.anew
        found, _ = life.afterwards()
        assert found == [name for name in names(65) if name in set(found)], at
        assert not life.anew or found == names(life.rig.recorder.recorded), at
        shutil.rmtree(life.root)
    assert anew > 10


# -- others on the same store ------------------------------------------------------------------------------------------


def test_someone_else_has_made_the_store_anew_before(root: Path) -> None:
    rig = begun(root)
    DELETED["store"](rig)
    other = begun(root, chance=2)
    noticed(rig)
    noticed(rig)
    assert well(rig)
    assert well(other)
    assert {rig.end(), other.end()} == {True}
    assert {story.session_id: story.names for story in waiting(rig.store)} == dict.fromkeys(
        (rig.id, other.id), names(30)
    )


def test_a_recoverer_that_has_found_the_empty_folder_is_waited_for(root: Path) -> None:
    rig = begun(root)
    DELETED["session"](rig)
    rig.store.files.make_folder(folder(rig))
    other = Store(OsFileSystem(), root, "product", "application")
    (taken,) = other.crashed()
    noticed(rig)
    assert "another process" in rig.writer.trouble
    other.files.remove_tree(taken.path)
    other.files.close(taken.lock_fd)
    noticed(rig)
    noticed(rig)
    assert well(rig)
    assert rig.end()
    assert only(waiting(rig.store)).names == names(30)


def test_a_lock_that_was_deleted_while_it_was_taken_is_no_lock(root: Path) -> None:
    rig = begun(root)
    DELETED["session"](rig)
    rig.store.files.make_folder(folder(rig))

    class Swept(Unsynced):
        """Another process sweeps the folder away just after the lock file was opened."""

        def lock(self, fd: int) -> bool:
            shutil.rmtree(folder(rig))
            return super().lock(fd)

    rig.store.files = Swept()
    with pytest.raises(StoreError, match="another process"):
        rig.store.hold_again(rig.segments.session)
    rig.store.files = Unsynced()
    noticed(rig)
    assert rig.end()
    assert only(waiting(rig.store)).names == names(30)


def sender(root: Path) -> Store:
    store = Store(Unsynced(), root, "product", "application")
    store.open()
    assert store.become_sender()
    store.ledger.name("the store")
    return store


def test_the_senders_place_is_taken_anew_and_the_account_goes_on(root: Path) -> None:
    store = sender(root)
    store.ledger.add([Ending("one", ACCEPTED, "", 7)])
    shutil.rmtree(root)
    store.open()
    assert store.become_sender()
    assert store.become_sender()
    assert Store(Unsynced(), root, "product", "application").become_sender() is False
    assert store.ledger.account(0, {}).accepted == 7
    again = Store(Unsynced(), root, "product", "application")
    assert (again.ledger.account(0, {}).accepted, again.ledger.store) == (7, "the store")
    store.cease_sending()


def test_somebody_else_may_have_the_senders_place_by_then(root: Path) -> None:
    store = sender(root)
    store.ledger.add([Ending("one", ACCEPTED, "", 7)])
    shutil.rmtree(root)
    other = sender(root)
    other.ledger.add([Ending("two", ACCEPTED, "", 5)])
    assert not store.become_sender()
    assert not store.sending
    other.cease_sending()
    assert store.become_sender()
    assert store.ledger.account(0, {}).accepted == 5, "it is the other one's account, and under its name"
    store.cease_sending()


def test_an_empty_account_is_not_written_for_that(root: Path) -> None:
    store = Store(Unsynced(), root, "product", "application")
    store.open()
    for _ in range(2):
        assert store.become_sender()
        store.cease_sending()
    assert FILE_NAME not in store.files.names(store.folder)


def test_so_is_the_place_of_who_sends_for_all_applications(root: Path) -> None:
    stores = [Stores(Store(Unsynced(), root, "product", name), everyones=True) for name in ("one", "two")]
    for each in stores:
        each.own.open()
    assert stores[0].become_sender()
    assert not stores[1].become_sender()
    gone(stores[0].own.folder.parent / SENDER_LOCK)
    assert stores[0].become_sender()
    assert not stores[1].become_sender()
    gone(stores[0].own.folder.parent / SENDER_LOCK)
    assert stores[1]._lead()
    assert not stores[0].become_sender()
    for each in stores:
        each.cease_sending()


def test_what_is_told_of_the_running_session_is_what_is_there(root: Path) -> None:
    rig = rotated(root)
    rig.recorder.event("error", level=40)
    assert rig.flush()
    counts = rig.recorder.counts
    gone(folder(rig) / segment_name(1))
    noticed(rig)
    assert rig.recorder.lost == {}, "it had ended: nobody looks after it until there is a reason"
    gone(folder(rig) / LOCK)
    noticed(rig)
    assert rig.recorder.lost == {"deleted": 10}
    assert rig.recorder.kept_counts == [counts[0] - 10, *counts[1:]]
    assert 1 not in [state.index for state in rig.segments.states]
    assert rig.end()
    assert only(waiting(rig.store)).lost == {"deleted": 10}
