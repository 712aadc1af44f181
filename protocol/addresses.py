"""Which URLs belong to a server."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

_URL_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*")


def resolve(base: str, location: str) -> str | None:
    """The URL that `location` means in an answer from `base`; None when unreadable or of another origin.

    Another origin is never followed: the key that goes with every request is meant for one server only. `base` may be a
    mere path; then `location` must be one as well.
    """
    # What RFC 3986 does not allow in a URL is read differently by different libraries, and so is a user before the
    # host: the library that connects must not find another host than this one did.
    if not _URL_CHARACTERS.fullmatch(location):
        return None
    try:
        url = urljoin(base, location)
        parts = urlsplit(url)
        return url if _origin(parts) == _origin(urlsplit(base)) and "@" not in parts.netloc else None
    except ValueError:  # an unbalanced bracket, a port that is no number
        return None


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.hostname, default if url.port is None else url.port
