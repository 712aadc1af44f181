"""Every reason for which a server rejects a session, as a real agent comes to know it: in its report, in its ledger,
and in what becomes of its data.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent, SessionState
from mailboat.protocol.negotiation import Reason
from mailboat.server import ServerConfig
from mailboat.server.catalog import ProductRow
from mailboat.server.context import CATALOG
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from testkit.agents import fill
from testkit.serverkit import PRODUCT
from testkit.servers import given_by

PLANS: Mapping[Reason, Mapping[str, Any]] = {
    Reason.WRONG_AGENT_TYPE: {"agents": ["mailboat-go"]},
    Reason.UNSUPPORTED_VERSION: {"oldest_agent": "99.0"},
    Reason.TOO_OLD: {"max_age_days": 1e-9},
    Reason.OVER_PLAN: {"records_per_month": 0},
}


@pytest.fixture
async def near(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server in this process, whose catalog a test can change."""
    async with running(ServerConfig(data=tmp_path / "data", port=0)) as server:
        yield server


def damage(store: Path, session_id: str) -> None:
    """Flip a bit of a waiting session's segment, of which the agent knows nothing."""
    (segment,) = store.glob(f"**/waiting/**/{session_id}/*.zst")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)


def found(store: Path, session_id: str, folder: str = "**") -> list[Path]:
    """The session's folders in the agent's store."""
    return list(store.glob(f"**/{folder}/{session_id}"))


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("purge", [True, False])
async def test_the_agent_knows_why_and_lets_go(
    near: RunningServer, tmp_path: Path, reason: Reason, purge: bool
) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    key = await asyncio.to_thread(create_key, data, "Another product" if reason is Reason.UNKNOWN_PRODUCT else PRODUCT)
    settings: dict[str, Any] = {"store": store, "product": PRODUCT, "application": "importer"}
    async with Agent(server=None, **settings) as agent:
        recorded = fill(agent, 100_000, 7)
        session_id = agent.session_id
    assert session_id is not None
    if reason is Reason.CORRUPTED:
        await asyncio.to_thread(damage, store, session_id)
    elif reason is not Reason.UNKNOWN_PRODUCT:
        await near.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, PLANS[reason]))

    delivering = Agent(
        server=near.url, api_key=key, purge_sent=purge, synchronize_automatically=False, stop_timeout=0.0, **settings
    )
    async with delivering as agent:
        report = await agent.force_sync(timeout=60.0)
        outcome = next(each for each in report.sessions if each.session_id == session_id)
        assert outcome.state is SessionState.REJECTED
        assert outcome.reason.startswith(reason.value)
        assert outcome.records == recorded
        assert agent.status.ledger.rejected == {reason.value: recorded}
        again = await agent.force_sync(timeout=60.0)
        assert session_id not in [each.session_id for each in again.sessions], "it is out of the queue"
    assert found(store, session_id, "waiting") == []
    assert bool(found(store, session_id)) is not purge

    if reason is not Reason.UNKNOWN_PRODUCT:
        async with given_by(near.url, data) as given:
            shown = (await given.sessions())[session_id]
        assert (shown["state"], shown["reason"]) == ("rejected", reason.value)
        assert shown["explanation"]
