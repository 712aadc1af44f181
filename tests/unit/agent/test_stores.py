"""The stores that one sender serves: one sender for all, each session's end in its own store's account."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailboat.agent.files import OsFileSystem, Place
from mailboat.agent.ledger import ACCEPTED, DECLINED, QUARANTINED, Ending
from mailboat.agent.store import QUARANTINED as ASIDE
from mailboat.agent.store import SENT, WAITING, Store
from mailboat.agent.stores import OWN, Stores
from testkit.disk import Unsynced, failure
from testkit.recording import Rig, Time

SOME_ID = "018f0000-0000-7000-8000-000000000001"


class Files(Unsynced):
    """Files that refuse whatever is done in the folders of these applications."""

    refused: frozenset[str] = frozenset()

    def names(self, folder: Place) -> Sequence[str]:
        if self.refused & set(Path(folder).parts):
            raise failure(errno.EACCES)
        return super().names(folder)


@pytest.fixture
def time() -> Time:
    return Time()


def waits(root: Path, time: Time, application: str, *, records: int = 2) -> str:
    """The id of a session of that application, which waits."""
    rig = Rig(root / "made", files=Unsynced(), time=time)
    for _ in range(records):
        rig.recorder.feature("a")
    assert rig.end()
    time.pass_seconds(1.0)
    store = store_of(root, application)
    store.open()
    store.files.rename(rig.store.folder / WAITING / rig.id, store.folder / WAITING / rig.id)
    return rig.id


def store_of(root: Path, application: str, files: OsFileSystem | None = None) -> Store:
    return Store(files or Unsynced(), root / "root", "product", application)


def everyones(root: Path, files: OsFileSystem | None = None, application: str = "own") -> Stores:
    own = store_of(root, application, files)
    own.open()
    return Stores(own, everyones=True)


def found(stores: Stores) -> set[str]:
    return {each.summary.session_id for each in stores.look().waiting}


def test_one_that_sends_for_its_own_application_sees_no_other(tmp_path: Path, time: Time) -> None:
    mine, _ = waits(tmp_path, time, "own"), waits(tmp_path, time, "other")
    stores = Stores(store_of(tmp_path, "own"))
    assert found(stores) == {mine}, "before it sends, too"
    assert stores.become_sender(lambda: SOME_ID)
    assert [store.folder.name for store in stores.served] == ["own"]
    assert found(stores) == {mine}
    assert {owner: ledger.store for owner, ledger in stores.ledgers.items()} == {OWN: SOME_ID}
    assert store_of(tmp_path, "other").become_sender()


def test_each_end_is_in_the_account_of_its_own_store(tmp_path: Path, time: Time) -> None:
    mine, theirs = waits(tmp_path, time, "own", records=2), waits(tmp_path, time, "other", records=5)
    stores = everyones(tmp_path)
    assert stores.become_sender()
    assert found(stores) == {mine, theirs}
    endings = [Ending(mine, ACCEPTED, "", 2), Ending(theirs, DECLINED, "not now", 5)]
    stores.enter(endings)
    stores.put_away(endings, purge=False)
    own, other = store_of(tmp_path, "own"), store_of(tmp_path, "other")
    accounts = [store.ledger.account(0, {}) for store in (own, other)]
    assert [(each.accepted, each.declined) for each in accounts] == [(2, 0), (0, 5)]
    assert list(other.files.names(other.folder / SENT)) == [theirs]
    said = stores.receipt(theirs)
    assert said is not None
    assert (said.fate, said.reason, said.records) == (DECLINED, "not now", 5)
    assert stores.receipt(SOME_ID) is None
    assert stores.take_back([mine, theirs, SOME_ID]) == [theirs]
    assert found(stores) == {theirs}
    stores.set_aside(Ending(theirs, QUARANTINED, "poison", 5))
    assert list(other.files.names(other.folder / ASIDE)) == [theirs]


def test_there_is_one_sender_for_all_and_the_next_takes_over(tmp_path: Path, time: Time) -> None:
    waits(tmp_path, time, "other")
    first, second = everyones(tmp_path), everyones(tmp_path, application="another")
    assert first.become_sender()
    assert first.become_sender(), "may be asked again"
    assert not second.become_sender()
    assert second.served == []
    first.cease_sending()
    assert second.become_sender()
    assert {store.folder.name for store in second.served} == {"own", "other", "another"}


def test_an_application_that_sends_for_itself_is_left_to_it_until_it_is_gone(tmp_path: Path, time: Time) -> None:
    theirs = waits(tmp_path, time, "other")
    itself = store_of(tmp_path, "other")
    assert itself.become_sender()
    stores = everyones(tmp_path)
    assert stores.become_sender()
    assert found(stores) == set()
    itself.cease_sending()
    assert stores.become_sender()
    assert found(stores) == {theirs}


def test_one_that_records_only_for_now_serves_the_others(tmp_path: Path, time: Time) -> None:
    """Its own store has a sender already: another process of the same application."""
    theirs = waits(tmp_path, time, "other")
    stores = everyones(tmp_path)
    assert store_of(tmp_path, "own").become_sender()
    assert stores.become_sender()
    assert [store.folder.name for store in stores.served] == ["other"]
    assert found(stores) == {theirs}


def test_what_is_no_store_is_passed_over(tmp_path: Path, time: Time) -> None:
    waits(tmp_path, time, "other")
    product = store_of(tmp_path, "own").folder.parent
    (product / "notes").mkdir()
    (product / "file").write_text("")
    stores = everyones(tmp_path)
    assert stores.become_sender()
    assert {store.folder.name for store in stores.served} == {"own", "other"}
    assert [path.name for path in (product / "notes").iterdir()] == []


def test_a_store_that_cannot_be_read_stops_no_other(tmp_path: Path, time: Time) -> None:
    mine, theirs = waits(tmp_path, time, "own"), waits(tmp_path, time, "other")
    third = waits(tmp_path, time, "third")
    files = Files()
    files.refused = frozenset({"third"})
    stores = everyones(tmp_path, files)
    assert stores.become_sender()
    assert found(stores) == {mine, theirs}
    files.refused = frozenset({"other"})
    assert stores.become_sender()
    assert found(stores) == {mine, third}, "it is served, and cannot be looked at just now"
    files.refused = frozenset()
    assert found(stores) == {mine, theirs, third}


def test_that_the_own_store_cannot_be_read_is_told(tmp_path: Path, time: Time) -> None:
    waits(tmp_path, time, "own")
    files = Files()
    stores = everyones(tmp_path, files)
    assert stores.become_sender()
    files.refused = frozenset({WAITING})
    with pytest.raises(OSError, match="Permission denied"):
        stores.look()
