"""The store against dictionaries: sessions begun, recorded, ended, killed, recovered, sent, declined, put aside and
given up, by two processes and in any order. Each is in one place, whole, and the account is that of the dictionaries.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mailboat.agent.eviction import evict_as_sender
from mailboat.agent.ledger import ACCEPTED, DECLINED, QUARANTINED, Ending
from mailboat.agent.quota import Quota
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.store import LIVE, NEW, SENT, WAITING, Store
from mailboat.agent.writer import WriterSettings
from testkit.guard import Guarded
from testkit.recording import BOOT, Rig, Time, read_session

ASIDE = "quarantined"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""No test of what survives the machine, and a thousand folders to be made and deleted."""


@dataclass
class Known:
    """What a session was told, and where it must be."""

    place: str
    names: list[str] = field(default_factory=list)
    errors: bool = False
    fate: str = ""


class StoreMachine(RuleBasedStateMachine):
    """`known` and `account` are the model; two `Store`s are two processes."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mailboat-model-", dir=MEMORY))
        self.time = Time()
        self.stores = [self._store() for _ in range(2)]
        self.stores[0].open()
        self.rigs: dict[str, Rig] = {}
        self.known: dict[str, Known] = {}
        self.account: Counter[str] = Counter()

    def _store(self) -> Store:
        return Store(self._files(), self.root, "product", "application")

    def _files(self) -> Guarded:
        return Guarded(self.root)

    def at(self, place: str) -> list[str]:
        return sorted(session for session, known in self.known.items() if known.place == place)

    # -- sessions that run ---------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.rigs) < 3)
    @rule(segment_bytes=st.sampled_from([1, 500, 10**6]))
    def begin(self, segment_bytes: int) -> None:
        self.time.pass_seconds(1.0)
        settings = WriterSettings(segment_bytes=segment_bytes)
        rig = Rig(self.root, files=self._files(), time=self.time, settings=settings)
        self.rigs[rig.id], self.known[rig.id] = rig, Known(LIVE)

    @precondition(lambda self: self.rigs)
    @rule(data=st.data(), count=st.integers(1, 30), error=st.booleans())
    def record(self, data: st.DataObject, count: int, error: bool) -> None:
        session, rig = self._running(data)
        known = self.known[session]
        for _ in range(count):
            known.names.append(f"r{len(known.names)}")
            rig.recorder.event(known.names[-1], level=40 if error else 20)
        known.errors |= error

    @precondition(lambda self: self.rigs)
    @rule(data=st.data(), what=st.sampled_from(["flush", "durable", "step"]))
    def write(self, data: st.DataObject, what: str) -> None:
        _, rig = self._running(data)
        if what == "step":
            rig.step(7.0)
        else:
            assert rig.flush(durable=what == "durable", seconds=1.0)

    @precondition(lambda self: self.rigs)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        session, rig = self._running(data)
        assert rig.end()
        del self.rigs[session]
        self.known[session].place = WAITING

    @precondition(lambda self: self.rigs)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        session, rig = self._running(data)
        rig.let_go()
        del self.rigs[session]

    def _running(self, data: st.DataObject) -> tuple[str, Rig]:
        session = data.draw(st.sampled_from(sorted(self.rigs)))
        return session, self.rigs[session]

    # -- and their ends ------------------------------------------------------------------------------------------

    @rule(process=st.integers(0, 1))
    def recover(self, process: int) -> None:
        store = self.stores[process]
        store.sweep()
        taken = []
        for session in store.crashed():
            taken.append(session.path.name)
            assert bring_to_rest(store, session, BOOT) is None
        assert sorted(taken) == sorted(set(self.at(LIVE)) - set(self.rigs))
        for name in taken:
            self.known[name].place = WAITING

    @rule(process=st.integers(0, 1))
    def send(self, process: int) -> None:
        other = self.stores[1 - process]
        assert self.stores[process].become_sender() is (not other.sending)

    @rule(process=st.integers(0, 1))
    def cease(self, process: int) -> None:
        self.stores[process].cease_sending()

    @precondition(lambda self: self._sender() is not None and self.at(WAITING))
    @rule(data=st.data(), fate=st.sampled_from([ACCEPTED, DECLINED]), purge=st.booleans(), twice=st.booleans())
    def finish(self, data: st.DataObject, fate: str, purge: bool, twice: bool) -> None:
        sessions = data.draw(st.lists(st.sampled_from(self.at(WAITING)), min_size=1, max_size=3, unique=True))
        endings = [Ending(each, fate, "", len(self.known[each].names)) for each in sessions]
        for _ in range(1 + twice):
            self._sending().finish(endings, purge=purge)
        self._entered(sessions, fate, None if purge else SENT)

    @precondition(lambda self: self._sender() is not None and self.at(WAITING))
    @rule(data=st.data(), fate=st.sampled_from([ACCEPTED, DECLINED]))
    def killed_between_ledger_and_move(self, data: st.DataObject, fate: str) -> None:
        """The next sender completes the move, and counts nothing twice."""
        session = data.draw(st.sampled_from(self.at(WAITING)))
        store = self._sending()
        store.ledger.add([Ending(session, fate, "", len(self.known[session].names))], store._still_unmoved())
        store.cease_sending()
        place = self.stores.index(store)
        self.stores[place] = self._store()
        assert self.stores[1 - place].become_sender()
        self._entered([session], fate, SENT)

    @precondition(lambda self: self._sender() is not None and self.at(WAITING))
    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.at(WAITING)))
        self._sending().set_aside(Ending(session, QUARANTINED, "poison", len(self.known[session].names)))
        self._entered([session], QUARANTINED, ASIDE)

    @precondition(lambda self: self._sender() is not None and self.at(SENT))
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.at(SENT)))
        declined = self.known[session].fate == DECLINED
        assert self._sending().take_back(session) is declined
        if declined:
            self.account[DECLINED] -= len(self.known[session].names)
            self.known[session].place = WAITING

    @rule(process=st.integers(0, 1), share=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    def evict(self, process: int, share: float) -> None:
        """Nothing that runs goes; of the rest, in the order of the quotas, as much as must."""
        store, limit = self.stores[process], max(1, int(self._bytes() * share))
        relief = evict_as_sender(store, Quota(limit, 1e12, 0), self.time.clocks.wall() / 1e9)
        there = {place: set(store.files.names(store.folder / place)) for place in (SENT, ASIDE, WAITING)}
        gone = {place: [each for each in self.at(place) if each not in names] for place, names in there.items()}
        assert sum(map(len, gone.values())) == sum(relief.evicted.values())
        if self.stores[1 - process].sending:
            assert relief.evicted == {}
        elif share < 1.0:
            assert self._bytes() <= limit or not any(there.values())
        else:
            assert relief.evicted == {}
        by_standing = [gone[SENT], gone[ASIDE], *self._by_errors(gone[WAITING])]
        left = [there[SENT], there[ASIDE], *self._by_errors(there[WAITING])]
        last = max((at for at, some in enumerate(by_standing) if some), default=0)
        assert not any(left[:last]), "what is of less account goes first"
        for session in gone[WAITING]:
            self.account["evicted"] += len(self.known[session].names)
        for session in [each for some in gone.values() for each in some]:
            self.known[session].place = ""

    def _by_errors(self, sessions: Iterable[str]) -> list[list[str]]:
        return [[each for each in sessions if self.known[each].errors is errors] for errors in (False, True)]

    def _bytes(self) -> int:
        found = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return sum(path.stat().st_size for path in found if path.suffix == ".zst")

    def _sender(self) -> Store | None:
        return next((store for store in self.stores if store.sending), None)

    def _sending(self) -> Store:
        store = self._sender()
        assert store is not None
        return store

    def _entered(self, sessions: list[str], fate: str, place: str | None) -> None:
        for session in sessions:
            known = self.known[session]
            self.account[fate] += len(known.names)
            known.place, known.fate = place or "", fate

    # -- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def each_session_is_in_one_place(self) -> None:
        files, folder = self.stores[0].files, self.stores[0].folder
        for place in (LIVE, WAITING, SENT, ASIDE):
            assert sorted(files.names(folder / place)) == self.at(place)
        assert list(files.names(folder / NEW)) == []

    @invariant()
    def what_waits_is_told_in_sum(self) -> None:
        for store in self.stores:
            found = store.look()
            assert found.unreadable == {}
            records = {each.summary.session_id: each.summary.records for each in found.waiting}
            assert records == {session: len(self.known[session].names) for session in self.at(WAITING)}

    @invariant()
    def the_account_is_right(self) -> None:
        store = self._sender()
        if store is None:
            return
        account = store.ledger.account(0, {})
        counts = self.account
        assert (account.accepted, account.declined) == (counts[ACCEPTED], counts[DECLINED])
        assert sum(account.rejected.values()) == counts[QUARANTINED]
        assert sum(account.evicted.values()) == counts["evicted"]

    def teardown(self) -> None:
        """Each session that is there holds, whole, what it was told."""
        try:
            for place in (WAITING, SENT, ASIDE):
                for session in self.at(place):
                    story = read_session(self.stores[0].folder / place / session)
                    assert (story.names, story.gaps) == (self.known[session].names, [])
        finally:
            for rig in self.rigs.values():
                rig.let_go()
            for store in self.stores:
                store.cease_sending()
            shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = hypothesis.settings(
    max_examples=max(200, hypothesis.settings().max_examples),
    stateful_step_count=50,
    suppress_health_check=list(hypothesis.HealthCheck),
)
