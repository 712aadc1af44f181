"""What a damaged disk has left of a crashed session is delivered: its records arrive, once and in order, and what is
missing shows as a gap.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent, SessionState
from mailboat.agent.host import boot_id
from mailboat.agent.journal_place import JOURNAL
from mailboat.agent.recovery import DAMAGED_JOURNAL
from mailboat.agent.segment_file import segment_name
from mailboat.agent.store import LIVE
from mailboat.protocol import SegmentReader
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, SEGMENT_DAMAGED
from testkit.agents import AgentMaker
from testkit.disk import Unsynced
from testkit.recording import Rig, Time
from testkit.serverkit import PRODUCT
from testkit.servers import Given

NO_RECORD = 0xC1
"""A byte with which nothing begins that a journal holds."""


class Crashed:
    """A session whose process died: blocks of three records in its segment, and two halves of three in its journal."""

    def __init__(self, store: Path) -> None:
        self.told: list[str] = []
        now = Time(offset=time.time_ns() - Time().monotonic)
        rig = Rig(store, files=Unsynced(), time=now, boot=boot_id(), product=PRODUCT)
        for _ in range(3):
            self.tell(rig)
            assert rig.flush()
        self.tell(rig)
        assert rig.recorder.turn()
        self.tell(rig)
        rig.let_go()
        self.id = rig.id
        self.folder = rig.store.folder / LIVE / rig.id

    def tell(self, rig: Rig) -> None:
        for _ in range(3):
            self.told.append(f"record.{len(self.told):02}")
            rig.recorder.feature(self.told[-1])

    def damage(self, what: str) -> None:
        """Change one byte."""
        path = self.folder / (JOURNAL if what == "the journal" else segment_name(0))
        content = bytearray(path.read_bytes())
        if what == "the journal":
            content[content.index(self.told[10].encode()) - 1] = NO_RECORD
        else:
            block = list(SegmentReader(content).blocks())[1]
            content[block.offset + (20 if what == "a header" else BLOCK_HEADER_SIZE + 20)] ^= 0xFF
        path.write_bytes(content)


async def loaded(given: Given, session_id: str, records: int) -> dict[str, Any]:
    """The session, when so many of its records were loaded."""
    async with asyncio.timeout(20):
        while (session := await given.get(f"sessions/{session_id}"))["loaded"] < records:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)
    return session


@pytest.mark.parametrize(
    ("what", "lost", "gap"),
    [
        # The half's other records move up: it is the numbers before the next half that are missing.
        ("the journal", [10], (11, 1)),
        ("a header", [3, 4, 5], (3, 3)),
        ("a payload", [3, 4, 5], (3, 3)),
    ],
)
async def test_damage_costs_what_it_touches_and_the_rest_arrives(
    tmp_path: Path, make_agent: AgentMaker, given: Given, what: str, lost: list[int], gap: tuple[int, int]
) -> None:
    crashed = Crashed(tmp_path / "store")
    crashed.damage(what)
    kept = [name for at, name in enumerate(crashed.told) if at not in lost]
    async with make_agent(application="application") as agent:
        report = await agent.force_sync(timeout=30.0)
        outcomes = {each.session_id: each.state for each in report.sessions}
        ledger = agent.status.ledger
    assert outcomes[crashed.id] is SessionState.ACCEPTED, report
    assert (ledger.accepted, dict(ledger.rejected)) == (len(kept), {})
    assert dict(ledger.lost) == {DAMAGED_JOURNAL if what == "the journal" else SEGMENT_DAMAGED: len(lost)}
    assert ledger.recorded == len(crashed.told)
    session = await loaded(given, crashed.id, len(kept))
    page = await given.get(f"sessions/{crashed.id}/records")
    assert [record["name"] for record in page["records"]] == kept
    for gaps in (session["gaps"], page["gaps"]):
        assert [(each["first"], each["records"]) for each in gaps] == [gap]
    assert (session["delivered"], session["records"], session["loaded"]) == (True, len(kept), len(kept))


async def sent_while_it_ran(agent: Agent, told: list[str]) -> None:
    """Three blocks of three records that the server has, and a fourth one that it has not."""
    for block in range(4):
        for _ in range(3):
            told.append(f"record.{len(told):02}")
            agent.feature(told[-1])
        assert await agent.flush(durable=True)
        if block == 2:
            await agent.force_sync(timeout=30.0)


def change(path: Path, damaged: list[int], at: int) -> None:
    """Change one byte of each of these blocks."""
    content = bytearray(path.read_bytes())
    blocks = list(SegmentReader(content).blocks())
    for block in damaged:
        content[blocks[block].offset + at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("at", [20, BLOCK_HEADER_SIZE + 5])
@pytest.mark.parametrize(
    ("damaged", "missing"), [([0], []), ([1], []), ([2], []), ([3], [3]), ([1, 3], [3]), ([0, 1, 2, 3], [3])]
)
async def test_what_a_server_has_of_a_session_is_not_given_up_when_the_disk_is_damaged_later(
    tmp_path: Path, make_agent: AgentMaker, given: Given, damaged: list[int], missing: list[int], at: int
) -> None:
    """It was sent while it ran, up to its third block. The seal that recovery makes is not of the bytes that are there
    then: it says so, and each block vouches for itself.
    """
    told: list[str] = []
    store, left = tmp_path / "store", tmp_path / "left"
    async with make_agent(store=store, stop_timeout=0.0) as agent:
        session_id = agent.session_id
        assert session_id is not None
        await sent_while_it_ran(agent, told)
        await loaded(given, session_id, 9)
        shutil.copytree(store, left)  # as if the process was killed here
    (path,) = left.glob(f"*/*/{LIVE}/{session_id}/{segment_name(0)}")
    change(path, damaged, at)
    kept = [name for number, name in enumerate(told) if number // 3 not in missing]
    async with make_agent(store=left) as agent:
        report = await agent.force_sync(timeout=30.0)
        outcomes = {each.session_id: each.state for each in report.sessions}
        ledger = agent.status.ledger
    assert outcomes[session_id] is SessionState.ACCEPTED, report
    assert (ledger.accepted, dict(ledger.rejected)) == (len(told) - 3 * len(damaged), {})
    assert sum(ledger.lost.values()) == 3 * len(damaged), ledger
    await loaded(given, session_id, len(kept))
    page = await given.get(f"sessions/{session_id}/records")
    assert [record["name"] for record in page["records"]] == kept
    assert [record["sequence"] for record in page["records"]] == [told.index(name) for name in kept]
