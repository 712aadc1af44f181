"""How the C library deals with memory that is free, in a process of our own."""

from __future__ import annotations

import ctypes
from typing import Final

from mailboat.protocol.limits import MIB

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Names of ``mallopt`` in glibc's ``malloc.h``; other libraries have no such call, or take no notice of it."""

LARGE: Final = 4 * MIB
"""From this size on an allocation has pages of its own, which go back to the system with it: nothing that a request is
made of is as large, so what one body was read into serves the next one."""

KEPT: Final = 8 * MIB
"""So much free memory is kept at the end of each arena (there is one for each thread that allocates at the same time)
instead of being given back: what one body passes through."""


def keep_memory() -> bool:
    """Keep what large bodies were read into; whether the C library can be told so.

    As glibc comes, memory of the size of a body goes back to the system as soon as it is free, and is asked for again
    with the next body: each of its pages is a fault, and is zeroed, each time. A body of a megabyte passes through four
    such pieces of memory, and those faults took more time than reading, decompressing and decoding it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGE) and mallopt(_TRIM_THRESHOLD, KEPT))
