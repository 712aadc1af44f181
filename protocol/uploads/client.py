"""The client's side: what to do next for one upload, and what an answer means for it.

`UploadClient` never touches a socket or a clock. Its owner asks for the next task, carries it out, reports what came of
it, and asks again::

    task = client.next_task(now)
    Create, Query, Append, Cancel   send `client.request(task)`, for an Append with the bytes
                                    [task.offset, task.offset + task.content_length) as its body;
                                    then call exactly one of `responded` and `broken`
    Wait                            come back at `until`, or when `grown` or `wake` was called
    Done, Failed                    the end

What it promises:

- The server's word on the offset is the only one: after anything but a clear success it asks, and goes on there, never
  from zero. Bytes that the server has acknowledged are not sent again.
- A server whose account cannot be true (an offset that goes back, lies beyond what was sent, or cannot be read;
  complete without having everything) ends the upload as `OutOfSync`, and nothing is skipped or sent at a guess.
- It ends: each failure without progress counts, and `Backoff.limit` bounds them.

`now` is monotonic time in seconds, `wall` Unix time, `entropy` a random number from 0 to 1, drawn by the owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from msgspec import Struct

from mailboat.protocol.addresses import resolve
from mailboat.protocol.limits import KIB
from mailboat.protocol.uploads.http_dates import retry_after
from mailboat.protocol.uploads.messages import folded
from mailboat.protocol.uploads.outcomes import (
    Advanced,
    Bad,
    Cancelled,
    Completed,
    Created,
    Exhausted,
    Gone,
    Good,
    NotOurs,
    Outcome,
    OutOfSync,
    Refused,
    Retry,
    Unauthorised,
)
from mailboat.protocol.uploads.replies import ClientDialect, Complaint, HttpRequest, Meaning, Reply
from mailboat.protocol.uploads.retry import Backoff
from mailboat.protocol.uploads.state import UploadMisuse
from mailboat.protocol.uploads.tasks import STEPS, Done, Failed, Source, Step, Task, Wait
from mailboat.protocol.uploads.values import Append, Cancel, Create, Limits, Query, Request

SMALLEST_TRIED: Final = 16 * KIB
"""When 413 names no limit, appends are halved down to this. Proxies' bounds start at 1 MiB; below 16 KiB the header
fields of a request would be worth a notable share of it."""


_R = TypeVar("_R", Create, Query, Append, Cancel)


class UploadClient:
    """The upload of one file that may still grow; see the module's text for the order of calls.

    `source`: what to upload. `target`: URL where uploads are made. `resource`: URL of the upload, if a negotiation has
    made it already. `acknowledged`: the offset that the negotiation said the server holds; None to ask first.
    `append_bytes`: the most to send in one append (None: as much as there is); the server's own limits hold in any
    case, and it may be changed at any time. `backoff`: pauses after failures, and their bound. `limits`: the server's,
    where it has told them before.

    Raises `UploadMisuse` for calls out of order and for a `source` that contradicts itself.
    """

    def __init__(
        self,
        dialect: ClientDialect,
        source: Source,
        *,
        target: str,
        resource: str | None = None,
        acknowledged: int | None = None,
        append_bytes: int | None = None,
        backoff: Backoff | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not 0 <= (acknowledged or 0) <= source.length or (acknowledged is not None and resource is None):
            raise UploadMisuse(f"offset {acknowledged} acknowledged of {source.length} bytes at {resource}")
        self.append_bytes = append_bytes
        self._dialect = dialect
        self._source = source
        self._target = target
        self._resource = resource
        self._offset = acknowledged or 0
        # The last byte that any request of ours can have brought to the server. Before the resource itself has told its
        # offset, what an earlier process sent comes on top: up to everything there is.
        self._sent = self._offset
        self._told = False
        self._length_known = False
        self._limits = limits if limits is not None else Limits()
        self._shrunk: int | None = None
        self._backoff = backoff if backoff is not None else Backoff()
        self._resume_at: float | None = None
        self._expires_at: float | None = None
        self._flight: Request | None = None
        # A refusal that may only mean that the upload is complete already: it stands unless the next query clears it.
        self._doubt: Bad | None = None
        self._cancelling = False
        self._end: Good | Bad | None = None
        if resource is None:
            self._step = Step.ABSENT
        else:
            self._step = Step.UNSURE if acknowledged is None else Step.READY

    # -- what the owner may know ---------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Bytes that the server has acknowledged; never decreases."""
        return self._offset

    @property
    def source(self) -> Source:
        """What is to be uploaded, as last told."""
        return self._source

    @property
    def bytes_left(self) -> int:
        """Bytes not acknowledged yet."""
        return self._source.length - self._offset

    @property
    def resource(self) -> str | None:
        """URL of the upload, None before its creation."""
        return self._resource

    @property
    def limits(self) -> Limits:
        """The server's limits, as far as it told them."""
        return self._limits

    @property
    def step(self) -> Step:
        """Where the client stands."""
        return self._step

    @property
    def outcome(self) -> Good | Bad | None:
        """How the upload ended; None while it has not."""
        return self._end

    # -- what the owner does -------------------------------------------------------------------------------------

    def next_task(self, now: float) -> Task:
        """What to do now. A request task counts as begun; until it is reported no other is given."""
        if self._step is Step.BUSY:
            raise UploadMisuse(f"{self._flight} is under way: report what became of it first")
        if self._cancelling:
            return self._next_cancel(now)
        idle = self._ended() or self._paused(now)
        if idle is not None:
            return idle
        if self._step is Step.ABSENT:
            return self._beyond() or self._begin(
                Create(complete=False, length=self._source.final_length, content_length=0)
            )
        if self._step is Step.UNSURE:
            return self._begin(Query())
        return self._next_append()

    def request(self, task: Request) -> HttpRequest:
        """The HTTP request for `task`. Credentials are the owner's to add; redirects must not be followed."""
        return self._dialect.render(task, target=self._target, resource=self._resource)

    def responded(
        self, status: int, headers: Mapping[str, str], body: bytes, *, now: float, wall: float, entropy: float
    ) -> Outcome:
        """Report the answer to the task under way; `body`: its beginning, enough for a problem document (64 KiB)."""
        flight = self._landed()
        reply = self._dialect.read(flight, status, headers, body)
        fields = folded(headers)
        floor = retry_after(fields.get("retry-after"), fields.get("date"), wall)
        pause = _Pause(now, entropy, floor)
        self._note_limits(reply, now)
        if isinstance(flight, Cancel):
            return self._after_cancel(reply, pause)
        if reply.meaning is Meaning.SUCCESS:
            return self._after_success(flight, reply, pause)
        return self._after_failure(flight, reply, pause)

    def broken(self, *, now: float, entropy: float) -> Retry | Exhausted:
        """Report that no (whole) answer came: connection refused or lost, timed out, ended by the owner."""
        flight = self._landed()
        # A transfer that breaks after progress is asked about at once: on a line that is cut every second, pausing each
        # time would cost more than the line. Without progress in between, the pauses begin.
        at_once = isinstance(flight, Append) and self._backoff.failures == 0
        outcome = self._retry("the connection was lost", _Pause(now, entropy, 0.0), at_once=at_once)
        self._cancelling |= isinstance(flight, Cancel) and isinstance(outcome, Retry)
        return outcome

    def grown(self, source: Source) -> None:
        """Report that the file has grown, or is sealed now. Its bytes so far must be the same."""
        shrunk = source.length < self._source.length
        unsealed = self._source.sealed and source != self._source
        if shrunk or unsealed:
            raise UploadMisuse(f"{source} cannot follow {self._source}")
        self._source = source

    def wake(self) -> None:
        """End a pause at once: the connection is back, or somebody asked for a sync."""
        self._resume_at = None

    def cancel(self) -> None:
        """Make cancelling the upload the next task; it ends as `Cancelled`. Not once it is done."""
        if self._step is Step.DONE:
            raise UploadMisuse("the upload is done")
        self._cancelling = True
        self._resume_at = None
        self._backoff = self._backoff.succeeded()

    # -- choosing the next task ----------------------------------------------------------------------------------

    def _ended(self) -> Done | Failed | None:
        match self._end:
            case None:
                return None
            case Completed() | Cancelled():
                return Done(self._end)
            case _:
                return Failed(self._end)

    def _paused(self, now: float) -> Wait | Failed | None:
        if self._resume_at is not None and now < self._resume_at:
            return Wait(self._resume_at)
        if self._expires_at is not None and now >= self._expires_at:
            return self._give_up(Gone(None))
        return None

    def _next_cancel(self, now: float) -> Cancel | Wait | Done:
        ended = self._ended()
        if isinstance(ended, Done):
            return ended
        if self._resource is None:
            return Done(self._finish(Cancelled()))
        if self._resume_at is not None and now < self._resume_at:
            return Wait(self._resume_at)
        self._cancelling = False  # from here on the request itself stands for it
        return self._begin(Cancel())

    def _beyond(self) -> Failed | None:
        length, most = self._source.length, self._limits.max_size
        if most is None or length <= most:
            return None
        return self._give_up(Refused(413, None, f"{length} bytes, but the server takes {most}"))

    def _next_append(self) -> Append | Wait | Failed:
        beyond = self._beyond()
        if beyond is not None:
            return beyond
        limits, left = self._limits, self._source.length - self._offset
        size = min(left, self._most())
        complete = self._source.sealed and size == left
        if not complete and size < max(limits.min_append_size or 0, 1):
            if size < left:
                return self._give_up(Refused(413, None, f"the server's limits leave nothing to send: {limits}"))
            return Wait(None)
        self._sent = max(self._sent, self._offset + size)
        known = self._length_known
        return self._begin(Append(self._offset, complete, self._source.final_length, size, length_known=known))

    def _most(self) -> int:
        """The most bytes that may go into one append. The server's smallest append comes before the owner's wish."""
        wish = None if self.append_bytes is None else max(self.append_bytes, self._limits.min_append_size or 1)
        bounds = (wish, self._limits.max_append_size, self._shrunk)
        return min((bound for bound in bounds if bound is not None), default=self._source.length)

    def _begin(self, request: _R) -> _R:
        self._move(Step.BUSY)
        self._flight = request
        return request

    # -- what an answer means ------------------------------------------------------------------------------------

    def _landed(self) -> Request:
        flight = self._flight
        if flight is None:
            raise UploadMisuse("no request is under way")
        self._flight = None
        self._resume_at = None
        return flight

    def _note_limits(self, reply: Reply, now: float) -> None:
        if reply.limits is None:
            return
        self._limits = reply.limits
        made = self._resource is not None or reply.meaning is Meaning.SUCCESS
        if made and reply.limits.max_age is not None:
            self._expires_at = now + reply.limits.max_age

    def _after_cancel(self, reply: Reply, pause: _Pause) -> Outcome:
        match reply.meaning:
            case Meaning.SUCCESS if reply.ours:
                return self._finish(Cancelled())
            case Meaning.GONE:
                return self._finish(Cancelled())
            case Meaning.RETRY | Meaning.CONFLICT:
                outcome = self._retry(f"status {reply.status}", pause)
                self._cancelling = isinstance(outcome, Retry)
                return outcome
        return self._fail(self._bad(reply))

    def _after_success(self, flight: Request, reply: Reply, pause: _Pause) -> Outcome:
        if reply.garbled:
            return self._fail(OutOfSync(self._offset, None, "the server's offset or completeness cannot be read"))
        if not reply.ours:
            return self._fail(NotOurs(reply.status, "a success without the fields of an upload"))
        self._length_known |= reply.length is not None or (
            isinstance(flight, Create | Append) and flight.length is not None
        )
        if isinstance(flight, Create):
            return self._created(reply, pause)
        offset = reply.offset
        if offset is None and isinstance(flight, Append):
            # RUFH 4.4.1: a success tells that the body was appended, unless an offset says how much of it
            offset = flight.offset + (flight.content_length or 0)
        return self._learn(offset, flight, pause, complete=reply.complete is True)

    def _created(self, reply: Reply, pause: _Pause) -> Outcome:
        resource = resolve(self._target, reply.location or "")
        if resource is None:
            return self._fail(NotOurs(reply.status, "the new upload lies at another origin"))
        self._resource = resource
        self._told = True
        if reply.offset not in (None, 0) or reply.complete is True:
            return self._learn(reply.offset, Query(), pause, complete=reply.complete is True)
        self._backoff = self._backoff.succeeded()
        self._move(Step.READY)
        return Created(resource)

    @property
    def _bound(self) -> int:
        return self._sent if self._told else self._source.length

    def _learn(self, offset: int | None, flight: Request, pause: _Pause, *, complete: bool) -> Outcome:
        """Take the server's word on where the upload stands, if it can be true."""
        if offset is None or not self._offset <= offset <= self._bound:
            reason = f"the server is at {offset}, acknowledged {self._offset}, sent {self._bound}"
            return self._fail(OutOfSync(self._offset, offset, reason))
        if complete and offset != self._source.final_length:
            reason = f"complete at {offset} for the server, but the file has {self._source}"
            return self._fail(OutOfSync(self._offset, offset, reason))
        progress = offset > self._offset
        self._offset = offset
        self._sent = max(self._sent, offset)
        self._told = True
        if complete:
            return self._finish(Completed(offset))
        if progress:
            self._backoff = self._backoff.succeeded()
            self._doubt = None
        elif self._doubt is not None and offset != self._source.final_length:
            return self._fail(self._doubt)
        elif isinstance(flight, Append):
            # A success that changed nothing: to repeat it at once could go on for ever.
            return self._retry("the server took nothing of an append", pause)
        self._move(Step.READY)
        return Advanced(offset)

    def _after_failure(self, flight: Request, reply: Reply, pause: _Pause) -> Outcome:
        if reply.complaint is not None and isinstance(flight, Append):
            return self._complaint(flight, reply, reply.complaint)
        match reply.meaning:
            case Meaning.CONFLICT if isinstance(flight, Append):
                return self._conflict(flight, reply, pause)
            case Meaning.TOO_LARGE if isinstance(flight, Append) and reply.complete is not True:
                return self._shrink(flight, reply)
            case Meaning.RETRY | Meaning.CONFLICT:
                return self._retry(f"status {reply.status}", pause)
        return self._fail(self._bad(reply))

    def _complaint(self, flight: Append, reply: Reply, complaint: Complaint) -> Outcome:
        """The server says that the upload is complete, or that its length is another one.

        Where everything was acknowledged before, the first is the answer to a completion that came through unseen.
        Otherwise an earlier request may have arrived late and done the work of this one: the server is asked, once.
        """
        if complaint is Complaint.COMPLETED and flight.complete and flight.content_length == 0:
            return self._finish(Completed(self._offset))
        refused = Refused(reply.status, reply.problem, reply.detail)
        if self._doubt is not None:
            return self._fail(refused)
        self._doubt = refused
        self._move(Step.UNSURE)
        return Retry(0.0, complaint.value)

    def _conflict(self, flight: Append, reply: Reply, pause: _Pause) -> Outcome:
        """409: the server's offset is another one, and mostly told."""
        if reply.garbled:
            return self._fail(OutOfSync(self._offset, None, "the server's offset cannot be read"))
        if reply.offset is None or reply.offset == flight.offset or reply.complete is True:
            return self._retry("status 409", pause)
        return self._learn(reply.offset, Query(), pause, complete=False)

    def _shrink(self, flight: Append, reply: Reply) -> Outcome:
        """413: smaller appends, as the server or else a halving says (RUFH 4.1.4); bounded, so no pause."""
        size, most = flight.content_length or 0, self._limits.max_append_size
        smaller = most if most is not None and most < size else size // 2
        if smaller < max(SMALLEST_TRIED, self._limits.min_append_size or 0) and smaller != most:
            return self._fail(self._bad(reply))
        self._shrunk = smaller
        self._move(Step.UNSURE)
        return Retry(0.0, f"{size} bytes were too many for one append")

    def _bad(self, reply: Reply) -> Bad:
        match reply.meaning:
            # "?1" in a refusal tells that it comes from the processing of a complete upload (RUFH 4.4.1), so that it
            # is about these bytes, not about the key or the resource
            case Meaning.GONE if reply.complete is not True:
                return Gone(reply.status)
            case Meaning.UNAUTHORISED if reply.complete is not True:
                return Unauthorised(reply.status)
            case Meaning.NOT_OURS | Meaning.SUCCESS:
                return NotOurs(reply.status, f"status {reply.status} of no upload server")
        return Refused(reply.status, reply.problem, reply.detail)

    # -- moving --------------------------------------------------------------------------------------------------

    def _retry(self, reason: str, pause: _Pause, *, at_once: bool = False) -> Retry | Exhausted:
        self._backoff = self._backoff.failed()
        if self._backoff.exhausted:
            end = Exhausted(reason)
            self._fail(end)
            return end
        after = 0.0 if at_once else self._backoff.pause(pause.entropy, pause.floor)
        self._resume_at = pause.now + after
        self._move(Step.ABSENT if self._resource is None else Step.UNSURE)
        return Retry(after, reason)

    def _move(self, step: Step) -> None:
        if step not in STEPS[self._step]:
            raise UploadMisuse(f"from {self._step.value!r} to {step.value!r}")
        self._step = step

    def _finish(self, outcome: Good) -> Good:
        self._move(Step.DONE)
        self._end = outcome
        return outcome

    def _fail(self, outcome: Bad) -> Bad:
        self._move(Step.FAILED)
        self._end = outcome
        return outcome

    def _give_up(self, outcome: Bad) -> Failed:
        return Failed(self._fail(outcome))


class _Pause(Struct, frozen=True):
    """What a pause after an answer depends on."""

    now: float
    entropy: float
    floor: float
