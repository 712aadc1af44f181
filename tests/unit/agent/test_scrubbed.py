"""An agent that is told to scrub: no planted secret reaches the store, and nothing else is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from mailboat.agent.scrub import Scrubber
from mailboat.agent.scrubbed import ScrubbedRecorder
from mailboat.agent.secret_names import REDACTED
from mailboat.protocol import Record, SegmentReader
from mailboat.protocol.reader import decompress
from mailboat.protocol.segment import SealReason
from testkit.recording import Rig, only, recovered

PLANTED = "PLANTED-SECRET"


def own(_name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key != "path"}


def stored(root: Path) -> tuple[list[Record], bytes]:
    """The records in a store, and every byte of it, decompressed where that says more."""
    records, content = [], b""
    for path in root.rglob("*"):
        if path.is_file():
            content += path.read_bytes()
    for path in sorted(root.rglob("*.zst")):
        data = path.read_bytes()
        content += b"".join(map(decompress, SegmentReader(data).blocks()))
        records += list(SegmentReader(data))
    return records, content


async def test_no_planted_secret_reaches_the_store(tmp_path: Path) -> None:
    async with Agent(store=tmp_path, server=None, product="p", scrub=own) as agent:
        agent.feature("a", password=PLANTED, path=PLANTED, rows=1, name="n")
        agent.value("b", 2.5, unit="s", token=PLANTED, number=7)
        with agent.timing("c", cookie=PLANTED, rows=3):
            pass
        agent.event("d", message="text", nested={"authorization": [PLANTED]}, level_of_detail=4)
        agent.exception(ValueError("no"), context="here", api_key=PLANTED, rows=5)
        agent.set_installation("inst", secret=PLANTED, plan="pro")
        placed = agent.emitter("e", "user", "password", "path")
        placed(6, PLANTED, PLANTED)
    records, content = stored(tmp_path)
    assert PLANTED.encode() not in content
    assert [record.kind for record in records] == [
        *("feature", "value", "timing", "event", "exception", "installation", "feature")
    ]
    assert [dict(record.attributes) for record in records] == [
        {"password": REDACTED, "rows": 1, "name": "n"},
        {"token": REDACTED, "number": 7},
        {"cookie": REDACTED, "rows": 3},
        {"nested": {"authorization": REDACTED}, "level_of_detail": 4},
        {"api_key": REDACTED, "rows": 5},
        {"secret": REDACTED, "plan": "pro"},
        {"user": 6, "password": REDACTED, "path": None},
    ]
    assert (records[1].value, records[1].unit, records[3].message, records[4].context) == (2.5, "s", "text", "here")


async def test_a_record_whose_scrubbing_fails_is_dropped_and_counted(tmp_path: Path) -> None:
    def failing(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        return {"kept": 1 / attributes["rows"]} if name == "a" else {}

    async with Agent(store=tmp_path, server=None, product="p", scrub=failing) as agent:
        for rows in (1, 0, 2, "x"):
            agent.feature("a", rows=rows)
        lost = agent.status.lost
    records, _ = stored(tmp_path)
    assert [dict(record.attributes) for record in records] == [{"kept": 1.0}, {"kept": 0.5}]
    assert lost == {"scrub_failed": 2}


def test_what_scrubbing_dropped_is_known_after_a_crash_and_its_error_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(attributes["street"])

    rig = Rig(tmp_path)
    recorder = ScrubbedRecorder(rig.recorder, Scrubber(failing))
    for _ in range(3):
        recorder.feature("a", street=PLANTED)
    rig.recorder.feature("kept")
    rig.let_go()
    story = only(recovered(tmp_path))
    assert (story.names, story.lost, story.reasons) == (["kept"], {"scrub_failed": 3}, [SealReason.CRASHED])
    assert "scrub raised ValueError" in caplog.text
    assert PLANTED not in caplog.text
