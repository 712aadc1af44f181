"""One line for each request, without anything secret: no header, no query, and nothing that looks like a key.

Its parts are given to the log as members, too (`ACCESS`), for lines of JSON: ``remote``, ``key`` (its id), ``product``,
``method``, ``path``, ``status``, ``bytes`` of the answer, ``seconds``.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web import BaseRequest, StreamResponse

from mailboat.server.context import PRINCIPAL, Principal

_KEY: Final = re.compile(r"mbk_[\w-]+", re.ASCII)
_LONGEST: Final = 200

ACCESS: Final = "access"
"""The attribute of a log record that holds a request's parts."""


def without_keys(text: str) -> str:
    """`text` with whatever looks like a key left out."""
    return _KEY.sub("mbk_...", text)


def harmless(text: str) -> str:
    """`text` fit for a log: cut, on one line, and without keys."""
    plain = without_keys(text[: 4 * _LONGEST])[:_LONGEST]
    return "".join(letter if letter.isprintable() else "?" for letter in plain)


class AccessLogger(AbstractAccessLogger):
    """Writes to aiohttp's access log: address, key id, method, path, status, bytes answered, seconds."""

    def log(self, request: BaseRequest, response: StreamResponse, time: float) -> None:
        """Log one answered request; `time` is seconds."""
        principal = request.get(PRINCIPAL)
        known = principal if isinstance(principal, Principal) else None
        parts = {
            "remote": request.remote or "-",
            "key": known.key_id if known else "-",
            "product": known.product if known else None,
            "method": harmless(request.method),
            "path": harmless(request.path),
            "status": response.status,
            "bytes": response.body_length,
            "seconds": round(time, 4),
        }
        told = "%(remote)s %(key)s %(method)s %(path)s %(status)d %(bytes)d %(seconds).4f"
        self.logger.info(told, parts, extra={ACCESS: parts})

    @property
    def enabled(self) -> bool:
        """Whether anybody listens."""
        return self.logger.isEnabledFor(20)
