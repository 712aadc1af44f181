"""Resumable Uploads for HTTP, requirement by requirement: what a server keeps and tells of an upload (section 4.1).

Sections are those of draft-ietf-httpbis-resumable-upload-12 (July 2026, interop version 9). The words are ours, the
level is the draft's. The rows drive the core and the dialect through HTTP messages. Not here:

4 SHOULD be unique
    Ids are UUIDs of time and 74 random bits: `mailboat.protocol.ids`, `unit/protocol/test_wire`.
"""

import pytest

from mailboat.protocol.uploads.decisions import BodyEnd
from mailboat.protocol.uploads.state import Event
from mailboat.protocol.uploads.values import Limits
from testkit.conformance import Row, Table
from testkit.uploads import PLACE, REGISTRY, MemoryServer, Transfer, head, made, patch, problem, stored

TABLE = Table()
row = TABLE.row

# -- 4 Upload resource -----------------------------------------------------------------------------------------------


@row("4", "SHOULD", "a complete upload can still be asked for")
def _() -> None:
    server, url = made(body=b"123")
    server.handle("PATCH", url, patch(3, complete="?1"), b"45")
    found = head(server, url).headers
    assert (found["Upload-Offset"], found["Upload-Complete"], found["Upload-Length"]) == ("5", "?1", "5")


# -- 4.1.1 Offset ----------------------------------------------------------------------------------------------------


@row("4.1.1", "MUST", "the offset does not decrease")
def _() -> None:
    server, url = made(body=b"12345")
    offsets = []
    for offset, body in ((5, b"67"), (0, b"xx"), (7, b""), (7, b"8"), (99, b"")):
        server.handle("PATCH", url, patch(offset), body)
        offsets.append(int(head(server, url).headers["Upload-Offset"]))
    assert offsets == [7, 7, 7, 8, 8]


@row("4.1.1", "MUST", "an Upload-Offset that is no non-negative Integer is ignored, so that it is missing")
def _() -> None:
    server, url = made()
    for value in ("-1", "0.0", '"0"', "?0", "0, 0", "zero", ""):
        reply = server.handle("PATCH", url, patch(value), b"x")
        assert (reply.status, head(server, url).headers["Upload-Offset"]) == (400, "0")


@row("4.1.1", "MUST", "an Integer with parameters is an Integer")
def _() -> None:
    server, url = made()
    assert server.handle("PATCH", url, patch("0;from=tape"), b"x").status == 204


@row("4.1.1", "-", "an offset in an answer is a promise: what is before it is not asked for again")
def _() -> None:
    server, url = made(body=b"12345")
    begun = server.begin("PATCH", url, patch(5, Content_Length="5"))
    assert isinstance(begun, Transfer)
    begun.feed(b"678")
    begun.end(BodyEnd.CUT)
    assert head(server, url).headers["Upload-Offset"] == "8"
    assert server.handle("PATCH", url, patch(8, complete="?1"), b"90").status == 204
    assert stored(server, url) == b"1234567890"


@row("4.1.1", "MUST", "an upload whose bytes the server has lost takes part in nothing any more")
def _() -> None:
    for complete in ("?0", "?1"):
        server, url = made(body=b"123")
        server.handle("PATCH", url, patch(3, complete=complete), b"45")
        upload = server.uploads[url.removeprefix(f"{PLACE}/")]
        upload.state = upload.state.after(Event.LOSE)
        for method, headers in (("PATCH", patch(5, complete="?1")), ("HEAD", {}), ("DELETE", {})):
            assert server.handle(method, url, headers).status == 410


# -- 4.1.2 Completeness ----------------------------------------------------------------------------------------------


@row("4.1.2", "-", "an upload is incomplete until the client says that it is complete")
def _() -> None:
    server, url = made(Upload_Length="5")
    server.handle("PATCH", url, patch(0), b"12345")
    assert head(server, url).headers["Upload-Complete"] == "?0"
    server.handle("PATCH", url, patch(5, complete="?1"))
    assert head(server, url).headers["Upload-Complete"] == "?1"


@row("4.1.2", "MUST", "an Upload-Complete that is no Boolean is ignored, so that it is missing")
def _() -> None:
    server, url = made()
    for value in ("1", "true", "?2", "?1, ?1", ""):
        assert server.handle("PATCH", url, patch(0, complete=value), b"x").status == 400
        assert server.handle("POST", PLACE, {"Upload-Complete": value}).status == 400
    assert len(server.uploads) == 1


@row("4.1.2", "-", "a completing request completes only when its content was wholly taken")
def _() -> None:
    server, url = made()
    begun = server.begin("PATCH", url, patch(0, complete="?1", Content_Length="5"))
    assert isinstance(begun, Transfer)
    begun.feed(b"123")
    begun.end()  # the transport says it is all there; it is not
    found = head(server, url).headers
    assert (found["Upload-Offset"], found["Upload-Complete"]) == ("3", "?0")


# -- 4.1.3 Length ----------------------------------------------------------------------------------------------------


@row("4.1.3", "-", "the length is told by Upload-Length, or by Content-Length of a completing request")
def _() -> None:
    server, url = made(Upload_Length="100")
    assert head(server, url).headers["Upload-Length"] == "100"
    server, url = made(body=b"12345")
    assert "Upload-Length" not in head(server, url).headers
    begun = server.begin("PATCH", url, patch(5, complete="?1", Content_Length="20"))
    assert isinstance(begun, Transfer)
    assert head(server, url).headers["Upload-Length"] == "25"


@row("4.1.3", "MUST", "both indicators in one request match")
def _() -> None:
    server = MemoryServer()
    reply = server.handle("POST", PLACE, {"Upload-Complete": "?1", "Upload-Length": "4"}, b"12345")
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#inconsistent-upload-length")


@row("4.1.3", "MUST", "indicators of several requests match")
def _() -> None:
    server, url = made(Upload_Length="10")
    for headers, body in (
        (patch(0, Upload_Length="11"), b"x"),
        (patch(0, complete="?1"), b"123456789"),
        (patch(0, complete="?1"), b"12345678901"),
        (patch(0), b"12345678901"),
    ):
        reply = server.handle("PATCH", url, headers, body)
        assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#inconsistent-upload-length")
        assert head(server, url).headers["Upload-Offset"] == "0"
    assert server.handle("PATCH", url, patch(0, complete="?1", Upload_Length="10"), b"1234567890").status == 204


@row("4.1.3", "MUST", "an Upload-Length that is no non-negative Integer is ignored")
def _() -> None:
    for value in ("-1", "5.5", "many", "5, 6"):
        server, url = made(Upload_Length=value)
        assert "Upload-Length" not in head(server, url).headers


@row("4.1.3", "MUST", "offset and length match at completion, also when the content's length is not told")
def _() -> None:
    server, url = made(Upload_Length="1000")
    reply = server.handle("PATCH", url, patch(0, complete="?1", Transfer_Encoding="chunked"), b"x" * 500)
    assert (reply.status, problem(reply)) == (400, f"{REGISTRY}#inconsistent-upload-length")
    found = head(server, url).headers
    assert (found["Upload-Offset"], found["Upload-Complete"]) == ("500", "?0")


@row("4.1.3", "-", "offset = length is not completeness")
def _() -> None:
    server, url = made(Upload_Length="3")
    reply = server.handle("PATCH", url, patch(0), b"123")
    assert (reply.status, reply.headers["Upload-Complete"]) == (204, "?0")


# -- 4.1.4 Limits ----------------------------------------------------------------------------------------------------


FULL = Limits(max_size=100, min_size=5, max_append_size=50, min_append_size=10, max_age=3600)
FULL_TEXT = "max-size=100, min-size=5, max-append-size=50, min-append-size=10, max-age=3600"


@row("4.1.4", "MUST", "limits are told at creation")
def _() -> None:
    reply = MemoryServer(FULL).handle("POST", PLACE, {"Upload-Complete": "?0"})
    assert reply.headers["Upload-Limit"] == FULL_TEXT


@row("4.1.4", "-", "max-age is the lifetime that remains")
def _() -> None:
    server, url = made(MemoryServer(Limits(max_age=3600)))
    server.now += 600
    assert head(server, url).headers["Upload-Limit"] == "max-age=3000"


@row("4.1.4", "-", "after its lifetime the resource is inaccessible")
def _() -> None:
    server, url = made(MemoryServer(Limits(max_age=3600)))
    server.now += 3600
    assert head(server, url).status == 410


@row("4.1.4", "-", "max-size binds the length that was stated, and the offset")
def _() -> None:
    server = MemoryServer(Limits(max_size=10))
    assert server.handle("POST", PLACE, {"Upload-Complete": "?0", "Upload-Length": "11"}).status == 413
    _, url = made(server)
    assert server.handle("PATCH", url, patch(0, Transfer_Encoding="chunked"), b"x" * 11).status == 413
    assert head(server, url).headers["Upload-Offset"] == "10"


@row("4.1.4", "-", "max-append-size binds the content of one request")
def _() -> None:
    server, url = made(MemoryServer(Limits(max_append_size=10)))
    assert server.handle("PATCH", url, patch(0), b"x" * 11).status == 413
    assert server.handle("PATCH", url, patch(0), b"x" * 10).status == 204
    assert server.handle("PATCH", url, patch(10, Transfer_Encoding="chunked"), b"x" * 11).status == 413
    assert head(server, url).headers["Upload-Offset"] == "20"


@row("4.1.4", "-", "min-append-size does not bind a completing request")
def _() -> None:
    server, url = made(MemoryServer(Limits(min_append_size=10)))
    assert server.handle("PATCH", url, patch(0), b"x" * 9).status == 400
    assert server.handle("PATCH", url, patch(0), b"x" * 10).status == 204
    assert server.handle("PATCH", url, patch(10, complete="?1"), b"x").status == 204


@row("4.1.4", "SHOULD NOT", "the limits of an upload do not change while it is under way")
def _() -> None:
    server, url = made(MemoryServer(Limits(max_size=100, max_append_size=50, min_append_size=5, max_age=60)))
    before = head(server, url).headers["Upload-Limit"]
    server.limits = Limits(max_size=10, max_append_size=5, min_append_size=50, max_age=1)
    assert head(server, url).headers["Upload-Limit"] == before
    assert server.handle("PATCH", url, patch(0), b"x" * 50).status == 204
    assert head(server, url).headers["Upload-Limit"] == before


@row("4.1.4", "MUST", "413 for a limit tells the limits")
def _() -> None:
    server = MemoryServer(Limits(max_size=10, max_append_size=5))
    creation = server.handle("POST", PLACE, {"Upload-Complete": "?0", "Upload-Length": "11"})
    _, url = made(server)
    append = server.handle("PATCH", url, patch(0), b"x" * 6)
    for reply in (creation, append):
        assert (reply.status, reply.headers["Upload-Limit"]) == (413, "max-size=10, max-append-size=5")


@row("4.1.4", "MUST", "OPTIONS tells support by Accept-Patch, with the full media type")
def _() -> None:
    reply = MemoryServer().handle("OPTIONS", PLACE, {})
    assert "application/partial-upload" in reply.headers["Accept-Patch"].split(", ")


@row("4.1.4", "SHOULD", "OPTIONS tells the limits, no less strict than those of an upload made later")
def _() -> None:
    server = MemoryServer(FULL)
    told_before = server.handle("OPTIONS", PLACE, {}).headers["Upload-Limit"]
    assert told_before == server.handle("POST", PLACE, {"Upload-Complete": "?0"}).headers["Upload-Limit"]


@pytest.mark.parametrize("row", TABLE.rows, ids=str)
def test_requirement(row: Row) -> None:
    row.check()
