"""Counting the bytes of HTTP/1.1 request bodies in a stream that passes by, without taking part in it."""

from __future__ import annotations

from collections import Counter
from typing import Final

_HEAD_END: Final = b"\r\n\r\n"
_MAX_HEAD: Final = 64 * 1024
UPLOADS: Final = "/v1/uploads"


class Meter:
    """The client's side of one connection. `feed` it what the client sends; `bodies` grows by method and path.

    A request without Content-Length has no body here, but one with Transfer-Encoding counts all that follows: the agent
    never sends any such.
    """

    def __init__(self, bodies: Counter[tuple[str, str]]) -> None:
        """`bodies` is added to; several connections may share one."""
        self.bodies = bodies
        self._head = bytearray()
        self._request = ("", "")
        self._left = 0.0

    @property
    def under_way(self) -> tuple[str, str] | None:
        """Method and path of the request whose body has begun and not ended."""
        return self._request if self._left else None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream, cut anywhere."""
        while data:
            if self._left:
                taken = int(min(self._left, len(data)))
                self.bodies[self._request] += taken
                self._left -= taken
                data = data[taken:]
            else:
                data = self._take_head(data)

    def _take_head(self, data: bytes) -> bytes:
        """Add to the head of a request; what follows its end is returned."""
        searched = max(0, len(self._head) - len(_HEAD_END))
        self._head += data
        end = self._head.find(_HEAD_END, searched)
        if end < 0:
            if len(self._head) > _MAX_HEAD:
                self._begin(("", ""), float("inf"))
            return b""
        rest = bytes(self._head[end + len(_HEAD_END) :])
        request, *fields = bytes(self._head[:end]).decode("latin-1").split("\r\n")
        method, path, *_ = [*request.split(" "), "", ""]
        self._begin((method, path), _body_length(fields))
        return rest

    def _begin(self, request: tuple[str, str], length: float) -> None:
        self._head.clear()
        self._request, self._left = request, length


def _body_length(fields: list[str]) -> float:
    values = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    if "transfer-encoding" in values:
        return float("inf")
    length = values.get("content-length", "")
    return float(length) if length.isdecimal() else 0.0


def uploaded(bodies: Counter[tuple[str, str]]) -> int:
    """The body bytes among `bodies` that were bytes of segments."""
    return sum(count for (method, path), count in bodies.items() if method in {"PATCH", "POST"} and UPLOADS in path)
