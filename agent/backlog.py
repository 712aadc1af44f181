"""The backlog: what waits in the store, as last seen, and the account of all records made of it.

The sums are kept, not worked out anew, so that a status costs the same whether ten sessions wait or ten thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mailboat.agent.ledger import Ledger, LedgerFile, together
from mailboat.agent.store import Found
from mailboat.agent.stores import Stores
from mailboat.protocol.summary import Summary


@dataclass(frozen=True, slots=True)
class Running:
    """The session of this process, also for a while after its end: its records so far, and those it has `lost`."""

    session_id: str
    recorded: int
    lost: Mapping[str, int]


def read(stores: Stores) -> tuple[Found, Sequence[LedgerFile]]:
    """Look into the stores; blocks. The ledgers are this process's own while it sends, else as the file says."""
    own = stores.own
    return stores.look(), stores.ledgers or [LedgerFile(own.files, own.folder)]


class Backlog:
    """Sessions that wait, and where every record stands."""

    def __init__(self, running: Callable[[], Running | None]) -> None:
        """`running` gives the session of this process, None when there is none."""
        self._running = running
        self._files: Sequence[LedgerFile] = ()
        self._waiting: dict[str, Summary] = {}
        self._gone: set[str] = set()
        self._lost: Counter[str] = Counter()
        self.bytes = 0
        self._records = 0

    @property
    def sessions(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __contains__(self, session_id: str) -> bool:
        """Whether this session waits."""
        return session_id in self._waiting

    def seen(self, found: Found, files: Sequence[LedgerFile]) -> None:
        """Take what `read` gave."""
        self._files = files
        self._gone -= {waiting.summary.session_id for waiting in found.waiting}
        self._waiting.clear()
        self._lost.clear()
        self.bytes = self._records = 0
        for waiting in found.waiting:
            self._add(waiting.summary, 1)

    def ended(self, session_ids: Iterable[str]) -> None:
        """These sessions have come to an end, and are in the ledger."""
        for session_id in session_ids:
            self._gone.add(session_id)
            if session_id in self._waiting:
                self._add(self._waiting[session_id], -1)

    def _add(self, summary: Summary, sign: int) -> None:
        if sign > 0:
            self._waiting[summary.session_id] = summary
        else:
            del self._waiting[summary.session_id]
        self.bytes += sign * summary.size
        self._records += sign * summary.records
        for reason, count in summary.lost.items():
            self._lost[reason] += sign * count

    @property
    def ledger(self) -> Ledger:
        """The account as it stands, the session of this process included."""
        pending, lost, running = self._records, self._lost, self._running()
        if running is not None and running.session_id not in self._waiting and running.session_id not in self._gone:
            pending += running.recorded
            lost = lost + Counter(running.lost)
        if not self._files:
            return Ledger(pending=pending, lost=dict(lost))
        own, *others = self._files
        return together([own.account(pending, lost), *(each.account(0, {}) for each in others)])
