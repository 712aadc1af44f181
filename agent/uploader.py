"""Carries out uploads: the socket and the file behind `protocol.uploads.client`, which decides everything.

A failure after progress is followed up at once, by asking the offset; any other ends the attempt with `Retry`, and
whoever asked decides when to go on. The bytes come straight from the segment's file; nothing is kept of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from pathlib import Path

import aiofiles

from mailboat.agent.clocks import Clocks
from mailboat.agent.http import TRANSPORT_FAILURES, Http
from mailboat.agent.planner import Send
from mailboat.protocol.limits import KIB, UPLOAD_READ
from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.outcomes import Advanced, NotOurs, Outcome, OutOfSync, Refused, Retry
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.tasks import Done, Failed, Source, Wait
from mailboat.protocol.uploads.values import Append, Cancel, Create, Query

PATH = "/v1/uploads"
_REPLY = 64 * KIB

Progress = Callable[[int, int], None]
"""Told how many bytes of the body have been handed to the connection, and how many the server is known to hold."""


class Uploader:
    """Sends segments to one server."""

    def __init__(self, http: Http, clocks: Clocks, executor: Executor) -> None:
        """Files are read on `executor`."""
        self._http, self._clocks, self._executor = http, clocks, executor

    async def send(self, task: Send, path: Path, progress: Progress) -> Outcome:
        """Send what the server lacks of a segment. Never raises but for cancellation, which leaves nothing to be
        mended.
        """
        resource = self._http.url(task.url)
        target = self._http.url(PATH)
        if resource is None or target is None:
            return NotOurs(200, f"the server sends uploads to another origin: {task.url[:200]}")
        source = Source(task.segment.size, task.segment.sealed)
        client = UploadClient(
            RufhDialect(), source, target=target, resource=resource, acknowledged=min(task.offset, source.length)
        )
        return await self._drive(client, path, progress)

    async def _drive(self, client: UploadClient, path: Path, progress: Progress) -> Outcome:
        while True:
            step = client.next_task(self._clocks.now())
            match step:
                case Done(end):
                    return end
                case Failed(OutOfSync() as bad):
                    await self._give_up(client, path, progress)
                    return bad
                case Failed(bad):
                    return bad
                case Wait(until):
                    return Advanced(client.offset) if until is None else Retry(until - self._clocks.now(), "paused")
            outcome = await self._carry_out(client, step, path, progress)
            if isinstance(outcome, Retry) and outcome.after > 0:
                return outcome

    async def _give_up(self, client: UploadClient, path: Path, progress: Progress) -> None:
        """Have the server forget an upload that it keeps a wrong account of, so that it can begin anew."""
        client.cancel()
        step = client.next_task(self._clocks.now())
        if isinstance(step, Cancel):
            await self._carry_out(client, step, path, progress)

    async def _carry_out(
        self, client: UploadClient, step: Create | Query | Append | Cancel, path: Path, progress: Progress
    ) -> Outcome:
        request = client.request(step)
        body: AsyncIterator[bytes] | None = None
        if isinstance(step, Append) and step.content_length:
            body = self._body(path, step.offset, step.content_length, progress, client)
        try:
            answer = await self._http.request(request.method, request.url, request.headers, body, _REPLY)
        except TRANSPORT_FAILURES as error:
            if isinstance(
                error.__cause__, FileNotFoundError | _Shrunk
            ):  # aiohttp raises what the body raised as its cause
                client.broken(now=self._clocks.now(), entropy=0.0)
                return Refused(0, None, f"the segment cannot be read: {error.__cause__}")
            broken = client.broken(now=self._clocks.now(), entropy=self._clocks.chance())
            told = f"the connection was lost: {type(error).__name__}: {error}".rstrip(": ")
            return Retry(broken.after, told) if isinstance(broken, Retry) else broken
        now, wall = self._clocks.now(), self._clocks.wall() / 1e9
        outcome = client.responded(
            answer.status, answer.headers, answer.body, now=now, wall=wall, entropy=self._clocks.chance()
        )
        progress(0, client.offset)
        return outcome

    async def _body(
        self, path: Path, offset: int, length: int, progress: Progress, client: UploadClient
    ) -> AsyncIterator[bytes]:
        async with aiofiles.open(path, "rb", executor=self._executor) as file:
            await file.seek(offset)
            left = length
            while left:
                part = await file.read(min(left, UPLOAD_READ))
                if not part:
                    raise _Shrunk(f"{path.name} has {left} bytes less than it had")
                left -= len(part)
                yield part
                progress(len(part), client.offset)


class _Shrunk(Exception):
    """A segment is shorter than it was: somebody else wrote to the store."""
