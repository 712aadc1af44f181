"""tus 1.0.0, requirement by requirement: what a server does, core protocol and the extensions announced.

Sections are the specification's headings (version of 2016-03-25). The words are ours, the level is the document's. The
rows drive the cores and the dialect through HTTP messages. Not here:

PATCH SHOULD detect network errors, SHOULD close on a timeout
    The server's own tests; what is kept of a body that was cut is here.
Challenge
    A later draft in the same document, not announced.
"""

import base64
import hashlib

import pytest

from mailboat.protocol.uploads.decisions import BodyEnd
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.values import Limits
from testkit.conformance import Row, Table
from testkit.uploads import PLACE, TUS, MemoryServer, Transfer, stored, tus_head, tus_made, tus_patch

TABLE = Table()
row = TABLE.row
METADATA = "filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential"


def sent(server: MemoryServer, url: str, offset: int, body: bytes, **fields: str) -> HttpAnswer:
    return server.handle("PATCH", url, tus_patch(offset, **fields), body)


def offset_of(server: MemoryServer, url: str) -> int:
    return int(tus_head(server, url).headers["Upload-Offset"])


def options(server: MemoryServer | None = None, headers: dict[str, str] | None = None) -> HttpAnswer:
    return (server or MemoryServer()).handle("OPTIONS", PLACE, headers or {})


def extensions() -> list[str]:
    return options().headers["Tus-Extension"].split(",")


def checksum(body: bytes, name: str = "sha1") -> str:
    return f"{name} {base64.b64encode(hashlib.new(name, body).digest()).decode()}"


# -- Core: headers -----------------------------------------------------------------------------------------------------


@row("Upload-Offset", "MUST", "an offset is a non-negative integer")
def _() -> None:
    server, url = tus_made()
    for value in ("-1", "0.0", "+0", "0x0", "", "0, 0", "9" * 16):
        assert server.handle("PATCH", url, tus_patch(value), b"x").status == 400
    assert offset_of(server, url) == 0


@row("Upload-Length", "MUST", "a length is a non-negative integer")
def _() -> None:
    for value in ("-1", "1.5", "ten", "", "10, 10"):
        assert MemoryServer().handle("POST", PLACE, TUS | {"Upload-Length": value}).status == 400


@row("Tus-Version", "MUST", "the versions spoken, the preferred one first")
def _() -> None:
    assert options().headers["Tus-Version"] == "1.0.0"


@row("Tus-Resumable", "MUST", "in every answer, whatever was asked")
def _() -> None:
    server, url = tus_made()
    replies = [
        tus_head(server, url),
        sent(server, url, 0, b"12345"),
        sent(server, url, 0, b"12345"),
        sent(server, url, 5, b"67", Upload_Checksum="crc32 AAAA"),
        server.handle("PATCH", url, TUS),
        server.handle("GET", url, TUS),
        server.handle("DELETE", url, TUS),
        tus_head(server, url),
        tus_head(server, f"{PLACE}/nobody"),
        server.handle("POST", PLACE, TUS | {"Upload-Length": "1"}),
        server.handle("HEAD", url, {"Tus-Resumable": "0.2.2"}),
        options(),
    ]
    assert [reply.headers.get("Tus-Resumable") for reply in replies] == ["1.0.0"] * len(replies)


@row("Tus-Resumable", "MUST", "another version is answered with 412 and Tus-Version")
def _() -> None:
    server, url = tus_made()
    for version in ("0.2.2", "1.0", "2.0.0", ""):
        reply = server.handle("HEAD", url, {"Tus-Resumable": version})
        assert (reply.status, reply.headers["Tus-Version"]) == (412, "1.0.0")


@row("Tus-Resumable", "MUST", "... and so is a request without a version, on an upload that was made by tus")
def _() -> None:
    server, url = tus_made()
    assert server.handle("HEAD", url, {}).status == 412


@row("Tus-Resumable", "MUST NOT", "a request of another version is not processed")
def _() -> None:
    server, url = tus_made()
    assert server.handle("DELETE", url, {"Tus-Resumable": "2.0.0"}).status == 412
    assert server.handle("PATCH", url, tus_patch(0) | {"Tus-Resumable": "2.0.0"}, b"x").status == 412
    assert server.handle("POST", PLACE, {"Tus-Resumable": "2.0.0", "Upload-Length": "3"}).status == 412
    assert (offset_of(server, url), len(server.uploads)) == (0, 1)


@row("Tus-Extension", "MUST", "the extensions supported, separated by commas")
def _() -> None:
    assert extensions() == [
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "expiration",
        "checksum",
        "checksum-trailer",
        "termination",
        "concatenation",
        "concatenation-unfinished",
    ]


@row("Tus-Max-Size", "SHOULD", "the largest upload, where there is a limit")
def _() -> None:
    assert options(MemoryServer(Limits(max_size=1000))).headers["Tus-Max-Size"] == "1000"
    assert "Tus-Max-Size" not in options().headers


@row("X-HTTP-Method-Override", "MUST", "it is the method, and the actual one is ignored")
def _() -> None:
    server, url = tus_made()
    as_patch = tus_patch(0, X_HTTP_Method_Override="PATCH")
    assert server.handle("POST", url, as_patch, b"123").headers["Upload-Offset"] == "3"
    assert server.handle("GET", url, TUS | {"X-HTTP-Method-Override": "HEAD"}).headers["Upload-Offset"] == "3"
    assert server.handle("PATCH", url, TUS | {"X-HTTP-Method-Override": "DELETE"}).status == 204
    assert tus_head(server, url).status == 410


# -- Core: HEAD --------------------------------------------------------------------------------------------------------


@row("HEAD", "MUST", "Upload-Offset is always there: at 0 ...")
def _() -> None:
    assert offset_of(*tus_made()) == 0


@row("HEAD", "MUST", "... in between, and when the upload is complete")
def _() -> None:
    server, url = tus_made()
    sent(server, url, 0, b"1234567")
    assert offset_of(server, url) == 7
    sent(server, url, 7, b"890")
    assert offset_of(server, url) == 10


@row("HEAD", "MUST", "Upload-Length where it is known")
def _() -> None:
    assert tus_head(*tus_made()).headers["Upload-Length"] == "10"


@row("HEAD", "SHOULD", "an upload that is not there is 404 or 410, without Upload-Offset")
def _() -> None:
    server, url = tus_made()
    server.handle("DELETE", url, TUS)
    for reply, status in ((tus_head(server, f"{PLACE}/nobody"), 404), (tus_head(server, url), 410)):
        assert (reply.status, "Upload-Offset" in reply.headers) == (status, False)


@row("HEAD", "MUST", "Cache-Control: no-store")
def _() -> None:
    assert tus_head(*tus_made()).headers["Cache-Control"] == "no-store"


@row("HEAD", "-", "a server killed after the last byte completes the upload when it is asked for")
def _() -> None:
    server, url = tus_made(length=3)
    begun = server.begin("PATCH", url, tus_patch(0, Content_Length="3"))
    assert isinstance(begun, Transfer)
    begun.feed(b"123")
    begun.record()
    server.restart()
    assert offset_of(server, url) == 3
    assert begun.upload.state.complete


# -- Core: PATCH -------------------------------------------------------------------------------------------------------


@row("PATCH", "SHOULD", "bytes are applied at the offset given")
def _() -> None:
    server, url = tus_made()
    sent(server, url, 0, b"1234")
    sent(server, url, 4, b"567890")
    assert stored(server, url) == b"1234567890"


@row("PATCH", "SHOULD", "another media type than application/offset+octet-stream is 415")
def _() -> None:
    server, url = tus_made()
    for kind in ("application/octet-stream", "application/partial-upload", ""):
        assert server.handle("PATCH", url, tus_patch(0) | {"Content-Type": kind}, b"x").status == 415
    assert offset_of(server, url) == 0


@row("PATCH", "MUST", "an offset that does not match is 409, and nothing is modified")
def _() -> None:
    server, url = tus_made()
    sent(server, url, 0, b"1234")
    for offset in (0, 3, 5, 10):
        reply = sent(server, url, offset, b"xy")
        assert (reply.status, reply.headers["Upload-Offset"]) == (409, "4")
    assert stored(server, url) == b"1234"


@row("PATCH", "MUST", "... also on a complete upload")
def _() -> None:
    server, url = tus_made(length=3)
    sent(server, url, 0, b"123")
    assert sent(server, url, 0, b"123").status == 409
    assert sent(server, url, 0, b"").status == 409
    assert sent(server, url, 3, b"x").status == 400
    assert stored(server, url) == b"123"


@row("PATCH", "-", "nothing, appended to a complete upload at its end, is a success")
def _() -> None:
    server, url = tus_made(length=3)
    sent(server, url, 0, b"123")
    reply = sent(server, url, 3, b"")
    assert (reply.status, reply.headers["Upload-Offset"]) == (204, "3")


@row("PATCH", "MUST", "success is 204 with the new offset: the old one and the bytes taken")
def _() -> None:
    server, url = tus_made()
    for offset, body in ((0, b"123"), (3, b""), (3, b"4567890")):
        reply = sent(server, url, offset, body)
        assert (reply.status, reply.headers["Upload-Offset"]) == (204, str(offset + len(body)))


@row("PATCH", "SHOULD", "an upload that is not there is 404")
def _() -> None:
    assert sent(MemoryServer(), f"{PLACE}/nobody", 0, b"x").status == 404


@row("PATCH", "SHOULD", "as much as possible of a body that was cut is kept")
def _() -> None:
    server, url = tus_made()
    begun = server.begin("PATCH", url, tus_patch(0, Content_Length="10"))
    assert isinstance(begun, Transfer)
    begun.feed(b"123456")
    begun.end(BodyEnd.CUT)
    assert offset_of(server, url) == 6
    assert stored(server, url) == b"123456"


@row("PATCH", "-", "bytes beyond the length are refused before any is taken")
def _() -> None:
    server, url = tus_made()
    assert sent(server, url, 0, b"12345678901").status == 400
    assert offset_of(server, url) == 0


# -- Core: OPTIONS -----------------------------------------------------------------------------------------------------


@row("OPTIONS", "MUST", "200 or 204, with Tus-Version")
def _() -> None:
    assert options().status == 204
    assert "Tus-Version" in options().headers


@row("OPTIONS", "MUST", "Tus-Resumable in the request is ignored")
def _() -> None:
    for version in ("0.2.2", "9.9.9"):
        reply = options(headers={"Tus-Resumable": version})
        assert (reply.status, reply.headers["Tus-Version"]) == (204, "1.0.0")


@row("OPTIONS", "-", "it may be asked of an upload")
def _() -> None:
    server, url = tus_made()
    reply = server.handle("OPTIONS", url, {})
    assert (reply.headers["Tus-Version"], reply.headers["Allow"]) == ("1.0.0", "OPTIONS, HEAD, GET, PATCH, DELETE")


@row("OPTIONS", "-", "it tells of the other dialect as well")
def _() -> None:
    headers = options(MemoryServer(Limits(max_size=9))).headers
    assert headers["Upload-Limit"] == "max-size=9"
    assert headers["Accept-Patch"] == "application/partial-upload, application/offset+octet-stream"


# -- Creation ----------------------------------------------------------------------------------------------------------


@row("Creation", "MUST", "it is announced")
def _() -> None:
    assert {"creation", "creation-defer-length"} <= set(extensions())


@row("Creation", "MUST", "201 and Location")
def _() -> None:
    reply = MemoryServer().handle("POST", PLACE, TUS | {"Upload-Length": "10"})
    assert reply.status == 201
    assert reply.headers["Location"].startswith(f"{PLACE}/")


@row("Creation", "MUST", "either a length or Upload-Defer-Length")
def _() -> None:
    for headers in ({}, {"Upload-Length": "1", "Upload-Defer-Length": "1"}):
        assert MemoryServer().handle("POST", PLACE, TUS | headers).status == 400


@row("Creation", "SHOULD", "Upload-Defer-Length other than 1 is 400")
def _() -> None:
    for value in ("0", "2", "true", ""):
        assert MemoryServer().handle("POST", PLACE, TUS | {"Upload-Defer-Length": value}).status == 400


@row("Creation", "MUST", "Upload-Defer-Length: 1 in HEAD as long as the length is not known, and no longer")
def _() -> None:
    server, url = tus_made(length=None)
    headers = tus_head(server, url).headers
    assert (headers["Upload-Defer-Length"], "Upload-Length" in headers) == ("1", False)
    sent(server, url, 0, b"123", Upload_Length="10")
    headers = tus_head(server, url).headers
    assert ("Upload-Defer-Length" in headers, headers["Upload-Length"]) == (False, "10")


@row("Creation", "MUST NOT", "a length once set is not changed")
def _() -> None:
    server, url = tus_made(length=None)
    sent(server, url, 0, b"123", Upload_Length="10")
    assert sent(server, url, 3, b"4", Upload_Length="11").status == 400
    assert sent(server, url, 3, b"4567890", Upload_Length="10").status == 204
    assert tus_head(server, url).headers["Upload-Length"] == "10"


@row("Creation", "-", "a deferred length may come with an empty PATCH, and completes what is all there")
def _() -> None:
    server, url = tus_made(length=None)
    sent(server, url, 0, b"123")
    assert sent(server, url, 3, b"", Upload_Length="3").status == 204
    assert server.uploads[url.removeprefix(f"{PLACE}/")].state.complete


@row("Creation", "-", "an upload of no bytes is complete at once")
def _() -> None:
    server, url = tus_made(length=0)
    assert server.uploads[url.removeprefix(f"{PLACE}/")].state.complete


@row("Creation", "MUST", "HEAD repeats Upload-Metadata as it was given")
def _() -> None:
    server, url = tus_made(Upload_Metadata=METADATA)
    assert tus_head(server, url).headers["Upload-Metadata"] == METADATA
    assert "Upload-Metadata" not in tus_head(*tus_made()).headers


@row("Upload-Metadata", "MUST", "keys are unique and not empty, values are Base64")
def _() -> None:
    for value in ("a YQ==,a YQ==", "a YQ=", "a not-base64!", "a YQ== YQ==", "a,,b", "a " + "A" * 9000):
        assert (
            MemoryServer().handle("POST", PLACE, TUS | {"Upload-Length": "1", "Upload-Metadata": value}).status == 400
        )


@row("Upload-Metadata", "MAY", "a value may be empty, and the space before it left out")
def _() -> None:
    for value in ("a", "a ", "a,b YQ==", "b YQ==,a"):
        tus_made(Upload_Metadata=value)


@row("Upload-Metadata", "-", "an empty field is taken, because tuspy sends it so")
def _() -> None:
    assert "Upload-Metadata" not in tus_head(*tus_made(Upload_Metadata="")).headers


@row("Upload-Metadata", "SHOULD", "nothing that could smuggle a header field is repeated")
def _() -> None:
    for value in ("a\r\nX: y", "a\x00", "a\tYQ==", "a\x7f", "ä YQ=="):
        assert (
            MemoryServer().handle("POST", PLACE, TUS | {"Upload-Length": "1", "Upload-Metadata": value}).status == 400
        )


@row("Creation", "MUST", "a length above the maximum is 413")
def _() -> None:
    server = MemoryServer(Limits(max_size=100))
    reply = server.handle("POST", PLACE, TUS | {"Upload-Length": "101"})
    assert (reply.status, reply.headers["Tus-Max-Size"]) == (413, "100")
    assert server.uploads == {}


# -- Creation With Upload ----------------------------------------------------------------------------------------------


@row("Creation With Upload", "MUST", "it is announced")
def _() -> None:
    assert "creation-with-upload" in extensions()


@row("Creation With Upload", "MUST", "the bytes are taken, and Upload-Offset tells how many")
def _() -> None:
    server = MemoryServer()
    headers = tus_patch(0) | {"Upload-Length": "100"}
    del headers["Upload-Offset"]
    reply = server.handle("POST", PLACE, headers, b"hello")
    assert (reply.status, reply.headers["Upload-Offset"]) == (201, "5")
    assert stored(server, reply.headers["Location"]) == b"hello"


@row("Creation With Upload", "MUST", "bytes of another media type are 415")
def _() -> None:
    server = MemoryServer()
    assert server.handle("POST", PLACE, TUS | {"Upload-Length": "5"}, b"hello").status == 415
    assert server.uploads == {}


@row("Creation With Upload", "-", "the whole upload may be in it")
def _() -> None:
    server = MemoryServer()
    headers = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Length": "5"}
    reply = server.handle("POST", PLACE, headers, b"hello")
    assert server.uploads[reply.headers["Location"].removeprefix(f"{PLACE}/")].state.complete


# -- Expiration --------------------------------------------------------------------------------------------------------


@row("Expiration", "MUST", "it is announced")
def _() -> None:
    assert "expiration" in extensions()


@row("Expiration", "MUST", "Upload-Expires in the answer to POST and to every PATCH, as an HTTP-date")
def _() -> None:
    server = MemoryServer(Limits(max_age=3600), now=1_403_708_400.0)
    created = server.handle("POST", PLACE, TUS | {"Upload-Length": "10"})
    assert created.headers["Upload-Expires"] == "Wed, 25 Jun 2014 16:00:00 GMT"
    url = created.headers["Location"]
    server.now += 60.0
    assert sent(server, url, 0, b"123").headers["Upload-Expires"] == "Wed, 25 Jun 2014 16:01:00 GMT"
    assert sent(server, url, 0, b"123").headers["Upload-Expires"] == "Wed, 25 Jun 2014 16:01:00 GMT"


@row("Expiration", "-", "a complete upload is not told to expire: it is no unfinished one")
def _() -> None:
    server, url = tus_made(MemoryServer(Limits(max_age=3600)), length=3)
    assert "Upload-Expires" not in sent(server, url, 0, b"123").headers


@row("Expiration", "SHOULD", "an upload that has expired is 410")
def _() -> None:
    server, url = tus_made(MemoryServer(Limits(max_age=3600)))
    server.now += 3600.0
    assert tus_head(server, url).status == 410
    assert sent(server, url, 0, b"123").status == 410


# -- Checksum ----------------------------------------------------------------------------------------------------------


@row("Checksum", "MUST", "it is announced, with its algorithms, sha1 among them")
def _() -> None:
    assert "checksum" in extensions()
    names = options().headers["Tus-Checksum-Algorithm"].split(",")
    assert set(names) >= {"sha1", "sha256", "md5"}
    assert all(name.isascii() and name == name.lower() for name in names)


@row("Checksum", "MUST", "a body is held to its checksum, by every algorithm announced")
def _() -> None:
    for name in options().headers["Tus-Checksum-Algorithm"].split(","):
        server, url = tus_made()
        assert sent(server, url, 0, b"12345", Upload_Checksum=checksum(b"12346", name)).status == 460
        reply = sent(server, url, 0, b"12345", Upload_Checksum=checksum(b"12345", name))
        assert (reply.status, reply.headers["Upload-Offset"]) == (204, "5")


@row("Checksum", "MAY", "400 for an algorithm that is not supported")
def _() -> None:
    server, url = tus_made()
    for value in ("crc32 AAAA", "SHA1 " + checksum(b"12345").partition(" ")[2]):
        assert sent(server, url, 0, b"12345", Upload_Checksum=value).status == 400


@row("Checksum", "MUST", "in both cases the bytes are discarded, and the offset does not move")
def _() -> None:
    server, url = tus_made()
    sent(server, url, 0, b"123")
    reply = sent(server, url, 3, b"4567", Upload_Checksum=checksum(b"nothing"))
    assert (reply.status, reply.headers["Upload-Offset"]) == (460, "3")
    assert sent(server, url, 3, b"4567", Upload_Checksum="crc32 AAAA").status == 400
    assert (offset_of(server, url), stored(server, url)) == (3, b"123")


@row("Checksum", "-", "a body under a checksum that is cut is dropped whole: it could not be verified")
def _() -> None:
    server, url = tus_made()
    begun = server.begin("PATCH", url, tus_patch(0, Content_Length="5", Upload_Checksum=checksum(b"12345")))
    assert isinstance(begun, Transfer)
    begun.feed(b"1234")
    begun.end(BodyEnd.CUT)
    assert (offset_of(server, url), stored(server, url)) == (0, b"")


@row("Upload-Checksum", "MUST", "an algorithm, a space, and a digest in Base64")
def _() -> None:
    server, url = tus_made()
    for value in ("", "sha1", "sha1 ", "sha1 AAAA", "sha1 ####", "sha256 " + checksum(b"1").partition(" ")[2]):
        assert sent(server, url, 0, b"1", Upload_Checksum=value).status == 400
    assert offset_of(server, url) == 0


def trailed(body: bytes, trailers: dict[str, str], end: BodyEnd = BodyEnd.WHOLE) -> tuple[HttpAnswer, bytes]:
    """The answer to a body whose checksum is announced as a trailer, and what is kept of it."""
    server, url = tus_made()
    begun = server.begin("PATCH", url, tus_patch(0, Transfer_Encoding="chunked", Trailer="Expires, Upload-Checksum"))
    assert isinstance(begun, Transfer)
    begun.feed(body)
    answer = begun.end(end, trailers)
    assert answer.headers["Upload-Offset"] == str(len(stored(server, url)))
    return answer, stored(server, url)


@row("Checksum", "MUST", "checksum-trailer is announced")
def _() -> None:
    assert "checksum-trailer" in extensions()


@row("Checksum", "MUST", "a body is held to the checksum in its trailer as to one in its head")
def _() -> None:
    for name in options().headers["Tus-Checksum-Algorithm"].split(","):
        answer, kept = trailed(b"12345", {"upload-checksum": checksum(b"12345", name)})
        assert (answer.status, kept) == (204, b"12345")
        answer, kept = trailed(b"12345", {"upload-checksum": checksum(b"12346", name)})
        assert (answer.status, kept) == (460, b"")


@row("Checksum", "-", "one that was announced and does not come, or is none, is 400, and nothing is kept")
def _() -> None:
    for trailers in ({}, {"upload-checksum": "crc32 AAAA"}, {"upload-checksum": "sha1 x"}, {"expires": "never"}):
        answer, kept = trailed(b"12345", trailers)
        assert (answer.status, kept) == (400, b"")


@row("Checksum", "-", "a body that is cut before its trailer is dropped whole")
def _() -> None:
    answer, kept = trailed(b"12345", {}, BodyEnd.CUT)
    assert (answer.status, kept) == (204, b"")


@row("Checksum", "-", "a message that is not chunked has no trailers; other trailers are nobody's")
def _() -> None:
    server, url = tus_made()
    assert sent(server, url, 0, b"12345", Trailer="Upload-Checksum").status == 400
    assert sent(server, url, 0, b"12345", Trailer="Expires").status == 204


@row("Checksum", "-", "a creation with upload may carry one as well")
def _() -> None:
    server = MemoryServer()
    headers = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Length": "5"}
    reply = server.handle("POST", PLACE, headers | {"Upload-Checksum": checksum(b"other")}, b"hello")
    assert reply.status == 460
    reply = server.handle("POST", PLACE, headers | {"Upload-Checksum": checksum(b"hello")}, b"hello")
    assert (reply.status, reply.headers["Upload-Offset"]) == (201, "5")


# -- Termination -------------------------------------------------------------------------------------------------------


@row("Termination", "MUST", "it is announced")
def _() -> None:
    assert "termination" in extensions()


@row("Termination", "MUST", "DELETE is 204, of an unfinished upload and of a complete one")
def _() -> None:
    for body in (b"123", b"1234567890"):
        server, url = tus_made()
        sent(server, url, 0, body)
        assert server.handle("DELETE", url, TUS).status == 204


@row("Termination", "SHOULD", "afterwards everything is 404 or 410")
def _() -> None:
    server, url = tus_made()
    server.handle("DELETE", url, TUS)
    replies = (tus_head(server, url), sent(server, url, 0, b"x"), server.handle("DELETE", url, TUS))
    assert [reply.status for reply in replies] == [410, 410, 410]


# -- Concatenation -----------------------------------------------------------------------------------------------------


def parts(server: MemoryServer, *bodies: bytes, lengths: tuple[int, ...] = ()) -> list[str]:
    """Partial uploads that hold `bodies`, of these lengths or whole."""
    urls = []
    for number, body in enumerate(bodies):
        length = lengths[number] if lengths else len(body)
        _, url = tus_made(server, length, Upload_Concat="partial", Upload_Metadata="part eA==")
        if body:
            sent(server, url, 0, body)
        urls.append(url)
    return urls


def joined(server: MemoryServer, *urls: str, **fields: str) -> HttpAnswer:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return server.handle("POST", PLACE, TUS | {"Upload-Concat": f"final;{' '.join(urls)}"} | named)


@row("Concatenation", "MUST", "it is announced, that of unfinished uploads included")
def _() -> None:
    assert {"concatenation", "concatenation-unfinished"} <= set(extensions())


@row("Concatenation", "MUST", "the parts are concatenated in the order of the list")
def _() -> None:
    server = MemoryServer()
    first, second = parts(server, b"hello", b" world")
    reply = joined(server, first, second)
    assert reply.status == 201
    assert stored(server, reply.headers["Location"]) == b"hello world"
    assert stored(server, joined(server, second, first).headers["Location"]) == b" worldhello"


@row("Concatenation", "MUST", "the length is the sum of the parts'")
def _() -> None:
    server = MemoryServer()
    url = joined(server, *parts(server, b"hello", b" world")).headers["Location"]
    headers = tus_head(server, url).headers
    assert (headers["Upload-Length"], headers["Upload-Offset"]) == ("11", "11")


@row("Concatenation", "SHOULD NOT", "a partial upload is not processed: it knows that it is only a part")
def _() -> None:
    server = MemoryServer()
    (url,) = parts(server, b"hello")
    assert server.uploads[url.removeprefix(f"{PLACE}/")].state.creation.partial


@row("Concatenation", "MUST NOT", "the request for a final upload has no Upload-Length, and no body")
def _() -> None:
    server = MemoryServer()
    urls = parts(server, b"hello")
    assert joined(server, *urls, Upload_Length="5").status == 400
    headers = TUS | {"Upload-Concat": f"final;{urls[0]}"}
    assert server.handle("POST", PLACE, headers, b"x").status == 400


@row("Concatenation", "MAY", "the parts may still be in progress; it is made when the last of them is complete")
def _() -> None:
    server = MemoryServer()
    urls = parts(server, b"hello", b" wo", lengths=(5, 6))
    url = joined(server, *urls).headers["Location"]
    assert tus_head(server, url).status == 200
    sent(server, urls[1], 3, b"rld")
    assert tus_head(server, url).headers["Upload-Offset"] == "11"
    assert stored(server, url) == b"hello world"


@row("Concatenation", "SHALL NOT", "the parts' metadata is not that of the final upload, which has its own")
def _() -> None:
    server = MemoryServer()
    urls = parts(server, b"hello")
    assert "Upload-Metadata" not in tus_head(server, joined(server, *urls).headers["Location"]).headers
    url = joined(server, *urls, Upload_Metadata=METADATA).headers["Location"]
    assert tus_head(server, url).headers["Upload-Metadata"] == METADATA


@row("Concatenation", "MAY", "parts may be used several times, and go without harm to what was made of them")
def _() -> None:
    server = MemoryServer()
    (part,) = parts(server, b"ab")
    url = joined(server, part, part).headers["Location"]
    assert server.handle("DELETE", part, TUS).status == 204
    assert stored(server, url) == b"abab"
    assert tus_head(server, url).headers["Upload-Offset"] == "4"


@row("Concatenation", "MUST", "PATCH on a final upload is 403, and modifies nothing")
def _() -> None:
    server = MemoryServer()
    urls = parts(server, b"hello", b" wo", lengths=(5, 6))
    url = joined(server, *urls).headers["Location"]
    assert sent(server, url, 0, b"x").status == 403
    sent(server, urls[1], 3, b"rld")
    tus_head(server, url)
    assert sent(server, url, 11, b"x").status == 403
    assert (stored(server, url), stored(server, urls[1])) == (b"hello world", b" world")


@row("Concatenation", "SHOULD NOT", "HEAD of a final upload has no Upload-Offset before it is made")
def _() -> None:
    server = MemoryServer()
    url = joined(server, *parts(server, b"hello", b"", lengths=(5, 6))).headers["Location"]
    assert "Upload-Offset" not in tus_head(server, url).headers


@row("Concatenation", "MUST", "HEAD of a partial upload has Upload-Offset")
def _() -> None:
    server = MemoryServer()
    assert offset_of(server, parts(server, b"hello")[0]) == 5


@row("Concatenation", "MUST", "Upload-Length as soon as it can be calculated, and not before")
def _() -> None:
    server = MemoryServer()
    (known,) = parts(server, b"hello")
    _, deferred = tus_made(server, None, Upload_Concat="partial")
    url = joined(server, known, deferred).headers["Location"]
    headers = tus_head(server, url).headers
    assert ("Upload-Length" in headers, "Upload-Defer-Length" in headers) == (False, False)
    sent(server, deferred, 0, b"1", Upload_Length="6")
    assert tus_head(server, url).headers["Upload-Length"] == "11"


@row("Concatenation", "MUST", "HEAD of partial and final uploads repeats Upload-Concat as it was given")
def _() -> None:
    server = MemoryServer()
    urls = parts(server, b"hello", b" world")
    assert tus_head(server, urls[0]).headers["Upload-Concat"] == "partial"
    absolute = [f"https://tus.example{url}" for url in urls]
    url = joined(server, *absolute).headers["Location"]
    assert tus_head(server, url).headers["Upload-Concat"] == f"final;{' '.join(absolute)}"


@row("Upload-Concat", "MUST", "any other value is refused")
def _() -> None:
    for value in ("", "part", "Partial", "final", "final;" + "x" * 9000, "final;\x07"):
        headers = TUS | {"Upload-Concat": value, "Upload-Length": "5"}
        assert MemoryServer().handle("POST", PLACE, headers).status == 400


@row("Concatenation", "-", "only partial uploads can be parts, and none that is unknown or gone")
def _() -> None:
    server = MemoryServer()
    (part,) = parts(server, b"hello")
    _, plain = tus_made(server)
    gone = parts(server, b"bye")[0]
    server.handle("DELETE", gone, TUS)
    final = joined(server, part).headers["Location"]
    made = len(server.uploads)
    for urls in ((), (part, plain), (part, gone), (part, f"{PLACE}/nobody"), (final,), (part,) * 1001):
        assert joined(server, *urls).status == 400
    assert len(server.uploads) == made


@row("Concatenation", "-", "all parts together must keep to the largest size, and what a lost part belongs to is gone")
def _() -> None:
    server = MemoryServer(Limits(max_size=10))
    assert joined(server, *parts(server, b"hello", b" world")).status == 413
    _, deferred = tus_made(server, None, Upload_Concat="partial")
    url = joined(server, deferred, deferred).headers["Location"]
    sent(server, deferred, 0, b"123456", Upload_Length="6")
    assert tus_head(server, url).status == 410
    _, deferred = tus_made(server, None, Upload_Concat="partial")
    url = joined(server, deferred).headers["Location"]
    server.handle("DELETE", deferred, TUS)
    assert tus_head(server, url).status == 410


@pytest.mark.parametrize("row", TABLE.rows, ids=str)
def test_requirement(row: Row) -> None:
    row.check()
