"""One request's dealings with one upload, in its turn: what the protocol decides, carried out on blobs and the catalog.

Where the durable offset lives
------------------------------
The bytes are in the blob, the *announced* offset is in the catalog. An offset is told to anybody (in an answer to an
append or a query, in a negotiation) only after the blob was synced up to it **and** the catalog's commit of it
returned. The catalog costs one row in a shared commit for each append, not for each piece of a body, so one long
append, which is what agents send, costs one commit.

Three things can come in between, and `recovery` deals with the first two at the next start:

* *Killed* (same boot of the machine): what was written is in the page cache and in order, so the blob is longer than
  announced, by bytes that are right. It is synced, and its whole size announced: the agent goes on at the very byte.
* *Power loss* (another boot): nothing beyond the announced offset can be trusted. A file's size may have reached the
  disk before its bytes, whatever the file system's mode promises. So the blob is cut to the whole frames that check,
  if they reach beyond the announced offset, else to the announced offset; never below it, since those bytes were
  synced.
* *A sync that failed* (the server runs on): the kernel may have dropped the pages and forgotten the error. Nothing is
  announced, the blob is cut back to the announced offset, and the bytes have to come again.

Completion: synced, verified, and stored with its digest, in this order, before the final answer. Killed in between,
the upload is found open with all its bytes; the agent asks for the offset, and completes it with an empty append.

A body under a digest is written as tentative: it counts only after it was checked, and a kill in between drops it.

An upload that is a part of others is not looked into. What is made of parts is copied when the last of them is
complete, in a turn of its own, and is from then on an upload as any other; if that fails, it is tried again when it is
asked for.

The epoch is stored with the outcome of each append rather than before its body, as `decisions` has it for servers that
share a catalog: here one process owns the folder, and `turns` ends an older transfer before a newer request is
decided. The catalog refuses older epochs all the same.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from msgspec import structs

from mailboat.protocol.errors import Code, Problem
from mailboat.protocol.uploads.decisions import (
    Accepted,
    Appended,
    BodyEnd,
    Cancelled,
    Found,
    Refusal,
    Refused,
    finish_append,
    record_bytes,
)
from mailboat.protocol.uploads.detect import ServerDialect
from mailboat.protocol.uploads.digests import Hasher
from mailboat.protocol.uploads.joining import decide_joining
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.state import Event, UploadState
from mailboat.server.blobs import BlobLost, Blobs, BlobWriter
from mailboat.server.bodies import Stopping, Superseded, SyncFailed, Transfer
from mailboat.server.catalog import CatalogError, UploadRow
from mailboat.server.completion import complete, copy_parts, held_to_digest
from mailboat.server.connections import trailers
from mailboat.server.context import (
    BLOBS,
    CATALOG,
    CLOCK,
    CONFIG,
    COUNTERS,
    RECEIVERS,
    WRITERS,
    notify_ingest,
    run_in_worker,
)
from mailboat.server.following import Followed, Passing
from mailboat.server.interim import may_be_told, once_in_a_while, tell
from mailboat.server.problems import problem_response
from mailboat.server.taps import WriteFailed, tap_of
from mailboat.server.turns import TURNS, Turn
from mailboat.server.verification import digest_of

_LOG: Final = logging.getLogger("mailboat.server")


@dataclass(slots=True)
class Dealings:
    """One request's dealings with one upload, in its turn. `location` is set where a creation is answered, `passing`
    where a segment is looked into while it comes, `noted` where some of the body was noted before its end, and
    `unsynced` where that failed.
    """

    request: web.Request
    row: UploadRow
    turn: Turn
    dialect: ServerDialect
    location: str | None = None
    passing: Passing | None = None
    noted: UploadState | None = None
    unsynced: OSError | None = None

    # -- without a body ------------------------------------------------------------------------------------------

    async def refuse(self, verdict: Refused) -> web.StreamResponse:
        """Store the state that the refusal tells, and answer."""
        state = verdict.state
        # A new epoch alone needs no commit of its own here: this turn is the fence.
        if state is not None and structs.replace(state, epoch=self.row.state.epoch) != self.row.state:
            await self._store(state)
            await self._clear_away(state)
        self._count(f"uploads_refused_{verdict.refusal.name.lower()}")
        return self._answer(verdict)

    async def tell(self, verdict: Found | Appended) -> web.StreamResponse:
        """Answer where the upload stands; being asked for may have completed it."""
        if verdict.state.complete and not self.row.state.complete:
            return await self._finish(verdict)
        return self._answer(verdict)

    async def cancel(self, verdict: Cancelled) -> web.StreamResponse:
        """End the resource; the bytes go with it unless they were handed over."""
        if not await self._store(verdict.state):
            return self._overtaken(verdict.state)
        if verdict.discard:
            await run_in_worker(self.request.app, self.request.app[BLOBS].remove, self.row.id)
        self._count("uploads_cancelled")
        return self._answer(verdict)

    # -- with a body ---------------------------------------------------------------------------------------------

    async def announce(self) -> None:
        """Tell who makes an upload where it is, before its body has come (104), if that may be told here at all."""
        if self.location is None or not may_be_told(self.request):
            return
        now = self.request.app[CLOCK]()
        interim = self.dialect.announce(self.row.state, self.request.headers, location=self.location, now=now)
        if interim is not None:
            await tell(self.request, interim)

    async def append(self, accepted: Accepted) -> web.StreamResponse:
        """Take the body, make it durable, finish, answer."""
        app = self.request.app
        try:
            writer, hasher = await self._open(accepted)
        except BlobLost as error:
            return await self._lost(accepted.state, error)
        transfer = Transfer(self.request.content, tap_of(self.request, accepted, app[RECEIVERS]))
        end, failure = await self._receive(transfer, writer, accepted)
        durable = await self._sync(writer)
        self._count("bytes_received", durable - accepted.from_offset)
        if failure is not None:
            end = BodyEnd.CUT
        accepted, digest = await self._digest(accepted, hasher, durable, end)
        stored = self.noted or accepted.state
        verdict = finish_append(stored, accepted, offset=durable, end=end, now=app[CLOCK](), digest=digest)
        response = await self._finish(verdict)
        if accepted.tentative:
            kept = accepted.from_offset if verdict.state is None else verdict.state.offset
            await run_in_worker(app, _settle_tentative, app[BLOBS], self.row.id, kept, durable)
        if failure is not None:
            raise failure  # what was kept is kept; the sender is told why no more was
        if transfer.ended is not None and end is BodyEnd.CUT:
            return await self._hang_up(transfer.ended, response, verdict)
        return response

    async def _open(self, accepted: Accepted) -> tuple[BlobWriter, Hasher | None]:
        """What the body is written to, and what computes its digest on the way, if that is held to one."""
        app, declared = self.request.app, accepted.request.digest
        if not accepted.tentative:
            writer = await run_in_worker(app, app[BLOBS].append, self.row.id, accepted.from_offset)
            return self._followed(writer, accepted), None
        writer = await run_in_worker(app, app[BLOBS].append_tentatively, self.row.id, accepted.from_offset)
        if declared is None:
            return writer, None  # the algorithm follows with the digest
        hasher = declared.algorithm.hasher()
        return Followed(writer, hasher.update, app[WRITERS]), hasher

    def _followed(self, writer: BlobWriter, accepted: Accepted) -> BlobWriter:
        """The same, looking meanwhile into what is promised as a segment and comes whole."""
        size, length = accepted.state.length, accepted.request.content_length
        if self.row.session_id is None or size is None or accepted.from_offset or length != size:
            return writer
        self.passing = Passing(size)
        return Followed(writer, self.passing.take, self.request.app[WRITERS])

    async def _digest(
        self, accepted: Accepted, hasher: Hasher | None, durable: int, end: BodyEnd
    ) -> tuple[Accepted, bytes | None]:
        """The digest of what came, by the algorithm that was declared, be it after the body."""
        if hasher is not None or not accepted.tentative:
            return accepted, None if hasher is None else hasher.digest()
        declared = self.dialect.read_trailers(trailers(self.request)) if end is BodyEnd.WHOLE else None
        if declared is None:
            return accepted, None
        app, start = self.request.app, accepted.from_offset
        digest = await run_in_worker(app, digest_of, app[BLOBS], self.row.id, durable, declared.algorithm, start)
        return accepted.told(declared), digest

    async def _receive(
        self, transfer: Transfer, writer: BlobWriter, accepted: Accepted
    ) -> tuple[BodyEnd, OSError | None]:
        """The body's end, and what the disk said if it was that."""
        if accepted.request.content_length == 0:
            return BodyEnd.WHOLE, None
        config = self.request.app[CONFIG]
        self.turn.begin(transfer)
        try:
            async with self._telling_progress(transfer, writer, accepted):
                end = await transfer.receive(
                    writer, accepted.max_bytes, patience=config.body_timeout, minimum=config.min_body_bytes
                )
            return end, None
        except WriteFailed as error:
            failure = error.__cause__
            return BodyEnd.CUT, failure if isinstance(failure, OSError) else OSError(str(failure))
        except BaseException:
            writer.close()
            raise
        finally:
            self.turn.over()

    def _telling_progress(
        self, transfer: Transfer, writer: BlobWriter, accepted: Accepted
    ) -> AbstractAsyncContextManager[None]:
        """While the body comes, tell its sender how much of it is durable, if that may be told here at all."""
        may = not accepted.tentative and may_be_told(self.request)
        if not may or self.dialect.progress(accepted.state, self.request.headers) is None:
            return nullcontext()

        async def account() -> bool:
            grown = writer.offset > (self.noted or accepted.state).offset
            return await self._note(transfer, writer, accepted) if grown else True

        return once_in_a_while(account)

    async def _note(self, transfer: Transfer, writer: BlobWriter, accepted: Accepted) -> bool:
        """Make durable what has come of the body, note it, and tell the sender; False when that is of no use later."""
        app = self.request.app
        try:
            durable = await run_in_worker(app, writer.sync)
        except OSError as error:
            self.unsynced = error
            transfer.end(SyncFailed("the disk refuses what has come"))
            return False
        recorded = record_bytes(self.noted or accepted.state, accepted, offset=durable)
        try:
            if isinstance(recorded, Refused) or not await self._store(recorded):
                return False
        except (OSError, CatalogError):
            self._count("progress_not_noted")  # nothing is told; it may be possible later, or at the body's end
            return True
        self.noted, self.row = recorded, structs.replace(self.row, state=recorded)
        notify_ingest(app)
        interim, transport = self.dialect.progress(recorded, self.request.headers), self.request.transport
        if interim is None or transport is None or transport.is_closing():
            return False
        await tell(self.request, interim)
        return True

    async def _sync(self, writer: BlobWriter) -> int:
        """The offset that is durable now; the writer is closed."""
        try:
            return await run_in_worker(self.request.app, _sync_and_close, writer, self.unsynced)
        except OSError:
            self._count("storage_sync_failed")
            await run_in_worker(
                self.request.app, _cut_back, self.request.app[BLOBS], self.row.id, self.row.state.offset
            )
            raise

    async def _finish(self, verdict: Appended | Found | Refused) -> web.StreamResponse:
        """Store what has become of the upload, verified if it is complete."""
        if verdict.state is not None and verdict.state.complete and not self.row.state.complete:
            held = await held_to_digest(self.request.app, verdict.state)
            verdict = held if isinstance(held, Refused) else structs.replace(verdict, state=held)
        state = verdict.state
        if state is None:
            return self._answer(verdict)
        grown = state.offset > self.row.state.offset
        looked_into = state.complete and not state.creation.partial
        kept = complete(self.request.app, self.row, state, self.passing) if looked_into else self._store(state)
        stored = await kept
        if not stored:
            return self._overtaken(state)
        await self._clear_away(state)
        if state.complete and state.creation.partial:
            await self._join_others()
        if grown:
            notify_ingest(self.request.app)
        return self._answer(verdict)

    # -- made of others ------------------------------------------------------------------------------------------

    async def join(self) -> Refused | None:
        """Complete an upload that is made of others, if those are; gives the refusal when it never can be."""
        app, state = self.request.app, self.row.state
        if not state.creation.parts or state.complete or state.gone:
            return None
        rows = [await app[CATALOG].upload(part) for part in state.creation.parts]
        held = decide_joining(state, [None if row is None else row.state for row in rows], now=app[CLOCK]())
        if isinstance(held, Refused):
            return held
        if held.complete:
            try:
                await copy_parts(app, held)
            except BlobLost as error:
                return self._lose(state, error)
            await self._finish(Found(held))
            self._count("uploads_joined")
        elif held != state:
            await self._store(held)
        self.row = structs.replace(self.row, state=held)
        return None

    async def _join_others(self) -> None:
        """This upload, a part of others, is complete: so may they be. Nothing of that concerns who sent the part."""
        app = self.request.app
        for row in await app[CATALOG].made_of(self.row.id):
            async with app[TURNS].take(row.id) as turn:
                now = await app[CATALOG].upload(row.id)  # another part may have completed it meanwhile
                if now is None:
                    continue
                try:
                    await Dealings(self.request, now, turn, self.dialect).join()
                except OSError:
                    self._count("uploads_join_failed")
                    _LOG.exception("upload %s cannot be made of its parts now", row.id)

    def _lose(self, state: UploadState, error: BlobLost) -> Refused:
        _LOG.error("upload %s is lost: %s", self.row.id, error)
        self._count("uploads_lost")
        return Refused(Refusal.GONE, "the server has lost the bytes of this upload", state.after(Event.LOSE))

    async def _lost(self, state: UploadState, error: BlobLost) -> web.StreamResponse:
        """The bytes announced are gone: the resource goes too, so that the next negotiation makes a fresh one."""
        refused = self._lose(state, error)
        if refused.state is not None:
            await self._store(refused.state)
        return self._answer(refused)

    async def _hang_up(
        self, reason: Exception, response: web.StreamResponse, verdict: Appended | Refused
    ) -> web.StreamResponse:
        """Answer a transfer that the server has ended, and close its connection: the rest of its body is not wanted."""
        self._count(f"transfers_ended_{type(reason).__name__.lower()}")
        if isinstance(reason, Superseded):
            response = self._answer(Refused(Refusal.SUPERSEDED, str(reason), verdict.state))
        elif isinstance(reason, Stopping):
            response = problem_response(Problem(Code.UNAVAILABLE, str(reason)))
        response.force_close()
        await response.prepare(self.request)
        await response.write_eof()
        self.request.protocol.force_close()
        return response

    # -- answers -------------------------------------------------------------------------------------------------

    async def _store(self, state: UploadState) -> bool:
        return await self.request.app[CATALOG].store(state, self.request.app[CLOCK]())

    async def _clear_away(self, state: UploadState) -> None:
        """The bytes of an unfinished upload that has come to a bad end are of no use, once that is stored."""
        if state.gone and not self.row.state.gone and not self.row.state.complete:
            await run_in_worker(self.request.app, self.request.app[BLOBS].remove, self.row.id)

    def _overtaken(self, state: UploadState) -> web.StreamResponse:
        return self._answer(Refused(Refusal.SUPERSEDED, "the upload has been changed meanwhile", state))

    def _answer(self, verdict: Appended | Found | Cancelled | Refused) -> web.StreamResponse:
        now = self.request.app[CLOCK]()
        return response_of(self.dialect.answer(verdict, now=now, location=self.location))

    def _count(self, name: str, by: int = 1) -> None:
        self.request.app[COUNTERS][name] += by


def response_of(answer: HttpAnswer) -> web.StreamResponse:
    """A dialect's answer as aiohttp sends it."""
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body or None)


def _sync_and_close(writer: BlobWriter, unsynced: OSError | None) -> int:
    # In one call: a cancelled request must not close a descriptor that is being synced. A sync that failed before is
    # not tried again.
    try:
        if unsynced is not None:
            raise unsynced
        return writer.sync()
    finally:
        writer.close()


def _cut_back(blobs: Blobs, blob_id: str, offset: int) -> None:
    try:
        blobs.settle(blob_id, offset)
    except OSError:
        # The next append cuts it back again, before it writes; until then only a restart could be misled.
        _LOG.exception("blob %s cannot be cut back to %d", blob_id, offset)


def _settle_tentative(blobs: Blobs, blob_id: str, offset: int, written: int) -> None:
    if offset < written:
        _cut_back(blobs, blob_id, offset)
    blobs.confirm(blob_id)
