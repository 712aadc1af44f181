"""Deterministic simulation: agents and a server in virtual time, from one seed. Nobody sleeps; each seed is a story.

The first test is the planner and the synchronizer of one agent, over a thousand seeds; the second is testing.md's row
26: many agents, one server. A failed seed is repeated by its number alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from testkit import virtual
from testkit.world import lived


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of stores are made and thrown away."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="mailboat-world-") as folder:
        yield Path(folder)


def tell(root: Path, seeds: range, agents: int, hours: float, sessions: int) -> None:
    for seed in seeds:
        folder = root / str(seed)
        wrong = virtual.run(partial(lived, root=folder, seed=seed, agents=agents, hours=hours, sessions=sessions))
        assert not wrong, f"seed {seed}:\n" + "\n".join(wrong)
        shutil.rmtree(folder)


@pytest.mark.parametrize("part", range(25))
def test_one_agent(root: Path, part: int) -> None:
    """Rows L3, L10, T5 and T9 of the reference behaviour, whatever happens."""
    tell(root, range(part * 40, part * 40 + 40), agents=1, hours=0.25, sessions=3)


@pytest.mark.parametrize("part", range(10))
def test_many_agents_and_one_server(root: Path, part: int) -> None:
    tell(root, range(10_000 + part * 20, 10_020 + part * 20), agents=3, hours=0.25, sessions=2)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(100))
def test_many_agents_and_one_server_for_long(root: Path, part: int) -> None:
    tell(root, range(20_000 + part * 100, 20_100 + part * 100), agents=4, hours=2.0, sessions=6)
