"""Bulk loading: from the catalog's sessions and the durable bytes of segments to rows in the analytics store.

A round copies the sessions that changed, then loads the segments with bytes that were not looked at, as far as they
have whole blocks. It begins when something became durable, soon when the server is idle (`SOON`), and otherwise not
before the length of the last one has passed again, so that loading takes at most half of the time. What was left by
the server's last life is loaded at once.

What comes while a backlog is loaded does not wait for that: in a round it is looked for once a second, and batches of
what came last (of sessions that run before all others) and of what waits longest take turns (`batches.Order`). So a
record of a session that runs is there a second and some batches after it came, and what waits longest has at least half
of the loading, so that none waits for ever. What a machine cannot keep up with waits longer and longer, first the large
segments of sessions that have ended; `mailboat_ingest_lag_seconds` tells.

Of the servers that share a catalog one loads at a time, the one that holds its lease; another takes over when that one
stops, or has died and the lease is over. A store in a file has one server in any case; one that servers share would be
filled by two of them side by side but for the lease.

The analytics store alone knows what was loaded (``loaded`` changes in the same transaction as the rows); the catalog is
told only in order to list less.

What goes wrong:

* A segment on which the decoder dies, whose rows are refused, or whose bytes are lost is tried again by itself, then
  set aside: one that is complete is marked `corrupted` in the catalog. The others are loaded.
* A segment that is sealed to a key which is not here waits for the key; see `unsealing`.
* A segment that was set aside and is to be tried again (see `quarantine`) comes with ``loaded`` below zero: what the
  store has of it is taken out first.
* A batch for which the analytics engine lacks memory is taken segment by segment. One that is too much by itself is
  tried again in later rounds, with growing pauses, and is set aside after `STARVED` of them.
* When the machine refuses (a full disk), the round ends and is tried again, with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from math import inf
from typing import Final

from aiohttp import web

from mailboat.protocol.errors import MailboatError
from mailboat.protocol.negotiation import Reason
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_store import Key, OutOfMemory, RowsRefused, StaleLoad, Step, TooMuchToSum
from mailboat.server.batches import BATCH_BYTES, Batch, Known, Order
from mailboat.server.catalog import Catalog, SegmentRow, SessionRow
from mailboat.server.context import BLOBS, CATALOG, CLOCK, CONFIG, COUNTERS, INGEST_WAKE, REPLICA
from mailboat.server.decoding import Decoder
from mailboat.server.loader import BatchFailed, Loader, Stopped
from mailboat.server.playback import Playback
from mailboat.server.reports import Reports
from mailboat.server.unsealing import UNSEALING, Unsealing

SOON: Final = 0.1
"""Seconds from the first news to the round: what comes within them shares a transaction."""
PAUSE_LONGEST: Final = 3.0
"""Longest pause between rounds while something waits."""
LOOK: Final = 60.0
"""Seconds after which a round is made even without news."""
RETRY_LONGEST: Final = 60.0
"""Longest pause after failures; they begin with one of a second, and double."""
STARVED: Final = 8
"""Rounds in which a segment alone may find too little memory: the pauses between them add up to three minutes, time
for whatever else had taken it, or filled the disk that the engine goes on with."""
LEASE: Final = 60.0
"""Seconds for which loading is left to a server that may have died; half of them is between two looks of the others."""
LEASE_NAME: Final = "ingest"
LISTED: Final = 1000
"""Segments, and sessions, asked of the catalog at a time."""
LOOK_AGAIN: Final = 1.0
"""Seconds in a round after which is looked for what has come meanwhile."""
UNSUMMED: Final = 2_000_000
"""Records loaded in a round after which sums are made in it, and not at its end: rows come first, while reports about a
backlog may take 0.1 s longer."""
GENERATION_NOTE: Final = "analytics_generation"
"""The catalog's note of how many loads the store had seen: a store that has seen fewer is another one."""
KEYS_NOTE: Final = "sealing_keys"
"""The catalog's note of the private keys that there were when segments were last listed."""

_log = logging.getLogger("mailboat.server.ingest")


class Ingest:
    """Loads, from `start` to `stop`."""

    def __init__(
        self,
        catalog: Catalog,
        loader: Loader,
        wake: asyncio.Event,
        counters: Counter[str],
        clock: Callable[[], float],
        unsealing: Unsealing,
        replica: str,
    ) -> None:
        """`wake` is set by whoever has made bytes durable or changed a session; `clock` is the wall clock; `replica`
        tells this server from others that share the catalog.
        """
        self._unsealing = unsealing
        self._replica = replica
        self._leased_until = -inf
        self._starved: Counter[str] = Counter()
        self._catalog = catalog
        self._loader = loader
        self._wake = wake
        self._counters = counters
        self._clock = clock
        self._stopping = asyncio.Event()
        self._generation = 0
        self._begun = 0
        self._settled = 0
        self._unsummed = 0
        self._round_ended = asyncio.Condition()
        self._in_round = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the loader must be open."""
        generation, noted = await self._loader.generation(), await self._catalog.note(GENERATION_NOTE)
        if generation < int(noted or 0):
            self._counters["ingest_stores_rebuilt"] += 1
            await self._catalog.forget_loaded()
        if generation and noted is None:
            # Another catalog: its revisions begin anew.
            await self._loader.load_sessions((), 0)
        self._generation = generation
        self._wake.set()
        self._task = asyncio.create_task(self._run(), name="mailboat-ingest")

    async def stop(self) -> None:
        """End after the batch that is being written."""
        self._stopping.set()
        self._wake.set()
        self._loader.stop()
        if self._task is not None:
            await self._task
        try:
            await self._catalog.release(LEASE_NAME, self._replica)
        except MailboatError as error:
            self._counters["ingest_leases_kept"] += 1
            _log.warning("others wait until the lease is over: %s", error)

    async def settled(self) -> None:
        """Wait until everything that was durable at the call has been loaded, or set aside."""
        wanted = self._begun + 1
        self._wake.set()
        async with self._round_ended:
            await self._round_ended.wait_for(lambda: self._settled >= wanted)

    async def forget(self, sessions: Sequence[Key]) -> int:
        """Take sessions out of the store that the catalog does not know any more; the number of their records.

        Waits for the round under way, which may have listed them before: no later one can load them again.
        """
        async with self._in_round:
            return await self._loader.forget(sessions)

    async def _run(self) -> None:
        resume, failures, soon = 0.0, 0, 0.0
        while True:
            await self._news()
            await self._rest(max(soon, resume - time.monotonic()))
            soon = SOON
            if self._stopping.is_set():
                return
            self._wake.clear()
            self._begun += 1
            began = time.monotonic()
            try:
                if not await self._ours():
                    self._counters["ingest_turns_of_others"] += 1
                    resume = time.monotonic() + LEASE / 2
                    self._wake.set()
                    continue
                async with self._in_round:
                    more = await self.round()
                    if not more:
                        await self._say_settled()
                    await self._sum_up(idle=not more)
                failures = 0
            except Stopped:
                return
            except Exception as error:  # noqa: BLE001 - whatever it was, what arrives tomorrow is to be loaded
                more, failures = True, failures + 1
                await self._failed(error)
            now = time.monotonic()
            resume = now + (min(2.0 ** (failures - 1), RETRY_LONGEST) if failures else min(now - began, PAUSE_LONGEST))
            if more:
                self._wake.set()

    async def _ours(self) -> bool:
        """Whether to load is this server's; the lease is prolonged when half of it is over, by whatever clock."""
        now = self._clock()
        if self._leased_until - LEASE <= now < self._leased_until - LEASE / 2:
            return True
        if not await self._catalog.lease(LEASE_NAME, self._replica, now, LEASE):
            return False
        self._leased_until = now + LEASE
        return True

    async def _news(self) -> None:
        try:
            async with asyncio.timeout(LOOK):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _rest(self, pause: float) -> None:
        if pause <= 0:
            return
        try:
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _failed(self, error: Exception) -> None:
        self._counters["ingest_failures"] += 1
        unexpected = None if isinstance(error, MailboatError | OSError) else error
        _log.warning("loading failed, and will be tried again: %s", error, exc_info=unexpected)
        try:
            await self._loader.reopen()
        except MailboatError as worse:
            self._counters["ingest_failures"] += 1
            _log.warning("%s", worse)

    async def _say_settled(self) -> None:
        async with self._round_ended:
            self._settled = self._begun
            self._round_ended.notify_all()

    # -- a round -------------------------------------------------------------------------------------------------

    async def round(self) -> bool:
        """Load what there is; whether more is left. Raises what the machine's refusals raise."""
        await self._look_for_keys()
        await self._sessions()
        listed = await self._catalog.segments_to_load(LISTED)
        if not listed:
            return False
        again = [each for each in listed if each.loaded < 0]
        if again:  # killed in between, nothing is there to be taken out next time
            await self._loader.unload(again)
            await self._catalog.mark_loaded({each.upload_id: 0 for each in again})
        known = await self._loader.progress(listed)
        fresh = await self._without_done(listed, known)
        more = len(listed) == LISTED
        try:
            more |= await self._load(Order(fresh, known))
        except StaleLoad as error:
            self._counters["ingest_batches_stale"] += 1
            _log.warning("another server loads, too: %s", error)
            return True
        generation = await self._loader.generation()
        if generation != self._generation:
            await self._catalog.put_note(GENERATION_NOTE, str(generation))
            self._generation = generation
        return more

    async def _load(self, order: Order) -> bool:
        """Load in this order; whether more is left. Of a batch that fails the segments are taken one by one, and the
        others in another round.
        """
        more = False
        try:
            # Closed at once when it fails, so that a batch still being written is waited for.
            async with aclosing(self._loader.load(self._coming(order))) as loads:
                async for steps in loads:
                    more |= await self._loaded(steps)
                    if not await self._ours():
                        return True
        except BatchFailed as error:
            if isinstance(error.cause, OutOfMemory):
                await self._without_memory(error.cause)
            else:
                self._counters["ingest_batches_failed"] += 1
                _log.info("a batch failed, and is taken segment by segment: %s", error)
            await self._one_by_one(error.segments)
            return True
        return more

    def _coming(self, order: Order) -> Callable[[], Awaitable[Batch | None]]:
        """What gives the next batch, having looked now and then for what has come meanwhile."""
        looked = time.monotonic()

        async def following() -> Batch | None:
            nonlocal looked
            if self._wake.is_set() and time.monotonic() - looked >= LOOK_AGAIN:
                await self._look_for_latest(order)
                looked = time.monotonic()
            return order.next()

        return following

    async def _look_for_latest(self, order: Order) -> None:
        """Put what came last into the order. What is known of a session in it runs ahead of the store."""
        await self._sessions()
        latest = await self._catalog.latest_to_load(LISTED, BATCH_BYTES)
        unknown = [each for each in latest if each.key not in order.known]
        order.known.update(await self._loader.progress(unknown))
        order.put_latest(latest)

    async def _look_for_keys(self) -> None:
        """Where there are other private keys than before, take up again what waits for one."""
        await asyncio.to_thread(self._unsealing.refresh)
        ids, noted = " ".join(self._unsealing.ids), await self._catalog.note(KEYS_NOTE)
        if ids != (noted or ""):
            await self._catalog.forget_loaded()
            await self._loader.load_sessions((), 0)
            await self._catalog.put_note(KEYS_NOTE, ids)

    async def _one_by_one(self, segments: Sequence[SegmentRow]) -> None:
        """Load them so that one which cannot be loaded costs itself alone. Raises `OutOfMemory`, the others having been
        loaded, where one is to be tried again in another round.
        """
        starved = None
        for segment in await self._without_done(segments, await self._loader.progress(segments)):
            try:
                done = await self._loader.load_alone(segment)
            except OutOfMemory as error:
                await self._without_memory(error)
                self._starved[segment.upload_id] += 1
                if self._starved[segment.upload_id] < STARVED:
                    starved = error
                    continue
                done = str(error)
                await self._loader.give_up(segment, done)
            self._starved.pop(segment.upload_id, None)
            if isinstance(done, str):
                self._counters["ingest_segments_failed"] += 1
                _log.warning("segment %d of session %s: %s", segment.index, segment.session_id, done)
                await self._set_aside(segment, done)
            else:
                await self._loaded(done)
        if starved is not None:
            raise starved

    async def _without_memory(self, error: OutOfMemory) -> None:
        self._counters["ingest_out_of_memory"] += 1
        _log.warning("what is loaded is taken segment by segment: %s", error)
        await self._loader.reopen()

    async def _without_done(self, segments: Sequence[SegmentRow], known: Known) -> list[SegmentRow]:
        """The segments that have something to load; the others are marked, and listed no more."""
        fresh: list[SegmentRow] = []
        marks: dict[str, int] = {}
        for segment in segments:
            progress = known.get(segment.key, {}).get(segment.upload_id)
            if progress is not None and progress.failed is not None:
                await self._set_aside(segment, progress.failed)
            elif progress is not None and progress.consumed >= segment.offset:
                marks[segment.upload_id] = segment.offset
            else:
                fresh.append(segment)
        if marks:
            await self._catalog.mark_loaded(marks)
        return fresh

    async def _loaded(self, steps: Sequence[Step]) -> bool:
        """Tell the catalog; whether some segment was taken in part."""
        whole = [step for step in steps if not step.outcome.more]
        await self._catalog.mark_loaded({step.segment.upload_id: step.segment.offset for step in whole})
        self._counters["ingest_segments"] += len(steps)
        records = sum(step.outcome.records for step in steps)
        self._counters["ingest_records"] += records
        self._counters["ingest_gaps"] += sum(len(step.outcome.gaps) for step in steps)
        for step in whole:
            if step.outcome.locked:
                self._counters["ingest_segments_locked"] += 1
                _log.warning(
                    "segment %d of session %s waits: %s",
                    step.segment.index,
                    step.segment.session_id,
                    step.outcome.locked,
                )
            if step.segment.complete and step.unreadable:
                await self._set_aside(step.segment, step.outcome.gaps[0][2])
        self._unsummed += records
        if self._unsummed >= UNSUMMED:
            await self._sum_up(idle=False)
        return len(whole) < len(steps)

    async def _sum_up(self, *, idle: bool) -> None:
        """Have the store make sums where they are due; until then it counts one by one, and says the same."""
        self._unsummed = 0
        try:
            if await self._loader.sum_up(idle=idle):
                self._counters["ingest_sums"] += 1
        except TooMuchToSum as error:  # names without end, say; loading goes on
            self._counters["ingest_sums_failed"] += 1
            _log.warning("reports about long periods take long, until the next attempt: %s", error)

    async def _set_aside(self, segment: SegmentRow, reason: str) -> None:
        """Have no more of a segment that cannot be loaded."""
        if segment.complete:
            await self._catalog.mark_rejected(segment.upload_id, Reason.CORRUPTED.value, reason, self._clock())
        else:
            await self._catalog.mark_loaded({segment.upload_id: segment.offset})

    # -- sessions ------------------------------------------------------------------------------------------------

    async def _sessions(self) -> None:
        while not self._stopping.is_set():
            revision = await self._loader.revision()
            rows, latest = await self._catalog.changed_sessions(revision, LISTED)
            if not rows:
                return
            await self._load_sessions(rows, revision, latest)

    async def _load_sessions(self, rows: Sequence[SessionRow], revision: int, latest: int) -> None:
        """Copy sessions; one that the store does not take is passed over, and counted."""
        try:
            await self._loader.load_sessions([self._unsealing.row(row) for row in rows], latest)
            self._counters["ingest_sessions"] += len(rows)
        except (RowsRefused, OutOfMemory) as error:
            half = len(rows) // 2
            if isinstance(error, OutOfMemory):
                await self._without_memory(error)
                if not half:
                    raise
            if half:
                await self._load_sessions(rows[:half], revision, revision)
                await self._load_sessions(rows[half:], revision, latest)
                return
            self._counters["ingest_sessions_refused"] += 1
            _log.warning("session %s cannot be shown in reports: %s", rows[0].summary.session_id, error)
            await self._loader.load_sessions((), latest)


# -- as a part of the server -----------------------------------------------------------------------------------------

LOADER: Final = web.AppKey("loader", Loader)
INGEST: Final = web.AppKey("ingest", Ingest)
REPORTS: Final = web.AppKey("reports", Reports)
PLAYBACK: Final = web.AppKey("playback", Playback)


async def start(app: web.Application) -> None:
    """Begin to load; the catalog and the blobs must be open. `AnalyticsError` when the store cannot be opened."""
    unsealing = app[UNSEALING]
    config, decoder = app[CONFIG], Decoder(keys=lambda: unsealing.private)
    loader = app[LOADER] = Loader(app[BLOBS], config.data, decoder, partial(Analytics, memory=config.analytics_memory))
    await loader.open()
    app[REPORTS] = Reports(loader.analytics)
    app[PLAYBACK] = Playback(app[BLOBS], unsealing)
    ingest = app[INGEST] = Ingest(
        app[CATALOG], loader, app[INGEST_WAKE], app[COUNTERS], app[CLOCK], unsealing, app[REPLICA]
    )
    await ingest.start()


async def stop(app: web.Application) -> None:
    """End after the batch that is being written."""
    await app[INGEST].stop()
    await asyncio.to_thread(app[REPORTS].close)
    await app[LOADER].close()
