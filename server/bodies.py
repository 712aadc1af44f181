"""Reading request bodies: small ones whole, uploads piece by piece, none for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Final

from aiohttp import StreamReader, web

from mailboat.protocol.errors import Code
from mailboat.protocol.uploads.decisions import BodyEnd
from mailboat.server.blobs import BlobWriter
from mailboat.server.context import ProblemError
from mailboat.server.taps import Tap, WriteFailed


class Ended(Exception):
    """A transfer was ended by the server; `why` is for the sender."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Superseded(Ended):
    """A newer request on the same upload took over."""


class TooSlow(Ended):
    """The sender brings next to nothing."""


class SyncFailed(Ended):
    """The disk refuses to make durable what has come."""


class Stopping(Ended):
    """The server stops."""


# What aiohttp raises from a body: connection lost (OSError), bad framing (its own errors, all of them `Exception`s).
# The call reads from memory that aiohttp filled, so no failure of ours can hide behind it.
_BROKEN: Final = Exception

LAST_BYTES: Final = 0.02
"""Seconds at most for which a transfer that is to end goes on taking bytes that are here already: whoever took over
waits for them."""

_QUIET: Final = 5
"""Turns of the event loop without a byte after which nothing is here any more: to ask the kernel, to take its answer,
and to make room for the next one take a turn each."""


async def read_whole(request: web.Request, limit: int, seconds: float) -> bytes:
    """The body of a small request; `ProblemError` 413 beyond `limit` bytes, 400 when it is cut or takes too long."""
    if request.content_length is not None and request.content_length > limit:
        raise ProblemError(Code.TOO_LARGE, f"the body has {request.content_length} bytes, at most {limit} are taken")
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while piece := await request.content.readany():
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise ProblemError(Code.TOO_LARGE, f"the body has more than {limit} bytes")
    except ProblemError:
        raise
    except TimeoutError as error:
        raise ProblemError(Code.BAD_REQUEST, f"the body did not come within {seconds:g} s") from error
    except _BROKEN as error:
        raise ProblemError(Code.BAD_REQUEST, "the body is cut short") from error
    return b"".join(pieces)


class Transfer:
    """One body on its way into a blob; at most one is under way for an upload.

    `receive` returns how it ended; `ended` then holds the server's own reason, if it was that. `end` may be called at
    any time from the event loop.
    """

    def __init__(self, content: StreamReader, tap: Tap | None = None) -> None:
        """The body is taken by `tap`, if there is one, as soon as what `content` has of it is taken."""
        self._content, self._tap = content, tap
        self._soon: Ended | None = None
        self.ended: Ended | None = None

    def end(self, reason: Ended) -> None:
        """End the transfer at once; what arrived is kept."""
        if self.ended is None and self._content.exception() is None:
            self.ended = reason
            self._content.set_exception(reason)
            if self._tap is not None:
                self._tap.wake()

    def end_soon(self, reason: Ended) -> None:
        """End it as soon as the bytes that have reached this machine are taken, which the sender of a connection that
        was cut will not send again if it can help it. Within `LAST_BYTES`, also if they never cease to come.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAST_BYTES
        if self._tap is not None:
            self._soon = reason
            self._tap.wake()
            loop.call_at(deadline, self.end, reason)
            return

        def look(seen: int, quiet: int) -> None:
            count = self._content.total_bytes
            quiet = quiet + 1 if count == seen else 0
            if quiet >= _QUIET or loop.time() >= deadline:
                self.end(reason)
            elif self.ended is None:
                loop.call_soon(look, count, quiet)

        look(self._content.total_bytes, 0)

    async def receive(self, writer: BlobWriter, max_bytes: int | None, *, patience: float, minimum: int) -> BodyEnd:
        """Write the body as it comes, at most `max_bytes` of it.

        Ended as `TooSlow` when fewer than `minimum` bytes come in `patience` seconds. Raises `WriteFailed`.
        """
        last = None if max_bytes is None else writer.offset + max_bytes
        watch = _Watch(self, lambda: writer.offset, patience, minimum)
        try:
            if self._tap is not None:
                return await self._draw(self._tap, writer)
            while piece := await self._content.readany():
                if not _write(writer, piece, last):
                    return BodyEnd.OVERRUN
            return BodyEnd.WHOLE
        except WriteFailed:
            raise
        except _BROKEN:
            return self._cut(writer, last)
        finally:
            watch.stop()

    async def _draw(self, tap: Tap, writer: BlobWriter) -> BodyEnd:
        """Write the body by way of `tap`."""
        begun = b"".join(iter(self._content.read_nowait, b""))
        try:
            tap.open(begun)
        except OSError:
            _write(writer, begun, None)
            raise
        with closing(tap):
            while tap.left and self.ended is None:
                soon = self._soon  # before the thread looks: what came before that was said is taken
                drawn = await tap.draw(writer)
                if drawn.gone:
                    return BodyEnd.CUT
                if drawn.dry and soon is not None:
                    self.end(soon)
                elif drawn.dry:
                    await tap.more()
            if tap.left:
                return BodyEnd.CUT
        self._content.feed_eof()
        return BodyEnd.WHOLE

    def _cut(self, writer: BlobWriter, last: int | None) -> BodyEnd:
        """Keep what had arrived when the body broke off: aiohttp hands out nothing more while its error is set."""
        error = self._content.exception()
        self._content.set_exception(None)  # type: ignore[arg-type]
        try:
            if not _write(writer, self._content.read_nowait(), last):
                return BodyEnd.OVERRUN
        finally:
            if error is not None:
                self._content.set_exception(error)
        return BodyEnd.WHOLE if self._content.at_eof() else BodyEnd.CUT


def _write(writer: BlobWriter, piece: bytes, last: int | None) -> bool:
    """Write `piece` up to the offset `last`; False when it goes beyond."""
    fits = last is None or writer.offset + len(piece) <= last
    try:
        writer.write(piece if fits or last is None else piece[: last - writer.offset])
    except OSError as error:
        raise WriteFailed from error
    return fits


class _Watch:
    """Looks at a transfer once in a while, at no cost to each piece."""

    def __init__(self, transfer: Transfer, offset: Callable[[], int], patience: float, minimum: int) -> None:
        self._transfer = transfer
        self._offset = offset
        self._patience = patience
        self._minimum = minimum
        self._seen = offset()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(patience, self._look)

    def _look(self) -> None:
        offset = self._offset()
        if offset - self._seen < self._minimum:
            self._transfer.end(TooSlow(f"fewer than {self._minimum} bytes came in {self._patience:g} s"))
            return
        self._seen = offset
        self._timer = self._loop.call_later(self._patience, self._look)

    def stop(self) -> None:
        self._timer.cancel()
