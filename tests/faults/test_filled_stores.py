"""A store that is filled three times over while a session runs: it keeps to its quota, the running session stays whole,
and every record that was ever taken is accounted for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from mailboat.agent.eviction import evict_as_sender
from mailboat.agent.ledger import ACCEPTED, DECLINED, QUARANTINED, Ending
from mailboat.agent.quota import Quota
from mailboat.agent.store import LIVE, WAITING, Store
from testkit.disk import Unsynced
from testkit.recording import Rig, Time, read_session

QUOTA = Quota(20_000, 1e9, 0)
TIMES = 3

sessions = st.tuples(st.integers(1, 12), st.booleans(), st.sampled_from(["", "", ACCEPTED, DECLINED, QUARANTINED]))
"""Records of 500 bytes, whether one of them is an error, and what becomes of it."""


class Filled:
    """`recorded` are the records of all sessions that have ended, `live` the one that runs, `told` what it was told."""

    def __init__(self, root: Path) -> None:
        self.root, self.time = root, Time()
        self.live = self._rig()
        self.told: list[str] = []
        self.recorded = self.written = 0
        self.store = Store(Unsynced(), root, "product", "application")

    def _rig(self) -> Rig:
        self.time.pass_seconds(1.0)
        return Rig(self.root, files=Unsynced(), time=self.time)

    def add(self, count: int, error: bool, fate: str) -> None:
        rig = self._rig()
        for _ in range(count):
            rig.recorder.feature("a", noise=self.time.chance.randbytes(500))
        if error:
            rig.recorder.event("failed", level=40)
        assert rig.end()
        self.recorded += count + error
        self.written += self._size(rig.id)
        assert self.store.become_sender()
        if fate == QUARANTINED:
            self.store.set_aside(Ending(rig.id, fate, "poison", count + error))
        elif fate:
            self.store.finish([Ending(rig.id, fate, "", count + error)], purge=False)
        self.store.cease_sending()

    def _size(self, session: str) -> int:
        return sum(path.stat().st_size for path in (self.store.folder / WAITING / session).glob("*.zst"))

    def grow(self) -> None:
        self.told.append(f"live{len(self.told)}")
        self.live.recorder.feature(self.told[-1], noise=self.time.chance.randbytes(100))
        assert self.live.flush(durable=True)

    def check(self) -> None:
        relief = evict_as_sender(self.store, QUOTA, self.time.clocks.wall() / 1e9)
        ended = [path for path in self.store.folder.rglob("*.zst") if LIVE not in path.parts]
        used = sum(path.stat().st_size for path in self.store.folder.rglob("*.zst"))
        assert used <= QUOTA.max_bytes or not ended  # type: ignore[operator] # it is a number
        assert relief.left.bytes_beside("") == used
        assert (self.store.folder / LIVE / self.live.id / "000000.zst").exists()
        pending = sum(each.summary.records for each in self.store.look().waiting)
        account = self.store.ledger.account(pending, {})
        assert account.recorded == self.recorded, account


@given(st.lists(sessions, min_size=5, max_size=25))
@hypothesis.settings(max_examples=max(10, hypothesis.settings().max_examples // 10), deadline=None)
def test_three_times_over(kinds: list[tuple[int, bool, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        filled, at = Filled(Path(folder) / "store"), 0
        while filled.written < TIMES * 20_000:
            filled.add(*kinds[at % len(kinds)])
            filled.grow()
            filled.check()
            at += 1
        assert filled.live.end()
        story = read_session(filled.store.folder / WAITING / filled.live.id)
        assert (story.names, story.gaps) == (filled.told, [])
