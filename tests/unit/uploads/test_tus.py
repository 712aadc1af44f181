"""tus on both sides, and which dialect a request is meant in; whatever comes in, nothing but a value comes out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.uploads import rufh, tus
from mailboat.protocol.uploads.decisions import Refusal, Refused
from mailboat.protocol.uploads.detect import detect
from mailboat.protocol.uploads.digests import Algorithm, Digest
from mailboat.protocol.uploads.replies import Reply
from mailboat.protocol.uploads.rufh_server import RufhServer
from mailboat.protocol.uploads.state import Creation, Phase, UploadState
from mailboat.protocol.uploads.tus_client import Offering, TusDialect, read_discovery
from mailboat.protocol.uploads.tus_server import TusServer
from mailboat.protocol.uploads.values import Append, Asked, Cancel, Create, Discover, Join, Query, Request

TUS = {"Tus-Resumable": "1.0.0"}
APPEND = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "7"}
OPEN = UploadState("u", offset=7)
SHA1 = Digest(Algorithm.SHA1, bytes(20))


# -- which dialect -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "stored", "tag"),
    [
        ({}, "", "rufh-9"),
        ({}, "nonsense", "rufh-9"),
        ({}, "rufh-6", "rufh-6"),
        ({}, "tus-1.0.0", "tus-1.0.0"),
        (TUS, "", "tus-1.0.0"),
        ({"tus-resumable": "9.9"}, "rufh-6", "tus-1.0.0"),
        (TUS | {"Upload-Complete": "?1"}, "rufh-6", "tus-1.0.0"),
        ({"Upload-Complete": "?1"}, "tus-1.0.0", "rufh-9"),
        ({"Upload-Incomplete": "?1"}, "tus-1.0.0", "rufh-3"),
        ({"Upload-Draft-Interop-Version": "8"}, "tus-1.0.0", "rufh-8"),
        ({"Content-Type": "application/partial-upload"}, "tus-1.0.0", "rufh-9"),
        ({"Content-Type": "application/offset+octet-stream"}, "", "rufh-9"),
    ],
)
def test_the_request_tells_its_dialect_or_else_the_upload(headers: dict[str, str], stored: str, tag: str) -> None:
    assert detect(headers, stored).tag == tag


def test_only_tus_needs_absolute_locations() -> None:
    assert (detect(TUS).absolute, detect({}).absolute) == (True, False)


def test_a_detected_dialect_of_the_draft_answers_as_its_functions_do() -> None:
    dialect = detect({"Upload-Draft-Interop-Version": "6"})
    assert dialect == RufhServer(rufh.VERSIONS[6])
    assert dialect.read("HEAD", {}) == Query(completes_at_length=True)
    assert dialect.answer_unknown().status == 404
    assert dialect.answer(Refused(Refusal.GONE, "gone"), now=0.0).status == 410


# -- requests to the server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers", "request_"),
    [
        ("POST", TUS | {"Upload-Length": "9"}, Create(complete=False, length=9, completes_at_length=True)),
        ("POST", TUS | {"Upload-Defer-Length": "1"}, Create(complete=False, completes_at_length=True)),
        ("POST", TUS | {"Upload-Length": "9", "Upload-Concat": "partial"},
         Create(complete=False, length=9, completes_at_length=True, partial=True,
                notes=(("Upload-Concat", "partial"),))),
        ("POST", TUS | {"Upload-Concat": "final;/a /b", "Upload-Metadata": "a"},
         Join(("/a", "/b"), (("Upload-Metadata", "a"), ("Upload-Concat", "final;/a /b")))),
        ("PATCH", APPEND, Append(7, complete=False, completes_at_length=True)),
        ("PATCH", APPEND | {"Transfer-Encoding": "chunked", "Upload-Length": "9"},
         Append(7, complete=False, length=9, content_length=None, completes_at_length=True)),
        ("PATCH", APPEND | {"Content-Length": "2", "Upload-Checksum": "sha1 " + "A" * 27 + "="},
         Append(7, complete=False, content_length=2, completes_at_length=True, digest=SHA1)),
        ("HEAD", TUS, Query(completes_at_length=True)),
        ("DELETE", TUS, Cancel()),
        ("OPTIONS", {}, Discover()),
        ("POST", {"X-HTTP-Method-Override": "options"}, Discover()),
        ("POST", TUS | {"X-HTTP-Method-Override": " delete "}, Cancel()),
    ],
)  # fmt: skip
def test_requests_become_values(method: str, headers: dict[str, str], request_: Asked) -> None:
    assert TusServer().read(method, headers) == request_


@pytest.mark.parametrize(
    ("method", "headers", "refusal"),
    [
        ("HEAD", {}, Refusal.UNSUPPORTED_VERSION),
        ("GET", TUS, Refusal.METHOD_NOT_ALLOWED),
        ("PUT", TUS | {"Upload-Length": "9"}, Refusal.METHOD_NOT_ALLOWED),
        ("POST", TUS, Refusal.MALFORMED),
        ("POST", TUS | {"Upload-Length": "9", "Content-Length": "x"}, Refusal.MALFORMED),
        ("PATCH", TUS | {"Upload-Offset": "7"}, Refusal.UNSUPPORTED_MEDIA_TYPE),
        ("PATCH", APPEND | {"Upload-Checksum": "crc32 AAAA"}, Refusal.UNKNOWN_ALGORITHM),
        ("PATCH", APPEND | {"Upload-Length": "-1"}, Refusal.MALFORMED),
    ],
)
def test_what_is_no_request_is_refused(method: str, headers: dict[str, str], refusal: Refusal) -> None:
    refused = TusServer().read(method, headers)
    assert isinstance(refused, Refused)
    assert refused.refusal is refusal


NAMES = st.sampled_from(
    [
        "Tus-Resumable", "Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata", "Upload-Concat",
        "Upload-Checksum", "Content-Type", "Content-Length", "Transfer-Encoding", "Trailer", "X-HTTP-Method-Override",
    ]
)  # fmt: skip
TEXTS = st.text() | st.sampled_from(
    ["1.0.0", "0", "7", "1", "partial", "final;/a", "application/offset+octet-stream", "sha1 AAAA", "POST", "PATCH"]
)


@given(st.sampled_from(["POST", "PATCH", "HEAD", "DELETE", "x"]), st.dictionaries(NAMES, TEXTS))
def test_whatever_is_asked_gives_a_value_that_can_be_answered(method: str, headers: dict[str, str]) -> None:
    asked = TusServer().read(method, headers)
    if isinstance(asked, Refused):
        assert 400 <= TusServer().answer(asked, now=0.0).status < 500
    if isinstance(asked, Create | Join):
        assert all(value.isascii() and value.isprintable() for _, value in asked.notes)


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_has_a_status_and_tells_the_offset(refusal: Refusal) -> None:
    reply = TusServer().answer(Refused(refusal, "because", OPEN, 7), now=0.0)
    assert (reply.headers["Tus-Resumable"], reply.headers["Upload-Offset"]) == ("1.0.0", "7")
    if refusal is Refusal.COMPLETED:  # an empty append at the end of a complete upload
        assert (reply.status, reply.body) == (204, b"")
        return
    document = json.loads(reply.body)
    assert (document["status"], document["detail"]) == (reply.status, "because")
    assert 400 <= reply.status < 500
    assert ("Tus-Version" in reply.headers) == (refusal is Refusal.UNSUPPORTED_VERSION)


def test_a_refusal_about_what_is_gone_tells_no_offset() -> None:
    reply = TusServer().answer(Refused(Refusal.GONE, "gone", UploadState("u", 7, phase=Phase.EXPIRED)), now=0.0)
    assert "Upload-Offset" not in reply.headers


def test_a_refusal_about_an_unfinished_final_upload_tells_no_offset() -> None:
    state = UploadState("u", creation=Creation(parts=("a",)))
    assert "Upload-Offset" not in TusServer().answer(Refused(Refusal.MADE_OF_PARTS, "no", state), now=0.0).headers


# -- fields ------------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text("abc-_.:", min_size=1), st.text(max_size=20)))
def test_metadata_survives_its_field(pairs: dict[str, str]) -> None:
    text = tus.serialise_metadata(pairs)
    assert tus.parse_metadata(text) == {key: value.encode() for key, value in pairs.items()}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_checksum_survives_its_field(algorithm: Algorithm) -> None:
    hasher = algorithm.hasher()
    hasher.update(b"hello")
    digest = Digest(algorithm, hasher.digest())
    assert tus.parse_checksum(tus.serialise_checksum(digest)) == digest
    assert len(digest.value) == algorithm.size
    assert str(digest) == f"{algorithm.label} {digest.value.hex()}"


# -- the client --------------------------------------------------------------------------------------------------------


@given(
    st.builds(Create, st.just(value=False), st.none() | st.integers(0, 99))
    | st.builds(Append, st.integers(0, 99), st.booleans(), st.none() | st.integers(0, 99), st.integers(0, 99),
                digest=st.just(SHA1) | st.none())
    | st.builds(Append, st.just(0), st.just(value=False), st.none(), st.none())
    | st.builds(Query)
    | st.builds(Cancel)
)  # fmt: skip
def test_what_a_client_says_a_server_understands(request_: Request) -> None:
    rendered = TusDialect().render(request_, target="/t", resource="/t/u")
    understood = TusServer().read(rendered.method, rendered.headers)
    if isinstance(request_, Create):
        expected: Request = Create(complete=False, length=request_.length, completes_at_length=True)
    elif isinstance(request_, Append):
        size = request_.content_length or 0  # without a size the HTTP library adds its own framing
        expected = Append(request_.offset, False, request_.length, size, True, request_.digest)
    else:
        expected = Query(completes_at_length=True) if isinstance(request_, Query) else request_
    assert understood == expected


@given(
    st.sampled_from([Create(complete=False), Append(0, complete=True, length=5, content_length=5), Query(), Cancel()]),
    st.integers(100, 599),
    st.dictionaries(
        st.sampled_from(["Tus-Resumable", "Upload-Offset", "Upload-Length", "Upload-Expires", "Date", "Location",
                         "Content-Type"]),
        st.text() | st.sampled_from(["5", "text/plain", "application/problem+json", "Wed, 25 Jun 2014 16:00:00 GMT"]),
    ),
    st.binary(max_size=20),
)  # fmt: skip
def test_any_answer_becomes_a_reply(request_: Request, status: int, headers: dict[str, str], body: bytes) -> None:
    assert isinstance(TusDialect().read(request_, status, headers, body), Reply)


def test_a_length_is_told_once() -> None:
    append = Append(5, complete=True, length=9, content_length=4)
    assert TusDialect().render(append, target="/t", resource="/t/u").headers["Upload-Length"] == "9"
    known = Append(5, complete=True, length=9, content_length=4, length_known=True)
    assert "Upload-Length" not in TusDialect().render(known, target="/t", resource="/t/u").headers


def test_an_explanation_is_read_from_a_problem_or_plain_text_and_from_nothing_else() -> None:
    def read(kind: str, body: bytes) -> Reply:
        return TusDialect().read(Query(), 400, TUS | {"Content-Type": kind}, body)

    reply = read("application/problem+json", b'{"type": "x:y", "detail": "why"}')
    assert (reply.problem, reply.detail) == ("x:y", "why")
    assert read("text/plain", b"why \xff" + b"x" * 9000).detail == ("why \ufffd" + "x" * 9000)[:500]
    assert read("text/html", b"<p>why").detail == ""


def test_what_a_server_offers_is_told_by_a_tus_server_alone() -> None:
    assert read_discovery({"Server": "nginx", "Allow": "GET, HEAD"}) is None
    offering = read_discovery(
        {"tus-version": "1.0.0, 0.2.2", "Tus-Extension": "creation, creation-defer-length", "Tus-Max-Size": "1000"}
    )
    assert offering == Offering(("1.0.0", "0.2.2"), frozenset({"creation", "creation-defer-length"}), 1000)
    assert offering is not None
    assert (offering.usable, offering.deferred) == (True, True)
    assert not Offering(("0.2.2",), frozenset({"creation"})).usable
    assert not Offering(("1.0.0",), frozenset({"concatenation"})).usable


def test_tus_has_no_answers_in_between() -> None:
    assert TusServer().announce(OPEN, TUS, location="/v1/uploads/u", now=0.0) is None
    assert TusServer().progress(OPEN, TUS) is None


def test_a_checksum_in_a_trailer_of_an_algorithm_that_nobody_knows_is_none() -> None:
    assert TusServer().read_trailers({"upload-checksum": "md4 AAAA"}) is None
