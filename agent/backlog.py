"""The backlog: what waits in the store, as last seen, and the account of all records made of it.

The sums are kept, not worked out anew, so that a status costs the same whether ten sessions wait or ten thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from mailboat.agent.ledger import Ledger, LedgerFile, together
from mailboat.agent.store import Found
from mailboat.agent.stores import Stores
from mailboat.protocol.summary import Summary


class Running(Struct, frozen=True):
    """The session of this process, also for a while after its end: its records so far, and those it has `lost`."""

    session_id: str
    recorded: int
    lost: Mapping[str, int]


class Look:
    """What there is in the stores, and what it adds up to. Adding up ten thousand sessions takes longer than an event
    loop has time for, so a look is made where blocking is allowed.
    """

    def __init__(self, found: Found, ledgers: Sequence[LedgerFile]) -> None:
        self.found, self.ledgers = found, ledgers
        self.summaries = {each.summary.session_id: each.summary for each in found.waiting}
        self.folders = {each.summary.session_id: each.path for each in found.waiting}
        self.bytes = sum(summary.size for summary in self.summaries.values())
        self.records = sum(summary.records for summary in self.summaries.values())
        self.lost: Counter[str] = Counter()
        for summary in self.summaries.values():
            if summary.lost:
                self.lost.update(summary.lost)


def read(stores: Stores) -> Look:
    """Look into the stores; blocks. The ledgers are this process's own while it sends, else as the file says."""
    own = stores.own
    return Look(stores.look(), stores.ledgers or [LedgerFile(own.files, own.folder)])


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

    def seen(self, look: Look) -> None:
        """Take what `read` gave."""
        self._files = look.ledgers
        self._waiting, self._lost = dict(look.summaries), look.lost.copy()
        self._gone -= self._waiting.keys() & self._gone
        self.bytes, self._records = look.bytes, look.records

    def ended(self, session_ids: Iterable[str]) -> None:
        """These sessions have come to an end, and are in the ledger."""
        running = self._running()
        for session_id in session_ids:
            if running is not None and running.session_id == session_id:
                self._gone.add(session_id)
            summary = self._waiting.pop(session_id, None)
            if summary is not None:
                self.bytes -= summary.size
                self._records -= summary.records
                self._lost.subtract(summary.lost)

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
