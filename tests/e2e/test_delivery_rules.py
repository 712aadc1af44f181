"""What an application may say of how its sessions are sent, over the whole of agent and server.

Rows L2, L6, L7 and T8 of the reference behaviour are here, and what neither system has: policies, budgets, receipts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mailboat.agent import SessionOutcome, SessionState
from mailboat.agent.integrations.logs import LogHandler
from mailboat.agent.link_policy import LinkState, Priority, never_metered, urgent_when_metered
from mailboat.server.catalog import Role
from mailboat.server.keys import create_key
from testkit.agents import AgentMaker, left_behind
from testkit.serverkit import PRODUCT, eventually
from testkit.servers import Given, Served
from testkit.strange import http, saying, silence, strange

KIB = 1024
AUTOMATIC = {"synchronize_automatically": True, "startup_delay": 0.0, "sync_interval": 1.0}


async def planned(server: Served, **changes: object) -> None:
    """Change the product's plan, as an admin does."""
    admin = await asyncio.to_thread(create_key, server.data, None, Role.ADMIN)
    headers = {"Authorization": f"Bearer {admin}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.put(f"{server.url}/api/v1/products/{PRODUCT}", json=changes) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def ask_for(server: Served, session_id: str) -> None:
    """Want the details of a session after all, as an admin does."""
    admin = await asyncio.to_thread(create_key, server.data, None, Role.ADMIN)
    url = f"{server.url}/api/v1/sessions/{session_id}/wanted"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {admin}"}) as session,
        session.put(url, params={"product": PRODUCT}) as answer,
    ):
        assert answer.status == 200, await answer.text()


# -- which link --------------------------------------------------------------------------------------------------------


async def test_on_a_metered_link_only_errors_are_sent_until_it_is_free(make_agent: AgentMaker, given: Given) -> None:
    ordinary, _ = await left_behind(make_agent, 1000, 1)
    async with make_agent(policy=urgent_when_metered, **AUTOMATIC) as agent:
        agent.set_link("lte", metered=True)
        agent.exception(ValueError("of the running session"))
        running = agent.session_id
        assert running is not None
        await eventually(lambda: "held back by the policy" in agent.status.reason)
        assert ordinary not in await given.sessions()
        agent.set_link("wifi")
        outcome = await agent.delivered(ordinary, timeout=30.0)
        assert outcome.state is SessionState.ACCEPTED
        await eventually(lambda: agent.status.reason == "")


async def test_what_the_application_asks_for_needs_no_policy(make_agent: AgentMaker) -> None:
    session_id, _ = await left_behind(make_agent, 1000, 1)
    async with make_agent(policy=never_metered, **AUTOMATIC) as agent:
        agent.set_link(metered=True)
        await eventually(lambda: "held back" in agent.status.reason)
        report = await agent.force_sync(timeout=30.0)
        assert {each.session_id: each.state for each in report.sessions}[session_id] is SessionState.ACCEPTED


async def test_the_policy_and_a_pause_hold_for_stop_too(make_agent: AgentMaker, given: Given) -> None:
    agent = make_agent(policy=never_metered, synchronize_automatically=True, startup_delay=60.0)
    await agent.start()
    agent.set_link(metered=True)
    agent.feature("kept")
    await agent.stop(timeout=5.0)
    assert agent.session_id not in await given.sessions()
    agent = make_agent(synchronize_automatically=True, startup_delay=60.0)
    await agent.start()
    agent.pause()
    await agent.flush()
    await agent.stop(timeout=5.0)
    assert await given.sessions() == {}


async def test_a_policy_that_fails_forbids_nothing(make_agent: AgentMaker, caplog: pytest.LogCaptureFixture) -> None:
    def policy(link: LinkState, priority: Priority) -> bool:
        raise LookupError("the application's own mistake")

    session_id, _ = await left_behind(make_agent, 1000, 1)
    async with make_agent(policy=policy, **AUTOMATIC) as agent:
        outcome = await agent.delivered(session_id, timeout=30.0)
    assert outcome.state is SessionState.ACCEPTED
    assert caplog.text.count("the policy for links failed") == 1


# -- how much ----------------------------------------------------------------------------------------------------------


async def test_a_days_budget_is_kept_over_restarts_and_by_force_sync(make_agent: AgentMaker, given: Given) -> None:
    for seed in range(3):
        await left_behind(make_agent, 60 * KIB, seed)
    reports = []
    for _ in range(3):
        async with make_agent(daily_bytes=128 * KIB) as agent:
            report = await agent.force_sync(timeout=30.0)
            reports.append(report)
            assert "budget of 131072 bytes a day is spent" in agent.status.reason
    assert [report.complete for report in reports] == [False] * 3
    assert "budget of 131072 bytes a day is spent" in (reports[-1].error or "")
    assert 0 < await given.received() <= 128 * KIB
    async with make_agent() as agent:
        assert (await agent.force_sync(timeout=30.0)).complete


async def test_a_rate_is_kept_to(make_agent: AgentMaker, given: Given) -> None:
    """The time it takes at least is the bytes by the rate; nothing is said of the time it takes at most."""
    await left_behind(make_agent, 100 * KIB, 1)
    loop = asyncio.get_running_loop()
    async with make_agent(max_upload_rate=128 * KIB) as agent:
        began = loop.time()
        report = await agent.force_sync(timeout=60.0)
        took = loop.time() - began
    assert report.complete, report
    assert took >= report.bytes_sent / (128 * KIB) - 0.26


async def test_the_servers_plan_is_obeyed(make_agent: AgentMaker, server: Served, given: Given) -> None:
    """T12 and the policy of replies: a server may calm its agents, and says what it wants of them."""
    await planned(server, sync_interval=600.0, max_rate=4096, details="errors")
    await left_behind(make_agent, 100, 1)
    async with make_agent(**AUTOMATIC) as agent:
        await eventually(lambda: agent.status.ledger.declined > 0)
        assert agent._sync is not None
        policy = agent._sync._rounds.policy
        assert (policy.sync_interval, policy.max_rate, policy.details.value) == (600.0, 4096, "errors")
        assert agent._sync._rounds.traffic.piece == 1024
        ordinary, _ = await left_behind(make_agent, 100, 2)
        agent.feature("ordinary")
        agent._sync.wake(include_live=True)
        assert (await agent.delivered(ordinary, timeout=30.0)).state is SessionState.DECLINED
        assert agent.session_id not in await given.sessions(), "nothing of a session without errors is of use"
        agent.exception(ValueError("of use"))
        async with asyncio.timeout(30.0):
            while agent.session_id not in await given.sessions():  # noqa: ASYNC110 - the server tells when asked
                await asyncio.sleep(0)


async def test_that_a_running_session_is_not_wanted_is_told_to_who_waits_for_it(
    make_agent: AgentMaker, server: Served, given: Given
) -> None:
    await planned(server, details="none")
    async with make_agent() as agent:
        assert agent.session_id is not None
        agent.feature("unwanted")
        report = await agent.force_sync(timeout=30.0)
        outcome = await agent.delivered(agent.session_id, timeout=10.0)
        assert (outcome.state, outcome.bytes_sent, outcome.bytes_left) == (SessionState.PENDING, 0, 0)
        assert (report.complete, report.sessions) == (True, (outcome,))
        assert await given.received() == 0


# -- many applications -------------------------------------------------------------------------------------------------


async def test_one_agent_sends_for_all_applications_of_the_product_and_each_once(
    make_agent: AgentMaker, given: Given
) -> None:
    """Row L6: one chosen application sends for all."""
    waiting = [await left_behind(make_agent, 2000, seed, application=f"app {seed}") for seed in range(4)]
    recorder = make_agent(application="only records", sender=False, synchronize_automatically=True, startup_delay=0.0)
    async with recorder, make_agent(application="the sender", send_all_applications=True) as sender:
        assert (await recorder.force_sync(timeout=5.0)).error == (
            "this agent only records (sender=False); another one sends"
        )
        report = await sender.force_sync(timeout=30.0)
        assert report.complete, report
        states = {each.session_id: each.state for each in report.sessions}
        assert [states[session_id] for session_id, _ in waiting] == [SessionState.ACCEPTED] * 4
        recorder.feature("later")
        left = recorder.session_id
        await recorder.stop()
        assert (await sender.force_sync(timeout=30.0)).complete
        assert sum(records for _, records in waiting) + 1 == sender.status.ledger.accepted
    found = await given.sessions()
    assert left in found
    assert sorted(each["info"]["application"] for each in found.values() if each["status"] != "running") == sorted(
        [*(f"app {seed}" for seed in range(4)), "only records"]
    )


async def test_an_application_that_sends_for_itself_is_left_to_it_and_taken_over(
    make_agent: AgentMaker, given: Given
) -> None:
    """Row L6: take-over."""
    session_id, _ = await left_behind(make_agent, 2000, 1, application="independent")
    async with strange(silence) as nowhere:
        independent = make_agent(application="independent", server=nowhere.url)
        await independent.start()
        window = asyncio.create_task(independent.force_sync(timeout=60.0))
        await nowhere.been_asked(1)  # it is the sender of its store now
        everyones = make_agent(application="everyones", send_all_applications=True)
        other = make_agent(application="another", send_all_applications=True)
        async with everyones, other:
            report = await everyones.force_sync(timeout=10.0)
            assert session_id not in {each.session_id for each in report.sessions}
            assert (await other.force_sync(timeout=10.0)).error == "another process sends for this store"
            await independent.stop(timeout=0)
            await window
            report = await everyones.force_sync(timeout=30.0)
            assert {each.session_id: each.state for each in report.sessions}[session_id] is SessionState.ACCEPTED
            await everyones.stop(timeout=0)
            await other.stop(timeout=10.0)
    assert len(await given.sessions()) == 4


async def test_each_store_has_an_account_of_its_own_whoever_sends_for_it(
    make_agent: AgentMaker, given: Given, tmp_path: Path
) -> None:
    """Row L6, and the ledger: what is recorded in one store is in one account at the server, and in no other."""
    recorded: Counter[str] = Counter()

    async def sent_by(sender: str) -> None:
        for seed, application in enumerate(("one", "two", "three")):
            _, records = await left_behind(make_agent, 500 + 1000 * seed, seed, application=application)
            recorded[application] += records
        async with make_agent(application=sender, send_all_applications=True) as agent:
            agent.feature("of the sender")
            recorded[sender] += 1
            assert (await agent.force_sync(timeout=30.0)).complete

    def names() -> dict[str, str]:
        return {json.loads(path.read_bytes())["store"]: path.parent.name for path in tmp_path.glob("**/ledger.json")}

    async def accounts() -> dict[str, dict[str, Any]]:
        return {names()[row["source"]]: row for row in (await given.get("accounts"))["stores"]}

    await sent_by("first")
    await sent_by("second")  # the other one's process is gone: this one takes its place
    async with asyncio.timeout(30.0):
        while {name: row["here"]["records"] for name, row in (await accounts()).items()} != recorded:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the server, which is another process, loads them
    found = await accounts()
    assert {name: row["said"]["recorded"] for name, row in found.items()} == recorded
    assert all(row["balanced"] and row["missing"] == 0 for row in found.values()), found


# -- what became of it -------------------------------------------------------------------------------------------------


async def test_outcomes_are_told_and_kept_over_restarts(make_agent: AgentMaker, server: Served) -> None:
    """Row L2 and T9: accepted, declined and rejected, each with its reason, to callback, report, and a later run."""
    await planned(server, details="errors")
    declined, records = await left_behind(make_agent, 1000, 1)
    heard: list[SessionOutcome] = []

    def failing(_: SessionOutcome) -> None:
        raise LookupError("the application's own mistake")

    async with make_agent() as agent:
        agent.on_outcome(heard.append)
        agent.on_outcome(failing)
        report = await agent.force_sync(timeout=30.0)
        agent.exception(ValueError("wanted"))
        accepted = agent.session_id
        await agent.stop(timeout=30.0)
    assert accepted is not None
    assert {each.session_id: each.state.value for each in heard} == {declined: "declined", accepted: "accepted"}
    assert [each.state.value for each in report.sessions if each.session_id == declined] == ["declined"]
    async with make_agent() as agent:
        earlier = [await agent.delivered(each, timeout=10.0) for each in (declined, accepted)]
        assert [(each.state.value, each.records) for each in earlier] == [("declined", records), ("accepted", 1)]
        with pytest.raises(TimeoutError):
            await agent.delivered("0190a000-0000-7000-8000-000000000000", timeout=0.05)


async def test_a_sender_for_years_keeps_the_last_outcomes_in_memory_and_knows_them_all(
    make_agent: AgentMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailboat.agent.rounds.MOST_OUTCOMES", 2)
    sessions = [(await left_behind(make_agent, 1000, seed))[0] for seed in range(5)]
    async with make_agent() as agent:
        report = await agent.force_sync(timeout=30.0)
        assert {each.session_id for each in report.sessions} >= set(sessions)
        assert agent._sync is not None
        assert len(agent._sync.outcomes) == 2
        outcomes = [await agent.delivered(session_id, timeout=5.0) for session_id in sessions]
        assert {outcome.state for outcome in outcomes} == {SessionState.ACCEPTED}
        assert agent.status.ledger.pending == 0


async def test_a_session_that_was_declined_is_sent_when_the_server_asks_for_it(
    make_agent: AgentMaker, server: Served, given: Given
) -> None:
    await planned(server, details="errors")
    declined, records = await left_behind(make_agent, 1000, 1)
    async with make_agent() as agent:
        assert (await agent.force_sync(timeout=30.0)).complete
        assert (agent.status.ledger.declined, agent.status.ledger.accepted) == (records, 0)
        await ask_for(server, declined)
        agent.exception(ValueError("something to offer"))
        assert (await agent.force_sync(timeout=30.0)).complete
        outcome = await agent.delivered(declined, timeout=10.0)
        assert outcome.state is SessionState.ACCEPTED
        ledger = agent.status.ledger
        assert (ledger.declined, ledger.accepted, ledger.recorded) == (0, records, records + 1)
    assert len(await given.records(declined)) == records


async def test_agents_report_their_accounts_and_the_server_shows_them(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path
) -> None:
    """One account for a store, whatever agent tells it."""
    sessions = [await left_behind(make_agent, 1000, seed) for seed in range(2)]
    for number in range(2):
        async with make_agent() as agent:
            agent.feature("running", number=number)
            await agent.force_sync(timeout=30.0)
            await agent.flush()
            agent.event("grows")
            assert (await agent.force_sync(timeout=30.0)).error is None
    (row,) = (await given.get("ledger"))["reported"]
    known = sum(records for _, records in sessions)
    assert (row["ledger"]["accepted"], row["ledger"]["recorded"]) == (known + 2, known + 4)
    (file,) = (tmp_path / "store").glob("**/ledger.json")
    assert row["source"] == json.loads(file.read_text())["store"] != ""


async def test_purge_or_keep(make_agent: AgentMaker, server: Served, tmp_path: Path) -> None:
    """Row L7: sent sessions, those declined included, are purged when asked for, and kept otherwise."""
    await planned(server, details="errors")
    folders: dict[bool, Any] = {}
    for purge in (False, True):
        store = tmp_path / f"purge {purge}"
        await left_behind(make_agent, 1000, 1, store=store)
        async with make_agent(store=store, purge_sent=purge) as agent:
            agent.exception(ValueError("wanted"))
            assert (await agent.force_sync(timeout=30.0)).error is None
            await agent.stop(timeout=30.0)
        folders[purge] = len(list(store.glob("*/importer/sent/*"))), len(list(store.glob("*/importer/waiting/*")))
    assert folders == {False: (2, 0), True: (0, 0)}


# -- what it says of itself --------------------------------------------------------------------------------------------


async def test_a_healthy_life_is_quiet_and_feeds_nothing_to_itself(
    make_agent: AgentMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    root = logging.getLogger()
    session_id, _ = await left_behind(make_agent, 1000, 1)
    async with make_agent(**AUTOMATIC) as agent:
        handler = LogHandler(agent)
        root.addHandler(handler)
        try:
            await agent.delivered(session_id, timeout=30.0)
            assert (await agent.force_sync(timeout=30.0)).error is None
        finally:
            root.removeHandler(handler)
        assert agent.status.recorded == 0
    said = [record for record in caplog.records if record.name == "mailboat"]
    assert {record.levelno for record in said} == {logging.DEBUG}


async def test_one_line_says_why_nothing_is_sent(make_agent: AgentMaker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mailboat")
    async with make_agent() as agent:
        assert agent.status.reason == "only force_sync sends (synchronize_automatically=False)"
    async with make_agent(synchronize_automatically=True, startup_delay=60.0) as agent:
        assert agent.status.reason == "the first attempt comes 60 s after the start"
        agent.pause()
        await eventually(lambda: agent.status.reason == "paused by the application")
    async with make_agent(sender=False) as agent:
        assert agent.status.reason == "this agent only records (sender=False); another one sends"
    async with strange(saying(http(503))) as server, make_agent(server=server.url, **AUTOMATIC) as agent:
        await eventually(lambda: "not available: status 503" in agent.status.reason)
        assert caplog.text.count("nothing is sent for now: the server is not available: status 503") == 1


async def test_after_a_failure_a_backlog_is_not_offered_before_the_server_is_there(make_agent: AgentMaker) -> None:
    """A probe of a few hundred bytes, not a negotiation of a whole backlog into the void."""
    for seed in range(3):
        await left_behind(make_agent, 1000, seed)
    async with strange(saying(http(503))) as server, make_agent(server=server.url, **AUTOMATIC) as agent:
        await server.been_asked(4)
        assert [each.path for each in server.asked[:4]] == ["/v1/negotiate", *["/v1/status"] * 3]
        assert sum(len(each.body) for each in server.asked[1:]) == 0
        assert agent.status.connectivity == "offline"
