"""What an answer, or the lack of one, meant for an upload: values, told apart by type.

The first four are good news, `Retry` is an ordinary day, the rest end this attempt at the upload. None of them means
that bytes are lost: whoever uploads keeps the file until a server has confirmed the whole of it.
"""

from __future__ import annotations

from msgspec import Struct


class Created(Struct, frozen=True):
    """The upload has a resource now, at the URL `resource`."""

    resource: str


class Advanced(Struct, frozen=True):
    """The server holds everything before `offset`, and never asks for it again."""

    offset: int


class Completed(Struct, frozen=True):
    """The server holds the whole upload, `offset` bytes."""

    offset: int


class Cancelled(Struct, frozen=True):
    """The upload's resource is gone, as asked."""


class Retry(Struct, frozen=True):
    """To be tried again after `after` seconds; `reason` is for people."""

    after: float
    reason: str


class Gone(Struct, frozen=True):
    """The upload's resource is no more (404, 410, or its lifetime is over): negotiate anew."""

    status: int | None


class Unauthorised(Struct, frozen=True):
    """The key is refused (401, 403): nothing else will be taken either."""

    status: int


class Refused(Struct, frozen=True):
    """The server will not take this upload; asking again is of no use.

    `problem` is the type of its problem document, None when it gave none.
    """

    status: int
    problem: str | None
    detail: str


class NotOurs(Struct, frozen=True):
    """What answered is no upload server: a captive portal, a proxy, another site. As good as offline."""

    status: int
    reason: str


class OutOfSync(Struct, frozen=True):
    """The server's account of the upload cannot be true: going on would lose or mix up bytes.

    `acknowledged` is what it had promised to hold, `server_offset` what it says now, None when unreadable. The resource
    should be cancelled and the upload begun anew.
    """

    acknowledged: int
    server_offset: int | None
    reason: str


class Exhausted(Struct, frozen=True):
    """The bound of failures in a row is reached; `reason` is the last of them."""

    reason: str


Outcome = (
    Created | Advanced | Completed | Cancelled | Retry | Gone | Unauthorised | Refused | NotOurs | OutOfSync | Exhausted
)
Good = Completed | Cancelled
"""The ends one wants."""
Bad = Gone | Unauthorised | Refused | NotOurs | OutOfSync | Exhausted
"""The ends one does not want."""
