"""Eviction on a real store: what goes, what stays, and that each record is accounted for."""

from __future__ import annotations

import os
from pathlib import Path

from mailboat.agent import Agent, AgentConfig
from mailboat.agent.eviction import evict, evict_as_sender
from mailboat.agent.files import FileSystem, OsFileSystem
from mailboat.agent.ledger import Ending
from mailboat.agent.quota import Evicted, Quota
from mailboat.agent.store import QUARANTINED, SENT, WAITING, Store
from testkit.recording import Rig, Time

YEAR = 365 * 24 * 3600.0


def ended(root: Path, time: Time, *, error: bool = False, records: int = 3) -> str:
    """The id of a session that waits."""
    rig = Rig(root, time=time)
    for _ in range(records):
        rig.recorder.feature("a", noise=os.urandom(500))
    if error:
        rig.recorder.event("failed", level=40)
    assert rig.end()
    time.pass_seconds(10.0)
    return rig.id


def names(store: Store, folder: str) -> set[str]:
    return set(OsFileSystem().names(store.folder / folder))


class Full(OsFileSystem):
    """A disk of 16 KB, of which 100 bytes are left."""

    def room(self, path: Path) -> tuple[int, int]:
        return 100, 16_000


def opened(root: Path, files: FileSystem | None = None) -> Store:
    store = Store(files or OsFileSystem(), root, "product", "application")
    assert store.become_sender()
    return store


def size(store: Store) -> int:
    return sum(path.stat().st_size for path in store.folder.rglob("*.zst"))


def waiting_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.zst") if WAITING in path.parts)


def test_the_order_on_disk_and_the_account(tmp_path: Path) -> None:
    time = Time()
    failed, declined, old, new, sent, aside = (ended(tmp_path, time, error=at == 0) for at in range(6))
    store = opened(tmp_path)
    store.finish([Ending(declined, "declined", "not wanted", 3), Ending(sent, "accepted", "", 3)], purge=False)
    store.quarantine(aside, "for a test")
    now, order = time.clocks.wall() / 1e9, [sent, declined, aside, old, new, failed]
    for gone in range(1, 7):
        relief = evict(store, Quota(size(store) - 1, YEAR, 0), now)
        assert relief.evicted == {Evicted.SIZE: 1}
        assert sum(each.size for each in relief.left.kept) == size(store)
        left = names(store, SENT) | names(store, QUARANTINED) | names(store, WAITING)
        assert left == set(order[gone:])
    account = store.ledger.account(0, {})
    assert (account.accepted, account.declined, account.evicted) == (3, 3, {"size": 3 + 3 + 4})


def test_age_and_a_full_disk(tmp_path: Path) -> None:
    time = Time()
    first = ended(tmp_path, time)
    second = ended(tmp_path, time)
    store = opened(tmp_path, Full())
    now = time.clocks.wall() / 1e9
    assert evict(store, Quota(None, YEAR, 0), now).evicted == {}
    assert evict(store, Quota(None, 15.0, 0), now).evicted == {Evicted.AGE: 1}
    assert names(store, WAITING) == {second} != {first}
    assert evict(store, Quota(None, YEAR, 100), now).evicted == {}
    assert evict(store, Quota(None, YEAR, 101), now).evicted == {Evicted.DISK: 1}
    assert store.ledger.account(0, {}).evicted == {"age": 3, "disk": 3}


def test_a_running_session_stays_whatever_it_takes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.recorder.feature("a", noise=os.urandom(100_000))
    assert rig.flush(durable=True)
    relief = evict_as_sender(rig.store, Quota(1, 0.0, 2**62), 4e9)
    assert relief.evicted == {}
    assert relief.left.live == {rig.id: size(rig.store)}
    assert (relief.left.bytes_beside(rig.id), relief.left.bytes_beside("another")) == (0, size(rig.store))
    assert rig.end()
    assert rig.store.look().waiting[0].summary.records == 1


def test_nothing_is_given_up_while_another_process_sends(tmp_path: Path) -> None:
    kept = ended(tmp_path, Time())
    sender, other = opened(tmp_path), Store(OsFileSystem(), tmp_path, "product", "application")
    relief = evict_as_sender(other, Quota(1, 0.0, 0), 4e9)
    assert (relief.evicted, [each.session_id for each in relief.left.kept]) == ({}, [kept])
    assert names(sender, WAITING) == {kept}
    sender.cease_sending()
    assert evict_as_sender(other, Quota(1, 0.0, 0), 4e9).evicted == {Evicted.SIZE: 1}
    assert not other.sending


async def test_an_agent_that_only_records_keeps_its_quota(tmp_path: Path) -> None:
    config = AgentConfig(store=tmp_path, product="p", max_store_bytes=2**20)
    for _ in range(4):
        async with Agent(config) as agent:
            for _ in range(400):
                agent.feature("a", noise=os.urandom(1000))
    async with Agent(config) as agent:
        await agent._recovered
        ledger = agent.status.ledger
        assert ledger.evicted == {"size": 800}
        assert ledger.recorded == 1600
    assert waiting_bytes(tmp_path) <= 2**20


def test_a_session_that_cannot_be_read_is_put_aside_and_given_up_like_others(tmp_path: Path) -> None:
    """Also where nobody sends, and would find it."""
    time = Time()
    unreadable, kept = ended(tmp_path, time), ended(tmp_path, time)
    store = opened(tmp_path)
    path = store.folder / WAITING / unreadable / "000000.zst"
    path.write_bytes(path.read_bytes()[:-10])
    now = time.clocks.wall() / 1e9
    assert evict(store, Quota(None, YEAR, 0), now).evicted == {}
    assert (names(store, QUARANTINED), names(store, WAITING)) == ({unreadable}, {kept})
    assert (store.folder / QUARANTINED / unreadable / "reason").read_text() == "000000.zst has no intact seal"
    assert evict(store, Quota(size(store) - 1, YEAR, 0), now).evicted == {Evicted.SIZE: 1}
    assert (names(store, QUARANTINED), names(store, WAITING)) == (set(), {kept})
