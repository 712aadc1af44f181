"""What follows from final words: entered into the ledger and moved, together where several come at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from mailboat.agent.backlog import Backlog, read
from mailboat.agent.ended import Waiting
from mailboat.agent.entries import Entry, Fate
from mailboat.agent.ledger import FILE_NAME
from mailboat.agent.report import SessionOutcome, SessionState
from mailboat.agent.rounds import Rounds
from mailboat.agent.sources import Sources
from mailboat.agent.store import SENT, WAITING, Store
from mailboat.agent.stores import Stores
from mailboat.agent.window import Window
from testkit.disk import Unsynced
from testkit.recording import Rig, Time

SESSIONS = 6


class Watched(Unsynced):
    """Counts how often the ledger is written, and refuses that if told to."""

    def __init__(self) -> None:
        self.written = 0
        self.full = False

    def replace_content(self, path: Path, content: bytes) -> None:
        if path.name == FILE_NAME:
            self.written += 1
            if self.full:
                raise OSError("the disk is full")
        super().replace_content(path, content)


class Ends:
    """Rounds whose server has answered."""

    def __init__(self, root: Path) -> None:
        self.files, time = Watched(), Time(1)
        for _ in range(SESSIONS):
            rig = Rig(root, files=self.files, time=time)
            rig.recorder.feature("made")
            rig.end()
        self.store = Store(self.files, root, "product", "application")
        self.stores = Stores(self.store)
        self.stores.become_sender()
        self.told: list[SessionOutcome] = []
        unused = cast("Any", None)
        self.rounds = Rounds(
            http=unused,
            sources=Sources(self.stores, unused, ThreadPoolExecutor(1)),
            clocks=time.clocks,
            uploader=unused,
            backlog=Backlog(lambda: None),
            agent="test",
            concurrency=1,
            purge=False,
            traffic=unused,
            reached=unused,
            told=self.told.append,
        )
        look = read(self.stores)
        self.rounds.backlog.seen(look)
        self.waiting: tuple[Waiting, ...] = look.found.waiting

    def replies(self) -> list[tuple[list[Entry], Window]]:
        """Two sessions each, accepted."""
        entries = [Entry(each.summary, fate=Fate.ACCEPTED) for each in self.waiting]
        return [(entries[at : at + 2], Window()) for at in range(0, SESSIONS, 2)]


async def test_ends_that_come_together_cost_one_write_of_the_ledger(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    replies, before = ends.replies(), ends.files.written
    await asyncio.gather(*(ends.rounds._finish(ended, window) for ended, window in replies))
    assert ends.files.written - before == 1
    assert [len(window.ended) for _, window in replies] == [2, 2, 2], "each is told to its own window"
    assert [each.state for each in ends.told] == [SessionState.ACCEPTED] * SESSIONS
    assert ends.rounds.backlog.sessions == 0
    assert ends.rounds.backlog.ledger.accepted == SESSIONS
    assert len(ends.files.names(ends.store.folder / SENT)) == SESSIONS


async def test_ends_that_the_disk_refuses_together_are_looked_at_again_together(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    ends.files.full = True
    done = await asyncio.gather(
        *(ends.rounds._finish(ended, window) for ended, window in ends.replies()), return_exceptions=True
    )
    assert any(isinstance(each, OSError) for each in done)
    assert ends.told == []
    assert ends.rounds._unentered.keys() == {each.summary.session_id for each in ends.waiting}
    assert not ends.store.sending, "whoever becomes the sender reads the ledger anew"
    assert len(ends.files.names(ends.store.folder / WAITING)) == SESSIONS


async def test_who_is_cancelled_waits_until_his_ends_are_entered(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    tasks = [asyncio.create_task(ends.rounds._finish(ended, window)) for ended, window in ends.replies()]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in done)
    assert len(ends.told) == SESSIONS
    with pytest.raises(FileNotFoundError):
        ends.files.read(ends.store.folder / WAITING / ends.told[0].session_id / "000000.zst")
