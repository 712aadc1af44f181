"""Negotiation with a real server: what is answered for each offer, in which encodings, within which bounds."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace as replaced
from pathlib import Path

import msgpack
import pytest
import zstandard
from msgspec.structs import replace
from yarl import URL

from mailboat.protocol import Status, Summary, wire
from mailboat.protocol.limits import MAX_NEGOTIATION, MAX_NEGOTIATION_WIRE, MAX_OFFERS
from mailboat.protocol.negotiation import Reply, Request, SegmentDecision
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import SegmentState
from mailboat.protocol.uploads.state import Phase
from mailboat.server import ServerConfig, create_app, deciding, negotiation
from mailboat.server.allowance import ARRIVALS, TRANSFERS
from mailboat.server.catalog import (
    LedgerRow,
    ProductRow,
    Registration,
    Role,
    SegmentRow,
    SessionQuery,
    SessionState,
    Verification,
)
from mailboat.server.context import CATALOG
from mailboat.server.context import COUNTERS as COUNTED
from mailboat.server.ingest import INGEST
from mailboat.server.keys import create_key
from mailboat.server.negotiation import ANSWERED_AT_ONCE
from mailboat.server.policy import DAY
from mailboat.server.serving import RunningServer
from mailboat.server.serving import running as serving_on
from mailboat.server.sqlite_catalog import SqliteCatalog
from testkit.serverkit import (
    AGENT,
    PRODUCT,
    Wire,
    eventually,
    fresh_session_id,
    make_segment,
    of_product,
    summary_of,
    wired,
)


@pytest.fixture(scope="module")
def summary() -> Summary:
    """Any summary; its numbers are those of a real segment."""
    return summary_of(make_segment(fresh_session_id()))


def another(summary: Summary, **changes: object) -> Summary:
    """A session like `summary`, but another one."""
    return replace(summary, session_id=fresh_session_id(), **changes)


def with_an_error(summary: Summary) -> tuple[int, ...]:
    """The counts of `summary`, and one error more."""
    return tuple(count + (name == "error") for name, count in zip(COUNTERS, summary.counts, strict=True))


def running(summary: Summary, *sizes: int) -> Summary:
    """The same session while it runs, its last segment not sealed."""
    last = len(sizes) - 1
    segments = tuple(SegmentState(index, size, 1, sealed=index < last) for index, size in enumerate(sizes))
    return replace(summary, status=Status.RUNNING, segments=segments)


async def test_a_new_session_is_wanted_from_the_start(client: Wire, summary: Summary) -> None:
    offer = another(summary)
    (decision,) = await client.negotiate(offer)
    assert (decision.session_id, decision.verdict) == (offer.session_id, "send")
    (segment,) = decision.segments
    assert (segment.index, segment.offset, segment.complete) == (0, 0, False)
    assert segment.url.startswith("/v1/uploads/")


async def test_a_session_that_is_here_need_not_be_kept(client: Wire) -> None:
    session_id = fresh_session_id()
    parts = [make_segment(session_id), make_segment(session_id, index=1, first=4)]
    (decision,) = await client.negotiate(summary_of(*parts))
    assert [segment.index for segment in decision.segments] == [0, 1]
    await client.append(decision.segments[1].url, parts[1], 0, complete=True)
    (half,) = await client.negotiate(summary_of(*parts))
    assert half.verdict == "send"
    assert [(each.complete, each.offset) for each in half.segments] == [(False, 0), (True, len(parts[1]))]
    await client.append(decision.segments[0].url, parts[0], 0, complete=True)
    (whole,) = await client.negotiate(summary_of(*parts))
    assert whole.verdict == "have"
    states = summary_of(*parts).segments
    assert [(each.sha256, each.offset) for each in whole.segments] == [(each.sha256, each.size) for each in states]


async def test_a_running_session_gets_uploads_as_it_grows(client: Wire, summary: Summary) -> None:
    offer = another(summary)
    (first,) = await client.negotiate(running(offer, 1_000))
    (second,) = await client.negotiate(running(offer, 1_000, 500))
    assert [segment.index for segment in second.segments] == [0, 1]
    assert second.segments[0].url == first.segments[0].url


async def test_of_very_many_segments_some_are_asked_for_at_a_time(
    server: RunningServer, client: Wire, summary: Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is asked for once the earlier ones are here; the offers behind get what is left, or are told to ask soon."""
    monkeypatch.setattr(deciding, "MAX_FRESH", 50)
    count = 110
    states = tuple(SegmentState(index, 1_000, 1, sealed=True, sha256="ab" * 32) for index in range(count))
    long, short = replace(another(summary), segments=states), another(summary)
    asked = 0
    for expected in (50, 50, 10):
        part, other = await client.negotiate(long, short)
        fresh = [each for each in part.segments if each.index >= asked]
        assert (part.verdict, [each.index for each in fresh]) == ("send", list(range(asked, asked + expected)))
        assert other.verdict == ("later" if asked == 0 else "send"), "what is taken up already takes no room"
        await everything_arrives(server, long, fresh)
        asked += expected
        await client.negotiate(short)
    whole, _ = await client.negotiate(long, short)
    assert (whole.verdict, len(whole.segments)) == ("have", count)


async def everything_arrives(server: RunningServer, offer: Summary, segments: Sequence[SegmentDecision]) -> None:
    """Each of these segments as if all its bytes had been sent, verified and loaded."""
    catalog = server.app[CATALOG]
    await catalog.mark_loaded({each.url.rpartition("/")[2]: offer.segments[each.index].size for each in segments})
    for each in segments:
        row = await catalog.upload(each.url.rpartition("/")[2])
        assert row is not None
        size, sha256 = offer.segments[each.index].size, offer.segments[each.index].sha256
        state = replace(row.state, offset=size, length=size, phase=Phase.COMPLETE)
        done = replace(row, state=state, verification=Verification.VERIFIED, sha256=sha256, records=1)
        assert await catalog.finish_upload(done)


async def test_offers_are_answered_again_alike(client: Wire, summary: Summary) -> None:
    offers = [another(summary) for _ in range(20)]
    first = await client.negotiate(*offers)
    assert await client.negotiate(*offers) == first
    assert [decision.session_id for decision in first] == [offer.session_id for offer in offers]
    twice = await client.negotiate(offers[0], offers[0])
    assert twice == (first[0], first[0])


async def test_the_announced_offset_is_what_the_server_holds(client: Wire) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    await client.append(path, data[:1_234], 0, complete=False)
    (decision,) = await client.negotiate(summary_of(data))
    assert decision.segments[0].offset == 1_234


async def test_what_a_machine_lost_after_sending_it_begins_anew(server: RunningServer, client: Wire) -> None:
    """Power loss at the agent: it had sent more than survived there, and sealed something shorter."""
    session_id = fresh_session_id()
    longer, shorter = make_segment(session_id, size=20_000), make_segment(session_id, size=4_000)
    path = await client.upload_of(longer)
    await client.append(path, longer[:15_000], 0, complete=False)
    fresh = await client.upload_of(shorter)
    assert fresh != path
    assert (await client.append(path, longer[15_000:], 15_000, complete=True)).status == 410
    assert (await client.append(fresh, shorter, 0, complete=True)).complete
    (decision,) = await client.negotiate(summary_of(shorter))
    assert decision.verdict == "have"


async def test_a_full_request_is_one_transaction(server: RunningServer, client: Wire, summary: Summary) -> None:
    catalog = server.app[CATALOG]
    assert isinstance(catalog, SqliteCatalog)
    offers = [another(summary) for _ in range(MAX_OFFERS)]
    await server.app[INGEST].settled()  # which has taken its lease then
    before = catalog.commits
    decisions = await client.negotiate(*offers)
    assert catalog.commits == before + 1
    assert {decision.verdict for decision in decisions} == {"send"}
    assert len({decision.segments[0].url for decision in decisions}) == MAX_OFFERS
    page = await catalog.sessions(SessionQuery(PRODUCT, limit=1_000))
    assert {row.summary.session_id for row in page.sessions} == {offer.session_id for offer in offers}


async def test_a_late_word_of_a_running_session_does_not_reopen_it(
    server: RunningServer, client: Wire, summary: Summary
) -> None:
    offer = another(summary)
    await client.negotiate(offer)
    await client.negotiate(running(offer, 1))
    row = await server.app[CATALOG].session(PRODUCT, offer.session_id)
    assert row is not None
    assert row.summary == offer


async def test_errors_come_first(client: Wire, summary: Summary) -> None:
    calm, alarmed = await client.negotiate(another(summary), another(summary, counts=with_an_error(summary)))
    assert alarmed.priority > calm.priority


# -- policy ------------------------------------------------------------------------------------------------------------


async def test_a_key_reaches_its_product_only(
    config: ServerConfig, server: RunningServer, client: Wire, summary: Summary
) -> None:
    await asyncio.to_thread(create_key, config.data, "Other")
    foreign, nowhere = another(of_product(summary, "Other")), another(of_product(summary, "Nothing"))
    mine = another(summary)
    decisions = await client.negotiate(foreign, nowhere, mine)
    assert [(each.verdict, each.reason) for each in decisions] == [
        ("reject", "unknown_product"),
        ("reject", "unknown_product"),
        ("send", ""),
    ]
    for offer in (foreign, nowhere):
        assert await server.app[CATALOG].session(None, offer.session_id) is None


async def test_one_session_id_in_two_products_is_two_sessions(
    config: ServerConfig, server: RunningServer, client: Wire
) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    await client.append(path, data, 0, complete=True)
    other = await asyncio.to_thread(create_key, config.data, "Other")
    async with wired(server.url, other) as stranger:
        (decision,) = await stranger.negotiate(of_product(summary_of(data), "Other"))
    assert decision.verdict == "send"
    assert decision.segments[0].url != path
    (mine,) = await client.negotiate(summary_of(data))
    assert mine.verdict == "have"


async def test_what_is_too_old_is_rejected_by_the_senders_clock(client: Wire) -> None:
    now = time.time()
    old = summary_of(make_segment(fresh_session_id(), wall=now - 31 * DAY))
    young = summary_of(make_segment(fresh_session_id(), wall=now - 29 * DAY))
    decisions = await client.negotiate(old, young)
    assert [(each.verdict, each.reason) for each in decisions] == [("reject", "too_old"), ("send", "")]
    # a machine whose clock stands 40 days behind: it offers what it has just recorded
    behind = summary_of(make_segment(fresh_session_id(), wall=now - 40 * DAY))
    (decision,) = await client.negotiate(behind, sent=now - 40 * DAY)
    assert decision.verdict == "send"


async def test_details_are_wanted_as_the_plan_says(server: RunningServer, client: Wire, summary: Summary) -> None:
    await server.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, {"details": "errors"}))
    calm, alarmed = another(summary), another(summary, counts=with_an_error(summary))
    decisions = await client.negotiate(calm, alarmed)
    assert [each.verdict for each in decisions] == ["decline", "send"]
    row = await server.app[CATALOG].session(PRODUCT, calm.session_id)
    assert row is not None
    assert (row.state, row.segments) == (SessionState.DECLINED, ())


async def test_agents_are_taken_as_the_plan_says(server: RunningServer, client: Wire, summary: Summary) -> None:
    await server.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, {"agents": ["mailboat-go"]}))
    assert [each.reason for each in await client.negotiate(another(summary))] == ["wrong_agent_type"]
    await server.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, {"oldest_agent": "0.10.0"}))
    assert [each.reason for each in await client.negotiate(another(summary))] == ["unsupported_version"]


async def test_an_admin_may_send_for_any_product(config: ServerConfig, server: RunningServer, summary: Summary) -> None:
    token = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    async with wired(server.url, token) as admin:
        decisions = await admin.negotiate(another(summary), another(of_product(summary, "Nothing")))
    assert [each.verdict for each in decisions] == ["send", "reject"]


async def test_the_ledger_is_kept(server: RunningServer, client: Wire, summary: Summary) -> None:
    for ledger in ({"recorded": 1}, {"recorded": 3, "odd": b"x"}):
        body = Request(AGENT, (summary,), 0.0, ledger).encode()
        answer = await client.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.MSGPACK_MEDIA_TYPE)
        assert answer.status == 200
    (row,) = await server.app[CATALOG].ledgers(PRODUCT)
    assert (row.source, row.agent, row.ledger["recorded"]) == ("here", AGENT, 3)
    assert await server.app[CATALOG].ledgers("Other") == ()


# -- encodings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", wire.MEDIA_TYPES)
@pytest.mark.parametrize("compressed", [True, False])
async def test_the_reply_has_the_encoding_of_the_request(
    client: Wire, summary: Summary, media_type: str, compressed: bool
) -> None:
    body = Request(AGENT, (summary,)).encode(media_type)
    headers = {"Content_Type": media_type}
    if compressed:
        headers.update(Content_Encoding="zstd", Accept_Encoding="zstd")
    else:
        headers.update(Accept_Encoding="identity")
    answer = await client.ask("POST", "/v1/negotiate", data=wire.compress(body) if compressed else body, **headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"].partition(";")[0] == media_type
    assert answer.headers.get("Content-Encoding") == ("zstd" if compressed else None)
    content = wire.decompress(answer.body) if compressed else answer.body
    assert Reply.decode(content, media_type).decisions[0].verdict == "send"


async def test_a_body_without_length_is_read(client: Wire, summary: Summary) -> None:
    body = Request(AGENT, (summary,)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:10]
        yield body[10:]

    answer = await client.ask("POST", "/v1/negotiate", data=pieces(), Content_Type=wire.MSGPACK_MEDIA_TYPE)
    assert answer.status == 200


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


BAD_BODIES = {
    "nothing": (b"", 400),
    "noise": (b"\xc1\xff\x00nonsense", 400),
    "no map": (msgpack.packb([1]), 400),
    "no version": (msgpack.packb({"offers": []}), 400),
    "another version": (msgpack.packb({"v": 99, "offers": []}), 400),
    "too many offers": (msgpack.packb({"v": 1, "agent": "", "offers": [{}] * (MAX_OFFERS + 1)}), 400),
    "an offer of nothing": (msgpack.packb({"v": 1, "agent": "", "offers": [{}]}), 400),
    "depth": (deep(100_000), 400),
    "a length that lies": (b"\xdd\xff\xff\xff\xff", 400),
    "too large": (b"\0" * (MAX_NEGOTIATION_WIRE + 1), 413),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_a_bad_body_is_told_so(server: RunningServer, client: Wire, case: str) -> None:
    body, status = BAD_BODIES[case]
    answer = await client.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.MSGPACK_MEDIA_TYPE)
    assert answer.status == status
    assert json.loads(answer.body)["status"] == status
    assert server.app[COUNTED]["problems_internal"] == 0


@pytest.mark.parametrize("size", [MAX_NEGOTIATION + 1, 512 * 1024 * 1024])
async def test_a_bomb_is_refused(client: Wire, size: int) -> None:
    press = zstandard.ZstdCompressor(level=1).compressobj()
    bomb = b"".join(press.compress(bytes(min(size, 1 << 20))) for _ in range(0, size, 1 << 20)) + press.flush()
    answer = await client.ask(
        "POST", "/v1/negotiate", data=bomb, Content_Type=wire.MSGPACK_MEDIA_TYPE, Content_Encoding="zstd"
    )
    assert answer.status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content_Type": "text/plain"},
        {"Content_Type": wire.MSGPACK_MEDIA_TYPE, "Content_Encoding": "gzip"},
        {"Content_Type": wire.MSGPACK_MEDIA_TYPE, "Content_Encoding": "br, zstd"},
    ],
)
async def test_an_unknown_encoding_is_refused(client: Wire, headers: dict[str, str]) -> None:
    answer = await client.ask("POST", "/v1/negotiate", data=b"{}", **headers)
    assert answer.status == 415


async def test_odd_texts_and_numbers_do_not_break_the_server(
    server: RunningServer, client: Wire, summary: Summary
) -> None:
    message = json.loads(Request(AGENT, (another(summary),)).encode(wire.JSON_MEDIA_TYPE))
    offer = message["offers"][0]
    offer["info"].update(
        application="\0 \U0001f600", version="x" * 1_024, properties={"\udfff": float("nan"), "x": "\ud800"}
    )
    offer["counts"] = dict.fromkeys(offer["counts"], 2**63 - 1)
    offer["started"], offer["ended"] = 0.0, 1e15
    answer = await client.ask(
        "POST", "/v1/negotiate", data=json.dumps(message).encode(), Content_Type=wire.JSON_MEDIA_TYPE
    )
    assert answer.status in (200, 400), answer
    offer["info"]["properties"] = {"x": float("inf")}
    answer = await client.ask(
        "POST", "/v1/negotiate", data=json.dumps(message).encode(), Content_Type=wire.JSON_MEDIA_TYPE
    )
    assert answer.status == 200, answer.body
    page = await server.app[CATALOG].sessions(SessionQuery(PRODUCT))
    assert [row.summary.session_id for row in page.sessions] == [offer["session"]]


async def test_the_catalog_outlives_the_server(tmp_path: Path, summary: Summary) -> None:
    """What was answered is there when another server opens the folder (here: while the first still has it)."""
    path = tmp_path / "catalog.sqlite"
    first, second = SqliteCatalog(path), SqliteCatalog(path)
    await first.open()
    try:
        await first.put_product(ProductRow(PRODUCT, 1.0, {"details": "none"}))
        await second.open()
        try:
            assert await second.product(PRODUCT) == ProductRow(PRODUCT, 1.0, {"details": "none"})
        finally:
            await second.close()
    finally:
        await first.close()


async def test_only_so_many_are_held_until_they_are_committed(
    server: RunningServer, client: Wire, summary: Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the catalog takes its time, the others wait as they came, and are answered then."""
    register, decode, go = SqliteCatalog.register, negotiation._decode, asyncio.Event()
    decoded = held = most = 0

    def counting(body: bytes, media_type: str, compressed: bool) -> Request:
        nonlocal decoded
        decoded += 1
        return decode(body, media_type, compressed)

    async def slow(
        catalog: SqliteCatalog, offers: Sequence[Registration], now: float, ledger: LedgerRow | None = None
    ) -> tuple[tuple[SegmentRow, ...], ...]:
        nonlocal held, most
        held += 1
        most = max(most, held)
        await go.wait()
        held -= 1
        return await register(catalog, offers, now, ledger)

    monkeypatch.setattr(negotiation, "_decode", counting)
    monkeypatch.setattr(SqliteCatalog, "register", slow)
    asking = [asyncio.create_task(client.negotiate(another(summary))) for _ in range(3 * negotiation.MAX_UNDER_WAY)]
    await eventually(lambda: held == negotiation.MAX_UNDER_WAY)
    assert (await client.ask("GET", "/v1/status")).status == 200
    assert decoded == most == negotiation.MAX_UNDER_WAY
    go.set()
    assert {each[0].verdict for each in await asyncio.gather(*asking)} == {"send"}
    assert most == negotiation.MAX_UNDER_WAY


async def test_a_key_sends_so_many_negotiations_at_the_same_time(config: ServerConfig, key: str) -> None:
    """Each body is memory until it is whole; and one that is cut makes room."""
    async with serving_on(replaced(config, max_transfers=2)) as server, wired(server.url, key) as client:
        open_ones = [await _begun(client) for _ in range(2)]
        await eventually(lambda: sum(server.app[TRANSFERS]._under_way.values()) == 2)
        summary = summary_of(make_segment(fresh_session_id()))
        answer = await client.ask(
            "POST", "/v1/negotiate", data=Request(AGENT, (summary,)).encode(), Content_Type=wire.MSGPACK_MEDIA_TYPE
        )
        assert (answer.status, answer.headers["Retry-After"]) == (429, "10")
        for writer in open_ones:
            writer.transport.abort()
        await eventually(lambda: not server.app[TRANSFERS]._under_way)
        assert (await client.negotiate(summary))[0].verdict == "send"


async def test_a_product_has_so_many_new_sessions_a_day(config: ServerConfig, key: str, summary: Summary) -> None:
    """Whatever is in them; those that are known go on."""
    config, now = replaced(config, max_sessions=5), summary.ended + 10
    app = create_app(config, clock=lambda: now)
    other = await asyncio.to_thread(create_key, config.data, "Other")

    async def refused(*offers: Summary) -> tuple[int, str | None]:
        body = Request(AGENT, offers).encode()
        answer = await client.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.MSGPACK_MEDIA_TYPE)
        return answer.status, answer.headers.get("Retry-After")

    async with serving_on(config, app) as server, wired(server.url, key) as client, wired(server.url, other) as others:
        catalog, known = server.app[CATALOG], [another(summary) for _ in range(4)]
        for _ in range(3):
            assert [each.verdict for each in await client.negotiate(*known)] == ["send"] * 4
        assert await refused(*known, another(summary), another(summary)) == (429, "3600")
        known.append(another(summary))
        assert [each.verdict for each in await client.negotiate(*known)] == ["send"] * 5
        empty = another(summary, segments=(), counts=tuple(0 for _ in COUNTERS))
        assert await refused(empty) == await refused(*known, empty) == (429, "3600")
        assert await catalog.arrivals(PRODUCT, now) == 5
        assert [each.verdict for each in await client.negotiate(*known)] == ["send"] * 5
        assert (await others.negotiate(of_product(another(summary), "Other")))[0].verdict == "send"
        now += DAY
        assert (await client.negotiate(another(summary)))[0].verdict == "send"
        assert await catalog.arrivals(PRODUCT, now) == 1


async def test_those_that_did_not_come_take_no_room(config: ServerConfig, key: str, summary: Summary) -> None:
    """As many as a request may have are counted until it is known how many it has; one that is no message has none."""
    now = summary.ended + 10
    app = create_app(replaced(config, max_sessions=MAX_OFFERS + 3), clock=lambda: now)
    async with serving_on(config, app) as server, wired(server.url, key) as client:
        arrivals = server.app[ARRIVALS]
        for number in range(1, 4):
            assert (await client.negotiate(another(summary)))[0].verdict == "send"
            assert arrivals._most == {PRODUCT: (now // DAY, number)}
            answer = await client.ask("POST", "/v1/negotiate", data=b"?", Content_Type=wire.MSGPACK_MEDIA_TYPE)
            assert answer.status == 400
        assert arrivals.reserve(PRODUCT, MAX_OFFERS, MAX_OFFERS + 3, now)
        assert not arrivals.reserve(PRODUCT, MAX_OFFERS, MAX_OFFERS + 3, now)
        assert (await client.negotiate(another(summary)))[0].verdict == "send"
        assert await server.app[CATALOG].arrivals(PRODUCT, now) == 4
        arrivals.give_back(PRODUCT, 2 * MAX_OFFERS)
        assert arrivals.reserve(PRODUCT, MAX_OFFERS, MAX_OFFERS, now)
        assert not arrivals.reserve(PRODUCT, 1, MAX_OFFERS + 1, now + DAY)


async def test_few_and_many_are_answered_alike(client: Wire, summary: Summary) -> None:
    """On the event loop, or in a thread."""
    for number in (1, ANSWERED_AT_ONCE, ANSWERED_AT_ONCE + 1):
        offers = [another(summary) for _ in range(number)]
        decisions = await client.negotiate(*offers)
        assert [each.session_id for each in decisions] == [each.session_id for each in offers]
        assert {each.verdict for each in decisions} == {"send"}


async def _begun(client: Wire) -> asyncio.StreamWriter:
    """A negotiation of whose body the first byte has come."""
    url = URL(client.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"POST /v1/negotiate HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {client.key}\r\n"
        f"Content-Type: {wire.MSGPACK_MEDIA_TYPE}\r\nContent-Length: 1000\r\n\r\n\x80".encode("latin-1")
    )
    await writer.drain()
    return writer
