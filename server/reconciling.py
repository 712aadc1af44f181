"""Whether what agents say became of their records is what is here: an account for each store of theirs.

An agent reports the sums of its store with each negotiation (`LedgerRow`); each session is in the account of the store
that offered it. What an agent takes for accepted must be here; what is here and not accepted yet is on its way to be
(the agent learns of it with its next negotiation), so it is no fault.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of this package; values are always bound

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mailboat.server.analytics_schema import given
from mailboat.server.catalog import LedgerRow
from mailboat.server.json_text import encode
from mailboat.server.reports import Answer, Question, claimed

_SUMMED = ("rejected", "evicted", "lost")


@dataclass(frozen=True, slots=True)
class Account:
    """Records of one store, as its agent said last; sums of all reasons."""

    recorded: int
    accepted: int
    declined: int
    rejected: int
    evicted: int
    lost: int
    pending: int

    @classmethod
    def of(cls, ledger: Mapping[str, Any]) -> Account:
        """What a ledger says; whatever in it is no number counts nothing."""
        plain = {name: _whole(ledger.get(name)) for name in ("recorded", "accepted", "declined", "pending")}
        return cls(**plain, **{name: _sum(ledger.get(name)) for name in _SUMMED})

    @property
    def balanced(self) -> bool:
        """Whether it accounts for each record."""
        known = self.accepted + self.declined + self.rejected + self.evicted + self.lost + self.pending
        return self.recorded == known


_STORES: Final = {"product": "VARCHAR", "source": "VARCHAR"}


def reconcile(rows: Sequence[LedgerRow], deleted: Collection[str], question: Question) -> Answer:
    """Each store's account beside what is here of its sessions; `missing` are records accepted and not here.

    Of the products in `deleted` some was deleted for its age, so nobody can tell what is missing.
    """
    here = {(row["product"], row["source"]): row for row in _here(rows, question)} if rows else {}
    return {"stores": [_beside(row, here.get((row.product, row.source)), row.product in deleted) for row in rows]}


def _beside(row: LedgerRow, here: Mapping[str, Any] | None, deleted: bool) -> Answer:  # noqa: FBT001 - one of three facts
    said = Account.of(row.ledger)
    found = {name: int(here[name]) if here else 0 for name in ("sessions", "records", "declined", "rejected")}
    return {
        "product": row.product,
        "source": row.source,
        "installation": here["installation"] if here else "",
        "agent": row.agent,
        "updated": row.updated,
        "said": {
            name: getattr(said, name)
            for name in ("recorded", "accepted", "declined", "rejected", "evicted", "lost", "pending")
        },
        "here": found,
        "balanced": said.balanced,
        "missing": None if deleted else max(0, said.accepted - found["records"]),
    }


def _here(rows: Sequence[LedgerRow], question: Question) -> list[Answer]:
    """By store: the sessions known of, and records by what became of them; gaps in segments count as here."""
    stores = encode([{"product": row.product, "source": row.source} for row in rows]).decode()
    return question.rows(
        f"""
        WITH s AS (SELECT product, session_id, source, state, records, started, nullif(installation, '') AS installation
                   FROM session JOIN {given(_STORES)} USING (product, source)),
             l AS (SELECT product, session_id, sum(records)::BIGINT AS records FROM loaded
                   SEMI JOIN s USING (product, session_id) GROUP BY ALL),
             g AS (SELECT product, session_id, sum(records) AS gone FROM gap
                   SEMI JOIN s USING (product, session_id) GROUP BY ALL)
        SELECT product, source, count(*) AS sessions,
               coalesce(arg_max(installation, started), '') AS installation,
               {claimed("coalesce(l.records, 0) + coalesce(g.gone, 0)")} AS records,
               {claimed("s.records", "state = 'declined'")} AS declined,
               {claimed("s.records", "state = 'rejected'")} AS rejected
        FROM s LEFT JOIN l USING (product, session_id) LEFT JOIN g USING (product, session_id)
        GROUP BY product, source
        """,
        {"rows": stores},
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0


def _sum(value: object) -> int:
    return sum(map(_whole, value.values())) if isinstance(value, Mapping) else _whole(value)
