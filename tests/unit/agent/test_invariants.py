"""The store's invariants, by the numbers of ARCHITECTURE.md.

A crash is a copy of the store at that moment: nobody holds its locks.
"""

from __future__ import annotations

import errno
import random
import shutil
from itertools import count
from pathlib import Path

import pytest

from mailboat.agent.ended import MOST_COUNTS, Descriptions
from mailboat.agent.files import OsFileSystem, Place
from mailboat.agent.journal_place import JOURNAL
from mailboat.agent.ledger import Ending
from mailboat.agent.store import LIVE, QUARANTINED, SENT, WAITING, Store
from mailboat.agent.writer import WriterSettings
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.segment import SealReason
from mailboat.protocol.summary import Info, Status, Summary
from testkit.power import PowerDisk
from testkit.recording import OTHER_BOOT, Rig, only, recovered
from testkit.serverkit import fresh_session_id

_copies = count()


def crash(rig: Rig, tmp_path: Path) -> Path:
    """The store as it stands on disk now, with nobody holding its locks."""
    copy = tmp_path / f"crash-{next(_copies)}"
    shutil.copytree(tmp_path / "store", copy)
    return copy


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "store")


def record(rig: Rig, told: list[str], size: int = 0) -> None:
    told.append(f"record.{len(told)}")
    rig.recorder.feature(told[-1], text="x" * size)


def test_j1_what_was_recorded_is_there_without_any_flush(rig: Rig, tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(100):
        record(rig, told)
    story = only(recovered(crash(rig, tmp_path)))
    assert story.names == told
    assert story.numbers == list(range(100))
    assert story.reasons == [SealReason.CRASHED]


def test_j1_s4_a_crash_after_any_step_keeps_everything_once_and_in_order(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rig = Rig(tmp_path / "store", settings=WriterSettings(segment_bytes=64 * 1024))
    emit = None
    told: list[str] = []
    for _ in range(60):
        match chance.randrange(7):
            case 0 | 1:
                for _ in range(chance.randrange(1, 400)):
                    record(rig, told, chance.randrange(300))
            case 2:
                record(rig, told, chance.randrange(1, 200_000))
            case 3:
                emit = emit or rig.recorder.emitter("placed", ["a", "b"])
                emit(1, chance.random())
                told.append("placed")
            case 4:
                rig.flush(durable=True)
            case 5:
                rig.flush()
            case _:
                rig.step(seconds=chance.choice([0.5, 2.0, 10.0]))
        if chance.randrange(3) == 0:
            assert only(recovered(crash(rig, tmp_path))).names == told
    assert only(recovered(crash(rig, tmp_path))).names == told
    assert rig.end()
    assert only(recovered(tmp_path / "store")).names == told


def test_s4_a_crash_between_append_and_release_doubles_nothing(rig: Rig, tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(50):
        record(rig, told)
    before = crash(rig, tmp_path)
    assert rig.flush(durable=True)
    segment = Path(LIVE) / rig.id / "000000.zst"
    folder = rig.store.folder.relative_to(tmp_path / "store")
    shutil.copyfile(tmp_path / "store" / folder / segment, before / folder / segment)
    story = only(recovered(before))
    assert story.names == told
    assert story.numbers == list(range(50))


def test_j5_after_a_reboot_what_was_vouched_for_is_kept(rig: Rig, tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(20):
        record(rig, told)
    rig.recorder.event("urgent", level=40)
    told.append("urgent")
    rig.step()
    for _ in range(20):
        record(rig, told)
    names = only(recovered(crash(rig, tmp_path), boot=OTHER_BOOT)).names
    assert names == told[: len(names)]
    assert len(names) >= 21


@pytest.mark.parametrize("page", [None, *range(4)])
def test_j5_a_page_that_never_reached_the_disk_forges_nothing(rig: Rig, tmp_path: Path, page: int | None) -> None:
    """What a checkpoint vouches for is there up to that page, and what none has seen is not, though it is whole."""
    told: list[str] = []
    seen = []
    for seconds in (1.0, 10.0):  # the first is a checkpoint without a sync, the second one with it
        for _ in range(75):
            record(rig, told, 60)
        seen.append(rig.journal.active.end)
        rig.step(seconds)
    for _ in range(30):
        record(rig, told, 60)
    copy = crash(rig, tmp_path)
    assert 4096 < seen[0] < 2 * 4096 < 3 * 4096 < seen[1] < rig.journal.active.end - 1000
    if page is not None:
        journal = next(copy.rglob(JOURNAL))
        content = bytearray(journal.read_bytes())
        start = rig.journal.active.offset + page * 4096
        assert any(content[start : start + 4096])
        content[start : start + 4096] = bytes(4096)
        journal.write_bytes(content)
    names = [name for story in recovered(copy, boot=OTHER_BOOT) for name in story.names]
    assert names == told[: 150 if page is None else 75 if page >= 2 else 0]


@pytest.mark.parametrize("chance", range(8))
def test_j4_what_is_promised_does_not_depend_on_a_half_that_is_used_again(tmp_path: Path, chance: int) -> None:
    power = PowerDisk(tmp_path / "disk", random.Random(chance), written_back=0.0)
    rig = Rig(tmp_path / "disk" / "store", files=power)
    told: list[str] = []
    record(rig, told)
    rig.step(seconds=6.0)
    promised, half = list(told), rig.journal.active
    assert half.durable == half.end, "the journal vouches for it, and was synced"
    for _ in range(2):
        assert rig.flush(), "a block, which nobody has asked to be synced"
        record(rig, told)
    assert rig.journal.active is half, "used again"
    assert rig.writer.states[0].records >= len(promised)
    power.lose_power(tmp_path / "after")
    names = only(recovered(tmp_path / "after" / "store", OTHER_BOOT)).names
    assert names[: len(promised)] == promised
    assert names == told[: len(names)]


def test_s2_a_session_that_lives_is_not_taken_up(rig: Rig) -> None:
    other = Store(OsFileSystem(), rig.store.folder.parent.parent, "product", "application")
    assert list(other.crashed()) == []
    rig.let_go()
    (found,) = other.crashed()
    assert found.path.name == rig.id
    other.files.close(found.lock_fd)


def test_s6_a_session_is_all_that_its_segments_say(rig: Rig) -> None:
    rig.recorder.feature("a")
    rig.recorder.set_installation("inst-42", {"plan": "pro"})
    rig.recorder.event("b", level=50)
    assert rig.end()
    (waiting,) = rig.store.look().waiting
    summary = waiting.summary
    assert (summary.records, summary.errors, summary.installation) == (3, 1, "inst-42")
    assert sorted(path.name for path in waiting.path.iterdir()) == ["000000.zst"]


def test_what_lies_in_another_session_s_folder_is_not_offered_under_its_own_name(rig: Rig) -> None:
    rig.recorder.feature("a")
    assert rig.end()
    stranger = fresh_session_id()
    (rig.store.folder / WAITING / rig.id).rename(rig.store.folder / WAITING / stranger)
    found = rig.store.look()
    assert (found.waiting, list(found.unreadable)) == ((), [stranger])
    assert rig.id in found.unreadable[stranger]


def test_sessions_share_a_description_only_where_it_is_the_very_same() -> None:
    descriptions = Descriptions()

    def summary(info: Info) -> Summary:
        made = Summary(fresh_session_id(), info, 1.0, 2.0, 1.0, Status.STOPPED, (0,) * len(COUNTERS), ())
        shared = descriptions.shared(made, made.session_id)
        assert shared == made
        return shared

    first = summary(Info(product="p", properties={"a": True}))
    assert summary(Info(product="p", properties={"a": True})).info is first.info
    other = summary(Info(product="p", properties={"a": 1}))
    assert other.info is not first.info
    assert other.info.properties["a"] is not True
    for number in range(100):
        assert summary(Info(product="p", version=str(number))).info.version == str(number)


def test_sessions_share_counts_where_they_are_equal_and_only_so_many_are_remembered() -> None:
    descriptions = Descriptions()

    def counts(first: int) -> tuple[int, ...]:
        of_all = (first, *[0] * (len(COUNTERS) - 1))
        made = Summary(fresh_session_id(), Info(), 1.0, 2.0, 1.0, Status.STOPPED, of_all, ())
        shared = descriptions.shared(made, made.session_id)
        assert shared == made
        return shared.counts

    first = counts(0)
    assert counts(0) is first
    for number in range(1, MOST_COUNTS + 2):
        assert counts(number) is not first
    assert len(descriptions._counts) <= MOST_COUNTS
    assert counts(0) is not first, "it was forgotten meanwhile"


def test_d1_only_what_is_synced_is_offered(rig: Rig) -> None:
    rig.recorder.feature("a")
    assert rig.flush(durable=True)
    (offered,) = rig.writer.states
    rig.recorder.feature("b")
    assert rig.flush()
    assert rig.writer.states == (offered,)
    assert rig.flush(durable=True)
    (grown,) = rig.writer.states
    assert grown.size > offered.size
    assert (offered.records, grown.records) == (1, 2)


def test_d3_a_crash_between_ledger_and_move_counts_once_and_moves_later(rig: Rig) -> None:
    rig.recorder.feature("a")
    assert rig.end()
    store = rig.store
    assert store.become_sender()
    store.ledger.add([Ending(rig.id, "accepted", "", 1)])
    store.cease_sending()
    later = Store(OsFileSystem(), store.folder.parent.parent, "product", "application")
    assert later.become_sender()
    assert not list((later.folder / WAITING).iterdir())
    assert [path.name for path in (later.folder / SENT).iterdir()] == [rig.id]
    account = later.ledger.account(0, {})
    assert (account.accepted, account.recorded) == (1, 1)


def test_a_session_is_put_aside_with_its_reason_and_a_second_one_beside_it(rig: Rig) -> None:
    rig.recorder.feature("a")
    assert rig.end()
    store = rig.store
    store.quarantine(rig.id, "for a test")
    aside = store.folder / QUARANTINED
    shutil.copytree(aside / rig.id, store.folder / WAITING / rig.id)
    store.quarantine(rig.id, "again")
    assert sorted(path.name for path in aside.iterdir()) == [rig.id, f"{rig.id}.2"]
    assert (aside / rig.id / "reason").read_text() == "for a test"
    assert (aside / f"{rig.id}.2" / "reason").read_text() == "again"
    assert store.look().waiting == ()


def test_a_host_that_is_short_of_descriptors_loses_no_session_to_quarantine(rig: Rig, tmp_path: Path) -> None:
    rig.recorder.feature("a")
    assert rig.end()

    class Short(OsFileSystem):
        short = True

        def read_range(self, path: Place, offset: int, length: int) -> bytes:
            if self.short:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().read_range(path, offset, length)

    files = Short()
    store = Store(files, tmp_path / "store", "product", "application")
    found = store.look()
    assert (found.waiting, found.unreadable) == ((), {})
    files.short = False
    assert [waiting.summary.session_id for waiting in store.look().waiting] == [rig.id]
