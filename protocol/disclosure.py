"""What a sealed session says in the clear, and what to its server alone.

An agent calls `sealed_info` once a session; the server, and whoever holds its keys, calls `opened` on a summary. How
the boxes are made is told in `sealing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack
from msgspec.structs import replace

from mailboat.protocol.errors import SealedError, WireError
from mailboat.protocol.sealing import Keyring, PublicKey, Purpose, SealedTo
from mailboat.protocol.summary import INFO_TEXTS, Info, Summary, cut_properties, cut_text

IN_THE_CLEAR: Final = ("product", "application", "version", "environment", "agent")
"""The texts that route a session, and by which a server's plan decides whether it is wanted."""

HIDDEN_TEXTS: Final = tuple(name for name in INFO_TEXTS if name not in IN_THE_CLEAR)


def sealed_info(info: Info, to: PublicKey, session_id: str) -> tuple[Info, SealedTo]:
    """What may stand in the clear of `info`, and how the session's segments are sealed, with the rest in a box."""
    hidden = {name: getattr(info, name) for name in HIDDEN_TEXTS} | {"properties": dict(info.properties)}
    box = to.box(Purpose.INFO, session_id, msgpack.packb(hidden))
    nothing: dict[str, Any] = dict.fromkeys(HIDDEN_TEXTS, "")
    return replace(info, **nothing, properties={}), SealedTo(to.raw, info=box)


def boxed_installation(to: PublicKey, session_id: str, installation: Mapping[str, Any]) -> bytes:
    """The installation (``id`` and ``properties``) for the server alone."""
    return to.box(Purpose.INSTALLATION, session_id, msgpack.packb(dict(installation)))


def opened(summary: Summary, keys: Keyring) -> Summary:
    """The summary with its boxes opened. Raises `SealedError` when one does not open, `WireError` when what is in it is
    malformed.
    """
    if summary.boxed_info:
        hidden = _map(keys.open(summary.boxed_info, Purpose.INFO, summary.session_id), "info")
        info = Info.from_wire(
            summary.info.to_wire() | {name: hidden.get(name) for name in (*HIDDEN_TEXTS, "properties")}
        )
        summary = replace(summary, info=info, boxed_info=b"")
    if summary.boxed_installation:
        box = summary.boxed_installation
        named = _map(keys.open(box, Purpose.INSTALLATION, summary.session_id), "installation")
        properties = named.get("properties")
        summary = replace(
            summary,
            installation=cut_text(named.get("id", "")),
            installation_properties=cut_properties(properties if isinstance(properties, Mapping) else {}),
            boxed_installation=b"",
        )
    return summary


def _map(content: bytes, what: str) -> dict[str, Any]:
    try:
        values = msgpack.unpackb(content)
    except (ValueError, msgpack.UnpackException) as error:
        raise SealedError(f"the sealed {what} is no msgpack") from error
    if not isinstance(values, dict):
        raise WireError(f"the sealed {what} holds a {type(values).__name__}, not a map")
    return values
