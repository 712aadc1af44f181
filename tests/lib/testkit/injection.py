"""Doing something at every place where a signal handler, a finalizer or another thread's exception may come in.

CPython looks for them at the entry of a Python function, after each call of a C function and when a loop jumps back,
and nowhere else; of a loop the first turns count. `run(call, at=n, action=f)` runs `call` and does `f` at the n-th such
place within mailboat's agent; `places` counts them. What `f` raises is raised there.

An exception raised by a trace function counts as raised by the instruction to come, not by the call that has just
returned; where these two have different handlers, `raising` leaves the place out.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable
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
        if event == "call":
            if frame.f_back is not None:
                self._last.pop(id(frame.f_back), None)  # there is no look when a Python function returns
            if not _is_ours(frame.f_code):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._last.pop(id(frame), None)
            self._turns = {key: turns for key, turns in self._turns.items() if key[0] != id(frame)}
            self._place()
        elif event == "exception":
            self._last.pop(id(frame), None)  # a call that raised is not followed by a look
        elif event == "opcode":
            last = self._last.get(id(frame))
            self._last[id(frame)] = frame.f_lasti
            if last is not None and self._looks(frame, last, frame.f_lasti):
                self._place()
        return self.trace

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


def run(call: Callable[[], object], at: int = 0, action: Action = lambda: None, *, raising: bool = False) -> int:
    """Call it; returns how many places it came by. The action is not traced."""
    tracer, before, collects = _Tracer(at, action, raising=raising), sys.gettrace(), gc.isenabled()
    gc.disable()  # whoever is told of a collection, or finalized by it, would hide the place where that came
    # CPython 3.12 tells of instructions only if some frame had asked for them when the tracing began.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(tracer.trace)
    try:
        call()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return tracer.count


def places(call: Callable[[], object], *, raising: bool = False) -> int:
    """How many places `call` comes by."""
    return run(call, raising=raising)
