"""Scrubbing: secrets are taken out of a record before any byte of it reaches the journal.

Attributes are scrubbed by the names of their keys, at any depth: a value under a key that names a secret is replaced
by `REDACTED`. Names are compared in one spelling (lower case, letters and digits only), so ``API-Key``, ``api_key``
and ``apiKey`` are one name. Numbers and truth values under a merely token-like name stay (``tokens_used=812`` is no
secret), texts and containers do not. In a list of pairs the first of each pair is a name, too.

The application's own callable comes on top, and sees what is left. If it raises, or gives no map, the record is
dropped and counted: better none than one with a secret in it.

On the hot path nothing of this runs. Each name of a keyword is judged once and remembered; a record all of whose
names are known to be harmless, and none of whose values is a container, passes by two calls into C (see `hotpaths`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from mailboat.agent.values import packable
from mailboat.protocol.limits import MAX_DEPTH
from mailboat.protocol.summary import cut_properties

REDACTED: Final = "[redacted]"

SECRET_PARTS: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "accesskey",
    "privatekey",
    "authorization",
    "credential",
    "cookie",
    "sessionid",
    "csrf",
    "xsrf",
    "bearer",
    "cardnumber",
    "creditcard",
    "securitycode",
)
"""A name that contains one of these names a secret."""

SECRET_NAMES: Final = frozenset(
    {"pwd", "pass", "auth", "jwt", "otp", "pin", "cvv", "cvc", "cvv2", "cc", "pan", "ssn", "iban", "sid", "mnemonic"}
)
"""A name that is one of these, or whose last word is, names a secret."""

TOKEN: Final = "token"  # noqa: S105 - the word, not one
"""A name that contains this names a secret unless its value is a number."""

Scrub = Callable[[str, dict[str, Any]], Mapping[str, Any]]

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/@\s]+@")
_REMEMBERED: Final = 4096
"""Names remembered as harmless: an application has some hundreds, unless it makes them up as it goes."""
_PAIR: Final = 2


def names_secret(key: str) -> bool:
    """Whether a value under `key` is to be taken out, whatever it is."""
    words = [word.lower() for word in _WORDS.findall(key)]
    joined = "".join(words)
    if not words:
        return False
    # A list, and no generator: see `values.simple`.
    return joined in SECRET_NAMES or words[-1] in SECRET_NAMES or any([part in joined for part in SECRET_PARTS])  # noqa: C419


def names_token(key: str) -> bool:
    """Whether a text under `key` is to be taken out."""
    return TOKEN in key.lower()


def scrubbed(attributes: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """`attributes` without secrets; containers within are gone through, those nested deeper than `MAX_DEPTH` are
    taken out.
    """
    return {key: scrubbed_entry(key, value, depth) for key, value in attributes.items()}


def scrubbed_entry(key: object, value: object, depth: int = 0) -> object:
    """`value` without secrets, as it stands under `key`; see `scrubbed`."""
    name = key.decode("latin-1") if isinstance(key, bytes) else key  # as of the head fields in an ASGI scope
    if isinstance(name, str) and (names_secret(name) or (names_token(name) and not isinstance(value, int | float))):
        return REDACTED
    return _scrubbed_value(value, depth + 1)


def _scrubbed_value(value: object, depth: int) -> object:
    if not isinstance(value, Mapping | Sequence | AbstractSet) or isinstance(
        value, str | bytes | bytearray | memoryview
    ):
        return value
    if depth > MAX_DEPTH:
        return REDACTED
    if isinstance(value, Mapping):
        return scrubbed(value, depth)
    return [_scrubbed_item(each, depth) for each in value]


def _scrubbed_item(value: object, depth: int) -> object:
    """An entry of a list, which may be one of a list of pairs: head fields are often given so (ASGI, http.client)."""
    if isinstance(value, list | tuple) and len(value) == _PAIR and isinstance(value[0], str | bytes):
        name, said = value
        return [name, scrubbed_entry(name, said, depth)]
    return _scrubbed_value(value, depth)


def kept_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a session or an installation as they go into preamble, seal and summary, without secrets. Takes any
    values at all.
    """
    plain = packable(properties)
    return cut_properties(scrubbed(plain)) if isinstance(plain, dict) else {}


def without_secrets(command: Sequence[str]) -> str:
    """A command line as one text: the values of options that name secrets are taken out (``--api-key=x``,
    ``--password x``), and so is what a URL says of its user.
    """
    said, secret = [], False
    for word in command:
        option, sign, _ = word.partition("=")
        names = option.startswith("-") and (names_secret(option) or names_token(option))
        if secret and not word.startswith("-"):
            said.append(REDACTED)
        else:
            said.append(f"{option}={REDACTED}" if names and sign else _USER_OF_URL.sub(REDACTED + "@", word))
        secret = names and not sign
    return " ".join(said)


class Scrubber:
    """The default rules, and the application's callable on top."""

    def __init__(self, own: Scrub | None = None) -> None:
        """`own` takes a record's name and attributes and gives the attributes to keep."""
        self._own = own
        self.harmless: set[str] = set()
        """Names of keywords that were judged before: what the hot path looks at."""

    @property
    def always(self) -> bool:
        """Whether every record must be scrubbed, because the application wants to see it."""
        return self._own is not None

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
