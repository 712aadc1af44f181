"""Calls of the file system that fail, the process killed some calls later, and recoveries that fail and are killed.

What was told to be recorded is there afterwards, once and in order. The one exception: while the disk refuses even the
journal, records are in plain memory, and the status says so.
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from pathlib import Path

import pytest

from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.store import QUARANTINED, Store
from testkit.disk import EVERY, SHORT, Disk, Killed, Plan, failure
from testkit.guard import Guarded
from testkit.lives import Life
from testkit.recording import BOOT, recovered

CODES = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, SHORT]
CALLS = 110
"""Somewhat more than a life makes: some end before they are killed."""


def troubled(root: Path, chance: random.Random, rate: float, kill: int) -> Disk:
    """Each of its calls fails with the probability `rate`; at the call number `kill` the process is killed."""

    def plan(number: int, name: str) -> BaseException | None:
        if number == kill:
            return Killed()
        code = chance.choice(CODES) if chance.random() < rate else None
        return None if code is None or (code == SHORT and name != "append") else failure(code)

    return Disk(plan, real=Guarded(root), failing=EVERY)


def recovered_in_part(root: Path, disk: Disk) -> None:
    """A process that takes up what it can, and is killed at some time."""
    store = Store(disk.files, root, "product", "application")
    with contextlib.suppress(Killed, OSError):
        store.open()
        store.sweep()
        for session in store.crashed():
            error = bring_to_rest(store, session, BOOT)
            assert error is None or isinstance(error, OSError)
    disk.bury()


def check(life: Life, *, killed: bool) -> None:
    stories = recovered(life.root)
    names = [name for story in stories for name in story.names]
    if life.exposed or life.lost:
        assert names == [name for name in life.told if name in set(names)]
    else:
        assert names == life.told or (killed and names == life.told[:-1])
        assert [gap for story in stories for gap in story.gaps] == []
    assert list(life.root.rglob(f"{QUARANTINED}/*")) == []


def suffer(root: Path, seed: int) -> bool:
    """One life and several recoveries of it; whether every record had to be there."""
    chance = random.Random(seed)
    life = Life(root, troubled(root, chance, chance.choice([0.01, 0.03, 0.1, 0.3]), chance.randrange(1, CALLS)))
    killed = False
    try:
        life.live()
    except Killed:
        killed = True
    life.disk.bury()
    for _ in range(chance.randrange(3)):
        recovered_in_part(root, troubled(root, chance, chance.choice([0, 0.05, 0.2]), chance.randrange(1, 60)))
    check(life, killed=killed)
    shutil.rmtree(root)
    return not life.exposed


def suffer_often(tmp_path: Path, seeds: range) -> None:
    proved = 0
    for seed in seeds:
        try:
            proved += suffer(tmp_path / str(seed), seed)
        except BaseException as error:
            error.add_note(f"the seed was {seed}")
            raise
    assert proved > len(seeds) // 4, "lives that show nothing"


def test_faults_and_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    suffer_often(tmp_path, range(200))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1000, 21_000, 1000))
def test_soak_faults_and_kills_lose_and_double_nothing(tmp_path: Path, first: int) -> None:
    suffer_often(tmp_path, range(first, first + 1000))


def failing_then_killed(at: int, code: int, kill: int) -> Plan:
    def plan(number: int, _: str) -> BaseException | None:
        if number == kill:
            return Killed()
        return failure(code) if number == at else None

    return plan


def test_killed_at_any_call_after_a_failed_sync(tmp_path: Path) -> None:
    """The segment is abandoned; before its successor is whole, the process dies."""
    whole = Life(tmp_path / "whole", Disk(real=Guarded(tmp_path / "whole")))
    whole.live()
    syncs = [number for number, name in enumerate(whole.disk.calls, 1) if name == "sync"]
    assert len(syncs) > 5
    for at in syncs:
        for kill in range(at + 1, at + 12):
            root = tmp_path / f"{at}-{kill}"
            life = Life(root, Disk(failing_then_killed(at, errno.EIO, kill), real=Guarded(root)))
            with contextlib.suppress(Killed):
                life.live()
            life.disk.bury()
            assert not life.exposed
            check(life, killed=True)
            shutil.rmtree(life.root)
