"""The OpenAPI document: every route is in it, and whatever is asked by it is answered by it."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from mailboat.server import ServerConfig, create_app
from mailboat.server.catalog import Role
from mailboat.server.context import CATALOG
from mailboat.server.keys import create_key
from mailboat.server.operations import OPERATIONS
from mailboat.server.serving import running
from testkit.serverkit import Wire, wired
from testkit.sites import OTHER, Site, session

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
)
OF_AGENTS = re.compile(r"/v1/(negotiate|uploads.*|status)")
"""What agents speak is told in docs/protocol.md, by its own standards."""

LONGEST = 7500
"""Bytes of a query string; the parser takes a request line of 8 KiB."""

EXAMPLES = 12
"""Requests for each operation and mode in the fast lane."""


async def document(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = await site.get("/api/v1/openapi.json")
    return found


async def test_every_route_is_in_the_document_and_nothing_else(site: Site) -> None:
    paths = (await document(site))["paths"]
    told = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    there = {
        (route.method, route.resource.canonical)
        for route in site.server.app.router.routes()
        if route.resource is not None and not OF_AGENTS.fullmatch(route.resource.canonical) and route.method != "HEAD"
    }
    assert told == there


async def test_every_operation_says_what_it_is_for(site: Site) -> None:
    operations = [each for methods in (await document(site))["paths"].values() for each in methods.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    for each in operations:
        assert each["summary"].endswith((".", "s")), each
        assert len(each["summary"]) > 10, each


async def test_what_any_request_may_be_refused_for_is_told(tmp_path: Path) -> None:
    """By a server that refuses: a key asks too often, the disk is full when something is to be changed."""
    config = ServerConfig(data=tmp_path / "data", port=0, max_requests=0.1)
    token = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    async with running(config) as server, wired(server.url, token) as admin:
        paths = json.loads((await admin.ask("GET", "/api/v1/openapi.json")).body)["paths"]
        assert (await admin.ask("GET", "/api/v1/keys")).status == 429
    assert all("429" in each["responses"] for methods in paths.values() for each in methods.values())
    config = replace(config, max_requests=1000.0)
    app = create_app(config)
    async with running(config, app) as server, wired(server.url, token) as admin:
        full = OSError(errno.ENOSPC, "No space left on device")
        with patch.object(type(app[CATALOG]), "put_product", side_effect=full):
            answer = await admin.ask("PUT", "/api/v1/products/x", data=b"{}", Content_Type="application/json")
        assert answer.status == 507
    for methods in paths.values():
        assert {method: "507" in each["responses"] for method, each in methods.items()} == {
            m: m != "get" for m in methods
        }


async def test_parameters_are_those_that_are_taken(site: Site) -> None:
    for operation in site.server.app[OPERATIONS]:
        if operation.method != "GET" or "{" in operation.path:
            continue
        refused = await site.ask(operation.path, site.admin, no_such_parameter="1")
        assert refused.status == 400
        for each in operation.parameters:
            answer = await site.ask(operation.path, site.admin, **{each.name: ""})
            assert b"there is no such parameter" not in answer.body, (operation.path, each.name)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: str(mode.value))
async def test_whatever_is_asked_is_answered_as_documented(site: Site, mode: GenerationMode) -> None:
    session_id = await site.send(*session())
    await site.send(*session(OTHER), client=site.other_agent)
    await site.settled()
    schema = schemathesis.openapi.from_dict(await document(site))
    asked = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), "the document is none"
        operation = found.ok()
        client = site.reader if operation.definition.raw["x-role"] == "reader" else site.admin
        asked += await asyncio.to_thread(ask, operation, mode, client, session_id)
    assert asked > 20


def ask(operation: Any, mode: GenerationMode, client: Wire, session_id: str) -> int:  # noqa: ANN401 - schemathesis' own
    """Ask an operation many things, a session that is there among them; how many."""
    asked = 0

    def check(case: Any) -> None:  # noqa: ANN401 - schemathesis' own
        nonlocal asked
        if asked % 2 and "id" in case.path_parameters:
            case.path_parameters["id"] = session_id
        length = sum(len(quote(f"{name}{text}")) for name, text in (case.query or {}).items())
        assume(length < LONGEST)  # a longer one is refused by the HTTP parser, in plain text
        response = case.call(base_url=client.url, headers={"Authorization": f"Bearer {client.key}"})
        case.validate_response(response, checks=list(CHECKS))
        asked += 1

    try:
        strategy = operation.as_strategy(generation_mode=mode)
    except schemathesis.errors.SchemathesisError:
        return 0
    bounds = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run = cast("Any", given(strategy))(cast("Any", bounds)(check))
    run()
    return asked
