"""The ledger: what became of every record that was ever taken.

    recorded = accepted + declined + rejected(reason) + evicted(reason) + lost(reason) + pending

Sessions that reached their end are summed up in one file; what is pending is counted from the store's folders, so it
cannot disagree with them. A batch of endings is first written into the ledger together with the moves it asks for,
then the folders are moved; a crash in between leaves moves that the next opening of the store completes. So nothing
is counted twice. A session that the server asks for again is taken out of the account in the same way: the move back
to those that wait has the fate `RETURNED`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field

from mailboat.agent.files import TEMPORARY, FileSystem

FILE_NAME: Final = "ledger.json"
ACCEPTED, DECLINED, REJECTED, EVICTED, LOST = "accepted", "declined", "rejected", "evicted", "lost"
QUARANTINED: Final = "quarantined"
RETURNED: Final = "returned"
"""The move of a session that was declined, and is asked for after all."""

_VERSION: Final = 1


class Ledger(Struct, frozen=True):
    """Records by what became of them. `rejected`, `evicted` and `lost` are by reason.

    `store` tells whose account this is: an id that a store has for good, and nobody else.
    """

    accepted: int = 0
    declined: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    evicted: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    store: str = ""

    @property
    def recorded(self) -> int:
        """All of them."""
        reasons = (self.rejected, self.evicted, self.lost)
        return self.accepted + self.declined + self.pending + sum(sum(each.values()) for each in reasons)

    def to_wire(self) -> dict[str, Any]:
        """The account as a map of plain values."""
        return {
            "recorded": self.recorded,
            "accepted": self.accepted,
            "declined": self.declined,
            "rejected": dict(self.rejected),
            "evicted": dict(self.evicted),
            "lost": dict(self.lost),
            "pending": self.pending,
            "store": self.store,
        }


def together(ledgers: Sequence[Ledger]) -> Ledger:
    """One account of several stores; of one, that one."""
    if len(ledgers) == 1:
        return ledgers[0]
    by_reason: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for each in ledgers:
        for sums, counts in zip(by_reason, (each.rejected, each.evicted, each.lost), strict=True):
            sums.update(counts)
    rejected, evicted, lost = map(dict, by_reason)
    return Ledger(
        accepted=sum(each.accepted for each in ledgers),
        declined=sum(each.declined for each in ledgers),
        rejected=rejected,
        evicted=evicted,
        lost=lost,
        pending=sum(each.pending for each in ledgers),
    )


class Ending(Struct, frozen=True):
    """What became of one session: `fate` is accepted, declined, rejected, evicted, quarantined or lost. `lost` records
    never reached a segment. `why` says it for people, where the reason does not.

    Quarantined is a session that the server could not be made to take. In the account it is one that was rejected: it
    will not arrive, though nothing of it is deleted.
    """

    session_id: str
    fate: str
    reason: str
    records: int
    lost: Mapping[str, int] = field(default_factory=dict)
    why: str = ""


class Entered(Struct, frozen=True):
    """What a ledger says at one moment: records by fate and reason, and whose account it is."""

    sums: Counter[tuple[str, str]] = field(default_factory=Counter)
    store: str = ""

    def following(self, endings: Iterable[Ending]) -> Entered:
        """What it says once these sessions are entered, too."""
        sums = Counter(self.sums)
        for ending in endings:
            sums[_place(ending)] += ending.records
            sums.update({("lost", reason): count for reason, count in ending.lost.items()})
        return Entered(sums, self.store)

    def account(self, pending: int, lost: Mapping[str, int]) -> Ledger:
        """The account with `pending` records still in the store and those `lost` by the running session."""
        by_fate: dict[str, Counter[str]] = {}
        for (fate, reason), count in self.sums.items():
            by_fate.setdefault(fate, Counter())[reason] += count
        return Ledger(
            accepted=by_fate.get("accepted", Counter()).total(),
            declined=by_fate.get("declined", Counter()).total(),
            rejected=dict(by_fate.get("rejected", {})),
            evicted=dict(by_fate.get("evicted", {})),
            lost=dict(by_fate.get("lost", Counter()) + Counter(lost)),
            pending=pending,
            store=self.store,
        )


class LedgerFile:
    """The sums of a store, in one small file. Used by the process that holds the sender lock alone."""

    def __init__(self, files: FileSystem, folder: Path) -> None:
        """The ledger of the store at `folder`; a file that is missing or damaged starts at zero."""
        self._files = files
        self._path = folder / FILE_NAME
        self.damaged = False
        self.there = True
        self.store = ""
        self._sums: Counter[tuple[str, str]] = Counter()
        self.unmoved: dict[str, str] = {}
        self._read()

    @classmethod
    def found(cls, files: FileSystem, folder: Path, known: LedgerFile | None) -> LedgerFile:
        """The ledger of the store at `folder`. Where its file was deleted, it is written again as this process has
        `known` it. Raises `OSError`.
        """
        found = cls(files, folder)
        return found if known is None or found.there or not known.write_again() else known

    def write_again(self) -> bool:
        """Write it as it is known here, if anything is. Raises `OSError`."""
        if self._sums or self.store:
            self._keep(self._sums, self.unmoved)
            return True
        return False

    def _read(self) -> None:
        try:
            values = json.loads(self._files.read(self._path))
            sums = {tuple(key.split("/", 1)): int(count) for key, count in values["sums"].items()}
            moves = {str(session_id): str(fate) for session_id, fate in values["moves"].items()}
            self._sums = Counter({(fate, reason): max(count, 0) for (fate, reason), count in sums.items()})
            self.unmoved = moves
            self.store = str(values.get("store", ""))
        except FileNotFoundError:
            self.there = False
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.damaged = True

    def clean_up(self) -> None:
        """Delete what a writer that was killed has left. Raises `OSError`."""
        for name in self._files.names(self._path.parent):
            if name.startswith(FILE_NAME) and name.endswith(TEMPORARY):
                self._files.remove(self._path.with_name(name))

    def name(self, store: str) -> None:
        """Give the store its id, durably, unless it has one. Raises `OSError`; it has none then."""
        if not self.store:
            self.store = store
            try:
                self._keep(self._sums, self.unmoved)
            except OSError:
                self.store = ""
                raise

    def add(self, endings: Iterable[Ending], unmoved: Mapping[str, str] | None = None) -> None:
        """Count sessions that ended, durably; their folders may be moved after this. `unmoved` are those counted
        before whose folders are still to be moved. Raises `OSError`; nothing is counted then.
        """
        endings = tuple(endings)
        sums = self.entered.following(endings).sums
        self._keep(sums, {**(unmoved or {}), **{ending.session_id: ending.fate for ending in endings}})

    def take_back(self, ending: Ending, unmoved: Mapping[str, str]) -> None:
        """Undo what `add` did for one session, durably; its folder may be moved back after this. Raises `OSError`."""
        sums = Counter(self._sums)
        sums[_place(ending)] = max(0, sums[_place(ending)] - ending.records)
        for reason, count in ending.lost.items():
            sums["lost", reason] = max(0, sums["lost", reason] - count)
        self._keep(sums, {**unmoved, ending.session_id: RETURNED})

    def _keep(self, sums: Counter[tuple[str, str]], moves: dict[str, str]) -> None:
        values = {
            "version": _VERSION,
            "store": self.store,
            "sums": {"/".join(key): count for key, count in sums.items()},
            "moves": moves,
        }
        self._files.replace_content(self._path, json.dumps(values).encode())
        self._sums, self.unmoved = sums, moves

    @property
    def entered(self) -> Entered:
        """What it says now."""
        return Entered(self._sums, self.store)

    def account(self, pending: int, lost: Mapping[str, int]) -> Ledger:
        """See `Entered.account`."""
        return self.entered.account(pending, lost)


def _place(ending: Ending) -> tuple[str, str]:
    """Under which fate and reason its records are counted."""
    return (REJECTED, QUARANTINED) if ending.fate == QUARANTINED else (ending.fate, ending.reason)
