"""Who runs what: versions and how they are taken up, and installations."""

# ruff: noqa: S608 - what is put into SQL here are fragments of this package; values are always bound

from __future__ import annotations

from typing import Final

from mailboat.server.reports import MAX_DAYS, TOP, Answer, Paging, Question, Scope, claimed

_FOLLOWED: Final = 10
"""Versions whose days are told one by one: more lines than these nobody tells apart."""


def versions(scope: Scope, question: Question) -> Answer:
    """Versions of applications, most used first, and the days of those used most."""
    rows = question.rows(
        f"""
        SELECT application, version, count(*) AS sessions, count(DISTINCT nullif(installation, '')) AS installations,
               count(*) FILTER (status != 'running') AS ended, count(*) FILTER (status = 'crashed') AS crashed,
               count(*) / sum(count(*)) OVER (PARTITION BY application) AS share, min(started) AS first,
               max(started) AS last
        FROM session WHERE {scope.where("started")} GROUP BY application, version
        ORDER BY sessions DESC, application, version LIMIT {TOP}
        """,
        scope.values,
    )
    for row in rows:
        ended = row.pop("ended")
        row["crash_free"] = 1 - row["crashed"] / ended if ended else None
    return {"versions": rows, "days": _days(scope, question)}


def _days(scope: Scope, question: Question) -> list[Answer]:
    return question.rows(
        f"""
        WITH s AS (SELECT application, version, started::DATE AS day, installation FROM session
                   WHERE {scope.where("started")}),
             most AS (SELECT application, version FROM s GROUP BY ALL ORDER BY count(*) DESC, 1, 2
                      LIMIT {_FOLLOWED}),
             last AS (SELECT DISTINCT day FROM s ORDER BY day DESC LIMIT {MAX_DAYS})
        SELECT strftime(day, '%Y-%m-%d') AS day, application, version, count(*) AS sessions,
               count(DISTINCT nullif(installation, '')) AS installations
        FROM s JOIN most USING (application, version) JOIN last USING (day) GROUP BY day, application, version
        ORDER BY day DESC, sessions DESC, application, version
        """,
        scope.values,
    )


def installations(scope: Scope, paging: Paging, question: Question) -> Answer:
    """Installations that their applications have named, the one heard of last first, each as it was then."""
    rows = question.rows(
        f"""
        SELECT product, installation, count(*) AS sessions, {claimed("records")} AS records,
               count(*) FILTER (status = 'crashed') AS crashed, min(started) AS first, max(started) AS last,
               arg_max(application, started) AS application, arg_max(version, started) AS version,
               arg_max(os, started) AS os, arg_max(runtime, started) AS runtime, arg_max(locale, started) AS locale
        FROM session WHERE {scope.where("started")} AND installation != '' GROUP BY product, installation
        ORDER BY last DESC, product, installation {paging.sql}
        """,
        scope.values,
    )
    page, cursor = paging.page(rows)
    return {"installations": page, "next": cursor}


def warnings(scope: Scope, question: Question) -> Answer:
    """What came and could not be used as it came, of the sessions asked about: gaps, segments that cannot be loaded,
    wrong clocks, sessions that were rejected, with the reasons.
    """
    sessions = f"(SELECT product, session_id FROM session WHERE {scope.where('started')})"
    return {
        "gaps": question.rows(
            "SELECT reason, count(*) AS count, count(DISTINCT session_id) AS sessions, "
            f"{claimed('records')} AS records FROM gap SEMI JOIN {sessions} USING (product, session_id) "
            f"GROUP BY reason ORDER BY count DESC, reason LIMIT {TOP}",
            scope.values,
        ),
        "failed": question.rows(
            "SELECT failed AS reason, count(*) AS segments FROM (FROM loaded WHERE failed IS NOT NULL) "
            f"SEMI JOIN {sessions} USING (product, session_id) "
            f"GROUP BY failed ORDER BY segments DESC, failed LIMIT {TOP}",
            scope.values,
        ),
        "rejections": question.rows(
            f"SELECT reason, count(*) AS sessions, {claimed('records')} AS records, max(started) AS last FROM session "
            f"WHERE state = 'rejected' AND {scope.where('started')} "
            f"GROUP BY reason ORDER BY sessions DESC, reason LIMIT {TOP}",
            scope.values,
        ),
        **question.row(
            "SELECT count(*) FILTER (skew != 0) AS clocks_corrected, max(abs(skew)) AS worst_clock, "
            f"count(*) FILTER (state = 'rejected') AS rejected FROM session WHERE {scope.where('started')}",
            scope.values,
        ),
    }
