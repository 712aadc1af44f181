"""Uploads over HTTP: what the protocol decides, carried out on blobs and the catalog.

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

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from mailboat.protocol.errors import Code, Problem
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.uploads import tus
from mailboat.protocol.uploads.decisions import (
    Accepted,
    Appended,
    BodyEnd,
    Cancelled,
    Found,
    Refusal,
    Refused,
    check_whole,
    decide_append,
    decide_cancel,
    decide_create,
    decide_query,
    finish_append,
)
from mailboat.protocol.uploads.detect import ServerDialect, answer_options, detect
from mailboat.protocol.uploads.joining import decide_join, decide_joining
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.state import Event, UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Join, Limits, Query
from mailboat.server.blobs import BlobLost, Blobs, BlobWriter
from mailboat.server.bodies import Hashed, Stopping, Superseded, Transfer, WriteFailed
from mailboat.server.catalog import Role, UploadRow, Verification
from mailboat.server.context import (
    BLOBS,
    CATALOG,
    CLOCK,
    CONFIG,
    COUNTERS,
    NEW_ID,
    VERIFIERS,
    Principal,
    ProblemError,
    notify_ingest,
    require,
    run_in_worker,
)
from mailboat.server.problems import problem_response
from mailboat.server.turns import TURNS, Turn
from mailboat.server.verification import digest_of, verify

PATH: Final = "/v1/uploads"
_PLACE_TAKES: Final = ("OPTIONS", "POST", "PUT")

_LOG: Final = logging.getLogger("mailboat.server")


def add_routes(app: web.Application) -> None:
    """The place where uploads are made, and each upload; which methods they take is for the protocol to say."""
    app.router.add_route("*", PATH, create)
    app.router.add_route("*", PATH + "/", create)  # as tus clients are often told it
    app.router.add_route("*", PATH + "/{id}", act)
    app.on_response_prepare.append(_mark)


async def create(request: web.Request) -> web.StreamResponse:
    """POST (or PUT): make an upload, with the body as its first bytes. OPTIONS: what is supported."""
    principal = require(request, Role.AGENT)
    dialect = detect(request.headers)
    limits = _limits_of_strangers(request)
    if request.headers.get(tus.METHOD_OVERRIDE, request.method).upper() not in _PLACE_TAKES:
        raise web.HTTPMethodNotAllowed(request.method, _PLACE_TAKES)
    asked = dialect.read(request.method, request.headers)
    match asked:
        case Discover():
            return _response(answer_options(limits))
        case Refused():
            return _response(dialect.answer(asked, now=request.app[CLOCK]()))
        case Create():
            return await _create(request, principal, asked, limits, dialect)
        case Join():
            return await _join(request, principal, asked, limits, dialect)
        case _:
            raise web.HTTPMethodNotAllowed(request.method, _PLACE_TAKES)


async def act(request: web.Request) -> web.StreamResponse:
    """PATCH, HEAD, GET, DELETE, OPTIONS on one upload."""
    principal = require(request, Role.AGENT)
    catalog, upload_id = request.app[CATALOG], request.match_info["id"]
    # Before the turn: a stranger, or a request that cannot be understood, ends nobody's transfer.
    row = await catalog.upload(upload_id) if is_canonical(upload_id) else None
    if row is None or not principal.reaches(row.product):
        return _response(detect(request.headers).answer_unknown())
    dialect = detect(request.headers, row.state.dialect)
    asked = dialect.read(request.method, request.headers)
    match asked:
        case Discover():
            return _response(answer_options(row.state.limits, upload=True))
        case Refused():
            return _response(dialect.answer(asked, now=request.app[CLOCK]()))
        case Create() | Join():
            raise web.HTTPMethodNotAllowed(request.method, ["OPTIONS", "HEAD", "GET", "PATCH", "DELETE"])
    async with request.app[TURNS].take(upload_id) as turn:
        row = await catalog.upload(upload_id)
        if row is None:
            return _response(dialect.answer_unknown())
        return await _act(_Upload(request, row, turn, dialect), asked)


async def _act(upload: _Upload, asked: Append | Query | Cancel) -> web.StreamResponse:
    now = upload.request.app[CLOCK]()
    match asked:
        case Append():
            verdict = decide_append(upload.row.state, asked, now=now)
            return await (upload.refuse(verdict) if isinstance(verdict, Refused) else upload.append(verdict))
        case Query():
            spoilt = await upload.join()
            found = spoilt or decide_query(upload.row.state, asked, now=now)
            return await (upload.refuse(found) if isinstance(found, Refused) else upload.tell(found))
        case Cancel():
            cancelled = decide_cancel(upload.row.state, now=now)
            return await (upload.refuse(cancelled) if isinstance(cancelled, Refused) else upload.cancel(cancelled))


async def _create(
    request: web.Request, principal: Principal, asked: Create, limits: Limits, dialect: ServerDialect
) -> web.StreamResponse:
    app, now = request.app, request.app[CLOCK]()
    product = await _product_with_room(request, principal)
    verdict = decide_create(asked, upload_id=app[NEW_ID](), limits=limits, now=now, dialect=dialect.tag)
    if isinstance(verdict, Refused):
        return _response(dialect.answer(verdict, now=now))
    async with app[TURNS].take(verdict.state.id) as turn:
        upload = await _made(request, verdict.state, product, turn, dialect)
        return await upload.append(verdict)


async def _join(
    request: web.Request, principal: Principal, asked: Join, limits: Limits, dialect: ServerDialect
) -> web.StreamResponse:
    app, now = request.app, request.app[CLOCK]()
    product = await _product_with_room(request, principal)
    ids = [url.rpartition("/")[2] for url in asked.parts]
    rows = [await app[CATALOG].upload(each) if is_canonical(each) else None for each in ids]
    parts = [None if row is None or row.product != product else row.state for row in rows]
    verdict = decide_join(asked, parts, upload_id=app[NEW_ID](), limits=limits, now=now, dialect=dialect.tag)
    if isinstance(verdict, Refused):
        return _response(dialect.answer(verdict, now=now))
    async with app[TURNS].take(verdict.state.id) as turn:
        upload = await _made(request, verdict.state, product, turn, dialect)
        spoilt = await upload.join()
        return await (upload.tell(Appended(upload.row.state)) if spoilt is None else upload.refuse(spoilt))


async def _product_with_room(request: web.Request, principal: Principal) -> str:
    """The product that a new upload belongs to; `ProblemError` when there is none, or no room for it."""
    app = request.app
    if principal.product is None:
        raise ProblemError(Code.FORBIDDEN, "an admin's key belongs to no product: upload with a key of the product")
    if await run_in_worker(app, app[BLOBS].free) < app[CONFIG].min_free_bytes:
        raise ProblemError(Code.STORAGE_FULL, "the server's disk is nearly full: it begins no new upload now")
    return principal.product


async def _made(request: web.Request, state: UploadState, product: str, turn: Turn, dialect: ServerDialect) -> _Upload:
    app, now = request.app, request.app[CLOCK]()
    row = UploadRow(state, product, created=now, updated=now)
    await app[CATALOG].make_upload(row)
    app[COUNTERS]["uploads_made"] += 1
    return _Upload(request, row, turn, dialect, location=_location(request, row.id, absolute=dialect.absolute))


@dataclass(slots=True)
class _Upload:
    """One request's dealings with one upload, in its turn. `location` is set where a creation is answered."""

    request: web.Request
    row: UploadRow
    turn: Turn
    dialect: ServerDialect
    location: str | None = None

    # -- without a body ------------------------------------------------------------------------------------------

    async def refuse(self, verdict: Refused) -> web.StreamResponse:
        """Store the state that the refusal tells, and answer."""
        state = verdict.state
        # A new epoch alone needs no commit of its own here: this turn is the fence.
        if state is not None and replace(state, epoch=self.row.state.epoch) != self.row.state:
            await self._store(state)
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

    async def append(self, accepted: Accepted) -> web.StreamResponse:
        """Take the body, make it durable, finish, answer."""
        app = self.request.app
        try:
            writer, hashed = await self._open(accepted)
        except BlobLost as error:
            return await self._lost(accepted.state, error)
        transfer = Transfer(self.request.content)
        end, failure = await self._receive(transfer, writer, accepted)
        durable = await self._sync(writer)
        self._count("bytes_received", durable - accepted.from_offset)
        if failure is not None:
            end = BodyEnd.CUT
        digest = None if hashed is None else hashed.digest()
        verdict = finish_append(accepted.state, accepted, offset=durable, end=end, now=app[CLOCK](), digest=digest)
        response = await self._finish(verdict)
        if hashed is not None:
            kept = accepted.from_offset if verdict.state is None else verdict.state.offset
            await run_in_worker(app, _settle_tentative, app[BLOBS], self.row.id, kept, durable)
        if failure is not None:
            raise failure  # what was kept is kept; the sender is told why no more was
        if transfer.ended is not None and end is BodyEnd.CUT:
            return await self._hang_up(transfer.ended, response, verdict)
        return response

    async def _open(self, accepted: Accepted) -> tuple[BlobWriter, Hashed | None]:
        """What the body is written to; the second is the same, if it computes a digest on the way."""
        app, declared = self.request.app, accepted.request.digest
        if declared is None:
            return await run_in_worker(app, app[BLOBS].append, self.row.id, accepted.from_offset), None
        writer = await run_in_worker(app, app[BLOBS].append_tentatively, self.row.id, accepted.from_offset)
        hashed = Hashed(writer, declared.algorithm)
        return hashed, hashed

    async def _receive(
        self, transfer: Transfer, writer: BlobWriter, accepted: Accepted
    ) -> tuple[BodyEnd, OSError | None]:
        """The body's end, and what the disk said if it was that."""
        if accepted.request.content_length == 0:
            return BodyEnd.WHOLE, None
        config = self.request.app[CONFIG]
        self.turn.begin(transfer)
        try:
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

    async def _sync(self, writer: BlobWriter) -> int:
        """The offset that is durable now; the writer is closed."""
        try:
            return await run_in_worker(self.request.app, _sync_and_close, writer)
        except OSError:
            self._count("storage_sync_failed")
            await run_in_worker(
                self.request.app, _cut_back, self.request.app[BLOBS], self.row.id, self.row.state.offset
            )
            raise

    async def _finish(self, verdict: Appended | Found | Refused) -> web.StreamResponse:
        """Store what has become of the upload, verified if it is complete."""
        if verdict.state is not None and verdict.state.complete and not self.row.state.complete:
            verdict = await self._checked(verdict)
        state = verdict.state
        if state is None:
            return self._answer(verdict)
        grown = state.offset > self.row.state.offset
        looked_into = state.complete and not state.creation.partial
        stored = await (self._complete(state) if looked_into else self._store(state))
        if not stored:
            return self._overtaken(state)
        if state.complete and state.creation.partial:
            await self._join_others()
        if grown:
            notify_ingest(self.request.app)
        return self._answer(verdict)

    async def _checked(self, verdict: Appended | Found | Refused) -> Appended | Found | Refused:
        """`verdict` on an upload that is complete, or that it is not what its client declared."""
        app, state = self.request.app, verdict.state
        if state is None or state.creation.whole is None:
            return verdict
        loop, algorithm = asyncio.get_running_loop(), state.creation.whole.algorithm
        digest = await loop.run_in_executor(app[VERIFIERS], digest_of, app[BLOBS], self.row.id, state.offset, algorithm)
        held = check_whole(state, digest)
        return held if isinstance(held, Refused) else verdict

    async def _complete(self, state: UploadState) -> bool:
        app, loop = self.request.app, asyncio.get_running_loop()
        row = replace(self.row, state=state, updated=app[CLOCK]())
        finding = await loop.run_in_executor(app[VERIFIERS], verify, app[BLOBS], row)
        row = replace(
            row,
            verification=finding.verification,
            sha256=finding.sha256,
            records=finding.records,
            reason=finding.reason,
            detail=finding.detail,
        )
        self._count(f"uploads_{finding.verification}")
        if finding.verification is not Verification.VERIFIED:
            _LOG.warning("upload %s is %s: %s", row.id, finding.verification, finding.detail)
        if finding.summary is None:
            return await app[CATALOG].finish_upload(row)
        stranger = replace(row, session_id=finding.session_id, index=finding.index)
        if await app[CATALOG].adopt(stranger, finding.summary):
            return True
        double = replace(row, verification=Verification.QUARANTINED, detail="that segment is here already")
        return await app[CATALOG].finish_upload(double)

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
                await asyncio.get_running_loop().run_in_executor(
                    app[VERIFIERS], _copy, app[BLOBS], self.row.id, state.creation.parts, held.offset
                )
            except BlobLost as error:
                return self._lose(state, error)
            await self._finish(Found(held))
            self._count("uploads_joined")
        elif held != state:
            await self._store(held)
        self.row = replace(self.row, state=held)
        return None

    async def _join_others(self) -> None:
        """This upload, a part of others, is complete: so may they be. Nothing of that concerns who sent the part."""
        app = self.request.app
        for row in await app[CATALOG].made_of(self.row.id):
            async with app[TURNS].take(row.id) as turn:
                try:
                    await _Upload(self.request, row, turn, self.dialect).join()
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
        self._count(f"transfers_{type(reason).__name__.lower()}")
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

    def _overtaken(self, state: UploadState) -> web.StreamResponse:
        return self._answer(Refused(Refusal.SUPERSEDED, "the upload has been changed meanwhile", state))

    def _answer(self, verdict: Appended | Found | Cancelled | Refused) -> web.StreamResponse:
        now = self.request.app[CLOCK]()
        return _response(self.dialect.answer(verdict, now=now, location=self.location))

    def _count(self, name: str, by: int = 1) -> None:
        self.request.app[COUNTERS][name] += by


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    """Answers that no dialect has made (401, 500) bear its mark all the same (tus, Tus-Resumable)."""
    if tus.TUS_RESUMABLE in request.headers:
        response.headers.setdefault(tus.TUS_RESUMABLE, tus.VERSION)


def _location(request: web.Request, upload_id: str, *, absolute: bool) -> str:
    """The URL of an upload. Behind a proxy that ends TLS, it says by X-Forwarded-Proto what the client asked by."""
    if not absolute:
        return f"{PATH}/{upload_id}"
    forwarded = request.headers.get("X-Forwarded-Proto", "")
    scheme = forwarded if forwarded in ("http", "https") else request.scheme
    return f"{scheme}://{request.host}{PATH}/{upload_id}"


def _limits_of_strangers(request: web.Request) -> Limits:
    config = request.app[CONFIG]
    return Limits(max_size=config.max_upload_bytes, max_age=config.upload_max_age)


def _response(answer: HttpAnswer) -> web.StreamResponse:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body or None)


def _sync_and_close(writer: BlobWriter) -> int:
    # In one call: a cancelled request must not close a descriptor that is being synced.
    try:
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


def _copy(blobs: Blobs, blob_id: str, parts: tuple[str, ...], size: int) -> None:
    copied = blobs.join(blob_id, parts)
    if copied != size:
        raise BlobLost(f"{blob_id}: its parts should have {size} bytes, and have {copied}")
