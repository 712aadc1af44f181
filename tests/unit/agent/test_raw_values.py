"""Values that msgspec packs as they stand, whatever they are: one such record costs itself, never its neighbours."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest

from mailboat.agent.segment_file import segment_name
from mailboat.agent.store import WAITING
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.reader import Gap, SegmentReader, raw_records
from mailboat.protocol.records import Kind, Record
from mailboat.protocol.segment import BLOCK_START, SEAL_START, SEAL_TAG
from testkit.recording import SECOND, Rig, only, recovered

AROUND = 12
"""Records before and behind."""


class Uncollected(msgspec.Struct, gc=False):
    """Passes for a plain value up to Python 3.13."""

    held: msgspec.Raw


def packed(*values: object) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, values))


def forged(time: int) -> bytes:
    return packed((Kind.FEATURE, time, "forged", {"a": 1}))


EVIL = {
    "nothing": b"",
    "two values": packed(1, 2),
    "an invalid byte": b"\xc1",
    "half a map": b"\x82\x01",
    "half a list": b"\x93\x01",
    "a map without end": b"\xdf\xff\xff\xff\xff",
    "a text that takes in some records": b"\xda\x01\x00",
    "a text that takes in all": b"\xdb\x00\x10\x00\x00",
    "bytes that take in one record": b"\xc4\x40",
    "JSON": b'{"name": "value", "more": [1, 2, 3]}',
    "half a record": forged(1000 * SECOND)[:-3],
    "a record in place of a value": forged(1000 * SECOND),
    "records of another time": packed(1) + forged(10**17) * 3,
    "the head of a record": packed(1) + forged(1000 * SECOND)[:9],
    "a block": BLOCK_START * 3,
    "a seal": SEAL_START + bytes(20) + SEAL_TAG,
}


def record(rig: Rig, evil: object, place: int) -> None:
    """One record with something evil in it, at that place among the attributes, between others."""
    for number in range(AROUND):
        rig.recorder.feature(f"before.{number}", a=number, b="x" * number, c=None)
    names = ["a", "b", "c"]
    rig.recorder.feature("evil", **{name: evil if at == place else at for at, name in enumerate(names)})
    for number in range(AROUND):
        rig.recorder.feature(f"behind.{number}", a=number, b="x" * number, c=None)


def expected() -> dict[int, str]:
    before = {number: f"before.{number}" for number in range(AROUND)}
    return before | {AROUND + 1 + number: f"behind.{number}" for number in range(AROUND)}


def read(folder: Path) -> tuple[list[Record], list[Gap]]:
    reader = SegmentReader((folder / segment_name(0)).read_bytes())
    return list(reader), reader.gaps


def check(folder: Path) -> None:
    """All others are there, with their numbers and values; the one may be there, or is a gap."""
    records, gaps = read(folder)
    others = {each.sequence: each for each in records if each.sequence != AROUND}
    assert {number: each.name for number, each in others.items()} == expected(), gaps
    for number, each in others.items():
        at = number if number < AROUND else number - AROUND - 1
        assert each.attributes == {"a": at, "b": "x" * at, "c": None}
    missing = [number for number in range(2 * AROUND + 1) if number not in {each.sequence for each in records}]
    assert missing == [gap.first for gap in gaps]
    assert all(gap.records == 1 for gap in gaps)


def written(root: Path, evil: object, place: int) -> Path:
    """The folder of a session that was written as ever."""
    rig = Rig(root)
    record(rig, evil, place)
    assert rig.end()
    return rig.store.folder / WAITING / rig.id


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("what", EVIL)
def test_a_raw_value_costs_its_own_record_alone(tmp_path: Path, what: str, place: int) -> None:
    check(written(tmp_path, msgspec.Raw(EVIL[what]), place))


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("what", EVIL)
def test_so_does_one_within_another(tmp_path: Path, what: str, place: int) -> None:
    check(written(tmp_path, Uncollected(msgspec.Raw(EVIL[what])), place))


@pytest.mark.parametrize("code", [-1, 5])
@pytest.mark.parametrize("data", [b"", b"bad", bytes(12)])
def test_so_does_an_extension(tmp_path: Path, code: int, data: bytes) -> None:
    check(written(tmp_path, msgspec.msgpack.Ext(code, data), 1))


def as_many(folder: Path) -> bool:
    """Whether there seem to be as many records as there should be: what was made up is as much as what was taken in."""
    blocks = SegmentReader((folder / segment_name(0)).read_bytes()).blocks()
    try:
        return bool(raw_records(next(blocks), {}))
    except SegmentError:
        return False


def test_whatever_bytes_they_are(tmp_path: Path, seed: int) -> None:
    """By chance, one time in thousands, they make as many records as they take in, and nobody can tell."""
    chance = random.Random(seed)
    for number in range(40):
        drawn = chance.randbytes(chance.randrange(40))
        place = chance.randrange(3)
        folder = written(tmp_path / str(number), msgspec.Raw(drawn), place)
        try:
            if as_many(folder):
                names = [each.name for each in read(folder)[0]]
                assert names[:AROUND] == [f"before.{at}" for at in range(AROUND)]
            else:
                check(folder)
        except AssertionError as error:
            raise AssertionError(f"{drawn!r} at {place}") from error


@pytest.mark.parametrize("what", EVIL)
def test_so_it_does_where_a_crash_comes_in_between(tmp_path: Path, what: str) -> None:
    """In a half of the journal behind which there is another; so it is known how many records it should have."""
    rig = Rig(tmp_path)
    record(rig, msgspec.Raw(EVIL[what]), 1)
    assert rig.recorder.turn()
    rig.recorder.feature("last")
    rig.let_go()
    story = only(recovered(tmp_path))
    assert [name for name in story.names if name not in ("evil", "forged")] == [*expected().values(), "last"]
    assert len(story.names) + sum(story.lost.values()) == 2 * AROUND + 2


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("what", ["an invalid byte", "two values", "a map without end", "JSON", "a block"])
def test_and_in_the_last_half_unless_it_takes_in_others(tmp_path: Path, what: str, checked: bool) -> None:
    rig = Rig(tmp_path)
    for _ in range(10):
        record(rig, 1, 0)
    record(rig, msgspec.Raw(EVIL[what]), 1)
    if checked:  # so that the journal vouches for each byte of it
        rig.journal.checkpoint(durable=True)
        rig.journal.sync()
    rig.let_go()
    story = only(recovered(tmp_path))
    assert [name for name in story.names if name != "evil"] == list(expected().values()) * 11
