"""An analytics store of its own for each test, and segments on their way into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mailboat.server.analytics import Analytics
from mailboat.server.decoding import Decoder
from testkit.loading import Bench
from testkit.sites import Site, site_in


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """One decoder process for many tests, as a server has one for many batches."""
    made = Decoder()
    yield made
    made.close()


@pytest.fixture
def analytics(tmp_path: Path) -> Iterator[Analytics]:
    made = Analytics(tmp_path / "analytics.duckdb")
    yield made
    made.close()


@pytest.fixture
def bench(analytics: Analytics, decoder: Decoder, tmp_path: Path) -> Bench:
    return Bench(analytics, decoder, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], Path]:
    """A fresh folder at each call."""
    count = iter(range(1000))

    def fresh() -> Path:
        made = tmp_path / f"rows-{next(count)}"
        made.mkdir()
        return made

    return fresh


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_in(tmp_path) as made:
        yield made
