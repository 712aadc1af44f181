"""The stores that one sender serves: its application's own, or those of all applications of the product.

A store is sent by whoever holds its lock (`Store.become_sender`). A sender for all applications holds a lock of the
product besides, so that there is one of them, and the lock of each application's store, as far as no other process has
it: that one sends for it then, and the sender for all takes over when it is gone. So nothing is ever sent twice.

All functions block; they are called on the store's thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mailboat.agent.ended import Waiting
from mailboat.agent.ledger import Ending, LedgerFile
from mailboat.agent.locks import take_lock
from mailboat.agent.log import log
from mailboat.agent.store import LIVE, SENDER_LOCK, WAITING, Found, Store

OWN: Final = ""
"""The owner of sessions in the application's own store; that of others is named as their store's folder."""

MOST: Final = 200
"""Applications of one product that are served; a machine has a few."""


class Stores:
    """Found anew with each `become_sender`."""

    def __init__(self, own: Store, *, everyones: bool = False) -> None:
        """`own` is the application's; with `everyones`, those of all applications of its product are served."""
        self.own = own
        self._everyones = everyones
        self._lock_fd: int | None = None
        self._others: dict[str, Store] = {}
        self._owners: dict[str, Store] = {}

    @property
    def served(self) -> Sequence[Store]:
        """The stores that this process sends for now."""
        return [store for store in (self.own, *self._others.values()) if store.sending]

    @property
    def ledgers(self) -> Mapping[str, LedgerFile]:
        """The accounts of sessions that ended: those of the stores that are served, by owner, as this process keeps
        them; while none is, the own one as its file says.
        """
        served = {self._owner(store): store.ledger for store in self.served}
        return served or {OWN: LedgerFile(self.own.files, self.own.folder)}

    @property
    def owners(self) -> Mapping[str, str]:
        """Where the sessions lie that the last `look` has found in other stores than the own one."""
        return {session_id: self._owner(store) for session_id, store in self._owners.items()}

    def _owner(self, store: Store) -> str:
        return OWN if store is self.own else store.folder.name

    def become_sender(self, new_id: Callable[[], str] | None = None) -> bool:
        """Try to be the process that sends; True once it is for one store at least. `new_id` names a store that has
        no name yet.

        Raises `OSError`, if it is for the application's own store.
        """
        if self._everyones and not self._lead():
            return False
        self.own.become_sender()
        if self._everyones:
            self._join_others()
        if new_id is not None:
            for store in self.served:
                store.ledger.name(new_id())
        return bool(self.served)

    def _lead(self) -> bool:
        """Be the one sender for all applications of the product."""
        files, lock = self.own.files, self.own.folder.parent / SENDER_LOCK
        if self._lock_fd is not None and not files.same_file(self._lock_fd, lock):
            self._let_others_lead()  # it was deleted: somebody else may lead by now
        if self._lock_fd is None:
            self._lock_fd = take_lock(files, lock)
        return self._lock_fd is not None

    def _let_others_lead(self) -> None:
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            self.own.files.close(fd)

    def _join_others(self) -> None:
        product = self.own.folder.parent
        for name in self.own.files.names(product)[:MOST]:
            folder = product / name
            if folder == self.own.folder:
                continue
            try:
                if name not in self._others and {LIVE, WAITING} <= set(self.own.files.names(folder)):
                    self._others[name] = Store.at(self.own.files, folder)
                if name in self._others:
                    self._others[name].become_sender()
            except OSError as error:
                log.info("sessions in %s cannot be sent by this process: %s", folder, error)

    def cease_sending(self) -> None:
        """Leave the place of the sender to others, for all stores."""
        for store in (self.own, *self._others.values()):
            store.cease_sending()
        self._let_others_lead()

    def look(self) -> Found:
        """The sessions that wait in the stores that are served; in the own one alone, where none is."""
        waiting: list[Waiting] = []
        unreadable: dict[str, str] = {}
        owners: dict[str, Store] = {}
        for store in self.served or (self.own,):
            try:
                found = store.look()
            except OSError as error:
                if store is self.own:
                    raise
                log.info("sessions in %s cannot be looked at: %s", store.folder, error)
                continue
            waiting += found.waiting
            unreadable.update(found.unreadable)
            if store is not self.own:
                owners.update(dict.fromkeys((each.summary.session_id for each in found.waiting), store))
                owners.update(dict.fromkeys(found.unreadable, store))
        self._owners = owners
        return Found(tuple(waiting), unreadable)

    def enter(self, endings: Sequence[Ending]) -> None:
        """See `Store.enter`."""
        for store, some in self._by_store(endings).items():
            store.enter(some)

    def put_away(self, endings: Sequence[Ending], *, purge: bool) -> None:
        """See `Store.put_away`."""
        for store, some in self._by_store(endings).items():
            store.put_away(some, purge=purge)

    def _by_store(self, endings: Sequence[Ending]) -> Mapping[Store, list[Ending]]:
        by_store: dict[Store, list[Ending]] = defaultdict(list)
        for ending in endings:
            by_store[self._owners.get(ending.session_id, self.own)].append(ending)
        return by_store

    def set_aside(self, ending: Ending) -> Ending | None:
        """See `Store.set_aside`."""
        return self._owners.get(ending.session_id, self.own).set_aside(ending)

    def take_back(self, session_ids: Sequence[str]) -> list[str]:
        """Let declined sessions wait again, as far as they are still kept; returns those that do. Raises `OSError`."""
        return [each for each in session_ids if any(store.take_back(each) for store in self.served)]

    def receipt(self, session_id: str) -> Ending | None:
        """See `Store.receipt`."""
        said = (store.receipt(session_id) for store in (self.own, *self._others.values()))
        return next((each for each in said if each is not None), None)
