"""The parameters of a query string: each asked for by name, type and bound; a wrong one is refused by its name."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.server.catalog import Origin
from mailboat.server.context import Principal, ProblemError
from mailboat.server.reports import Paging, Scope
from mailboat.server.shapes import Shape, one_of

MAX_LIMIT: Final = 1000
"""Rows of one page."""
MAX_OFFSET: Final = 1_000_000
"""How far an aggregated list may be paged through; nobody reads that far."""
MAX_SECONDS: Final = 253_402_300_799.0
"""The end of the year 9999."""
MAX_TEXT: Final = 1024
MAX_CURSOR: Final = 4096
"""Characters of a cursor: it may hold names of 200 characters each, of any script."""

_E = TypeVar("_E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One that an operation takes, as the OpenAPI document says it; an operation's own checks are in its handler."""

    name: str
    shape: Shape
    about: str = ""


WORD: Final[Shape] = {"type": "string", "maxLength": MAX_TEXT}
_WHEN: Final[Shape] = {
    "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}, {"type": "number"}]
}


def whole(low: int, high: int, default: int) -> Shape:
    """A whole number within bounds."""
    return {"type": "integer", "minimum": low, "maximum": high, "default": default}


PRODUCT: Final = Parameter("product", WORD, "A product's key reaches its own only, an admin's all (the default)")
_PERIOD: Final = (
    Parameter("from", _WHEN, "Not before this: a date, a time (ISO 8601, UTC unless it says), or Unix seconds"),
    Parameter("to", _WHEN, "Before this"),
)


def _origin(default: Origin) -> Parameter:
    shape = {**one_of(*Origin), "default": default.value}
    return Parameter("origin", shape, "`internal` is what test runs recorded")


SCOPE: Final = (PRODUCT, *_PERIOD, _origin(Origin.PUBLIC))
"""What most questions are about: a product, a period, an origin."""
SCOPE_OF_ALL: Final = (PRODUCT, *_PERIOD, _origin(Origin.ALL))
"""The same where everything counts unless an origin is named."""
LIMIT: Final = Parameter("limit", whole(1, MAX_LIMIT, 100), "Rows of a page")
CURSOR: Final = Parameter("cursor", {"type": "string", "maxLength": MAX_CURSOR}, "The `next` of the page before")
PAGING: Final = (LIMIT, Parameter("cursor", whole(0, MAX_OFFSET, 0), "The `next` of the page before"))
"""Pages of an aggregated list."""


class Parameters:
    """Those of one request. Unknown and repeated ones are refused: a filter that was misspelt must not show all."""

    def __init__(self, request: web.Request, parameters: Sequence[Parameter]) -> None:
        known = [each.name for each in parameters]
        self._given = dict(request.query)
        for name in request.query:
            if name not in known:
                raise refused(name, f"there is no such parameter here; there are {', '.join(known)}")
            if len(request.query.getall(name)) > 1:
                raise refused(name, "it is given twice")
            most = MAX_CURSOR if name == CURSOR.name else MAX_TEXT
            if len(self._given[name]) > most:
                raise refused(name, f"at most {most} characters are taken")

    def text(self, name: str) -> str | None:
        """A text, None when it is not given."""
        return self._given.get(name)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number."""
        given = self._given.get(name)
        if given is None:
            return default
        digits = given.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(given) <= high):  # noqa: PLR2004
            raise refused(name, f"expected a whole number from {low} to {high}, got {given!r:.80}")
        return int(given)

    def choice(self, name: str, choices: type[_E], default: _E) -> _E:
        """One of an enumeration's values."""
        given = self._given.get(name)
        if given is None:
            return default
        if given not in [each.value for each in choices]:
            raise refused(name, f"expected one of {', '.join(choices)}, got {given!r:.80}")
        return choices(given)

    def time(self, name: str) -> float | None:
        """A time in Unix seconds: given so, or as a date or a date and time (ISO 8601; UTC unless it says)."""
        given = self._given.get(name)
        if given is None:
            return None
        try:
            seconds = float(given) if given.replace(".", "", 1).isdecimal() else _iso(given)
        except (ValueError, OverflowError):
            seconds = -1.0
        if not 0 <= seconds <= MAX_SECONDS:
            raise refused(name, f"expected a date, a time (ISO 8601) or Unix seconds, got {given!r:.80}")
        return seconds

    def scope(self, principal: Principal) -> Scope:
        """What is asked about, within what `principal` may see."""
        since, until = self.time("from"), self.time("to")
        if since is not None and until is not None and until <= since:
            raise refused("to", "it must be after `from`")
        return Scope(product_of(principal, self.text("product")), since, until, self.origin())

    def origin(self) -> Origin:
        """Whose sessions: public ones unless it says."""
        return self.choice("origin", Origin, Origin.PUBLIC)

    def paging(self) -> Paging:
        """Which page of an aggregated list."""
        return Paging(self.limit(), self.whole("cursor", 0, 0, MAX_OFFSET))

    def limit(self) -> int:
        """Rows of a page."""
        return self.whole("limit", 100, 1, MAX_LIMIT)

    def place(self) -> tuple[str, str]:
        """The place beyond which a page begins, as `cursor_of` gave it; two empty texts for the first page."""
        given = self._given.get(CURSOR.name)
        if given is None:
            return "", ""
        try:
            place = json.loads(base64.urlsafe_b64decode(given.encode()))
        except (ValueError, RecursionError) as error:
            raise refused(CURSOR.name, "it was not handed out here") from error
        match place:
            case [str() as first, str() as second]:
                return first, second
            case _:
                raise refused(CURSOR.name, "it was not handed out here")


def product_of(principal: Principal, asked: str | None) -> str | None:
    """The product to be shown: the key's own, or what an admin asks for (None: all)."""
    if asked is not None and not principal.reaches(asked):
        raise ProblemError(Code.FORBIDDEN, "product: this key reads another product only")
    return principal.product if principal.product is not None else asked


def cursor_of(place: tuple[str, str]) -> str:
    """A cursor that leads to what is beyond `place`."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def refused(name: str, detail: str) -> ProblemError:
    """The refusal of a parameter."""
    return ProblemError(Code.BAD_REQUEST, f"{name:.80}: {detail}")


def _iso(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
