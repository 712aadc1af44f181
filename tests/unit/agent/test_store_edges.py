"""What seldom happens to a store: others come in between, the disk has no locks, files are not what they should be."""

from __future__ import annotations

import errno
import mmap
import sys
from pathlib import Path
from zlib import crc32

import pytest

from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal import Journal
from mailboat.agent.journal_layout import HEAD, HEAD_CRC, HEAD_SIZE, MAGIC, VERSION
from mailboat.agent.leftovers import LeftBehind, left_behind
from mailboat.agent.locks import LOCK
from mailboat.agent.reserve import FILE_NAME
from mailboat.agent.segment_file import DAMAGED, SegmentFile
from mailboat.agent.store import LIVE, NEW, WAITING, Store
from mailboat.protocol.errors import SegmentError, StoreError
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.segment import Preamble
from testkit.disk import Disk, Unsynced, always, failure
from testkit.recording import BOOT, Rig, Time, only, read_session, recovered

ID = "01a0c45f-ae40-75b1-a522-4a58b791f1d8"
PREAMBLE = Preamble(ID, 0, 7, 0, 10**18, 0)


def store_at(root: Path, files: OsFileSystem | Disk | None = None) -> Store:
    port = files.files if isinstance(files, Disk) else files or Unsynced()
    return Store(port, root, "product", "application")


# -- beginning -------------------------------------------------------------------------------------------------------


def test_a_disk_without_locks_is_told_plainly(tmp_path: Path) -> None:
    class NoLocks(Unsynced):
        def lock(self, fd: int) -> bool:
            return False

    with pytest.raises(StoreError, match="its disk has no locks"):
        store_at(tmp_path, NoLocks()).begin(PREAMBLE, 1)
    assert list((tmp_path / "product" / "application" / LIVE).iterdir()) == []


def test_a_sweep_of_another_process_in_between_costs_another_try(tmp_path: Path) -> None:
    class Swept(Unsynced):
        times = 0

        def create(self, path: Path) -> int:
            if path.name == LOCK and self.times < 2:
                self.times += 1
                self.remove_tree(path.parent)
            return super().create(path)

    files = Swept()
    session, segment = store_at(tmp_path, files).begin(PREAMBLE, 1)
    assert (files.times, session.path.parent.name) == (2, LIVE)
    segment.close()
    files.close(session.lock_fd)


@pytest.mark.parametrize("call", ["create", "append", "rename"])
def test_a_session_that_could_not_be_begun_stands_in_nobodys_way(tmp_path: Path, call: str) -> None:
    disk = Disk(always(call), real=Unsynced())
    store = store_at(tmp_path, disk)
    with pytest.raises(OSError, match="Input/output"):
        store.begin(PREAMBLE, 1)
    assert disk.descriptors == set(), "let go of all"
    disk.plan = lambda _number, _name: None
    session, segment = store.begin(PREAMBLE, 1)
    assert list(store.files.names(store.folder / NEW)) == []
    segment.close()
    store.files.close(session.lock_fd)


# -- taking up -------------------------------------------------------------------------------------------------------


def crashed(root: Path, time: Time) -> str:
    rig = Rig(root, files=Unsynced(), time=time)
    rig.recorder.feature("a")
    rig.let_go()
    time.pass_seconds(1.0)
    return rig.id


def test_one_that_cannot_be_looked_at_stops_no_other(tmp_path: Path) -> None:
    time = Time()
    first, second = crashed(tmp_path, time), crashed(tmp_path, time)

    class Refusing(Unsynced):
        def open(self, path: Path) -> int:
            if path.parent.name == first:
                raise failure(errno.EACCES)
            return super().open(path)

    store = store_at(tmp_path, Refusing())
    (found,) = store.crashed()
    assert found.path.name == second
    store.files.close(found.lock_fd)


def test_a_lock_that_another_one_makes_anew_is_the_others(tmp_path: Path) -> None:
    session = crashed(tmp_path, Time())

    class Slow(Unsynced):
        def create(self, path: Path) -> int:
            path.touch()
            return super().create(path)

    store = store_at(tmp_path, Slow())
    (store.folder / LIVE / session / LOCK).unlink()
    assert list(store.crashed()) == []


def test_what_cannot_be_swept_away_stops_nothing(tmp_path: Path) -> None:
    disk = Disk(always("remove_tree"), real=Unsynced())
    store = store_at(tmp_path, disk)
    store.open()
    for name in (ID, "01a0c45f-ae40-75b1-a522-4a58b791f1d9"):
        (store.folder / NEW / name).mkdir()
    store.sweep()
    assert len(store.files.names(store.folder / NEW)) == 2
    assert disk.descriptors == set()
    disk.plan = lambda _number, _name: None
    store.sweep()
    assert list(store.files.names(store.folder / NEW)) == []


def test_a_reserve_that_another_process_was_faster_to_make_is_one(tmp_path: Path) -> None:
    class Slow(Unsynced):
        def create(self, path: Path) -> int:
            path.touch()
            return super().create(path)

    store = store_at(tmp_path, Slow())
    store.open()
    assert store.reserve.keep()
    assert (store.folder / FILE_NAME).exists()


def test_the_reserve_of_a_store_found_by_its_folder_lies_there(tmp_path: Path) -> None:
    store = Store.at(Unsynced(), tmp_path / "product" / "an odd name")
    store.open()
    assert store.reserve.keep()
    assert (tmp_path / "product" / "an odd name" / FILE_NAME).exists()


# -- segments --------------------------------------------------------------------------------------------------------


def test_a_segment_that_was_closed_takes_nothing_more(tmp_path: Path) -> None:
    segment = SegmentFile.create(Unsynced(), tmp_path, PREAMBLE, 1)
    segment.close()
    segment.close()
    with pytest.raises(OSError, match="was closed"):
        segment.block(b"", [0] * 12, 0)


def test_what_has_no_preamble_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "000000.zst").write_bytes(b"\xff" * 100)
    with pytest.raises(SegmentError, match="no intact preamble"):
        SegmentFile.reopen(Unsynced(), tmp_path / "000000.zst", 1)


def test_a_file_that_cannot_be_cut_is_let_go_of(tmp_path: Path) -> None:
    SegmentFile.create(Unsynced(), tmp_path, PREAMBLE, 1).close()
    disk = Disk(always("truncate"), real=Unsynced())
    with pytest.raises(OSError, match="Input/output"):
        SegmentFile.reopen(disk.files, tmp_path / "000000.zst", 1)
    assert disk.descriptors == set()


def block_names(path: Path) -> list[int]:
    reader = SegmentReader(path.read_bytes())
    return [block.header.first for block in reader.blocks()] if not reader.gaps else []


def test_a_write_that_ended_in_the_middle_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    """Whatever ended it: the process had no memory left, say, and the disk had half of it."""

    class Torn(Unsynced):
        torn = False

        def append(self, fd: int, data: bytes | memoryview) -> None:
            if self.torn:
                self.torn = False
                super().append(fd, bytes(data)[: len(data) // 2])
                raise MemoryError
            super().append(fd, data)

    files = Torn()
    segment = SegmentFile.create(files, tmp_path, PREAMBLE, 1)
    counts = [1, *[0] * (len(COUNTERS) - 1)]
    segment.block(b"\x93\x01\x00\xa1a", counts, 0)
    files.torn = True
    with pytest.raises(MemoryError):
        segment.block(b"\x93\x01\x00\xa1b", counts, 0)
    segment.block(b"\x93\x01\x00\xa1c", counts, 0)
    segment.close()
    assert block_names(segment.path) == [0, 1]


def test_a_segment_that_has_failed_takes_nothing_more(tmp_path: Path) -> None:
    disk = Disk(real=Unsynced())
    segment = SegmentFile.create(disk.files, tmp_path, PREAMBLE, 1)
    disk.plan = lambda _, name: failure(errno.EIO) if name in ("append", "truncate") else None
    for _ in range(2):
        with pytest.raises(OSError, match=r"Input/output|has failed before"):
            segment.block(b"", [0] * len(COUNTERS), 0)
    assert segment.failed
    with pytest.raises(OSError, match="has failed before"):
        segment.sync()
    segment.close()


def test_a_live_folder_that_holds_nothing_is_removed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.open()
    (store.folder / LIVE / ID).mkdir()
    assert recovered(tmp_path) == []
    assert list(store.files.names(store.folder / LIVE)) == []


@pytest.fixture
def abandoned(tmp_path: Path) -> Rig:
    """A session one of whose segments was abandoned after a block of it was synced."""
    disk = Disk(real=Unsynced())
    rig = Rig(tmp_path, files=disk.files)
    rig.recorder.feature("a")
    assert rig.flush(durable=True)
    rig.recorder.feature("b")
    assert rig.flush()
    failed = iter([True])
    disk.plan = lambda _, name: failure(errno.EIO) if name == "sync" and next(failed, False) else None
    assert rig.flush(durable=True)
    assert len(rig.segments._abandoned) == 1
    return rig


def test_an_abandoned_segment_that_was_damaged_meanwhile_stops_nothing(abandoned: Rig) -> None:
    folder = abandoned.store.folder / LIVE / abandoned.id
    content = bytearray((folder / "000000.zst").read_bytes())
    content[20] ^= 0xFF
    (folder / "000000.zst").write_bytes(content)
    assert abandoned.end()
    waiting = abandoned.store.folder / WAITING / abandoned.id
    assert (waiting / f"000000.zst{DAMAGED}").read_bytes() == bytes(content)
    assert read_session(waiting).names == ["b"]


def test_an_abandoned_segment_that_could_not_be_removed_goes_at_the_end(tmp_path: Path) -> None:
    """Nothing of it was synced: all of it is repeated."""
    disk = Disk(real=Unsynced())
    rig = Rig(tmp_path, files=disk.files)
    rig.recorder.feature("a")
    failed = {"sync": 1, "remove": 1}

    def plan(_: int, name: str) -> OSError | None:
        failed[name] = failed.get(name, 0) - 1
        return failure(errno.EIO) if failed[name] >= 0 else None

    disk.plan = plan
    assert rig.flush(durable=True)
    folder = rig.store.folder / LIVE / rig.id
    assert (folder / "000000.zst").exists()
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert story.names == ["a"]
    assert not (story.folder / "000000.zst").exists()


# -- journals --------------------------------------------------------------------------------------------------------


def same(_: str) -> bool:
    return True


def test_what_is_no_journal_holds_nothing() -> None:
    assert left_behind(b"", same_boot=same) == LeftBehind()
    assert left_behind(bytes(HEAD_SIZE), same_boot=same) == LeftBehind()


def to_come(content: bytearray) -> bytes:
    """The same journal of a version to come, which says so under its own checksum."""
    magic, _, *rest = HEAD.unpack_from(content)
    head = HEAD.pack(magic, VERSION + 1, *rest)
    return head + HEAD_CRC.pack(crc32(head)) + content[HEAD.size + HEAD_CRC.size :]


def test_a_journal_of_a_version_to_come_is_left_alone() -> None:
    content = to_come(bytearray(HEAD.pack(MAGIC, VERSION, 0, b"") + bytes(HEAD_SIZE)))
    with pytest.raises(SegmentError, match="update it"):
        left_behind(content, same_boot=same)


def test_a_session_whose_journal_is_of_a_version_to_come_is_put_aside_whole(tmp_path: Path) -> None:
    session = crashed(tmp_path, Time())
    journal = store_at(tmp_path).folder / LIVE / session / "journal"
    content = journal.read_bytes()
    journal.write_bytes(to_come(bytearray(content)))
    with pytest.raises(SegmentError, match="update it"):
        recovered(tmp_path)
    journal.write_bytes(content)
    assert only(recovered(tmp_path)).names == ["a"]


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("at", range(12))
def test_one_damaged_byte_of_what_a_journal_is_costs_nothing(tmp_path: Path, at: int, checked: bool) -> None:
    """Not `checked`: as agents wrote it before there was a checksum; then what it is must be intact at least."""
    session = crashed(tmp_path, Time())
    journal = store_at(tmp_path).folder / LIVE / session / "journal"
    content = bytearray(journal.read_bytes())
    if not checked:
        content[HEAD.size : HEAD.size + HEAD_CRC.size] = bytes(HEAD_CRC.size)
    content[at] ^= 0x55
    journal.write_bytes(content)
    assert [story.names for story in recovered(tmp_path)] == [["a"] if checked or at >= 8 else []]


def test_a_journal_in_memory_syncs_nothing_and_counts_all_the_same() -> None:
    journal = Journal(Unsynced(), None, 0, BOOT)
    journal.sync()
    assert not journal.distrusted
    journal.count_lost(2, 5)
    journal.count_lost(2, 1)
    journal.note_leaving()
    told = left_behind(bytes(journal._head), same_boot=same)
    assert (told.lost, told.in_order, told.halves) == ((0, 0, 6, *[0] * (len(told.lost) - 3)), True, ())
    journal.close()


def test_a_half_that_is_numbered_anew_is_no_longer_vouched_for(tmp_path: Path) -> None:
    files = Unsynced()
    fd = files.create(tmp_path / "journal")
    journal = Journal(files, fd, 0, BOOT)
    half = journal.active
    half.memory.write(b"\x93\x01\x00\xa1a")
    half.end_here()
    assert journal.checkpoint(durable=True)
    half.renumber(0)
    assert half._claimed == 5, "the same number: nothing changes"
    half.renumber(7)
    assert half._claimed == 0
    assert journal.checkpoint(durable=True)
    journal.close()
    content = (tmp_path / "journal").read_bytes()
    (left,) = left_behind(content, same_boot=lambda _: False).halves
    assert (left.first, left.raw) == (7, b"\x93\x01\x00\xa1a")


class Flushed(mmap.mmap):
    """A mapping that notes that it was flushed."""

    times = 0

    def flush(self, *where: int) -> None:
        self.times += 1
        super().flush(*where)


class Mapping(OsFileSystem):
    """A file system that notes what its user asks for."""

    def __init__(self) -> None:
        self.mapped: list[Flushed] = []
        self.synced: list[int] = []

    def map(self, fd: int, offset: int, length: int) -> mmap.mmap:
        self.mapped.append(Flushed(fd, length, offset=offset))
        return self.mapped[-1]

    def sync(self, fd: int) -> None:
        self.synced.append(fd)
        super().sync(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a mapping has to be flushed")
def test_a_journal_is_synced_by_one_call_that_lets_other_threads_run(tmp_path: Path) -> None:
    """`mmap.flush` keeps the interpreter's lock until the disk has answered, and the host's event loop with it."""
    files = Mapping()
    journal = Journal(files, files.create(tmp_path / "journal"), 0, BOOT)
    journal.active.memory.write(b"record")
    journal.active.end_here()
    assert journal.checkpoint(durable=True)
    journal.sync()
    assert (files.synced, [each.times for each in files.mapped]) == ([journal.fd], [0, 0, 0])
    assert journal.active.durable == len(b"record")
    journal.close()
