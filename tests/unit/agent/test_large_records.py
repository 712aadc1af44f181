"""Records that are larger than a half of the journal, or than a record may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

from mailboat.agent.values import CUT
from mailboat.protocol.limits import MAX_JOURNAL, MAX_RECORD, MAX_TEXT, MIN_JOURNAL
from mailboat.protocol.records import Kind, Record
from testkit.recording import Rig, block_records, only, waiting


def recorded(rig: Rig, **attributes: object) -> Record:
    """The record with these attributes, between two others of which nothing is missing."""
    rig.recorder.feature("before")
    rig.recorder.feature("large", **attributes)
    rig.recorder.feature("after")
    assert rig.end()
    story = only(waiting(rig.store))
    assert (story.names, story.lost, story.gaps) == (["before", "large", "after"], {}, [])
    return story.records[1]


@pytest.mark.parametrize("size", [MIN_JOURNAL // 2 - 1000, MIN_JOURNAL // 2, MIN_JOURNAL, 500_000, MAX_RECORD - 100])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_record_that_fits_into_no_half_is_kept_as_it_is(tmp_path: Path, size: int, kind: type) -> None:
    value = "x" * size if kind is str else b"x" * size
    assert recorded(Rig(tmp_path), value=value, beside=1).attributes == {"value": value, "beside": 1}


@pytest.mark.parametrize("over", [0, 1])
def test_a_record_may_have_so_many_bytes_and_no_more_however_large_a_half_is(tmp_path: Path, over: int) -> None:
    rig = Rig(tmp_path, journal_bytes=MAX_JOURNAL)
    without = len(msgpack.packb((Kind.FEATURE, rig.time.clocks.monotonic(), "large", {"value": ""})))
    text = "x" * (MAX_RECORD - without - 4 + over)  # an empty text's head has one byte, such a long one's five
    kept = recorded(rig, value=text).attributes["value"]
    assert kept == ("x" * MAX_TEXT + CUT if over else text)


def test_it_goes_its_own_way_in_a_block_of_its_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    recorded(rig, value="x" * MIN_JOURNAL)
    (segment,) = rig.store.folder.glob("waiting/*/*.zst")
    assert block_records(segment) == [1, 2], "the records before it; it, with what came after it"


BEYOND: dict[str, Any] = {
    "text": "x" * (MAX_RECORD + 1),
    "bytes": b"x" * (MAX_RECORD + 1),
    "bytearray": bytearray(MAX_RECORD + 1),
    "memoryview": memoryview(bytes(MAX_RECORD + 1)),
    "list": [10**10] * MAX_RECORD,
    "map": {f"key {number}": number for number in range(200_000)},
    "texts": ["x" * 1000] * 2000,
    "nested": {"below": {"text": "x" * (2 * MAX_RECORD), "bytes": b"x" * (2 * MAX_RECORD)}},
}


@pytest.mark.parametrize("journal_bytes", [MIN_JOURNAL, MAX_JOURNAL], ids=["no half holds it", "each half holds it"])
@pytest.mark.parametrize("name", BEYOND)
def test_what_is_larger_than_a_record_may_be_is_cut_with_a_marker(
    tmp_path: Path, name: str, journal_bytes: int
) -> None:
    kept = recorded(Rig(tmp_path, journal_bytes=journal_bytes), value=BEYOND[name], beside=1).attributes
    assert kept["beside"] == 1
    value = kept["value"]
    match name:
        case "text":
            assert value == "x" * MAX_TEXT + CUT
        case "bytes" | "bytearray" | "memoryview":
            assert value == bytes(BEYOND[name])[:MAX_TEXT] + CUT.encode()
        case "list" | "texts":
            assert value[-1] == CUT
            assert value[:-1] == BEYOND[name][: len(value) - 1]
        case "map":
            assert value.pop(CUT) == 200_000 - len(value)
            assert value.items() <= BEYOND["map"].items()
        case "nested":
            assert value == {"below": {"text": "x" * MAX_TEXT + CUT, "bytes": b"x" * MAX_TEXT + CUT.encode()}}


@pytest.mark.parametrize("journal_bytes", [MIN_JOURNAL, MAX_JOURNAL])
def test_a_declared_emitter_cuts_as_well(tmp_path: Path, journal_bytes: int) -> None:
    rig = Rig(tmp_path, journal_bytes=journal_bytes)
    rig.recorder.emitter("large", ("value", "beside"))("x" * (2 * MAX_RECORD), 7)
    assert rig.end()
    (record,) = only(waiting(rig.store)).records
    assert record.attributes == {"value": "x" * MAX_TEXT + CUT, "beside": 7}
