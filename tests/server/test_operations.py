"""What a server tells those who run it: metrics and logs."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailboat.protocol import wire
from mailboat.protocol.negotiation import Request
from mailboat.server import ServerConfig, create_app
from mailboat.server.catalog import ProductRow, Role
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.ingest import INGEST
from mailboat.server.keys import PREFIX, create_key
from mailboat.server.logs import JsonLines, TextLines
from mailboat.server.metrics import ALARMING, LABELS, counters
from mailboat.server.serving import RunningServer, running
from mailboat.server.turns import TURNS
from testkit.serverkit import (
    AGENT,
    PRODUCT,
    RawAppend,
    ServerProcess,
    Wire,
    eventually,
    fresh_session_id,
    make_segment,
    summary_of,
    wired,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
async def admin(server: RunningServer, config: ServerConfig) -> AsyncIterator[Wire]:
    token = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    async with wired(server.url, token) as made:
        yield made


async def scrape(client: Wire) -> Samples:
    """All samples, as Prometheus reads them; no family may be told of twice."""
    answer = await client.ask("GET", "/metrics")
    assert answer.status == 200
    families = list(text_string_to_metric_families(answer.body.decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    assert all(math.isfinite(value) for value in found.values())
    return found


async def test_what_happens_is_counted(server: RunningServer, client: Wire, admin: Wire) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(data)
    append = await RawAppend.begin(client, path, len(data))
    await append.send(data[:50_000])
    await eventually(lambda: server.app[TURNS].transfers == 1)
    during = await scrape(admin)
    assert during["mailboat_transfers", ()] == 1
    assert during["mailboat_uploads_unfinished", ()] == 1
    await append.send(data[50_000:])
    assert await append.status() == 204
    await append.close()
    await client.negotiate(summary_of(data))
    await server.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, {"agents": ["mailboat-go"]}))
    await client.negotiate(summary_of(make_segment(fresh_session_id())))
    assert (await client.ask("GET", "/nothing")).status == 404
    await server.app[INGEST].settled()
    after = await scrape(admin)
    expected = {
        ("mailboat_transfers", ()): 0,
        ("mailboat_uploads_unfinished", ()): 0,
        ("mailboat_ingest_queue_segments", ()): 0,
        ("mailboat_ingest_lag_seconds", ()): 0,
        ("mailboat_negotiations_total", ()): 3,
        ("mailboat_offers_total", ()): 3,
        ("mailboat_bytes_received_total", ()): len(data),
        ("mailboat_decisions_total", (("verdict", "send"),)): 1,
        ("mailboat_decisions_total", (("verdict", "have"),)): 1,
        ("mailboat_decisions_total", (("verdict", "reject"),)): 1,
        ("mailboat_rejections_total", (("reason", "wrong_agent_type"),)): 1,
        ("mailboat_problems_total", (("code", "not_found"),)): 1,
        ("mailboat_requests_total", (("status", "404"),)): 1,
        ("mailboat_loaded", (("product", PRODUCT),)): summary_of(data).records,
    }
    assert {name: after.get(name) for name in expected} == expected
    assert after["mailboat_disk_free_bytes", ()] > after["mailboat_disk_reserve_bytes", ()] > 0


async def test_what_is_worth_an_alert_stands_at_zero_from_the_start(server: RunningServer, admin: Wire) -> None:
    """Prometheus sees no growth of a series that comes up with its first count."""
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
    alerts = page.partition("Worth an alert:")[2].partition("\n\n")[0]
    named = re.findall(r"`(mailboat_\w+_total)(?:{code=\"(\w+)\"})?`", alerts)
    assert len(named) == len(ALARMING)
    found = await scrape(admin)
    for name, code in named:
        assert found[name, (("code", code),) if code else ()] == 0
    server.app[COUNTERS]["uploads_lost"] += 1
    assert (await scrape(admin))["mailboat_uploads_lost_total", ()] == 1


async def test_what_waits_to_be_loaded_is_told(config: ServerConfig, key: str) -> None:
    """On a server whose loading has stopped."""
    clock, ahead = time.time, [0.0]
    token = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    app = create_app(config, clock=lambda: clock() + ahead[-1])
    async with running(config, app) as server, wired(server.url, key) as client, wired(server.url, token) as admin:
        await server.app[INGEST].stop()
        data = make_segment(fresh_session_id())
        path = await client.upload_of(data)
        assert (await client.append(path, data, 0, complete=True)).complete
        queue = await server.app[CATALOG].queue()
        assert (queue.unfinished, queue.segments, queue.bytes) == (0, 1, len(data))
        assert queue.since is not None
        assert clock() - 60 < queue.since <= clock()
        ahead.append(90.0)
        found = await scrape(admin)
        assert 90 <= found["mailboat_ingest_lag_seconds", ()] < 150
        assert found["mailboat_ingest_queue_bytes", ()] == len(data)


async def test_a_product_sees_nothing_of_the_server(config: ServerConfig, server: RunningServer) -> None:
    key = await asyncio.to_thread(create_key, config.data, PRODUCT, Role.READER)
    async with wired(server.url, key) as reader:
        assert {labels for _, labels in await scrape(reader)} <= {(("product", PRODUCT),), ()}
        assert not [name for name, _ in await scrape(reader) if name.endswith("_total") or "disk" in name]


def test_counters_of_a_kind_stand_together() -> None:
    text = "".join(counters({"decisions_send": 2, "deciduous": 1, "decisions_have": 3, 'problems_"\\\n': 4}))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {sample.labels["verdict"] for sample in families["mailboat_decisions"].samples} == {"send", "have"}
    assert families["mailboat_deciduous"].samples[0].value == 1
    assert families["mailboat_problems"].samples[0].labels == {"code": '"\\\n'}
    assert all(about for _, about in LABELS.values())


# -- logs --------------------------------------------------------------------------------------------------------------


async def test_a_server_logs_a_line_of_json_for_each_request_and_never_a_key(tmp_path: Path) -> None:
    data = tmp_path / "data"
    key = await asyncio.to_thread(create_key, data, PRODUCT)
    server = await ServerProcess.start(data)
    async with wired(server.url, key) as client:
        await client.ask("GET", f"/nothing/{key}?key={key}")
        await client.negotiate(summary_of(make_segment(fresh_session_id())))
    async with wired(server.url, "mbk_stranger") as stranger:
        await stranger.ask("GET", "/api/v1/sessions")
    assert await server.stop() == 0
    text = await asyncio.to_thread((tmp_path / "data.log").read_text)
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["logger"] == "aiohttp.access"]
    assert [(line["method"], line["path"], line["status"], line["product"]) for line in requests] == [
        ("GET", "/nothing/mbk_...", 404, PRODUCT),
        ("POST", "/v1/negotiate", 200, PRODUCT),
        ("GET", "/api/v1/sessions", 401, None),
    ]
    assert all(line["key"].startswith("key-") for line in requests[:2])
    assert all(0 <= line["seconds"] < 60 and line["bytes"] > 0 for line in requests)
    told_once = [line.rpartition(": ")[2] for line in server.lines if PREFIX in line]
    assert told_once
    for secret in (key, key[len(PREFIX) :], "stranger", *told_once):
        assert secret not in text


@pytest.mark.parametrize("lines", [JsonLines, TextLines])
def test_no_line_holds_a_key_whatever_was_logged(lines: type[logging.Formatter]) -> None:
    key = PREFIX + "A" * 43
    try:
        raise ValueError(f"bad {key}\nsecond line")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "the key %s\nfails", (key,), sys.exc_info())
    text = lines().format(record)
    assert "A" * 10 not in text
    assert "mbk_..." in text
    if lines is JsonLines:
        assert "\n" not in text
        assert "ValueError" in json.loads(text)["exception"]


async def test_new_uploads_are_refused_before_the_disk_is_full_and_running_ones_finish(
    config: ServerConfig, key: str
) -> None:
    data = make_segment(fresh_session_id(), size=50_000)
    async with running(config) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        await client.append(path, data[:10_000], 0, complete=False)
        made = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?0")
        assert made.status == 201
    free = shutil.disk_usage(config.data).free
    async with running(replace(config, min_free_bytes=2 * free)) as server, wired(server.url, key) as client:
        for headers in ({"Upload_Complete": "?1"}, {"Tus_Resumable": "1.0.0", "Upload_Length": "10"}):
            assert (await client.ask("POST", "/v1/uploads", data=b"", **headers)).status == 507
        (later,) = await client.negotiate(summary_of(make_segment(fresh_session_id())))
        assert (later.verdict, later.after > 0) == ("later", True)
        (going,) = await client.negotiate(summary_of(data))
        assert (going.verdict, going.segments[0].offset) == ("send", 10_000)
        assert (await client.append(path, data[10_000:], 10_000, complete=True)).complete
        assert (await client.append(made.headers["Location"], b"yz", 1, complete=True)).complete
        assert [each.verdict for each in await client.negotiate(summary_of(data))] == ["have"]
    async with running(replace(config, min_free_bytes=5 * free)) as server, wired(server.url, key) as client:
        offers = Request(AGENT, (summary_of(make_segment(fresh_session_id())),)).encode()
        refused = await client.ask("POST", "/v1/negotiate", data=offers, Content_Type=wire.MSGPACK_MEDIA_TYPE)
        assert refused.status == 507, "each offer takes room, too"
