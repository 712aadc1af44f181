"""The journal's halves: who has which, what becomes of those that a burst has added; and a disk that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from mailboat.agent.journal import Half, Journal
from mailboat.agent.journal_layout import CHECKPOINT, DURABLE_AT, END, HEAD_SIZE, SIZE, descriptor
from mailboat.agent.leftovers import left_behind
from mailboat.protocol.limits import MEMORY_FALLBACK
from testkit.disk import Unsynced, failure
from testkit.recording import BOOT

RECORD = b"\x93\x01\x00\xa1a"


def same(_: str) -> bool:
    return True


def other(_: str) -> bool:
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    files = Unsynced()
    journal = Journal(files, files.create(path), 0, BOOT)
    yield journal
    journal.close()


def reserved(journal: Journal, needed: int = 1, following: int = 0) -> Half:
    half = journal.reserve(needed, following)
    assert half is not None
    return half


def turned(journal: Journal, content: bytes, following: int) -> Half:
    """Fill the active half and turn to another one; the half that was filled."""
    full = journal.active
    full.memory.write(content)
    full.end_here()
    journal.active = reserved(journal, 1, following)
    journal.taken(journal.active)
    return full


# -- reserving -------------------------------------------------------------------------------------------------------


def test_a_half_that_is_reserved_is_given_to_nobody_else(journal: Journal) -> None:
    first = reserved(journal)
    assert reserved(journal) is not first
    assert len(journal.halves) == 3, "another one was added"


def test_that_a_half_is_active_may_be_said_twice(journal: Journal) -> None:
    half = reserved(journal)
    journal.taken(half)
    journal.taken(half)
    assert (half.reserved, half.in_use) == (False, True)
    assert reserved(journal) is not half


def test_a_half_that_is_given_back_is_the_next_one_to_be_had(journal: Journal) -> None:
    half = reserved(journal, following=5)
    journal.give_back(half)
    assert (half.reserved, half.in_use) == (False, False)
    assert reserved(journal, following=7) is half
    assert half.first == 7
    assert len(journal.halves) == 2


def test_what_fell_between_two_lists_is_free_again(journal: Journal) -> None:
    """An exception from outside ended two callers: one had reserved a half, one had just released one, to no list."""
    wanted = reserved(journal)
    journal.taken(wanted)
    wanted.words[0] = 0
    other_one = reserved(journal)
    journal.free_reserved()
    assert {id(reserved(journal)), id(reserved(journal))} == {id(wanted), id(other_one)}
    assert len(journal.halves) == 3


def test_a_half_that_was_added_and_is_in_no_list_yet_is_free_again(journal: Journal) -> None:
    """An exception from outside ended the caller that had it added for itself."""
    added = reserved(journal, 3 * HEAD_SIZE)
    journal.taken(added)
    journal.give_back(added)
    added.reserved = True
    journal.free_reserved()
    assert not added.reserved
    assert reserved(journal, 3 * HEAD_SIZE) is added


# -- what a burst adds -----------------------------------------------------------------------------------------------


def test_what_a_burst_has_added_is_given_back_and_its_place_in_the_file_used_again(
    journal: Journal, path: Path
) -> None:
    big, bigger = reserved(journal, 3 * HEAD_SIZE), reserved(journal, 40 * HEAD_SIZE)
    size = path.stat().st_size
    for half in (big, bigger):
        journal.taken(half)
        journal.release(half)
    gone = journal.surplus()
    assert set(map(id, gone)) == {id(big), id(bigger)}
    for half in gone:
        half.close()
    assert len(journal.halves) == 2
    again = [reserved(journal, 40 * HEAD_SIZE), reserved(journal, 3 * HEAD_SIZE)]
    assert {half.offset for half in again} == {half.offset for half in gone}, "whatever order they were given back in"
    assert path.stat().st_size == size


def test_what_is_reserved_or_in_use_is_no_surplus(journal: Journal) -> None:
    free = reserved(journal, 3 * HEAD_SIZE)
    kept = [reserved(journal, 3 * HEAD_SIZE) for _ in range(2)]
    journal.give_back(free)
    gone = set(map(id, journal.surplus()))
    assert id(free) in gone
    assert not gone & set(map(id, kept))
    assert gone.isdisjoint(map(id, journal.halves))
    assert set(map(id, [*kept, journal.active])) == set(map(id, journal.halves))


def test_a_size_that_none_of_the_gaps_has_is_taken_at_the_end_of_the_file(journal: Journal) -> None:
    half = reserved(journal, 40 * HEAD_SIZE)
    journal.taken(half)
    journal.release(half)
    for each in journal.surplus():
        each.close()
    larger = reserved(journal, 50 * HEAD_SIZE)
    assert larger.offset == half.offset + half.size


# -- a disk that refuses ---------------------------------------------------------------------------------------------


class Refusing(Unsynced):
    """A disk that has no room while `full`; meanwhile somebody else may come: a signal handler that records."""

    full = False
    meanwhile: Journal | None = None

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if self.meanwhile is not None:
            journal, self.meanwhile = self.meanwhile, None
            assert journal.reserve(3 * HEAD_SIZE, 0) is not None
            raise failure(28)
        if self.full:
            raise failure(28)
        super().allocate(fd, offset, length)


def test_what_the_disk_refuses_is_kept_in_memory_up_to_a_bound(path: Path) -> None:
    files = Refusing()
    journal = Journal(files, files.create(path), 0, BOOT)
    files.full = True
    halves = [journal.reserve(HEAD_SIZE, 0) for _ in range(200)]
    in_memory = [half for half in halves if half is not None and not half.file_backed]
    assert 0 < sum(half.size for half in in_memory) <= MEMORY_FALLBACK
    assert halves[-1] is None
    assert "are kept in memory already" in str(journal.refused)
    files.full = False
    assert journal.reserve(HEAD_SIZE, 0) is not None, "as soon as there is room"
    assert journal.refused is None
    journal.close()


def test_two_that_ask_for_room_at_once_never_get_the_same(path: Path) -> None:
    """The second comes while the first waits for the disk, which then refuses the first."""
    files = Refusing()
    journal = Journal(files, files.create(path), 0, BOOT)
    files.meanwhile = journal
    first = reserved(journal, 3 * HEAD_SIZE)
    assert not first.file_backed
    third = reserved(journal, 3 * HEAD_SIZE)
    places = sorted((half.offset, half.size) for half in journal.halves if half.file_backed)
    assert all(at + size <= following for (at, size), (following, _) in pairwise(places))
    assert third.file_backed
    journal.close()


# -- what is found of it afterwards ----------------------------------------------------------------------------------


def content_of(journal: Journal, path: Path) -> bytearray:
    for half in journal.halves:
        half.memory.flush()
    return bytearray(path.read_bytes())


def test_halves_are_told_in_the_order_in_which_they_were_filled(journal: Journal, path: Path) -> None:
    turned(journal, RECORD, following=1)
    turned(journal, RECORD * 2, following=3)
    told = left_behind(bytes(content_of(journal, path)), same_boot=same)
    assert [(left.first, left.raw) for left in told.halves] == [(0, RECORD), (1, RECORD * 2)]


def test_of_two_checkpoints_the_one_counts_whose_records_reached_the_disk(journal: Journal, path: Path) -> None:
    """The machine died: the newer one is there, and what it vouches for is not."""
    half = journal.active
    for _ in range(2):
        half.memory.write(RECORD)
        half.end_here()
        assert journal.checkpoint(durable=True)
        journal.sync()
    content = content_of(journal, path)
    content[half.offset + len(RECORD)] ^= 0xFF
    (left,) = left_behind(bytes(content), same_boot=other).halves
    assert left.raw == RECORD


def test_a_checkpoint_that_is_torn_itself_vouches_for_nothing(journal: Journal, path: Path) -> None:
    half = journal.active
    half.memory.write(RECORD)
    half.end_here()
    assert journal.checkpoint(durable=True)
    content = content_of(journal, path)
    assert CHECKPOINT.unpack_from(content, descriptor(half.index) + DURABLE_AT[0])[2] == len(RECORD)
    content[descriptor(half.index) + DURABLE_AT[0]] ^= 1
    assert left_behind(bytes(content), same_boot=other).halves == ()


@pytest.mark.parametrize("word", [SIZE, END])
def test_a_descriptor_that_says_the_impossible_costs_its_half_alone(journal: Journal, path: Path, word: int) -> None:
    first = turned(journal, RECORD, following=1)
    turned(journal, RECORD, following=2)
    content = content_of(journal, path)
    at = descriptor(first.index) + 8 * word
    content[at : at + 8] = b"\xff" * 8
    damaged, left = left_behind(bytes(content), same_boot=same).halves
    assert (damaged.raw, damaged.damaged) == (b"", 1), "nobody knows how many, but that there was one"
    assert (left.first, left.damaged) == (1, 0)


def test_where_the_end_of_a_half_is_damaged_its_last_checkpoint_counts(journal: Journal, path: Path) -> None:
    """That of this use of the half: an earlier one vouches for what is in the segment."""
    earlier = turned(journal, RECORD * 3, following=3)
    assert journal.checkpoint(durable=True)
    journal.sync()
    journal.release(earlier)
    half = reserved(journal, following=3)
    assert half is earlier
    content = content_of(journal, path)
    end = slice(descriptor(half.index) + 8 * END, descriptor(half.index) + 8 * END + 8)
    content[end] = b"\xff" * 8
    (left,) = left_behind(bytes(content), same_boot=same).halves
    assert (left.raw, left.damaged) == (b"", 1)
    half.memory.write(RECORD)
    half.end_here()
    assert journal.checkpoint(durable=False)
    half.memory.write(RECORD)
    half.end_here()
    content = content_of(journal, path)
    content[end] = b"\xff" * 8
    (left,) = left_behind(bytes(content), same_boot=same).halves
    assert (left.first, left.raw, left.damaged) == (3, RECORD, 1)


def test_a_forked_child_lets_go_and_changes_nothing(journal: Journal, path: Path) -> None:
    turned(journal, RECORD, following=1)
    before = content_of(journal, path)
    view = journal.active.content()  # as another thread may have when the process forks
    journal.forget()
    view.release()
    assert path.read_bytes() == before
