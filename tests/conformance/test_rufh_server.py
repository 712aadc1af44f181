"""Resumable Uploads for HTTP, requirement by requirement: what a server does with requests (sections 4.2 to 7).

Sections are those of draft-ietf-httpbis-resumable-upload-12 (July 2026, interop version 9); "-13" marks what a later
draft relaxed, "-01" and the like what older ones have. The words are ours, the level is the draft's. The rows drive the
core and the dialect through HTTP messages. Not here:

4.2.2, 4.4.2 SHOULD announce the upload and its progress by 104; MUST keep Location the same in interim answers
    Off by default: HTTP libraries take 104 for the final answer, and proxies hang on it. What is sent where it is on,
    and that both answers to one creation have the same Location: `server/test_cors_and_interim`.
4.5.2, 4.6 SHOULD end the previous transfer's connection
    The server's own tests. That such a transfer can do no harm is here, under 4.6.
8, 9 Content and transfer codings
    The first are opaque to the cores, the second undone by the HTTP library before them.
4.4.2 SHOULD answer a completing append as the creation would have been
    It is answered 204 with ?1: an upload has no other result here than that it is there.
5 MUST NOT omit 100 (Continue)
    The HTTP library sends it before anything of ours runs.
"""

import base64
import hashlib
import json

import pytest

from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.decisions import BodyEnd
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.rufh_server import RufhServer
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Limits
from testkit.conformance import Row, Table
from testkit.uploads import PLACE, REGISTRY, MemoryServer, Transfer, head, made, patch, problem, stored

TABLE = Table()
row = TABLE.row
FULL = Limits(max_size=100, min_size=5, max_append_size=50, min_append_size=10, max_age=3600)
FULL_TEXT = "max-size=100, min-size=5, max-append-size=50, min-append-size=10, max-age=3600"

# -- 4.2 Upload creation ---------------------------------------------------------------------------------------------


@row("4.2.1", "-", "a creation is any method with content, marked by Upload-Complete")
def _() -> None:
    server = MemoryServer()
    for method in ("POST", "PUT"):
        assert server.handle(method, PLACE, {"Upload-Complete": "?0"}, b"x").status == 201


@row("4.2.1", "-", "a creation may be empty, and may then be complete")
def _() -> None:
    server, url = made()
    assert head(server, url).headers["Upload-Complete"] == "?0"
    reply = server.handle("POST", PLACE, {"Upload-Complete": "?1"})
    assert (reply.status, reply.headers["Upload-Complete"], reply.headers["Upload-Offset"]) == (201, "?1", "0")


@row("4.2.1", "-", "an empty creation is not bound by min-append-size")
def _() -> None:
    server, url = made(MemoryServer(Limits(min_append_size=10)))
    assert head(server, url).headers["Upload-Offset"] == "0"


@row("4.2.2", "MUST", "a creation with ?0 is answered with Location and Upload-Limit")
def _() -> None:
    server = MemoryServer(FULL)
    reply = server.handle("POST", PLACE, {"Upload-Complete": "?0"}, b"x" * 10)
    assert reply.headers["Location"].startswith(f"{PLACE}/")
    assert reply.headers["Upload-Limit"] == FULL_TEXT


@row("4.2.2", "RECOMMENDED", "with the status 201")
def _() -> None:
    assert MemoryServer().handle("POST", PLACE, {"Upload-Complete": "?0"}).status == 201


@row("4.2.2", "-", "a creation with ?1 whose content is whole is complete, and says so")
def _() -> None:
    reply = MemoryServer().handle("POST", PLACE, {"Upload-Complete": "?1"}, b"12345")
    assert (reply.status, reply.headers["Upload-Complete"], reply.headers["Upload-Offset"]) == (201, "?1", "5")


@row("4.2.2", "MUST", "the length is recorded from Upload-Length or Upload-Complete: ?1")
def _() -> None:
    server = MemoryServer()
    begun = server.begin("POST", PLACE, {"Upload-Complete": "?1", "Content-Length": "5"})
    assert isinstance(begun, Transfer)
    assert begun.upload.state.length == 5


@row("4.2.2", "SHOULD", "an interrupted creation keeps as much as came")
def _() -> None:
    server = MemoryServer()
    begun = server.begin("POST", PLACE, {"Upload-Complete": "?1", "Content-Length": "5"})
    assert isinstance(begun, Transfer)
    begun.feed(b"123")
    begun.end(BodyEnd.CUT)
    assert bytes(begun.upload.blob) == b"123"


@row("4.2.2", "MUST NOT", "an interrupted creation is not complete")
def _() -> None:
    server = MemoryServer()
    begun = server.begin("POST", PLACE, {"Upload-Complete": "?1", "Content-Length": "3"})
    assert isinstance(begun, Transfer)
    begun.feed(b"123")
    begun.end(BodyEnd.CUT)
    assert not begun.upload.state.complete


# -- 4.3 Offset retrieval --------------------------------------------------------------------------------------------


@row("4.3.2", "MUST", "a successful answer has Upload-Offset")
def _() -> None:
    server, url = made(body=b"123")
    reply = head(server, url)
    assert (reply.status, reply.headers["Upload-Offset"], reply.body) == (204, "3", b"")


@row("4.3.2", "MUST", "... and Upload-Complete (-13: may)")
def _() -> None:
    server, url = made(body=b"123")
    assert head(server, url).headers["Upload-Complete"] == "?0"
    server.handle("PATCH", url, patch(3, complete="?1"))
    assert head(server, url).headers["Upload-Complete"] == "?1"


@row("4.3.2", "MUST", "... and Upload-Length, unless the client has not told it (-13: may)")
def _() -> None:
    server, url = made(Upload_Length="100")
    assert head(server, url).headers["Upload-Length"] == "100"
    server, url = made()
    assert "Upload-Length" not in head(server, url).headers


@row("4.3.2", "MUST", "... and Upload-Limit")
def _() -> None:
    server, url = made(MemoryServer(FULL))
    assert head(server, url).headers["Upload-Limit"] == FULL_TEXT


@row("4.3.2", "SHOULD", "... and Cache-Control: no-store")
def _() -> None:
    server, url = made()
    assert head(server, url).headers["Cache-Control"] == "no-store"


@row("4.3.2", "-", "GET is answered like HEAD, and shows no content")
def _() -> None:
    server, url = made(body=b"123")
    assert server.handle("GET", url, {}) == head(server, url)


# -- 4.4 Upload append -----------------------------------------------------------------------------------------------


@row("4.4.1", "MUST", "an append without Upload-Offset or Upload-Complete is refused")
def _() -> None:
    server, url = made()
    for name in ("Upload-Offset", "Upload-Complete"):
        headers = patch(0)
        del headers[name]
        assert server.handle("PATCH", url, headers, b"x").status == 400


@row("4.4.1", "-", "an append has the media type application/partial-upload, else 415 with Accept-Patch")
def _() -> None:
    server, url = made()
    for media_type in ("application/octet-stream", "application/offset+octet-stream", ""):
        reply = server.handle("PATCH", url, patch(0, Content_Type=media_type), b"x")
        assert (reply.status, reply.headers["Accept-Patch"]) == (415, "application/partial-upload")
    assert server.handle("PATCH", url, patch(0, Content_Type="Application/Partial-Upload; a=b"), b"x").status == 204


@row("4.4.1", "-", "an empty append with ?1 completes what is there")
def _() -> None:
    server, url = made(body=b"123")
    reply = server.handle("PATCH", url, patch(3, complete="?1"))
    assert (reply.status, reply.headers["Upload-Complete"]) == (204, "?1")


@row("4.4.2", "MUST", "a wrong offset is refused with 409 and the right one")
def _() -> None:
    server, url = made(body=b"12345")
    for offset in (0, 4, 6, 1000):
        reply = server.handle("PATCH", url, patch(offset), b"x")
        assert (reply.status, reply.headers["Upload-Offset"], reply.headers["Upload-Complete"]) == (409, "5", "?0")


@row("7.1", "SHOULD", "... and with the problem type that has both offsets")
def _() -> None:
    server, url = made(body=b"12345")
    document = json.loads(server.handle("PATCH", url, patch(25), b"x").body)
    assert document["type"] == f"{REGISTRY}#mismatching-upload-offset"
    assert (document["expected-offset"], document["provided-offset"]) == (5, 25)


@row("4.4.2", "MUST", "nothing is appended to a complete upload: bytes are an inconsistent length")
def _() -> None:
    server, url = made(body=b"123")
    server.handle("PATCH", url, patch(3, complete="?1"))
    for offset in (0, 3):
        reply = server.handle("PATCH", url, patch(offset, complete="?1"), b"x")
        assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#inconsistent-upload-length")
    assert stored(server, url) == b"123"


@row("7.2", "-", "... and an empty append meets the problem type of completed uploads")
def _() -> None:
    server, url = made(body=b"123")
    server.handle("PATCH", url, patch(3, complete="?1"))
    reply = server.handle("PATCH", url, patch(3, complete="?1"))
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#completed-upload")


@row("4.4.2", "-", "... as bytes do up to interop version 8")
def _() -> None:
    server, url = made(body=b"123")
    server.handle("PATCH", url, patch(3, complete="?1"))
    headers = patch(3, complete="?1") | {"Upload-Draft-Interop-Version": "8"}
    reply = server.handle("PATCH", url, headers, b"x")
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#completed-upload")


@row("4.4.2", "-", "an upload nobody knows is 404")
def _() -> None:
    server = MemoryServer()
    for method, headers in (("PATCH", patch(0)), ("HEAD", {}), ("DELETE", {})):
        assert server.handle(method, f"{PLACE}/unknown", headers).status == 404


@row("4.4.2", "MUST", "the answer to a completing append says ?1, to another one ?0")
def _() -> None:
    server, url = made()
    assert server.handle("PATCH", url, patch(0), b"x").headers["Upload-Complete"] == "?0"
    assert server.handle("PATCH", url, patch(1, complete="?1"), b"x").headers["Upload-Complete"] == "?1"


@row("4.4.2", "-", "a refusal of the protocol itself never says ?1, which would make it the upload's result")
def _() -> None:
    server, url = made(Upload_Length="3", body=b"123")
    server.handle("PATCH", url, patch(3, complete="?1"))
    replies = [
        server.handle("PATCH", url, patch(offset, complete="?1"), body) for offset, body in ((3, b""), (3, b"x"))
    ]
    replies.append(server.handle("PATCH", url, patch(0, complete="?1"), b"123"))
    assert {reply.headers["Upload-Complete"] for reply in replies} == {"?0"}


@row("4.4.2", "SHOULD", "an interrupted append keeps as much as came, from its start on, without gaps")
def _() -> None:
    server, url = made(body=b"123")
    begun = server.begin("PATCH", url, patch(3, complete="?1", Content_Length="5"))
    assert isinstance(begun, Transfer)
    begun.feed(b"45")
    begun.feed(b"6")
    begun.end(BodyEnd.CUT)
    found = head(server, url).headers
    assert (found["Upload-Offset"], found["Upload-Complete"]) == ("6", "?0")
    assert stored(server, url) == b"123456"


@row("4.4.2", "MUST", "the offset cannot exceed the length, whatever Content-Length says or does not")
def _() -> None:
    server, url = made(Upload_Length="5")
    reply = server.handle("PATCH", url, patch(0, Transfer_Encoding="chunked"), b"123456")
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#inconsistent-upload-length")
    assert len(stored(server, url)) == 5


@row("4.4.2", "MUST", "... and an upload that tried is invalid from then on")
def _() -> None:
    server, url = made(Upload_Length="5")
    server.handle("PATCH", url, patch(0, Transfer_Encoding="chunked"), b"123456")
    for method, headers in (("PATCH", patch(5, complete="?1")), ("HEAD", {}), ("DELETE", {})):
        assert server.handle(method, url, headers).status == 410


@row("4.4.2", "MUST", "an append records the length that it tells, too")
def _() -> None:
    server, url = made(body=b"123")
    server.handle("PATCH", url, patch(3, Upload_Length="10"), b"45")
    assert head(server, url).headers["Upload-Length"] == "10"
    reply = server.handle("PATCH", url, patch(5, complete="?1"), b"6")
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#inconsistent-upload-length")


@row("4.3.2, 4.5.2", "SHOULD NOT", "no answer is a redirect")
def _() -> None:
    statuses = set()
    for method in ("HEAD", "DELETE"):
        server, url = made(body=b"123")
        statuses |= {server.handle(method, each, {}).status for each in (url, url, f"{PLACE}/unknown")}
    assert statuses == {204, 404, 410}


# -- 4.5 Upload cancellation -----------------------------------------------------------------------------------------


@row("4.5.2", "SHOULD", "DELETE deactivates the resource")
def _() -> None:
    server, url = made(body=b"123")
    assert server.handle("DELETE", url, {}).status == 204
    for method, headers in (("PATCH", patch(3)), ("HEAD", {}), ("DELETE", {})):
        assert server.handle(method, url, headers).status == 410


# -- 4.6 Concurrency -------------------------------------------------------------------------------------------------


def _race(method: str, headers: dict[str, str], body: bytes = b"") -> tuple[MemoryServer, Transfer, HttpAnswer]:
    """An append that does not end when a newer request comes, and what the newer one is answered."""
    server, url = made(body=b"123")
    server.polite = False
    older = server.begin("PATCH", url, patch(3, complete="?1", Content_Length="4"))
    assert isinstance(older, Transfer)
    older.feed(b"45")
    older.record()
    older.feed(b"67")
    return server, older, server.handle(method, url, headers, body)


@row("4.6", "MUST", "an offset told is accepted next, whatever an older transfer still does")
def _() -> None:
    server, older, reply = _race("HEAD", {})
    assert reply.headers["Upload-Offset"] == "5"
    assert not older.record()
    assert older.end().status == 409
    url = f"{PLACE}/{older.upload.state.id}"
    assert server.handle("PATCH", url, patch(5, complete="?1"), b"xy").status == 204
    assert bytes(older.upload.blob) == b"12345xy"


@row("4.6", "MUST", "... also when it was told in a 409")
def _() -> None:
    server, older, reply = _race("PATCH", patch(0))
    assert (reply.status, reply.headers["Upload-Offset"]) == (409, "5")
    assert older.end().status == 409
    assert head(server, f"{PLACE}/{older.upload.state.id}").headers["Upload-Offset"] == "5"


@row("4.6", "MUST", "concurrent appends neither mix nor lose bytes")
def _() -> None:
    _, older, reply = _race("PATCH", patch(5, complete="?1"), b"xy")
    assert reply.headers["Upload-Complete"] == "?1"
    assert older.end().status == 409
    assert bytes(older.upload.blob) == b"12345xy"


@row("4.6", "MUST", "an append that comes late does not revive what was cancelled")
def _() -> None:
    server, older, reply = _race("DELETE", {})
    assert reply.status == 204
    assert older.end().status == 409
    assert head(server, f"{PLACE}/{older.upload.state.id}").status == 410


# -- 5 Upload state notice ---------------------------------------------------------------------------------------------


@row("5", "-", "104 tells Location and Upload-Limit, and in a draft's time the interop version, while a creation comes")
def _() -> None:
    state = UploadState("id", limits=Limits(max_size=10))
    for number in (3, 5, 6, 8, 9):
        dialect = RufhServer(rufh.VERSIONS[number])
        sent = {"Upload-Draft-Interop-Version": str(number)}
        told = dialect.announce(state, sent, location=f"{PLACE}/id", now=0.0)
        assert told is not None
        assert (told.status, told.body) == (104, b"")
        assert told.headers == {"Location": f"{PLACE}/id", "Upload-Limit": "max-size=10", **sent}


@row("5", "MAY", "104 tells Upload-Offset while a body comes, in the drafts that know it (since -03)")
def _() -> None:
    for number in (3, 4, 5, 6, 7, 8, 9):
        sent = {"Upload-Draft-Interop-Version": str(number)}
        told = RufhServer(rufh.VERSIONS[number]).progress(UploadState("id", offset=7), sent)
        assert told == (HttpAnswer(104, {**sent, "Upload-Offset": "7"}) if number >= 5 else None)


@row("Appendix", "MUST NOT", "104 is not sent to who does not state the same interop version")
def _() -> None:
    for sent in ({}, {"Upload-Draft-Interop-Version": "8"}, {"Upload-Draft-Interop-Version": "x"}):
        assert RufhServer().announce(UploadState("id"), sent, location="/id", now=0.0) is None
        assert RufhServer().progress(UploadState("id"), sent) is None


# -- 10 Integrity digests ----------------------------------------------------------------------------------------------


def digest_of(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


@row("10.1", "SHOULD", "an upload that is not what Repr-Digest said has failed, and the client is told so")
def _() -> None:
    server, url = made(body=b"123", Repr_Digest=digest_of(b"12345"))
    reply = server.handle("PATCH", url, patch(3, complete="?1"), b"xx")
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#digest-mismatching-values")
    assert head(server, url).status == 410
    server, url = made(body=b"123", Repr_Digest=digest_of(b"12345"))
    assert server.handle("PATCH", url, patch(3, complete="?1"), b"45").headers["Upload-Complete"] == "?1"


@row("10.1", "SHOULD", "a creation with Want-Repr-Digest is told the digest once the upload is complete")
def _() -> None:
    server, url = made(body=b"123", Want_Repr_Digest="sha-256=3")
    middle = server.handle("PATCH", url, patch(3), b"4")
    assert "Repr-Digest" not in middle.headers
    assert "Repr-Digest" not in head(server, url).headers
    reply = server.handle("PATCH", url, patch(4, complete="?1"), b"5")
    assert (reply.status, reply.headers["Repr-Digest"]) == (204, digest_of(b"12345"))
    at_once = server.handle("POST", PLACE, {"Upload-Complete": "?1", "Want-Repr-Digest": "sha-256=3"}, b"12345")
    assert (at_once.status, at_once.headers["Repr-Digest"]) == (201, digest_of(b"12345"))


@row("11", "-", "who has missed the final answer finds in the answer to HEAD what it told")
def _() -> None:
    server, url = made(body=b"123", Want_Repr_Digest="sha-256=3")
    server.handle("PATCH", url, patch(3, complete="?1"), b"45")
    assert head(server, url).headers["Repr-Digest"] == digest_of(b"12345")


@row("RFC 9530, 4", "-", "of the algorithms wanted the preferred one is taken, of those that are known here")
def _() -> None:
    for wanted, told in (
        ("sha-256=3, sha-512=9", "sha-512"),
        ("sha-512=2, sha-256=3, unixsum=10", "sha-256"),
        ("sha-512=0, sha-256=1", "sha-256"),
        ("sha-512, sha-256=1", "sha-256"),
        ("unixsum=10", None),
        ("sha-256=0", None),
        ("sha-256=11", None),
        ("sha-256=?1", None),
        ("(", None),
    ):
        server, url = made(Want_Repr_Digest=wanted)
        reply = server.handle("PATCH", url, patch(0, complete="?1"), b"x")
        assert (reply.status, reply.headers.get("Repr-Digest", "").partition("=")[0] or None) == (204, told), wanted


@row("10.1", "-", "a digest may be declared, and another one wanted")
def _() -> None:
    for declared, status in ((b"12345", 204), (b"other", 400)):
        server, url = made(body=b"123", Repr_Digest=digest_of(declared), Want_Repr_Digest="sha-512=1")
        reply = server.handle("PATCH", url, patch(3, complete="?1"), b"45")
        assert (reply.status, "sha-512=:" in reply.headers.get("Repr-Digest", "")) == (status, status == 204)


@row("10.2", "SHOULD", "content that is not what Content-Digest said is not appended, and the client is told so")
def _() -> None:
    server, url = made(body=b"123")
    reply = server.handle("PATCH", url, patch(3, Content_Digest=digest_of(b"45")), b"xx")
    assert (reply.status, reply.headers["Upload-Offset"]) == (400, "3")
    assert stored(server, url) == b"123"
    assert server.handle("PATCH", url, patch(3, Content_Digest=digest_of(b"45")), b"45").headers["Upload-Offset"] == "5"


# -- Appendix: versions ----------------------------------------------------------------------------------------------


@row("Appendix B", "-", "a request without an interop version, as of the RFC to come, is understood")
def _() -> None:
    server, url = made()
    headers = patch(0)
    del headers["Upload-Draft-Interop-Version"]
    assert server.handle("PATCH", url, headers, b"x").status == 204


@row("-01", "-", "interop 3: Upload-Incomplete, no media type, complete at the length")
def _() -> None:
    server = MemoryServer()
    v3 = {"Upload-Draft-Interop-Version": "3"}
    created = server.handle("POST", PLACE, v3 | {"Upload-Incomplete": "?1", "Upload-Length": "5"}, b"12")
    assert (created.status, created.headers["Upload-Incomplete"]) == (201, "?1")
    url = created.headers["Location"]
    found = server.handle("HEAD", url, {})  # a bare HEAD: the upload knows its version
    assert (found.headers["Upload-Offset"], found.headers["Upload-Incomplete"]) == ("2", "?1")
    done = server.handle("PATCH", url, v3 | {"Upload-Offset": "2", "Upload-Incomplete": "?1"}, b"345")
    assert done.headers["Upload-Incomplete"] == "?0"


@row("-03", "-", "interop 5: no media type")
def _() -> None:
    server, url = made()
    headers = {"Upload-Draft-Interop-Version": "5", "Upload-Offset": "0", "Upload-Complete": "?1"}
    assert server.handle("PATCH", url, headers, b"x").headers["Upload-Complete"] == "?1"


@row("-05", "-", "interop 6: the media type, `expires`, complete at the length")
def _() -> None:
    server = MemoryServer(Limits(max_age=60))
    v6 = {"Upload-Draft-Interop-Version": "6"}
    created = server.handle("POST", PLACE, v6 | {"Upload-Complete": "?0", "Upload-Length": "2"})
    assert created.headers["Upload-Limit"] == "expires=60"
    url = created.headers["Location"]
    assert server.handle("PATCH", url, v6 | {"Upload-Offset": "0", "Upload-Complete": "?0"}, b"12").status == 415
    assert server.handle("PATCH", url, patch(0) | v6, b"12").headers["Upload-Complete"] == "?1"


@row("-09", "-", "interop 8: complete only when told")
def _() -> None:
    server, url = made(Upload_Length="2")
    reply = server.handle("PATCH", url, patch(0) | {"Upload-Draft-Interop-Version": "8"}, b"12")
    assert reply.headers["Upload-Complete"] == "?0"


@pytest.mark.parametrize("row", TABLE.rows, ids=str)
def test_requirement(row: Row) -> None:
    row.check()
