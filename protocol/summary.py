"""What is known of a session without its records: enough for every list and count, and to decide whether the details
are wanted.

A summary is made from the preambles and seals of the session's segments alone (or, while the session runs, from the
writer's own totals), so it needs no file of its own and can never disagree with the segments.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import islice
from math import isfinite
from types import MappingProxyType
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType, field
from msgspec.structs import replace

from mailboat.protocol.errors import WireError
from mailboat.protocol.ids import canonical
from mailboat.protocol.limits import (
    MAX_BOX,
    MAX_PROPERTIES,
    MAX_PROPERTY_BYTES,
    MAX_PROPERTY_TEXT,
    MAX_SEGMENT,
    MAX_SEGMENTS,
)
from mailboat.protocol.records import COUNTERS, KIND_COUNTERS
from mailboat.protocol.segment import Preamble, Seal, SealReason
from mailboat.protocol.wire import (
    DIGEST,
    MOST,
    Digest,
    Fields,
    Id,
    Number,
    Scalars,
    Text,
    Untyped,
    Whole,
    fitting,
    plain,
)

INFO_TEXTS: Final = (
    "product",
    "application",
    "version",
    "environment",
    "agent",
    "user",
    "host",
    "command",
    "os",
    "runtime",
    "time_zone",
    "locale",
)
"""The texts of a session's static description (`Info`)."""

PERSONAL_TEXTS: Final = ("user", "host", "command")
"""Those that an anonymous session leaves empty."""

_ERROR: Final = COUNTERS.index("error")
_CRITICAL: Final = COUNTERS.index("critical")

_ZEROS: Final = (0,) * len(COUNTERS)

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
"""What most sessions have lost, and say of their installation; one for all, for ten thousand may wait."""

_BOXES: Final = ("boxed_info", "boxed_installation")

_ENTRY_BYTES: Final = 16
"""What an entry of a property map takes beside its texts, at most."""


class Status(StrEnum):
    """How a session stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    CRASHED = "crashed"


class Info(Struct, frozen=True, gc=False):
    """The static description of a session: set at its start, kept in the preamble of each of its segments.

    `agent` is mailboat's own version; `test` marks data of test runs, shown apart; `parent` is the session of the
    process that forked this one; `properties` are the application's own.
    """

    product: Text = ""
    application: Text = ""
    version: Text = ""
    environment: Text = ""
    agent: Text = ""
    user: Text = ""
    host: Text = ""
    command: Text = ""
    os: Text = ""
    runtime: Text = ""
    time_zone: Text = ""
    locale: Text = ""
    test: bool = False
    anonymous: bool = False
    parent: Id | None = None
    properties: Scalars = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """The description as a map of plain values."""
        return plain(self)

    @classmethod
    def from_wire(cls, values: object, where: str = "info") -> Info:
        """What `to_wire` made; `WireError` for anything else."""
        fields = Fields(values, where)
        texts = {name: fields.text(name, "") for name in INFO_TEXTS}
        parent = fields.id("parent") if "parent" in fields else None
        return cls(
            **texts,
            test=fields.flag("test", default=False),
            anonymous=fields.flag("anonymous", default=False),
            parent=parent,
            properties=properties_of(fields, "properties"),
        )


class SegmentState(Struct, frozen=True, gc=False):
    """One segment of a session as it stands: `size` bytes so far; `sha256` (hex) is that of its seal, empty until
    sealed.
    """

    index: Annotated[int, Meta(ge=0, le=MAX_SEGMENTS)]
    size: Annotated[int, Meta(ge=0, le=MAX_SEGMENT)]
    records: Whole
    sealed: bool
    sha256: Digest = ""

    @classmethod
    def read(cls, fields: Fields) -> SegmentState:
        """The same, member by member; `WireError` for what it cannot be."""
        return cls(
            index=fields.whole("index", high=MAX_SEGMENTS),
            size=fields.whole("size", high=MAX_SEGMENT),
            records=fields.whole("records"),
            sealed=fields.flag("sealed"),
            sha256=fields.text("sha256", "", limit=DIGEST),
        )


class Summary(Struct, frozen=True, gc=False):
    """One session in brief.

    `started` and `ended` are seconds since the Unix epoch by the recording machine's clock (`ended` is the last sign
    of life of a running session); `duration` is seconds by its monotonic clock, right even if the wall clock was set.
    `counts` are in the order of `records.COUNTERS`. `installation` is empty until the application names one.
    `boxed_info` and `boxed_installation` are what a sealed session says to its server alone; see `disclosure`.
    """

    session_id: str
    info: Info
    started: float
    ended: float
    duration: float
    status: Status
    counts: tuple[int, ...]
    segments: tuple[SegmentState, ...]
    installation: str = ""
    installation_properties: Scalars = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    boxed_info: bytes = b""
    boxed_installation: bytes = b""

    @property
    def records(self) -> int:
        """Records in the session so far."""
        return sum(self.counts[:KIND_COUNTERS])

    @property
    def size(self) -> int:
        """Bytes of all segments so far."""
        segments = self.segments
        return segments[0].size if len(segments) == 1 else sum(segment.size for segment in segments)

    @property
    def errors(self) -> int:
        """Events and exceptions of level error and up."""
        return self.counts[_ERROR] + self.counts[_CRITICAL]

    def to_wire(self) -> dict[str, Any]:
        """The summary as a map of plain values."""
        return plain(self.to_offer())

    def to_offer(self) -> Offer:
        """The summary as it is said."""
        return Offer(
            session=self.session_id,
            info=self.info,
            started=self.started,
            ended=self.ended,
            duration=self.duration,
            status=self.status,
            counts=dict(zip(COUNTERS, self.counts, strict=True)),
            segments=self.segments,
            installation=self.installation,
            installation_properties=dict(self.installation_properties),
            lost=dict(self.lost),
            boxed_info=_box_text(self.boxed_info) if self.boxed_info else UNSET,
            boxed_installation=_box_text(self.boxed_installation) if self.boxed_installation else UNSET,
        )

    @classmethod
    def from_offer(cls, offer: Offer) -> Summary:
        """What `to_offer` made; `Untyped` where something would have to be mended."""
        if not (_is_cut(offer.info.properties) and _is_cut(offer.installation_properties)):
            raise Untyped
        if offer.boxed_info is not UNSET or offer.boxed_installation is not UNSET or _overlong(offer.lost):
            raise Untyped
        return cls(
            offer.session,
            offer.info,
            offer.started,
            offer.ended,
            offer.duration,
            offer.status,
            tuple(map(offer.counts.get, COUNTERS, _ZEROS)),
            offer.segments,
            offer.installation,
            offer.installation_properties,
            offer.lost,
        )

    @classmethod
    def read(cls, fields: Fields) -> Summary:
        """What `to_wire` made; `WireError` for anything else."""
        info = Info.from_wire(fields.mapping("info"), fields.place("info"))
        counts = Fields(fields.mapping("counts"), fields.place("counts"))
        return cls(
            session_id=fields.id("session"),
            info=info,
            started=fields.number("started"),
            ended=fields.number("ended"),
            duration=fields.number("duration"),
            status=_status(fields),
            counts=tuple(counts.whole(name, 0) for name in COUNTERS),
            segments=fields.each("segments", MAX_SEGMENTS, SegmentState.read),
            installation=fields.text("installation", ""),
            installation_properties=properties_of(fields, "installation_properties"),
            lost=_lost(fields),
            **{name: _box(fields, name) for name in _BOXES},
        )


class Offer(Struct, frozen=True, gc=False):
    """A summary as it is said, member by member; see `Summary` for what they mean."""

    session: Id
    info: Info
    started: Number
    ended: Number
    duration: Number
    status: Status
    counts: dict[str, Whole]
    segments: Annotated[tuple[SegmentState, ...], Meta(max_length=MAX_SEGMENTS)]
    installation: Text = ""
    installation_properties: Scalars = field(default_factory=dict)
    lost: Annotated[Mapping[str, Whole], Meta(max_length=MAX_PROPERTIES)] = field(default_factory=dict)
    boxed_info: str | UnsetType = UNSET
    boxed_installation: str | UnsetType = UNSET


def _is_cut(properties: Mapping[str, Any]) -> bool:
    return not properties or cut_properties(properties) == properties


def _overlong(lost: Mapping[str, int]) -> bool:
    return any(cut_text(reason) != reason for reason in lost)


def _box_text(box: bytes) -> str:
    return base64.b64encode(box).decode()


def _box(fields: Fields, name: str) -> bytes:
    text = fields.text(name, "", limit=MAX_BOX)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise WireError(f"{fields.place(name)}: expected base64, got {text!r:.80}") from error


def _lost(fields: Fields) -> dict[str, int]:
    given = fields.mapping("lost")
    reasons = Fields(given, fields.place("lost"))
    return {cut_text(reason): reasons.whole(reason) for reason in islice(given, MAX_PROPERTIES)}


def _status(fields: Fields) -> Status:
    known = [status.value for status in Status]
    text = fields.text("status")
    return Status(text) if text in known else Status.RUNNING


def properties_of(fields: Fields, name: str) -> dict[str, Any]:
    """The property map `name`, cut to what a summary may hold."""
    return cut_properties(fields.mapping(name))


def cut_properties(values: Mapping[str, Any]) -> dict[str, Any]:
    """At most `MAX_PROPERTIES` entries of `MAX_PROPERTY_BYTES` together; scalars stay, anything else becomes text.

    Takes any values at all, and gives such as every encoding can carry.
    """
    cut: dict[str, Any] = {}
    room = MAX_PROPERTY_BYTES
    for name, value in islice(values.items(), MAX_PROPERTIES):
        key, plain = cut_text(name), _plain(value)
        room -= _ENTRY_BYTES + len(key.encode()) + len(plain.encode() if isinstance(plain, str) else b"")
        if room >= 0:
            cut[key] = plain
    return cut


def cut_text(value: object, limit: int = MAX_PROPERTY_TEXT) -> str:
    """`value` as a text of at most `limit` bytes of UTF-8, whatever it is."""
    try:
        text = value if isinstance(value, str) else str(value)
        encoded = str.encode(text, "utf-8", "backslashreplace")
    except Exception as error:  # noqa: BLE001 - any type of the host's, whose __str__ may do anything
        encoded = f"<{type(value).__name__}: no text, {type(error).__name__}>".encode(errors="backslashreplace")
    return encoded[:limit].decode(errors="ignore")


def _plain(value: object) -> bool | float | int | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and isfinite(value):
        return float(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    return cut_text(value)


def summarise(parts: Sequence[tuple[Preamble, Seal, int]]) -> Summary:
    """The summary of an ended session from each segment's preamble, seal and file size, in order of their indexes.

    There must be at least one. Raises `WireError` when the description in the preamble is malformed.
    """
    first, last = parts[0][0], parts[-1][1]
    # Nearly all sessions have one segment, and ten thousand may wait.
    counts = (
        last.counts if len(parts) == 1 else tuple(map(sum, zip(*(seal.counts for _, seal, _ in parts), strict=True)))
    )
    installation, boxed = last.installation or {}, last.boxed_installation
    for _, seal, _ in reversed(parts[:-1]):
        installation, boxed = installation or seal.installation or {}, boxed or seal.boxed_installation
    properties = installation.get("properties")
    elapsed = max(0, last.ended_monotonic - first.started_monotonic) / 1e9
    return Summary(
        session_id=canonical(first.session_id, "preamble.session"),
        info=_described(first.info),
        started=max(first.started_wall, 0) / 1e9,
        ended=max(last.ended_wall, 0) / 1e9,
        duration=elapsed,
        status=Status.CRASHED if last.reason is SealReason.CRASHED else Status.STOPPED,
        counts=counts,
        segments=tuple(sealed_state(preamble.index, seal, size) for preamble, seal, size in parts),
        installation=cut_text(installation.get("id", "")) if installation else "",
        installation_properties=cut_properties(properties)
        if properties and isinstance(properties, Mapping)
        else NOTHING,
        lost=last.lost or NOTHING,
        boxed_info=first.sealed.info if first.sealed else b"",
        boxed_installation=boxed,
    )


def _described(values: Mapping[str, Any]) -> Info:
    """What a preamble says."""
    with contextlib.suppress(Untyped):
        info = fitting(Info, values)
        if _is_cut(info.properties):
            return info
    return Info.from_wire(dict(values))


def joined(one: Summary, other: Summary) -> Summary:
    """The summary of an ended session from those of some of its segments and of others: no segment is in both.

    What `summarise` would give for all of them. Whoever has the last segment tells how the session ended.
    """
    first = min(one, other, key=lambda summary: min(state.index for state in summary.segments))
    earlier, last = sorted((one, other), key=lambda summary: max(state.index for state in summary.segments))
    return replace(
        last,
        info=first.info,
        started=first.started,
        # Where one of them lies, the sum may be more than a summary can say.
        counts=tuple(min(sum(both), MOST) for both in zip(earlier.counts, last.counts, strict=True)),
        segments=tuple(sorted(earlier.segments + last.segments, key=lambda state: state.index)),
        installation=last.installation or earlier.installation,
        installation_properties=last.installation_properties or earlier.installation_properties,
        boxed_info=first.boxed_info,
        boxed_installation=last.boxed_installation or earlier.boxed_installation,
    )


def sealed_state(index: int, seal: Seal, size: int) -> SegmentState:
    """The state of a sealed segment of `size` bytes."""
    return SegmentState(index, size, seal.records, sealed=True, sha256=seal.sha256.hex())
