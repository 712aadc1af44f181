"""Scrubbing: secrets are taken out of a record before any byte of it reaches the journal.

Attributes are scrubbed by the names of their keys, at any depth: a value under a key that names a secret is replaced
by `REDACTED` (see `secret_names`). In a list of pairs the first of each pair is a name, too, and so are the fields of a
named tuple. What an object says of itself, where it becomes a text, is gone through by `values`.

The application's own callable comes on top, and sees what is left. If it raises, or gives no map, the record is
dropped and counted: better none than one with a secret in it.

On the hot path nothing of this runs. Each name of a keyword is judged once and remembered; a record all of whose
names are known to be harmless, and none of whose values is a container, passes by two calls into C (see `hotpaths`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from mailboat.agent.secret_names import REDACTED, is_secret, names_secret, names_token
from mailboat.agent.values import by_name, packable
from mailboat.protocol.limits import MAX_DEPTH
from mailboat.protocol.summary import cut_properties

Scrub = Callable[[str, dict[str, Any]], Mapping[str, Any]]

_REMEMBERED: Final = 4096
"""Names remembered as harmless: an application has some hundreds, unless it makes them up as it goes."""
_PAIR: Final = 2


def scrubbed(attributes: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """`attributes` without secrets; containers within are gone through, those nested deeper than `MAX_DEPTH` are
    taken out.
    """
    return {key: scrubbed_entry(key, value, depth) for key, value in attributes.items()}


def scrubbed_entry(key: object, value: object, depth: int = 0) -> object:
    """`value` without secrets, as it stands under `key`; see `scrubbed`."""
    return REDACTED if is_secret(key, value) else _scrubbed_value(value, depth + 1)


def _scrubbed_value(value: object, depth: int) -> object:
    if not isinstance(value, Mapping | Sequence | AbstractSet) or isinstance(
        value, str | bytes | bytearray | memoryview
    ):
        return value
    if depth > MAX_DEPTH:
        return REDACTED
    if isinstance(value, Mapping):
        return scrubbed(value, depth)
    named = by_name(value)
    if named is not None:
        return scrubbed(named, depth)
    return [_scrubbed_item(each, depth) for each in value]


def _scrubbed_item(value: object, depth: int) -> object:
    """An entry of a list, which may be one of a list of pairs: head fields are often given so (ASGI, http.client)."""
    if isinstance(value, list | tuple) and len(value) == _PAIR and by_name(value) is None:
        name, said = value
        if isinstance(name, str | bytes):
            return [name, scrubbed_entry(name, said, depth)]
    return _scrubbed_value(value, depth)


def kept_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a session or an installation as they go into preamble, seal and summary, without secrets. Takes any
    values at all.
    """
    plain = packable(properties)
    return cut_properties(scrubbed(plain)) if isinstance(plain, dict) else {}


class Scrubber:
    """The default rules, and the application's callable on top."""

    def __init__(self, own: Scrub | None = None) -> None:
        """`own` takes a record's name and attributes and gives the attributes to keep."""
        self._own = own
        self.harmless: set[str] = set()
        """Names of keywords that were judged before: what the hot path looks at."""

    def scrub(self, name: str, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The attributes to keep. Raises whatever the application's callable raises, and `TypeError` if it gives no
        map.
        """
        self._learn(attributes)
        kept: Mapping[str, Any] = scrubbed(attributes)
        if self._own is not None:
            kept = self._own(name, dict(kept))
            if not isinstance(kept, Mapping):
                raise TypeError(f"scrub gave a {type(kept).__name__} for {name!r}, a map of attributes is expected")
        return kept

    def _learn(self, attributes: Mapping[Any, Any]) -> None:
        if len(self.harmless) < _REMEMBERED:
            self.harmless.update(
                key for key in attributes if isinstance(key, str) and not names_secret(key) and not names_token(key)
            )
