"""Telling an exception of our own from one that came in from outside.

A signal handler of the host may raise in the middle of a recording call (KeyboardInterrupt; TimeoutError of an alarm;
a worker's SoftTimeLimit), and so may another thread (PyThreadState_SetAsyncExc). Recording never raises, but these are
not recording's: swallowed, they would cost the host its Ctrl-C or its time limit.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, TypeVar

T = TypeVar("T")

_OURS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a mistake in mailboat, a value or the disk may raise."""

_PACKAGE: Final = __name__.partition(".")[0] + "."


def from_outside(error: BaseException) -> bool:
    """Whether `error`, raised within mailboat's own code, is somebody else's."""
    if not isinstance(error, _OURS) or isinstance(error, TimeoutError):
        return True
    return not _raised_within(error.__traceback__)


def write_refused(error: BaseException) -> bool:
    """Whether `error`, raised by a recording call as it writes, says that it could not."""
    return type(error) is ValueError and _raised_within(error.__traceback__)


def of_a_value(say: Callable[[], T], instead: Callable[[Exception], T]) -> T:
    """What `say` says of a value of the host's, which may run the host's code; if that fails, `instead` of the error.

    An error from outside is raised again.
    """
    try:
        return say()
    except Exception as error:
        again = None
        try:
            say()
        except Exception as second:  # noqa: BLE001 - looked at below
            again = second
        if not value_at_fault(error, again):
            raise
        return instead(error)


def value_at_fault(error: BaseException, again: BaseException | None) -> bool:
    """Whether a value was the reason for `error`, which packing it raised; packing it once more raised `again`, or
    nothing.

    A value may run code of the host's, so where it was raised tells nothing.
    """
    if not isinstance(error, Exception):
        return False
    if isinstance(error, TypeError | ValueError | ArithmeticError | RuntimeError | MemoryError):
        return True
    return type(again) is type(error)


def _raised_within(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is mailboat's: the recording calls are made from a template, and have no module."""
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__")
    return module is None or str(module).startswith(_PACKAGE)
