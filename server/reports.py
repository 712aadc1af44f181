"""The questions that the JSON API answers from the analytics store, as SQL; each costs a bounded answer.

Sessions belong to a period by their start, records by their own time. `Reports` runs them in threads of their own, off
the event loop, with a time limit.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of this module; values are always bound

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb

from mailboat.protocol.errors import MailboatError
from mailboat.protocol.records import COUNTERS, KIND_COUNTERS, SCHEMA_COUNTER
from mailboat.protocol.wire import MOST
from mailboat.server.analytics_store import SqlStore
from mailboat.server.catalog import Origin
from mailboat.server.sums import OF_KIND, RECORD_TABLES, WEEK, Sum, of_product, stale_records

TIME_LIMIT: Final = 20.0
"""Seconds for one question: beyond it the server has better things to do."""
THREADS: Final = 2
"""Questions answered at a time."""
INTERRUPT_AGAIN: Final = 0.05
"""Seconds between interruptions of a question that nobody waits for."""
TOP: Final = 50
"""Versions, systems and the like listed in an overview, most used first."""
MAX_DAYS: Final = 400
"""Days listed in an overview, latest first: a year and what is needed to compare it."""
Answer = dict[str, Any]
_First = TypeVar("_First")
_Second = TypeVar("_Second")


class TooSlow(MailboatError):
    """The question took longer than `TIME_LIMIT`, or more memory than the engine has; a shorter period may do."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is asked about: a product (None: all), a period [since, until) in Unix seconds, and an origin."""

    product: str | None = None
    since: float | None = None
    until: float | None = None
    origin: Origin = Origin.PUBLIC

    def where(self, since_column: str, until_column: str | None = None) -> str:
        """The condition, on a table with these columns of time; its parameters are `values`."""
        conditions = [
            "product = $product" if self.product is not None else "",
            f"{until_column or since_column} >= make_timestamp($since)" if self.since is not None else "",
            f"{since_column} < make_timestamp($until)" if self.until is not None else "",
            f"internal = {self.origin is Origin.INTERNAL}" if self.origin is not Origin.ALL else "",
        ]
        return " AND ".join(condition for condition in conditions if condition) or "true"

    @property
    def whose(self) -> str:
        """The condition but for the period; its parameters are `owner`."""
        return replace(self, since=None, until=None).where("")

    def of_records(self, *conditions: str) -> str:
        """The condition on a table of records (`sums.STORED`), but for the period; its parameters are `owner`."""
        whose = replace(self, product=None).whose
        own = [] if self.product is None else [of_product("$product")]
        return " AND ".join([whose, *own, *conditions])

    @property
    def owner(self) -> dict[str, Any]:
        """The parameters of `whose`."""
        return {} if self.product is None else {"product": self.product}

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of `where`."""
        values: dict[str, Any] = {}
        if self.product is not None:
            values["product"] = self.product
        if self.since is not None:
            values["since"] = int(self.since * 1e6)
        if self.until is not None:
            values["until"] = int(self.until * 1e6)
        return values


@dataclass(frozen=True, slots=True)
class Paging:
    """Rows `offset` up to `offset + limit` of an ordered answer."""

    limit: int = 100
    offset: int = 0

    def page(self, rows: Sequence[Answer]) -> tuple[Sequence[Answer], str | None]:
        """The page itself and the cursor of the next, given one row more than fits."""
        more = len(rows) > self.limit
        return rows[: self.limit], str(self.offset + self.limit) if more else None

    @property
    def sql(self) -> str:
        """The clause that fetches one row more than fits."""
        return f"LIMIT {self.limit + 1} OFFSET {self.offset}"


class Question:
    """One connection for the statements of one answer; rows come as maps of plain values."""

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        *others: duckdb.DuckDBPyConnection,
        threads: Executor | None = None,
    ) -> None:
        """`others` are connections that see the same, to be used at the same time in `threads`; one is, by now."""
        self._cursor = cursor
        self._others = others
        self._threads = threads

    def both(
        self, first: Callable[[Question], _First], second: Callable[[Question], _Second]
    ) -> tuple[_First, _Second]:
        """Two answers, found at the same time where that can be: the engine has one processor for each statement."""
        if not self._others or self._threads is None:
            return first(self), second(self)
        under_way = self._threads.submit(second, Question(self._others[0]))
        try:
            found = first(self)
        finally:
            wait([under_way])  # its connection is closed next
        return found, under_way.result()

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[Answer]:
        """All rows."""
        result = self._cursor.execute(sql, dict(values))
        names = [column[0] for column in result.description or ()]
        return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in result.fetchall()]

    def row(self, sql: str, values: Mapping[str, Any]) -> Answer:
        """The one row of an aggregate."""
        return self.rows(sql, values)[0]

    def write_parquet(self, sql: str, values: Mapping[str, Any], path: Path) -> None:
        """Have the engine write all rows into a new file."""
        self._cursor.sql(sql, params=dict(values)).write_parquet(str(path), compression="zstd")


def _plain(value: object) -> object:
    """Times as Unix seconds, as everywhere in mailboat."""
    return value.replace(tzinfo=UTC).timestamp() if isinstance(value, datetime) else value


class Reports:
    """Answers questions, each in a thread with a connection of its own."""

    def __init__(self, analytics: SqlStore, time_limit: float = TIME_LIMIT) -> None:
        self._analytics = analytics
        self._time_limit = time_limit
        self._threads = ThreadPoolExecutor(THREADS, "mailboat-reports")
        self._others = ThreadPoolExecutor(THREADS, "mailboat-reports-both")

    async def ask(self, question: Callable[[Question], Answer]) -> Answer:
        """The answer; `TooSlow` when there is none in time."""
        asked = _Asked(self._analytics, question, self._others)
        answer = asyncio.get_running_loop().run_in_executor(self._threads, asked.answer)
        try:
            async with asyncio.timeout(self._time_limit):
                return await asyncio.shield(answer)
        except TimeoutError as error:
            raise TooSlow(f"no answer within {self._time_limit:g} s: ask about a shorter period") from error
        finally:
            if not answer.done():
                answer.add_done_callback(_seen)
                _interrupt(asked, answer)

    def close(self) -> None:
        """Wait for the answers under way."""
        self._threads.shutdown()
        self._others.shutdown()


class _Asked:
    """One question on its way through a thread, or two."""

    def __init__(self, analytics: SqlStore, question: Callable[[Question], Answer], others: Executor) -> None:
        self._analytics = analytics
        self._question = question
        self._others = others
        self._cursors: Sequence[duckdb.DuckDBPyConnection] = ()
        self._unwanted = False

    def answer(self) -> Answer:
        """In the thread: the answer."""
        if self._unwanted:
            raise TooSlow("nobody waits for the answer any more")
        # In a transaction, so that all statements see the same: what is a sum for one is not yet one for another.
        cursors = self._cursors = self._analytics.cursors(2)
        try:
            return self._question(Question(*cursors, threads=self._others))
        except duckdb.OutOfMemoryException as error:
            raise TooSlow("the answer takes more memory than there is: ask about a shorter period") from error
        finally:
            self._cursors = ()
            for each in cursors:
                each.close()

    def interrupt(self) -> None:
        """From the event loop: have no answer."""
        self._unwanted = True
        for each in self._cursors:
            with suppress(duckdb.ConnectionException):  # closed in this very moment: it has ended
                each.interrupt()


def _interrupt(asked: _Asked, answer: asyncio.Future[Answer]) -> None:
    """Interrupt until it has ended: an interruption between two statements is lost."""
    if not answer.done():
        asked.interrupt()
        asyncio.get_running_loop().call_later(INTERRUPT_AGAIN, _interrupt, asked, answer)


def _seen(answer: asyncio.Future[Answer]) -> None:
    """Take note of how an answer that nobody waits for ended: by the interruption."""
    if not answer.cancelled():
        answer.exception()


SESSION_KEY: Final = "hash(product, session_id)"
"""A session in 64 bits: what is counted by it is counted in a quarter of the time."""


def claimed(numbers: str, condition: str = "true") -> str:
    """SQL for the sum of numbers that agents claim, of rows for which `condition` holds; 0 without any.

    Whoever has a key may claim any number. The sum never fails for it: no report is refused for what one product says.
    """
    return f"least(coalesce(sum({numbers}) FILTER ({condition}), 0), {MOST})::BIGINT"


def summed(total: Sum, scope: Scope, question: Question) -> str:
    """SQL for a table expression: what the records of the scope come to, some of it in several rows to be added up
    (`Sum.merged`). Its parameters are `Scope.owner`.

    Whole weeks of the period come from sums, the rest from records: what the period cuts off of a week, what is not
    summed yet, and weeks without sums.
    """
    state = question.row(
        "SELECT summed, min(week) AS low, max(week) AS high FROM state LEFT JOIN stale ON true GROUP BY 1", {}
    )
    since = None if scope.since is None else int(scope.since * 1e6)
    until = None if scope.until is None else int(scope.until * 1e6)
    first, end = -((since or 0) // -WEEK), None if until is None else until // WEEK
    if not state["summed"] or (end is not None and first >= end):
        return f"({total.gathered(scope.of_records(*_between(since, until)))})"
    old = f"generation <= {state['summed']}"
    pieces = [[f"generation > {state['summed']}", *_between(since, until)]]
    if since is not None and since % WEEK:
        pieces.append([old, *_between(since, first * WEEK)])
    if until is not None and end is not None and until % WEEK:
        pieces.append([old, *_between(end * WEEK, until)])
    if state["low"] is not None:
        high = state["high"] if end is None else min(state["high"], end - 1)
        pieces.append([stale_records(state["summed"], max(state["low"], first), high)])
    whole = [scope.whose, f"week >= {first}", *([] if end is None else [f"week < {end}"])]
    queries = [total.kept(" AND ".join(whole))]
    queries += [total.gathered(scope.of_records(*piece)) for piece in pieces]
    return f"({' UNION ALL '.join(queries)})"


def _between(since: int | None, until: int | None) -> list[str]:
    """The conditions for a time in microseconds, of which each end may be open."""
    ends = (">=", since), ("<", until)
    return [f"time {sign} make_timestamp({end})" for sign, end in ends if end is not None]


# -- overview ------------------------------------------------------------------------------------------------------

_ENDED: Final = "count(*) FILTER (status != 'running')"
_CRASHED: Final = "count(*) FILTER (status = 'crashed')"
INSTALLATIONS: Final = "count(DISTINCT nullif(installation, ''))"
_SESSION_COUNTS: Final = f"count(*) AS sessions, {INSTALLATIONS} AS installations, {_CRASHED} AS crashed"


def overview(scope: Scope, question: Question) -> Answer:
    """Totals of sessions and records, by day, by version and by environment."""
    ask = functools.partial(_of_sessions, scope, question)
    total = question.row(
        f"SELECT {_SESSION_COUNTS}, {_ENDED} AS ended, count(*) FILTER (status = 'running') AS running, "
        "count(*) FILTER (state = 'declined') AS declined, count(*) FILTER (state = 'rejected') AS rejected, "
        f"count(DISTINCT nullif(\"user\", '')) AS users, {_declared()} FROM session WHERE {scope.where('started')}",
        scope.values,
    )
    kinds = {name: total.pop(f"n_{name}") for name in COUNTERS}
    of_kind, of_day = Counter[str](dict.fromkeys(RECORD_TABLES, 0)), Counter[str]()
    for row in _records(scope, question):
        of_kind[row["kind"]] += row["n"]
        if row["day"] is not None:
            of_day[row["day"]] += row["n"]
    return {
        **total,
        "crash_free": 1 - total["crashed"] / total["ended"] if total["ended"] else None,
        "records": dict(of_kind),
        "declared": {name: kinds[name] for name in COUNTERS[:KIND_COUNTERS]},
        "levels": {name: kinds[name] for name in COUNTERS[KIND_COUNTERS:SCHEMA_COUNTER]},
        "versions": ask("application, version"),
        "environment": {name: ask(name) for name in ("os", "runtime", "locale", "environment")},
        "days": _days(scope, of_day, question),
    }


def _declared() -> str:
    return ", ".join(f"{claimed(f'n_{name}')} AS n_{name}" for name in COUNTERS)


def _of_sessions(scope: Scope, question: Question, columns: str) -> list[Answer]:
    return question.rows(
        f"SELECT {columns}, {_SESSION_COUNTS}, min(started) AS first, max(started) AS last FROM session "
        f"WHERE {scope.where('started')} GROUP BY {columns} ORDER BY sessions DESC, last DESC, {columns} LIMIT {TOP}",
        scope.values,
    )


def _records(scope: Scope, question: Question) -> list[Answer]:
    """Records that are here, by kind and day of recording; `day` is None for all days before the last `MAX_DAYS`."""
    return question.rows(
        f"""
        SELECT kind, CASE WHEN nth <= {MAX_DAYS} THEN strftime(day, '%Y-%m-%d') END AS day, sum(n)::BIGINT AS n
        FROM (SELECT *, dense_rank() OVER (ORDER BY day DESC) AS nth FROM {summed(OF_KIND, scope, question)})
        GROUP BY ALL
        """,
        scope.owner,
    )


def _days(scope: Scope, records: Mapping[str, int], question: Question) -> list[Answer]:
    """By day of recording, in UTC, the latest first; `records` are those of each day."""
    rows = question.rows(
        f"""
        SELECT strftime(started, '%Y-%m-%d') AS day, {_SESSION_COUNTS}, count(DISTINCT nullif("user", '')) AS users
        FROM session WHERE {scope.where("started")} GROUP BY day ORDER BY day DESC LIMIT {MAX_DAYS}
        """,
        scope.values,
    )
    sessions = {row["day"]: row for row in rows}
    none = dict.fromkeys(("sessions", "installations", "users", "crashed"), 0)
    days = sorted(sessions.keys() | records.keys(), reverse=True)[:MAX_DAYS]
    return [{"day": day, **none, **sessions.get(day, {}), "records": records.get(day, 0)} for day in days]


# -- what is here --------------------------------------------------------------------------------------------------


def holdings(scope: Scope, question: Question, *, everything: bool = True) -> Answer:
    """What is here of each product, to be held against what agents say: sessions and records as their summaries
    declare them, the records that were loaded, and those known to be missing. Of `everything` that is there of the
    product, or of the sessions in the period and of the origin.
    """
    product = "product = $product" if scope.product is not None else "true"
    chosen = of_chosen = product
    bound: dict[str, Any] = {"product": scope.product} if scope.product is not None else {}
    if not everything:
        chosen, bound = scope.where("started"), scope.values
        of_chosen = f"(product, session_id) IN (SELECT product, session_id FROM session WHERE {chosen})"
    rows = question.rows(
        f"""
        WITH s AS (SELECT product, count(*) AS sessions, {claimed("records")} AS declared,
                          count(*) FILTER (state = 'declined') AS declined_sessions,
                          {claimed("records", "state = 'declined'")} AS declined_records,
                          count(*) FILTER (state = 'rejected') AS rejected_sessions
                   FROM session WHERE {chosen} GROUP BY product),
             l AS (SELECT product, sum(records)::BIGINT AS loaded, count(failed) AS failed_segments
                   FROM loaded WHERE {of_chosen} GROUP BY product),
             g AS (SELECT product, {claimed("records")} AS missing FROM gap WHERE {of_chosen} GROUP BY product)
        SELECT product, coalesce(sessions, 0) AS sessions, coalesce(declared, 0) AS declared,
               coalesce(loaded, 0) AS loaded, coalesce(missing, 0) AS missing,
               coalesce(declined_sessions, 0) AS declined_sessions, coalesce(declined_records, 0) AS declined_records,
               coalesce(rejected_sessions, 0) AS rejected_sessions, coalesce(failed_segments, 0) AS failed_segments
        FROM s FULL JOIN l USING (product) FULL JOIN g USING (product) ORDER BY product
        """,
        bound,
    )
    return {"products": rows}


def gaps(product: str, session_id: str, question: Question) -> Answer:
    """What of a session was loaded, and what could not be read."""
    bound = {"product": product, "session": session_id}
    where = "WHERE product = $product AND session_id = $session::UUID"
    found = question.rows(
        f'SELECT segment, "offset", length, reason, "first", records FROM gap {where} ORDER BY segment, "offset"', bound
    )
    loaded = question.row(f"SELECT coalesce(sum(records), 0)::BIGINT AS loaded FROM loaded {where}", bound)
    return {**loaded, "gaps": found}
