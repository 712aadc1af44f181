"""One line for each request, without anything secret: no header, no query, and nothing that looks like a key."""

from __future__ import annotations

import re
from typing import Final

from aiohttp.abc import AbstractAccessLogger
from aiohttp.web import BaseRequest, StreamResponse

from mailboat.server.context import PRINCIPAL, Principal

_KEY: Final = re.compile(r"mbk_[\w-]*", re.ASCII)
_LONGEST: Final = 200


def harmless(text: str) -> str:
    """`text` fit for a log: cut, on one line, and without keys."""
    plain = _KEY.sub("mbk_...", text[: 4 * _LONGEST])[:_LONGEST]
    return "".join(letter if letter.isprintable() else "?" for letter in plain)


class AccessLogger(AbstractAccessLogger):
    """Writes to aiohttp's access log: address, key id, method, path, status, bytes answered, seconds."""

    def log(self, request: BaseRequest, response: StreamResponse, time: float) -> None:
        """Log one answered request; `time` is seconds."""
        principal = request.get(PRINCIPAL)
        who = principal.key_id if isinstance(principal, Principal) else "-"
        self.logger.info(
            "%s %s %s %s %d %d %.4f",
            request.remote or "-",
            who,
            harmless(request.method),
            harmless(request.path),
            response.status,
            response.body_length,
            time,
        )

    @property
    def enabled(self) -> bool:
        """Whether anybody listens."""
        return self.logger.isEnabledFor(20)
