"""The ledger: what became of every record that was ever taken.

    recorded = accepted + declined + rejected(reason) + evicted(reason) + lost(reason) + pending

Sessions that reached their end are summed up in one file; what is pending is counted from the store's folders, so it
cannot disagree with them. A batch of endings is first written into the ledger together with the moves it asks for,
then the folders are moved; a crash in between leaves moves that the next opening of the store completes. So nothing
is counted twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mailboat.agent.files import TEMPORARY, FileSystem

FILE_NAME: Final = "ledger.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Ledger:
    """Records by what became of them. `rejected`, `evicted` and `lost` are by reason."""

    accepted: int = 0
    declined: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    evicted: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0

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
        }


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one session: `fate` is accepted, declined, rejected or evicted. `lost` records never reached a
    segment.
    """

    session_id: str
    fate: str
    reason: str
    records: int
    lost: Mapping[str, int] = field(default_factory=dict)


class LedgerFile:
    """The sums of a store, in one small file. Used by the process that holds the sender lock alone."""

    def __init__(self, files: FileSystem, folder: Path) -> None:
        """The ledger of the store at `folder`; a file that is missing or damaged starts at zero."""
        self._files = files
        self._path = folder / FILE_NAME
        self.damaged = False
        self._sums: Counter[tuple[str, str]] = Counter()
        self.unmoved: dict[str, str] = {}
        self._read()

    def _read(self) -> None:
        try:
            values = json.loads(self._files.read(self._path))
            sums = {tuple(key.split("/", 1)): int(count) for key, count in values["sums"].items()}
            moves = {str(session_id): str(fate) for session_id, fate in values["moves"].items()}
            self._sums = Counter({(fate, reason): max(count, 0) for (fate, reason), count in sums.items()})
            self.unmoved = moves
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            self.damaged = True

    def clean_up(self) -> None:
        """Delete what a writer that was killed has left. Raises `OSError`."""
        for name in self._files.names(self._path.parent):
            if name.startswith(FILE_NAME) and name.endswith(TEMPORARY):
                self._files.remove(self._path.with_name(name))

    def add(self, endings: Iterable[Ending], unmoved: Mapping[str, str] | None = None) -> None:
        """Count sessions that ended, durably; their folders may be moved after this. `unmoved` are those counted
        before whose folders are still to be moved. Raises `OSError`; nothing is counted then.
        """
        endings = tuple(endings)
        sums = Counter(self._sums)
        for ending in endings:
            sums[ending.fate, ending.reason] += ending.records
            sums.update({("lost", reason): count for reason, count in ending.lost.items()})
        moves = {**(unmoved or {}), **{ending.session_id: ending.fate for ending in endings}}
        values = {"version": _VERSION, "sums": {"/".join(key): n for key, n in sums.items()}, "moves": moves}
        self._files.replace_content(self._path, json.dumps(values).encode())
        self._sums, self.unmoved = sums, moves

    def account(self, pending: int, lost: Mapping[str, int]) -> Ledger:
        """The account with `pending` records still in the store and those `lost` by the running session."""
        by_fate: dict[str, Counter[str]] = {}
        for (fate, reason), count in self._sums.items():
            by_fate.setdefault(fate, Counter())[reason] += count
        return Ledger(
            accepted=by_fate.get("accepted", Counter()).total(),
            declined=by_fate.get("declined", Counter()).total(),
            rejected=dict(by_fate.get("rejected", {})),
            evicted=dict(by_fate.get("evicted", {})),
            lost=dict(by_fate.get("lost", Counter()) + Counter(lost)),
            pending=pending,
        )
