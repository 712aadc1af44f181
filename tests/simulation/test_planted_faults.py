"""What a simulation must find: an agent with a fault planted into it is caught by some seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mailboat.agent.connectivity import Connectivity
from mailboat.agent.ledger import ACCEPTED
from mailboat.agent.planner import Planner
from mailboat.agent.synchronizer import Synchronizer
from mailboat.agent.traffic import Grant, Traffic
from testkit import virtual
from testkit.world import lived

Patch = pytest.MonkeyPatch


def no_pause(patch: Patch) -> None:
    patch.setattr(Connectivity, "open_at", lambda self, now: self.until is None or now >= self.until)
    patch.setattr(Synchronizer, "LONGEST_REST", 1.0, raising=False)
    patch.setattr("mailboat.agent.synchronizer.LONGEST_REST", 60.0)


def no_rate(patch: Patch) -> None:
    async def pace(_self: Traffic, _count: int) -> None:
        return

    patch.setattr(Traffic, "pace", pace)


def no_budget(patch: Patch) -> None:
    async def grant(_self: Traffic, wanted: int, least: int = 1) -> Grant:
        return Grant(wanted)

    patch.setattr(Traffic, "grant", grant)


def wrong_account(patch: Patch) -> None:
    patch.setattr("mailboat.agent.ledger._place", lambda _ending: (ACCEPTED, ""))


def a_session_is_passed_over(patch: Patch) -> None:
    real = Planner.meet
    patch.setattr(Planner, "meet", lambda self, summaries: real(self, [s for s in summaries if s.size % 7]))


FAULTS: dict[str, tuple[Callable[[Patch], None], str]] = {
    "it does not keep to a pause": (no_pause, "sent while paused"),
    "it does not keep to its rate": (no_rate, "ahead of its rate"),
    "it does not keep to its budget": (no_budget, "on one day"),
    "it counts wrongly": (wrong_account, "the ledger says"),
    "it starves a session": (a_session_is_passed_over, "is gone"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    plant, complaint = FAULTS[name]
    plant(monkeypatch)
    for seed in range(150):
        story = partial(lived, root=tmp_path / str(seed), seed=seed, agents=1, hours=0.5, sessions=3)
        if any(complaint in each for each in virtual.run(story)):
            return
    raise AssertionError("no seed finds it")
