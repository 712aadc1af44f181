"""The backlog: what waits in the store, as last seen, and the account of all records made of it.

The sums are kept, not worked out anew, so that a status costs the same whether ten sessions wait or ten thousand. And
what the ledgers say is kept as it was when that was seen: a session goes from those that wait to those that are entered
in one step here, while the ledger's file is written, and the folders are moved, in another thread and for longer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct, field

from mailboat.agent.ledger import RETURNED, Ending, Entered, Ledger, LedgerFile, together
from mailboat.agent.store import Found
from mailboat.agent.stores import OWN, Stores
from mailboat.protocol.summary import Summary


class Running(Struct, frozen=True):
    """The session of this process, also for a while after its end: its records so far, but for those it has `lost`."""

    session_id: str
    recorded: int
    lost: Mapping[str, int]


class Sums(Struct):
    """What the sessions that wait in one store add up to."""

    records: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, summary: Summary) -> None:
        """One more."""
        self.records += summary.records
        if summary.lost:
            self.lost.update(summary.lost)

    def take_away(self, summary: Summary) -> None:
        """One less."""
        self.records -= summary.records
        if summary.lost:
            self.lost.subtract(summary.lost)


class Look:
    """What there is in the stores, and what it adds up to. Adding up ten thousand sessions takes longer than an event
    loop has time for, so a look is made where blocking is allowed.

    `owners` tells where a session lies that is not in the own store; `ledgers` and `sums` are by owner; `unreadable`
    as it was found. What is entered in a ledger, and could not be moved yet, waits no more.
    """

    def __init__(self, found: Found, ledgers: Mapping[str, LedgerFile], owners: Mapping[str, str]) -> None:
        self.unreadable, self.owners = found.unreadable, owners
        self.ledgers = {owner: ledger.entered for owner, ledger in ledgers.items()}
        entered = {each for ledger in ledgers.values() for each, fate in ledger.unmoved.items() if fate != RETURNED}
        waiting = [each for each in found.waiting if each.summary.session_id not in entered]
        self.summaries = {each.summary.session_id: each.summary for each in waiting}
        self.homes = {each.summary.session_id: each.home for each in waiting}
        self.bytes = sum(summary.size for summary in self.summaries.values())
        self.sums = {owner: Sums() for owner in (OWN, *ledgers, *self.owners.values())}
        for summary in self.summaries.values():
            self.sums[self.owners.get(summary.session_id, OWN)].add(summary)


def read(stores: Stores) -> Look:
    """Look into the stores; blocks."""
    return Look(stores.look(), stores.ledgers, stores.owners)


class Backlog:
    """Sessions that wait, and where every record stands."""

    def __init__(self, running: Callable[[], Running | None]) -> None:
        """`running` gives the session of this process, None when there is none."""
        self._running = running
        self._ledgers: dict[str, Entered] = {}
        self._owners: Mapping[str, str] = {}
        self._sums: Mapping[str, Sums] = {OWN: Sums()}
        self._waiting: dict[str, Summary] = {}
        self._gone: set[str] = set()
        self.bytes = 0

    @property
    def sessions(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __contains__(self, session_id: str) -> bool:
        """Whether this session waits."""
        return session_id in self._waiting

    def seen(self, look: Look) -> None:
        """Take over what `read` gave; its sums are kept from here on."""
        self._ledgers, self._owners, self._sums = look.ledgers, look.owners, look.sums
        self._waiting, self.bytes = look.summaries, look.bytes
        self._gone -= self._waiting.keys() & self._gone

    def joined(self, summary: Summary) -> None:
        """The session of this process has ended, and waits from now on, until it is seen."""
        if summary.session_id not in self._waiting:
            self._waiting[summary.session_id] = summary
            self.bytes += summary.size
            self._sums[OWN].add(summary)

    def ended(self, endings: Iterable[Ending]) -> None:
        """These sessions have come to an end, and are in the ledger."""
        running = self._running()
        self.entered([ending for ending in endings if self._waits_no_more(ending.session_id, running)])

    def _waits_no_more(self, session_id: str, running: Running | None) -> bool:
        """Whether it was among those that wait; else it was in the ledger when that was seen."""
        if running is not None and running.session_id == session_id:
            self._gone.add(session_id)
        summary = self._waiting.pop(session_id, None)
        if summary is None:
            return False
        self.bytes -= summary.size
        self._sums[self._owners.get(session_id, OWN)].take_away(summary)
        return True

    def entered(self, endings: Iterable[Ending]) -> None:
        """These sessions, which did not wait, or do no more, have been entered into the ledger since that was seen."""
        by_owner: dict[str, list[Ending]] = defaultdict(list)
        for ending in endings:
            by_owner[self._owners.get(ending.session_id, OWN)].append(ending)
        for owner, some in by_owner.items():
            self._ledgers[owner] = self._ledgers.get(owner, Entered()).following(some)

    @property
    def ledger(self) -> Ledger:
        """The account of all stores that are served, the session of this process included."""
        return together([self.account(owner) for owner in self._ledgers or (OWN,)])

    def account(self, owner: str) -> Ledger:
        """The account of one store as it stands, in the own one the session of this process included."""
        sums, running = self._sums[owner], self._running()
        pending, lost = sums.records, sums.lost
        if owner == OWN and running is not None and not self._counted(running.session_id):
            pending += running.recorded
            lost = Counter(lost) + Counter(running.lost)  # a copy first: another thread than the loop's may ask
        if owner not in self._ledgers:
            return Ledger(pending=pending, lost=dict(lost))
        return self._ledgers[owner].account(pending, lost)

    def _counted(self, session_id: str) -> bool:
        return session_id in self._waiting or session_id in self._gone
