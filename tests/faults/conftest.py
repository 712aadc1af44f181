"""What fault tests share: agents of one application, and an honest server for when the cause is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from mailboat.server import ServerConfig
from mailboat.server.keys import create_key
from mailboat.server.serving import running
from testkit.agents import AgentMaker
from testkit.serverkit import PRODUCT
from testkit.servers import Given, given_by

KEY = "mbk_a-key-that-must-not-be-seen-elsewhere"


@pytest.fixture
async def given(tmp_path: Path) -> AsyncIterator[Given]:
    """An honest server in this process, and what it can give back."""
    data = tmp_path / "data"
    async with running(ServerConfig(data=data, port=0)) as server, given_by(server.url, data) as reader:
        yield reader


@pytest.fixture
def key(given: Given) -> str:
    """A key of an agent, for the honest server."""
    return create_key(given.data, PRODUCT)


@pytest.fixture
def make_agent(tmp_path: Path) -> AgentMaker:
    """Agents that deliver only when asked to, unless told otherwise."""

    def make(**settings: Any) -> Agent:  # noqa: ANN401 - settings of the agent
        chosen = {
            "store": tmp_path / "store",
            "api_key": KEY,
            "product": PRODUCT,
            "application": "importer",
            "synchronize_automatically": False,
            "startup_delay": 0.0,
            "sync_interval": 1.0,
            "stop_timeout": 0.0,
            **settings,
        }
        return Agent(**chosen)

    return make
