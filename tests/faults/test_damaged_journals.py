"""Journals that are damaged after their process died: what is left is kept, in order and once, and what is not is
counted, however often recovery is begun; an unfinished record at the end is no damage.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailboat.agent.journal_layout import (
    DURABLE_AT,
    END,
    FIRST,
    GENERATION,
    HEAD,
    HEAD_CRC,
    HEAD_SIZE,
    LOST,
    LOST_AT,
    OFFSET,
    PASSING_AT,
    SIZE,
    WORDS,
    descriptor,
)
from mailboat.agent.journal_place import JOURNAL
from mailboat.agent.recovery import DAMAGED_JOURNAL
from mailboat.agent.store import LIVE
from testkit.disk import Disk, Killed, Unsynced, killed_at
from testkit.recording import BOOT, OTHER_BOOT, SECOND, Rig, Story, only, recovered

COUNTERS_LOST = range(LOST_AT, LOST_AT + LOST.size)
"""Counts without a checksum: damage to them is a wrong count."""


class Scene:
    """A crashed session: `told` in order, of which the first is in a segment; `vouched` are those before the last
    checkpoint, and the machine's death costs the others; `proven` those before the last but one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        rig = Rig(root, files=Unsynced())
        self.told: list[str] = []
        self.tell(rig, 1)
        assert rig.flush()
        self.tell(rig, 3)
        assert rig.recorder.turn(), "a half that is closed, and in no segment"
        self.tell(rig, 2)
        rig.journal.checkpoint(durable=True)
        rig.journal.sync()
        self.proven = len(self.told)
        self.tell(rig, 2)
        rig.journal.checkpoint(durable=True)
        rig.journal.sync()
        self.vouched = len(self.told)
        self.tell(rig, 4)
        self.halves = {half.index: half.end for half in rig.journal.halves if half.in_use}
        rig.let_go()
        self.journal = rig.store.folder / LIVE / rig.id / JOURNAL
        self.content = self.journal.read_bytes()

    def tell(self, rig: Rig, records: int) -> None:
        for _ in range(records):
            self.told.append(f"record.{len(self.told):02}")
            rig.recorder.feature(self.told[-1], size=len(self.told))

    def place(self, index: int) -> int:
        return int(WORDS.unpack_from(self.content, descriptor(index))[OFFSET])

    def places(self) -> Iterator[int]:
        """Every byte that says anything."""
        yield from range(HEAD.size + HEAD_CRC.size)
        yield from COUNTERS_LOST
        for index, end in self.halves.items():
            for at in (0, *DURABLE_AT, *PASSING_AT):
                yield from range(descriptor(index) + at, descriptor(index) + at + WORDS.size)
            yield from range(self.place(index), self.place(index) + end)

    def recovered_with(self, content: bytes, copy: Path, boot: str = BOOT) -> Story:
        shutil.copytree(self.root, copy)
        (copy / self.journal.relative_to(self.root)).write_bytes(content)
        story = only(recovered(copy, boot, Unsynced()))
        shutil.rmtree(copy)
        return story


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


def changed(content: bytes, at: int, to: bytes) -> bytes:
    return content[:at] + to + content[at + len(to) :]


def check(story: Story, told: list[str], promised: list[str], at: object, *, in_order: bool = True) -> None:
    """What was promised is there or counted, and nothing that was told is there twice or out of order."""
    known = [name for name in story.names if name in told]
    assert sorted(known) == sorted(set(known)), at
    assert known == sorted(known) or not in_order, at
    assert len(story.names) - len(known) <= 1, f"{at}: forged"
    damaged = story.lost.get(DAMAGED_JOURNAL, 0)
    assert len(story.names) >= len(promised) or damaged, f"{at}: {story.names} and nothing else is told"
    assert damaged <= len(told), at


@pytest.mark.parametrize("share", [pytest.param(8, id="some"), pytest.param(1, id="all", marks=pytest.mark.soak)])
@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_every_byte_flipped_costs_little_and_is_counted(
    scene: Scene, tmp_path: Path, boot: str, share: int, seed: int
) -> None:
    """A half that is numbered wrongly may come in the wrong place. After the machine's death nobody knows whether the
    last sync returned: what it was for is not promised.
    """
    promised = scene.told if boot == BOOT else scene.told[: scene.proven]
    numbers = {descriptor(index) + 8 * GENERATION + byte for index in scene.halves for byte in range(8)}
    kept, places = 0, list(scene.places())[seed % share :: share]
    for at in places:
        flipped = bytes([scene.content[at] ^ 0xFF])
        story = scene.recovered_with(changed(scene.content, at, flipped), tmp_path / "s", boot)
        check(story, scene.told, promised, at, in_order=at not in numbers)
        kept += len(story.names)
        if at >= HEAD_SIZE:
            assert len(story.names) >= len(promised) - 4, f"{at}: it costs a stretch, or what is behind the last one"
    assert kept > len(promised) * len(places) * 3 // 4


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_a_number_that_is_damaged_makes_no_loss_of_millions(scene: Scene, tmp_path: Path, boot: str) -> None:
    promised = scene.told if boot == BOOT else scene.told[: scene.proven]
    for index in scene.halves:
        for at in range(descriptor(index) + 8 * FIRST, descriptor(index) + 8 * FIRST + 8):
            flipped = bytes([scene.content[at] ^ 0xFF])
            check(
                scene.recovered_with(changed(scene.content, at, flipped), tmp_path / "s", boot),
                scene.told,
                promised,
                at,
            )


def test_nothing_is_damaged_where_nothing_is(scene: Scene, tmp_path: Path) -> None:
    story = scene.recovered_with(scene.content, tmp_path / "s")
    assert (story.names, story.lost) == (scene.told, {})
    story = scene.recovered_with(scene.content, tmp_path / "s", OTHER_BOOT)
    assert (story.names, story.lost) == (scene.told[: scene.vouched], {})


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_an_unfinished_record_is_no_damage(scene: Scene, tmp_path: Path, boot: str) -> None:
    content = scene.content
    for index, end in scene.halves.items():
        content = changed(content, scene.place(index) + end, content[scene.place(index) :][:17])
    story = scene.recovered_with(content, tmp_path / "s", boot)
    assert story.names == (scene.told if boot == BOOT else scene.told[: scene.vouched])
    assert story.lost == {}


def test_damage_before_a_checkpoint_costs_its_stretch_and_is_counted_exactly(scene: Scene, tmp_path: Path) -> None:
    """Though what the flipped byte is in is well-formed: a letter of a name."""
    index = max(scene.halves)
    for boot, behind in ((BOOT, scene.told[6:]), (OTHER_BOOT, scene.told[6 : scene.vouched])):
        at = scene.content.index(scene.told[5].encode(), scene.place(index))
        story = scene.recovered_with(changed(scene.content, at, b"R"), tmp_path / "s", boot)
        assert story.names == scene.told[:4] + behind
        assert story.lost == {DAMAGED_JOURNAL: 2}


def test_behind_the_last_checkpoint_reading_goes_on_after_the_damage(scene: Scene, tmp_path: Path) -> None:
    at = scene.content.index(scene.told[-3].encode()) - 1
    story = scene.recovered_with(changed(scene.content, at, b"\xc1"), tmp_path / "s")
    assert story.names == [name for name in scene.told if name != scene.told[-3]]
    assert story.lost == {DAMAGED_JOURNAL: 1}


def spoilt(rig: Rig, root: Path, where: bytes) -> Story:
    """The session taken up after its journal was spoilt where it says `where`."""
    rig.let_go()
    journal = rig.store.folder / LIVE / rig.id / JOURNAL
    content = journal.read_bytes()
    journal.write_bytes(changed(content, content.index(where), b"\xc1"))
    return only(recovered(root))


def test_what_an_emitter_recorded_is_found_behind_damage(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", files=Unsynced())
    placed = rig.recorder.emitter("placed", ("at",))
    for at in ("first", "second", "third"):
        placed(at)
    story = spoilt(rig, tmp_path / "store", b"\xa6second")
    assert (story.names, story.lost) == (["placed", "placed"], {DAMAGED_JOURNAL: 1})


def test_a_list_that_looks_like_a_record_is_none(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "store", files=Unsynced())
    rig.recorder.feature("first")
    rig.recorder.feature("second", rows=[1, 1_790_000_000 * SECOND, "forged", {}])
    rig.recorder.feature("third")
    story = spoilt(rig, tmp_path / "store", b"\xa6second")
    assert (story.names, story.lost) == (["first", "third"], {DAMAGED_JOURNAL: 1})


def test_a_page_that_never_came_back_costs_its_stretch_however_whole_what_is_behind_it(
    scene: Scene, tmp_path: Path
) -> None:
    """What stands there may be of another time: only a checksum could tell."""
    index = min(scene.halves, key=lambda each: WORDS.unpack_from(scene.content, descriptor(each))[GENERATION])
    start = scene.place(index)
    for length in (scene.halves[index], scene.halves[index] // 2):
        for boot, behind in ((BOOT, scene.told[4:]), (OTHER_BOOT, scene.told[4 : scene.vouched])):
            story = scene.recovered_with(changed(scene.content, start, bytes(length)), tmp_path / "s", boot)
            assert story.names == [scene.told[0], *behind]
            assert story.lost == {DAMAGED_JOURNAL: 3}, "as the numbers of those behind it tell"


@pytest.mark.parametrize("time", [2**63, 2**64 - 1])
def test_a_damaged_time_hinders_no_seal(tmp_path: Path, time: int) -> None:
    rig = Rig(tmp_path / "store", files=Unsynced())
    rig.recorder.feature("a")
    rig.let_go()
    journal = rig.store.folder / LIVE / rig.id / JOURNAL
    content = journal.read_bytes()
    journal.write_bytes(changed(content, content.index(b"\xcf", HEAD_SIZE) + 1, time.to_bytes(8)))
    assert only(recovered(tmp_path / "store")).names == ["a"]


@pytest.mark.parametrize("word", [GENERATION, OFFSET, SIZE, END])
def test_a_word_that_says_nothing_hides_no_records(scene: Scene, tmp_path: Path, word: int) -> None:
    for index in scene.halves:
        content = changed(scene.content, descriptor(index) + 8 * word, bytes(8))
        check(scene.recovered_with(content, tmp_path / "s"), scene.told, scene.told, word)


def test_damage_to_what_is_in_a_segment_already_costs_nothing(tmp_path: Path) -> None:
    """The process died after the block was written, and before the half was free."""
    rig = Rig(tmp_path / "store", files=Unsynced())
    for name in ("a", "b", "c"):
        rig.recorder.feature(name)
    folder = rig.store.folder / LIVE / rig.id
    journal = (folder / JOURNAL).read_bytes()
    assert rig.flush()
    rig.let_go()
    (folder / JOURNAL).write_bytes(changed(journal, journal.index(b"\xa1b"), b"\xc1"))
    story = only(recovered(tmp_path / "store"))
    assert (story.names, story.lost) == (["a", "b", "c"], {})


def test_killed_at_any_call_and_begun_again_it_counts_the_same(scene: Scene, tmp_path: Path) -> None:
    index = max(scene.halves)
    content = changed(scene.content, scene.content.index(scene.told[5].encode(), scene.place(index)), b"R")
    content = changed(content, scene.place(min(scene.halves)), bytes(scene.halves[min(scene.halves)] // 2))
    whole = scene.recovered_with(content, tmp_path / "whole")
    assert whole.lost[DAMAGED_JOURNAL] > 2
    for at in range(1, 1000):
        root = tmp_path / "killed"
        shutil.copytree(scene.root, root)
        (root / scene.journal.relative_to(scene.root)).write_bytes(content)
        killed = False
        for _ in range(2):
            disk = Disk(killed_at(at), real=Unsynced())
            try:
                recovered(root, files=disk.files)
            except Killed:
                killed = True
            disk.bury()
        story = only(recovered(root))
        assert (story.names, story.lost, story.numbers) == (whole.names, whole.lost, whole.numbers), at
        shutil.rmtree(root)
        if not killed:
            assert at > 10
            return
    raise AssertionError("it never came to its end")
