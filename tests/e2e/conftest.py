"""What tests of the whole share: a server in a process of its own, and agents of one application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from testkit.agents import AgentMaker
from testkit.serverkit import PRODUCT
from testkit.servers import Given, Served, given_by, served


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path / "data") as started:
        yield started


@pytest.fixture
async def given(server: Served) -> AsyncIterator[Given]:
    async with given_by(server.url, server.data) as reader:
        yield reader


@pytest.fixture
def make_agent(tmp_path: Path, server: Served) -> AgentMaker:
    """Agents that deliver only when asked to, unless told otherwise."""

    def make(**settings: Any) -> Agent:  # noqa: ANN401 - settings of the agent
        chosen = {
            "store": tmp_path / "store",
            "server": server.url,
            "api_key": server.key,
            "product": PRODUCT,
            "application": "importer",
            "synchronize_automatically": False,
            "stop_timeout": 0.0,
            **settings,
        }
        return Agent(**chosen)

    return make
