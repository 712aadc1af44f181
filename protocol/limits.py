"""Every bound in the system, named, with its reason.

Sizes are bytes, times are seconds, unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# -- records -------------------------------------------------------------------------------------------------------

MAX_RECORD: Final = 1 * MIB
"""A packed record beyond this is cut: one record must never fill a journal or a server's decoder."""

MAX_TEXT: Final = 64 * KIB
"""Characters kept of one text inside a record that had to be cut."""

MAX_DEPTH: Final = 32
"""Nesting of attribute values: deeper ones are turned into text, so that a decoder's stack is bounded."""

MAX_STACK_FRAMES: Final = 100
"""Frames kept of one exception's stack: a runaway recursion has a thousand alike."""

MAX_CAUSES: Final = 8
"""Exceptions kept of one chain of causes."""

MAX_ENTRIES: Final = 65_536
"""Entries, in all its containers together, of a record that has to be converted before it packs: a container that holds
itself, or an endless one, must not hold up the caller."""

MAX_SCHEMA_FIELDS: Final = 64
"""Fields of a declared emitter."""

MAX_SCHEMAS: Final = 4096
"""Emitters declared in one session: they are repeated in each of its segments. An application has a few dozen."""

ALERT_WINDOW: Final = 0.028
"""Errors within this time are told to the application as one alert: what one fault sets off follows in milliseconds."""

MAX_ALERT_RECORDS: Final = 100
"""Records told with one alert: a fault in a loop raises a thousand alike, and each holds on to its values."""

MAX_LAST_WORDS: Final = 32 * KIB
"""Bytes kept of what a dying process wrote of its threads: the first, which tell of the one that failed."""

# -- segments ------------------------------------------------------------------------------------------------------

MAX_PREAMBLE: Final = 64 * KIB
"""The preamble holds one small map; properties given by the application are cut to fit."""

MAX_SEAL: Final = 64 * KIB
"""The seal holds one small map."""

MAX_BLOCK_RAW: Final = 4 * MIB
"""Raw bytes of one block: a decoder allocates this much before it has checked anything but a header."""

MAX_BLOCK: Final = MAX_BLOCK_RAW + 64 * KIB
"""Compressed bytes of one block: zstd expands what it cannot compress by less than this."""

MAX_SEGMENT: Final = 64 * MIB
"""A segment as a server takes it; agents rotate at 16 MiB by default."""

MAX_SEQUENCE: Final = 2**53
"""Records of one session, far more than can be made: a number beyond it, which no JSON holds exactly, is damage."""

MAX_SEGMENTS: Final = 100_000
"""Segments of one session: a name has six digits."""

MAX_PACKAGE: Final = 1000
"""Segments in one package: taking it apart is one request's work. A session of that many has 16 GB."""

# -- negotiation ---------------------------------------------------------------------------------------------------

MAX_OFFERS: Final = 500
"""Sessions offered in one request: one round trip for a backlog, bounded work for the server."""

MAX_NEGOTIATION: Final = 8 * MIB
"""Decompressed bytes of one negotiation message: 500 offers of 16 KiB."""

MAX_NEGOTIATION_WIRE: Final = 2 * MIB
"""Bytes of one negotiation message as sent."""

MAX_CONTAINERS: Final = 250_000
"""Maps and lists in one negotiation message: an empty map is one byte on the wire and 64 in memory. The largest honest
message, of nothing but segments, has fewer."""

MAX_RIDER: Final = 64 * KIB
"""Bytes of a segment that may ride along with its offer: larger ones are worth an upload that can be resumed."""

MAX_RIDING: Final = 1 * MIB
"""Bytes of all segments that ride along in one request: requests of half a megabyte to one are the fastest, and what a
cut costs is at most this."""

MAX_PROPERTIES: Final = 64
"""Entries of a property map (of a session or an installation)."""

MAX_PROPERTY_TEXT: Final = 1024
"""Characters of one text in a summary: summaries are for lists, not for content."""

MAX_PROPERTY_BYTES: Final = 16 * KIB
"""Bytes of one property map: with the largest texts around it, it fits a preamble and a seal (`MAX_PREAMBLE`)."""

MAX_BOX: Final = 64 * KIB
"""Characters of a sealed session's box in a summary: the largest description (`MAX_PREAMBLE`) in base64 fits."""

# -- transfer ------------------------------------------------------------------------------------------------------

MAX_RETRY_AFTER: Final = 24 * 3600.0
"""The longest Retry-After that is obeyed: a server's mistake must not silence an agent for good."""

BACKOFF_FIRST: Final = 1.0
"""First pause after a failure."""

BACKOFF_LONGEST: Final = 300.0
"""Longest pause: after an outage the first attempt comes within five minutes."""

MAX_REPLY: Final = 8 * MIB
"""Bytes read of any reply; a page of a captive portal may be endless."""

UPLOAD_READ: Final = 2 * MIB
"""Bytes of a segment read at a time: each read costs a hop to another thread and back."""

UPLOAD_WRITE: Final = 512 * KIB
"""Bytes of a segment handed to the transport at a time: larger is no faster, smaller costs up to 60 %."""

SMALLEST_BUDGET: Final = 64 * KIB
"""Least bytes a day to which sending may be held: the offer of one session with the largest properties fits."""

SLOWEST_RATE: Final = 1 * KIB
"""Least bytes a second to which sending may be held: below it, connections would be taken for dead."""

POISON_ATTEMPTS: Final = 3
"""Refusals (4xx) of one session before it is quarantined and stops costing requests."""

# -- journal -------------------------------------------------------------------------------------------------------

MIN_JOURNAL: Final = 128 * KIB
"""Two halves of one mapping granule each on every platform (64 KiB on Windows)."""

MAX_JOURNAL: Final = 2 * MAX_BLOCK_RAW
"""Two halves, of each of which one block is made."""

JOURNAL_GROWTH: Final = 64 * MIB
"""Bytes of additional halves taken while the writer is behind a burst; beyond it a caller that fills a half is
paced."""

PACE: Final = 0.004
"""Longest time that a caller is held when it has filled `JOURNAL_GROWTH`, once a half: below the 5 ms that a host's
event loop may be delayed."""

RESERVE: Final = 2 * MIB
"""Room kept back on the disk for seals, the ledger and last blocks: both halves of a journal of the default size fit in
it, since records take about a third of their bytes there. What does not fit stays in the journal, for recovery."""

MEMORY_FALLBACK: Final = 8 * MIB
"""Raw bytes kept in memory when the disk refuses; beyond it records are dropped and counted."""
