"""Requests on uploads as parsed values, and the limits that hold for them: what both sides and all dialects share.

A client makes these values and a dialect turns them into HTTP; a server's dialect turns HTTP into these values. Nothing
here knows a header.
"""

from __future__ import annotations

from msgspec import Struct

from mailboat.protocol.uploads.digests import Algorithm, Digest


class Limits(Struct, frozen=True):
    """The bounds of one upload, in bytes and (`max_age`) seconds; None means no bound.

    `min_append_size` does not apply to a request that completes the upload, nor to an empty creation.
    """

    max_size: int | None = None
    min_size: int | None = None
    max_append_size: int | None = None
    min_append_size: int | None = None
    max_age: int | None = None


NO_LIMITS = Limits()

MAX_PARTS = 1000
"""Uploads that one may be made of: clients split a file into a handful."""

Notes = tuple[tuple[str, str], ...]
"""Header fields that a client gave with a creation, to be repeated to it: name and value."""


class Create(Struct, frozen=True):
    """Make an upload, and append the body of this request at offset 0.

    `complete`: the body is the whole upload. `length`: the upload's length as stated on its own, None when it was not.
    `content_length`: bytes in the body, None when the message does not tell (chunked). `completes_at_length`: this
    dialect takes an upload for complete as soon as its offset reaches its length, without being told. `digest`: that of
    this body; `digest_follows`: it is told only after the body; `whole`: that of the whole upload, as declared.
    `wanted`: the algorithm of the digest that the server is to tell of the whole. `partial`: it is only made to be a
    part of another one. `notes`: header fields, name and value, that later answers repeat as they are.
    """

    complete: bool
    length: int | None = None
    content_length: int | None = 0
    completes_at_length: bool = False
    digest: Digest | None = None
    digest_follows: bool = False
    whole: Digest | None = None
    wanted: Algorithm | None = None
    partial: bool = False
    notes: Notes = ()


class Join(Struct, frozen=True):
    """Make an upload out of others, named by their URLs as the client wrote them; `notes` as in `Create`."""

    parts: tuple[str, ...]
    notes: Notes = ()


class Append(Struct, frozen=True):
    """Append the body of this request at `offset`; the other fields as in `Create`.

    `length_known`: the server has been told `length` before, so that a dialect may leave it out.
    """

    offset: int
    complete: bool
    length: int | None = None
    content_length: int | None = 0
    completes_at_length: bool = False
    digest: Digest | None = None
    digest_follows: bool = False
    whole: Digest | None = None
    length_known: bool = False


class Query(Struct, frozen=True):
    """Tell where the upload stands; `completes_at_length` as in `Create`."""

    completes_at_length: bool = False


class Cancel(Struct, frozen=True):
    """The upload will not be continued; its resource can go."""


class Discover(Struct, frozen=True):
    """Tell what is supported, within which limits."""


Request = Create | Append | Query | Cancel
"""What a client of ours asks of an upload."""
Asked = Request | Join | Discover
"""What a server may be asked."""


def stated_length(request: Create | Append, offset: int) -> int | None:
    """The length that `request`, made at `offset`, states for the whole upload; None when it states none.

    A length given on its own is taken as it is; otherwise a completing body of known size ends the upload. Whether two
    statements agree is for the caller to check.
    """
    if request.length is not None:
        return request.length
    if request.complete and request.content_length is not None:
        return offset + request.content_length
    return None
