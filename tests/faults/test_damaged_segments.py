"""Segments of a crashed session that the disk has damaged: what is missing is counted, so that the account balances,
the same however often recovery is begun.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mailboat.agent.journal_layout import WORDS, descriptor
from mailboat.agent.journal_place import JOURNAL
from mailboat.agent.ledger import Ending
from mailboat.agent.segment_file import DAMAGED
from mailboat.agent.store import LIVE, Store
from mailboat.agent.writer import WriterSettings
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.segment import SEGMENT_DAMAGED
from testkit.disk import Disk, Killed, Unsynced, killed_at
from testkit.recording import Rig, Story, only, recovered

SIZES = (2, 1, 3, 2)
"""Records in each block."""

WAITING_IN_JOURNAL = 2


class Scene:
    """A crashed session: so many records in each of its blocks, and some in its journal, in a half of their own."""

    def __init__(self, root: Path, *, segment_bytes: int = 10**6, in_journal: int = WAITING_IN_JOURNAL) -> None:
        self.root = root
        rig = Rig(root, files=Unsynced(), settings=WriterSettings(segment_bytes=segment_bytes))
        self.told: list[str] = []
        for records in SIZES:
            self.tell(rig, records)
            assert rig.flush()
        self.tell(rig, in_journal)
        rig.let_go()
        self.folder = rig.store.folder / LIVE / rig.id
        self.paths = sorted(self.folder.glob("*.zst"))

    def tell(self, rig: Rig, records: int) -> None:
        for _ in range(records):
            self.told.append(f"record.{len(self.told):02}")
            rig.recorder.feature(self.told[-1], size=len(self.told))

    def copied(self, to: Path) -> Path:
        """A copy of the store; its one session's folder."""
        shutil.copytree(self.root, to)
        return to / self.folder.relative_to(self.root)


def wiped(content: bytes, start: int, end: int) -> bytes:
    return content[:start] + bytes(end - start) + content[end:]


def blocks(path: Path) -> list[tuple[int, int, int]]:
    """Where each block begins and ends, and how many records it holds."""
    return [(each.offset, each.end, each.header.records) for each in SegmentReader(path.read_bytes()).blocks()]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def lost(story: Story) -> int:
    return sum(story.lost.values())


def in_account(root: Path, story: Story) -> dict[str, int]:
    """What the store's account says of the session once it is accepted: all that was ever recorded."""
    store = Store(Unsynced(), root, "product", "application")
    store.ledger.add([Ending(story.session_id, "accepted", "", len(story.records), story.lost)])
    account = store.ledger.account(0, {})
    assert account.recorded == account.accepted + sum(account.lost.values())
    return {"recorded": account.recorded, **account.lost}


@pytest.fixture(scope="module", params=[0, WAITING_IN_JOURNAL])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"), in_journal=request.param)


@pytest.mark.parametrize("share", [pytest.param(16, id="some"), pytest.param(1, id="all", marks=pytest.mark.soak)])
def test_every_byte_of_a_block_flipped_leaves_the_account_balanced(
    scene: Scene, tmp_path: Path, share: int, seed: int
) -> None:
    (path,) = scene.paths
    first = blocks(path)[0][0]
    places = range(first, path.stat().st_size)[seed % share :: share]
    assert len(places) > 10
    for at in places:
        copy = tmp_path / str(at)
        flip(scene.copied(copy) / path.name, at)
        story = only(recovered(copy))
        assert story.names == [name for name in scene.told if name in story.names], at
        assert len(story.names) + lost(story) == len(scene.told), f"{at}: {story.lost}"
        shutil.rmtree(copy)


def test_what_a_damaged_block_held_is_in_the_account(scene: Scene, tmp_path: Path) -> None:
    (path,) = scene.paths
    offset, end, records = blocks(path)[0]
    flip(scene.copied(tmp_path / "copy") / path.name, (offset + end) // 2)
    story = only(recovered(tmp_path / "copy"))
    assert story.names == scene.told[records:]
    assert in_account(tmp_path / "copy", story) == {"recorded": len(scene.told), SEGMENT_DAMAGED: records}


def test_nothing_is_counted_where_nothing_is_damaged(scene: Scene, tmp_path: Path) -> None:
    scene.copied(tmp_path / "copy")
    story = only(recovered(tmp_path / "copy"))
    assert story.names == scene.told
    assert story.lost == {}


def recovered_twice(folder: Path, at: int) -> tuple[bool, Story]:
    """What comes of it when the first recovery is killed at this call, and whether it came so far."""
    disk, killed = Disk(killed_at(at), real=Unsynced()), False
    try:
        recovered(folder, files=disk.files)
    except Killed:
        disk.bury()
        killed = True
    return killed, only(recovered(folder))


@pytest.mark.parametrize("block", range(len(SIZES)))
def test_killed_at_any_call_of_the_recovery_it_counts_the_same(scene: Scene, tmp_path: Path, block: int) -> None:
    (path,) = scene.paths
    offset, end, records = blocks(path)[block]
    damaged = scene.copied(tmp_path / "damaged") / path.name
    content = damaged.read_bytes()
    damaged.write_bytes(wiped(content, offset, end))
    at, killed = 0, True
    while killed:
        at += 1
        copy = tmp_path / str(at)
        shutil.copytree(tmp_path / "damaged", copy)
        killed, story = recovered_twice(copy, at)
        assert len(story.names) == len(scene.told) - records, at
        assert story.lost == {SEGMENT_DAMAGED: records}, at
    assert at > 10


@pytest.mark.parametrize("index", range(1, len(SIZES) + 1))
@pytest.mark.parametrize("in_journal", [0, WAITING_IN_JOURNAL])
def test_the_records_of_a_segment_that_is_set_aside_are_counted(tmp_path: Path, index: int, in_journal: int) -> None:
    """Each block is in a segment of its own, but the first one, which holds none."""
    scene = Scene(tmp_path / "made", segment_bytes=1, in_journal=in_journal)
    path = scene.folder / f"{index:06d}.zst"
    at, killed = 0, True
    while killed:
        at += 1
        copy = tmp_path / str(at)
        flip(scene.copied(copy) / path.name, 20)
        killed, story = recovered_twice(copy, at)
        assert list(story.folder.glob(f"*{DAMAGED}")), at
        assert len(story.names) == len(scene.told) - SIZES[index - 1], at
        assert story.lost == {SEGMENT_DAMAGED: SIZES[index - 1]}, at
    assert at > 10


@pytest.mark.parametrize("index", [1, 2])
def test_the_next_segment_tells_what_the_end_of_one_has_lost(tmp_path: Path, index: int) -> None:
    """Nobody made a seal for the bytes that are left: recovery does."""
    scene = Scene(tmp_path / "made", segment_bytes=1)
    path = scene.copied(tmp_path / "copy") / f"{index:06d}.zst"
    content = path.read_bytes()
    path.write_bytes(wiped(content, blocks(path)[-1][0], len(content)))
    story = only(recovered(tmp_path / "copy"))
    before = sum(SIZES[: index - 1])
    assert story.names == scene.told[:before] + scene.told[before + SIZES[index - 1] :]
    assert story.lost == {SEGMENT_DAMAGED: SIZES[index - 1]}


def test_what_no_number_tells_is_not_counted_but_said(tmp_path: Path) -> None:
    """The last block, and no journal is there."""
    scene = Scene(tmp_path / "made")
    folder = scene.copied(tmp_path / "copy")
    (folder / JOURNAL).unlink()
    path = folder / scene.paths[0].name
    offset, end, records = blocks(path)[-1]
    path.write_bytes(wiped(path.read_bytes(), offset, end))
    story = only(recovered(tmp_path / "copy"))
    assert story.names == scene.told[: sum(SIZES) - records]
    assert story.lost == {SEGMENT_DAMAGED: 0}
    assert in_account(tmp_path / "copy", story) == {"recorded": len(story.names)}


def test_a_number_that_cannot_be_is_not_believed(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "made")
    folder = scene.copied(tmp_path / "copy")
    path = folder / scene.paths[0].name
    offset, end, records = blocks(path)[-1]
    path.write_bytes(wiped(path.read_bytes(), offset, end))
    journal = bytearray((folder / JOURNAL).read_bytes())
    for index in range(2):
        at = descriptor(index)
        journal[at : at + WORDS.size] = words_with_far_first(bytes(journal[at : at + WORDS.size]))
    (folder / JOURNAL).write_bytes(journal)
    story = only(recovered(tmp_path / "copy"))
    assert story.names == scene.told[: sum(SIZES) - records] + scene.told[sum(SIZES) :]
    assert story.lost.get(SEGMENT_DAMAGED, 0) <= len(scene.told)


def words_with_far_first(words: bytes) -> bytes:
    generation, _, *rest = WORDS.unpack(words)
    return WORDS.pack(generation, 2**40, *rest)
