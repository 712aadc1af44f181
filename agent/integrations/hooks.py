"""Hooks: what nobody has handled is recorded before the process dies of it, or goes on without.

The agent installs them when it starts and removes them when it stops. They are on by default, for the crash that
matters is the one nobody has prepared for, and they do no harm:

* Each calls what was there before it, with the same arguments, whatever happens in it: the host's output, its exit
  status and its own reporters stay as they are.
* Each restores what it has replaced, unless somebody has put something in its place since; then it stays in that
  chain and only passes on.
* With ``hooks=False`` (``MAILBOAT_HOOKS=0``) nothing of the process or the loop is touched.

What is recorded, as exceptions unless said otherwise:

====================================  ========  ======================================================================
`sys.excepthook`                      critical  The process ends: returns when the record is on the disk, after
                                                2 seconds at the latest. The session counts as crashed.
an exception leaving ``async with``   critical  The agent stops with it, so no hook could tell.
`threading.excepthook`                error     A thread has ended.
asyncio's exception handler           error     A task nobody awaited, a callback. Without an exception: an event.
`sys.unraisablehook`                  warning   A finalizer has failed; the program goes on as if nothing were.
====================================  ========  ======================================================================

KeyboardInterrupt, SystemExit and cancellation are how programs end in order, and not recorded. An exception that the
application, a middleware or the log handler has recorded already is not recorded again. For fatal signals see
`mailboat.agent.last_words`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any, Final, Protocol

from mailboat.agent.recorded import is_marked
from mailboat.protocol.records import Level

NOT_RECORDED: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)
"""How programs and tasks end in order."""


class Subject(Protocol):
    """What the hooks need of an agent."""

    @property
    def session_id(self) -> str | None:
        """The session that records go into."""

    def exception(
        self, error: BaseException | None = None, /, context: str | None = None, *, level: int, **attributes: object
    ) -> None:
        """Record an exception."""

    def event(self, name: str, /, level: int, message: str | None = None) -> None:
        """Record an event."""

    def crashing(self) -> None:
        """The process is about to die of what was recorded last: have it on the disk."""


class _Hook:
    """A function in the place of another one, `previous`, which it calls after `note`."""

    def __init__(self, previous: Callable[..., object], note: Callable[..., None]) -> None:
        self.previous, self.note = previous, note
        self.active = True
        self.failures = 0

    def __call__(self, *args: Any) -> object:  # noqa: ANN401 - as the one before
        try:
            if self.active:
                self.note(*args)
        except Exception:  # noqa: BLE001 - of the host's dying objects, perhaps; what was there before must be called
            self.failures += 1
        return self.previous(*args)


class _Place:
    """An attribute of a module that holds a hook."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module, self._name = module, name
        self._hook: _Hook | None = None

    def take(self, note: Callable[..., None]) -> None:
        previous = getattr(self._module, self._name)
        self._hook = _Hook(previous, note)
        setattr(self._module, self._name, self._hook)

    def give_back(self) -> None:
        """Restore what was there, if ours is what is there now; without an agent behind it, it only passes on."""
        hook, self._hook = self._hook, None
        if hook is None:
            return
        hook.active = False
        if getattr(self._module, self._name) is hook:
            setattr(self._module, self._name, _living(hook.previous))


def _living(hook: Callable[..., object]) -> Callable[..., object]:
    """The first of a chain that is not one of ours without an agent behind it."""
    while isinstance(hook, _Hook) and not hook.active:
        hook = hook.previous
    return hook


class Hooks:
    """The hooks of one agent. All methods but those called by the interpreter are for the agent's own thread."""

    def __init__(self, subject: Subject, *, enabled: bool = True) -> None:
        """Nothing is touched before `install`, nor at all unless `enabled`."""
        self._subject, self._enabled = subject, enabled
        self._places: dict[_Place, Callable[..., None]] = {
            _Place(sys, "excepthook"): self._uncaught,
            _Place(threading, "excepthook"): self._uncaught_in_thread,
            _Place(sys, "unraisablehook"): self._unraisable,
        }
        self._installed = False
        self._in_loop: tuple[asyncio.AbstractEventLoop, _Hook] | None = None

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the places of the process, and of `loop`. In a forked child those of the process are taken already."""
        if not self._enabled:
            return
        if not self._installed:
            self._installed = True
            for place, note in self._places.items():
                place.take(note)
        before: Callable[..., object] = loop.get_exception_handler() or _default_handler
        handler = _Hook(before, self._unhandled_in_loop)
        self._in_loop = loop, handler
        loop.set_exception_handler(handler)

    def remove(self) -> None:
        """Give all places back."""
        self._installed = False
        for place in self._places:
            place.give_back()
        in_loop, self._in_loop = self._in_loop, None
        if in_loop is not None:
            loop, handler = in_loop
            handler.active = False
            now: object = loop.get_exception_handler()
            if now is handler:
                before = _living(handler.previous)
                loop.set_exception_handler(None if before is _default_handler else before)

    def forget_loop(self) -> None:
        """In a forked child: the loop is the parent's."""
        self._in_loop = None

    # -- what is told --------------------------------------------------------------------------------------------

    def left(self, error: BaseException | None) -> None:
        """`error` leaves the block in which the agent runs."""
        if self._installed:
            self._record(error, "it left the block of the agent", Level.CRITICAL)

    def _uncaught(self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, NOT_RECORDED):
            return
        if error.__traceback__ is None and trace is not None:
            error.__traceback__ = trace
        self._record(error, f"nobody has handled this {kind.__name__}, the process ends", Level.CRITICAL)
        self._subject.crashing()

    def _uncaught_in_thread(self, args: threading.ExceptHookArgs) -> None:
        thread = args.thread.name if args.thread is not None else "unknown"
        self._record(args.exc_value, "nobody has handled it, the thread has ended", Level.ERROR, thread=thread)

    def _unraisable(self, args: sys.UnraisableHookArgs) -> None:
        # Only the type: to make a text of an object that is being finalized may do anything.
        where = type(args.object).__qualname__
        self._record(args.exc_value, args.err_msg or "it was ignored in a finalizer", Level.WARNING, object_type=where)

    def _unhandled_in_loop(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, error = str(context.get("message", "")), context.get("exception")
        if isinstance(error, BaseException):
            task = context.get("task") or context.get("future")
            name = {"task": task.get_name()} if isinstance(task, asyncio.Task) else {}
            self._record(error, message, Level.ERROR, **name)
        else:
            self._subject.event("asyncio", Level.ERROR, message)

    def _record(self, error: BaseException | None, context: str, level: Level, **attributes: object) -> None:
        if error is None or isinstance(error, NOT_RECORDED) or is_marked(error, self._subject.session_id):
            return
        self._subject.exception(error, context, level=level, **attributes)


def _default_handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a loop does that has no exception handler."""
    loop.default_exception_handler(context)
