"""Delivers to a plain tus server (``server="tus+https://host/files/"``): nothing is negotiated, everything is wanted.

It stands where a mailboat server's negotiation and uploads stand otherwise, so that the planner, its pauses and the
ledger are the same for both. What a mailboat server would answer to an offer is known here: `send` until the upload of
each segment is complete, then `have`. Before that, the server is asked what it offers (OPTIONS), which also shows
whether it is there at all.

Each segment becomes one upload, whose metadata name session, segment and product. Its URL is kept beside the segment
(`places`) before the first byte is sent; after a cut, a kill or a restart the server is asked for the offset, and the
upload goes on there. A running session's last segment is sent too, where the server takes lengths later.

What tus cannot give: the server's word on what it verified. A completed upload is one whose last byte the server has
acknowledged. A process killed between that answer and its own note asks again, and a server that has removed the
finished upload by then gets that segment a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import replace

from mailboat.agent.clocks import Clocks
from mailboat.agent.files import FileSystem
from mailboat.agent.http import TRANSPORT_FAILURES, Answer, Http, told
from mailboat.agent.log import log
from mailboat.agent.negotiator import Outcome as Answered
from mailboat.agent.negotiator import Replied
from mailboat.agent.places import MOST, NAME, Place, from_json, to_json
from mailboat.agent.planner import Send
from mailboat.agent.segment_file import segment_name
from mailboat.agent.traffic import Held, Traffic
from mailboat.agent.uploader import Broken, Mark, Progress, Uploader
from mailboat.protocol.negotiation import Decision, Reply, SegmentDecision, Verdict
from mailboat.protocol.summary import SegmentState, Status, Summary
from mailboat.protocol.uploads import tus
from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.http_dates import retry_after
from mailboat.protocol.uploads.outcomes import (
    Completed,
    Gone,
    NotOurs,
    Outcome,
    OutOfSync,
    Refused,
    Retry,
    Unauthorised,
)
from mailboat.protocol.uploads.replies import Meaning, meaning_of
from mailboat.protocol.uploads.tasks import Source
from mailboat.protocol.uploads.tus_client import Offering, TusDialect, discovery, read_discovery
from mailboat.protocol.uploads.values import Limits

UNREADABLE: Final = 60.0
"""Seconds until the disk is asked again for what it could not give."""

_MARK: Final = Mark(tus.TUS_RESUMABLE.lower(), "tus server")
_T = TypeVar("_T")


class TusSink:
    """Segments to one tus server. `target` is the URL where uploads are made, taken as it is."""

    def __init__(
        self, http: Http, target: str, product: str, clocks: Clocks, files: FileSystem, disk: Executor, traffic: Traffic
    ) -> None:
        """`disk` is the executor on which the store is used, `product` what the metadata tell, `traffic` says how much
        may be sent.
        """
        self._http, self._target, self._product, self._clocks = http, target, product, clocks
        self._files, self._disk = files, disk
        self._uploader = Uploader(http, clocks, disk, traffic)
        self._offering = Offering()
        self._places: dict[str, dict[int, Place]] = {}
        self._unkept: set[str] = set()

    # -- instead of a negotiation --------------------------------------------------------------------------------

    async def negotiate(self, offers: Iterable[Summary], homes: Mapping[str, Path]) -> Answered:
        """What a mailboat server would answer to these offers; each session is in a folder of its id below its home.
        Never raises but for cancellation.
        """
        request = discovery(self._target)
        try:
            answer = await self._http.request(request.method, request.url, request.headers)
        except TRANSPORT_FAILURES as error:
            return Retry(0.0, told(error))
        failed = self._understand(answer)
        if failed is not None:
            return failed
        self._places = {session_id: places for session_id, places in self._places.items() if session_id in homes}
        self._unkept &= homes.keys()
        for offer in offers:
            await self._look_up(offer.session_id, homes[offer.session_id] / offer.session_id)
        return Replied(Reply(tuple(self._decide(offer) for offer in offers)))

    def _understand(self, answer: Answer) -> Answered | None:
        """Why the server cannot be used, None when it can; what it offers is noted."""
        meaning, offering = meaning_of(answer.status), read_discovery(answer.headers)
        if meaning is Meaning.RETRY:
            floor = retry_after(
                answer.headers.get("retry-after"), answer.headers.get("date"), self._clocks.wall() / 1e9
            )
            return Retry(floor, f"the tus server is not available: status {answer.status}")
        if offering is None:
            return NotOurs(answer.status, f"what answers with status {answer.status} is no tus server")
        if meaning is Meaning.UNAUTHORISED:
            return Unauthorised(answer.status)
        if meaning is not Meaning.SUCCESS or not offering.usable:
            said = f"versions {', '.join(offering.versions)}; extensions {', '.join(sorted(offering.extensions))}"
            return Retry(0.0, f"the tus server takes no uploads as mailboat makes them: status {answer.status}, {said}")
        self._offering = offering
        return None

    def _decide(self, offer: Summary) -> Decision:
        places, running = self._places.get(offer.session_id), offer.status is Status.RUNNING
        if places is None:
            return Decision(
                offer.session_id, Verdict.LATER, explanation="where it was sent cannot be read", after=UNREADABLE
            )
        wanted = [segment for segment in offer.segments if segment.sealed or self._offering.deferred]
        decided = tuple(self._stands(segment, places.get(segment.index)) for segment in wanted)
        whole = not running and len(decided) == len(offer.segments) and all(each.complete for each in decided)
        return Decision(offer.session_id, Verdict.HAVE if whole else Verdict.SEND, segments=decided)

    def _stands(self, segment: SegmentState, place: Place | None) -> SegmentDecision:
        url = self._target if place is None else place.url
        if place is not None and place.complete:
            return SegmentDecision(segment.index, url, segment.size, complete=True, sha256=segment.sha256)
        return SegmentDecision(segment.index, url, 0, complete=False)

    # -- uploading -----------------------------------------------------------------------------------------------

    async def send(self, task: Send, path: Path, progress: Progress) -> Outcome | Broken | Held:
        """As `Uploader.send`: what the server lacks of a segment, from the offset on that it tells."""
        index, session_id, folder = task.segment.index, task.session_id, path.parent
        places = self._places.setdefault(session_id, {})
        place = places.get(index)

        async def made(url: str) -> None:
            places[index] = Place(url)
            await self._keep(session_id, folder)

        outcome = await self._uploader.deliver(self._client(task, place), path, progress, _MARK, made)
        match outcome:
            case Completed():
                places[index] = replace(places[index], complete=True)
                await self._keep(session_id, folder)
            case Gone() | OutOfSync():
                places.pop(index, None)
            case Refused(status) if status:
                places.pop(index, None)  # perhaps a fresh upload is taken; if not, it will not be tried for ever
        return outcome

    def _client(self, task: Send, place: Place | None) -> UploadClient:
        segment = task.segment
        metadata = {
            "session": task.session_id,
            "segment": str(segment.index),
            "product": self._product,
            "filename": f"{task.session_id}-{segment_name(segment.index)}",
        }
        return UploadClient(
            TusDialect(metadata),
            Source(segment.size, segment.sealed),
            target=self._target,
            resource=None if place is None else place.url,
            limits=Limits(max_size=self._offering.max_size),
        )

    # -- what is kept beside the segments ------------------------------------------------------------------------

    async def _look_up(self, session_id: str, folder: Path) -> None:
        """Know the places of a session, and have them on the disk, if that could not be done before."""
        if session_id in self._unkept:
            await self._keep(session_id, folder)
        if session_id not in self._places:
            try:
                content = await self._on_disk(lambda: self._files.read_range(folder / NAME, 0, MOST))
            except FileNotFoundError:
                content = b""  # nothing of it was sent by anybody
            except OSError as error:
                log.warning("where session %s was sent cannot be read now: %s", session_id, error)
                return
            self._places[session_id] = from_json(content, self._target)

    async def _keep(self, session_id: str, folder: Path) -> None:
        """Note the places of a session durably. A disk that refuses stops no delivery, which may be what frees it; and
        a folder that has just been moved is found again with the next offer.
        """
        content = to_json(self._target, self._places.get(session_id, {}))
        self._unkept.add(session_id)  # until it is: this may be cancelled
        try:
            await self._on_disk(lambda: self._files.replace_content(folder / NAME, content))
            self._unkept.discard(session_id)
        except OSError as error:
            log.info("where session %s is sent cannot be noted now: %s", session_id, error)

    async def _on_disk(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)
