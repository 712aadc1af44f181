"""Servers that are none, or none of ours: a clear status in one line, nothing lost, no key given away, no hurry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailboat.agent import Agent, ConfigError, SessionState, SyncReport
from mailboat.protocol import wire
from mailboat.protocol.negotiation import Decision, SegmentDecision, Verdict
from testkit.agents import AgentMaker, left_behind
from testkit.serverkit import eventually
from testkit.servers import Given, digests, stored
from testkit.strange import NEGOTIATE, Answer, Asked, http, replied, saying, silence, strange, then_silence

PAGE = b"<html><title>Welcome to the Grand Hotel</title>Please sign in</html>"
HTML = {"Content_Type": "text/html"}
ENDLESS = http(200, Content_Type=wire.MSGPACK_MEDIA_TYPE, Content_Length=str(2**40)) + b"\x80" * 2**20

CASES: dict[str, tuple[Answer, str, str]] = {
    "a wrong key": (saying(http(401)), "refused", "the server refuses the key (status 401): check api_key"),
    "a revoked key": (saying(http(403)), "refused", "the server refuses the key (status 403)"),
    "a portal's page": (saying(http(200, PAGE, ours=False, **HTML)), "offline", "status 200 is no mailboat server"),
    "a portal's 403": (saying(http(403, PAGE, ours=False, **HTML)), "offline", "status 403 is no mailboat server"),
    "another service": (saying(http(404, b"{}", ours=False)), "offline", "status 404 is no mailboat server"),
    "a proxy that fails": (saying(http(502, PAGE, ours=False, **HTML)), "offline", "not available: status 502"),
    "a server at rest": (saying(http(503, Retry_After="120")), "offline", "not available: status 503"),
    "hangs before headers": (silence, "offline", "nothing was heard of the server"),
    "hangs in the headers": (then_silence(b"HTTP/1.1 200 OK\r\nServer:"), "offline", "nothing was heard"),
    "hangs after headers": (then_silence(http(200, Content_Length="10")), "offline", "nothing was heard"),
    "a truncated answer": (saying(http(200, b"half", Content_Length="1000")), "offline", "the connection was lost"),
    "closes at once": (saying(b""), "offline", "the connection was lost"),
    "no HTTP": (saying(b"220 mail.example.com ESMTP\r\n" * 50), "offline", "the connection was lost"),
    "an endless answer": (saying(ENDLESS), "offline", "cannot be understood"),
    "another type": (saying(http(200, b"<xml/>", Content_Type="text/xml")), "offline", "cannot be understood"),
    "half a message": (
        saying(http(200, b"\x84\xa1v", Content_Type=wire.MSGPACK_MEDIA_TYPE)),
        "offline",
        "cannot be understood",
    ),
    "a terminal's trap": (
        saying(http(302, ours=False, Location="http://\x1b[2Jevil.example/" + "x" * 900)),
        "offline",
        "is no mailboat server",
    ),
}


async def tried(agent: Agent) -> SyncReport:
    """One attempt, which must end by itself."""
    async with asyncio.timeout(30.0):
        return await agent.force_sync()


async def delivered_at_last(make_agent: AgentMaker, given: Given, key: str, store: Path, session_id: str) -> None:
    """The cause is gone: everything is there, and the server has it exactly."""
    async with make_agent(server=given.url, api_key=key) as agent:
        report = await agent.force_sync(timeout=30.0)
    assert report.complete, report
    assert {each.session_id: each.state for each in report.sessions}[session_id] is SessionState.ACCEPTED
    assert digests(await given.segments(session_id)) == digests(stored(store, session_id))


@pytest.fixture
def patience() -> Iterator[pytest.MonkeyPatch]:
    """Set it where a server is silent, and nowhere else: one that answers has the time that a busy machine takes."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def lose(patience: pytest.MonkeyPatch) -> None:
    patience.setattr("mailboat.agent.http.SILENCE_TIMEOUT", 0.3)


@pytest.mark.parametrize("name", CASES)
async def test_a_server_that_is_none(
    make_agent: AgentMaker,
    given: Given,
    key: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    patience: pytest.MonkeyPatch,
    name: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    answer, connectivity, reason = CASES[name]
    if name.startswith("hangs"):
        lose(patience)
    session_id, recorded = await left_behind(make_agent, 2_000, 1)
    async with strange(answer) as server:
        async with make_agent(server=server.url) as agent:
            agent.feature("host.works")
            report = await tried(agent)
            status = agent.status
        assert (report.complete, report.bytes_sent) == (False, 0)
        assert {outcome.state for outcome in report.sessions} == {SessionState.PENDING}
        assert report.error is not None
        assert reason in report.error
        assert report.error.isprintable()
        assert len(report.error) < 400
        assert (status.connectivity, status.reason) == (connectivity, report.error)
        assert status.next_attempt is not None
        assert (status.waiting_sessions, status.ledger.pending) == (1, recorded + 1)
        assert not status.trouble
        assert all(asked.headers["authorization"] == f"Bearer {agent.config.api_key}" for asked in server.asked)
    assert agent.config.api_key not in caplog.text + repr(status) + repr(report)
    patience.undo()
    await delivered_at_last(make_agent, given, key, tmp_path, session_id)


@pytest.mark.parametrize("name", CASES)
async def test_the_automatic_part_is_in_no_hurry(
    make_agent: AgentMaker, patience: pytest.MonkeyPatch, name: str
) -> None:
    answer, connectivity, _ = CASES[name]
    if name.startswith("hangs"):
        lose(patience)
    await left_behind(make_agent, 2_000, 1)
    async with strange(answer) as server, make_agent(server=server.url, synchronize_automatically=True) as agent:
        await eventually(lambda: agent.status.connectivity == connectivity)
        for number in range(500):  # triggers do not shorten the pause
            agent.event("trouble", 40, number=number)
        await asyncio.sleep(0)
        assert len(server.asked) <= 2


def wanted_at(asked: Asked, place: str) -> list[Decision]:
    """All that is offered is to be uploaded, below `place`."""
    return [
        Decision(
            offer.session_id,
            Verdict.SEND,
            segments=tuple(
                SegmentDecision(each.index, f"{place}/v1/uploads/{offer.session_id}", 0, complete=False)
                for each in offer.segments
            ),
        )
        for offer in asked.offers.offers
    ]


async def test_the_key_goes_to_no_other_place(make_agent: AgentMaker) -> None:
    """Not after a redirect, in any form, and not with an upload that lies elsewhere."""
    await left_behind(make_agent, 2_000, 1)
    async with strange(saying(http(200))) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            async with strange(saying(http(status, Location=elsewhere.url + NEGOTIATE))) as server:
                async with make_agent(server=server.url) as agent:
                    report = await tried(agent)
                assert report.error is not None
                assert len(server.asked) == 1

        async def sends_away(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await saying(replied(wanted_at(asked, elsewhere.url)))(asked, writer)

        async with strange(sends_away) as server:
            async with make_agent(server=server.url) as agent:
                report = await tried(agent)
            assert report.error is not None
            assert [asked.path for asked in server.asked] == [NEGOTIATE]
        assert elsewhere.asked == []


async def test_nothing_listens(make_agent: AgentMaker, given: Given, key: str, tmp_path: Path) -> None:
    session_id, _ = await left_behind(make_agent, 2_000, 1)
    async with strange(silence) as server:
        pass
    async with make_agent(server=server.url) as agent:
        report = await tried(agent)
        assert report.error is not None
        assert "no connection" in report.error
        assert agent.status.connectivity == "offline"
    await delivered_at_last(make_agent, given, key, tmp_path, session_id)


async def test_a_server_that_stops_taking_a_body(
    make_agent: AgentMaker, given: Given, key: str, tmp_path: Path, patience: pytest.MonkeyPatch
) -> None:
    """More than the kernel's buffers take: without a limit on silence this would wait for ever."""
    lose(patience)
    session_id, _ = await left_behind(make_agent, 15_000_000, 1)

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path != NEGOTIATE:
            return await silence(asked, writer)
        return await saying(replied(wanted_at(asked, "")))(asked, writer)

    async with strange(answer) as server:
        server.reads_bodies = False
        async with make_agent(server=server.url) as agent:
            report = await tried(agent)
            assert report.error is not None
            assert "nothing was heard" in report.error
            assert agent.status.connectivity == "offline"
    patience.undo()
    await delivered_at_last(make_agent, given, key, tmp_path, session_id)


@pytest.mark.parametrize(
    "url",
    [
        "http://collect.example:99999",
        "http://[::1",
        "http://exa mple",
        "ftp://collect.example",
        "collect.example",
        "http://",
        "http://u:p@collect.example",
        "http://collect.example/?a=1",
    ],
)
def test_an_address_that_is_none_is_refused_at_once(make_agent: AgentMaker, url: str) -> None:
    with pytest.raises(ConfigError, match="server="):
        make_agent(server=url)


async def test_a_name_that_cannot_be_looked_up(make_agent: AgentMaker) -> None:
    async with make_agent(server=f"http://{'a' * 70}.example") as agent:
        report = await tried(agent)
        assert report.error is not None
        assert agent.status.connectivity == "offline"
