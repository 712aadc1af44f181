"""What is used, and what is measured: features by category, values and timings by name."""

# ruff: noqa: S608 - what is put into SQL here are fragments of this package; values are always bound

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from mailboat.server.analytics_schema import given
from mailboat.server.json_text import encode
from mailboat.server.reports import Answer, Paging, Question, Scope, summed
from mailboat.server.sums import OF_FEATURE, OF_INSTALLATION, OF_VALUE, Sum

MAX_LEVELS: Final = 8
"""Levels of the hierarchy that dots make in a feature's name; what is deeper counts to the eighth."""


_USES: Final = OF_FEATURE.only(("name",), ("n", "first", "last"))
_SESSIONS: Final = OF_FEATURE.only(("name", "part"), ("seen",))

_NODES: Final = f"""nodes AS MATERIALIZED (
    SELECT name, unnest(list_append(
        [array_to_string(steps[1:i], '.') FOR i IN range(1, least(len(steps), {MAX_LEVELS} + 1))], name)) AS node
    FROM (SELECT DISTINCT name, string_split(name, '.') AS steps FROM used))"""
"""The names in table ``used``, each with itself and every category above it."""


def features(scope: Scope, paging: Paging, question: Question) -> Answer:
    """Every feature and every category above it, most used first.

    `uses` and `sessions` of a category count all below it, `own` the uses of just this name. `share` is that of the
    sessions whose records are here and that ran in the period.
    """
    rows = question.rows(
        f"""
        WITH used AS MATERIALIZED ({_USES.merged(summed(_USES, scope, question))}), {_NODES}
        SELECT node AS name, nullif(array_to_string(string_split(node, '.')[:-2], '.'), '') AS parent,
               sum(n)::BIGINT AS uses, coalesce(sum(n) FILTER (name = node), 0)::BIGINT AS own,
               min(first) AS first, max(last) AS last
        FROM used JOIN nodes USING (name) GROUP BY node ORDER BY uses DESC, node {paging.sql}
        """,
        scope.owner,
    )
    page, cursor = paging.page(rows)
    nodes = [row["name"] for row in page]
    # Of these alone, since to count what is different takes longer than all the rest.
    sessions, (installations, held) = question.both(
        functools.partial(_different, _SESSIONS, nodes, scope),
        lambda other: (_different(OF_INSTALLATION, nodes, scope, other), _held(scope, other)),
    )
    for row in page:
        row["sessions"], row["installations"] = sessions[row["name"]], installations.get(row["name"], 0)
        # A clock that was set while a session ran may put a record outside its session.
        row["share"] = min(1.0, row["sessions"] / held) if held else None
    return {"features": page, "sessions": held, "next": cursor}


def _different(total: Sum, nodes: Sequence[str], scope: Scope, question: Question) -> dict[str, int]:
    """How many bits are set in these sums, in all names below each of these nodes."""
    rows = question.rows(
        f"""
        WITH used AS MATERIALIZED ({total.merged(summed(total, scope, question))}), {_NODES},
        below AS MATERIALIZED (SELECT node, name FROM nodes SEMI JOIN {given({"node": "VARCHAR"})} USING (node))
        SELECT node, sum(n)::BIGINT AS n
        FROM (SELECT node, part, bit_count(bit_or(seen)) AS n FROM used JOIN below USING (name) GROUP BY node, part)
        GROUP BY node
        """,
        {**scope.owner, "rows": encode([{"node": node} for node in nodes]).decode()},
    )
    return {row["node"]: row["n"] for row in rows}


def _held(scope: Scope, question: Question) -> int:
    """The sessions whose records are here and that ran in the period."""
    row = question.row(
        f"SELECT count(*) AS n FROM (FROM session WHERE {scope.where('started', 'ended')}) "
        "SEMI JOIN (FROM loaded WHERE records > 0) USING (product, session_id)",
        scope.values,
    )
    return int(row["n"])


def values(scope: Scope, kind: str | None, paging: Paging, question: Question) -> Answer:
    """Values by name and unit, and timings (in seconds) by name, with what is to be known of how they spread."""
    rows = question.rows(
        f"""
        SELECT kind, name, unit, sum(n)::BIGINT AS count, sum(bit_count(seen))::BIGINT AS sessions, sum(total) AS sum,
               min(low) AS min, max(high) AS max, sum(total) / nullif(sum(n), 0) AS mean
        FROM ({OF_VALUE.merged(summed(OF_VALUE, scope, question))}) WHERE $kind IS NULL OR kind = $kind
        GROUP BY kind, name, unit ORDER BY count DESC, kind, name, unit {paging.sql}
        """,
        {**scope.owner, "kind": kind},
    )
    page, cursor = paging.page(rows)
    whole = cursor is None and not paging.offset
    spread = _spread(scope, None if whole else {row["name"] for row in page}, question)
    for row in page:
        found = spread.get((row["kind"], row["name"], row["unit"])) or (None, None, None, None)
        row["percentiles"] = dict(zip(("50", "90", "95", "99"), found, strict=True))
    return {"values": page, "next": cursor}


def _spread(scope: Scope, names: Iterable[str] | None, question: Question) -> dict[tuple[str, str, str | None], Any]:
    """Quantiles by kind, name and unit, of these names or of all; exactly, so of the records themselves."""
    quantiles = "quantile_cont({}, [0.5, 0.9, 0.95, 0.99]) AS spread"
    where, bound = scope.where("time"), scope.values
    if names is not None:
        where += f" AND name IN (SELECT name FROM {given({'name': 'VARCHAR'})})"
        bound["rows"] = encode([{"name": name} for name in names]).decode()
    rows = question.rows(
        f"""
        SELECT 'value' AS kind, name, unit, {quantiles.format("value")} FROM value WHERE {where}
        GROUP BY name, unit UNION ALL
        SELECT 'timing' AS kind, name, 's' AS unit, {quantiles.format("seconds")} FROM timing WHERE {where}
        GROUP BY name
        """,
        bound,
    )
    return {(row["kind"], row["name"], row["unit"]): row["spread"] for row in rows}
