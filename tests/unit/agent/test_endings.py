"""What follows from final words: entered into the ledger and moved, together where several come at once."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from mailboat.agent import rounds
from mailboat.agent.backlog import Backlog, Look, Sums, read
from mailboat.agent.ended import Waiting
from mailboat.agent.entries import Entry, Fate
from mailboat.agent.eviction import evict
from mailboat.agent.files import Place
from mailboat.agent.http import Answer
from mailboat.agent.ledger import FILE_NAME
from mailboat.agent.planner import BESIDE
from mailboat.agent.quota import Quota
from mailboat.agent.report import SessionOutcome, SessionState
from mailboat.agent.rounds import Rounds
from mailboat.agent.segment_file import SUFFIX
from mailboat.agent.sources import Sources
from mailboat.agent.store import SENT, WAITING, Store
from mailboat.agent.stores import Stores
from mailboat.agent.traffic import Traffic
from mailboat.agent.window import Window
from mailboat.protocol import wire
from mailboat.protocol.limits import MAX_RIDER
from mailboat.protocol.negotiation import (
    SERVER_HEADER,
    Decision,
    Policy,
    Reply,
    Request,
    Riding,
    SegmentDecision,
    Verdict,
)
from mailboat.protocol.summary import Summary
from testkit.disk import Unsynced
from testkit.recording import Rig, Time

SESSIONS = 6


class Watched(Unsynced):
    """Counts how often the ledger is written, and refuses that if told to."""

    def __init__(self) -> None:
        self.written = 0
        self.full = False
        self.order: list[str] = []
        self.on_move: Callable[[], object] = lambda: None

    def rename(self, source: Place, target: Place) -> None:
        if Path(target).parent.name == SENT:
            self.order.append("move")
            self.on_move()
        super().rename(source, target)

    def read(self, path: Place) -> bytes:
        if Path(path).suffix == SUFFIX:
            self.order.append("read")
        return super().read(path)

    def replace_content(self, path: Path, content: bytes) -> None:
        if path.name == FILE_NAME:
            self.order.append("enter")
            self.written += 1
            if self.full:
                raise OSError("the disk is full")
        super().replace_content(path, content)


class Ends:
    """Rounds whose server has answered."""

    def __init__(self, root: Path, http: object = None) -> None:
        """`http` takes the requests, where there are any."""
        self.files, time = Watched(), Time(1)
        for _ in range(SESSIONS):
            rig = Rig(root, files=self.files, time=time)
            rig.recorder.feature("made")
            rig.end()
        self.store = Store(self.files, root, "product", "application")
        self.stores = Stores(self.store)
        self.stores.become_sender(time.clocks.new_id)
        self.told: list[SessionOutcome] = []
        unused = cast("Any", None)
        self.rounds = Rounds(
            http=cast("Any", http),
            sources=Sources(self.stores, unused, ThreadPoolExecutor(1)),
            clocks=time.clocks,
            uploader=unused,
            backlog=Backlog(lambda: None),
            agent="test",
            concurrency=1,
            purge=False,
            traffic=Traffic(time.clocks),
            reached=lambda: None,
            told=self.told.append,
        )
        self.rounds.backlog.seen(read(self.stores))
        self.waiting: tuple[Waiting, ...] = self.stores.look().waiting

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


def test_what_a_session_has_lost_leaves_the_sums_with_it(tmp_path: Path) -> None:
    whole = Ends(tmp_path).waiting[0].summary
    both, sums = (whole, replace(whole, lost={"full": 3})), Sums()
    for each in both:
        sums.add(each)
    assert (sums.records, sums.lost) == (2 * whole.records, {"full": 3})
    for each in both:
        sums.take_away(each)
    assert (sums.records, +sums.lost) == (0, {})


async def _turns() -> None:
    """Let everything that is ready to run get to where it has to wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_ends_wait_for_those_that_are_about_to_come(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    replies, before = ends.replies(), ends.files.written
    ends.rounds._answering = 1
    tasks = [asyncio.create_task(ends.rounds._finish(*replies[0]))]
    await _turns()
    assert ends.rounds._enters.locked()
    tasks += [asyncio.create_task(ends.rounds._finish(*each)) for each in replies[1:]]
    ends.rounds._answered()
    await asyncio.gather(*tasks)
    assert ends.files.written - before == 1
    assert len(ends.told) == SESSIONS


async def test_ends_wait_no_longer_once_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "GATHERED", 4)
    monkeypatch.setattr(rounds, "GATHERING", 3600.0)
    ends = Ends(tmp_path)
    ends.rounds._answering = 1
    first, second, third = ends.replies()
    async with asyncio.timeout(60):
        await asyncio.gather(ends.rounds._finish(*first), ends.rounds._finish(*second))
    assert len(ends.told) == 4
    alone = asyncio.create_task(ends.rounds._finish(*third))
    await _turns()
    assert ends.rounds._enters.locked()
    assert not alone.done()
    ends.rounds._answered()  # the last request has its answer: nothing more can come
    await alone
    assert len(ends.told) == SESSIONS


async def test_ends_wait_for_no_answer_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "GATHERING", 0.0)
    ends = Ends(tmp_path)
    ends.rounds._answering = 1
    await ends.rounds._finish(*ends.replies()[0])
    assert len(ends.told) == 2


class Takes:
    """Stands for the line to a server that wants all sessions, one in a request, and has those that came along."""

    def __init__(self) -> None:
        self.riders: list[int] = []

    def url(self, path: str) -> str:
        return path

    async def request(
        self, _method: str, _url: str, _headers: object, body: AsyncIterator[bytes | memoryview], _limit: int
    ) -> Answer:
        request = Request.decode(wire.decompress(b"".join([bytes(piece) async for piece in body])))
        came = {rider.session_id for rider in request.riders}
        self.riders.append(len(came))
        size = max(offer.size for offer in request.offers)
        decisions = tuple(_decided(offer, here=offer.session_id in came) for offer in request.offers)
        reply = Reply(decisions, policy=Policy(riding=Riding(MAX_RIDER, size)))
        headers = {SERVER_HEADER.lower(): "1", "content-type": wire.MSGPACK_MEDIA_TYPE}
        return Answer(200, headers, reply.encode())


def _decided(offer: Summary, *, here: bool) -> Decision:
    states = tuple(
        SegmentDecision(each.index, "/u", each.size if here else 0, here, each.sha256 if here else "")
        for each in offer.segments
    )
    return Decision(offer.session_id, Verdict.HAVE if here else Verdict.SEND, segments=states)


async def test_the_next_request_is_read_before_the_ends_of_the_last_one_are_entered(tmp_path: Path) -> None:
    """The server waits for the one, and nobody for the other."""
    line = Takes()
    ends = Ends(tmp_path, line)
    ends.files.order.clear()
    await ends.rounds.run(Window())
    assert line.riders == [0] + [1] * SESSIONS
    assert [each.state for each in ends.told] == [SessionState.ACCEPTED] * SESSIONS
    assert ends.files.order.index("enter") > BESIDE, ends.files.order


async def test_what_is_put_away_leaves_the_disk_to_others_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segments of the next request are read between two of its pieces."""
    monkeypatch.setattr(rounds, "PUT_AWAY", 2)
    ends = Ends(tmp_path)
    order = ends.files.order

    def another() -> None:
        ends.files.on_move = lambda: None
        ends.rounds.sources.disk.submit(order.append, "other")

    order.clear()
    ends.files.on_move = another
    await asyncio.gather(*(ends.rounds._finish(ended, window) for ended, window in ends.replies()))
    assert order == ["enter", "move", "move", "other", *["move"] * (SESSIONS - 2)]


class Hanging(Ends):
    """The disk hangs when the first session is to be moved, until it may go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.moving, self.go_on = threading.Event(), threading.Event()
        self.files.on_move = self._hang

    def _hang(self) -> None:
        self.moving.set()
        assert self.go_on.wait(60)

    async def cancelled(self) -> None:
        """A round that enters ends is cancelled while the disk hangs."""
        round_ = asyncio.create_task(self.rounds._finish(*self.replies()[0]))
        assert await asyncio.to_thread(self.moving.wait, 60)
        round_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await round_


async def test_who_is_cancelled_waits_for_no_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LEAVE_TIMEOUT", 0.01)
    ends = Hanging(tmp_path)
    await ends.cancelled()
    assert ends.told == []
    ends.go_on.set()
    await ends.rounds.settled()
    assert len(ends.told) == 2
    assert len(ends.files.names(ends.store.folder / SENT)) == 2


async def test_what_a_hanging_disk_has_not_moved_when_the_agent_stops_is_moved_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "LEAVE_TIMEOUT", 0.01)
    monkeypatch.setattr(rounds, "PUT_AWAY", 1)
    ends, told = Hanging(tmp_path), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    await ends.cancelled()
    ends.rounds.sources.disk.submit(ends.stores.cease_sending)
    cast("ThreadPoolExecutor", ends.rounds.sources.disk).shutdown(wait=False)
    ends.go_on.set()
    await ends.rounds.settled()
    gc.collect()
    assert told == [], "the host's loop hears of an error"
    assert ends.rounds.backlog.ledger.recorded == SESSIONS
    cast("ThreadPoolExecutor", ends.rounds.sources.disk).shutdown(wait=True)
    later = Store(ends.files, tmp_path, "product", "application")
    assert later.become_sender()
    assert len(later.files.names(later.folder / SENT)) == 2
    assert later.ledger.account(SESSIONS - 2, {}).accepted == 2


async def test_the_account_balances_while_ends_are_entered_and_put_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session is in the ledger before its folder is moved, and long before the loop hears of it."""
    monkeypatch.setattr(rounds, "PUT_AWAY", 2)
    ends, accounts = Ends(tmp_path), list[tuple[int, int]]()

    def look() -> None:
        account = ends.rounds.backlog.ledger
        accounts.append((account.recorded, account.accepted))

    ends.files.on_move = look
    for ended, window in ends.replies():
        await ends.rounds._finish(ended, window)
        look()
    assert accounts == [(SESSIONS, known) for known in (0, 0, 2, 2, 2, 4, 4, 4, SESSIONS)]
    ends.rounds.backlog.seen(read(ends.stores))
    assert ends.rounds.backlog.ledger == ends.store.ledger.account(0, {})


async def test_the_account_balances_after_sessions_were_given_up(tmp_path: Path) -> None:
    """Which is done on the store's thread, at any time."""
    ends = Ends(tmp_path)
    relief = evict(ends.store, Quota(max_bytes=0, max_age=math.inf, min_free=0), 0.0)
    assert sum(relief.evicted.values()) == SESSIONS
    assert ends.rounds.backlog.ledger.recorded == SESSIONS
    ends.rounds.backlog.seen(read(ends.stores))
    account = ends.rounds.backlog.ledger
    assert (account.recorded, account.pending, sum(account.evicted.values())) == (SESSIONS, 0, SESSIONS)


async def test_what_cannot_be_moved_after_it_was_entered_counts_once(tmp_path: Path) -> None:
    ends = Ends(tmp_path)

    def refuse() -> None:
        raise OSError("the disk refuses")

    ends.files.on_move = refuse
    with pytest.raises(OSError, match="refuses"):
        await ends.rounds._finish(*ends.replies()[0])
    look = read(ends.stores)
    ends.rounds.backlog.seen(look)
    account = ends.rounds.backlog.ledger
    assert (account.recorded, account.accepted, account.pending) == (SESSIONS, 2, SESSIONS - 2)
    assert len(ends.files.names(ends.store.folder / WAITING)) == SESSIONS
    assert look.bytes == sum(summary.size for summary in look.summaries.values())


async def test_a_session_that_cannot_be_read_is_in_the_account_when_it_was_put_aside(tmp_path: Path) -> None:
    ends = Ends(tmp_path)
    damaged = ends.waiting[0].home / ends.waiting[0].summary.session_id / f"000000{SUFFIX}"
    damaged.write_bytes(bytes(20) + damaged.read_bytes()[20:])
    ends.store._known.clear()
    await ends.rounds._look(Window(), sender=True)
    account = ends.rounds.backlog.ledger
    assert account == ends.store.ledger.account(SESSIONS - 1, {})
    assert account.lost == {"unreadable": 1}


async def test_a_round_looks_when_the_ends_of_the_last_one_are_put_away(tmp_path: Path) -> None:
    """What is entered and still lies there would be counted twice."""
    line = Takes()
    ends, away = Ends(tmp_path, line), asyncio.Event()
    entering = asyncio.create_task(_until(away))
    ends.rounds._entering.add(entering)
    entering.add_done_callback(ends.rounds._entering.discard)
    round_ = asyncio.create_task(ends.rounds.run(Window()))
    for _ in range(5):
        await asyncio.get_running_loop().run_in_executor(ends.rounds.sources.disk, lambda: None)
        await _turns()
    assert not ends.rounds.planner.entries
    away.set()
    await round_
    assert [each.state for each in ends.told] == [SessionState.ACCEPTED] * SESSIONS


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def test_the_running_session_is_flushed_while_the_store_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, looked, loop = Ends(tmp_path), asyncio.Event(), asyncio.get_running_loop()

    def look(stores: Stores) -> Look:
        loop.call_soon_threadsafe(looked.set)
        return read(stores)

    async def live() -> None:
        await looked.wait()

    monkeypatch.setattr(rounds, "read", look)
    ends.rounds.sources = replace(ends.rounds.sources, live=live)
    async with asyncio.timeout(10):
        await ends.rounds._look(Window(include_live=True), sender=True)
    assert ends.rounds.planner.entries.keys() == {each.summary.session_id for each in ends.waiting}
