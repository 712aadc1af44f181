"""Groups of exceptions: what people say of them, and when one that was resolved is open again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mailboat.protocol import Info
from mailboat.server.triage import Seen, reopened
from mailboat.server.triage_rows import Standing, TriageRow
from mailboat.server.versions import numbers
from testkit.segments import START, Segment, exception
from testkit.serverkit import Answer, fresh_session_id
from testkit.sites import OTHER, PRODUCT, Site, session

PATH = "/api/v1/exceptions"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("2.9", "2.10"), ("", "0.1"), ("2", "2.0.1"), ("2.4.1+build7", "2.4.2"), ("1.9-rc1", "2.0-rc1"), ("v1", "v2")],
)
def test_versions_are_compared_by_their_numbers(earlier: str, later: str) -> None:
    assert numbers(earlier) < numbers(later)


def test_a_version_is_the_same_with_zeros_and_labels_behind_it() -> None:
    assert numbers("2") == numbers("2.0.0") == numbers("2.0-rc1") == numbers("2.0+local.5")


@pytest.mark.parametrize(
    ("triage", "seen", "expected"),
    [
        (TriageRow("p", "g", Standing.RESOLVED, "2.0", 100.0), [Seen("1.9", 999.0), Seen("2.0", 999.0)], False),
        (TriageRow("p", "g", Standing.RESOLVED, "2.0", 100.0), [Seen("2.0.1", 50.0)], True),
        (TriageRow("p", "g", Standing.RESOLVED, "", 100.0), [Seen("9.0", 99.0)], False),
        (TriageRow("p", "g", Standing.RESOLVED, "", 100.0), [Seen("1.0", 101.0)], True),
        (TriageRow("p", "g", Standing.IGNORED, "", 100.0), [Seen("9.0", 999.0)], False),
        (TriageRow("p", "g", Standing.OPEN, "", 100.0), [Seen("9.0", 999.0)], False),
        (TriageRow("p", "g", Standing.RESOLVED, "2.0", 100.0), [], False),
    ],
)
def test_when_a_group_is_open_again(triage: TriageRow, seen: list[Seen], expected: bool) -> None:
    assert reopened(triage, seen) is expected


async def put(site: Site, group: str, said: Any, product: str = PRODUCT) -> Answer:  # noqa: ANN401 - JSON
    query = f"?product={product.replace(' ', '%20')}" if product else ""
    body = json.dumps(said).encode()
    return await site.admin.ask("PUT", f"{PATH}/{group}{query}", data=body, Content_Type="application/json")


async def crash(site: Site, version: str, type_name: str = "ValueError") -> None:
    segment = Segment(fresh_session_id(), info=Info(product=PRODUCT, application="importer", version=version))
    segment.block([exception(type_name, f"in {version}", at=1)])
    await site.send(segment.seal())
    await site.settled()


async def states(site: Site, **parameters: object) -> dict[str, tuple[str, str | None, bool]]:
    rows = (await site.get(PATH, None, **parameters))["exceptions"]
    return {row["type"]: (row["state"], row["resolved"], row["reopened"]) for row in rows}


async def test_a_group_from_new_to_resolved_and_open_again(site: Site) -> None:
    await crash(site, "2.0")
    await crash(site, "2.0", "KeyError")
    assert await states(site) == {"ValueError": ("new", None, False), "KeyError": ("new", None, False)}
    rows = (await site.get(PATH))["exceptions"]
    group = next(row["group"] for row in rows if row["type"] == "ValueError")
    answer = await put(site, group, {"state": "resolved", "version": "2.1"})
    assert (answer.status, json.loads(answer.body)) == (
        200,
        {"product": PRODUCT, "group": group, "state": "resolved", "version": "2.1", "changed": START + 3600.0},
    )
    assert (await states(site))["ValueError"] == ("resolved", "2.1", False)
    await crash(site, "2.1")
    assert (await states(site))["ValueError"] == ("resolved", "2.1", False), "they said that 2.1 still has it"
    await crash(site, "2.1.1")
    assert await states(site) == {"ValueError": ("open", "2.1", True), "KeyError": ("new", None, False)}
    assert await states(site, state="open") == {"ValueError": ("open", "2.1", True)}
    assert await states(site, state="new") == {"KeyError": ("new", None, False)}
    assert await states(site, state="resolved") == {}
    assert (await put(site, group, {"state": "ignored"})).status == 200
    assert await states(site, state="ignored") == {"ValueError": ("ignored", None, False)}
    assert (await put(site, group, {"state": "new"})).status == 200
    assert (await states(site))["ValueError"] == ("new", None, False)


async def test_what_is_said_of_one_product_is_not_said_of_another(site: Site) -> None:
    await site.send(*session())
    await site.send(*session(OTHER), client=site.other_agent)
    await site.settled()
    (row,) = (await site.get(PATH))["exceptions"]
    assert (await put(site, row["group"], {"state": "ignored"})).status == 200
    assert (await states(site))["ValueError"][0] == "ignored"
    assert [each["state"] for each in (await site.get(PATH, site.other_reader))["exceptions"]] == ["new"]
    both = (await site.get(PATH, site.admin))["exceptions"]
    assert {(each["product"], each["state"]) for each in both} == {(PRODUCT, "ignored"), (OTHER, "new")}


@pytest.mark.parametrize(
    ("said", "status", "named"),
    [
        ({"state": "done"}, 400, "state: "),
        ({}, 400, "state: "),
        ({"state": ["open"]}, 400, "state: "),
        ({"state": "open", "version": "1"}, 400, "version: "),
        ({"state": "resolved", "version": 2}, 400, "version: "),
        ({"state": "open", "by": "me"}, 400, "by: "),
        ([], 400, "the body"),
    ],
)
async def test_what_cannot_be_said(site: Site, said: object, status: int, named: str) -> None:
    await crash(site, "1")
    (row,) = (await site.get(PATH))["exceptions"]
    answer = await put(site, row["group"], said)
    assert (answer.status, json.loads(answer.body)["detail"].startswith(named)) == (status, True)
    assert (await states(site))["ValueError"][0] == "new"


async def test_only_an_admin_says_it_of_a_product_and_a_group_that_are_there(site: Site) -> None:
    await crash(site, "1")
    (row,) = (await site.get(PATH))["exceptions"]
    body = json.dumps({"state": "open"}).encode()
    path = f"{PATH}/{row['group']}"
    assert (await site.reader.ask("PUT", path, data=body, Content_Type="application/json")).status == 403
    assert (await put(site, row["group"], {"state": "open"}, "")).status == 400
    assert (await put(site, "0123456789abcdef", {"state": "open"})).status == 404
    assert (await put(site, row["group"], {"state": "open"}, OTHER.replace('"', "%22"))).status == 404
