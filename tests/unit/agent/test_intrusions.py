"""Whatever comes in the middle of a recording call, at every place where something can.

A signal handler that records, one that raises, a finalizer, another thread's exception, a fork: nothing whose call
returned is lost or doubled, no count is wrong, no lock stays held, and the host gets what is its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mailboat.agent import hotpaths
from mailboat.agent.intake import Lost
from mailboat.agent.journal import Half
from mailboat.agent.writer import TICK
from testkit.disk import Unsynced
from testkit.injection import places, run
from testkit.recording import Rig, only, recovered, waiting

HALF = 64 * 1024


class Alarm(Exception):
    """What a host's signal handler raises to end something that takes too long."""


class Limit(RuntimeError):
    """The same, of a kind that mailboat's own mistakes are of, too."""


class Notes:
    """What was recorded: names whose call has returned, and names whose call had begun."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.returned: list[str] = []
        self.begun: list[str] = []

    def feature(self, name: str, size: int = 0) -> None:
        self.begun.append(name)
        self.rig.recorder.feature(name, x="x" * size) if size else self.rig.recorder.feature(name)
        self.returned.append(name)

    def odd(self, name: str) -> None:
        self.begun.append(name)
        self.rig.recorder.feature(name, x=object(), y={1, 2}, z=2**70)
        self.returned.append(name)

    def event(self, name: str) -> None:
        self.begun.append(name)
        self.rig.recorder.event(name, level=30)
        self.returned.append(name)


def filled(rig: Rig, notes: Notes, room: int = 40) -> None:
    """Leave no more than so many bytes of room in the active half."""
    left = HALF - rig.journal.active.memory.tell()
    notes.feature("fill-0", left - 130)
    while HALF - rig.journal.active.memory.tell() > room:
        notes.feature(f"fill-{len(notes.begun)}")


def plain(rig: Rig, notes: Notes) -> None:
    notes.feature("outer-0")


def full(rig: Rig, notes: Notes) -> None:
    notes.feature("outer-0", 200)


def odd(rig: Rig, notes: Notes) -> None:
    notes.odd("outer-0")


def large(rig: Rig, notes: Notes) -> None:
    notes.feature("outer-0", HALF + 10)


def too_large(rig: Rig, notes: Notes) -> None:
    notes.feature("outer-0", 1_200_000)


def turned(rig: Rig, notes: Notes) -> None:
    rig.recorder.turn()


def declared(rig: Rig, notes: Notes) -> None:
    placed = rig.recorder.emitter("placed", ["user", "price"])
    notes.begun.append("placed")
    placed(7, 9.5)
    notes.returned.append("placed")


def stopped(rig: Rig, notes: Notes) -> None:
    rig.recorder.stop()


SHARES = pytest.mark.parametrize(
    "share", [pytest.param(8, id="some"), pytest.param(None, id="all", marks=pytest.mark.soak)]
)
SCENES: list[Callable[[Rig, Notes], None]] = [plain, full, odd, large, too_large, turned, declared, stopped]


def set_up(root: Path, scene: Callable[[Rig, Notes], None]) -> tuple[Rig, Notes]:
    hotpaths._compiled.cache_clear()  # so that each run comes by the same places
    rig = Rig(root, files=Unsynced())
    notes = Notes(rig)
    notes.event("first")
    if scene is not plain:
        filled(rig, notes)
    return rig, notes


def check(rig: Rig, notes: Notes, *, unsure: int = 0) -> None:
    """End the session and compare. `unsure` records may be there or not: their call did not return."""
    assert_free(rig.recorder.lock)
    if rig.recorder.recording:
        notes.feature("last")
    assert dict(rig.recorder.lost) == {}
    assert rig.recorder.faults == 0
    rig.end()
    story = only(waiting(rig.store))
    assert story.gaps == []
    assert story.numbers == list(range(len(story.numbers)))
    names = story.names
    assert len(set(names)) == len(names), "a record is there twice"
    assert set(notes.returned) <= set(names), "a record is lost whose call had returned"
    assert set(names) <= set(notes.begun), "a record is there that nobody made"
    assert len(names) - len(notes.returned) <= unsure
    for kind in ("fill", "outer", "inner"):
        assert [each for each in names if each.startswith(kind)] == [
            each for each in notes.begun if each.startswith(kind) and each in names
        ]


def assert_free(lock: threading.RLock) -> None:
    """Nobody holds it any more; asked on another thread, since its own may take it again."""
    free: list[bool] = []

    def ask() -> None:
        free.append(lock.acquire(blocking=False))
        if free[0]:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert free == [True], "the lock is still held"


def some_places(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], share: int | None, seed: int, *, raising: bool = False
) -> list[int]:
    """`share` of the places that the scene comes by, other ones each time; None: all of them."""
    rig, notes = set_up(tmp_path / "count", scene)
    count = places(lambda: scene(rig, notes), raising=raising)
    check(rig, notes)
    assert count > 2
    every = range(1, count + 1)
    return list(every) if share is None else sorted(random.Random(seed).sample(every, min(share, count)))


@SHARES
@pytest.mark.parametrize("scene", SCENES)
def test_an_exception_from_outside_costs_the_call_that_it_hits_and_nothing_else(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], share: int | None, seed: int
) -> None:
    for at in some_places(tmp_path, scene, share, seed, raising=True):
        for error in (KeyboardInterrupt, Alarm):
            rig, notes = set_up(tmp_path / f"{at}-{error.__name__}", scene)

            def strike(error: type[BaseException] = error) -> None:
                raise error

            with pytest.raises(error):
                run(lambda: scene(rig, notes), at, strike, raising=True)  # noqa: B023 - called at once
            check(rig, notes, unsure=1)


@pytest.mark.parametrize("scene", [turned, stopped])
def test_an_exception_from_outside_is_the_hosts_though_it_may_be_one_of_ours(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], seed: int
) -> None:
    def strike() -> None:
        raise Limit

    for at in some_places(tmp_path, scene, None, seed, raising=True):
        rig, notes = set_up(tmp_path / str(at), scene)
        with pytest.raises(Limit):
            run(lambda: scene(rig, notes), at, strike, raising=True)  # noqa: B023 - called at once
        check(rig, notes, unsure=1)


@SHARES
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("inner", ["small", "several", "large", "huge", "odd", "turning twice", "declaring"])
def test_what_a_signal_handler_records_is_kept_wherever_it_comes(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], inner: str, share: int | None, seed: int
) -> None:
    for at in some_places(tmp_path, scene, share, seed):
        rig, notes = set_up(tmp_path / str(at), scene)

        def handler(rig: Rig = rig, notes: Notes = notes) -> None:
            if not rig.recorder.recording:
                return
            if inner == "small":
                notes.feature("inner-0")
            elif inner == "several":
                notes.feature("inner-0")
                notes.event("inner-1")
                notes.feature("inner-2", 300)
                notes.event("inner-3")
            elif inner == "large":
                notes.feature("inner-0", 50_000)
            elif inner == "huge":
                notes.feature("inner-0", 200_000)
            elif inner == "odd":
                notes.odd("inner-0")
            elif inner == "turning twice":
                notes.feature("inner-0", 60_000)
                notes.feature("inner-1", 60_000)
                notes.feature("inner-2", 60_000)
            else:
                rig.recorder.emitter("inner", ["a"])
                notes.feature("inner-1", 200)

        run(lambda: scene(rig, notes), at, handler)  # noqa: B023 - called at once
        check(rig, notes)


@SHARES
@pytest.mark.parametrize("scene", SCENES)
def test_a_signal_handler_that_records_and_then_raises(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], share: int | None, seed: int
) -> None:
    for at in some_places(tmp_path, scene, share, seed, raising=True):
        rig, notes = set_up(tmp_path / str(at), scene)

        def handler(rig: Rig = rig, notes: Notes = notes) -> None:
            if rig.recorder.recording:
                notes.feature("inner-0", 60_000)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(lambda: scene(rig, notes), at, handler, raising=True)  # noqa: B023 - called at once
        check(rig, notes, unsure=1)


def assert_all_halves_are_used(rig: Rig, notes: Notes) -> None:
    """None is kept for a turn that nobody makes any more: what a burst has added is given back."""
    for _ in range(3):
        notes.feature(f"later-{len(notes.begun)}")
        rig.recorder.turn()
        rig.step()
    rig.step(TICK)
    assert not any(half.reserved for half in rig.journal.halves)
    assert len(rig.journal.halves) == 2


@SHARES
@pytest.mark.parametrize("scene", [full, large, turned])
def test_a_half_that_an_interrupted_turn_had_reserved_is_used_again(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], share: int | None, seed: int
) -> None:
    for at in some_places(tmp_path, scene, share, seed, raising=True):
        rig, notes = set_up(tmp_path / str(at), scene)

        def strike() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(lambda: scene(rig, notes), at, strike, raising=True)  # noqa: B023 - called at once
        assert_all_halves_are_used(rig, notes)
        check(rig, notes, unsure=1)


@SHARES
@pytest.mark.parametrize("scene", [full, large, turned])
def test_a_half_that_a_signal_handlers_interrupted_turn_had_reserved_is_used_again(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], share: int | None, seed: int
) -> None:
    """The handler sees to the interruption itself: the turn that it came into goes on as if nothing had been."""
    for at in some_places(tmp_path, scene, share, seed):
        rig, notes = set_up(tmp_path / str(at), scene)

        def handler(rig: Rig = rig) -> None:
            reserve = rig.journal.reserve

            def reserve_and_raise(needed: int, following: int) -> Half | None:
                reserve(needed, following)
                raise KeyboardInterrupt

            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                patch.setattr(rig.journal, "reserve", reserve_and_raise)
                rig.recorder.turn()

        run(lambda: scene(rig, notes), at, handler)  # noqa: B023 - called at once
        assert_all_halves_are_used(rig, notes)
        check(rig, notes)


@SHARES
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("inner", [0, 60_000])
def test_killed_just_after_a_signal_handler_recorded(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], inner: int, share: int | None, seed: int
) -> None:
    """The files are as they were in that moment; a later process finds all whose call had returned."""
    for at in some_places(tmp_path, scene, share, seed):
        rig, notes = set_up(tmp_path / str(at), scene)
        copied: list[str] = []

        def handler(rig: Rig = rig, notes: Notes = notes, copied: list[str] = copied, at: int = at) -> None:
            if rig.recorder.recording:
                notes.feature("inner-0", inner)
            shutil.copytree(tmp_path / str(at), tmp_path / f"{at}-copy")
            copied.extend(notes.returned)

        run(lambda: scene(rig, notes), at, handler)  # noqa: B023 - called at once
        check(rig, notes)
        story = only(recovered(tmp_path / f"{at}-copy"))
        assert story.gaps == []
        assert len(set(story.names)) == len(story.names)
        assert set(copied) <= set(story.names) <= set(notes.begun)


@SHARES
@pytest.mark.parametrize("scene", [plain, full, odd, stopped])
def test_a_fork_at_any_place_leaves_the_parents_session_alone(
    tmp_path: Path, scene: Callable[[Rig, Notes], None], share: int | None, seed: int
) -> None:
    for at in some_places(tmp_path, scene, share, seed):
        rig, notes = set_up(tmp_path / str(at), scene)
        child: list[int] = []

        def fork(rig: Rig = rig, child: list[int] = child) -> None:
            child.append(os.fork())
            if child[0] == 0:
                rig.recorder.forget_after_fork()
                rig.writer.forget_after_fork()

        status = 0
        try:
            run(lambda: scene(rig, notes), at, fork)  # noqa: B023 - called at once
            if child[0] == 0:
                recorder = rig.recorder
                recorder.feature("of the child", x="x" * 300)
                recorder.event("of the child")
                assert recorder.lost[Lost.FORKED.value] >= 2
                assert recorder.turn()
                recorder.stop()
                assert rig.writer.flush(durable=True).result(timeout=0) is False
                assert recorder.recorded >= 0
        except BaseException:
            status = 1
            if child[0] != 0:
                raise
        finally:
            if child[0] == 0:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == 0
        check(rig, notes)
