"""What a connectivity window achieved, and how the agent stands: the values handed to the application."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct, field

from mailboat.agent.ledger import Ledger

NO_SERVER: Final = "no server is configured"
FORKED: Final = "this is a forked child, which only records: its parent sends, once it has ended"

MAX_LINE: Final = 300
"""Characters of a reason: it goes to logs and status lines."""


def one_line(text: str) -> str:
    """`text`, which a server may have chosen, as one short line that does nothing to a terminal."""
    if not text:
        return ""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * MAX_LINE]).split())
    return line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…"


class SessionState(StrEnum):
    """What became of a session."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    REJECTED = "rejected"
    PENDING = "pending"
    QUARANTINED = "quarantined"


class SessionOutcome(Struct, frozen=True):
    """One session: `reason` explains a rejection, a quarantine, or why it is still pending. Sizes are bytes as sent."""

    session_id: str
    state: SessionState
    reason: str = ""
    records: int = 0
    bytes_sent: int = 0
    bytes_left: int = 0


class SyncReport(Struct, frozen=True):
    """What `force_sync` did. `duration` is seconds; `complete` means that the server has all that it wants; `error`
    says in a sentence why not, where there is a reason.
    """

    sessions: tuple[SessionOutcome, ...] = ()
    bytes_sent: int = 0
    bytes_left: int = 0
    duration: float = 0.0
    complete: bool = False
    error: str | None = None


class SyncProgress(Struct, frozen=True):
    """How far a connectivity window is: sessions that have ended out of all, bytes sent in it, bytes still to send."""

    sessions_done: int
    sessions: int
    bytes_sent: int
    bytes_left: int


class AgentState(StrEnum):
    """Where the agent's life stands."""

    NEW = "new"
    RUNNING = "running"
    STOPPED = "stopped"
    FORKED = "forked"
    """In a forked child: what is recorded goes into a session of the child's own; nothing is sent by this process."""
    DISABLED = "disabled"
    """By configuration or ``DO_NOT_TRACK``: no file, no connection."""


class Status(Struct, frozen=True):
    """A snapshot of the agent.

    `connectivity` is one of ``connectivity.Link``; `reason` says why nothing is being sent; `next_attempt` is seconds
    from now. `waiting_sessions` and `waiting_bytes` are what the last look into the store found. `crash_proof` is
    False when records are kept in plain memory because the disk refuses; `trouble` then says why. `lost` counts
    records that could not be kept, by reason.
    """

    state: AgentState
    session_id: str | None = None
    connectivity: str = "unknown"
    reason: str = ""
    next_attempt: float | None = None
    waiting_sessions: int = 0
    waiting_bytes: int = 0
    recorded: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    crash_proof: bool = False
    trouble: str = ""
