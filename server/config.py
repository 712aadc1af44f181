"""The server's settings: one frozen value, each field with its default, unit and reason."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mailboat.protocol.errors import ConfigError
from mailboat.protocol.limits import MAX_SEGMENT, MIB
from mailboat.server.products import MAX_PRODUCT, product_name

MAX_PORT: Final = 65_535
ANALYTICS_MEMORY: Final = 512 * MIB
MIN_ANALYTICS_MEMORY: Final = 256 * MIB
"""With less, a batch of records may not find room, and none could be loaded any more."""
LOG_FORMATS: Final = ("json", "text")


class ImpossibleSetting(ConfigError):
    """A setting has a value of the right type with which nothing can work; `field` is its name."""

    def __init__(self, field: str, value: object, needed: str) -> None:
        self.field = field
        self.value = value
        self.needed = needed
        super().__init__(f"{field}={value!r:.80}: {needed} is needed")


_ORIGIN: Final = re.compile(r"https?://[^/?#@\s]+")
_ABOVE_ZERO: Final = (
    "body_timeout",
    "keepalive_timeout",
    "stop_timeout",
    "upload_max_age",
    "max_upload_bytes",
    "retention_interval",
    "quarantine_max_age",
    "sweep_interval",
    "max_unfinished",
    "max_stray_bytes",
    "max_sessions",
    "max_transfers",
    "max_requests",
)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of one server. Sizes are bytes, times seconds.

    Impossible values raise `ImpossibleSetting`, naming the field, its value and what would do.
    """

    data: Path
    """The folder that holds everything; made on first start."""
    host: str = "127.0.0.1"
    """Address to listen on; this machine only unless told otherwise."""
    port: int = 8787
    """TCP port; 0 takes a free one."""
    first_product: str = "default"
    """The product that the first start makes a key for."""
    max_upload_bytes: int = MAX_SEGMENT
    """Largest upload; no segment is larger."""
    min_free_bytes: int = 256 * MIB
    """Below this much free disk no new upload is begun (507, or `later` in a negotiation); those begun go on."""
    body_timeout: float = 30.0
    """A body that brings fewer than `min_body_bytes` in this time is cut; what came is kept."""
    min_body_bytes: int = 1024
    """See `body_timeout`: a thousand bytes in half a minute are no upload, but an attempt to hold the server."""
    keepalive_timeout: float = 75.0
    """How long an idle connection is kept."""
    stop_timeout: float = 10.0
    """How long a stopping server waits for the requests in progress (transfers are cut at a durable offset at once)."""
    upload_max_age: int = 7 * 24 * 3600
    """Lifetime of an unfinished upload that no negotiation asked for."""
    retention_interval: float = 3600.0
    """Between looks for sessions that are older than their product's history window."""
    quarantine_max_age: int = 30 * 24 * 3600
    """How long a complete upload that is no segment is kept, for people to look at."""
    sweep_interval: float = 600.0
    """Between looks for what has expired."""
    max_unfinished: int = 20_000
    """Unfinished uploads of a product that no negotiation asked for: a client that only begins them is stopped here."""
    max_stray_bytes: int = 4 * 1024 * MIB
    """Bytes of a product's complete uploads that are of no session (what is no segment, parts, what was imported): with
    so many, no other is begun that no negotiation asked for. Agents are not held up.
    """
    max_sessions: int = 1_000_000
    """New sessions of a product in a day (UTC), whatever is in them: each takes a KiB or two of the catalog. Beyond it
    offers are refused (429), but for those of sessions that are known.
    """
    max_transfers: int = 1000
    """Bodies of uploads that one key may send at the same time: each holds a connection and its buffers, half a MiB."""
    max_requests: float = 1000.0
    """Requests a second of one key, on average over ten seconds; an agent makes a few a minute."""
    analytics_memory: int = ANALYTICS_MEMORY
    """Memory of the engine that loads records and answers questions about them; beyond it, it works in files."""
    interim_answers: bool = False
    """Whether senders that speak the draft's dialect are told by interim answers (104), while a body comes, where the
    upload is that they make, and once a second how much of the body is durable. Off: HTTP libraries take such an answer
    for the final one, and proxies hang on it.
    """
    cors_origins: tuple[str, ...] = ()
    """Origins (``https://app.example.com``, or ``*``) whose pages may upload; none unless told otherwise."""
    log_format: str = "json"
    """How the log is written to the standard error: ``json``, an object a line, or ``text``."""
    key_cache: float = 5.0
    """How long a key is believed before the catalog is asked again: a revoked one ends within this time."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        object.__setattr__(self, "data", Path(self.data))
        if not 0 <= self.port <= MAX_PORT:
            raise ImpossibleSetting("port", self.port, f"a number from 0 to {MAX_PORT}")
        for name in _ABOVE_ZERO:
            if not 0 < getattr(self, name) < math.inf:
                raise ImpossibleSetting(name, getattr(self, name), "a number above zero")
        for name in ("min_free_bytes", "min_body_bytes", "key_cache"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ImpossibleSetting(name, getattr(self, name), "zero or more")
        if self.analytics_memory < MIN_ANALYTICS_MEMORY:
            raise ImpossibleSetting("analytics_memory", self.analytics_memory, f"{MIN_ANALYTICS_MEMORY} or more")
        object.__setattr__(self, "cors_origins", tuple(self.cors_origins))
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ImpossibleSetting("cors_origins", origin, "an origin such as https://app.example.com, or *,")
        if self.log_format not in LOG_FORMATS:
            raise ImpossibleSetting("log_format", self.log_format, f"one of {', '.join(LOG_FORMATS)}")
        try:
            product_name(self.first_product)
        except ConfigError as error:
            needed = f"a name of 1 to {MAX_PRODUCT} printable characters without blanks at its ends"
            raise ImpossibleSetting("first_product", self.first_product, needed) from error
