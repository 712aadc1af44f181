"""The hooks chain to what was there, restore it, and pass on where they cannot."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from mailboat.agent import Level
from mailboat.agent.integrations.hooks import Hooks
from mailboat.agent.recorded import is_marked, mark


@dataclass
class Recording:
    """A subject that remembers, or fails."""

    session_id: str | None = "one"
    told: list[tuple[Any, ...]] = field(default_factory=list)
    failing: bool = False
    safe: int = 0

    def exception(
        self, error: BaseException | None = None, /, context: str | None = None, *, level: int, **attributes: object
    ) -> None:
        if self.failing:
            raise ZeroDivisionError
        assert error is not None
        assert context
        mark(error, self.session_id)
        self.told.append((error, level, attributes))

    def event(self, name: str, /, level: int, message: str | None = None) -> None:
        self.told.append((name, level, message))

    def crashing(self) -> None:
        self.safe += 1


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What the host's own hooks were called with; afterwards they must be where they were."""
    called: list[tuple[Any, ...]] = []
    own: dict[tuple[Any, str], Callable[..., None]] = {
        (sys, "excepthook"): lambda *args: called.append(args),
        (sys, "unraisablehook"): lambda *args: called.append(args),
        (threading, "excepthook"): lambda *args: called.append(args),
    }
    for (module, name), hook in own.items():
        monkeypatch.setattr(module, name, hook)
    yield called
    assert [getattr(module, name) for module, name in own] == list(own.values())


def thread_args(error: BaseException) -> threading.ExceptHookArgs:
    return threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))


async def test_each_hook_records_and_then_calls_the_one_before_with_its_arguments(
    before: list[tuple[Any, ...]],
) -> None:
    subject, error, other = Recording(), LookupError("a"), LookupError("b")
    hooks = Hooks(subject)
    hooks.install(asyncio.get_running_loop())
    sys.excepthook(LookupError, error, None)
    threading.excepthook(thread_args(other))
    hooks.remove()
    assert subject.told == [
        (error, Level.CRITICAL, {}),
        (other, Level.ERROR, {"thread": threading.current_thread().name}),
    ]
    assert subject.safe == 1
    assert before[0] == (LookupError, error, None)
    assert before[1][0].exc_value is other


async def test_a_finalizer_that_fails_is_a_warning(before: list[tuple[Any, ...]]) -> None:
    class Bad:
        def __del__(self) -> None:
            raise LookupError("late")

    subject = Recording()
    hooks = Hooks(subject)
    hooks.install(asyncio.get_running_loop())
    Bad()
    hooks.remove()
    ((error, level, attributes),) = subject.told
    assert (str(error), level, attributes) == ("late", Level.WARNING, {"object_type": "function"})
    assert len(before) == 1
    before.clear()  # it holds on to what was being finalized


async def test_whatever_fails_in_recording_the_hosts_hook_is_called(before: list[tuple[Any, ...]]) -> None:
    hooks = Hooks(Recording(failing=True))
    hooks.install(asyncio.get_running_loop())
    sys.excepthook(LookupError, LookupError(), None)
    threading.excepthook(thread_args(LookupError()))
    hooks.remove()
    assert len(before) == 2


async def test_what_is_recorded_already_or_ends_in_order_is_not_recorded(before: list[tuple[Any, ...]]) -> None:
    subject, error = Recording(), LookupError()
    mark(error, "one")
    hooks = Hooks(subject)
    hooks.install(asyncio.get_running_loop())
    ended = (error, KeyboardInterrupt(), SystemExit(), asyncio.CancelledError(), GeneratorExit())
    for each in ended:
        sys.excepthook(type(each), each, None)
    hooks.left(SystemExit())
    hooks.remove()
    assert subject.told == []
    assert subject.safe == 1
    assert len(before) == len(ended)


@pytest.mark.parametrize("first_removed", [0, 1])
async def test_hooks_of_two_agents_may_be_removed_in_any_order(
    before: list[tuple[Any, ...]], first_removed: int
) -> None:
    subjects = [Recording("one"), Recording("two")]
    both = [Hooks(subject) for subject in subjects]
    for hooks in both:
        hooks.install(asyncio.get_running_loop())
    both[first_removed].remove()
    error = LookupError()
    sys.excepthook(LookupError, error, None)
    asyncio.get_running_loop().call_exception_handler({"message": "text"})
    assert subjects[first_removed].told == []
    assert subjects[1 - first_removed].told == [(error, Level.CRITICAL, {}), ("asyncio", Level.ERROR, "text")]
    assert len(before) == 1
    both[1 - first_removed].remove()
    assert asyncio.get_running_loop().get_exception_handler() is None


async def test_what_was_put_in_its_place_since_is_left_there(
    before: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Recording()
    hooks = Hooks(subject)
    hooks.install(asyncio.get_running_loop())
    ours = sys.excepthook
    with monkeypatch.context() as patch:

        def later(*args: Any) -> None:  # noqa: ANN401 - as any hook
            ours(*args)

        patch.setattr(sys, "excepthook", later)
        hooks.remove()
        assert sys.excepthook is later
        later(LookupError, LookupError(), None)
        assert len(before) == 1
        assert subject.told == []
    # As if that one had restored what it had found: ours, which only passes on from now on.
    sys.excepthook(LookupError, LookupError(), None)
    assert len(before) == 2
    assert subject.told == []
    again = Hooks(subject)
    again.install(asyncio.get_running_loop())
    again.remove()  # goes past the one without an agent behind it


async def test_the_loops_own_handler_is_called_and_restored(before: list[tuple[Any, ...]]) -> None:
    loop, told = asyncio.get_running_loop(), list[dict[str, Any]]()

    def own(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        told.append(context)

    loop.set_exception_handler(own)
    subject = Recording()
    hooks = Hooks(subject)
    hooks.install(loop)
    error = LookupError()

    def fail() -> None:
        raise error

    loop.call_soon(fail)
    await asyncio.sleep(0)
    loop.call_exception_handler({"message": "only text"})
    hooks.remove()
    assert loop.get_exception_handler() is own
    assert subject.told == [(error, Level.ERROR, {}), ("asyncio", Level.ERROR, "only text")]
    assert [context.get("exception") for context in told] == [error, None]
    assert before == []


def test_a_mark_is_the_sessions_and_asks_nothing_of_the_exception() -> None:
    class Locked(Exception):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            raise AssertionError(name)

        def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - any attribute
            raise AssertionError(name)

    error = Locked()
    assert not is_marked(error, "one")
    mark(error, "one")
    assert is_marked(error, "one")
    assert not is_marked(error, "two")
    mark(error, None)
    assert not is_marked(error, None)
