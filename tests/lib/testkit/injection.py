"""Doing something at every place where a signal handler, a finalizer or another thread's exception may come in.

CPython looks for them at the entry of a Python function, after each call of a C function and when a loop jumps back,
and nowhere else. `run(call, at=n, action=f)` runs `call` and does `f` at the n-th such place within mailboat's agent;
`places` counts them. What `f` raises is raised there.

An exception raised by a trace function counts as raised by the instruction to come, not by the call that has just
returned; where these two have different handlers, `raising` leaves the place out.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from types import CodeType, FrameType
from typing import Any

_LOOKING = ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD")
_PART = "/agent/"
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
    return _PART in code.co_filename and "mailboat" in code.co_filename


class _Tracer:
    def __init__(self, at: int, action: Action, *, raising: bool) -> None:
        self.at = at
        self.action = action
        self.count = 0
        self._raising = raising
        self._last: dict[int, int] = {}

    def trace(self, frame: FrameType, event: str, _arg: object) -> Any:  # noqa: ANN401 - itself
        if event == "call":
            if frame.f_back is not None:
                self._last.pop(id(frame.f_back), None)  # there is no look when a Python function returns
            if not _is_ours(frame.f_code):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._last.pop(id(frame), None)
            self._place()
        elif event == "exception":
            self._last.pop(id(frame), None)  # a call that raised is not followed by a look
        elif event == "opcode":
            last = self._last.get(id(frame))
            self._last[id(frame)] = frame.f_lasti
            if last is not None and self._looks(frame.f_code, last, frame.f_lasti):
                self._place()
        return self.trace

    def _looks(self, code: CodeType, last: int, following: int) -> bool:
        if _operations(code).get(last) not in _LOOKING:
            return False
        return not self._raising or _handler(code, last) == _handler(code, following)

    def _place(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.action()


def run(call: Callable[[], object], at: int = 0, action: Action = lambda: None, *, raising: bool = False) -> int:
    """Call it; returns how many places it came by. The action is not traced."""
    tracer, before = _Tracer(at, action, raising=raising), sys.gettrace()
    sys.settrace(tracer.trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return tracer.count


def places(call: Callable[[], object], *, raising: bool = False) -> int:
    """How many places `call` comes by."""
    return run(call, raising=raising)
