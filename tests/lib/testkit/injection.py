"""Doing something at every place where a signal handler, a finalizer or another thread's exception may come in.

CPython looks for them at the entry of a Python function, after each call of a C function and when a loop jumps back,
and nowhere else; of a loop the first turns count. `run(call, at=n, action=f)` runs `call` and does `f` at the n-th such
place within mailboat's agent; `places` counts them. What `f` raises is raised there.

An exception raised by a trace function counts as raised by the instruction to come, not by the call that has just
returned; where these two have different handlers, `raising` leaves the place out.
"""

from __future__ import annotations

import dis
import functools
import gc
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mailboat.agent

_CALLS = ("CALL", "CALL_FUNCTION_EX", "CALL_KW")
_BACK = ("JUMP_BACKWARD", *(f"POP_JUMP_BACKWARD_IF_{what}" for what in ("TRUE", "FALSE", "NONE", "NOT_NONE")))
"""Those with a condition are CPython 3.11's."""
_TURNS = 3
"""Of each loop, as so many of its turns are places: one over the stack has as many turns as that is deep, which is
another number in each test.
"""
_OURS = str(Path(mailboat.agent.__file__).parent)
_TEMPLATE = "<mailboat recording call>"

Action = Callable[[], object]


@cache
def _operations(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


@cache
def _handlers(code: CodeType) -> list[tuple[int, int, int]]:
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined] # there is no public way to it
    return [(entry.start, entry.end, entry.target) for entry in entries]


def _handler(code: CodeType, offset: int) -> int | None:
    return next((target for start, end, target in _handlers(code) if start <= offset < end), None)


def _is_ours(code: CodeType) -> bool:
    if code.co_filename == _TEMPLATE:
        return code.co_name in ("call", "record")
    return code.co_filename.startswith(_OURS)


class _Tracer:
    def __init__(self, at: int, action: Action, *, raising: bool) -> None:
        self.at = at
        self.action = action
        self.count = 0
        self._raising = raising
        self._last: dict[int, int] = {}
        self._turns: dict[tuple[int, int], int] = {}

    def trace(self, frame: FrameType, event: str, _arg: object) -> Any:  # noqa: ANN401 - itself
        """As `sys.settrace` wants it."""
        if event == "call":
            if not _is_ours(frame.f_code):
                self.entered(frame)
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self.entered(frame)
        elif event == "exception":
            self.raised(frame)
        elif event == "opcode":
            self.comes_to(frame, frame.f_lasti)
        return self.trace

    def entered(self, frame: FrameType) -> None:
        """A Python function begins."""
        if frame.f_back is not None:
            self._last.pop(id(frame.f_back), None)  # there is no look when a Python function returns
        if _is_ours(frame.f_code):
            self._last.pop(id(frame), None)
            self._turns = {key: turns for key, turns in self._turns.items() if key[0] != id(frame)}
            self._place()

    def raised(self, frame: FrameType) -> None:
        """An exception passes by: a call that raised is not followed by a look."""
        self._last.pop(id(frame), None)

    def comes_to(self, frame: FrameType, following: int) -> None:
        """The instruction at `following` is the next one, in a function of ours."""
        last = self._last.get(id(frame))
        self._last[id(frame)] = following
        if last is not None and self._looks(frame, last, following):
            self._place()

    def _looks(self, frame: FrameType, last: int, following: int) -> bool:
        code = frame.f_code
        operation = _operations(code).get(last, "")
        if operation in _BACK and following < last:
            turns = self._turns[id(frame), last] = self._turns.get((id(frame), last), 0) + 1
            if turns > _TURNS:
                return False
        elif operation not in _CALLS:
            return False
        return not self._raising or _handler(code, last) == _handler(code, following)

    def _place(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.action()


@contextmanager
def _traced(tracer: _Tracer) -> Iterator[None]:
    """By `sys.settrace`, up to CPython 3.11."""
    before = sys.gettrace()
    sys.settrace(tracer.trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _monitored(tracer: _Tracer) -> Iterator[None]:
    """By `sys.monitoring`. From CPython 3.12 on `sys.settrace` is made of that, and 3.13.0 tells it nothing of the
    instructions of code that is traced for the first time.
    """
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined] # it came with CPython 3.12
    events, tool, thread = monitoring.events, monitoring.DEBUGGER_ID, threading.get_ident()

    def entered(_code: CodeType, _offset: int) -> None:
        if threading.get_ident() == thread:
            tracer.entered(sys._getframe(1))

    def raised(code: CodeType, _offset: int, _error: BaseException) -> None:
        if _is_ours(code) and threading.get_ident() == thread:
            tracer.raised(sys._getframe(1))

    def comes_to(code: CodeType, offset: int) -> object:
        if not _is_ours(code):
            return monitoring.DISABLE
        if threading.get_ident() == thread:
            tracer.comes_to(sys._getframe(1), offset)
        return None

    told = {
        events.PY_START: entered,
        events.PY_RESUME: entered,
        events.RAISE: raised,
        events.RERAISE: raised,
        events.INSTRUCTION: comes_to,
    }
    monitoring.use_tool_id(tool, "mailboat's tests")
    try:
        for event, callback in told.items():
            monitoring.register_callback(tool, event, callback)
        monitoring.restart_events()
        monitoring.set_events(tool, functools.reduce(operator.or_, told))
        yield
    finally:
        monitoring.set_events(tool, events.NO_EVENTS)
        for event in told:
            monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)


def run(call: Callable[[], object], at: int = 0, action: Action = lambda: None, *, raising: bool = False) -> int:
    """Call it; returns how many places it came by. The action is not traced."""
    tracer, collects = _Tracer(at, action, raising=raising), gc.isenabled()
    gc.disable()  # whoever is told of a collection, or finalized by it, would hide the place where that came
    try:
        with _monitored(tracer) if hasattr(sys, "monitoring") else _traced(tracer):
            call()
    finally:
        if collects:
            gc.enable()
    return tracer.count


def places(call: Callable[[], object], *, raising: bool = False) -> int:
    """How many places `call` comes by."""
    return run(call, raising=raising)
