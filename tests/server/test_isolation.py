"""Two products on one server never see each other.

Every route of the application's router is asked with the other product's keys, in every method it takes, about what the
first product has; so a route that is added tomorrow is asked, too. Each must answer as if what it is asked about did
not exist, tell nothing of it, and change nothing of it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgpack
import pytest
from msgspec.structs import replace

from mailboat.protocol import Info, wire
from mailboat.protocol.negotiation import Request
from mailboat.server.context import CATALOG, CONFIG
from mailboat.server.exports import EXPORTED, PARQUET
from testkit.segments import Segment, exception, feature, installation
from testkit.serverkit import AGENT, PARTIAL, Answer, Wire, fresh_session_id, make_segment, of_product, summary_of
from testkit.sites import PRODUCT, Site, site_in

WORDS = ("Sesame", "Tamarind", "Fennel", "Sumac", "Nutmeg", "Caraway", "Lovage")
"""Words that stand in the first product's data only."""

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


@dataclass
class Secrets:
    """What the first product has, by the names that parameters of paths bear, and the same of nobody."""

    session: str
    upload: str
    unfinished: str
    quarantined: str
    key_id: str
    group: str

    def names(self) -> list[str]:
        """All of them."""
        return [self.session, self.upload, self.unfinished, self.quarantined, self.key_id, self.group]

    def stand_ins(self, path: str) -> list[tuple[dict[str, str], dict[str, str]]]:
        """Values for the parameters in a path: of the first product, and of the same form but of nobody."""
        names = re.findall(r"{(\w+)}", path)
        if not names:
            return [({}, {})]
        nobody = fresh_session_id()
        ids = [self.session, self.upload, self.unfinished, self.quarantined]
        known: Mapping[str, list[tuple[str, str]]] = {
            "id": [(each, nobody) for each in ids],
            "upload_id": [(each, nobody) for each in ids[1:]],
            "product": [(PRODUCT, "Acme Nobody")],
            "key_id": [(self.key_id, "key-0123456789ab")],
            "table": [(each, each) for each in EXPORTED],  # nobody's own: what is in them is looked at
            "group": [(self.group, "0" * len(self.group))],
        }
        (name,) = names
        assert name in known, f"{path}: say in this test what {{{name}}} may be"
        return [({name: mine}, {name: other}) for mine, other in known[name]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_in(tmp_path) as made:
        yield made


@pytest.fixture
async def secrets(site: Site) -> Secrets:
    """Have something of every kind in the first product."""
    sesame, tamarind, fennel, sumac, nutmeg, caraway, lovage = WORDS
    info = Info(product=PRODUCT, application=sesame, version="9.7.5", host=tamarind, user=fennel)
    segment = Segment(info=info)
    segment.block([feature(f"{sumac}.open", at=1, word=nutmeg), exception(caraway, lovage, at=2)])
    segment.block([installation(f"{sesame}-42", at=6, plan=tamarind)])
    sealed = segment.seal(installation={"id": f"{sesame}-42", "properties": {"plan": tamarind}})
    session = await site.send(sealed)
    (decision,) = await site.agent.negotiate(summary_of(sealed))
    body = Request(AGENT, (summary_of(sealed),), 0.0, {"recorded": 3, "odd": lovage}).encode()
    told = await site.agent.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.MSGPACK_MEDIA_TYPE)
    assert told.status == 200
    part = make_segment(fresh_session_id(), size=20_000)
    unfinished = await site.agent.upload_of(part)
    await site.agent.append(unfinished, part[:5000], 0, complete=False)
    strange = await site.agent.ask("POST", "/v1/uploads", data=f"{sumac} {nutmeg}".encode(), Upload_Complete="?1")
    await site.settled()
    keys = [row for row in await site.server.app[CATALOG].keys() if row.product == PRODUCT]
    groups = (await site.get("/api/v1/exceptions", origin="all"))["exceptions"]
    return Secrets(
        session,
        decision.segments[0].url.rpartition("/")[2],
        unfinished.rpartition("/")[2],
        strange.headers["Location"].rpartition("/")[2],
        keys[0].id,
        groups[0]["group"],
    )


def asked(site: Site) -> Iterator[tuple[str, str]]:
    """Every method and path that the router has."""
    for route in site.server.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        yield from ((method, path) for method in (METHODS if route.method == "*" else (route.method,)))


def bodies(method: str, path: str, secrets: Secrets) -> list[tuple[bytes | None, dict[str, str]]]:
    """What a request may say of the first product in its body and headers."""
    if method not in ("POST", "PUT", "PATCH", "DELETE"):
        return [(None, {})]
    if path == "/v1/negotiate":
        foreign = of_product(summary_of(make_segment(fresh_session_id())), PRODUCT)
        offers = (foreign, replace(foreign, session_id=secrets.session))
        return [(Request(AGENT, offers).encode(), {"Content_Type": wire.MSGPACK_MEDIA_TYPE})]
    if path.startswith("/v1/uploads"):
        parts = f"final;/v1/uploads/{secrets.upload} /v1/uploads/{secrets.unfinished}"
        rest = {"Content_Type": PARTIAL, "Upload_Complete": "?1"}
        return [
            (b"", {"Tus_Resumable": "1.0.0", "Upload_Concat": parts}),
            (b"x" * 100, {**rest, "Upload_Offset": "5000"}),
            (b"", {**rest, "Upload_Offset": "0"}),
            (make_segment(secrets.session, product=PRODUCT), {"Upload_Complete": "?1"}),
        ]
    contents: list[Any] = [{}, {"product": PRODUCT}, {"product": PRODUCT, "role": "agent"}, {"details": "none"}]
    contents += [{"state": "ignored"}, {"state": "resolved", "version": "9.7.5"}]
    return [(json.dumps(each).encode(), {"Content_Type": "application/json"}) for each in contents]


def rows_of(parquet: bytes) -> bytes:
    """The rows of a Parquet file, whose columns are compressed, as text."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(parquet)
        file.flush()
        return repr(duckdb.sql(f"FROM read_parquet('{file.name}')").fetchall()).encode()


def told(answer: Answer) -> bytes:
    """All that an answer says, in whatever encoding, without its times."""
    body = answer.body
    if answer.headers.get("Content-Encoding") == "zstd":
        body = wire.decompress(body)
    if answer.headers.get("Content-Type", "").startswith(wire.MSGPACK_MEDIA_TYPE):
        body = repr(msgpack.unpackb(body)).encode()
    if body and answer.headers.get("Content-Type") == PARQUET:
        body = rows_of(body)
    heads = "\n".join(f"{name}: {text}" for name, text in sorted(answer.headers.items()) if name != "Date")
    return body + b"\n" + heads.encode()


def holdings(site: Site) -> list[tuple[Any, ...]]:
    """Everything of the first product, wherever it is kept."""
    folder = site.server.app[CONFIG].data
    db = sqlite3.connect(folder / "catalog.sqlite")
    rows: list[tuple[Any, ...]] = []
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1").fetchall():
        columns = [column[1] for column in db.execute(f"PRAGMA table_info({table})")]
        owner = "product" if "product" in columns else "name" if table == "products" else None
        if owner is not None:
            rows += db.execute(f"SELECT '{table}', * FROM {table} WHERE {owner} = ? ORDER BY 1, 2, 3", (PRODUCT,))
    uploads = [row[1] for row in rows if row[0] == "uploads"]
    db.close()
    blobs = folder / "segments"
    rows += [(upload, (blobs / upload[-2:] / upload).read_bytes()) for upload in uploads if upload]
    return rows


async def test_no_endpoint_tells_or_changes_anything_of_another_product(site: Site, secrets: Secrets) -> None:
    before = holdings(site)
    assert {row[0] for row in before} >= {"products", "keys", "sessions", "uploads", "ledgers", "usage"}
    count = 0
    for client in (site.other_agent, site.other_reader):
        for method, path in asked(site):
            for mine, nobodys in secrets.stand_ins(path):
                for data, headers in bodies(method, path, secrets):
                    for query in ("", "?product=" + urllib.parse.quote(PRODUCT)):
                        foreign = await _ask(client, method, path, mine, query, data, headers)
                        nothing = await _ask(client, method, path, nobodys, query, data, headers)
                        _says_nothing(f"{method} {path}", foreign, nothing, mine, nobodys)
                        sent = repr((mine, data, headers))
                        unsaid = [
                            each for each in secrets.names() if each not in sent and each.encode() in told(foreign)
                        ]
                        assert unsaid == [], (method, path, foreign)
                        count += 2
    assert count > 200
    assert holdings(site) == before


async def _ask(
    client: Wire,
    method: str,
    path: str,
    values: Mapping[str, str],
    query: str,
    data: bytes | None,
    headers: Mapping[str, str],
) -> Answer:
    filled = re.sub(r"{(\w+)}", lambda match: urllib.parse.quote(values[match[1]], safe=""), path)
    return await client.ask(method, filled + query, data=data, **headers)


def _says_nothing(
    what: str,
    foreign: Answer,
    nothing: Answer,
    mine: Mapping[str, str],
    nobodys: Mapping[str, str],
) -> None:
    assert foreign.status == nothing.status, f"{what} tells what exists: {foreign} {nothing}"
    assert foreign.status < 500 or foreign.status == 507, (what, foreign)
    said = told(foreign)
    for word in WORDS:
        assert word.encode() not in said, (what, foreign)
    echoed = told(nothing)
    for name, value in mine.items():
        said, echoed = said.replace(value.encode(), b"*"), echoed.replace(nobodys[name].encode(), b"*")
    assert not mine or said == echoed, f"{what} tells what exists"


async def test_this_test_would_see_it(site: Site, secrets: Secrets) -> None:
    """The words are there to be seen by who may see them, in every answer that lists something."""
    for path, word in (
        (f"/api/v1/sessions/{secrets.session}", "Sesame"),
        (f"/api/v1/sessions/{secrets.session}/records", "Nutmeg"),
        ("/api/v1/sessions", "Tamarind"),
        ("/api/v1/features", "Sumac"),
        ("/api/v1/exceptions", "Lovage"),
        ("/api/v1/ledger", "Lovage"),
        ("/api/v1/export/feature", "Nutmeg"),
    ):
        answer = await site.ask(path)
        assert word.encode() in told(answer), path
        denied = await site.ask(path, site.other_reader)
        assert word.encode() not in told(denied), path
