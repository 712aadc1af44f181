"""RUFH on both sides: fields, versions, requests, answers; whatever comes in, nothing but a value comes out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.decisions import Appended, Cancelled, Found, Refusal, Refused
from mailboat.protocol.uploads.messages import folded
from mailboat.protocol.uploads.replies import Complaint, HttpRequest, Reply
from mailboat.protocol.uploads.rufh import CURRENT, VERSIONS
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.rufh_server import (
    answer,
    answer_options,
    answer_unknown,
    read_request,
)
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Limits, Query, Request

APPEND = {"Content-Type": "application/partial-upload", "Upload-Offset": "7", "Upload-Complete": "?0"}
OPEN = UploadState("u", offset=7)
V3, V6, V8 = VERSIONS[3], VERSIONS[6], VERSIONS[8]


# -- requests to the server ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers", "request_"),
    [
        ("POST", {"Upload-Complete": "?0"}, Create(complete=False, content_length=0)),
        ("POST", {"upload-complete": "?1", "CONTENT-LENGTH": "12"}, Create(complete=True, content_length=12)),
        ("PUT", {"Upload-Complete": "?1", "Upload-Length": "5", "Transfer-Encoding": "chunked"},
         Create(complete=True, length=5, content_length=None)),
        ("POST", {"Upload-Complete": "?0", "Upload-Length": "-5"}, Create(complete=False, content_length=0)),
        ("POST", {"Upload-Complete": "?0", "Upload-Length": "5, 5"}, Create(complete=False, content_length=0)),
        ("PATCH", APPEND, Append(7, complete=False, content_length=0)),
        ("PATCH", APPEND | {"Content-Type": "Application/Partial-Upload ; x=1", "Content-Length": " 3 "},
         Append(7, complete=False, content_length=3)),
        ("PATCH", APPEND | {"Upload-Length": "10", "Upload-Complete": "?1;late"},
         Append(7, complete=True, length=10, content_length=0)),
        ("HEAD", {}, Query()),
        ("GET", {}, Query()),
        ("DELETE", {}, Cancel()),
        ("OPTIONS", {}, Discover()),
        # older interop versions
        ("POST", {"Upload-Incomplete": "?1"}, Create(complete=False, content_length=0, completes_at_length=True)),
        ("POST", {"Upload-Draft-Interop-Version": "3", "Upload-Incomplete": "?0"},
         Create(complete=True, content_length=0, completes_at_length=True)),
        ("PATCH", {"Upload-Draft-Interop-Version": "5", "Upload-Offset": "0", "Upload-Complete": "?1"},
         Append(0, complete=True, content_length=0, completes_at_length=True)),
        ("PATCH", APPEND | {"Upload-Draft-Interop-Version": "6"},
         Append(7, complete=False, content_length=0, completes_at_length=True)),
        ("PATCH", APPEND | {"Upload-Draft-Interop-Version": "8"}, Append(7, complete=False, content_length=0)),
    ],
)  # fmt: skip
def test_requests_become_values(method: str, headers: dict[str, str], request_: Request) -> None:
    assert read_request(method, headers) == request_


@pytest.mark.parametrize(
    ("method", "headers", "refusal", "detail"),
    [
        ("POST", {}, Refusal.MALFORMED, "Upload-Complete must be ?0 or ?1; it is missing"),
        ("POST", {"Upload-Complete": "1"}, Refusal.MALFORMED, "Upload-Complete must be ?0 or ?1; not '1'"),
        ("POST", {"Upload-Complete": "?1", "Content-Length": "-1"}, Refusal.MALFORMED, "Content-Length must be"),
        ("POST", {"Upload-Complete": "?1", "Content-Length": "9" * 16}, Refusal.MALFORMED, "Content-Length must be"),
        ("PATCH", APPEND | {"Content-Type": "text/plain"}, Refusal.UNSUPPORTED_MEDIA_TYPE, "not 'text/plain'"),
        ("PATCH", {"Upload-Offset": "7", "Upload-Complete": "?0"}, Refusal.UNSUPPORTED_MEDIA_TYPE, "not ''"),
        ("PATCH", APPEND | {"Upload-Offset": "-7"}, Refusal.MALFORMED, "Upload-Offset must be"),
        ("PATCH", APPEND | {"Upload-Offset": "7.0"}, Refusal.MALFORMED, "Upload-Offset must be"),
        ("PATCH", APPEND | {"Upload-Complete": "yes"}, Refusal.MALFORMED, "Upload-Complete must be"),
        ("PATCH", APPEND | {"Content-Length": "3, 3"}, Refusal.MALFORMED, "Content-Length must be"),
        ("POST", {"Upload-Draft-Interop-Version": "3", "Upload-Complete": "?0"}, Refusal.MALFORMED,
         "Upload-Incomplete must be"),
        ("TRACE", {}, Refusal.METHOD_NOT_ALLOWED, "no method 'TRACE'"),
        ("patch", APPEND, Refusal.METHOD_NOT_ALLOWED, "no method 'patch'"),
    ],
)  # fmt: skip
def test_what_is_no_request(method: str, headers: dict[str, str], refusal: Refusal, detail: str) -> None:
    verdict = read_request(method, headers)
    assert isinstance(verdict, Refused)
    assert verdict.refusal is refusal
    assert detail in verdict.detail
    assert verdict.state is None


def test_a_field_sent_twice_is_one_list_and_so_no_integer() -> None:
    headers = CIMultiDict([*APPEND.items(), ("Upload-Offset", "7")])
    verdict = read_request("PATCH", headers)
    assert isinstance(verdict, Refused)
    assert "not '7, 7'" in verdict.detail


@pytest.mark.parametrize(
    ("headers", "default", "version"),
    [
        ({}, CURRENT, CURRENT),
        ({}, V6, V6),
        ({"Upload-Draft-Interop-Version": "8"}, V6, V8),
        ({"Upload-Draft-Interop-Version": "10"}, V6, V6),
        ({"Upload-Draft-Interop-Version": "x"}, CURRENT, CURRENT),
        ({"Upload-Incomplete": "?1"}, CURRENT, V3),
        ({"Upload-Incomplete": "?1", "Upload-Draft-Interop-Version": "6"}, CURRENT, V6),
    ],
)
def test_the_version_of_a_request(headers: dict[str, str], default: rufh.Version, version: rufh.Version) -> None:
    assert rufh.version_of(folded(headers), default) is version


@pytest.mark.parametrize("version", VERSIONS.values())
def test_an_upload_remembers_its_version_by_a_tag(version: rufh.Version) -> None:
    assert rufh.version_by_tag(version.tag) is version


def test_tags_of_other_dialects_are_no_versions() -> None:
    assert rufh.version_by_tag("tus-1.0.0") is None


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({}, False),
        ({"Tus-Resumable": "1.0.0", "Upload-Offset": "0"}, False),
        ({"Content-Type": "application/offset+octet-stream"}, False),
        ({"Upload-Complete": "?0"}, True),
        ({"Upload-Incomplete": "?0"}, True),
        ({"Upload-Draft-Interop-Version": "9"}, True),
        ({"Content-Type": "application/partial-upload"}, True),
    ],
)
def test_requests_that_show_their_dialect(headers: dict[str, str], ours: bool) -> None:
    assert rufh.speaks_rufh(folded(headers)) is ours


# fmt: off
_NAMES = st.sampled_from([
    "Upload-Offset", "upload-complete", "Upload-Incomplete", "Upload-Length", "Upload-Limit", "Content-Length",
    "Content-Type", "Upload-Draft-Interop-Version", "Transfer-Encoding", "Location", "Retry-After",
])
# fmt: on
_VALUES = st.text(max_size=20) | st.sampled_from(
    ["0", "7", "-1", "?0", "?1", "9", "3", "max-size=5", "max-size=?1", "application/partial-upload", "chunked"]
)
_HEADERS = st.lists(st.tuples(_NAMES | st.text(max_size=8), _VALUES), max_size=8).map(CIMultiDict)


@given(st.sampled_from(["POST", "PUT", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS"]) | st.text(max_size=8), _HEADERS)
def test_whatever_a_client_sends_becomes_a_value(method: str, headers: CIMultiDict[str]) -> None:
    request = read_request(method, headers)
    version = rufh.version_of(folded(headers))
    if isinstance(request, Refused):
        reply = answer(request, version=version, now=0.0)
        assert reply.status in (400, 405, 415)
        assert json.loads(reply.body)["status"] == reply.status
    if isinstance(request, Append):
        assert request.offset >= 0


# -- answers of the server -------------------------------------------------------------------------------------------


def test_answers_state_where_the_upload_stands() -> None:
    state = UploadState("u", offset=7, length=9, limits=Limits(max_size=100, max_age=60), expires=130.5)
    limit = "max-size=100, max-age=30"
    standing = {"Upload-Offset": "7", "Upload-Complete": "?0", "Upload-Length": "9", "Upload-Limit": limit}
    created = answer(Appended(state), now=100.0, location="/v1/uploads/u")
    assert (created.status, created.headers) == (201, {"Location": "/v1/uploads/u", **standing})
    appended = answer(Appended(state), now=100.0)
    assert (appended.status, appended.headers, appended.body) == (204, standing, b"")
    found = answer(Found(state), now=100.0)
    assert (found.status, found.headers) == (204, {**standing, "Cache-Control": "no-store"})
    assert answer(Cancelled(state, discard=True), now=100.0).status == 204


def test_a_lifetime_that_is_over_is_zero_not_negative() -> None:
    state = UploadState("u", limits=Limits(max_age=60), expires=100.0)
    assert answer(Found(state), now=200.0).headers["Upload-Limit"] == "max-age=0"


def test_without_limits_the_field_is_left_out() -> None:
    assert "Upload-Limit" not in answer(Found(OPEN), now=0.0).headers
    assert "Upload-Limit" not in answer_options(Limits()).headers


def test_older_versions_get_their_own_names() -> None:
    state = UploadState("u", offset=7, limits=Limits(max_age=60), expires=130.0)
    assert answer(Found(state), version=V3, now=100.0).headers["Upload-Incomplete"] == "?1"
    done = UploadState("u", offset=7, phase=Phase.COMPLETE)
    assert answer(Found(done), version=V3, now=100.0).headers["Upload-Incomplete"] == "?0"
    assert answer(Found(state), version=V6, now=100.0).headers["Upload-Limit"] == "expires=30"
    refused = Refused(Refusal.MISMATCHING_OFFSET, "", state, 1)
    assert answer(refused, version=V3, now=100.0).headers["Upload-Incomplete"] == "?1"


def test_options_tell_what_is_taken_and_where() -> None:
    reply = answer_options(Limits(max_size=5, min_append_size=1, max_age=9), version=V8)
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers == {
        "Allow": "OPTIONS, POST",
        "Accept-Patch": "application/partial-upload",
        "Upload-Limit": "max-size=5, min-append-size=1, max-age=9",
    }
    assert answer_options(Limits(), upload=True).headers["Allow"] == "OPTIONS, HEAD, GET, PATCH, DELETE"


@pytest.mark.parametrize("refusal", Refusal)
@pytest.mark.parametrize("version", [CURRENT, V8, V3])
def test_every_refusal_has_a_problem_document(refusal: Refusal, version: rufh.Version) -> None:
    reply = answer(Refused(refusal, "because", OPEN, 5), version=version, now=0.0)
    document = json.loads(reply.body)
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert (document["status"], document["detail"]) == (reply.status, "because")
    assert 400 <= reply.status < 500
    assert reply.headers["Upload-Offset"] == "7"


def test_the_problem_of_another_offset() -> None:
    document = json.loads(answer(Refused(Refusal.MISMATCHING_OFFSET, "no", OPEN, 5), now=0.0).body)
    assert document == {
        "type": "https://iana.org/assignments/http-problem-types#mismatching-upload-offset",
        "title": "Mismatching Upload Offset",
        "status": 409,
        "code": "conflict",
        "detail": "no",
        "expected-offset": 7,
        "provided-offset": 5,
    }


def test_a_refusal_that_never_saw_an_upload_tells_no_offset() -> None:
    reply = answer(Refused(Refusal.MISMATCHING_OFFSET, "no"), now=0.0)
    assert "Upload-Offset" not in reply.headers
    assert "expected-offset" not in json.loads(reply.body)


def test_what_is_gone_has_no_offset_any_more() -> None:
    gone = UploadState("u", offset=7, phase=Phase.CANCELLED)
    reply = answer(Refused(Refusal.GONE, "the upload is cancelled", gone), now=0.0)
    assert reply.status == 410
    assert "Upload-Offset" not in reply.headers
    assert answer_unknown().status == 404


def test_refusals_tell_what_would_do() -> None:
    refused = answer(Refused(Refusal.TOO_LARGE, "no", limits=Limits(max_size=5)), now=0.0)
    assert (refused.status, refused.headers["Upload-Limit"]) == (413, "max-size=5")
    refused = answer(Refused(Refusal.UNSUPPORTED_MEDIA_TYPE, "no"), now=0.0)
    assert (refused.status, refused.headers["Accept-Patch"]) == (415, "application/partial-upload")
    refused = answer(Refused(Refusal.METHOD_NOT_ALLOWED, "no"), now=0.0)
    assert (refused.status, refused.headers["Allow"]) == (405, "OPTIONS, POST, PUT, HEAD, GET, PATCH, DELETE")


# -- the client's half -----------------------------------------------------------------------------------------------

DIALECT = RufhDialect()
INTEROP = {"Upload-Draft-Interop-Version": "9"}


@pytest.mark.parametrize(
    ("request_", "method", "url", "headers"),
    [
        (Create(complete=False, length=9), "POST", "/v1/uploads",
         {"Upload-Complete": "?0", "Upload-Length": "9", "Content-Length": "0"}),
        (Create(complete=False), "POST", "/v1/uploads", {"Upload-Complete": "?0", "Content-Length": "0"}),
        (Append(7, complete=True, length=9, content_length=2), "PATCH", "/v1/uploads/u",
         {"Content-Type": "application/partial-upload", "Upload-Offset": "7", "Upload-Complete": "?1",
          "Upload-Length": "9", "Content-Length": "2"}),
        (Append(7, complete=False, content_length=None), "PATCH", "/v1/uploads/u",
         {"Content-Type": "application/partial-upload", "Upload-Offset": "7", "Upload-Complete": "?0"}),
        (Query(), "HEAD", "/v1/uploads/u", {}),
        (Cancel(), "DELETE", "/v1/uploads/u", {}),
    ],
)  # fmt: skip
def test_values_become_requests(request_: Request, method: str, url: str, headers: dict[str, str]) -> None:
    rendered = DIALECT.render(request_, target="/v1/uploads", resource="/v1/uploads/u")
    assert rendered == HttpRequest(method, url, INTEROP | headers)


@given(
    st.builds(Create, st.booleans(), st.none() | st.integers(0, 99), st.integers(0, 99))
    | st.builds(Append, st.integers(0, 99), st.booleans(), st.none() | st.integers(0, 99), st.integers(0, 99))
    | st.builds(Query)
    | st.builds(Cancel)
)
@pytest.mark.parametrize("number", VERSIONS)
def test_what_a_client_of_any_version_says_a_server_understands(number: int, request_: Request) -> None:
    rendered = RufhDialect(VERSIONS[number]).render(request_, target="/t", resource="/t/u")
    understood = read_request(rendered.method, rendered.headers)
    if isinstance(request_, Create):
        request_ = Create(
            request_.complete, request_.length, request_.content_length, VERSIONS[number].completes_at_length
        )
    elif isinstance(request_, Append):
        request_ = Append(
            request_.offset,
            request_.complete,
            request_.length,
            request_.content_length,
            VERSIONS[number].completes_at_length,
        )
    elif isinstance(request_, Query):
        request_ = Query(VERSIONS[number].completes_at_length)
    assert understood == request_
    assert rufh.version_of(folded(rendered.headers)) is VERSIONS[number]


@pytest.mark.parametrize(
    ("request_", "status", "headers", "ours"),
    [
        (Create(complete=False), 201, {"Location": "/u"}, True),
        (Create(complete=False), 200, {"Location": "/u", "Upload-Complete": "?0"}, True),
        (Create(complete=False), 200, {"Location": "/u", "Upload-Limit": "max-size=1"}, True),
        (Create(complete=False), 200, {"Location": "/u"}, False),
        (Create(complete=False), 201, {"Upload-Complete": "?0"}, False),
        (Query(), 204, {"Upload-Offset": "5"}, True),
        (Query(), 200, {"Content-Type": "text/html"}, False),
        (Append(0, complete=False), 204, {"Upload-Complete": "?0"}, True),
        (Append(0, complete=False), 204, {"Upload-Offset": "5"}, True),
        (Append(0, complete=False), 200, {"Content-Type": "text/html"}, False),
        (Cancel(), 204, {}, True),
        (Cancel(), 200, {"Content-Type": "application/json"}, True),
        (Cancel(), 200, {"Content-Type": "text/html; charset=utf-8"}, False),
    ],
)
def test_a_success_is_believed_when_it_bears_the_marks(
    request_: Request, status: int, headers: dict[str, str], ours: bool
) -> None:
    assert DIALECT.read(request_, status, headers, b"<html>").ours is ours


@pytest.mark.parametrize(
    ("headers", "garbled"),
    [
        ({"Upload-Offset": "5", "Upload-Complete": "?0"}, False),
        ({}, False),
        ({"Upload-Offset": "-5"}, True),
        ({"Upload-Offset": "five", "Upload-Complete": "?0"}, True),
        ({"Upload-Offset": "5", "Upload-Complete": "true"}, True),
    ],
)
def test_fields_that_cannot_be_read_are_noticed(headers: dict[str, str], garbled: bool) -> None:
    assert DIALECT.read(Query(), 204, headers, b"").garbled is garbled


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("max-size=9, min-size=1, max-append-size=5, min-append-size=2, max-age=60", Limits(9, 1, 5, 2, 60)),
        ("max-size=9, speed=fast", Limits(max_size=9)),
        ("expires=60", Limits(max_age=60)),
        ("expires=60, max-age=30", Limits(max_age=30)),
        ("", Limits()),
        ("max-size=many", None),
        ("max-size=?1, max-age=60", None),
        ("max-size=-1", None),
        ("max-size=1.5", None),
        ("max-size=1,", None),
    ],
)
def test_limits(text: str, limits: Limits | None) -> None:
    assert DIALECT.read(Query(), 204, {"Upload-Offset": "0", "Upload-Limit": text}, b"").limits == limits


PROBLEM = {"Content-Type": "application/problem+json; charset=utf-8"}


@pytest.mark.parametrize(
    ("headers", "body", "problem", "complaint", "detail"),
    [
        (PROBLEM, b'{"type": "about:blank", "detail": "no room"}', "about:blank", None, "no room"),
        (PROBLEM, b'{"title": "No room"}', None, None, "No room"),
        (PROBLEM, json.dumps({"type": rufh.COMPLETED_UPLOAD}).encode(), rufh.COMPLETED_UPLOAD, Complaint.COMPLETED, ""),
        (PROBLEM, json.dumps({"type": rufh.INCONSISTENT_LENGTH}).encode(), rufh.INCONSISTENT_LENGTH,
         Complaint.INCONSISTENT_LENGTH, ""),
        (PROBLEM, b'{"type": 5, "detail": ["x"]}', None, None, ""),
        (PROBLEM, b'["type"]', None, None, ""),
        (PROBLEM, b'{"type": "about:bl', None, None, ""),
        (PROBLEM, b"[" * 100_000, None, None, ""),
        (PROBLEM, b"\xff\xfe", None, None, ""),
        (PROBLEM, b'{"type": ' + b"1" * 5000 + b"}", None, None, ""),
        (PROBLEM, json.dumps({"detail": "x" * 9999}).encode(), None, None, "x" * 500),
        ({"Content-Type": "text/html"}, b'{"type": "about:blank"}', None, None, ""),
        ({}, b"", None, None, ""),
    ],
)  # fmt: skip
def test_problem_documents(
    headers: dict[str, str], body: bytes, problem: str | None, complaint: Complaint | None, detail: str
) -> None:
    reply = DIALECT.read(Append(0, complete=False), 400, headers, body)
    assert (reply.problem, reply.complaint, reply.detail) == (problem, complaint, detail)


@given(
    st.sampled_from([Create(complete=False), Append(0, complete=True), Query(), Cancel()]),
    st.integers(-1, 1000),
    _HEADERS,
    st.binary(max_size=50) | st.sampled_from([b"{}", b'{"type": "x"}', b"null"]),
)
def test_whatever_a_server_answers_becomes_a_reply(
    request_: Request, status: int, headers: CIMultiDict[str], body: bytes
) -> None:
    reply = DIALECT.read(request_, status, headers, body)
    assert isinstance(reply, Reply)
    assert reply.status == status
    assert reply.offset is None or reply.offset >= 0
