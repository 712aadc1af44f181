"""When the agent delivers by itself (delivery.md, 1; rows L4, L8 and T3), in virtual time: real synchronizer, real
store, simulated network; nobody sleeps.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent.allowance import Budget, day_of
from mailboat.agent.clocks import Clocks
from mailboat.agent.eligibility import AGE_TRIGGER, LOOK_INTERVAL, RECORDS_TRIGGER, Eligibility
from mailboat.agent.http import Answer
from mailboat.agent.link_policy import LinkState, quiet_hours, urgent_when_metered
from mailboat.agent.traffic import BudgetFile
from mailboat.agent.window import SLICE
from mailboat.server.policy import Plan
from testkit import virtual
from testkit.stories import asked, story, until
from testkit.virtual import VirtualLoop
from testkit.world import SimAgent


def test_after_the_start_but_not_at_once(tmp_path: Path) -> None:
    """Row L4 and T3: first act `startup_delay` after the start."""

    async def tell(agent: SimAgent) -> None:
        began = agent.loop.now
        agent.record(told=False)
        at = await until(agent, asked(agent), 60.0)
        assert at - began == pytest.approx(5.0, abs=0.1)

    story(tmp_path, tell)


def test_each_interval_while_something_waits(tmp_path: Path) -> None:
    async def tell(agent: SimAgent) -> None:
        agent.record()
        await until(agent, lambda: agent.idle, 60.0)
        began = agent.loop.now
        await asyncio.sleep(5.0)  # the round is over by then
        agent.record(told=False)
        at = await until(agent, lambda: agent.idle, 120.0)
        assert at - began == pytest.approx(60.0, abs=3.0)

    story(tmp_path, tell)


def test_a_reply_sets_the_interval(tmp_path: Path) -> None:
    """The server may calm its agents, and take that back."""

    async def tell(agent: SimAgent) -> None:
        for plan, interval in ((Plan(sync_interval=600.0), 600.0), (Plan(), 60.0)):
            agent.server.plan = plan
            agent.record()
            await until(agent, lambda: agent.idle, 60.0)
            began = agent.loop.now
            await asyncio.sleep(5.0)  # the round is over by then
            before = agent.seen.requests
            agent.record(told=False)
            at = await until(agent, asked(agent, before + 1), 700.0)
            assert at - began == pytest.approx(interval, abs=3.0)
            await until(agent, lambda: agent.idle, 60.0)

    story(tmp_path, tell)


def test_a_reply_sets_the_shortest_pause(tmp_path: Path) -> None:
    """Of all failures that follow, whatever the machine's ways."""

    async def tell(agent: SimAgent) -> None:
        agent.server.plan = Plan(backoff_floor=30.0)
        agent.record()
        await until(agent, lambda: agent.idle, 60.0)
        agent.line.up = False
        agent.record()
        began, before = agent.loop.now, agent.seen.requests
        await until(agent, lambda: agent.ways.told is not None, 5.0)
        assert agent.ways.told is not None
        agent.ways.told()
        await until(agent, asked(agent, before + 3), 200.0)
        first, second, third = [at for at, _ in agent.seen.bodies[before:]]
        assert first - began < 1.0
        assert second - first == pytest.approx(31.0, abs=0.5), "the shortest pause, and the first of the backoff on top"
        assert third - second == pytest.approx(32.0, abs=0.5)

    story(tmp_path, tell)


def test_when_the_connection_returns(tmp_path: Path) -> None:
    """A pause of minutes ends with `resume`, or with word of another link; not with new records."""

    async def tell(agent: SimAgent) -> None:
        agent.line.up = False
        agent.record()
        await until(agent, lambda: (agent.sync.link.until or 0) > agent.loop.now + 200.0, 3600.0)
        agent.line.up = True
        before = agent.seen.requests
        agent.record()
        await asyncio.sleep(10.0)
        assert agent.seen.requests == before
        back = agent.loop.now
        agent.sync.resume()
        await until(agent, lambda: agent.idle, 5.0)
        assert agent.loop.now - back < 1.0

    story(tmp_path, tell)


def test_when_the_kernel_tells_of_a_new_way(tmp_path: Path) -> None:
    """A pause of minutes ends by itself, with a small request first; who is online again listens no more."""

    async def tell(agent: SimAgent) -> None:
        agent.line.up = False
        agent.record()
        await until(agent, lambda: (agent.sync.link.until or 0) > agent.loop.now + 200.0, 3600.0)
        for up in (False, True):
            agent.line.up = up
            assert agent.ways.told is not None
            agent.ways.told()
            await asyncio.sleep(1.0)
        assert agent.idle, "the first one led nowhere, and the second one was tried all the same"
        assert agent.ways.told is None

    story(tmp_path, tell)


def unavailable(agent: SimAgent, times: int, **headers: str) -> list[float]:
    """The server is not available for the first few requests; when it was asked."""
    tried: list[float] = []

    def failure() -> Answer | None:
        tried.append(agent.loop.now)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return Answer(503, named, b"") if len(tried) <= times else None

    agent.server.failure = failure  # type: ignore[method-assign]
    return tried


def test_a_new_way_that_comes_during_a_try_is_tried_next(tmp_path: Path) -> None:
    async def tell(agent: SimAgent) -> None:
        tried = unavailable(agent, 2)
        answer = agent.server.failure

        def meanwhile() -> Answer | None:
            if len(tried) == 1:
                assert agent.ways.told is not None
                agent.ways.told()
            return answer()

        agent.server.failure = meanwhile  # type: ignore[method-assign]
        agent.record()
        await until(agent, lambda: agent.idle, 60.0)
        assert tried[2] - tried[1] < 1.0 < tried[1] - tried[0]

    story(tmp_path, tell)


def test_a_new_way_is_no_reason_to_press_a_server_that_asked_to_be_left_alone(tmp_path: Path) -> None:
    async def tell(agent: SimAgent) -> None:
        tried = unavailable(agent, 1, retry_after="900")
        agent.record()
        await until(agent, lambda: len(tried) == 1, 60.0)
        await asyncio.sleep(1.0)
        for _ in range(8):
            assert agent.ways.told is not None
            agent.ways.told()
            await asyncio.sleep(100.0)
        assert len(tried) == 1
        await until(agent, lambda: agent.idle, 200.0)

    story(tmp_path, tell)


def test_each_further_failure_makes_the_pause_longer_and_costs_little(tmp_path: Path) -> None:
    """Row L4: an hour without a server is a dozen probes, not a hot loop."""

    async def tell(agent: SimAgent) -> None:
        agent.line.portal = True
        for _ in range(20):
            agent.record()
        await asyncio.sleep(3600.0)
        assert 10 <= agent.seen.requests <= 25
        assert sum(count for _, count in agent.seen.pieces) == 0

    story(tmp_path, tell)


def test_a_paused_agent_does_nothing_at_all(tmp_path: Path) -> None:
    async def tell(agent: SimAgent) -> None:
        agent.pause()
        for _ in range(5):
            agent.record()
            await asyncio.sleep(3600.0)
        assert agent.seen.requests == 0
        agent.resume()
        await until(agent, lambda: agent.idle, 60.0)

    story(tmp_path, tell)


def test_the_policy_is_asked_for_each_link_and_hour(tmp_path: Path) -> None:
    async def tell(agent: SimAgent) -> None:
        agent.sync.set_way(LinkState(metered=True, name="lte"))
        while not any(made.errors for made in agent.made) or all(made.errors for made in agent.made):
            agent.record()
            agent.draw.random = lambda: 0.1  # type: ignore[method-assign]
        await asyncio.sleep(600.0)
        waiting = set(agent.files.names(agent.folder / "waiting"))
        assert waiting == {made.session_id for made in agent.made if not made.errors}
        assert "held back by the policy" in agent.sync.why
        agent.sync.set_way(LinkState(name="wifi"))
        await until(agent, lambda: agent.idle, 5.0)
        assert agent.sync.why == ""

    story(tmp_path, tell, policy=urgent_when_metered)


def test_quiet_hours_end_by_themselves(tmp_path: Path) -> None:
    async def tell(agent: SimAgent) -> None:
        agent.record()
        hour = agent.clocks.local() % 86_400 / 3600
        assert 14 < hour < 15
        at = await until(agent, lambda: agent.idle, 5 * 3600.0)
        assert 18.0 <= agent.clocks.local() % 86_400 / 3600 <= 18.1, at

    story(tmp_path, tell, policy=quiet_hours(8, 18))


def test_the_end_is_not_lost_that_comes_in_the_moment_of_a_wake(tmp_path: Path) -> None:
    """Up to Python 3.11, `wait_for` swallows a cancellation that comes when what it waits for is there."""

    async def tell(agent: SimAgent) -> None:
        await asyncio.sleep(30.0)
        for _ in range(20):
            agent.sync.wake()
            agent.running.cancel()
            await asyncio.wait([agent.running])
            assert agent.running.cancelled()
            agent.running = asyncio.create_task(agent.sync.run(0.0))
            await asyncio.sleep(10.0)

    story(tmp_path, tell)


def test_what_another_process_has_spent_meanwhile_is_not_spent_again(tmp_path: Path) -> None:
    """The place of the sender is lost and won between the wake and the round, as when sessions are being given up."""

    async def tell(agent: SimAgent) -> None:
        agent.record()
        await until(agent, lambda: agent.idle, 60.0)
        carried, submit = agent.seen.requests, agent.disk.submit

        def out_of_turn(*call: Any) -> Any:  # noqa: ANN401 - as an executor takes and gives it
            agent.disk.submit = submit  # type: ignore[method-assign]
            agent.stores.cease_sending()
            return submit(*call)

        agent.disk.submit = out_of_turn  # type: ignore[method-assign, assignment]
        limit, today = agent.budget or 0, day_of(agent.clocks.local())
        BudgetFile(agent.files, agent.folder, limit).write(Budget(limit, today, limit))
        agent.record()
        await until(agent, lambda: "budget" in agent.sync.why, 60.0)
        assert agent.seen.requests == carried

    story(tmp_path, tell, daily_bytes=65_536)


def test_sessions_that_are_gone_are_forgotten_some_at_a_time(tmp_path: Path) -> None:
    """Another process has sent three slices of them: the event loop has its turns meanwhile."""

    async def tell(agent: SimAgent) -> None:
        agent.line.up = False
        for _ in range(3 * SLICE):
            agent.record()
        known = agent.sync._rounds.planner.entries
        await until(agent, lambda: len(known) == 3 * SLICE, 60.0)
        for made in agent.made:
            shutil.rmtree(agent.folder / "waiting" / made.session_id)
        agent.sync.resume()
        most = 0
        while known:
            before = len(known)
            await asyncio.sleep(0)
            most = max(most, before - len(known))
        assert most == SLICE

    story(tmp_path, tell)


def eligible(recorded: Callable[[], int], seconds: float) -> list[float]:
    """When, within so many seconds, a running session is offered that has so many records."""
    woken: list[float] = []

    async def main(loop: VirtualLoop) -> None:
        clocks, began = Clocks(monotonic=lambda: int(loop.now * 1e9)), loop.now
        watching = asyncio.create_task(
            Eligibility(clocks, recorded, lambda: woken.append(loop.now - began), 300.0).watch()
        )
        await asyncio.sleep(seconds)
        watching.cancel()

    virtual.run(main)
    return woken


def test_every_20000_records_or_values() -> None:
    """Row T3."""
    counts = iter(range(0, 10**9, RECORDS_TRIGGER // 10))
    woken = eligible(lambda: next(counts), 35 * LOOK_INTERVAL)
    assert RECORDS_TRIGGER == 20_000
    assert len(woken) == 3


def test_every_24_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row T3."""
    monkeypatch.setattr("mailboat.agent.eligibility.LOOK_INTERVAL", 60.0)
    woken = eligible(lambda: 1, 2.5 * AGE_TRIGGER)
    assert AGE_TRIGGER == 24 * 3600.0
    assert woken == [pytest.approx(AGE_TRIGGER, abs=120.0), pytest.approx(2 * AGE_TRIGGER, abs=240.0)]
