"""A disk that is full: sessions end and are let go of all the same, by the reserve; nothing is lost that fits into
memory, and what does not is counted; and within one look (five seconds) of its return it is noticed that there is room.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mailboat.agent.config import AgentConfig
from mailboat.agent.files import OsFileSystem
from mailboat.agent.host import boot_id
from mailboat.agent.ledger import Ending
from mailboat.agent.quota import Quota
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.reserve import FILE_NAME
from mailboat.agent.room import PLENTY, Room
from mailboat.agent.store import LIVE, QUARANTINED, REASON, SENT, WAITING, Store
from mailboat.agent.stores import Stores
from mailboat.agent.upkeep import EVICTION_INTERVAL, LOOK_INTERVAL, Upkeep
from mailboat.agent.writer import TICK, WriterSettings
from mailboat.protocol.limits import MEMORY_FALLBACK, MIN_JOURNAL, RESERVE
from mailboat.protocol.segment import SealReason
from testkit import virtual
from testkit.disk import Unsynced, failure
from testkit.recording import BOOT, OTHER_BOOT, Rig, Time, only, read_session, recovered, waiting

YEAR = 365 * 24 * 3600.0


@dataclass
class SmallDisk(Unsynced):
    """Real files on a disk that has so much room for files, by their sizes; `others` is what others take of it."""

    root: Path
    total: int
    others: int = 0
    code: int = errno.ENOSPC
    taken: dict[int, int] = field(default_factory=dict)

    def room(self, path: Path) -> tuple[int, int]:
        files = [each.stat().st_size for each in self.root.rglob("*") if each.is_file()]
        return max(0, self.total - self.others - sum(files)), self.total

    def _take(self, length: int) -> None:
        if length > self.room(self.root)[0]:
            raise failure(self.code)

    def append(self, fd: int, data: bytes | memoryview) -> None:
        self._take(len(data))
        super().append(fd, data)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._take(max(0, offset + length - self.seek_end(fd)))
        super().allocate(fd, offset, length)

    def fill(self, left: int = 0) -> None:
        """Others take all but so much."""
        self.others += self.room(self.root)[0] - left


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def disk(root: Path) -> SmallDisk:
    return SmallDisk(root, 64 * 2**20)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def store_at(root: Path, disk: OsFileSystem) -> Store:
    return Store(disk, root, "product", "application")


def upkeep(rig: Rig, executor: Executor, quota: Quota | None = None) -> Upkeep:
    if quota is not None:
        rig.writer.room = Room(quota)
    return Upkeep(Stores(rig.store), executor, rig.time.clocks, rig.writer.room, rig.id, lambda: True)


def noisy(rig: Rig, count: int, size: int = 1000) -> list[str]:
    """Records that do not compress."""
    names = [f"n{rig.recorder.recorded + at}" for at in range(count)]
    for name in names:
        rig.recorder.feature(name, noise=rig.time.chance.randbytes(size))
    return names


def ended(root: Path, disk: OsFileSystem, time: Time, records: int = 3) -> str:
    rig = Rig(root, files=disk, time=time)
    noisy(rig, records)
    assert rig.end()
    time.pass_seconds(1.0)
    return rig.id


# -- the reserve -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_session_ends_on_a_full_disk(root: Path, disk: SmallDisk, code: int) -> None:
    disk.code = code
    rig = Rig(root, files=disk)
    assert rig.store.reserve.keep()
    told = noisy(rig, 100)
    disk.fill()
    assert not rig.flush()
    assert "the store cannot be" not in rig.writer.trouble
    assert rig.writer.trouble
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.lost) == (told, {})
    assert not (rig.store.folder / FILE_NAME).exists()


def test_the_last_blocks_of_a_full_journal_fit_into_the_reserve(root: Path, disk: SmallDisk) -> None:
    """Of the size that it has by default, with records such as applications make."""
    rig = Rig(root, files=disk, journal_bytes=AgentConfig().journal_bytes)
    assert rig.store.reserve.keep()
    disk.fill()
    chance, first = rig.time.chance, rig.journal.active
    while rig.journal.active is first or rig.journal.active.end < first.size - 1000:
        rig.time.monotonic += chance.randrange(10**7)
        user, source = chance.randbytes(6).hex(), chance.choice(("drive", "mail", "web"))
        rig.recorder.feature("import.csv", rows=chance.randrange(10**6), source=source, user=user)
    assert rig.journal.crash_proof
    recorded = rig.recorder.recorded
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (len(story.records), story.lost, story.gaps) == (recorded, {}, [])


def test_without_a_reserve_it_is_left_to_recovery(root: Path, disk: SmallDisk) -> None:
    rig = Rig(root, files=disk)
    told = noisy(rig, 100)
    disk.fill()
    assert not rig.end()
    disk.others = 0
    assert only(recovered(root, files=disk)).names == told


def test_a_crashed_session_is_brought_to_rest_on_a_full_disk(root: Path, disk: SmallDisk) -> None:
    rig = Rig(root, files=disk)
    assert rig.store.reserve.keep()
    told = noisy(rig, 100)
    rig.let_go()
    disk.fill()
    store = store_at(root, disk)
    (session,) = store.crashed()
    assert bring_to_rest(store, session, BOOT) is None
    story = only(waiting(store))
    assert (story.names, story.reasons) == (told, [SealReason.CRASHED])


def test_what_the_server_has_answered_for_is_entered_on_a_full_disk(root: Path, disk: SmallDisk) -> None:
    session = ended(root, disk, Time())
    store = store_at(root, disk)
    assert store.reserve.keep()
    assert store.become_sender()
    disk.fill()
    store.finish([Ending(session, "accepted", "", 3)], purge=False)
    assert store.ledger.account(0, {}).accepted == 3
    assert list(store.files.names(store.folder / SENT)) == [session]
    assert not (store.folder / FILE_NAME).exists()


def test_a_reason_is_written_on_a_full_disk(root: Path, disk: SmallDisk) -> None:
    session = ended(root, disk, Time())
    store = store_at(root, disk)
    assert store.reserve.keep()
    disk.fill()
    store.quarantine(session, "for a test")
    assert (store.folder / QUARANTINED / session / REASON).read_text() == "for a test"


def test_without_a_reserve_nothing_is_put_aside_without_its_reason(root: Path, disk: SmallDisk) -> None:
    session = ended(root, disk, Time())
    store = store_at(root, disk)
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        store.quarantine(session, "for a test")
    assert [each.summary.session_id for each in store.look().waiting] == [session]


def test_the_reserve_is_kept_once_and_only_where_there_is_room(root: Path, disk: SmallDisk) -> None:
    store = store_at(root, disk)
    store.open()
    path = store.folder / FILE_NAME
    disk.fill(RESERVE - 1)
    assert not store.reserve.keep()
    assert not path.exists()
    disk.fill(RESERVE)
    assert store.reserve.keep()
    assert store.reserve.keep()
    assert path.stat().st_size == RESERVE
    path.write_bytes(b"cut short")
    assert store.reserve.keep()
    assert path.stat().st_size == RESERVE
    assert not store.reserve.spend(failure(errno.EIO))
    assert not store.reserve.spend(None)
    assert store.reserve.spend(failure(errno.ENOSPC))
    assert not store.reserve.spend(failure(errno.ENOSPC))


def test_a_disk_that_fails_otherwise_is_told(root: Path, disk: SmallDisk) -> None:
    disk.code = errno.EIO
    store = store_at(root, disk)
    store.open()
    disk.fill()
    with pytest.raises(OSError, match="Input/output"):
        store.reserve.keep()
    assert not (store.folder / FILE_NAME).exists()


# -- room returning --------------------------------------------------------------------------------------------------


async def test_room_returning_is_noticed_at_the_next_look(root: Path, disk: SmallDisk, executor: Executor) -> None:
    assert LOOK_INTERVAL <= 5.0
    crashed = Rig(root, files=disk, boot=boot_id())
    told = noisy(crashed, 100)
    crashed.let_go()
    time = Time()
    time.pass_seconds(60)
    rig = Rig(root, files=disk, time=time)
    kept = upkeep(rig, executor)
    disk.fill()
    await kept.take_up()
    assert "No space left" in kept.trouble
    assert not await kept.look()
    time.pass_seconds(LOOK_INTERVAL)
    assert not await kept.look()
    disk.others = 0
    time.pass_seconds(LOOK_INTERVAL)
    assert await kept.look()
    assert kept.trouble == ""
    assert only(waiting(rig.store)).names == told
    time.pass_seconds(LOOK_INTERVAL)
    assert not await kept.look(), "it was noticed before"


def test_room_is_looked_for_often_enough_to_be_noticed_within_five_seconds(root: Path, disk: SmallDisk) -> None:
    rig = Rig(root, files=disk)
    disk.fill()

    async def main(loop: virtual.VirtualLoop) -> list[float]:
        noticed: list[float] = []
        kept = upkeep(rig, virtual.Inline())
        taken_up = asyncio.create_task(kept.take_up())
        watching = asyncio.create_task(kept.watch(taken_up, lambda: noticed.append(loop.time() - back)))
        await asyncio.sleep(12.3)
        assert not noticed
        disk.others, back = 0, loop.time()
        await asyncio.sleep(60.0)
        watching.cancel()
        return noticed

    (after,) = virtual.run(main)
    assert 0 < after <= 5.0
    assert rig.end()


def check_recovery(rig: Rig, disk: SmallDisk, told: list[str]) -> None:
    """With room there is no trouble and a journal again, and all that was told is in the session."""
    disk.others = 0
    rig.step(TICK)
    rig.step(TICK)
    assert (rig.writer.trouble, rig.journal.crash_proof, rig.recorder.lost) == ("", True, {})
    assert rig.end()
    assert read_session(rig.store.folder / WAITING / rig.id).names == told


async def test_a_running_session_goes_on_by_itself(root: Path, disk: SmallDisk) -> None:
    """Up to the bound of memory, and within one look of the writer."""
    assert TICK < 5.0
    rig = Rig(root, files=disk)
    disk.fill()
    told = noisy(rig, 3000)
    rig.step(6.0)
    assert rig.writer.trouble
    assert not rig.journal.crash_proof
    assert rig.recorder.lost == {}
    check_recovery(rig, disk, told)


def test_it_is_told_for_as_long_as_it_lasts_that_there_is_no_journal(root: Path, disk: SmallDisk) -> None:
    """Blocks have room, the journal has none: what is recorded is written, and would be lost with the process until
    then.
    """
    disk.fill(MIN_JOURNAL)
    rig = Rig(root, files=disk)
    told = noisy(rig, 3)
    for _ in range(3):
        assert rig.flush(durable=True, seconds=0.1)
        assert ("No space left" in rig.writer.trouble, rig.journal.crash_proof) == (True, False)
        rig.step(TICK)
        assert ("No space left" in rig.writer.trouble, rig.journal.crash_proof) == (True, False)
    check_recovery(rig, disk, told)


def test_a_session_that_ended_in_order_has_no_trouble_left(root: Path, disk: SmallDisk) -> None:
    disk.fill(MIN_JOURNAL)
    rig = Rig(root, files=disk)
    told = noisy(rig, 3)
    assert rig.writer.trouble
    assert rig.end()
    assert (rig.writer.trouble, read_session(rig.store.folder / WAITING / rig.id).names) == ("", told)


def test_a_trickle_of_records_does_not_use_up_the_memory_in_halves_that_hold_little(
    root: Path, disk: SmallDisk
) -> None:
    """Each is as large as any other; so none is closed while those closed before cannot be written."""
    rig = Rig(root, files=disk)
    disk.fill()
    told = noisy(rig, 130)
    for _ in range(200):
        told += noisy(rig, 1)
        rig.flush(durable=True, seconds=1.0)
    assert (len(told), rig.recorder.lost) == (330, {})
    disk.others = 0
    rig.step(TICK)
    assert rig.end()
    assert read_session(rig.store.folder / WAITING / rig.id).names == told


def test_what_does_not_fit_into_memory_is_dropped_and_counted(root: Path, disk: SmallDisk) -> None:
    rig = Rig(root, files=disk)
    disk.fill()
    told = noisy(rig, 3 * MEMORY_FALLBACK // 20_000, 10_000)
    lost = rig.recorder.lost["journal_full"]
    assert 0 < lost < len(told)
    assert rig.recorder.recorded + lost == len(told)
    in_memory = sum(half.size for half in rig.journal.halves if not half.file_backed)
    assert in_memory <= MEMORY_FALLBACK
    disk.others = 0
    rig.step(TICK)
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert len(story.names) == len(told) - lost
    assert set(story.names) <= set(told)
    assert story.lost == {"journal_full": lost}


# -- quotas and the running session ----------------------------------------------------------------------------------


async def test_a_session_takes_no_more_than_the_store_may_hold(root: Path, disk: SmallDisk, executor: Executor) -> None:
    time = Time()
    others = [ended(root, disk, time, 200) for _ in range(2)]
    rig = Rig(root, files=disk, time=time, settings=WriterSettings(segment_bytes=100_000))
    quota = Quota(2**20, YEAR, 0)
    kept = upkeep(rig, executor, quota)
    await kept.look()
    assert set(rig.store.files.names(rig.store.folder / WAITING)) == set(others)
    told = []
    for _ in range(60):
        told += noisy(rig, 50)
        rig.step(1.0)
        if rig.writer.trouble:
            await kept.look()
    assert not rig.store.files.names(rig.store.folder / WAITING), "there was something to be given up"
    assert "max_store_bytes" in rig.writer.trouble
    folder = rig.store.folder / LIVE / rig.id
    assert sum(path.stat().st_size for path in folder.glob("*.zst")) <= 2**20 + 2**16
    assert rig.recorder.lost == {}
    assert len(rig.writer._full) >= 1
    assert rig.end(), "what is left at the end is written in any case"
    assert read_session(rig.store.folder / WAITING / rig.id).names == told
    account = rig.store.ledger.account(0, {})
    assert account.evicted == {"size": 400}


async def test_a_session_leaves_the_disk_some_room_and_goes_on_when_there_is_more(
    root: Path, disk: SmallDisk, executor: Executor
) -> None:
    rig = Rig(root, files=disk)
    kept = upkeep(rig, executor, Quota(None, YEAR, 2**20))
    await kept.look()
    disk.fill(2**20 - 1)
    told = noisy(rig, 200)
    rig.step(6.0)
    assert "min_free_bytes" in rig.writer.trouble
    assert rig.journal.confined
    assert rig.store.files.size(rig.store.folder / LIVE / rig.id / "000000.zst") < 1000
    disk.others = 0
    rig.step(TICK)
    assert rig.writer.trouble == ""
    assert not rig.journal.confined
    rig.step(TICK)
    assert rig.journal.crash_proof
    assert rig.end()
    assert read_session(rig.store.folder / WAITING / rig.id).names == told


async def test_a_large_disk_that_others_fill_is_noticed_within_a_second(root: Path, executor: Executor) -> None:
    disk = SmallDisk(root, 2 * PLENTY)
    rig = Rig(root, files=disk)
    await upkeep(rig, executor, Quota(None, YEAR, 2**20)).look()
    told = noisy(rig, 20)
    assert rig.flush()
    disk.fill(2**20 - 1)
    told += noisy(rig, 20)
    assert rig.flush(seconds=0.9), "as it was asked for less than a second ago"
    told += noisy(rig, 20)
    assert not rig.flush(seconds=0.2)
    assert "min_free_bytes" in rig.writer.trouble
    assert rig.journal.confined
    assert rig.end()
    assert read_session(rig.store.folder / WAITING / rig.id).names == told


async def test_a_session_that_wants_room_does_not_wait_for_the_next_look_at_the_quotas(
    root: Path, disk: SmallDisk, executor: Executor
) -> None:
    time = Time()
    other = ended(root, disk, time, 900)
    rig = Rig(root, files=disk, time=time)
    kept = upkeep(rig, executor, Quota(2**20, YEAR, 0))
    await kept.look()
    told = noisy(rig, 200)
    assert rig.flush()
    told += noisy(rig, 10)
    assert not rig.flush(seconds=1.0)
    assert "max_store_bytes" in rig.writer.trouble
    assert LOOK_INTERVAL < EVICTION_INTERVAL
    await kept.look()
    assert other not in rig.store.files.names(rig.store.folder / WAITING)
    rig.step(TICK)
    assert rig.writer.trouble == ""
    assert rig.end()
    assert read_session(rig.store.folder / WAITING / rig.id).names == told


def test_what_the_journal_holds_survives_the_machine_where_blocks_are_refused(root: Path, disk: SmallDisk) -> None:
    rig = Rig(root, files=disk)
    first = noisy(rig, 3)
    assert rig.flush(durable=True)
    disk.fill()
    told = first + noisy(rig, 20)
    assert not rig.flush()
    rig.step(6.0)
    rig.let_go()
    disk.others = 0
    assert only(recovered(root, OTHER_BOOT, files=disk)).names == told
