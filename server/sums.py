"""Sums: what many records come to, kept for each product and week, so that reports do not go through all of them.

A sum of a product and week is made of all its records up to a generation (``state.summed``), but for the weeks in
``stale``, of which there is none. Records that came later are few (`TAIL`) and are looked at one by one, as are those
of weeks which a question cuts. All sums are exact: numbers are added up, and what is different is counted by bits, the
session or installation with number N being bit ``N % PART`` of part ``N // PART``. Numbers of a product are next to
each other, each product having parts of its own (an installation of several products is in a part of one of them).

This module tells what is summed, as SQL; `summing` keeps the sums, `reports.summed` asks for them. Quantiles cannot be
added up: they are of the records.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of this module

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

RECORD_TABLES: Final = ("feature", "value", "timing", "event", "exception", "installation", "other")
"""Views of the records of each kind."""
STORED: Final = {table: f"{table}_row" for table in RECORD_TABLES}
"""The tables behind them, in which a record has its session's number alone."""

WEEK: Final = 7 * 24 * 3600 * 10**6
"""Microseconds of a week; the first one began with 1970. With shorter spans there are more sums than records where
features are used by few; with longer ones more records are outside of the whole spans of a period."""

PART: Final = 4096
"""Numbers of one part. With a quarter of it, adding up takes a quarter longer: each bitmap costs the engine some
microseconds, whatever its size; and sparse ones are compressed in the file."""

TAIL: Final = 500_000
"""Records that wait until they are summed: they cost a question some 30 ms."""

SCOPED: Final = {"product": "VARCHAR", "internal": "BOOLEAN", "week": "INTEGER"}
"""Columns that each table of sums begins with."""


@dataclass(frozen=True, slots=True)
class Key:
    """A column by which is summed: its type, and its value for a record."""

    kind: str
    of_record: str


@dataclass(frozen=True, slots=True)
class Value:
    """A column that is summed: its type, how it is made of records, and how of such sums. `exact`: always the same,
    in whatever order they are taken.
    """

    kind: str
    of_records: str
    of_sums: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Sum:
    """A table of sums: its name, its keys and its values. The records that it is made of are those for which each of
    the queries in `records` has rows: with all that keys and values are made of, and the columns of `_SCOPE`.
    """

    table: str
    records: Sequence[str]
    keys: Mapping[str, Key]
    values: Mapping[str, Value]

    @property
    def columns(self) -> dict[str, str]:
        """All columns and their types."""
        keys = {name: key.kind for name, key in self.keys.items()}
        return {**SCOPED, **keys, **{name: value.kind for name, value in self.values.items()}}

    def only(self, keys: Iterable[str], values: Iterable[str]) -> Sum:
        """The same by fewer keys and with fewer values: what is left out is not read."""
        return replace(
            self, keys={name: self.keys[name] for name in keys}, values={name: self.values[name] for name in values}
        )

    def gathered(self, where: str) -> str:
        """The query that sums records for which `where` (about columns of `_SCOPE`) holds, in rows to be `merged`."""
        by = [f"{key.of_record} AS {name}" for name, key in self.keys.items()]
        return self._gathered(by, where)

    def gathered_by_scope(self, where: str) -> str:
        """The same by product, origin and week, too."""
        # The product comes last: parts are told apart in half of the time that texts are.
        by = [f"number // {PART} AS own", "internal", f"{week_of('time')} AS week"]
        by += [f"{key.of_record} AS {name}" for name, key in self.keys.items()]
        return (
            f"SELECT {', '.join(self.columns)} FROM ({self._gathered(by, where)}) "
            f"JOIN (SELECT product, part AS own FROM part) USING (own)"
        )

    def _gathered(self, by: list[str], where: str) -> str:
        made = [f"{value.of_records} AS {name}" for name, value in self.values.items()]
        return " UNION ALL ".join(
            f"(SELECT {', '.join(by + made)} FROM ({records}) WHERE {where} GROUP BY ALL)" for records in self.records
        )

    def kept(self, where: str) -> str:
        """The query for kept sums, in the shape of `gathered`."""
        return f"SELECT {', '.join((*self.keys, *self.values))} FROM {self.table} WHERE {where}"

    def merged(self, sums: str, *, scoped: bool = False) -> str:
        """The query that adds up sums (a table expression), one row for each combination of keys."""
        by = [*(SCOPED if scoped else ()), *self.keys]
        made = [f"{value.of_sums} AS {name}" for name, value in self.values.items()]
        return f"SELECT {', '.join(by + made)} FROM {sums} GROUP BY {', '.join(by)}"


def week_of(time: str) -> str:
    """The number of a time's week."""
    return f"(epoch_us({time}) // {WEEK})::INTEGER"


def week_begins(week: int) -> str:
    """The time at which a week begins."""
    return f"make_timestamp({week * WEEK})"


def is_stale() -> str:
    """The condition for records of weeks in ``stale``."""
    return f"(number // {PART}, {week_of('time')}) IN (SELECT part, week FROM stale JOIN part USING (product))"


def stale_records(summed: int, low: int, high: int) -> str:
    """The condition for records up to the generation `summed` that are of weeks in ``stale``, of `low` to `high`."""
    return f"generation <= {summed} AND time >= {week_begins(low)} AND time < {week_begins(high + 1)} AND {is_stale()}"


def of_product(product: str) -> str:
    """The condition for records of a product (an expression): see table ``part``."""
    return f"number // {PART} IN (SELECT part FROM part WHERE product = {product})"


_IDENTIFIED: Final = "(SELECT number, installation FROM numbered WHERE installation IS NOT NULL)"


def _part(number: str) -> Key:
    return Key("INTEGER", f"{number} // {PART}")


def _bits(number: str) -> Value:
    return Value("BIT", f"bitstring_agg(({number} % {PART})::SMALLINT, 0, {PART - 1})", "bit_or(seen)")


def _each(columns: str, tables: Mapping[str, str]) -> list[str]:
    return [f"SELECT {columns}, {own} FROM {STORED[table]}" for table, own in tables.items()]


_SCOPE: Final = "internal, time, generation, number"
_NAME: Final = Key("VARCHAR", "name")
_PART: Final = _part("number")

OF_KIND: Final = Sum(
    "kind_sum",
    _each(_SCOPE, {table: f"'{table}' AS kind" for table in RECORD_TABLES}),
    {"kind": Key("VARCHAR", "kind"), "day": Key("DATE", "time::DATE")},
    {"n": Value("BIGINT", "count(*)", "sum(n)::BIGINT")},
)
"""How many records of each kind there are, by day."""

OF_FEATURE: Final = Sum(
    "feature_sum",
    [f"FROM {STORED['feature']}"],
    {"name": _NAME, "part": _PART},
    {
        "seen": _bits("number"),
        "n": Value("BIGINT", "count(*)", "sum(n)::BIGINT"),
        "first": Value("TIMESTAMP", "min(time)", "min(first)"),
        "last": Value("TIMESTAMP", "max(time)", "max(last)"),
    },
)
"""How often a feature was used, when, and in which sessions."""

OF_INSTALLATION: Final = Sum(
    "installation_sum",
    [f"SELECT {_SCOPE}, name, installation FROM {STORED['feature']} JOIN {_IDENTIFIED} USING (number)"],
    {"name": _NAME, "part": _part("installation")},
    {"seen": _bits("installation")},
)
"""In which installations a feature was used."""

OF_VALUE: Final = Sum(
    "value_sum",
    _each(
        f"{_SCOPE}, name",
        {"value": "'value' AS kind, unit, value AS x", "timing": "'timing' AS kind, 's' AS unit, seconds AS x"},
    ),
    {"kind": Key("VARCHAR", "kind"), "name": _NAME, "unit": Key("VARCHAR", "unit"), "part": _PART},
    {
        "seen": _bits("number"),
        "n": Value("BIGINT", "count(x)", "sum(n)::BIGINT"),
        "total": Value("DOUBLE", "sum(x)", "sum(total)", exact=False),
        "low": Value("DOUBLE", "min(x)", "min(low)"),
        "high": Value("DOUBLE", "max(x)", "max(high)"),
    },
)
"""What values and timings come to, and in which sessions there were any."""

SUMS: Final = (OF_KIND, OF_FEATURE, OF_INSTALLATION, OF_VALUE)
