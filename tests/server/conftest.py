"""A server on a real socket, in this process, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from mailboat.server import ServerConfig
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from testkit.serverkit import PRODUCT, Wire, wired


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(data=tmp_path / "data", port=0)


@pytest.fixture
def key(config: ServerConfig) -> str:
    return create_key(config.data, PRODUCT)


@pytest.fixture
async def server(config: ServerConfig, key: str) -> AsyncIterator[RunningServer]:
    """A running server; whatever in it blocks the event loop fails the request that did."""
    with blockbuster_ctx("mailboat.server"):
        async with running(config) as started:
            yield started


@pytest.fixture
async def client(server: RunningServer, key: str) -> AsyncIterator[Wire]:
    async with wired(server.url, key) as made:
        yield made
