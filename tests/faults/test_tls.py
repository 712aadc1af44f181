"""Over TLS: whoever cannot prove to be the server gets no key, no session and no second address."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from mailboat.agent import SessionState, SyncReport
from mailboat.protocol.negotiation import Decision, SegmentDecision, Verdict
from testkit.agents import AgentMaker, left_behind
from testkit.servers import Given, digests, stored
from testkit.strange import NEGOTIATE, Asked, http, replied, saying, strange

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """Who issues certificates here, and the context of an agent that trusts it."""

    issuer: trustme.CA

    @property
    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.issuer.configure_trust(context)
        return context

    def certified(self, *names: str, until: datetime | None = None) -> ssl.SSLContext:
        """What a server proves itself with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        since = None if until is None else until - timedelta(days=10)
        self.issuer.issue_cert(*names, not_before=since, not_after=until).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(trustme.CA())


@asynccontextmanager
async def tls_before(url: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """TLS in front of a server that has none, as a proxy does it; the address to use."""
    port = int(url.rpartition(":")[2])

    async def relayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection(HOST, port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while piece := await source.read(65_536):
                    target.write(piece)
                    await target.drain()
            target.close()

        await asyncio.gather(pump(reader, downstream), pump(upstream, writer))

    async with await asyncio.start_server(relayed, HOST, 0, ssl=context) as server:
        yield f"https://{HOST}:{server.sockets[0].getsockname()[1]}"


async def tried(make_agent: AgentMaker, server: str, context: ssl.SSLContext | bool) -> SyncReport:
    async with make_agent(server=server, ssl=context) as agent, asyncio.timeout(30):
        report = await agent.force_sync()
        status = agent.status
    assert agent.config.api_key not in f"{report!r} {status!r}"
    return report


BAD: dict[str, Callable[[Authority], ssl.SSLContext]] = {
    "expired": lambda authority: authority.certified(HOST, until=datetime.now(UTC) - timedelta(days=1)),
    "of another host": lambda authority: authority.certified("collect.example.com"),
    "of an authority that nobody knows": lambda _: Authority(trustme.CA()).certified(HOST),
}


@pytest.mark.parametrize("scheme", ["", "tus+"])
@pytest.mark.parametrize("name", BAD)
async def test_a_certificate_that_proves_nothing(
    make_agent: AgentMaker, given: Given, key: str, tmp_path: Path, authority: Authority, name: str, scheme: str
) -> None:
    session_id, _ = await left_behind(make_agent, 2_000, 1)
    async with strange(saying(http(200)), tls=BAD[name](authority)) as server:
        report = await tried(make_agent, f"{scheme}{server.url}/", authority.trusted)
        assert server.asked == []  # no request was sent, and so no key
    assert report.error is not None
    assert "certificate" in report.error.lower()
    assert {each.state for each in report.sessions} == {SessionState.PENDING}
    # The same certificate authority, and nothing wrong: it arrives, over the same TLS.
    async with (
        tls_before(given.url, authority.certified(HOST)) as url,
        make_agent(server=url, ssl=authority.trusted, api_key=key) as agent,
    ):
        report = await agent.force_sync(timeout=30.0)
    assert {each.session_id: each.state for each in report.sessions}[session_id] is SessionState.ACCEPTED
    assert digests(await given.segments(session_id)) == digests(stored(tmp_path, session_id))


async def test_a_private_authority_is_trusted_only_where_it_is_said(
    make_agent: AgentMaker, authority: Authority
) -> None:
    """Unless told otherwise it is the system's certificates that count."""
    await left_behind(make_agent, 2_000, 1)
    async with strange(saying(http(200)), tls=authority.certified(HOST)) as server:
        report = await tried(make_agent, server.url, True)
        assert server.asked == []
    assert report.error is not None
    assert "certificate" in report.error.lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_out_of_tls_or_to_another_origin_is_not_followed(
    make_agent: AgentMaker, authority: Authority, status: int
) -> None:
    await left_behind(make_agent, 2_000, 1)
    certificate = authority.certified(HOST)
    async with strange(saying(http(200))) as plain, strange(saying(http(200)), tls=certificate) as other:
        for elsewhere in (plain, other):
            answer = saying(http(status, Location=elsewhere.url + NEGOTIATE))
            async with strange(answer, tls=certificate) as server:
                report = await tried(make_agent, server.url, authority.trusted)
                assert [asked.path for asked in server.asked] == [NEGOTIATE]
            assert report.error is not None
            assert {each.state for each in report.sessions} == {SessionState.PENDING}
        assert plain.asked == other.asked == []


async def test_an_upload_is_not_sent_out_of_tls(make_agent: AgentMaker, authority: Authority) -> None:
    """The server itself names an upload without TLS, or at another origin."""
    session_id, _ = await left_behind(make_agent, 2_000, 1)
    certificate = authority.certified(HOST)
    async with strange(saying(http(200))) as plain:
        for elsewhere in (plain.url, plain.url.replace("http:", "https:"), f"//{HOST}:{plain.port}"):

            async def answer(asked: Asked, writer: asyncio.StreamWriter, there: str = elsewhere) -> None:
                url = f"{there}/v1/uploads/x"
                decisions = [
                    Decision(
                        offer.session_id,
                        Verdict.SEND,
                        segments=tuple(SegmentDecision(each.index, url, 0, complete=False) for each in offer.segments),
                    )
                    for offer in asked.offers.offers
                ]
                await saying(replied(decisions))(asked, writer)

            async with strange(answer, tls=certificate) as server:
                report = await tried(make_agent, server.url, authority.trusted)
            states = {each.session_id: each.state for each in report.sessions}
            assert states[session_id] is not SessionState.ACCEPTED
        assert plain.asked == []
