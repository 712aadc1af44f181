"""Carries out uploads: the socket and the file behind `protocol.uploads.client`, which decides everything.

A failure after progress is followed up at once, by asking the offset; any other ends the attempt, and whoever asked
decides when to go on: `Retry` when the server answered so (it is about this upload), `Broken` when no answer came (then
no other request would fare better). The bytes come straight from the segment's file; nothing is kept of them.
"""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from mailboat.agent.clocks import Clocks
from mailboat.agent.descriptors import DESCRIPTORS
from mailboat.agent.http import TRANSPORT_FAILURES, Body, Http, told
from mailboat.agent.loops import LEAVE_TIMEOUT
from mailboat.agent.planner import Send
from mailboat.agent.stretch import Stretch
from mailboat.agent.traffic import Grant, Held, Traffic
from mailboat.protocol.limits import KIB, MIB, UPLOAD_READ
from mailboat.protocol.negotiation import SERVER_HEADER
from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.outcomes import Advanced, Completed, Created, NotOurs, Outcome, OutOfSync, Refused, Retry
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.stride import Stride
from mailboat.protocol.uploads.tasks import Done, Failed, Source, Wait
from mailboat.protocol.uploads.values import Append, Cancel, Create, Query

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedReader

PATH: Final = "/v1/uploads"
_REPLY: Final = 64 * KIB

STRANGERS: Final = frozenset(range(400, 500)) - {408, 413, 425, 429}
"""Refusals that mean something only if they come from a mailboat server itself: a portal, or a proxy with a rule of its
own, must not make an upload look gone, a key look wrong or a session look poisoned. The others any proxy may state."""

GRANTED: Final = 1 * MIB
"""The most bytes of one append where a day's budget is kept to: they count for the day on which they were granted."""

Progress = Callable[[int, int], None]
"""Told how many bytes of the body have been handed to the connection, and how many the server is known to hold."""

Made = Callable[[str], Awaitable[None]]


class Mark(Struct, frozen=True):
    """By which header, in lower case, the answers of a server are told from those of portals and proxies."""

    header: str
    server: str


MAILBOAT: Final = Mark(SERVER_HEADER.lower(), "mailboat server")


class Broken(Struct, frozen=True):
    """No answer came; to be tried again after `after` seconds at the earliest. `reason` is for people."""

    after: float
    reason: str


class _Upload(Struct):
    """One segment on its way. `given` are the bytes of all its requests that the connection has taken; `cut` how many
    an append brought that broke off, and where it began, until it is known what that has cost; `unreadable` is set when
    its own file could not be read.
    """

    client: UploadClient
    file: AsyncBufferedReader
    progress: Progress
    mark: Mark
    made: Made | None
    turn: int = 0
    given: int = 0
    cut: tuple[int, int] | None = None
    unreadable: Refused | Retry | None = None

    def cannot_read(self, error: OSError | EOFError) -> Refused | Retry:
        """Only what is wrong with the segment itself counts against it: descriptors may be short for a time."""
        why = f"the segment {Path(str(self.file.name)).name} cannot be read: {error}"
        damaged = isinstance(error, EOFError) or error.errno == errno.EIO
        return Refused(0, None, why) if damaged else Retry(0.0, why)


class Uploader:
    """Sends segments to one server."""

    def __init__(self, http: Http, clocks: Clocks, executor: Executor, traffic: Traffic) -> None:
        """Files are read on `executor`; `traffic` says how much may be sent."""
        self._http, self._clocks, self._executor, self._traffic = http, clocks, executor, traffic
        self.stride = Stride()
        """What cuts have taught of the line to this server."""

    async def send(self, task: Send, path: Path, progress: Progress) -> Outcome | Broken | Held:
        """Send what the server lacks of a segment. Never raises but for cancellation, which leaves nothing to be
        mended.
        """
        resource = self._http.url(task.url)
        target = self._http.url(PATH)
        if resource is None or target is None:
            return NotOurs(200, f"the server sends uploads to another place: {task.url[:200]}")
        source = Source(task.segment.size, task.segment.sealed)
        client = UploadClient(
            RufhDialect(), source, target=target, resource=resource, acknowledged=min(task.offset, source.length)
        )
        return await self.deliver(client, path, progress)

    async def deliver(
        self, client: UploadClient, path: Path, progress: Progress, mark: Mark = MAILBOAT, made: Made | None = None
    ) -> Outcome | Broken | Held:
        """`send` for a client of the caller's own: every answer of its server bears `mark`; `made` is told
        the URL of an upload that it had to make, before the first byte goes there.
        """
        try:
            async with _opened(path, self._executor) as file:
                return await self._drive(_Upload(client, file, progress, mark, made))
        except (OSError, ImportError) as error:  # where no descriptor is left, nothing can be imported either
            return Retry(0.0, f"the segment {path.name} cannot be read: {error}")

    async def _drive(self, upload: _Upload) -> Outcome | Broken | Held:
        while True:
            granted = await self._granted(upload.client)
            if isinstance(granted, Held):
                return granted
            before = upload.given
            bounds = (granted.count if self._traffic.budgeted and upload.client.bytes_left else None, self.stride.size)
            upload.client.append_bytes = min((each for each in bounds if each is not None), default=None)
            try:
                end = await self._go_on(upload)
            finally:
                self._traffic.give_back(granted, upload.given - before)
            if end is not None:
                return end

    async def _granted(self, client: UploadClient) -> Grant | Held:
        """So much may go into the next request."""
        if not self._traffic.budgeted or not client.bytes_left:
            return Grant(0)
        return await self._traffic.grant(
            min(client.bytes_left, GRANTED), min(client.bytes_left, client.limits.min_append_size or 1)
        )

    async def _go_on(self, upload: _Upload) -> Outcome | Broken | None:
        """The next step; returns how the attempt ends, if it does."""
        client = upload.client
        step = client.next_task(self._clocks.now())
        match step:
            case Done(end):
                return end
            case Failed(OutOfSync() as bad):
                await self._give_up(upload)
                return bad
            case Failed(bad):
                return bad
            case Wait(until):
                return Advanced(client.offset) if until is None else Retry(until - self._clocks.now(), "paused")
        outcome = await self._carry_out(upload, step)
        if isinstance(outcome, Created) and upload.made is not None:
            await upload.made(outcome.resource)
        if upload.unreadable is not None:
            return upload.unreadable
        ends = isinstance(outcome, NotOurs) or (isinstance(outcome, Retry | Broken) and outcome.after > 0)
        return outcome if ends else None

    async def _give_up(self, upload: _Upload) -> None:
        """Have the server forget an upload that it keeps a wrong account of, so that it can begin anew."""
        upload.client.cancel()
        step = upload.client.next_task(self._clocks.now())
        if isinstance(step, Cancel):
            await self._carry_out(upload, step)

    async def _carry_out(self, upload: _Upload, step: Create | Query | Append | Cancel) -> Outcome | Broken:
        client = upload.client
        request = client.request(step)
        body: Body | Stretch | None = None
        before = upload.given
        if isinstance(step, Append) and step.content_length:
            body = self._body(upload, step.offset, step.content_length)
        try:
            answer = await self._http.request(request.method, request.url, request.headers, body, _REPLY)
        except TRANSPORT_FAILURES as error:
            if isinstance(step, Append):
                upload.cut = (upload.given - before, step.offset)
            broken = client.broken(now=self._clocks.now(), entropy=self._clocks.chance())
            return Broken(broken.after, told(error)) if isinstance(broken, Retry) else broken
        if upload.mark.header not in answer.headers and answer.status in STRANGERS:
            client.broken(now=self._clocks.now(), entropy=self._clocks.chance())
            return NotOurs(answer.status, f"what answers with status {answer.status} is no {upload.mark.server}")
        now, wall = self._clocks.now(), self._clocks.wall() / 1e9
        outcome = client.responded(
            answer.status, answer.headers, answer.body, now=now, wall=wall, entropy=self._clocks.chance()
        )
        upload.progress(0, client.offset)
        self._learn(upload, step, outcome)
        return outcome

    def _learn(self, upload: _Upload, step: Create | Query | Append | Cancel, outcome: Outcome) -> None:
        """What an answer tells of the line."""
        if upload.cut is not None:
            sent, start = upload.cut
            self.stride, upload.cut = self.stride.cut(sent, max(0, upload.client.offset - start)), None
        elif isinstance(step, Append) and isinstance(outcome, Advanced | Completed):
            self.stride = self.stride.went_through(step.content_length or 0)

    def _body(self, upload: _Upload, offset: int, length: int) -> Body | Stretch:
        """A stretch of the segment. Where every byte is to be counted before it goes, it goes by pieces."""
        copied = self._copied(upload, offset, length)
        if self._traffic.paced or self._traffic.budgeted:
            return copied

        def taken(count: int) -> None:
            upload.given += count
            upload.progress(count, upload.client.offset)

        def failed(error: OSError | EOFError) -> None:
            upload.unreadable = upload.cannot_read(error)

        return Stretch(upload.file.fileno(), offset, length, self._executor, taken, failed, copied)

    async def _copied(self, upload: _Upload, offset: int, length: int) -> Body:
        """The same by copies. aiohttp may be slow to let go of the body of a request that failed: one that is no
        longer the last made reads no more, for all of them share the file and its position.
        """
        upload.turn += 1
        turn, left = upload.turn, length
        try:
            await upload.file.seek(offset)
            while left and upload.turn == turn:
                read = await upload.file.read(min(left, UPLOAD_READ))
                if not read:
                    raise EOFError(f"it has {left} bytes less than it had")
                left -= len(read)
                view, piece = memoryview(read), self._traffic.piece
                for at in range(0, len(read), piece):
                    part = view[at : at + piece]
                    await self._traffic.pace(len(part))
                    upload.given += len(part)
                    yield part
                    upload.progress(len(part), upload.client.offset)
        except (OSError, EOFError) as error:
            # It ends the request, and aiohttp would tell it as a lost connection, so the reason is kept here.
            upload.unreadable = upload.cannot_read(error)
            raise


def _load() -> None:
    """Load what an agent that has nothing to send, or no line, is spared. No child is forked in the middle of it: it
    would wait for ever for a module that a thread of its parent was loading.
    """
    with DESCRIPTORS.unforked():
        import aiofiles  # noqa: F401, PLC0415


@asynccontextmanager
async def _opened(path: Path, executor: Executor) -> AsyncIterator[AsyncBufferedReader]:
    """The file, open for reading, and closed in any case: we may be cancelled while a thread opens or closes it."""

    async def opened() -> AsyncBufferedReader:
        if "aiofiles" not in sys.modules:
            await asyncio.get_running_loop().run_in_executor(executor, _load)
        import aiofiles  # noqa: PLC0415 - see `_load`

        return await aiofiles.open(path, "rb", executor=executor)

    async def closed() -> None:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await opening.result().close()

    opening = asyncio.create_task(opened())
    try:
        yield await asyncio.shield(opening)
    finally:
        closing = asyncio.create_task(closed())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)
        for done in (await asyncio.wait([closing], timeout=LEAVE_TIMEOUT))[0]:
            done.result()


_CLOSING: Final[set[asyncio.Task[None]]] = set()
"""Files being closed; each for as long as its thread needs."""
