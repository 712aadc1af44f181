"""Where what lies in a journal file; its one writer is `journal`, its reader after a death `leftovers`.

Layout (native byte order; a journal never leaves its machine)::

    head    magic:8s version:u32 half_size:u32 boot_id:64s crc:u32 (of those before it: every version to come keeps it
            here, so that damage is told from such a version), at byte 128 what was lost (4 * u64, two more from
            byte 168 on, see `intake.Lost`), at byte 160 whether the process was leaving in order (u8), at byte 512 64
            descriptors of 512 bytes; 64 KiB in all
    half    records packed one after the other, from the half's offset in the file on

    descriptor   generation:u64 first:u64 (may be `UNCOUNTED`) offset:u64 size:u64 end:u64, and one checkpoint each at
                 the bytes 64 and 192 (durable) and 320 and 448 (passing)
    checkpoint   generation:u64 first:u64 end:u32 data_crc:u32 crc:u32
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"mbjournl"
VERSION: Final = 1
HEAD_SIZE: Final = 64 * 1024
"""Also the granule of offsets: the largest that any platform asks for (Windows)."""

HEAD: Final = struct.Struct("=8sII64s")
HEAD_CRC: Final = struct.Struct("=I")
"""Behind `HEAD`."""
LOST_AT: Final = 128
LOST: Final = struct.Struct("=4Q8xQQ")
LOST_PLACES: Final = (0, 8, 16, 24, 40, 48)
"""Where each count is, from `LOST_AT` on; between the fourth and the fifth is the mark at `LEAVING_AT`."""
LEAVING_AT: Final = LOST_AT + 32
DESCRIPTOR_AT: Final = 512
DESCRIPTOR_SIZE: Final = 512
MAX_HALVES: Final = 64
WORDS: Final = struct.Struct("=QQQQQ")
CHECKPOINT: Final = struct.Struct("=QQIII")
DURABLE_AT: Final = (64, 192)
PASSING_AT: Final = (320, 448)
GENERATION, FIRST, OFFSET, SIZE, END = range(5)
UNCOUNTED: Final = 1 << 63
"""In a half's `first`, as long as the half before it has not been counted: the number is too low by what was recorded
there while the calls were turned.
"""
NATIVE: Final = "little" if struct.pack("=H", 1) == b"\x01\x00" else "big"


def descriptor(index: int) -> int:
    """Where the descriptor of a half is."""
    return DESCRIPTOR_AT + index * DESCRIPTOR_SIZE
