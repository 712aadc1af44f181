"""The guard of the tests' stores: what it lets pass is what ARCHITECTURE.md allows, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from mailboat.agent.host import boot_id
from mailboat.agent.ledger import ACCEPTED, DECLINED, Ending
from mailboat.agent.locks import LOCK
from mailboat.agent.store import LIVE, NEW, QUARANTINED, REASON, SENT, WAITING, Store
from testkit.guard import Guarded, Trespass
from testkit.recording import Rig
from testkit.sealed import PRIVATE


class Scene:
    """A session that runs and one that has ended; `other` is a process beside both, and beside the sender."""

    def __init__(self, root: Path) -> None:
        ended = Rig(root, files=Guarded(root))
        ended.recorder.feature("a")
        assert ended.end()
        self.rig, self.ended = Rig(root, files=Guarded(root), time=ended.time), ended.id
        self.rig.recorder.feature("b")
        assert self.rig.flush()
        self.store, self.other = (Store(Guarded(root), root, "product", "application") for _ in range(2))

    @property
    def live(self) -> Path:
        return self.store.folder / LIVE / self.rig.id

    def segment(self, mode: str) -> None:
        files = self.other.files
        fd = files.open(self.live / "000000.zst")
        try:
            files.append(fd, b"x") if mode == "append" else files.truncate(fd, 0)
        finally:
            files.close(fd)

    def unsynced(self) -> None:
        self.rig.store.files.rename(self.live, self.store.folder / WAITING / self.rig.id)

    def shown_early(self) -> None:
        new = self.store.folder / NEW / self.rig.id
        lock = self.store._make_new(self.rig.id)
        try:
            self.store.files.rename(new, new.with_name("shown"))
        finally:
            self.store.files.close(lock)

    def uncounted(self) -> None:
        assert self.store.become_sender()
        self.store.put_away([Ending(self.ended, ACCEPTED, "", 1)], purge=False)

    def uncounted_and_deleted(self) -> None:
        assert self.store.become_sender()
        self.store.put_away([Ending(self.ended, ACCEPTED, "", 1)], purge=True)

    def taken_back_unsaid(self) -> None:
        assert self.store.become_sender()
        self.store.finish([Ending(self.ended, DECLINED, "", 1)], purge=False)
        self.store._move_back(self.ended)

    def half_replaced(self) -> None:
        half = self.store.folder / "reserve.tmp"
        files = self.store.files
        fd = files.create(half)
        files.append(fd, b"half")
        files.close(fd)
        files.rename(half, self.store.folder / "reserve")


TRESPASSES: dict[str, Callable[[Scene], object]] = {
    "another process appends to a session": lambda scene: scene.segment("append"),
    "another process cuts a session": lambda scene: scene.segment("truncate"),
    "another process makes a file in a session": lambda scene: scene.other.files.create(scene.live / "x"),
    "another process removes a session's lock": lambda scene: scene.other.files.remove(scene.live / LOCK),
    "another process deletes a session": lambda scene: scene.other.files.remove_tree(scene.live),
    "another process moves a session": lambda scene: scene.other.retire_folder(scene.live),
    "a session is begun without its lock": lambda scene: scene.other.files.create(scene.store.folder / NEW / "i" / "x"),
    "a session is shown that has no segment": Scene.shown_early,
    "a session ends that is not synced": Scene.unsynced,
    "who does not send writes the ledger": lambda scene: scene.other.enter([Ending(scene.ended, ACCEPTED, "", 1)]),
    "who does not send puts a session aside": lambda scene: scene.other.quarantine(scene.ended, "for a test"),
    "a session is put away before it is counted": Scene.uncounted,
    "a session is deleted before it is counted": Scene.uncounted_and_deleted,
    "a session is taken back before it is said": Scene.taken_back_unsaid,
    "a file is replaced by what is not synced": Scene.half_replaced,
}


@pytest.mark.parametrize("how", TRESPASSES)
def test_a_trespass_is_told_before_it_is_done(tmp_path: Path, how: str) -> None:
    scene = Scene(tmp_path)
    before = sorted(path for path in scene.live.rglob("*"))
    with pytest.raises(Trespass):
        TRESPASSES[how](scene)
    assert sorted(path for path in scene.live.rglob("*")) == before
    assert scene.rig.end()


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    store, folder = scene.store, scene.store.folder
    assert scene.rig.end()
    assert store.reserve.keep()
    assert store.become_sender()
    store.finish([Ending(scene.ended, DECLINED, "", 1)], purge=False)
    assert store.take_back(scene.ended)
    store.set_aside(Ending(scene.ended, QUARANTINED, "poison", 1))
    store.finish([Ending(scene.rig.id, ACCEPTED, "", 1)], purge=False)
    store.files.remove_tree(folder / SENT / scene.rig.id)
    assert [path.name for path in (folder / QUARANTINED).iterdir()] == [scene.ended]
    crashed = Rig(tmp_path, files=Guarded(tmp_path), time=scene.rig.time)
    for segment in crashed.segments.folder.glob("*.zst"):
        shutil.copyfile(folder / "reserve", segment)
    crashed.let_go()
    (session,) = scene.other.crashed()
    scene.other.give_up(session.path, "no session")
    assert (folder / WAITING / crashed.id / REASON).exists()


@pytest.mark.parametrize("sealed", [False, True])
async def test_an_agent_keeps_to_it_on_all_its_threads(tmp_path: Path, sealed: bool) -> None:
    """Two lives, the first of which its process does not end in order: the second one takes it up."""
    settings: dict[str, Any] = {"store": tmp_path, "max_store_age": 1e9}
    if sealed:
        settings |= {"seal_to": PRIVATE.public.text, "sealed_journal": tmp_path / "memory"}
    crashed = Rig(tmp_path, files=Guarded(tmp_path), boot=boot_id(), seal_to=PRIVATE.public if sealed else None)
    crashed.recorder.feature("left")
    crashed.let_go()
    for _ in range(2):
        agent = Agent(server=None, product="product", application="application", **settings)
        agent._files = Guarded(tmp_path)
        async with agent:
            placed = agent.emitter("placed", "number")
            for number in range(100):
                placed(number)
            assert await agent.flush(durable=True)
            agent.event("failed", level=40)
            await agent._recovered
        assert (agent.status.trouble, agent.status.lost) == ("", {})
    store = Store(Guarded(tmp_path), tmp_path, "product", "application")
    found = store.look()
    assert sorted(each.summary.records for each in found.waiting) == [1, 101, 101]
    assert (found.unreadable, list(store.files.names(store.folder / LIVE))) == ({}, [])
