"""Recovery of what a crash left in the middle of something."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import msgpack
import pytest
from msgspec.structs import replace

from mailboat.agent.journal import Half
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.segment_file import SegmentFile
from mailboat.agent.store import LAST_WORDS, LIVE, WAITING, Store
from mailboat.agent.writer import WriterSettings
from mailboat.protocol.reader import Block, SegmentReader
from mailboat.protocol.records import SCHEMA_COUNTER
from mailboat.protocol.sealing import Note
from mailboat.protocol.segment import SKIPPABLE, Seal, SealReason
from testkit.disk import Disk, Killed, Unsynced, failure
from testkit.recording import BOOT, Rig, only, read_session, recovered


def killed_at_append(number: int) -> Callable[[int, str], BaseException | None]:
    """The process is killed at the append of that number."""
    appends: list[int] = []

    def plan(call: int, name: str) -> BaseException | None:
        if name == "append":
            appends.append(call)
        return Killed() if name == "append" and len(appends) == number else None

    return plan


@pytest.mark.parametrize("append", [6, 7, 8, 9], ids=["seal", "preamble", "declarations", "block"])
def test_killed_at_any_write_of_a_rotation(tmp_path: Path, append: int) -> None:
    """Also between the new segment's preamble and the declarations that it repeats: its records keep their names."""
    disk = Disk(killed_at_append(append))
    rig = Rig(tmp_path, files=disk.files, settings=WriterSettings(segment_bytes=1))
    placed = rig.recorder.emitter("order.placed", ["user"])
    placed(1)
    assert rig.flush()
    placed(2)
    with pytest.raises(Killed):
        rig.flush()
    disk.bury()
    story = only(recovered(tmp_path))
    assert story.gaps == []
    assert [(record.name, dict(record.attributes)) for record in story.records] == [
        ("order.placed", {"user": 1}),
        ("order.placed", {"user": 2}),
    ]


def test_what_was_only_declared_is_kept_though_nothing_was_recorded(tmp_path: Path) -> None:
    rig = Rig(tmp_path, files=Unsynced())
    rig.recorder.emitter("order.placed", ["user"])
    rig.let_go()
    story = only(recovered(tmp_path))
    assert (story.records, story.gaps) == ([], [])
    (block,) = SegmentReader((story.folder / "000000.zst").read_bytes()).blocks()
    assert block.header.counts[SCHEMA_COUNTER] == 1


def test_a_segment_that_was_in_the_way_and_would_not_go_goes_at_the_end(tmp_path: Path) -> None:
    """The disk failed as the next one was begun, and refused to remove what there was of it."""

    class Stuck(Unsynced):
        bad: int | None = None
        stuck = True

        def create(self, path: Path) -> int:
            fd = super().create(path)
            self.bad = fd if path.name == "000001.zst" else None
            return fd

        def append(self, fd: int, data: bytes | memoryview) -> None:
            super().append(fd, data if fd != self.bad else data[:10])
            if fd == self.bad:
                raise failure(errno.EIO)

        def truncate(self, fd: int, size: int) -> None:
            if fd == self.bad:
                raise failure(errno.EIO)
            super().truncate(fd, size)

        def remove(self, path: Path) -> None:
            if path.name == "000001.zst" and self.stuck:
                raise failure(errno.EIO)
            super().remove(path)

    files = Stuck()
    rig = Rig(tmp_path, files=files, settings=WriterSettings(segment_bytes=1))
    for name in ("a", "b"):
        rig.recorder.feature(name)
        rig.flush()
        rig.step(10.0)
    folder = rig.store.folder / LIVE / rig.id
    assert (folder / "000001.zst").stat().st_size == 10
    files.stuck = False
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.gaps) == (["a", "b"], [])
    assert not (story.folder / "000001.zst").exists()


def flipped(seal: bytes) -> bytes:
    """The frame of a seal with a damaged byte."""
    return seal[:-30] + bytes([seal[-30] ^ 0xFF]) + seal[-29:]


def strange(seal: bytes) -> bytes:
    """The frame of a seal that is intact, and gives a reason that no mailboat gives."""
    values = msgpack.unpackb(seal[SKIPPABLE.size : -12])
    packed = msgpack.packb({**values, "reason": "eaten"})
    return (
        seal[:4]
        + (len(packed) + 12).to_bytes(4, "little")
        + packed
        + len(packed).to_bytes(4, "little")
        + crc32(packed).to_bytes(4, "little")
        + seal[-4:]
    )


@pytest.mark.parametrize("spoil", [flipped, strange])
def test_a_seal_that_cannot_be_read_is_made_anew(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    rig = Rig(tmp_path, files=Unsynced())
    rig.recorder.feature("a")
    assert rig.end()
    folder = rig.store.folder / LIVE / rig.id
    (rig.store.folder / WAITING / rig.id).rename(folder)  # as if the rename had not reached the disk
    content = (folder / "000000.zst").read_bytes()
    sealed = Seal.at_end_of(content)
    assert sealed is not None
    (folder / "000000.zst").write_bytes(content[: -sealed[1]] + spoil(content[-sealed[1] :]))
    story = only(recovered(tmp_path, files=Unsynced()))
    assert (story.names, story.reasons) == (["a"], [SealReason.CRASHED])
    assert [gap.records for gap in story.gaps] == [0], "the damage shows, and no record is missing"


def test_last_words_follow_a_block_that_nobody_can_read(tmp_path: Path) -> None:
    """Its checksum is that of what was written, so it was not the disk."""
    rig = Rig(tmp_path, files=Unsynced())
    rig.recorder.feature("a")
    assert rig.flush()
    rig.let_go()
    folder = rig.store.folder / LIVE / rig.id
    blocks: list[Block] = []
    segment = SegmentFile.reopen(Unsynced(), folder / "000000.zst", 1, look=blocks.append)
    (block,) = blocks
    header, data = segment.writer.framed(replace(block.header, first=1), b"no frame of zstd", Note())
    segment._append(data, header)
    segment.close()
    (folder / LAST_WORDS).write_bytes(b"Fatal Python error: Bus error\n")
    (path,) = [each / "000000.zst" for each in recovered_folders(tmp_path)]
    reader = SegmentReader(path.read_bytes())
    names = [record.name for each in reader.blocks() for record in reader.records(each)]
    assert names == ["a", "process.died"]
    assert [(gap.first, gap.records) for gap in reader.gaps] == [(1, 1)]


def recovered_folders(root: Path) -> list[Path]:
    """Bring what has crashed to rest; the folders that wait then."""
    store = Store(Unsynced(), root, "product", "application")
    assert [bring_to_rest(store, session, BOOT) for session in store.crashed()] == [None]
    return list((store.folder / WAITING).iterdir())


@pytest.mark.parametrize("boot", [BOOT, "another"], ids=["killed", "power lost"])
@pytest.mark.parametrize("turns", [1, 2])
def test_the_process_dies_before_a_half_is_counted_into_which_others_recorded_while_the_calls_were_turned(
    tmp_path: Path, turns: int, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next half holds records by then, and the number that it begins with is too low."""
    rig = Rig(tmp_path / "store")
    dead = tmp_path / "dead"
    names, reserve = iter(range(100)), rig.journal.reserve

    def record() -> None:
        rig.recorder.feature(f"{next(names)}")

    def reserved(needed: int, following: int) -> Half | None:
        half = reserve(needed, following)
        record()
        return half

    def dies(*_: object) -> None:
        if not dead.exists():
            record()
            while len(rig.recorder._unfinished) < turns:
                rig.recorder.turn()
                record()
            rig.journal.checkpoint(durable=True)
            rig.journal.sync()
            shutil.copytree(tmp_path / "store", dead)
        raise Killed

    record()
    monkeypatch.setattr(rig.journal, "reserve", reserved)
    monkeypatch.setattr(Half, "renumber", dies)
    with pytest.raises(Killed):
        rig.recorder.turn()
    story = only(recovered(dead, boot))
    assert (story.names, story.lost, story.gaps) == ([f"{at}" for at in range(next(names))], {}, [])
