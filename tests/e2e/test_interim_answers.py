"""An agent before a server that gives interim answers: they are not what it waits for, and do it no harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from mailboat.agent.report import SessionState
from mailboat.server import ServerConfig, interim
from mailboat.server.context import COUNTERS
from mailboat.server.keys import create_key
from mailboat.server.serving import running
from testkit.agents import fill
from testkit.serverkit import PRODUCT


@pytest.mark.parametrize("settings", [{}, {"max_upload_rate": 40_000_000}], ids=["moved by the kernel", "copied"])
async def test_an_agent_takes_no_interim_answer_for_the_final_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(interim, "EVERY", 0.001)
    config = replace(ServerConfig(data=tmp_path / "data", port=0), interim_answers=True)
    key = create_key(config.data, PRODUCT)
    async with running(config) as server:

        def make() -> Agent:
            return Agent(
                store=tmp_path / "store",
                server=server.url,
                api_key=key,
                product=PRODUCT,
                application="importer",
                synchronize_automatically=False,
                stop_timeout=0,
                **settings,
            )

        recorder, sender = make(), make()
        async with recorder:
            fill(recorder, 6_000_000, 1)
        async with sender:
            report = await sender.force_sync(timeout=60)
        states = {each.session_id: each.state for each in report.sessions}
        assert states[str(recorder.session_id)] is SessionState.ACCEPTED
        assert server.app[COUNTERS]["interim_answers"] > 0
