"""A server with two products, their keys, and a client for each; and a session to send to it."""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from mailboat.protocol import Info
from mailboat.server import ServerConfig, create_app
from mailboat.server.catalog import Role
from mailboat.server.ingest import INGEST
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from testkit.segments import START, Segment, event, exception, feature, installation, timing, value
from testkit.serverkit import Answer, Wire, fresh_session_id, summary_of, wired

PRODUCT, OTHER = "Acme Studio", 'Other "Product\\'


SERVER_TIME = START + 3600.0
"""What its clock shows."""


@dataclass
class Site:
    """A server, its keys, and a client for each."""

    server: RunningServer
    agent: Wire
    reader: Wire
    admin: Wire
    other_agent: Wire
    other_reader: Wire

    async def get(self, path: str, client: Wire | None = None, **parameters: object) -> Any:  # noqa: ANN401 - JSON
        """The answer of the reader's key (or another's), which must be well."""
        answer = await self.ask(path, client, **parameters)
        assert answer.status == 200, answer
        assert answer.headers["Content-Type"].startswith("application/json")
        return json.loads(answer.body, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))

    async def ask(self, path: str, client: Wire | None = None, **parameters: object) -> Answer:
        query = urllib.parse.urlencode({name.removesuffix("_"): text for name, text in parameters.items()})
        return await (client or self.reader).ask("GET", f"{path}?{query}" if query else path)

    async def settled(self) -> None:
        await self.server.app[INGEST].settled()

    async def send(self, *segments: bytes, client: Wire | None = None) -> str:
        """Deliver a whole session; its id."""
        client = client or self.agent
        summary = summary_of(*segments)
        (decision,) = await client.negotiate(summary)
        assert decision.verdict == "send", decision
        for data, upload in zip(segments, decision.segments, strict=True):
            answer = await client.append(upload.url, data, 0, complete=True)
            assert answer.status in {200, 204}, answer
        return summary.session_id


@asynccontextmanager
async def site_in(folder: Path) -> AsyncIterator[Site]:
    """Nothing of the server may block its event loop."""
    config = ServerConfig(data=folder / "data", port=0)
    keys = [
        create_key(config.data, PRODUCT),
        create_key(config.data, PRODUCT, Role.READER),
        create_key(config.data, None, Role.ADMIN),
        create_key(config.data, OTHER),
        create_key(config.data, OTHER, Role.READER),
    ]
    with blockbuster_ctx("mailboat.server"):
        app = create_app(config, clock=lambda: SERVER_TIME)
        async with running(config, app) as server, wired(server.url, keys[0]) as agent:
            clients = [replace(agent, key=key) for key in keys]
            yield Site(server, *clients)


def session(
    product: str = PRODUCT, *, test: bool = False, version: str = "2.4.1", session_id: str | None = None
) -> list[bytes]:
    """A session of two segments with a record of each kind."""
    info = Info(product=product, application="importer", version=version, os="Linux", test=test)
    session_id = session_id or fresh_session_id()
    first, second = Segment(session_id, info=info), Segment(session_id, 1, first=4, info=info, salt=8)
    first.block([feature("import.csv", at=1, rows=1200, raw=b"\x00\xff"), value("size", 18_230, "bytes", at=2)])
    first.block([timing("parse", 0.25, at=3), event("cache.miss", 30, "no entry", at=4, odd=math.inf)])
    second.block([exception("ValueError", "bad", at=5), installation("inst-42", at=6, plan="pro")])
    return [first.seal(), second.seal(installation={"id": "inst-42", "properties": {"plan": "pro"}})]
