"""The admin API: products, plans, keys, who may use it; and what a monthly plan has counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from mailboat.protocol import Summary
from mailboat.protocol.records import COUNTERS
from mailboat.server import ServerConfig
from mailboat.server.catalog import Role
from mailboat.server.context import CATALOG, CLOCK
from mailboat.server.keys import PREFIX, create_key
from mailboat.server.policy import Plan, month_of
from mailboat.server.serving import RunningServer
from testkit.serverkit import PRODUCT, Answer, Wire, fresh_session_id, make_segment, summary_of, wired


@pytest.fixture
async def admin(server: RunningServer, config: ServerConfig) -> AsyncIterator[Wire]:
    token = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    async with wired(server.url, token) as made:
        yield made


async def sent(wire: Wire, method: str, path: str, content: Any = None) -> Answer:  # noqa: ANN401 - any JSON
    data = None if content is None else json.dumps(content).encode()
    return await wire.ask(method, path, data=data, Content_Type="application/json")


async def test_a_product_is_made_and_changed(admin: Wire) -> None:
    made = await sent(admin, "PUT", "/api/v1/products/Über%2Funs", {"details": "errors", "history_days": 90})
    assert made.status == 200
    assert json.loads(made.body)["product"] == "Über/uns"
    changed = await sent(admin, "PATCH", "/api/v1/products/Über%2Funs", {"share": 0.5, "history_days": None})
    plan = json.loads(changed.body)["plan"]
    assert Plan.of(plan) == Plan.of({"details": "errors", "share": 0.5})
    again = await sent(admin, "PUT", "/api/v1/products/Über%2Funs", {})
    assert json.loads(again.body)["plan"] == Plan().values()
    listed = json.loads((await admin.ask("GET", "/api/v1/products")).body)["products"]
    assert [each["product"] for each in listed] == [PRODUCT, "Über/uns"]
    assert json.loads((await admin.ask("GET", "/api/v1/products/Über%2Funs")).body) == listed[1]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "told"),
    [
        ("PUT", "/api/v1/products/x", {"details": "some"}, 400, "plan.details"),
        ("PUT", "/api/v1/products/x", {"surprise": 1}, 400, "plan.surprise"),
        ("PUT", "/api/v1/products/%20x", {}, 400, "product="),
        ("PUT", "/api/v1/products/x", [], 400, "JSON object"),
        ("PATCH", "/api/v1/products/x", {}, 404, "PUT makes one"),
        ("GET", "/api/v1/products/x", None, 404, "no product"),
        ("POST", "/api/v1/keys", {"product": "x", "role": "king"}, 400, "role="),
        ("POST", "/api/v1/keys", {"role": "agent"}, 400, "product="),
        ("POST", "/api/v1/keys", {"product": "x", "role": "admin"}, 400, "product='x': a key of role admin"),
        ("POST", "/api/v1/keys", {"product": "x", "colour": "red"}, 400, "colour"),
        ("DELETE", "/api/v1/keys/key-0", None, 404, "no key"),
    ],
)
async def test_what_cannot_be_is_told(
    admin: Wire, method: str, path: str, content: object, status: int, told: str
) -> None:
    answer = await sent(admin, method, path, content)
    assert answer.status == status
    assert told in json.loads(answer.body)["detail"]


async def test_bodies_that_are_no_json_are_told(admin: Wire) -> None:
    path = "/api/v1/products/x"
    assert (await admin.ask("PUT", path, data=b"{", Content_Type="application/json")).status == 400
    assert (await admin.ask("PUT", path, data=b"[" * 60_000, Content_Type="application/json")).status == 400
    assert (await admin.ask("PUT", path, data=b"{}", Content_Type="text/plain")).status == 415
    assert (await admin.ask("PUT", path, data=b" " * 70_000, Content_Type="application/json")).status == 413


async def test_a_key_is_made_used_listed_and_revoked(server: RunningServer, admin: Wire) -> None:
    made = await sent(admin, "POST", "/api/v1/keys", {"product": "New one", "role": "agent"})
    assert made.status == 201
    key = json.loads(made.body)
    assert key["key"].startswith(PREFIX)
    listed = await admin.ask("GET", "/api/v1/keys")
    assert key["key"].encode() not in listed.body
    assert [row for row in json.loads(listed.body)["keys"] if row["id"] == key["id"]] == [
        {"id": key["id"], "product": "New one", "role": "agent", "created": key["created"], "revoked": None}
    ]
    assert (await admin.ask("DELETE", f"/api/v1/keys/{key['id']}")).status == 204
    async with wired(server.url, key["key"]) as stranger:
        assert (await stranger.ask("OPTIONS", "/v1/uploads")).status == 401
    assert (await admin.ask("DELETE", f"/api/v1/keys/{key['id']}")).status == 404


@pytest.mark.parametrize("role", [Role.AGENT, Role.READER])
async def test_only_an_admin_changes_anything(config: ServerConfig, server: RunningServer, role: Role) -> None:
    key = await asyncio.to_thread(create_key, config.data, PRODUCT, role)
    async with wired(server.url, key) as other:
        for method, path in (
            ("PUT", f"/api/v1/products/{PRODUCT.replace(' ', '%20')}"),
            ("PATCH", f"/api/v1/products/{PRODUCT.replace(' ', '%20')}"),
            ("GET", "/api/v1/keys"),
            ("POST", "/api/v1/keys"),
            ("DELETE", "/api/v1/keys/key-0"),
        ):
            assert (await sent(other, method, path, {})).status == 403, (method, path)


async def test_a_reader_sees_its_own_product(config: ServerConfig, server: RunningServer, admin: Wire) -> None:
    await sent(admin, "PUT", "/api/v1/products/Secret", {})
    key = await asyncio.to_thread(create_key, config.data, PRODUCT, Role.READER)
    async with wired(server.url, key) as reader:
        listed = json.loads((await reader.ask("GET", "/api/v1/products")).body)["products"]
        assert [each["product"] for each in listed] == [PRODUCT]
        foreign = await reader.ask("GET", "/api/v1/products/Secret")
        nothing = await reader.ask("GET", "/api/v1/products/Nothin")
    assert (foreign.status, foreign.body.replace(b"Secret", b"Nothin")) == (nothing.status, nothing.body)


# -- what a plan counts ------------------------------------------------------------------------------------------------


def with_records(summary: Summary, records: int) -> Summary:
    counts = tuple(records if name == "feature" else 0 for name in COUNTERS)
    return replace(summary, session_id=fresh_session_id(), counts=counts)


async def used(server: RunningServer) -> int:
    return (await server.app[CATALOG].usage(PRODUCT, month_of(server.app[CLOCK]()))).records


async def test_a_month_is_filled_and_no_further(server: RunningServer, client: Wire, admin: Wire) -> None:
    await sent(admin, "PATCH", f"/api/v1/products/{PRODUCT.replace(' ', '%20')}", {"records_per_month": 100})
    summary = summary_of(make_segment(fresh_session_id()))
    first, second, third = (with_records(summary, count) for count in (60, 50, 40))
    decisions = await client.negotiate(first, second, third)
    assert [(each.verdict, each.reason) for each in decisions] == [
        ("send", ""),
        ("reject", "over_plan"),
        ("send", ""),
    ]
    assert await used(server) == 100
    # What was taken is taken to its end, is counted once, and what it grows by is counted.
    grown = replace(first, counts=with_records(summary, 75).counts)
    for _ in range(3):
        assert [each.verdict for each in await client.negotiate(grown, third)] == ["send", "send"]
        assert await used(server) == 115
    # Nothing is forgotten of what was rejected: with more room it is taken.
    await sent(admin, "PATCH", f"/api/v1/products/{PRODUCT.replace(' ', '%20')}", {"records_per_month": None})
    assert [each.verdict for each in await client.negotiate(second)] == ["send"]
    assert await used(server) == 165


async def test_a_declined_session_is_not_counted(server: RunningServer, client: Wire, admin: Wire) -> None:
    await sent(admin, "PATCH", f"/api/v1/products/{PRODUCT.replace(' ', '%20')}", {"details": "none"})
    decisions = await client.negotiate(summary_of(make_segment(fresh_session_id())))
    assert [each.verdict for each in decisions] == ["decline"]
    assert await used(server) == 0


async def test_a_segment_that_was_not_offered_is_held_to_the_plan(
    server: RunningServer, client: Wire, admin: Wire
) -> None:
    taken, refused = make_segment(fresh_session_id(), size=2000), make_segment(fresh_session_id(), size=20_000)
    await sent(admin, "PATCH", f"/api/v1/products/{PRODUCT.replace(' ', '%20')}", {"records_per_month": 5})
    for data, state in ((taken, "verified"), (refused, "quarantined")):
        made = await client.ask("POST", "/v1/uploads", data=data, Upload_Complete="?1")
        assert made.status == 201
        row = await server.app[CATALOG].upload(made.headers["Location"].rpartition("/")[2])
        assert row is not None
        assert (row.verification, row.reason) == (state, "" if state == "verified" else "over_plan")
    assert await used(server) == summary_of(taken).records
