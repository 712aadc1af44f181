"""Structured fields (RFC 9651), as far as resumable uploads need them: integers, booleans, bytes, dictionaries of them.

Why a parser of our own: every line of the agent's dependencies lands in somebody else's environment, and of the whole
RFC four shapes are needed. The grammar is complete all the same, because a dictionary with an unknown member must be
read past that member, whatever its value is (RUFH 4.1.4); values of other types are recognised and given as `OTHER`.
Only what lies inside them (the UTF-8 of a display string) is not checked. Bytes that are no base64 are `OTHER` as well.

Strictness is that of RFC 9651, section 4.2: what does not parse as a whole is no value at all, and the caller treats
the field as absent. `FieldError` is the only thing these functions raise. The work is linear in the length of the text,
which the HTTP library bounds.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from mailboat.protocol.errors import WireError

MAX_INTEGER: Final = 999_999_999_999_999
"""RFC 9651, 3.3.1: fifteen digits, so that every language can hold it."""


class FieldError(WireError):
    """A field's text is no structured field of the wanted type."""


class Other(Enum):
    """Stands for every value that is neither integer nor boolean nor bytes."""

    OTHER = "other"


OTHER: Final = Other.OTHER
Value = int | bool | bytes | Other

# Compiled (and kept by `re`) when the first field is read, so that an import does not wait for it.
_BARE_ITEM = r"""(?x)
      \?(?P<boolean>[01])
    | (?P<decimal>-?[0-9]{1,12}\.[0-9]{1,3})
    | (?P<integer>-?[0-9]{1,15})
    | (?P<string>"(?:[ !#-\[\]-~]|\\["\\])*")
    | (?P<bytes>:[A-Za-z0-9+/=]*:)
    | (?P<date>@-?[0-9]{1,15})
    | (?P<display>%"(?:[ !#$&-~]|%[0-9a-f]{2})*")
    | (?P<token>[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*)
    """
_KEY = r"[a-z*][a-z0-9_.*-]*"
_SPACES = r" *"
_OPTIONAL_SPACE = r"[ \t]*"


class _Reader:
    """A place in a text, and the rules of section 4.2 that move it."""

    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text.strip(" ")
        self.at = 0

    @property
    def ended(self) -> bool:
        return self.at == len(self.text)

    def refuse(self, wanted: str) -> FieldError:
        return FieldError(f"no {wanted} at character {self.at} of the field {self.text[:80]!r}")

    def skip(self, literal: str) -> bool:
        """Step over `literal`, a single character, if it is next."""
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def match(self, pattern: str, wanted: str) -> re.Match[str]:
        found = re.compile(pattern).match(self.text, self.at)
        if found is None:
            raise self.refuse(wanted)
        self.at = found.end()
        return found

    def bare_item(self) -> Value:
        found = self.match(_BARE_ITEM, "item")
        if found["integer"] is not None:
            return int(found["integer"])
        if found["boolean"] is not None:
            return found["boolean"] == "1"
        if found["bytes"] is not None:
            return _decoded(found["bytes"][1:-1])
        return OTHER

    def parameters(self) -> None:
        """Read parameters; none is defined for any field used here, so they are dropped."""
        while self.skip(";"):
            self.match(_SPACES, "parameter")
            self.match(_KEY, "key of a parameter")
            if self.skip("="):
                self.bare_item()

    def item(self) -> Value:
        value = self.bare_item()
        self.parameters()
        return value

    def inner_list(self) -> Value:
        """Read the rest of a list after its opening parenthesis: items, each but the last followed by a space."""
        self.match(_SPACES, "item")
        while not self.skip(")"):
            self.item()
            if not self.text.startswith((" ", ")"), self.at):
                raise self.refuse("end of an inner list")
            self.match(_SPACES, "item")
        self.parameters()
        return OTHER

    def member(self) -> Value:
        """Read a dictionary member's value, after its key."""
        if not self.skip("="):
            self.parameters()
            return True
        return self.inner_list() if self.skip("(") else self.item()


def _decoded(text: str) -> bytes | Other:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # RFC 9651, 4.2.7: padding may be missing, but no sender of digests leaves it out
        return OTHER


def _single(text: str) -> Value:
    reader = _Reader(text)
    value = reader.item()
    if not reader.ended:
        raise reader.refuse("end")
    return value


def parse_integer(text: str) -> int:
    """The non-negative Integer that the Item `text` holds; raises `FieldError` for anything else."""
    value = _single(text)
    if type(value) is not int or value < 0:
        raise FieldError(f"{text[:80]!r} is no non-negative integer")
    return value


def parse_boolean(text: str) -> bool:
    """The Boolean that the Item `text` holds (``?0`` or ``?1``); raises `FieldError` for anything else."""
    value = _single(text)
    if type(value) is not bool:
        raise FieldError(f"{text[:80]!r} is no boolean")
    return value


def parse_dictionary(text: str) -> dict[str, Value]:
    """The members of the Dictionary `text`, the last one of several alike; raises `FieldError`."""
    reader = _Reader(text)
    members: dict[str, Value] = {}
    while not reader.ended:
        key = reader.match(_KEY, "key")[0]
        members[key] = reader.member()
        reader.match(_OPTIONAL_SPACE, "comma")
        if reader.ended:
            break
        if not reader.skip(","):
            raise reader.refuse("comma")
        reader.match(_OPTIONAL_SPACE, "key")
        if reader.ended:
            raise reader.refuse("key")
    return members


def serialise_integer(value: int) -> str:
    """`value`, non-negative and of at most fifteen digits, as an Item; raises `FieldError` beyond that."""
    if not 0 <= value <= MAX_INTEGER:
        raise FieldError(f"{value} cannot be stated in a structured field")
    return str(value)


def serialise_boolean(value: bool) -> str:  # noqa: FBT001 - the value itself, not a switch
    """`value` as an Item."""
    return "?1" if value else "?0"


def serialise_dictionary(members: Mapping[str, int]) -> str:
    """A Dictionary of non-negative integers, in the order given; raises `FieldError` as `serialise_integer` does."""
    return ", ".join(f"{key}={serialise_integer(value)}" for key, value in members.items())
