"""From segment bytes to rows in the store: decoding and writing side by side, and finding the segment that is to blame.

`Loader` owns the analytics store and the decoder, each with a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from mailboat.protocol.errors import MailboatError
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_store import Key, OutOfMemory, Progress, RowsRefused, SqlStore, Step
from mailboat.server.batches import Batch, Known
from mailboat.server.blobs import Blobs
from mailboat.server.catalog import SegmentRow, SessionRow
from mailboat.server.decoder import NICENESS, Task
from mailboat.server.decoding import PIECE, Decoded, Decoder, DecoderDied

ANALYTICS_FILE: Final = "analytics.duckdb"
ROWS_FOLDER: Final = "ingest"

ATTEMPTS: Final = 2
"""A segment alone in its batch is tried so often: once may have been an accident (the decoder was killed, say)."""

_log = logging.getLogger("mailboat.server.ingest")
_T = TypeVar("_T")


class SegmentLost(MailboatError):
    """The bytes of a segment are not where they were announced."""


class Stopped(MailboatError):
    """The loader was told to stop; what it had begun was not loaded."""


class BatchFailed(MailboatError):
    """One of `BLAMED`, or `OutOfMemory`, which is its cause: nothing of a batch was loaded, nor of those after it."""

    def __init__(self, batch: Batch, cause: MailboatError) -> None:
        super().__init__(str(cause))
        self.segments = batch.segments
        self.cause = cause


BLAMED: Final = (DecoderDied, RowsRefused, SegmentLost)
"""What a segment of the batch is to blame for; anything else is the machine's."""


class Loader:
    """Loads what it is told to, from `open` to `close`. One coroutine at a time may call it, but for `stop`."""

    analytics: SqlStore

    def __init__(
        self,
        blobs: Blobs,
        folder: Path,
        decoder: Decoder | None = None,
        opening: Callable[[Path], SqlStore] = Analytics,
    ) -> None:
        """`folder` is the server's; the store and the rows on their way are kept in it. `opening` opens the store."""
        self._blobs = blobs
        self._file = folder / ANALYTICS_FILE
        self._rows = folder / ROWS_FOLDER
        self._decoder = decoder or Decoder()
        self._opening = opening
        self._writing = ThreadPoolExecutor(1, "mailboat-analytics", initializer=_step_back)
        self._decoding = ThreadPoolExecutor(1, "mailboat-decoding")
        self._stopping = False
        self._folders = 0

    async def open(self) -> None:
        """Open the store; `AnalyticsError` when that cannot be. The decoder takes a tenth of a second to be ready, and
        begins with that.
        """
        self.analytics = await self._write(self._open)
        await asyncio.get_running_loop().run_in_executor(self._decoding, self._decoder.start)

    async def reopen(self) -> None:
        """Open the store anew after a failed write."""
        await self._write(self.analytics.reopen)

    def stop(self) -> None:
        """Have what is under way end soon, with `Stopped`; nothing is loaded after that."""
        self._stopping = True
        self._decoder.abort()

    async def close(self) -> None:
        """Release everything; call `stop` before."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._decoding, self._decoder.close)
        if hasattr(self, "analytics"):
            await self._write(self.analytics.close)
        for executor in (self._writing, self._decoding):
            await asyncio.to_thread(executor.shutdown)

    # -- what is known -------------------------------------------------------------------------------------------

    async def generation(self) -> int:
        """See `Analytics.generation`."""
        return await self._write(lambda: self.analytics.generation)

    async def revision(self) -> int:
        """See `Analytics.revision`."""
        return await self._write(lambda: self.analytics.revision)

    async def progress(self, segments: Sequence[SegmentRow]) -> Known:
        """What was loaded of the sessions of these segments."""
        keys: set[Key] = {each.key for each in segments}
        return await self._write(lambda: self.analytics.progress(keys))

    # -- loading -------------------------------------------------------------------------------------------------

    async def forget(self, sessions: Sequence[Key]) -> int:
        """See `AnalyticsStore.forget`."""
        return await self._write(lambda: self.analytics.forget(sessions))

    async def unload(self, segments: Sequence[SegmentRow]) -> int:
        """See `AnalyticsStore.unload`."""
        return await self._write(lambda: self.analytics.unload(segments))

    async def sum_up(self, *, idle: bool) -> bool:
        """See `AnalyticsStore.sum_up`."""
        return await self._write(lambda: self.analytics.sum_up(idle=idle))

    async def load_sessions(self, rows: Sequence[SessionRow], revision: int) -> None:
        """See `Analytics.load_sessions`."""
        await self._write(lambda: self.analytics.load_sessions(rows, revision))

    async def load(self, coming: Callable[[], Awaitable[Batch | None]]) -> AsyncGenerator[list[Step], None]:
        """Load the batches that come, up to None; gives the steps of each that has been written.

        While one batch is being written, the next lies ready and the one after it is being decoded, so that neither
        thread waits for the other's slower ones, nor for what is done with the steps. A batch is asked for when all
        before it were decoded. Raises `BatchFailed`.
        """
        decoding: asyncio.Task[Decoded] | None = None
        ready: Decoded | None = None
        written: asyncio.Task[list[Step]] | None = None
        try:
            batch = await coming()
            while batch is not None:
                ready = await (decoding or self._decode(batch))
                following = await coming()
                decoding = asyncio.create_task(self._decode(following)) if following is not None else None
                steps = await written if written is not None else []
                written, ready, batch = asyncio.create_task(self._load(batch, ready)), None, following
                if steps:
                    yield steps
            if written is not None:
                yield await written
        finally:
            await self._end(ready, decoding, written)

    async def _end(
        self, ready: Decoded | None, decoding: asyncio.Task[Decoded] | None, written: asyncio.Task[list[Step]] | None
    ) -> None:
        """Wait for what is under way; rows that nobody will write are removed."""
        await asyncio.gather(*(task for task in (decoding, written) if task is not None), return_exceptions=True)
        if decoding is not None and not decoding.cancelled() and decoding.exception() is None:
            await asyncio.to_thread(_remove, decoding.result().folder)
        if ready is not None:
            await asyncio.to_thread(_remove, ready.folder)

    async def load_alone(self, segment: SegmentRow) -> list[Step] | str:
        """Load one segment that may be at fault: its steps, or why it cannot be loaded, which is noted in the store."""
        reason = ""
        for _ in range(ATTEMPTS):
            known = await self.progress([segment])
            batch = Batch([segment], known)
            try:
                return await self._load(batch, await self._decode(batch))
            except BatchFailed as error:
                if isinstance(error.cause, OutOfMemory):
                    raise error.cause from error
                reason = str(error)
        await self.give_up(segment, reason)
        return reason

    async def give_up(self, segment: SegmentRow, reason: str) -> None:
        """Note in the store why nothing more of a segment will be loaded."""
        known = await self.progress([segment])
        before = known.get(segment.key, {}).get(segment.upload_id, Progress(segment.index))
        await self._write(lambda: self.analytics.load_failed(segment, before, reason))

    async def _decode(self, batch: Batch) -> Decoded:
        if self._stopping:
            raise Stopped("the server is stopping")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoding, self._decode_in_thread, batch)
        except BLAMED as error:
            if self._stopping and isinstance(error, DecoderDied):
                raise Stopped("the server is stopping") from error
            raise BatchFailed(batch, error) from error

    def _decode_in_thread(self, batch: Batch) -> Decoded:
        self._folders += 1
        folder = self._rows / str(self._folders)
        folder.mkdir()
        try:
            return self._decoder.decode(folder, self._tasks(batch), batch.done)
        except BaseException:
            _remove(folder)
            raise

    def _tasks(self, batch: Batch) -> Iterator[tuple[Task, Iterator[bytes]]]:
        for number, segment in enumerate(batch.segments):
            task = batch.task(number)
            yield task, self._pieces(segment, task.offset)

    def _pieces(self, segment: SegmentRow, offset: int) -> Iterator[bytes]:
        while offset < segment.offset:
            try:
                piece = self._blobs.read(segment.upload_id, offset, min(PIECE, segment.offset - offset))
            except FileNotFoundError as error:
                raise SegmentLost(f"its bytes are gone: {error}") from error
            if not piece:
                raise SegmentLost(f"{segment.offset} bytes were announced, only {offset} are there")
            yield piece
            offset += len(piece)

    async def _load(self, batch: Batch, decoded: Decoded) -> list[Step]:
        def write() -> None:
            try:
                self.analytics.load(decoded, batch.steps)
            finally:
                _remove(decoded.folder)

        try:
            await self._write(write)
        except (*BLAMED, OutOfMemory) as error:
            raise BatchFailed(batch, error) from error
        return batch.steps

    # -- threads -------------------------------------------------------------------------------------------------

    async def _write(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, call)

    def _open(self) -> SqlStore:
        # Rows on their way when the server died: they are made again.
        _remove(self._rows)
        self._rows.mkdir(mode=0o700)
        return self._opening(self._file)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _step_back() -> None:
    """Let this thread, and those that the engine starts from it, come after the event loop when there are too few
    processors for all. Linux alone has priorities of threads.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
