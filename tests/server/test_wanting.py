"""Sessions that people want after all: told to agents once each, so many at most, until they are settled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mailboat.server import wanting
from mailboat.server.catalog import Catalog
from mailboat.server.context import CATALOG
from testkit.memory_catalog import MemoryCatalog
from testkit.serverkit import PRODUCT, fresh_session_id, make_segment, summary_of
from testkit.sites import site_in


@pytest.fixture
def catalog() -> Catalog:
    return MemoryCatalog()


async def test_a_wish_is_told_once_until_it_is_settled(catalog: Catalog) -> None:
    first, second = fresh_session_id(), fresh_session_id()
    for each in (first, second, first):
        assert await wanting.want(catalog, PRODUCT, each)
    assert await wanting.wanted(catalog, PRODUCT) == (first, second)
    assert await wanting.wanted(catalog, "Other") == ()
    await wanting.settle(catalog, PRODUCT, [first, fresh_session_id()])
    assert await wanting.wanted(catalog, PRODUCT) == (second,)


async def test_so_many_are_wanted_at_a_time(catalog: Catalog) -> None:
    ids = [fresh_session_id() for _ in range(wanting.MOST + 1)]
    assert [await wanting.want(catalog, PRODUCT, each) for each in ids] == [True] * wanting.MOST + [False]
    assert await wanting.wanted(catalog, PRODUCT) == tuple(ids[:-1])
    assert await wanting.want(catalog, PRODUCT, ids[0]), "it is already"
    assert await wanting.want(catalog, "Other", ids[-1]), "others are not kept from theirs"
    await wanting.settle(catalog, PRODUCT, ids[:1])
    assert await wanting.want(catalog, PRODUCT, ids[-1])


async def test_who_wants_too_many_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanting, "MOST", 1)
    async with site_in(tmp_path) as site:
        segments = [make_segment(fresh_session_id()) for _ in range(2)]
        ids = [await site.send(each) for each in segments]
        paths = [f"/api/v1/sessions/{each}/wanted?product=Acme+Studio" for each in ids]
        assert (await site.admin.ask("PUT", paths[0])).status == 200
        refused = await site.admin.ask("PUT", paths[1])
        assert (refused.status, "wait for some" in json.loads(refused.body)["detail"]) == (400, True)
        assert (await site.reader.ask("PUT", paths[0])).status == 403
        assert await wanting.wanted(site.server.app[CATALOG], PRODUCT) == (ids[0],)
        await site.agent.negotiate(summary_of(segments[0]))
        assert await wanting.wanted(site.server.app[CATALOG], PRODUCT) == (), "it is here"
