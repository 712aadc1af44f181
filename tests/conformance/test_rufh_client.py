"""Resumable Uploads for HTTP, requirement by requirement: what a client does.

Sections are those of draft-ietf-httpbis-resumable-upload-12 (July 2026, interop version 9); "-13" marks what a later
draft relaxed. The words are ours, the level is the draft's. The rows drive core and dialect through HTTP answers.
"""

import json

import pytest

from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.outcomes import (
    Advanced,
    Cancelled,
    Completed,
    Created,
    Gone,
    Outcome,
    OutOfSync,
    Refused,
    Retry,
)
from mailboat.protocol.uploads.retry import Backoff
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.tasks import Failed, Source, Wait
from mailboat.protocol.uploads.values import Append, Cancel, Create, Limits, Query
from testkit.conformance import Row, Table
from testkit.uploads import PLACE, REGISTRY, named

TABLE = Table()
row = TABLE.row


def client(
    source: Source | None = None, *, resource: str | None = f"{PLACE}/u", acknowledged: int | None = None
) -> UploadClient:
    source = source or Source(100, sealed=True)
    return UploadClient(
        RufhDialect(), source, target=PLACE, resource=resource, acknowledged=acknowledged, backoff=Backoff(limit=5)
    )


def told(machine: UploadClient, status: int, body: bytes = b"", **fields: str) -> Outcome:
    """Begin the client's next task and answer it."""
    assert isinstance(machine.next_task(0.0), Create | Append | Query | Cancel)
    return machine.responded(status, named(fields), body, now=0.0, wall=0.0, entropy=0.0)


# -- 4.1.1 Offset ----------------------------------------------------------------------------------------------------


@row("4.1.1", "MUST", "an offset that cannot be read is not taken for one")
def _() -> None:
    assert isinstance(told(client(), 204, Upload_Offset="-5", Upload_Complete="?0"), OutOfSync)


# -- 4.1.3 Length ----------------------------------------------------------------------------------------------------


@row("4.1.3", "SHOULD", "the length is told as soon as it is known")
def _() -> None:
    machine = client(Source(5, sealed=False), resource=None)
    create = machine.next_task(0.0)
    assert isinstance(create, Create)
    assert "Upload-Length" not in machine.request(create).headers
    machine.responded(201, {"Location": f"{PLACE}/u"}, b"", now=0.0, wall=0.0, entropy=0.0)
    machine.grown(Source(9, sealed=True))
    append = machine.next_task(0.0)
    assert isinstance(append, Append)
    assert machine.request(append).headers["Upload-Length"] == "9"


# -- 4.1.4 Limits ----------------------------------------------------------------------------------------------------


@row("4.1.4", "MUST", "a client that knows max-append-size sends no larger append")
def _() -> None:
    machine = client()
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0", Upload_Limit="max-append-size=30")
    task = machine.next_task(0.0)
    assert isinstance(task, Append)
    assert task.content_length == 30


@row("4.1.4", "MUST", "a client that knows min-append-size sends no smaller append but the last")
def _() -> None:
    machine = client(Source(29, sealed=False))
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0", Upload_Limit="min-append-size=30")
    assert machine.next_task(0.0) == Wait(None)
    machine.grown(Source(29, sealed=True))
    task = machine.next_task(0.0)
    assert isinstance(task, Append)
    assert task.complete


@row("4.1.4", "SHOULD NOT", "a client does not access a resource after its lifetime")
def _() -> None:
    machine = client()
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0", Upload_Limit="max-age=10")
    assert machine.next_task(10.0) == Failed(Gone(None))


@row("4.1.4", "SHOULD", "a client that cannot keep to the limits stops, and can cancel")
def _() -> None:
    machine = client()
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0", Upload_Limit="max-size=99")
    assert isinstance(machine.next_task(0.0), Failed)
    machine.cancel()
    assert machine.next_task(0.0) == Cancel()


@row("4.1.4", "MUST", "members with unknown keys are ignored")
def _() -> None:
    machine = client()
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0", Upload_Limit='speed="low", max-size=100, a=(1 2)')
    assert machine.limits == Limits(max_size=100)


@row("4.1.4", "MUST", "a known key with a value of another type spoils the whole field")
def _() -> None:
    machine = client()
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0", Upload_Limit="max-size=1, max-append-size=big")
    assert machine.limits == Limits()


@row("4.1.4", "SHOULD", "413 is answered with a smaller request, between the limits where they are known")
def _() -> None:
    machine = client(acknowledged=0)
    assert isinstance(told(machine, 413, Upload_Limit="max-append-size=40"), Retry)
    told(machine, 204, Upload_Offset="0", Upload_Complete="?0")
    task = machine.next_task(0.0)
    assert isinstance(task, Append)
    assert task.content_length == 40


# -- 4.2 Upload creation ---------------------------------------------------------------------------------------------


@row("4.2.1", "-", "2xx to a partial creation: go on at Location")
def _() -> None:
    machine = client(resource=None)
    assert told(machine, 201, Location=f"{PLACE}/u") == Created(f"{PLACE}/u")
    assert isinstance(machine.next_task(0.0), Append)


@row("4.2.1", "SHOULD NOT", "4xx to a creation is not tried again")
def _() -> None:
    assert told(client(resource=None), 405) == Refused(405, None, "")


@row("4.2.1", "MAY", "5xx to a creation without a known resource: it is made again")
def _() -> None:
    machine = client(resource=None)
    assert isinstance(told(machine, 500), Retry)
    assert isinstance(machine.next_task(1.0), Create)


# -- 4.3 Offset retrieval --------------------------------------------------------------------------------------------


@row("4.3.1", "-", "after a success it goes on at the offset told")
def _() -> None:
    machine = client()
    assert told(machine, 204, Upload_Offset="60", Upload_Complete="?0") == Advanced(60)
    task = machine.next_task(0.0)
    assert isinstance(task, Append)
    assert task.offset == 60


@row("4.3.1", "-", "any 2xx is a success (interop 5 and later: not only 204)")
def _() -> None:
    assert told(client(), 200, Upload_Offset="60", Upload_Complete="?0") == Advanced(60)


@row("4.3.1", "-", "completeness need not be told (-13)")
def _() -> None:
    machine = client()
    assert told(machine, 204, Upload_Offset="100") == Advanced(100)
    body = json.dumps({"type": f"{REGISTRY}#completed-upload"}).encode()
    assert told(machine, 410, body, Content_Type="application/problem+json") == Completed(100)


@row("4.3.1", "MUST", "an offset at which it cannot provide bytes fails the upload")
def _() -> None:
    machine = client()
    outcome = told(machine, 204, Upload_Offset="101", Upload_Complete="?0")
    assert isinstance(outcome, OutOfSync)
    assert machine.next_task(0.0) == Failed(outcome)


@row("4.3.1", "SHOULD", "... and cancels it")
def _() -> None:
    machine = client()
    told(machine, 204, Upload_Offset="101", Upload_Complete="?0")
    machine.cancel()
    assert told(machine, 204) == Cancelled()


@row("4.3.1", "MUST NOT", "no query while a creation or an append is under way")
def _() -> None:
    for machine in (client(resource=None), client(acknowledged=0)):
        machine.next_task(0.0)
        with pytest.raises(Exception, match="under way"):
            machine.next_task(0.0)


@row("4.3.1", "SHOULD NOT", "4xx to a query is not tried again, unless its meaning allows")
def _() -> None:
    assert told(client(), 404) == Gone(404)
    assert told(client(), 400) == Refused(400, None, "")
    assert isinstance(told(client(), 429), Retry)


@row("4.3.1", "MAY", "5xx to a query is tried again")
def _() -> None:
    machine = client()
    assert isinstance(told(machine, 503), Retry)
    assert machine.next_task(1.0) == Query()


# -- 4.4 Upload append -----------------------------------------------------------------------------------------------


@row("4.4.1", "MUST", "an append tells Upload-Offset, Upload-Complete and the media type")
def _() -> None:
    machine = client(acknowledged=60)
    task = machine.next_task(0.0)
    assert isinstance(task, Append)
    request = machine.request(task)
    assert request.method == "PATCH"
    wanted = {
        "Content-Type": "application/partial-upload",
        "Upload-Offset": "60",
        "Upload-Complete": "?1",
        "Upload-Length": "100",
        "Content-Length": "40",
        "Upload-Draft-Interop-Version": "9",
    }
    assert request.headers == wanted


@row("4.4.1", "-", "an answer with ?1 is the end: a success")
def _() -> None:
    assert told(client(acknowledged=0), 200, Upload_Complete="?1") == Completed(100)


@row("4.4.1", "-", "... or a refusal, which resuming would not resolve")
def _() -> None:
    for status in (400, 403, 404):
        assert told(client(acknowledged=0), status, Upload_Complete="?1") == Refused(status, None, "")


@row("4.4.1", "-", "2xx with ?0: go on with what is left")
def _() -> None:
    machine = client(Source(100, sealed=False), acknowledged=0)
    assert told(machine, 204, Upload_Complete="?0") == Advanced(100)


@row("4.4.1", "-", "an Upload-Offset in a 2xx counts for more than what the 2xx implies")
def _() -> None:
    assert told(client(acknowledged=0), 204, Upload_Offset="70", Upload_Complete="?0") == Advanced(70)


@row("4.4.1", "SHOULD NOT", "4xx is not tried again, unless its meaning allows")
def _() -> None:
    assert told(client(acknowledged=0), 422) == Refused(422, None, "")
    assert isinstance(told(client(acknowledged=0), 408), Retry)


@row("4.4.1", "MAY", "409 with the right offset is resumed there")
def _() -> None:
    machine = client(acknowledged=10)
    assert told(machine, 409, Upload_Offset="60", Upload_Complete="?0") == Advanced(60)


@row("4.4.1", "MAY", "5xx, or no answer: the offset is asked, and resumed at")
def _() -> None:
    machine = client(acknowledged=0)
    assert isinstance(told(machine, 500), Retry)
    assert machine.next_task(1.0) == Query()
    machine = client(acknowledged=0)
    machine.next_task(0.0)
    machine.broken(now=0.0, entropy=0.0)
    assert machine.next_task(0.0) == Query()


# -- 4.5 Upload cancellation -----------------------------------------------------------------------------------------


@row("4.5.1", "-", "any success cancels")
def _() -> None:
    for status in (200, 202, 204):
        machine = client()
        machine.cancel()
        assert told(machine, status) == Cancelled()


# -- 4.6 Concurrency -------------------------------------------------------------------------------------------------


@row("4.6", "MUST NOT", "never two transfers of one upload at a time")
def _() -> None:
    machine = client(acknowledged=0)
    assert isinstance(machine.next_task(0.0), Append)
    with pytest.raises(Exception, match="under way"):
        machine.next_task(0.0)


# -- Appendix: versions ----------------------------------------------------------------------------------------------


@row("Appendix B", "MUST", "every request tells the interop version")
def _() -> None:
    machine = client()
    for task in (Create(complete=False), Append(0, complete=False), Query(), Cancel()):
        assert machine.request(task).headers["Upload-Draft-Interop-Version"] == "9"


@pytest.mark.parametrize("row", TABLE.rows, ids=str)
def test_requirement(row: Row) -> None:
    row.check()
