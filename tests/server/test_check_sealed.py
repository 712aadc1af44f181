"""A session that is sealed to a key the server lacks is in order as it lies there, and so it is once it is opened."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mailboat.agent import Agent
from mailboat.server import ServerConfig
from mailboat.server.ingest import INGEST
from mailboat.server.serving import running
from mailboat.server.unsealing import public_key
from mailboat.server.upkeep import check_folder
from testkit.serverkit import PRODUCT

RECORDED = 20


async def test_what_is_sealed_is_no_fault(config: ServerConfig, key: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    sealed_to = await asyncio.to_thread(public_key, elsewhere)
    await asyncio.to_thread(public_key, config.data)
    async with running(config) as server:
        agent = Agent(
            server=server.url,
            api_key=key,
            store=tmp_path / "store",
            product=PRODUCT,
            application="importer",
            seal_to=sealed_to.text,
            stop_timeout=30.0,
        )
        async with agent:
            for number in range(RECORDED):
                agent.feature("used", number=number)
        assert agent.status.ledger.pending == 0
        await server.app[INGEST].settled()
    findings = await asyncio.to_thread(check_folder, config.data)
    assert (findings.faults, findings.sessions, findings.records) == ([], 1, 0)
    private = elsewhere / "sealing" / f"{sealed_to.id}.key"
    await asyncio.to_thread(private.rename, config.data / "sealing" / private.name)
    async with running(config) as server:
        await server.app[INGEST].settled()
    findings = await asyncio.to_thread(check_folder, config.data)
    assert (findings.faults, findings.notes, findings.records) == ([], [], RECORDED)
