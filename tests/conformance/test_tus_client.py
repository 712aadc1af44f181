"""tus 1.0.0, requirement by requirement: what a client does.

Sections are the specification's headings (version of 2016-03-25). The words are ours, the level is the document's. The
rows drive core and dialect through HTTP answers. Not built in the client, each a MAY: creation with upload (creations
carry no bytes), concatenation, X-HTTP-Method-Override.
"""

import pytest
from msgspec.structs import replace

from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.digests import Algorithm, Digest
from mailboat.protocol.uploads.outcomes import (
    Advanced,
    Cancelled,
    Completed,
    Created,
    Gone,
    NotOurs,
    Outcome,
    OutOfSync,
    Refused,
    Retry,
    Unauthorised,
)
from mailboat.protocol.uploads.replies import HttpRequest
from mailboat.protocol.uploads.retry import Backoff
from mailboat.protocol.uploads.tasks import Failed, Source
from mailboat.protocol.uploads.tus_client import TusDialect
from mailboat.protocol.uploads.values import Append, Cancel, Create, Query
from testkit.conformance import Row, Table
from testkit.uploads import PLACE, named

TABLE = Table()
row = TABLE.row
DATE = "Wed, 25 Jun 2014 16:00:00 GMT"


def client(
    source: Source | None = None,
    *,
    resource: str | None = f"{PLACE}/u",
    acknowledged: int | None = None,
    metadata: dict[str, str] | None = None,
) -> UploadClient:
    return UploadClient(
        TusDialect(metadata),
        source or Source(100, sealed=True),
        target=PLACE,
        resource=resource,
        acknowledged=acknowledged,
        backoff=Backoff(limit=5),
    )


def asked(machine: UploadClient) -> HttpRequest:
    """Begin the client's next task: its request."""
    task = machine.next_task(0.0)
    assert isinstance(task, Create | Append | Query | Cancel)
    return machine.request(task)


def told(machine: UploadClient, status: int, body: bytes = b"", **fields: str) -> Outcome:
    """Begin the client's next task and answer it as a tus server does."""
    asked(machine)
    return answered(machine, status, body, **fields)


def answered(machine: UploadClient, status: int, body: bytes = b"", **fields: str) -> Outcome:
    headers = {"Tus-Resumable": "1.0.0"} | named(fields)
    return machine.responded(status, headers, body, now=0.0, wall=0.0, entropy=0.0)


# -- Core --------------------------------------------------------------------------------------------------------------


@row("Tus-Resumable", "MUST", "in every request, with the version")
def _() -> None:
    machine = client(resource=None)
    requests = [asked(machine)]
    answered(machine, 201, Location=f"{PLACE}/u")
    requests.append(asked(machine))
    answered(machine, 500)
    requests.append(asked(machine))
    answered(machine, 200, Upload_Offset="0", Upload_Length="100")
    machine.cancel()
    requests.append(asked(machine))
    assert [request.method for request in requests] == ["POST", "PATCH", "HEAD", "DELETE"]
    assert [request.headers["Tus-Resumable"] for request in requests] == ["1.0.0"] * 4


@row("Tus-Resumable", "MUST", "an answer without it is not a tus server's")
def _() -> None:
    machine = client()
    asked(machine)
    outcome = machine.responded(200, {"Upload-Offset": "0"}, b"", now=0.0, wall=0.0, entropy=0.0)
    assert isinstance(outcome, NotOurs)


@row("Tus-Resumable", "-", "412 ends the upload: no other version is spoken")
def _() -> None:
    assert isinstance(told(client(), 412, Tus_Version="2.0.0"), Refused)


@row("Upload-Offset", "MUST", "an offset that is no non-negative integer is not taken for one")
def _() -> None:
    for value in ("-5", "1.0", "", "ten"):
        assert isinstance(told(client(), 200, Upload_Offset=value), OutOfSync)


@row("HEAD", "-", "it tells where to go on")
def _() -> None:
    machine = client()
    assert asked(machine).method == "HEAD"
    assert answered(machine, 200, Upload_Offset="70", Upload_Length="100") == Advanced(70)
    assert asked(machine).headers["Upload-Offset"] == "70"


@row("HEAD", "-", "an offset that is the length means that the upload is complete")
def _() -> None:
    assert told(client(), 200, Upload_Offset="100", Upload_Length="100") == Completed(100)


@row("HEAD", "-", "404 and 410: the upload is gone; 403: the key is refused")
def _() -> None:
    assert told(client(), 404) == Gone(404)
    assert told(client(), 410) == Gone(410)
    assert told(client(), 403) == Unauthorised(403)


@row("PATCH", "MUST", "application/offset+octet-stream, at the offset that the server told")
def _() -> None:
    request = asked(client(acknowledged=30))
    assert (request.method, request.url) == ("PATCH", f"{PLACE}/u")
    assert request.headers["Content-Type"] == "application/offset+octet-stream"
    assert (request.headers["Upload-Offset"], request.headers["Content-Length"]) == ("30", "70")


@row("PATCH", "SHOULD", "all remaining bytes in a single request")
def _() -> None:
    assert asked(client(Source(10**9, sealed=True), acknowledged=0)).headers["Content-Length"] == str(10**9)


@row("PATCH", "MAY", "or several small ones")
def _() -> None:
    machine = client(acknowledged=0)
    machine.append_bytes = 30
    assert told(machine, 204, Upload_Offset="30") == Advanced(30)
    assert told(machine, 204, Upload_Offset="60") == Advanced(60)


@row("PATCH", "-", "204 with the last offset completes the upload")
def _() -> None:
    assert told(client(acknowledged=0), 204, Upload_Offset="100") == Completed(100)


@row("PATCH", "-", "an answer may tell that less was taken than was sent")
def _() -> None:
    machine = client(acknowledged=0)
    assert told(machine, 204, Upload_Offset="40") == Advanced(40)
    assert asked(machine).headers["Upload-Offset"] == "40"


@row("PATCH", "MUST", "a success without Upload-Offset is no success")
def _() -> None:
    assert isinstance(told(client(acknowledged=0), 204), NotOurs)


@row("PATCH", "-", "409 leads to HEAD, not to a guess")
def _() -> None:
    machine = client(acknowledged=0)
    assert isinstance(told(machine, 409), Retry)
    task = machine.next_task(1e9)
    assert isinstance(task, Query)


@row("PATCH", "SHOULD", "errors of network and server are retried, from the server's offset")
def _() -> None:
    machine = client(acknowledged=0)
    assert isinstance(told(machine, 503), Retry)
    assert isinstance(machine.next_task(1e9), Query)
    machine.broken(now=1e9, entropy=0.0)
    assert isinstance(machine.next_task(2e9), Query)


@row("PATCH", "-", "423, as servers answer while another request holds the upload, is retried")
def _() -> None:
    assert isinstance(told(client(acknowledged=0), 423), Retry)


@row("PATCH", "-", "an offset that goes back, or beyond what was sent, is out of sync")
def _() -> None:
    assert isinstance(told(client(acknowledged=50), 204, Upload_Offset="49"), OutOfSync)
    assert isinstance(told(client(acknowledged=50), 204, Upload_Offset="101"), OutOfSync)


# -- Creation ----------------------------------------------------------------------------------------------------------


@row("Creation", "MUST", "POST, with the length")
def _() -> None:
    request = asked(client(resource=None))
    assert (request.method, request.url) == ("POST", PLACE)
    assert (request.headers["Upload-Length"], request.headers["Content-Length"]) == ("100", "0")
    assert "Upload-Defer-Length" not in request.headers


@row("Creation", "MUST", "or Upload-Defer-Length: 1, and the length in the next PATCH once it is known")
def _() -> None:
    machine = client(Source(10, sealed=False), resource=None)
    request = asked(machine)
    assert (request.headers["Upload-Defer-Length"], "Upload-Length" in request.headers) == ("1", False)
    answered(machine, 201, Location=f"{PLACE}/u")
    assert "Upload-Length" not in asked(machine).headers
    assert answered(machine, 204, Upload_Offset="10") == Advanced(10)
    machine.grown(Source(12, sealed=True))
    assert asked(machine).headers["Upload-Length"] == "12"
    assert answered(machine, 204, Upload_Offset="12") == Completed(12)


@row("Creation", "-", "a length that becomes known when all bytes are there goes with an empty PATCH")
def _() -> None:
    machine = client(Source(10, sealed=False), acknowledged=10)
    machine.grown(Source(10, sealed=True))
    request = asked(machine)
    assert (request.headers["Upload-Length"], request.headers["Content-Length"]) == ("10", "0")
    assert answered(machine, 204, Upload_Offset="10") == Completed(10)


@row("Creation", "-", "... and after a restart, HEAD without a length is not the end")
def _() -> None:
    machine = client(Source(10, sealed=True))
    assert told(machine, 200, Upload_Offset="10", Upload_Defer_Length="1") == Advanced(10)
    assert asked(machine).headers["Upload-Length"] == "10"


@row("Creation", "MAY", "the URL of the upload is absolute or relative, of the same origin")
def _() -> None:
    for location in (f"{PLACE}/u", "uploads/u"):
        machine = client(resource=None)
        assert told(machine, 201, Location=location) == Created(f"{PLACE}/u")
        assert machine.resource == f"{PLACE}/u"
    machine = UploadClient(TusDialect(), Source(9, sealed=True), target="https://tus.example/files/")
    assert told(machine, 201, Location="https://tus.example/files/u") == Created("https://tus.example/files/u")
    machine = UploadClient(TusDialect(), Source(9, sealed=True), target="https://tus.example/files/")
    assert isinstance(told(machine, 201, Location="https://other.example/files/u"), NotOurs)


@row("Creation", "MUST", "only 201 with Location is a creation")
def _() -> None:
    assert isinstance(told(client(resource=None), 201), NotOurs)
    assert isinstance(told(client(resource=None), 200, Location=f"{PLACE}/u"), NotOurs)


@row("Creation", "-", "an upload of no bytes is complete with its creation")
def _() -> None:
    assert told(client(Source(0, sealed=True), resource=None), 201, Location=f"{PLACE}/u") == Completed(0)


@row("Creation", "-", "413: the server does not take so much")
def _() -> None:
    outcome = told(client(resource=None), 413, b"Maximum size exceeded\n", Content_Type="text/plain; charset=utf-8")
    assert outcome == Refused(413, None, "Maximum size exceeded")


@row("Upload-Metadata", "MUST", "pairs, separated by commas, the values in Base64")
def _() -> None:
    metadata = {"session": "0190", "product": "Acme Stüdio", "empty": ""}
    request = asked(client(resource=None, metadata=metadata))
    assert request.headers["Upload-Metadata"] == "session MDE5MA==,product QWNtZSBTdMO8ZGlv,empty"
    assert "Upload-Metadata" not in asked(client(resource=None)).headers


@row("Upload-Metadata", "MUST", "keys are not empty and have no spaces and commas")
def _() -> None:
    for key in ("", "a b", "a,b", "ä", "a\n"):
        with pytest.raises(ValueError, match="Upload-Metadata"):
            TusDialect({key: "x"})


@row("Creation", "-", "a length that the server has is not told again: @tus/server refuses that")
def _() -> None:
    machine = client(resource=None)
    told(machine, 201, Location=f"{PLACE}/u")
    assert "Upload-Length" not in asked(machine).headers
    machine = client()
    told(machine, 200, Upload_Offset="50", Upload_Length="100")
    assert "Upload-Length" not in asked(machine).headers
    machine = client(Source(10, sealed=True))
    told(machine, 200, Upload_Offset="5", Upload_Defer_Length="1")
    assert asked(machine).headers["Upload-Length"] == "10"
    answered(machine, 204, Upload_Offset="7")
    assert "Upload-Length" not in asked(machine).headers


# -- Expiration --------------------------------------------------------------------------------------------------------


@row("Expiration", "SHOULD", "an upload that has expired is not resumed; its time is measured by the server's clock")
def _() -> None:
    machine = client()
    told(machine, 200, Upload_Offset="0", Upload_Expires="Wed, 25 Jun 2014 16:01:00 GMT", Date=DATE)
    assert isinstance(machine.next_task(59.0), Append)
    answered(machine, 204, Upload_Offset="50", Upload_Expires="Wed, 25 Jun 2014 16:01:00 GMT", Date=DATE)
    assert machine.next_task(60.0) == Failed(Gone(None))


@row("Expiration", "-", "a date that cannot be read, or not be measured, is ignored")
def _() -> None:
    for fields in (
        {"Upload_Expires": DATE},
        {"Upload_Expires": "soon", "Date": DATE},
        {"Upload_Expires": DATE, "Date": ""},
    ):
        machine = client()
        told(machine, 200, b"", Upload_Offset="0", **fields)
        assert isinstance(machine.next_task(1e12), Append)


# -- Checksum ----------------------------------------------------------------------------------------------------------


@row("Checksum", "MAY", "an append carries the checksum that its owner gives")
def _() -> None:
    machine = client(Source(5, sealed=True), acknowledged=0)
    task = machine.next_task(0.0)
    assert isinstance(task, Append)
    hasher = Algorithm.SHA1.hasher()
    hasher.update(b"hello")
    request = machine.request(replace(task, digest=Digest(Algorithm.SHA1, hasher.digest())))
    assert request.headers["Upload-Checksum"] == "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="


@row("Checksum", "-", "460: the bytes are sent again, after a pause")
def _() -> None:
    machine = client(acknowledged=0)
    assert isinstance(told(machine, 460), Retry)


# -- Termination -------------------------------------------------------------------------------------------------------


@row("Termination", "-", "DELETE ends the upload; 404 and 410 say that it has ended")
def _() -> None:
    for status in (204, 404, 410):
        machine = client()
        machine.cancel()
        assert asked(machine).method == "DELETE"
        assert answered(machine, status) == Cancelled()


@row("Termination", "-", "a server without it says so")
def _() -> None:
    machine = client()
    machine.cancel()
    assert isinstance(told(machine, 405), Refused)


@pytest.mark.parametrize("row", TABLE.rows, ids=str)
def test_requirement(row: Row) -> None:
    row.check()
