"""The planner: what each answer of a server means for a session, and that no answer makes it hurry or give up data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from mailboat.agent.entries import Entry, Fate, History, Phase
from mailboat.agent.link_policy import Priority
from mailboat.agent.planner import (
    AFTER_REFUSAL,
    AGAIN,
    CONFIRM_AT,
    FIRST_OFFERS,
    MOST_OFFERS,
    Busy,
    Idle,
    Negotiate,
    Planner,
    Send,
    Wait,
)
from mailboat.agent.window import SLICE, Window
from mailboat.protocol.ids import new_id
from mailboat.protocol.limits import BACKOFF_LONGEST, MAX_RETRY_AFTER, POISON_ATTEMPTS
from mailboat.protocol.negotiation import Decision, Policy, Reply, SegmentDecision, Verdict
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Info, SegmentState, Status, Summary
from mailboat.protocol.uploads.outcomes import (
    Advanced,
    Cancelled,
    Completed,
    Exhausted,
    Gone,
    NotOurs,
    Outcome,
    OutOfSync,
    Refused,
    Retry,
    Unauthorised,
)

DIGEST = "ab" * 32


def session(number: int = 0, *, segments: int = 1, status: Status = Status.STOPPED, errors: int = 0) -> Summary:
    """A session that began `number` seconds after the epoch, of segments of 100 bytes."""
    counts = [0] * len(COUNTERS)
    counts[COUNTERS.index("feature")] = 10
    counts[COUNTERS.index("error")] = errors
    sealed = status is not Status.RUNNING
    states = tuple(SegmentState(each, 100, 10, sealed, DIGEST if sealed else "") for each in range(segments))
    session_id = new_id(number, number.to_bytes(10, "big"))
    return Summary(session_id, Info(), float(number), 0.0, 0.0, status, tuple(counts), states)


def wanted(summary: Summary, offset: int = 0, *, priority: int = 0) -> Decision:
    places = tuple(
        SegmentDecision(each.index, f"/v1/uploads/{each.index}", offset, complete=False) for each in summary.segments
    )
    return Decision(summary.session_id, Verdict.SEND, priority=priority, segments=places)


def had(summary: Summary, **lie: object) -> Decision:
    truth = [
        {"index": each.index, "url": "", "offset": each.size, "complete": True, "sha256": each.sha256, **lie}
        for each in summary.segments
    ]
    return Decision(summary.session_id, Verdict.HAVE, segments=tuple(SegmentDecision(**each) for each in truth))  # type: ignore[arg-type]


def told_terms() -> Planner:
    """One whose server has answered before."""
    planner = Planner()
    planner.negotiated(Negotiate(()), Reply(()), 0.0)
    return planner


def knowing(*summaries: Summary) -> Planner:
    planner = Planner()
    planner.refresh(summaries)
    return planner


def offered(planner: Planner, now: float = 0.0) -> Negotiate:
    task = planner.next(now)
    assert isinstance(task, Negotiate), task
    return task


def answered(planner: Planner, *decisions: Decision, now: float = 0.0) -> list[Entry]:
    return planner.negotiated(offered(planner, now), Reply(decisions), now)


def wanted_in_time(planner: Planner, summary: Summary, now: float) -> float:
    """Wait until it is offered again, and have it wanted; the time then."""
    task = planner.next(now)
    if isinstance(task, Wait):
        now, task = task.until, planner.next(task.until)
    assert isinstance(task, Negotiate), task
    planner.negotiated(task, Reply((wanted(summary),)), now)
    return now


def sending(planner: Planner, now: float = 0.0) -> Send:
    task = planner.next(now)
    assert isinstance(task, Send), task
    return task


# -- what an answer to an offer means ----------------------------------------------------------------------------------

ONE = session()
REJECTED = Decision(ONE.session_id, Verdict.REJECT, "too_old")

ENDS: dict[str, tuple[Decision, Fate, str]] = {
    "have, as it is": (had(ONE), Fate.ACCEPTED, ""),
    "decline": (Decision(ONE.session_id, Verdict.DECLINE), Fate.DECLINED, ""),
    "reject": (REJECTED, Fate.REJECTED, "too_old"),
}


@pytest.mark.parametrize("name", ENDS)
def test_final_words(name: str) -> None:
    decision, fate, reason = ENDS[name]
    planner = knowing(ONE)
    (entry,) = answered(planner, decision)
    assert (entry.phase, entry.fate, entry.history.reason) == (Phase.ENDED, fate, reason)
    assert (planner.left, planner.open) == (0, 0)
    assert planner.next(10.0**6) == Idle()


@pytest.mark.parametrize("name", ENDS)
def test_no_word_is_final_for_a_running_session(name: str) -> None:
    running = session(status=Status.RUNNING)
    planner = knowing(running)
    assert answered(planner, replace(ENDS[name][0], session_id=running.session_id)) == []
    assert planner.next(0.0) == Idle()


def test_of_a_running_session_that_is_declined_nothing_is_left_to_send_until_it_grows() -> None:
    running = session(status=Status.RUNNING)
    planner = knowing(running)
    answered(planner, Decision(running.session_id, Verdict.DECLINE))
    assert (planner.left, planner.open) == (0, 1)
    planner.refresh([replace(running, segments=(replace(running.segments[0], size=150),))])
    assert planner.left == 150


# -- what is held back -------------------------------------------------------------------------------------------------


def test_what_the_policy_forbids_is_neither_offered_nor_sent() -> None:
    ordinary, urgent = session(1), session(2, errors=1)
    planner = knowing(ordinary, urgent)
    planner.permits = lambda priority: priority is Priority.URGENT
    assert offered(planner).offers == (urgent,)
    planner.negotiated(Negotiate((urgent,)), Reply((wanted(urgent),)), 0.0)
    planner.permits = lambda _: False
    assert planner.next(0.0) == Idle()
    assert planner.held == 2
    planner.permits = lambda _: True
    planner.refresh([ordinary, urgent])
    assert offered(planner).offers == (urgent, ordinary)


def test_a_request_that_is_too_large_to_be_sent_is_halved_until_one_is_left() -> None:
    planner = knowing(*(session(number) for number in range(4)))
    sizes = []
    for _ in range(4):
        task = offered(planner)
        sizes.append(len(task.offers))
        if not planner.offer_fewer(task):
            break
    assert sizes == [4, 2, 1]


def test_a_session_that_is_dropped_is_met_anew() -> None:
    planner = knowing(ONE)
    answered(planner, Decision(ONE.session_id, Verdict.DECLINE))
    planner.drop(ONE.session_id)
    planner.drop(ONE.session_id)
    assert planner.next(10.0**6) == Idle()
    planner.refresh([ONE])
    assert offered(planner).offers == (ONE,)


NO_END: dict[str, tuple[Decision, float]] = {
    "have with another digest": (had(ONE, sha256="00" * 32), AFTER_REFUSAL[0]),
    "have with another size": (had(ONE, offset=99), AFTER_REFUSAL[0]),
    "have, incomplete": (had(ONE, complete=False), AFTER_REFUSAL[0]),
    "have of another segment": (had(ONE, index=1), AFTER_REFUSAL[0]),
    "have of nothing": (Decision(ONE.session_id, Verdict.HAVE), AFTER_REFUSAL[0]),
    "send from beyond its end": (wanted(ONE, 101), AFTER_REFUSAL[0]),
    "send without segments": (Decision(ONE.session_id, Verdict.SEND), AGAIN),
    "later, at once": (Decision(ONE.session_id, Verdict.LATER, after=0.0), AGAIN),
    "later": (Decision(ONE.session_id, Verdict.LATER, after=60.0), 60.0),
    "much later": (Decision(ONE.session_id, Verdict.LATER, after=1e15), MAX_RETRY_AFTER),
}


@pytest.mark.parametrize("name", NO_END)
def test_what_ends_nothing_is_asked_again_later(name: str) -> None:
    decision, pause = NO_END[name]
    planner = knowing(ONE)
    assert answered(planner, decision, now=5.0) == []
    assert planner.next(5.0) == Wait(5.0 + pause)
    assert planner.left == 100
    assert offered(planner, 5.0 + pause).offers == (ONE,)


@pytest.mark.parametrize("other", [(), (Decision(session(9).session_id, Verdict.REJECT),)])
def test_an_offer_without_an_answer_waits_for_the_next_round(other: tuple[Decision, ...]) -> None:
    planner = knowing(ONE)
    assert answered(planner, *other) == []
    assert planner.next(10.0**6) == Idle()
    planner.refresh([ONE])
    assert offered(planner).offers == (ONE,)


def test_pauses_grow_while_nothing_comes_of_it() -> None:
    planner, now, pauses = knowing(ONE), 0.0, []
    for _ in range(12):
        answered(planner, Decision(ONE.session_id, Verdict.LATER), now=now)
        task = planner.next(now)
        assert isinstance(task, Wait)
        pauses.append(task.until - now)
        now = task.until
        planner.refresh([ONE])  # a new round does not make it forget
    assert pauses == sorted(pauses)
    assert pauses[0] == AGAIN
    assert pauses[-1] == BACKOFF_LONGEST


# -- what the end of an upload means -----------------------------------------------------------------------------------


def test_a_session_that_was_sent_is_confirmed_before_it_is_given_up() -> None:
    two = session(segments=2)
    planner = knowing(two)
    assert answered(planner, wanted(two)) == []
    first, second = sending(planner), sending(planner)
    assert {first.segment.index, second.segment.index} == {0, 1}
    assert planner.next(0.0) == Busy()
    assert planner.sent(first, Completed(100), 0.0) is None
    assert (planner.next(0.0), planner.left) == (Busy(), 100)
    assert planner.sent(second, Completed(100), 0.0) is None
    assert planner.left == 0
    (entry,) = answered(planner, had(two))
    assert entry.fate is Fate.ACCEPTED


def a_part(summary: Summary, held: int, asked: int) -> Decision:
    """The first `held` segments are there, and the next `asked` are wanted."""
    places = tuple(
        SegmentDecision(each, f"/v1/uploads/{each}", 100 if each < held else 0, complete=each < held)
        for each in range(held + asked)
    )
    return Decision(summary.session_id, Verdict.SEND, segments=places)


def test_what_a_server_asks_for_in_parts_is_sent_without_a_pause() -> None:
    many = session(segments=5)
    planner = knowing(many)
    for held, asked in ((0, 2), (2, 2), (4, 1)):
        assert answered(planner, a_part(many, held, asked)) == []
        for _ in range(asked):
            planner.sent(sending(planner), Completed(100), 0.0)
        assert planner.left == 100 * (5 - held - asked)
    (entry,) = answered(planner, had(many))
    assert entry.fate is Fate.ACCEPTED


@pytest.mark.parametrize("held", [0, 1])
def test_a_server_that_loses_the_part_it_was_sent_is_not_sent_it_at_once(held: int) -> None:
    many = session(segments=5)
    planner = knowing(many)
    answered(planner, a_part(many, 0, 2))
    for _ in range(2):
        planner.sent(sending(planner), Completed(100), 0.0)
    answered(planner, a_part(many, held, 2))
    assert planner.next(0.0) == Wait(AGAIN)
    answered(planner, a_part(many, 2, 2), now=AGAIN)
    assert sending(planner, AGAIN).segment.index == 2


AFTERWARDS: dict[str, tuple[Outcome, float]] = {
    "gone": (Gone(404), 0.0),
    "failed": (Retry(0.0, "status 500"), AGAIN),
    "failed, with a wish": (Retry(30.0, "status 503"), 30.0),
    "exhausted": (Exhausted("status 500"), AGAIN),
    "refused": (Refused(400, None, "no"), AFTER_REFUSAL[0]),
    "out of step": (OutOfSync(3, 1, "it goes back"), AFTER_REFUSAL[0]),
}


@pytest.mark.parametrize("name", AFTERWARDS)
def test_an_upload_that_did_not_go_through_is_negotiated_anew(name: str) -> None:
    outcome, pause = AFTERWARDS[name]
    planner = knowing(ONE)
    answered(planner, wanted(ONE))
    assert planner.sent(sending(planner), outcome, 0.0) is None
    if pause:
        assert planner.next(0.0) == Wait(pause)
    assert offered(planner, pause).offers == (ONE,)


@pytest.mark.parametrize("name", ["refused", "out of step"])
def test_refusals_put_a_session_aside_but_not_at_once(name: str) -> None:
    planner, now, ended = knowing(ONE), 0.0, None
    for _ in range(POISON_ATTEMPTS):
        assert ended is None
        now = wanted_in_time(planner, ONE, now)
        ended = planner.sent(sending(planner, now), AFTERWARDS[name][0], now)
    assert ended is not None
    assert ended.fate is Fate.QUARANTINED
    assert now >= 300.0, "a server's short illness must not condemn a session"


@pytest.mark.parametrize("name", ["gone", "failed", "exhausted"])
def test_what_is_no_fault_of_the_session_never_puts_it_aside(name: str) -> None:
    planner, now = knowing(ONE), 0.0
    for _ in range(50):
        now = wanted_in_time(planner, ONE, now)
        assert planner.sent(sending(planner, now), AFTERWARDS[name][0], now) is None
    assert now > 40 * BACKOFF_LONGEST


def test_a_server_that_forgets_does_not_get_it_again_at_full_speed() -> None:
    planner, now, sent = knowing(ONE), 0.0, 0
    while now < 3600.0:
        task = planner.next(now)
        match task:
            case Negotiate():
                planner.negotiated(task, Reply((wanted(ONE),)), now)
            case Send():
                planner.progressed(task, 100)
                planner.sent(task, Completed(100), now)
                sent += 1
            case Wait(until):
                now = until
            case _:
                raise AssertionError(task)
    assert sent < 25


def test_bytes_that_were_never_held_before_make_pauses_short_again() -> None:
    planner = knowing(ONE)
    for held in range(10, 60, 10):
        answered(planner, wanted(ONE, held - 10), now=0.0)
        task = sending(planner)
        planner.progressed(task, held)
        assert planner.sent(task, Gone(404), 0.0) is None
        assert planner.next(0.0) != Wait(AGAIN)
        planner.refresh([ONE])


def test_a_result_that_comes_after_a_new_beginning_is_harmless() -> None:
    planner = knowing(ONE)
    answered(planner, wanted(ONE))
    task = sending(planner)
    planner.refresh([])
    planner.progressed(task, 50)
    assert planner.sent(task, Completed(100), 0.0) is None
    assert (planner.entries, planner.left, planner.open) == ({}, 0, 0)


def test_what_is_told_of_a_second_segment_when_the_first_has_failed_is_harmless() -> None:
    planner = knowing(two := session(segments=2))
    answered(planner, wanted(two))
    first, second = sending(planner), sending(planner)
    assert planner.sent(first, Retry(5.0, "no room"), 0.0) is None
    assert planner.sent(second, Refused(422, None, "no such thing"), 0.0) is None
    entry = planner.entries[two.session_id]
    assert (entry.history.stalls, entry.history.refusals, entry.history.reason) == (1, 0, "no room")


def test_what_happens_to_one_session_happens_to_no_other() -> None:
    planner = knowing(ONE, other := session(2))
    assert planner.entries[ONE.session_id].history is planner.entries[other.session_id].history, "nothing has yet"
    answered(planner, wanted(ONE))
    task = sending(planner)
    planner.progressed(task, 50)
    assert planner.sent(task, Refused(422, None, "no such thing"), 0.0) is None
    assert planner.entries[ONE.session_id].history.refusals == 1
    assert planner.entries[other.session_id].history == History()


def test_an_upload_of_a_session_that_is_gone_is_harmless() -> None:
    planner = knowing(ONE)
    answered(planner, wanted(ONE))
    task = sending(planner)
    planner.drop(ONE.session_id)
    assert planner.sent(task, Completed(100), 0.0) is None
    assert (planner.left, planner.open, planner.next(0.0)) == (0, 0, Idle())


@pytest.mark.parametrize("outcome", [Unauthorised(401), NotOurs(200, "a page"), Cancelled()])
def test_what_is_no_word_about_the_session_changes_nothing_of_it(outcome: Outcome) -> None:
    """The key, or the connection: `rounds` sees to it, and the upload goes on where it was."""
    planner = knowing(ONE)
    answered(planner, wanted(ONE))
    task = sending(planner)
    assert planner.sent(task, outcome, 0.0) is None
    assert sending(planner) == task
    assert (planner.left, planner.entries[ONE.session_id].history.stalls) == (100, 0)


def test_an_answer_about_a_session_that_is_gone_or_has_grown_is_passed_over() -> None:
    gone, grows = session(1), session(2, status=Status.RUNNING)
    planner = knowing(gone, grows)
    task = offered(planner)
    planner.drop(gone.session_id)
    grown = replace(grows, segments=(replace(grows.segments[0], size=150),))
    planner.meet([grown])
    assert planner.negotiated(task, Reply((wanted(gone), wanted(grows))), 0.0) == []
    assert offered(planner).offers == (grown,), "it is asked about as it is now"
    assert planner.left == 150


def test_what_is_gone_is_left_out_of_a_smaller_request() -> None:
    gone, stays = session(1), session(2)
    planner = knowing(gone, stays)
    task = offered(planner)
    planner.drop(gone.session_id)
    assert planner.offer_fewer(task)
    assert offered(planner).offers == (stays,)


def test_one_that_was_to_be_asked_about_later_and_is_gone_by_then_is_not() -> None:
    gone, stays = session(1), session(2)
    planner = knowing(gone, stays)
    later = [Decision(each.session_id, Verdict.LATER, after=60.0) for each in (gone, stays)]
    answered(planner, *later)
    planner.drop(gone.session_id)
    assert offered(planner, 60.0).offers == (stays,)
    planner.drop(stays.session_id)
    assert planner.next(10.0**6) == Busy()


def test_one_that_waits_for_its_time_and_is_gone_is_not_waited_for() -> None:
    planner = knowing(ONE)
    answered(planner, Decision(ONE.session_id, Verdict.LATER, after=60.0))
    planner.drop(ONE.session_id)
    assert planner.next(0.0) == Idle()


def test_one_whose_end_could_not_be_carried_out_is_pending_again() -> None:
    planner = knowing(ONE)
    (entry,) = answered(planner, had(ONE))
    planner.refresh([ONE])
    assert (entry.phase, planner.next(0.0)) == (Phase.ENDED, Idle()), "it stands there still, and is not asked about"
    planner.reconsider(ONE.session_id)
    assert (entry.fate, planner.left, planner.open) == (Fate.PENDING, 100, 1)
    planner.refresh([ONE])
    assert offered(planner).offers == (ONE,)
    planner.drop(ONE.session_id)
    planner.reconsider(ONE.session_id)
    assert (planner.entries, planner.left) == ({}, 0)


def test_a_running_session_of_which_the_server_has_all_is_not_put_off() -> None:
    """Nor is it at fault: it is asked about again when it has grown."""
    running = session(status=Status.RUNNING)
    planner = knowing(running)
    assert answered(planner, wanted(running, 100)) == []
    assert planner.entries[running.session_id].history.stalls == 0
    assert planner.next(0.0) == Idle()


# -- order and amounts -------------------------------------------------------------------------------------------------


def test_errors_first_then_the_newest() -> None:
    old, new, with_errors = session(1), session(2), session(0, errors=1)
    assert offered(knowing(old, new, with_errors)).offers == (with_errors, new, old)


def test_what_the_server_wants_most_is_sent_first() -> None:
    one, two = session(1), session(2)
    planner = knowing(one, two)
    answered(planner, wanted(one, priority=5), wanted(two))
    assert sending(planner).session_id == one.session_id


@pytest.mark.parametrize(("policy", "most"), [(Policy(), MOST_OFFERS), (Policy(max_offers=3), 3)])
def test_offers_come_in_bounded_requests(policy: Policy, most: int) -> None:
    planner = knowing(*(session(number) for number in range(MOST_OFFERS * 2)))
    first = offered(planner)
    assert len(first.offers) == FIRST_OFFERS, "few are offered before the server has told its terms"
    planner.negotiated(first, Reply((), policy=policy), 0.0)
    assert len(offered(planner).offers) == most


def test_sessions_are_confirmed_some_at_a_time() -> None:
    sessions = [session(number) for number in range(CONFIRM_AT + 20)]
    planner = told_terms()
    planner.refresh(sessions)
    answered(planner, *map(wanted, sessions))
    for _ in range(CONFIRM_AT):
        planner.sent(sending(planner), Completed(100), 0.0)
    assert len(offered(planner).offers) == CONFIRM_AT


def test_a_running_session_is_sent_as_far_as_it_is_and_again_when_it_grew() -> None:
    running = session(status=Status.RUNNING)
    planner = knowing(running)
    answered(planner, wanted(running))
    assert planner.sent(sending(planner), Advanced(100), 0.0) is None
    assert planner.next(0.0) == Idle()
    grown = replace(running, segments=(replace(running.segments[0], size=150),))
    planner.refresh([grown])
    assert offered(planner).offers == (grown,)
    assert planner.left == 50


# -- an offer that the server cannot take ------------------------------------------------------------------------------


def search(planner: Planner, poison: Callable[[Negotiate], bool]) -> list[str]:
    """Ask until there is nothing more to ask now; which sessions were answered for."""
    seen: list[str] = []
    for _ in range(60):
        task = planner.next(0.0)
        if not isinstance(task, Negotiate):
            return seen
        if poison(task):
            if planner.refused(task, "400", 0.0) is None:
                return seen
        else:
            seen += [each.session_id for each in planner_answer(planner, task)]
    raise AssertionError("it goes on for ever")


def planner_answer(planner: Planner, task: Negotiate) -> tuple[Summary, ...]:
    planner.negotiated(task, Reply(()), 0.0)
    return task.offers


def test_one_poisoned_offer_is_found_and_the_rest_go_on() -> None:
    sessions = [session(number) for number in range(100)]
    planner = knowing(*sessions)
    bad = sessions[37]
    seen = search(planner, lambda task: bad in task.offers)
    assert sorted(seen) == sorted(each.session_id for each in sessions if each is not bad)
    assert planner.entries[bad.session_id].fate is Fate.PENDING


def test_a_server_that_understands_nothing_condemns_nobody() -> None:
    sessions = [session(number) for number in range(100)]
    planner = knowing(*sessions)
    assert search(planner, lambda _: True) == []
    assert all(entry.history.refusals == 0 for entry in planner.entries.values())


async def test_the_report_of_a_window_over_thousands_of_sessions_leaves_the_loop_its_turns() -> None:
    planner, turns, loop = knowing(*(session(number) for number in range(2000))), 0, asyncio.get_running_loop()

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    turn()
    report = await Window().report(planner, 1.0)
    assert len(report.sessions) == 2000
    assert turns >= 2000 // SLICE


# -- owners -----------------------------------------------------------------------------------------------------------


def test_a_request_offers_sessions_of_one_owner_the_most_pressing_first() -> None:
    ours = [session(each) for each in range(0, 2 * MOST_OFFERS, 2)]
    theirs = [session(each, errors=each == 1) for each in range(1, MOST_OFFERS, 2)]
    planner = told_terms()
    planner.begin({each.session_id: "theirs" for each in theirs})
    planner.meet([*ours, *theirs])
    planner.forget_absent(len(ours) + len(theirs))
    requests = []
    while isinstance(task := planner.next(0.0), Negotiate):
        requests.append((task.owner, len(task.offers)))
        assert {offer.session_id for offer in task.offers} <= {
            each.session_id for each in (theirs if task.owner else ours)
        }
        decisions = tuple(Decision(each.session_id, Verdict.DECLINE) for each in task.offers)
        assert len(planner.negotiated(task, Reply(decisions), 0.0)) == len(task.offers)
    assert requests == [("theirs", len(theirs)), ("", MOST_OFFERS)]
    assert isinstance(task, Idle)


def test_a_session_that_waits_for_its_time_is_offered_with_its_owner() -> None:
    planner = Planner()
    theirs = session(1)
    planner.begin({theirs.session_id: "theirs"})
    planner.meet([theirs])
    task = offered(planner)
    planner.negotiated(task, Reply((Decision(theirs.session_id, Verdict.LATER, after=5.0),)), 0.0)
    assert planner.next(0.0) == Wait(5.0)
    assert offered(planner, 5.0) == Negotiate((theirs,), owner="theirs")
