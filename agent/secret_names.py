"""Names of secrets: which they are, and what stands under one in a text.

Names are compared in one spelling (lower case, letters and digits only), so ``API-Key``, ``api_key`` and ``apiKey`` are
one name. Numbers and truth values under a merely token-like name stay (``tokens_used=812`` is no secret), texts and
containers do not.

The text of an object (`without_named_secrets`) mostly comes from the ``__repr__`` of a data class, of attrs, pydantic,
msgspec, or from one written after their manner: ``Login(user='x', password='hunter2')``. What the object does not say
of itself is not said here either, which is why the text is gone through and not the fields. Where a text leaves it open
how far a secret reaches, more is taken out rather than less; but a value that stands there without a name is not known
for what it is, nor is what comes after a comma in one without quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

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

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/@\s]+@")

_NAMED: Final = re.compile(r"""(?<![\w.-])(['"]?)([A-Za-z_][\w.-]*)\1\s*(?:=|:(?!//))\s*""")
"""A name and what leads from it to its value: ``name=``, ``name: ``, ``'name': ``."""
_NUMBER: Final = re.compile(r"(?:-?\d+(?:\.\d+)?|True|False|None)(?=[\s,)\]}>]|$)")
_PIECE: Final = re.compile(
    r"""'(?:[^'\\]|\\.)*(?:'|\\?$)|"(?:[^"\\]|\\.)*(?:"|\\?$)|[(\[{<]|[)\]}>]|,|\s+|[^'"()\[\]{}<>,\s]+""", re.DOTALL
)
"""What a value is made of: quoted texts (to the end of the text where a quote is missing), brackets, commas, blanks,
and all else.
"""


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


def is_secret(name: object, value: object) -> bool:
    """Whether `value` is to be taken out, as it stands under `name`."""
    key = name.decode("latin-1") if isinstance(name, bytes) else name  # as of the head fields in an ASGI scope
    return isinstance(key, str) and (names_secret(key) or (names_token(key) and not isinstance(value, int | float)))


def without_named_secrets(text: str) -> str:
    """`text`, which an object says of itself, without the values that stand under names of secrets, and without what
    URLs say of their users. It takes time in proportion to its length.
    """
    if "=" not in text and ":" not in text:
        return text
    kept, at = list[str](), 0
    while named := _NAMED.search(text, at):
        name, begin = named[2], named.end()
        end = begin
        if names_secret(name) or (names_token(name) and not _NUMBER.match(text, begin)):
            end = _end_of_value(text, begin)
        kept += (text[at:begin], REDACTED) if end > begin else (text[at:begin],)
        at = end
    return _USER_OF_URL.sub(REDACTED + "@", "".join(kept) + text[at:])


def _end_of_value(text: str, begin: int) -> int:
    """Where the value ends that begins at `begin`: at a comma, a bracket that closes more than was opened within it, or
    blanks before another name.
    """
    at, depth = begin, 0
    while piece := _PIECE.match(text, at):
        said = piece[0]
        if said in "([{<":
            depth += 1
        elif said in ")]}" and not depth:
            return at
        elif said in ")]}>":
            depth = max(0, depth - 1)
        elif not depth and (said == "," or (said.isspace() and _NAMED.match(text, piece.end()))):
            return at
        at = piece.end()
    return at


def without_secrets(command: Sequence[str], key: str = "") -> str:
    """A command line as one text: the values of options that name secrets are taken out (``--api-key=x``,
    ``--password x``), and so are what a URL says of its user, and `key`, under whatever name it is given.
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
    text = " ".join(said)
    return text.replace(key, REDACTED) if key else text
