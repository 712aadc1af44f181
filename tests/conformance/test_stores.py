"""The contracts of catalog, blobs and analytics, held by what the server uses and by second implementations that have
nothing in common with it; and a server that runs on those.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mailboat.server import ServerConfig, create_app, retention
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_store import AnalyticsStore
from mailboat.server.blobs import Blobs, LocalBlobs
from mailboat.server.catalog import Catalog, ProductRow, Role
from mailboat.server.check import check
from mailboat.server.decoding import Decoder
from mailboat.server.ingest import INGEST, LOADER
from mailboat.server.keys import make_key
from mailboat.server.serving import running
from mailboat.server.sqlite_catalog import SqliteCatalog
from testkit.analytics_contract import AnalyticsContract
from testkit.blobs_contract import BlobsContract
from testkit.catalog_contract import CatalogContract
from testkit.memory_analytics import MemoryAnalytics
from testkit.memory_blobs import MemoryBlobs
from testkit.memory_catalog import MemoryCatalog
from testkit.serverkit import PRODUCT, fresh_session_id, make_segment, summary_of, wired


class TestSqliteCatalog(CatalogContract):
    @pytest.fixture
    async def catalog(self, tmp_path: Path) -> AsyncIterator[Catalog]:
        made = SqliteCatalog(tmp_path / "catalog.sqlite")
        await made.open()
        yield made
        await made.close()


class TestMemoryCatalog(CatalogContract):
    @pytest.fixture
    def catalog(self) -> Catalog:
        return MemoryCatalog()


class TestLocalBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return LocalBlobs(tmp_path / "segments")


class TestLocalBlobsThroughThePageCache(BlobsContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return LocalBlobs(tmp_path / "segments", direct=False)


class TestMemoryBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return MemoryBlobs()


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


class TestDuckDbAnalytics(AnalyticsContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[AnalyticsStore]:
        made = Analytics(tmp_path / "analytics.duckdb")
        yield made
        made.close()


class TestMemoryAnalytics(AnalyticsContract):
    @pytest.fixture
    def store(self) -> AnalyticsStore:
        return MemoryAnalytics()


async def test_a_server_runs_on_other_stores(tmp_path: Path) -> None:
    """On a catalog and blobs that it has never heard of: negotiation, a cut upload, reports, history windows, check."""
    catalog, blobs = MemoryCatalog(), MemoryBlobs()
    config = ServerConfig(data=tmp_path / "data", port=0)
    app = create_app(config, open_blobs=lambda _: blobs, open_catalog=lambda _: catalog)
    key, row = make_key(PRODUCT, Role.AGENT, 0.0)
    token, admin_row = make_key(None, Role.ADMIN, 0.0)
    for each in (row, admin_row):
        await catalog.put_key(each)
    data = make_segment(fresh_session_id(), size=100_000)
    old = make_segment(fresh_session_id(), wall=time.time() - 8 * 86_400)
    async with running(config, app) as server, wired(server.url, key) as client, wired(server.url, token) as admin:
        for segment in (data, old):
            path = await client.upload_of(segment)
            assert (await client.append(path, segment[:1000], 0, complete=False)).offset == 1000
            assert (await client.append(path, segment[1000:], 1000, complete=True)).complete
            assert [each.verdict for each in await client.negotiate(summary_of(segment))] == ["have"]
        await app[INGEST].settled()
        overview = json.loads((await admin.ask("GET", "/api/v1/overview")).body)
        assert overview["records"]["feature"] == summary_of(data).records + summary_of(old).records
        records = f"/api/v1/sessions/{summary_of(data).session_id}/records"
        assert len(json.loads((await admin.ask("GET", records)).body)["records"]) == summary_of(data).records
        await catalog.put_product(ProductRow(PRODUCT, 0.0, {"history_days": 7}))
        assert await retention.sweep(app) == 1
        findings = await check(catalog, blobs, app[LOADER].analytics)
        assert (findings.faults, findings.uploads, findings.blobs, findings.sessions) == ([], 1, 1, 1)
    assert not (config.data / "catalog.sqlite").exists()
    assert not (config.data / "segments").exists()
