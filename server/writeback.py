"""Bytes on their way to the disk before anybody waits for that: a sync of what has all just been written waits for the
disk to take all of it, one of what was sent there meanwhile for the last of it.

Only a sync makes anything durable, and only it tells whether the disk has refused something: what is begun here fails
there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

_WRITE: Final = 2
"""SYNC_FILE_RANGE_WRITE: begin to write what is not being written yet, and wait for none of it."""


def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The call of that name, which is Linux's own; None elsewhere."""
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - no other system needs it

    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    begun: Callable[[int, int, int, int], int] = call
    return begun


_CALL: Final = _sync_file_range()


def begin_writing(fd: int, offset: int, length: int) -> None:
    """Have the system begin to write a range of the file to the disk, if it can do that; it may wait for the disk to
    take it, so this is for a thread.
    """
    if _CALL is not None:
        _CALL(fd, offset, length, _WRITE)
