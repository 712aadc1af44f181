"""Client core against server core over a network that does anything but forge: whatever happens, the bytes arrive.

Requests and answers get lost, transfers are cut (with or without the server noticing), requests arrive twice or late,
transfers given up by the client go on, the server restarts and forgets what was not durable, the client's process dies
and a new one takes over, the file grows meanwhile. Not modelled: requests of a dead process that arrive after a new one
has asked; the client would call that out of sync.
"""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.decisions import BodyEnd
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.outcomes import Completed, Created, OutOfSync
from mailboat.protocol.uploads.replies import ClientDialect
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.tasks import Done, Source, Wait
from mailboat.protocol.uploads.tus_client import TusDialect
from mailboat.protocol.uploads.values import Append, Cancel, Create, Limits, Query, Request
from testkit.uploads import PLACE, MemoryServer, Transfer

CONTENT = bytes((i * i + i // 7) % 251 for i in range(400))
ENTROPY = st.sampled_from([0.0, 0.5, 0.999])
FATES = ["arrives", "arrives", "arrives", "answer lost", "lost", "fails", "comes twice"]
MOVES = ["more", "more", "more, durable", "whole", "whole, unheard", "cut", "cut, unnoticed"]
LATE = ["go on", "record", "end", "cut"]
DISTURBANCES = ["grow", "seal", "server restarts", "client dies", "client dies, negotiates"]


@dataclass
class Flight:
    """A request on its way; `transfer` once the server has taken it up, `fed` the bytes of its body that went in."""

    task: Request
    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    transfer: Transfer | None = None
    fed: int = 0

    def feed(self, count: int) -> None:
        assert self.transfer is not None
        self.transfer.feed(self.body[self.fed : self.fed + count])
        self.fed = min(self.fed + count, len(self.body))


class Uploads(RuleBasedStateMachine):
    dialect: ClientDialect = RufhDialect()
    bounded = True
    """Whether the dialect has words for a bound of appends; without them such a bound is tried out, from 16 KiB on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.server = MemoryServer()
        self.flight: Flight | None = None
        self.given_up: list[Flight] = []
        """Requests that the client has given up; they may still be under way, or arrive yet."""
        self.promised = 0
        self.fresh: int | None = None
        self.high: dict[str, int] = {}
        self.client = self.started(Source(0, sealed=False), None, None)

    def started(self, source: Source, resource: str | None, acknowledged: int | None) -> UploadClient:
        return UploadClient(self.dialect, source, target=PLACE, resource=resource, acknowledged=acknowledged)

    @initialize(
        length=st.integers(0, 300) | st.integers(100, 300),
        sealed=st.booleans(),
        polite=st.booleans(),
        most=st.sampled_from([None, 7, 100]),
        server_most=st.sampled_from([None, 50]),
        age=st.sampled_from([None, 10**9]),
    )
    def begin(
        self, length: int, sealed: bool, polite: bool, most: int | None, server_most: int | None, age: int | None
    ) -> None:
        server_most = server_most if self.bounded else None
        self.server = MemoryServer(Limits(max_size=1000, max_append_size=server_most, max_age=age))
        self.server.polite = polite
        self.client.grown(Source(length, sealed=sealed))
        self.client.append_bytes = most

    # -- the client ----------------------------------------------------------------------------------------------

    def asked(self) -> bool:
        """The client begins its next request, after its pause; False when there is nothing to do."""
        task = self.client.next_task(self.now)
        if isinstance(task, Wait) and task.until is not None:
            self.now = task.until
            task = self.client.next_task(self.now)
        if isinstance(task, Wait):
            assert not self.client.source.sealed
            return False
        if isinstance(task, Done):
            assert task.outcome == Completed(self.client.source.length)
            return False
        assert isinstance(task, Create | Query | Append | Cancel), task
        self.flight = self.departed(task)
        return True

    def departed(self, task: Request) -> Flight:
        request = self.client.request(task)
        body = b""
        if isinstance(task, Append):
            assert task.content_length is not None
            assert task.offset == self.client.offset >= self.promised, "acknowledged bytes are sent again"
            body = CONTENT[task.offset : task.offset + task.content_length]
        return Flight(task, request.method, request.url, request.headers, body)

    # -- the network ---------------------------------------------------------------------------------------------

    def flying(self) -> Flight:
        assert self.flight is not None
        return self.flight

    def arrive(self, flight: Flight) -> HttpAnswer | None:
        """The request reaches the server, its body not yet; gives the answer where the body does not matter."""
        expected, self.fresh = self.fresh, None
        begun = self.server.begin(flight.method, flight.url, flight.headers)
        if isinstance(begun, Transfer):
            flight.transfer, flight.fed = begun, 0
            return None
        if isinstance(flight.task, Append) and flight.task.offset == expected and flight is self.flight:
            assert begun.status != 409, "an offset was told, and then refused"
        return begun

    def answered(self, reply: HttpAnswer, entropy: float) -> None:
        """The client hears the answer to its request."""
        flight, self.flight = self.flying(), None
        outcome = self.client.responded(
            reply.status, reply.headers, reply.body, now=self.now, wall=self.server.now, entropy=entropy
        )
        assert not isinstance(outcome, OutOfSync), outcome
        if "Upload-Offset" in reply.headers:
            told = int(reply.headers["Upload-Offset"])
            self.fresh = told
            if reply.status < 300 or reply.status == 409:
                self.promised = max(self.promised, told if not isinstance(flight.task, Create) else 0)
        if isinstance(outcome, Created):
            self.high.setdefault(outcome.resource, 0)

    def lost(self, entropy: float) -> None:
        """The client gives its request up; the network may not."""
        flight, self.flight = self.flying(), None
        self.given_up.append(flight)
        self.client.broken(now=self.now, entropy=entropy)

    # One rule with weights, because what matters are long plays of client and server, seldom disturbed.
    @rule(
        what=st.sampled_from(["client"] * 6 + ["late"] * 3 + ["disturbance"]),
        fate=st.sampled_from(FATES),
        move=st.sampled_from(MOVES),
        late=st.sampled_from(LATE),
        disturbance=st.sampled_from(DISTURBANCES),
        count=st.integers(0, 60),
        entropy=ENTROPY,
    )
    def step(self, what: str, fate: str, move: str, late: str, disturbance: str, count: int, entropy: float) -> None:
        if what == "late":
            self.come_late(count, late)
        elif what == "disturbance":
            self.disturb(disturbance, count, entropy)
        elif self.flight is not None:
            self.move(self.flight, move, count, entropy)
        elif self.asked():
            self.meet(self.flying(), fate, count, entropy)

    def meet(self, flight: Flight, fate: str, count: int, entropy: float) -> None:
        """A request of the client meets its fate on the way to the server, or is under way with part of its body."""
        if fate == "lost":
            self.lost(entropy)
        elif fate == "fails":
            self.answered(HttpAnswer(503, {"Retry-After": "3"}), entropy)
        elif fate == "comes twice":
            # a proxy sends it again, whole; the client hears the second answer
            replies = [self.server.handle(flight.method, flight.url, flight.headers, flight.body) for _ in range(2)]
            self.fresh = None
            self.answered(replies[1], entropy)
        else:
            reply = self.arrive(flight)
            if reply is None:
                flight.feed(count)
            elif fate == "answer lost":
                self.lost(entropy)
            else:
                self.answered(reply, entropy)

    def move(self, flight: Flight, move: str, count: int, entropy: float) -> None:
        """The transfer under way goes on, or ends."""
        transfer = flight.transfer
        assert transfer is not None
        if transfer.over:  # ended for a newer request: its connection is closed
            self.lost(entropy)
        elif move in ("more", "more, durable"):
            flight.feed(count)
            if move == "more, durable":
                transfer.record()
        elif move in ("whole", "whole, unheard"):
            flight.feed(len(flight.body))
            reply = transfer.end()
            if move == "whole":
                self.answered(reply, entropy)
            else:
                self.lost(entropy)
        else:
            if move == "cut":
                transfer.end(BodyEnd.CUT)
            self.lost(entropy)

    def come_late(self, count: int, then: str) -> None:
        """A request that the client gave up arrives, or more of its body does."""
        if not self.given_up:
            return
        flight = self.given_up[count % len(self.given_up)]
        transfer = flight.transfer
        if transfer is None:
            if not isinstance(flight.task, Create):
                self.arrive(flight)
        elif not transfer.over:
            flight.feed(count)
            if then == "record":
                transfer.record()
            elif then != "go on":
                transfer.end(BodyEnd.CUT if then == "cut" or flight.fed < len(flight.body) else BodyEnd.WHOLE)

    def disturb(self, kind: str, more: int, entropy: float) -> None:
        source = self.client.source
        if kind in ("grow", "seal"):
            if not source.sealed:
                self.client.grown(Source(min(source.length + more, len(CONTENT)), sealed=kind == "seal"))
        elif kind == "server restarts":
            for flight in (*self.given_up, *([self.flight] if self.flight is not None else [])):
                if flight.transfer is not None:
                    flight.transfer.over = True
            self.server.restart()
            if self.flight is not None:
                self.lost(entropy)
        else:
            self.die(negotiates=kind == "client dies, negotiates")

    def die(self, *, negotiates: bool) -> None:
        """The client's process dies; a new one finds the file, and the resource if there is one.

        Negotiation may tell it the offset that the server has now; it does not end what is under way.
        """
        if self.flight is not None:
            self.given_up.append(self.flight)
            self.flight = None
        # what had not reached the server died with its process (see above)
        self.given_up = [flight for flight in self.given_up if flight.transfer is not None]
        resource = self.client.resource
        known = self.state_of(resource).offset if resource is not None and negotiates else None
        self.client = self.started(self.client.source, resource, known)
        self.promised = max(self.promised, known or 0)
        self.fresh = None

    # -- what must hold at any time ------------------------------------------------------------------------------

    def state_of(self, resource: str) -> UploadState:
        return self.server.uploads[resource.removeprefix(f"{PLACE}/")].state

    @invariant()
    def offsets_never_decrease(self) -> None:
        for resource in self.high:
            offset = self.state_of(resource).offset
            assert offset >= self.high[resource]
            self.high[resource] = offset

    @invariant()
    def the_server_holds_what_the_file_has(self) -> None:
        for upload in self.server.uploads.values():
            state = upload.state
            assert upload.blob[: state.offset] == CONTENT[: state.offset]
            assert len(upload.blob) == state.offset
            if state.complete:
                assert self.client.source == Source(state.offset, sealed=True)

    @invariant()
    def nothing_is_acknowledged_that_is_not_durable(self) -> None:
        if self.client.resource is not None:
            assert self.client.offset <= self.state_of(self.client.resource).offset

    def teardown(self) -> None:
        """The network heals: the upload completes, in a few requests."""
        if self.flight is not None:
            self.lost(0.0)
        source = self.client.source
        self.client.grown(Source(source.length, sealed=True))
        most = min(self.client.append_bytes or 1000, self.server.limits.max_append_size or 1000)
        for _ in range(10 + 2 * (source.length // most)):
            task = self.client.next_task(self.now)
            if isinstance(task, Wait):
                assert task.until is not None
                self.now = task.until
                continue
            if isinstance(task, Done):
                break
            assert isinstance(task, Create | Query | Append | Cancel), task
            self.flight = self.departed(task)
            self.answered(
                self.server.handle(self.flight.method, self.flight.url, self.flight.headers, self.flight.body), 0.0
            )
        assert self.client.outcome == Completed(source.length)
        assert self.client.resource is not None
        upload = self.server.uploads[self.client.resource.removeprefix(f"{PLACE}/")]
        assert upload.state.complete
        assert upload.blob == CONTENT[: source.length]


class TusUploads(Uploads):
    dialect = TusDialect({"session": "0190a000", "product": "Acme Studio"})
    bounded = False


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=2 * settings().max_examples, stateful_step_count=50)
TestTusUploads = TusUploads.TestCase
TestTusUploads.settings = TestUploads.settings


@pytest.mark.parametrize("dialect", [RufhDialect(), TusDialect()], ids=["rufh", "tus"])
def test_cut_at_every_64_kib_each_cut_costs_one_query_and_no_pause(dialect: ClientDialect) -> None:
    content = bytes(range(256)) * 4096 * 16
    server = MemoryServer()
    client = UploadClient(dialect, Source(len(content), sealed=True), target=PLACE)
    received = queries = 0
    while not isinstance(task := client.next_task(0.0), Done):
        assert isinstance(task, Create | Query | Append), "a pause"
        request = client.request(task)
        queries += isinstance(task, Query)
        begun = server.begin(request.method, request.url, request.headers)
        if isinstance(begun, Transfer):
            body = memoryview(content)[begun.upload.state.offset :]
            size = task.content_length or 0 if isinstance(task, Append) else 0
            part = bytes(body[: min(size, 64 * 1024)])
            received += len(part)
            begun.feed(part)
            if len(part) < size:
                begun.end(BodyEnd.CUT)
                client.broken(now=0.0, entropy=0.9)
                continue
            begun = begun.end()
        client.responded(begun.status, begun.headers, begun.body, now=0.0, wall=0.0, entropy=0.9)
    (upload,) = server.uploads.values()
    assert upload.blob == content
    assert (received, queries) == (len(content), 255)
