"""Which sessions ride along with their offers, and what follows when that does not go well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from mailboat.agent import riding
from mailboat.agent.entries import Entry, Fate
from mailboat.agent.files import OsFileSystem
from mailboat.agent.planner import BESIDE, Busy, Idle, Negotiate, Planner, Send, Wait
from mailboat.agent.riding import FIRST, LEAST, MOST, Room
from mailboat.protocol.ids import new_id
from mailboat.protocol.limits import MAX_RIDER, MAX_RIDING
from mailboat.protocol.negotiation import Decision, Policy, Reply, Rider, Riding, SegmentDecision, Verdict, Wish
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Info, SegmentState, Status, Summary
from mailboat.protocol.uploads.outcomes import Completed

TERMS = Riding(MAX_RIDER, MAX_RIDING)
ALL, ERRORS = Policy(riding=TERMS), Policy(details=Wish.ERRORS, riding=TERMS)
DIGEST = "ab" * 32


def session(number: int, *sizes: int, status: Status = Status.STOPPED, errors: int = 0) -> Summary:
    counts = tuple(errors if name == "error" else 0 for name in COUNTERS)
    sealed = status is not Status.RUNNING
    states = tuple(SegmentState(index, size, 1, sealed, DIGEST) for index, size in enumerate(sizes or (1000,)))
    session_id = new_id(number, number.to_bytes(10, "big"))
    return Summary(session_id, Info(), float(number), 0.0, 0.0, status, counts, states)


def had(summary: Summary) -> Decision:
    told = (SegmentDecision(each.index, "", each.size, complete=True, sha256=each.sha256) for each in summary.segments)
    return Decision(summary.session_id, Verdict.HAVE, segments=tuple(told))


def wanted(summary: Summary, offset: int = 0) -> Decision:
    told = (SegmentDecision(each.index, f"/u/{each.index}", offset, complete=False) for each in summary.segments)
    return Decision(summary.session_id, Verdict.SEND, segments=tuple(told))


def knowing(*summaries: Summary, terms: Policy = ALL) -> Planner:
    """A planner that has been told the server's terms, and knows these sessions."""
    planner = Planner()
    first = session(0)
    planner.refresh([first])
    answered(planner, Decision(first.session_id, Verdict.DECLINE), terms=terms)
    planner.refresh(summaries)
    return planner


def offered(planner: Planner, now: float = 0.0) -> Negotiate:
    task = planner.next(now)
    assert isinstance(task, Negotiate), task
    return task


def answered(planner: Planner, *decisions: Decision, terms: Policy = ALL) -> list[Entry]:
    return planner.negotiated(offered(planner), Reply(decisions, policy=terms), 0.0)


def ids(summaries: Iterable[Summary]) -> set[str]:
    return {summary.session_id for summary in summaries}


def aboard(task: Negotiate) -> list[str]:
    return [offer.session_id for offer in task.offers if offer.session_id in task.aboard]


# -- what rides --------------------------------------------------------------------------------------------------------


def test_what_a_server_wants_in_any_case_rides_with_its_first_offer() -> None:
    small, large = session(1), session(2, MAX_RIDER + 1)
    planner = knowing(small, large)
    task = offered(planner)
    assert (ids(task.offers), aboard(task)) == (ids([small, large]), [small.session_id])
    (entry,) = planner.negotiated(task, Reply((had(small), wanted(large)), policy=ALL), 0.0)
    assert (entry.summary, entry.fate, planner.left) == (small, Fate.ACCEPTED, MAX_RIDER + 1)
    assert isinstance(planner.next(0.0), Send)


def test_what_it_asked_for_rides_with_its_next_offer() -> None:
    small = session(1)
    planner = Planner()
    planner.refresh([small])
    first = offered(planner)
    assert aboard(first) == []
    planner.negotiated(first, Reply((wanted(small),), policy=ALL), 0.0)
    second = offered(planner)
    assert aboard(second) == [small.session_id]
    assert len(planner.negotiated(second, Reply((had(small),)), 0.0)) == 1
    assert planner.next(0.0) == Idle()


@pytest.mark.parametrize(
    ("summary", "terms"),
    [
        (session(1), Policy()),
        (session(1), Policy(details=Wish.NONE, riding=TERMS)),
        (session(1), Policy(details=Wish.SOME, riding=TERMS)),
        (session(1), ERRORS),
        (session(1, status=Status.RUNNING), ALL),
        (session(1, MAX_RIDER + 1), ALL),
        (session(1, 10, MAX_RIDER + 1), ALL),
        (session(1, *[MAX_RIDER] * 5), ALL),
        (session(1, 101), Policy(riding=replace(TERMS, segment=100))),
        (session(1, 60, 60), Policy(riding=replace(TERMS, request=100))),
        (replace(session(1), segments=()), ALL),
    ],
)
def test_what_does_not_ride(summary: Summary, terms: Policy) -> None:
    assert aboard(offered(knowing(summary, terms=terms))) == []


def test_errors_ride_where_only_they_are_wanted() -> None:
    plain, failed = session(1), session(2, errors=1)
    assert aboard(offered(knowing(plain, failed, terms=ERRORS))) == [failed.session_id]


def test_what_the_server_holds_in_part_is_gone_on_with() -> None:
    small = session(1)
    planner = Planner()
    planner.refresh([small])
    planner.negotiated(offered(planner), Reply((wanted(small, 10),), policy=ALL), 0.0)
    task = planner.next(0.0)
    assert isinstance(task, Send)
    assert task.offset == 10


def test_requests_are_filled_and_the_rest_waits_for_the_next_one() -> None:
    sessions = [session(number, 60_000) for number in range(1, 41)]
    planner = knowing(*sessions)
    rides, sizes = [], []
    while isinstance(task := planner.next(0.0), Negotiate):
        assert [offer.session_id for offer in task.offers] == aboard(task)
        rides += aboard(task)
        sizes.append(sum(offer.size for offer in task.offers))
        planner.negotiated(task, Reply(tuple(map(had, task.offers)), policy=ALL), 0.0)
    assert sorted(rides) == sorted(each.session_id for each in sessions)
    assert sizes[:3] == [240_000, 480_000, 900_000]  # more each time, up to `MOST`
    assert max(sizes) <= MOST < MAX_RIDING
    assert task == Idle()


def test_some_requests_at_a_time_while_sessions_ride() -> None:
    planner = knowing(*(session(number, 60_000) for number in range(1, 81)))
    tasks = [offered(planner) for _ in range(BESIDE)]
    assert sum(len(task.offers) for task in tasks) == len(set().union(*(ids(task.offers) for task in tasks)))
    assert planner.next(0.0) == Busy()
    last = tasks.pop()
    assert len(planner.negotiated(last, Reply(tuple(map(had, last.offers))), 0.0)) == len(last.offers)
    tasks.append(offered(planner))
    assert planner.next(0.0) == Busy()
    for task in tasks:
        assert len(planner.negotiated(task, Reply(tuple(map(had, task.offers))), 0.0)) == len(task.offers)


# -- when it does not go well ------------------------------------------------------------------------------------------


def test_what_was_not_taken_is_uploaded() -> None:
    """By a server that knows nothing of riders, or cannot use them."""
    small = session(1)
    planner = knowing(small)
    planner.negotiated(offered(planner), Reply((wanted(small),), policy=ALL), 0.0)
    task = planner.next(0.0)
    assert isinstance(task, Send)
    assert planner.sent(task, Completed(1000), 0.0) is None
    confirm = offered(planner)
    assert aboard(confirm) == []
    assert len(planner.negotiated(confirm, Reply((had(small),)), 0.0)) == 1


def test_a_request_that_broke_off_is_not_made_again_whole() -> None:
    """What was aboard is asked about, and what has arrived of it is not sent again."""
    sessions = [session(number, 60_000) for number in range(1, 9)]
    planner = knowing(*sessions)
    broken = offered(planner)
    assert len(aboard(broken)) == 4
    planner.refresh(sessions)  # a new round
    task = offered(planner)
    assert {each.session_id for each in broken.offers}.isdisjoint(aboard(task))
    assert sum(offer.size for offer in task.offers if offer.session_id in task.aboard) <= FIRST // 4


@pytest.mark.parametrize("lie", [{"sha256": "00" * 32}, {"offset": 999}, {"complete": False}, {"index": 3}])
def test_a_confirmation_that_does_not_match_gives_nothing_up(lie: dict[str, object]) -> None:
    small = session(1)
    planner = knowing(small)
    told = tuple(replace(each, **lie) for each in had(small).segments)
    assert planner.negotiated(offered(planner), Reply((replace(had(small), segments=told),)), 0.0) == []
    assert isinstance(planner.next(0.0), Wait)
    assert aboard(offered(planner, 400.0)) == []


def test_a_refused_request_is_made_again_without_riders() -> None:
    sessions = [session(number) for number in range(1, 5)]
    planner = knowing(*sessions)
    task = offered(planner)
    assert planner.refused(task, "413 too large", 0.0) == []
    again = offered(planner)
    assert (ids(again.offers), again.aboard) == (ids(sessions), frozenset())


def test_the_room_follows_the_line() -> None:
    room = Room(TERMS)
    assert room.size == FIRST
    assert Room().size == 0
    for _ in range(10):
        room = room.went_through()
    assert room.size == MOST
    assert room.under(Policy(riding=replace(TERMS, request=1000))).size == 1000
    sizes = []
    while room.size:
        room = room.broke()
        sizes.append(room.size)
    assert sizes == sorted(sizes, reverse=True)
    assert LEAST <= sizes[-2] < 4 * LEAST
    assert not room.takes(session(1))


# -- what is read ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_as_it_should_be_stays_behind(tmp_path: Path) -> None:
    sessions = [session(number, 3, 4) for number in range(1, 4)]
    folders = {each.session_id: tmp_path / each.session_id for each in sessions}
    for folder in folders.values():
        folder.mkdir()
        (folder / "000000.zst").write_bytes(b"abc")
        (folder / "000001.zst").write_bytes(b"defg")
    one, two, three = sessions
    (folders[one.session_id] / "000001.zst").write_bytes(b"def")
    (folders[two.session_id] / "000000.zst").unlink()
    assert riding.read(OsFileSystem(), dict.fromkeys(folders, tmp_path), sessions) == (
        Rider(one.session_id, 0, memoryview(b"abc")),
        Rider(two.session_id, 1, memoryview(b"defg")),
        Rider(three.session_id, 0, memoryview(b"abc")),
        Rider(three.session_id, 1, memoryview(b"defg")),
    )
