"""Groups of exceptions and how they stand: new, open, resolved in a version, ignored.

What people have said is kept in the catalog, what happened in the analytics store; the standing follows from both. A
group that was resolved in a version is open again when it happens in a *later* one (`versions.numbers`): installations
that were not updated go on failing, and tell nothing new. One that was resolved without a version is open again when it
happens after that moment.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of this package; values are always bound

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailboat.server.analytics_schema import given
from mailboat.server.json_text import encode
from mailboat.server.reports import INSTALLATIONS, SESSION_KEY, TOP, Answer, Paging, Question, Scope
from mailboat.server.triage_rows import Standing, TriageRow
from mailboat.server.versions import numbers

_STANDINGS: Final = {
    "product": "VARCHAR",
    "group": "VARCHAR",
    "state": "VARCHAR",
    "resolved": "VARCHAR",
    "reopened": "BOOLEAN",
}
_GROUPS: Final = {"product": "VARCHAR", "group": "VARCHAR"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A version in which a group happened, and when last (Unix seconds)."""

    version: str
    last: float


def reopened(triage: TriageRow, seen: Iterable[Seen]) -> bool:
    """Whether a group that was resolved has happened since in a way that shows that it is not."""
    if triage.standing is not Standing.RESOLVED:
        return False
    if not triage.version:
        return any(each.last > triage.changed for each in seen)
    return any(numbers(each.version) > numbers(triage.version) for each in seen)


def exceptions(
    scope: Scope, paging: Paging, triages: Sequence[TriageRow], wanted: Standing | None, question: Question
) -> Answer:
    """Exceptions that went the same way (`grouping`), most frequent first, each with its latest occurrence.

    Only those that stand as `wanted`, if that is given.
    """
    standings = _standings(triages, question)
    rows = question.rows(
        f"""
        SELECT product, "group", any_value(name) AS type, count(*) AS count, count(DISTINCT {SESSION_KEY}) AS sessions,
               {INSTALLATIONS} AS installations, min(time) AS first, max(time) AS last,
               list_sort(list_slice(list(DISTINCT version) FILTER (version != ''), 1, {TOP})) AS versions,
               max(level) AS level, arg_max(message, time) AS message, arg_max(context, time) AS context,
               arg_max(stack, time) AS stack, arg_max(causes, time) AS causes,
               arg_max(session_id::VARCHAR, time) AS session, arg_max(sequence, time) AS sequence,
               coalesce(any_value(state), '{Standing.NEW}') AS state, any_value(resolved) AS resolved,
               coalesce(any_value(reopened), false) AS reopened
        FROM (SELECT * FROM exception WHERE {scope.where("time")})
        LEFT JOIN (SELECT product, session_id, version, installation FROM session) USING (product, session_id)
        LEFT JOIN {given(_STANDINGS)} USING (product, "group")
        GROUP BY product, "group" HAVING $wanted IS NULL OR coalesce(any_value(state), '{Standing.NEW}') = $wanted
        ORDER BY count DESC, last DESC, product, "group" {paging.sql}
        """,
        {**scope.values, "rows": encode(standings).decode(), "wanted": wanted},
    )
    page, cursor = paging.page(rows)
    for row in page:
        row["stack"], row["causes"] = json.loads(row["stack"] or "[]"), json.loads(row["causes"] or "[]")
    return {"exceptions": page, "next": cursor}


def _standings(triages: Sequence[TriageRow], question: Question) -> list[Mapping[str, Any]]:
    """How the groups stand of which somebody has said something."""
    resolved = [triage for triage in triages if triage.standing is Standing.RESOLVED]
    seen = _seen(resolved, question) if resolved else {}
    found: list[Mapping[str, Any]] = []
    for each in triages:
        again = reopened(each, seen.get((each.product, each.group), ()))
        found.append(
            {
                "product": each.product,
                "group": each.group,
                "state": Standing.OPEN if again else each.standing,
                "resolved": each.version if each.standing is Standing.RESOLVED else None,
                "reopened": again,
            }
        )
    return found


def _seen(triages: Sequence[TriageRow], question: Question) -> dict[tuple[str, str], list[Seen]]:
    """The versions in which these groups have ever happened."""
    groups = encode([{"product": each.product, "group": each.group} for each in triages]).decode()
    rows = question.rows(
        f"""
        SELECT product, "group", coalesce(version, '') AS version, max(time) AS last
        FROM (SELECT product, session_id, "group", time FROM exception JOIN {given(_GROUPS)} USING (product, "group"))
        LEFT JOIN (SELECT product, session_id, version FROM session) USING (product, session_id) GROUP BY ALL
        """,
        {"rows": groups},
    )
    seen: dict[tuple[str, str], list[Seen]] = {}
    for row in rows:
        seen.setdefault((row["product"], row["group"]), []).append(Seen(row["version"], row["last"]))
    return seen


def known(product: str, group: str, question: Question) -> Answer:
    """Whether a group has ever happened."""
    return question.row(
        'SELECT EXISTS (FROM exception WHERE product = $product AND "group" = $group) AS known',
        {"product": product, "group": group},
    )
