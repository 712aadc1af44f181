"""The store and its account: moves that were asked for are made once, by whoever sends next, whatever comes between."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mailboat.agent.files import Place
from mailboat.agent.ledger import ACCEPTED, DECLINED, LOST, QUARANTINED, REJECTED, RETURNED, Ending
from mailboat.agent.locks import take_lock
from mailboat.agent.store import LIVE, REASON, RECEIPT, SENDER_LOCK, SENT, WAITING, Store
from testkit.disk import Disk, Unsynced, always, failure, once
from testkit.recording import SECOND, Rig, Time, read_session

ASIDE = "quarantined"


class Stuck(Unsynced):
    """Files whose folders cannot be moved while `error` says why."""

    error: int | None = None

    def rename(self, source: Place, target: Place) -> None:
        if self.error is not None and Path(source).is_dir():
            raise failure(self.error)
        super().rename(source, target)


def store_at(root: Path, files: Disk | Unsynced | None = None) -> Store:
    port = files.files if isinstance(files, Disk) else files or Unsynced()
    return Store(port, root, "product", "application")


def waits(root: Path, time: Time | None = None, *, records: int = 3) -> str:
    """The id of a session that waits."""
    rig = Rig(root, files=Unsynced(), time=time)
    for at in range(records):
        rig.recorder.feature(f"r{at}")
    assert rig.end()
    return rig.id


def place_of(store: Store, session_id: str) -> str:
    (place,) = [
        place
        for place in (LIVE, WAITING, SENT, ASIDE)
        if any(name.startswith(session_id) for name in store.files.names(store.folder / place))
    ]
    return place


def sending(store: Store) -> Store:
    assert store.become_sender()
    return store


# -- the account and the moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "place", "beside"),
    [
        (ACCEPTED, SENT, None),
        (DECLINED, SENT, f"{DECLINED}\n\n"),
        (REJECTED, SENT, f"{REJECTED}\n\n"),
        (QUARANTINED, ASIDE, ""),
        (LOST, ASIDE, ""),
    ],
)
def test_what_was_counted_and_not_moved_the_next_sender_moves(
    tmp_path: Path, fate: str, place: str, beside: str | None
) -> None:
    session = waits(tmp_path)
    first = sending(store_at(tmp_path))
    first.ledger.add([Ending(session, fate, "", 3)])
    first.cease_sending()
    second = sending(store_at(tmp_path))
    assert place_of(second, session) == place
    note = second.folder / place / session / (REASON if place == ASIDE else RECEIPT)
    assert (note.read_text() if note.exists() else None) == beside
    assert second.ledger.account(0, {}).recorded == 3


def test_what_was_to_wait_again_the_next_sender_moves_back(tmp_path: Path) -> None:
    session = waits(tmp_path)
    store = sending(store_at(tmp_path))
    store.finish([Ending(session, DECLINED, "not now", 3)], purge=False)
    said = store.receipt(session)
    assert said is not None
    store.ledger.take_back(said, {})
    store.cease_sending()
    other = sending(store_at(tmp_path))
    assert place_of(other, session) == WAITING
    assert not (other.folder / WAITING / session / RECEIPT).exists()
    assert other.ledger.account(0, {}).declined == 0


@pytest.mark.parametrize("fate", [ACCEPTED, QUARANTINED, RETURNED])
def test_a_move_of_a_session_that_is_nowhere_any_more_asks_for_nothing(tmp_path: Path, fate: str) -> None:
    gone, stays = "018f0000-0000-7000-8000-000000000001", waits(tmp_path)
    store = sending(store_at(tmp_path))
    store.ledger.add([Ending(gone, fate, "", 0)])
    store.cease_sending()
    other = sending(store_at(tmp_path))
    assert place_of(other, stays) == WAITING
    assert not list(other.folder.rglob(gone))


def test_no_name_in_the_ledger_that_is_no_id_is_taken_as_a_path(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.open()
    (store.folder / WAITING / "precious").mkdir()
    store.ledger.add([Ending("precious", ACCEPTED, "", 0), Ending("../../precious", QUARANTINED, "", 0)])
    sending(store_at(tmp_path))
    assert (store.folder / WAITING / "precious").is_dir()
    assert list(store.files.names(store.folder / SENT)) == list(store.files.names(store.folder / ASIDE)) == []


def test_to_finish_nothing_writes_nothing(tmp_path: Path) -> None:
    disk = Disk(real=Unsynced())
    store = store_at(tmp_path, disk)
    store.open()
    sending(store)
    done = len(disk.calls)
    store.finish([], purge=False)
    assert disk.calls[done:] == []


def test_what_was_finished_and_could_not_be_moved_is_moved_next_time_and_counted_once(tmp_path: Path) -> None:
    session, files = waits(tmp_path), Stuck()
    store = sending(store_at(tmp_path, files))
    ending = Ending(session, ACCEPTED, "", 3)
    files.error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.finish([ending], purge=False)
    files.error = None
    assert place_of(store, session) == WAITING
    store.finish([ending], purge=False)
    assert place_of(store, session) == SENT
    assert store.ledger.account(0, {}).accepted == 3


def test_one_that_is_gone_when_it_is_finished_is_counted_all_the_same(tmp_path: Path) -> None:
    """Somebody has deleted it by hand, and the server has it."""
    session = waits(tmp_path)
    store = sending(store_at(tmp_path))
    store.files.remove_tree(store.folder / WAITING / session)
    store.finish([Ending(session, ACCEPTED, "", 3)], purge=False)
    assert store.ledger.account(0, {}).accepted == 3
    assert list(store.files.names(store.folder / SENT)) == []


def test_a_rename_that_finds_nothing_though_it_waits_is_told(tmp_path: Path) -> None:
    """`ENOENT` is "somebody was faster" only where the session is gone."""
    session, files = waits(tmp_path), Stuck()
    store = sending(store_at(tmp_path, files))
    files.error = errno.ENOENT
    with pytest.raises(FileNotFoundError):
        store.finish([Ending(session, ACCEPTED, "", 3)], purge=False)
    assert place_of(store, session) == WAITING


def test_what_stands_where_a_session_is_to_go_makes_room_for_it(tmp_path: Path) -> None:
    """An earlier copy: somebody has put a backup back."""
    session = waits(tmp_path)
    store = sending(store_at(tmp_path))
    old = store.folder / SENT / session
    old.mkdir()
    (old / "000000.zst").write_bytes(b"old")
    store.finish([Ending(session, ACCEPTED, "", 3)], purge=False)
    assert place_of(store, session) == SENT
    assert read_session(old).names == ["r0", "r1", "r2"]


def test_of_one_that_cannot_be_read_whatever_can_be_counts(tmp_path: Path) -> None:
    session = waits(tmp_path, records=4)
    store = sending(store_at(tmp_path))
    path = store.folder / WAITING / session / "000000.zst"
    path.write_bytes(path.read_bytes()[:-20])
    ((unreadable, why),) = store.look().unreadable.items()
    assert unreadable == session
    store.set_aside(Ending(session, LOST, "unreadable", 0, why=why))
    assert store.ledger.account(0, {}).lost == {"unreadable": 4}
    assert (store.folder / ASIDE / session / REASON).read_text() == why


def test_set_aside_again_after_the_disk_refused_counts_once(tmp_path: Path) -> None:
    session, files = waits(tmp_path), Stuck()
    store = sending(store_at(tmp_path, files))
    ending = Ending(session, QUARANTINED, "poison", 3)
    files.error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.set_aside(ending)
    assert place_of(store, session) == WAITING
    files.error = None
    store.set_aside(ending)
    assert place_of(store, session) == ASIDE
    assert store.ledger.account(0, {}).rejected == {QUARANTINED: 3}


# -- the sender ------------------------------------------------------------------------------------------------------


def test_a_sender_that_cannot_complete_the_moves_leaves_the_place_to_another(tmp_path: Path) -> None:
    session = waits(tmp_path)
    store_at(tmp_path).ledger.add([Ending(session, ACCEPTED, "", 3)])
    disk = Disk(always("rename"), real=Unsynced())
    store = store_at(tmp_path, disk)
    with pytest.raises(OSError, match="Input/output"):
        store.become_sender()
    assert (store.sending, disk.descriptors) == (False, set())
    other = sending(store_at(tmp_path))
    assert place_of(other, session) == SENT


def test_a_disk_that_refuses_a_lock_is_told_and_nothing_stays_open(tmp_path: Path) -> None:
    disk = Disk(always("lock", errno.ENOLCK), real=Unsynced())
    store = store_at(tmp_path, disk)
    store.open()
    with pytest.raises(OSError, match="No locks"):
        take_lock(store.files, store.folder / SENDER_LOCK)
    assert disk.descriptors == set()


# -- what became of earlier sessions ---------------------------------------------------------------------------------


def test_a_receipt_that_cannot_be_kept_costs_the_move_nothing(tmp_path: Path) -> None:
    class NoReceipts(Unsynced):
        def create(self, path: Path) -> int:
            if path.name == RECEIPT:
                raise failure(errno.ENOSPC)
            return super().create(path)

    session = waits(tmp_path)
    store = sending(store_at(tmp_path, NoReceipts()))
    store.finish([Ending(session, DECLINED, "not now", 3)], purge=False)
    assert place_of(store, session) == SENT
    said = store.receipt(session)
    assert said is not None
    assert (said.fate, said.records) == (ACCEPTED, 3), "without a receipt it is taken for accepted"


@pytest.mark.parametrize("text", ["", "of course\n", "\xff\xfe\n"])
def test_a_receipt_that_says_nothing_known_says_nothing(tmp_path: Path, text: str) -> None:
    session = waits(tmp_path)
    store = sending(store_at(tmp_path))
    store.finish([Ending(session, DECLINED, "", 3)], purge=False)
    (store.folder / SENT / session / RECEIPT).write_bytes(text.encode("latin-1"))
    said = store.receipt(session)
    assert (said.fate if said is not None else None) == (ACCEPTED if not text else None)


def test_of_what_is_kept_nowhere_nothing_is_told_or_taken_back(tmp_path: Path) -> None:
    still_waits = waits(tmp_path)
    store = sending(store_at(tmp_path))
    for strange in ("../waiting", "", "018f0000-0000-7000-8000-000000000001", still_waits):
        assert store.receipt(strange) is None
        assert not store.take_back(strange)


def test_taken_back_again_after_the_disk_refused_counts_once(tmp_path: Path) -> None:
    session, other, files = waits(tmp_path), waits(tmp_path, Time(2000 * SECOND)), Stuck()
    store = sending(store_at(tmp_path, files))
    store.finish([Ending(each, DECLINED, "", 3) for each in (session, other)], purge=False)
    files.error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.take_back(session)
    assert place_of(store, session) == SENT
    files.error = None
    assert store.take_back(session)
    assert place_of(store, session) == WAITING
    assert store.ledger.account(0, {}).declined == 3, "the other one"


# -- looking ---------------------------------------------------------------------------------------------------------


def test_one_that_has_just_been_moved_by_another_process_is_passed_over(tmp_path: Path) -> None:
    time = Time()
    first = waits(tmp_path, time)
    time.pass_seconds(1)
    second = waits(tmp_path, time)

    class Moved(Unsynced):
        def read_range(self, path: Place, offset: int, length: int) -> bytes:
            if Path(path).parent.name == first:
                self.remove_tree(Path(path).parent)
            return super().read_range(path, offset, length)

    found = store_at(tmp_path, Moved()).look()
    assert [each.summary.session_id for each in found.waiting] == [second]
    assert found.unreadable == {}


def test_folders_above_the_store_that_are_not_ours_need_not_be_synced_and_a_disk_that_fails_is_told(
    tmp_path: Path,
) -> None:
    class NotOurs(Unsynced):
        code = errno.EACCES

        def sync_folder(self, path: Path) -> None:
            if not path.is_relative_to(tmp_path / "root"):
                raise failure(self.code)

    files = NotOurs()
    store = Store(files, tmp_path / "root", "product", "application")
    store.open()
    store.settle(store.folder / LIVE)
    files.code = errno.EIO
    store.settle(store.folder / LIVE)
    other = Store(files, tmp_path / "root", "product", "application")
    with pytest.raises(OSError, match="Input/output"):
        other.settle(store.folder / LIVE)


def test_an_unfinished_removal_is_completed_by_the_next_look(tmp_path: Path) -> None:
    session = waits(tmp_path)
    disk = Disk(once(1), real=Unsynced())
    store = store_at(tmp_path, disk)
    left = store.folder / WAITING / session / "lock"
    left.touch()
    assert [each.summary.session_id for each in store.look().waiting] == [session]
    assert left.exists(), "the disk refused, and nobody minds"
    disk.plan = lambda _number, _name: None
    assert store_at(tmp_path).look().waiting
    assert not left.exists()
