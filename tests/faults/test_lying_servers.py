"""Servers that speak the protocol and lie: local data is never given up, and the agent neither crashes nor hurries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mailboat.agent import SessionState
from mailboat.protocol.limits import MAX_RIDER, MAX_RIDING
from mailboat.protocol.negotiation import Decision, Policy, Riding, SegmentDecision, Verdict
from mailboat.protocol.summary import SegmentState, Summary
from testkit.agents import AgentMaker, left_behind
from testkit.servers import Given, digests, stored
from testkit.strange import NEGOTIATE, Asked, http, replied, saying, strange

OTHER = "018f0000-0000-7000-8000-000000000001"
LIMIT = 20
"""Requests in a window of a second and a half; an agent in no hurry needs fewer than ten."""


def send(offset: int = 0, url: str = "/v1/uploads/{id}", *, complete: bool = False) -> Callable[[Summary], Decision]:
    """Everything is wanted, with one state for all segments."""

    def decide(offer: Summary) -> Decision:
        place = url.replace("{id}", offer.session_id)
        segments = tuple(SegmentDecision(each.index, place, offset, complete) for each in offer.segments)
        return Decision(offer.session_id, Verdict.SEND, segments=segments)

    return decide


def have(lie: Callable[[SegmentState], SegmentDecision]) -> Callable[[Summary], Decision]:
    """All is here, it says."""

    def decide(offer: Summary) -> Decision:
        return Decision(offer.session_id, Verdict.HAVE, segments=tuple(map(lie, offer.segments)))

    return decide


@dataclass
class Liar:
    """How a server lies: in negotiations, and about uploads."""

    decide: Callable[[Summary], Decision | None]
    upload: bytes = http(204, Upload_Offset="0", Upload_Complete="?0")
    policy: Policy | None = None
    negotiations: list[Asked] = field(default_factory=list)

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path != NEGOTIATE:
            return await saying(self.upload)(asked, writer)
        self.negotiations.append(asked)
        decisions = [self.decide(offer) for offer in asked.offers.offers]
        return await saying(replied((each for each in decisions if each is not None), self.policy))(asked, writer)


def changed(**lie: object) -> Callable[[SegmentState], SegmentDecision]:
    """A segment as it is, but for a lie."""

    def say(state: SegmentState) -> SegmentDecision:
        truth: dict[str, object] = {
            "index": state.index,
            "url": "",
            "offset": state.size,
            "complete": True,
            "sha256": state.sha256,
        }
        return SegmentDecision(**{**truth, **lie})  # type: ignore[arg-type] # a lie may have any shape

    return say


MISREAD: dict[str, dict[str, object]] = {
    "another digest": {"sha256": "00" * 32},
    "another size": {"offset": 1},
    "no completeness": {"complete": False},
    "another segment": {"index": 7},
}


def _letting_ride(after: Callable[[Summary], Decision | None]) -> Liar:
    """Wants what is offered first, so that it comes along the next time; then it lies."""
    told: set[str] = set()

    def decide(offer: Summary) -> Decision | None:
        if offer.session_id in told:
            return after(offer)
        told.add(offer.session_id)
        return send()(offer)

    return Liar(decide, policy=Policy(riding=Riding(MAX_RIDER, MAX_RIDING)))


LIES: dict[str, Callable[[], Liar]] = {
    "an offset beyond the file": lambda: Liar(send(10**7)),
    "a negative offset": lambda: Liar(send(-5)),
    "an offset that is no number": lambda: Liar(send("many")),  # type: ignore[arg-type]
    "have with another digest": lambda: Liar(have(changed(sha256="00" * 32))),
    "have with another size": lambda: Liar(have(changed(offset=1))),
    "have without completeness": lambda: Liar(have(changed(complete=False))),
    "have without segments": lambda: Liar(lambda offer: Decision(offer.session_id, Verdict.HAVE)),
    "have of another segment": lambda: Liar(have(changed(index=7))),
    "nothing about what was offered": lambda: Liar(lambda _: None),
    "about another session": lambda: Liar(lambda _: Decision(OTHER, Verdict.REJECT, "corrupted")),
    "an id that climbs": lambda: Liar(lambda _: Decision("../../sent", Verdict.DECLINE)),
    "send without a place": lambda: Liar(send(url="")),
    "send without segments": lambda: Liar(lambda offer: Decision(offer.session_id, Verdict.SEND)),
    "a place that climbs": lambda: Liar(send(url="/v1/uploads/../../../admin")),
    "a place that climbs in disguise": lambda: Liar(send(url="/v1/%2e%2e/%2E%2E/admin")),
    "a place of another origin": lambda: Liar(send(url="http://127.0.0.1:9/v1/uploads/x")),
    "a place that is no URL": lambda: Liar(send(url="http://[::1/x")),
    "a place with a second request in it": lambda: Liar(send(url="/x HTTP/1.1\r\nHost: evil\r\n\r\nGET /")),
    "later, at once": lambda: Liar(lambda offer: Decision(offer.session_id, Verdict.LATER, after=0.0)),
    "later, in a thousand years": lambda: Liar(lambda offer: Decision(offer.session_id, Verdict.LATER, after=3e10)),
    "takes nothing": lambda: Liar(send()),
    "takes all, and wants it again": lambda: Liar(send(), http(204, Upload_Complete="?1")),
    "acknowledges more than there is": lambda: Liar(send(), http(204, Upload_Offset=str(10**9), Upload_Complete="?0")),
    "acknowledges less than nothing": lambda: Liar(send(), http(204, Upload_Offset="-1", Upload_Complete="?0")),
    "forgets every upload": lambda: Liar(send(), http(404)),
    "refuses every upload": lambda: Liar(send(), http(400)),
    "fails at every upload": lambda: Liar(send(), http(500)),
    "is always at odds": lambda: Liar(send(), http(409, Upload_Offset="3", Upload_Complete="?0")),
    "has always more than it had": lambda: Liar(send(), http(409, Upload_Offset="999999", Upload_Complete="?0")),
    "answers uploads without end": lambda: Liar(send(), http(204, b"x" * 1000, Content_Length=str(2**40))),
    "complete, and wants it": lambda: Liar(send(10, complete=True)),
    **{f"lets ride, and has {lie}": partial(_letting_ride, have(changed(**told))) for lie, told in MISREAD.items()},
    "lets ride, and takes nothing": lambda: _letting_ride(send()),
    "lets ride, and says nothing": lambda: _letting_ride(lambda _: None),
    "lets ride, later": lambda: _letting_ride(lambda offer: Decision(offer.session_id, Verdict.LATER)),
}


async def all_at_once(check: Callable[[str], Awaitable[None]]) -> None:
    """Check every lie, all at the same time: each needs a second or two in which little may happen."""
    outcomes = await asyncio.gather(*(check(name) for name in LIES), return_exceptions=True)
    failed = {name: outcome for name, outcome in zip(LIES, outcomes, strict=True) if outcome is not None}
    assert not failed, "\n".join(f"{name}: {error!r:.2000}" for name, error in failed.items())


async def test_a_lie_costs_nothing(make_agent: AgentMaker, given: Given, key: str, tmp_path: Path) -> None:
    async def check(name: str) -> None:
        store = tmp_path / name
        session_id, recorded = await left_behind(make_agent, 3_000, 1, store=store)
        before = stored(store, session_id)
        async with strange(LIES[name]()) as server, make_agent(server=server.url, store=store) as agent:
            agent.feature("host.works")
            async with asyncio.timeout(20.0):
                report = await agent.force_sync(timeout=3.0)
            status = agent.status
            assert len(server.asked) <= LIMIT, [(each.method, each.path) for each in server.asked]
        assert not report.complete
        assert {outcome.state for outcome in report.sessions} == {SessionState.PENDING}
        assert (status.waiting_sessions, status.ledger.pending) == (1, recorded + 1)
        assert digests(stored(store, session_id)) == digests(before)
        async with make_agent(server=given.url, api_key=key, store=store) as agent:
            report = await agent.force_sync(timeout=30.0)
        assert report.complete, report
        assert len(await given.records(session_id)) == recorded
        assert digests(await given.segments(session_id)) == digests(before)

    await all_at_once(check)


async def test_a_lie_does_not_make_the_automatic_part_run_hot(make_agent: AgentMaker, tmp_path: Path) -> None:
    async def check(name: str) -> None:
        store = tmp_path / name
        session_id, _ = await left_behind(make_agent, 3_000, 1, store=store)
        settings = {"store": store, "synchronize_automatically": True, "sync_interval": 3600.0}
        async with strange(LIES[name]()) as server, make_agent(server=server.url, **settings) as agent:
            async with asyncio.timeout(20.0):
                await server.been_asked(1)
            quiet = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(1.5, quiet.set_result, None)  # in which a hot loop would ask hundreds
            await quiet
            assert len(server.asked) <= LIMIT, [(each.method, each.path) for each in server.asked]
            assert (agent.status.waiting_sessions, agent.status.trouble) == (1, "")
        assert len(list(store.glob(f"*/importer/waiting/{session_id}"))) == 1

    await all_at_once(check)


async def test_one_upload_that_always_fails_stops_no_other(make_agent: AgentMaker, tmp_path: Path) -> None:
    """And the server is told nothing twice: the failed one waits, the others are sent."""
    failing, _ = await left_behind(make_agent, 3_000, 1)
    others = [(await left_behind(make_agent, 3_000, seed))[0] for seed in range(2, 8)]
    sent: set[str] = set()

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path == NEGOTIATE:
            told = [
                have(changed())(offer) if offer.session_id in sent else send()(offer) for offer in asked.offers.offers
            ]
            return await saying(replied(told))(asked, writer)
        session_id = asked.path.rpartition("/")[2]
        if session_id == failing:
            return await saying(http(500))(asked, writer)
        sent.add(session_id)
        return await saying(http(204, Upload_Complete="?1"))(asked, writer)

    async with strange(answer) as server, make_agent(server=server.url) as agent:
        report = await agent.force_sync(timeout=2.0)
        states = {each.session_id: each.state for each in report.sessions}
    assert {states[name] for name in others} == {SessionState.ACCEPTED}
    assert states[failing] is SessionState.PENDING


async def test_one_offer_that_is_not_understood_stops_no_other(make_agent: AgentMaker) -> None:
    """The server says 400 to any request that holds it."""
    poison, _ = await left_behind(make_agent, 3_000, 1)
    others = [(await left_behind(make_agent, 3_000, seed))[0] for seed in range(2, 12)]

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        offers = asked.offers.offers
        if any(offer.session_id == poison for offer in offers):
            return await saying(http(400))(asked, writer)
        return await saying(replied(have(changed())(offer) for offer in offers))(asked, writer)

    async with strange(answer) as server, make_agent(server=server.url) as agent:
        report = await agent.force_sync(timeout=2.0)
        states = {each.session_id: each.state for each in report.sessions}
        assert len(server.asked) <= LIMIT
    assert {states[name] for name in others} == {SessionState.ACCEPTED}
    assert states[poison] is SessionState.PENDING
