"""Which dialect a request is meant in, for a server that speaks all of them on the same URLs.

What the request itself says comes first; a bare HEAD or DELETE is taken in the dialect that the upload was made in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mailboat.protocol.uploads import rufh, tus
from mailboat.protocol.uploads.decisions import Appended, Cancelled, Found, Refused
from mailboat.protocol.uploads.digests import Digest
from mailboat.protocol.uploads.messages import HttpAnswer, folded
from mailboat.protocol.uploads.rufh_server import RufhServer
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.tus_server import TusServer
from mailboat.protocol.uploads.values import Asked, Limits


class ServerDialect(Protocol):
    """What a server needs of a dialect: translation, nothing else."""

    @property
    def tag(self) -> str:
        """The name under which an upload remembers it (`UploadState.dialect`)."""

    @property
    def absolute(self) -> bool:
        """Whether its clients need Location to be an absolute URL."""

    def read(self, method: str, headers: Mapping[str, str]) -> Asked | Refused:
        """The core's request for an HTTP request; `Refused` where it is none. Never raises."""

    def answer(
        self, verdict: Appended | Found | Cancelled | Refused, *, now: float, location: str | None = None
    ) -> HttpAnswer:
        """The HTTP answer for `verdict`; `location` is the upload's URL where a creation is answered.

        `now`: wall-clock seconds, for the lifetime left.
        """

    def answer_unknown(self) -> HttpAnswer:
        """The answer for an upload that nobody knows."""

    def read_trailers(self, trailers: Mapping[str, str]) -> Digest | None:
        """The digest that follows a body in its `trailers` (names in lower case), None when there is none."""

    def announce(
        self, state: UploadState, headers: Mapping[str, str], *, location: str, now: float
    ) -> HttpAnswer | None:
        """An interim answer to a creation with these `headers`, to be sent while its body comes: the upload is made,
        at `location`. None where the dialect has none, or the client may not understand it.
        """

    def progress(self, state: UploadState, headers: Mapping[str, str]) -> HttpAnswer | None:
        """An interim answer to a request with these `headers`, to be sent while its body comes: the upload stands at
        `state`, which is stored. None as for `announce`.
        """


def answer_options(limits: Limits, *, upload: bool = False) -> HttpAnswer:
    """The answer to OPTIONS, of one `upload` or of the place where they are made: what all dialects have to tell.

    A request for it need not show a dialect, and a tus client is even asked not to.
    """
    first, second = (
        RufhServer().answer_options(limits, upload=upload),
        TusServer().answer_options(limits, upload=upload),
    )
    patches = f"{rufh.PARTIAL_UPLOAD}, {tus.OFFSET_OCTET_STREAM}"
    return HttpAnswer(first.status, {**second.headers, **first.headers, "Accept-Patch": patches})


def detect(headers: Mapping[str, str], stored: str = "") -> ServerDialect:
    """The dialect of a request with these `headers`; `stored` is the tag of the upload's own, where there is one."""
    fields = folded(headers)
    if tus.speaks_tus(fields):
        return TusServer()
    if stored == tus.TAG and not rufh.speaks_rufh(fields):
        return TusServer()
    default = rufh.version_by_tag(stored) or rufh.CURRENT
    return RufhServer(rufh.version_of(fields, default))
