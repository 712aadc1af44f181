"""The machine loses its power at any call of the file system, while unsynced writes are lost, reordered and torn."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mailboat.agent.files import FileSystem, OsFileSystem
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.store import LIVE, QUARANTINED, Store
from mailboat.agent.writer import WriterSettings
from testkit.disk import Disk, Killed, Plan, failure
from testkit.power import PowerDisk
from testkit.recording import OTHER_BOOT, Rig, Story, Time, waiting

CALLS = 160
"""About as many calls as a life makes: the power fails at one of them, or after them all."""


@dataclass
class Told:
    """What one session was told, in order, and how many of these are promised to survive the machine."""

    names: list[str] = field(default_factory=list)
    promised: int = 0


class Life:
    """An application that records, rotates, fails, ends and begins anew, on a disk whose power fails."""

    def __init__(self, root: Path, seed: int, kind: type[PowerDisk] = PowerDisk) -> None:
        self.chance = random.Random(seed)
        self.power = kind(root, self.chance, written_back=self.chance.choice([0.0, 0.05, 0.3]))
        self.disk = Disk(self._plan(), real=self.power)
        self.store = root / "home" / "share" / "store"
        self.told: dict[str, Told] = {}
        self.session = Told()
        self.rig: Rig

    def _plan(self) -> Plan:
        """The power fails at some call; now and then some calls fail before."""
        cut, faults = self.chance.randrange(1, CALLS), self.chance.choice([0.0, 0.0, 0.02, 0.1])
        codes = [errno.EIO, errno.ENOSPC]

        def plan(number: int, _: str) -> BaseException | None:
            if number >= cut:
                return Killed()
            return failure(self.chance.choice(codes)) if self.chance.random() < faults else None

        return plan

    def live(self) -> None:
        """Until the power fails."""
        try:
            while True:
                self._begin()
                for _ in range(self.chance.randrange(1, 25)):
                    self._act()
                self._record(1)
                if self.rig.end():
                    self.session.promised = len(self.session.names)
        except Killed:
            self.disk.bury()

    def _begin(self) -> None:
        settings = WriterSettings(segment_bytes=self.chance.choice([1, 2000, 20_000]))
        self.rig = Rig(self.store, files=self.disk.files, settings=settings, time=Time(chance=self.chance))
        self.session = self.told[self.rig.id] = Told()

    def _act(self) -> None:
        match self.chance.randrange(8):
            case 0 | 1 | 2:
                self._record(self.chance.choice([1, 5, 200]))
            case 3:
                self._record(1, self.chance.randrange(1, 100_000))
            case 4:
                self._next("error")
                self.rig.recorder.event(self.session.names[-1], level=40)
            case 5:
                self._flush()
            case 6:
                placed = self.rig.recorder.emitter(self._next("placed"), ["a"])
                placed(self.chance.random())
            case _:
                self._step()

    def _next(self, name: str = "r") -> str:
        self.session.names.append(f"{name}.{len(self.session.names)}")
        return self.session.names[-1]

    def _record(self, count: int, size: int = 50) -> None:
        for _ in range(count):
            self.rig.recorder.feature(self._next(), text=self.chance.randbytes(size))

    def _flush(self) -> None:
        durable = self.chance.random() < 0.7
        if self.rig.flush(durable=durable, seconds=self.chance.choice([0.0, 1.5])) and durable:
            self.session.promised = len(self.session.names)

    def _step(self) -> None:
        """Time passes; whatever was recorded before a sync that is over is promised."""
        before = self.rig.writer._synced_at
        self.rig.step(self.chance.choice([0.3, 2.0, 6.0]))
        if self.rig.writer._synced_at != before:
            self.session.promised = len(self.session.names)


def after_the_reboot(life: Life, target: Path) -> tuple[list[Story], list[str]]:
    """What the sessions become when the machine runs again; the power may fail once more meanwhile."""
    life.power.lose_power(target)
    if life.chance.random() < 0.5:
        power = PowerDisk(target, life.chance)
        disk = Disk(lambda number, _: Killed() if number >= cut else None, real=power)
        cut = life.chance.randrange(1, 30)
        with contextlib.suppress(Killed):
            _recovered(store_at(target, life, disk.files))
        disk.bury()
        target = target.with_name(f"{target.name}-again")
        power.lose_power(target)
    return _recovered(store_at(target, life, OsFileSystem()))


def store_at(target: Path, life: Life, files: FileSystem) -> Store:
    return Store(files, target / life.store.relative_to(life.power.root), "product", "application")


def _recovered(store: Store) -> tuple[list[Story], list[str]]:
    store.open()
    store.sweep()
    for session in store.crashed():
        error = bring_to_rest(store, session, OTHER_BOOT)
        assert not isinstance(error, OSError), error
    assert not store.files.names(store.folder / LIVE)
    return waiting(store), list(store.files.names(store.folder / QUARANTINED))


def check(life: Life, stories: list[Story], aside: list[str]) -> None:
    found = {story.session_id: story for story in stories}
    for session_id in found.keys() - life.told.keys():
        assert not found[session_id].names, "records of a session that had not begun"
    for session_id, told in life.told.items():
        if session_id not in found:
            assert not told.promised, f"{session_id} is gone with {told.promised} records (put aside: {aside})"
            continue
        names, numbers = found[session_id].names, found[session_id].numbers
        assert names[: told.promised] == told.names[: told.promised], "what was promised is gone"
        assert numbers == sorted(set(numbers)), "a record is there twice, or out of order"
        assert [told.names[number] for number in numbers] == names, "a record is not what it was"


def lose_power(root: Path, seed: int, kind: type[PowerDisk] = PowerDisk) -> int:
    """One life and what is left of it; returns how many records were promised to survive."""
    root.mkdir()
    life = Life(root / "disk", seed, kind)
    life.live()
    stories, aside = after_the_reboot(life, root / "after")
    check(life, stories, aside)
    shutil.rmtree(root)
    return sum(told.promised for told in life.told.values())


def lose_power_often(tmp_path: Path, seeds: range) -> None:
    promised = 0
    for seed in seeds:
        try:
            promised += lose_power(tmp_path / str(seed), seed)
        except BaseException as error:
            error.add_note(f"the seed was {seed}")
            raise
    assert promised > 20 * len(seeds), "lives that show nothing"


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_nothing_synced_is_lost_and_nothing_is_forged(tmp_path: Path, first: int) -> None:
    lose_power_often(tmp_path, range(first, first + 50))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1000, 6000, 500))
def test_soak_nothing_synced_is_lost_and_nothing_is_forged(tmp_path: Path, first: int) -> None:
    lose_power_often(tmp_path, range(first, first + 500))


class FilesUnsynced(PowerDisk):
    def sync(self, fd: int) -> None:
        pass


class FoldersUnsynced(PowerDisk):
    def sync_folder(self, path: Path) -> None:
        pass


@pytest.mark.parametrize("kind", [FilesUnsynced, FoldersUnsynced])
def test_a_disk_that_does_not_honour_syncs_is_found_out(tmp_path: Path, kind: type[PowerDisk]) -> None:
    """Were the agent to leave them out, these tests would tell."""
    found_out = 0
    for seed in range(20):
        try:
            lose_power(tmp_path / str(seed), seed, kind)
        except AssertionError:
            found_out += 1
    assert found_out >= 5
