"""Bodies and whole uploads held to the digests that were declared of them, in the core and through RUFH's fields."""

import base64
import hashlib

import pytest
from msgspec.structs import replace

from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.decisions import (
    Accepted,
    Appended,
    BodyEnd,
    Refusal,
    Refused,
    check_whole,
    decide_append,
    finish_append,
    record_bytes,
    whole_digests,
)
from mailboat.protocol.uploads.digests import Algorithm, Digest
from mailboat.protocol.uploads.fields import FieldError
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.state import Creation, Phase, UploadMisuse, UploadState
from mailboat.protocol.uploads.values import Append, Create, Limits
from testkit.uploads import PLACE, MemoryServer, Transfer, head, made, patch, problem, stored

NOW = 1000.0
HELLO = Digest(Algorithm.SHA256, hashlib.sha256(b"hello").digest())
OTHER = hashlib.sha256(b"other").digest()
OPEN = UploadState("u", offset=100, epoch=5, length=105, expires=2000.0, limits=Limits(max_age=1500))


def accepted(request: Append | None = None, state: UploadState = OPEN) -> Accepted:
    request = request or Append(100, complete=True, content_length=5, digest=HELLO)
    verdict = decide_append(state, request, now=NOW)
    assert isinstance(verdict, Accepted)
    return verdict


def field(body: bytes, name: str = "sha-256") -> str:
    return f"{name}=:{base64.b64encode(hashlib.new(name.replace('-', ''), body).digest()).decode()}:"


# -- one body ----------------------------------------------------------------------------------------------------------


def test_a_body_with_its_digest_is_kept() -> None:
    begun = accepted()
    verdict = finish_append(begun.state, begun, offset=105, end=BodyEnd.WHOLE, now=NOW, digest=HELLO.value)
    assert isinstance(verdict, Appended)
    assert (verdict.state.offset, verdict.state.phase) == (105, Phase.COMPLETE)


def test_a_body_with_another_digest_never_came() -> None:
    begun = accepted()
    verdict = finish_append(begun.state, begun, offset=105, end=BodyEnd.WHOLE, now=NOW, digest=OTHER)
    assert isinstance(verdict, Refused)
    assert (verdict.refusal, verdict.state) == (Refusal.MISMATCHING_DIGEST, begun.state)


@pytest.mark.parametrize(("end", "offset"), [(BodyEnd.CUT, 103), (BodyEnd.CUT, 105), (BodyEnd.WHOLE, 104)])
def test_a_body_that_was_cut_never_came(end: BodyEnd, offset: int) -> None:
    begun = accepted()
    verdict = finish_append(begun.state, begun, offset=offset, end=end, now=NOW, digest=HELLO.value)
    assert verdict == Appended(begun.state)


def test_a_body_that_overran_never_came_and_spoils_nothing() -> None:
    begun = accepted(Append(100, complete=False, content_length=None, digest=HELLO))
    verdict = finish_append(begun.state, begun, offset=105, end=BodyEnd.OVERRUN, now=NOW)
    assert isinstance(verdict, Refused)
    assert (verdict.refusal, verdict.state) == (Refusal.INCONSISTENT_LENGTH, begun.state)


def test_a_body_under_a_digest_is_overtaken_as_any_other() -> None:
    begun = accepted()
    stored_now = begun.state.fenced()
    verdict = finish_append(stored_now, begun, offset=105, end=BodyEnd.WHOLE, now=NOW, digest=OTHER)
    assert isinstance(verdict, Refused)
    assert (verdict.refusal, verdict.state) == (Refusal.SUPERSEDED, stored_now)


def test_nothing_of_it_is_recorded_on_the_way_and_its_digest_is_needed() -> None:
    begun = accepted()
    assert record_bytes(begun.state, begun, offset=100) == begun.state
    with pytest.raises(UploadMisuse, match="before it was checked"):
        record_bytes(begun.state, begun, offset=103)
    with pytest.raises(UploadMisuse, match="is needed"):
        finish_append(begun.state, begun, offset=105, end=BodyEnd.WHOLE, now=NOW)


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_a_complete_upload_is_held_to_the_digest_of_the_whole() -> None:
    state = UploadState("u", 5, 5, Phase.COMPLETE, creation=Creation(whole=HELLO))
    assert check_whole(state, {Algorithm.SHA256: HELLO.value}) is state
    refused = check_whole(state, {Algorithm.SHA256: OTHER})
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.MISMATCHING_DIGEST
    assert refused.state == replace(state, phase=Phase.INVALID)


def test_one_that_declared_none_is_held_to_none() -> None:
    state = UploadState("u", 5, 5, Phase.COMPLETE)
    assert (whole_digests(state), check_whole(state, {})) == (frozenset(), state)


def test_nothing_is_said_of_the_whole_before_it_is_here() -> None:
    with pytest.raises(UploadMisuse, match="not complete"):
        check_whole(UploadState("u", creation=Creation(whole=HELLO)), {Algorithm.SHA256: HELLO.value})


def test_the_digest_that_is_wanted_is_told_beside_the_one_declared() -> None:
    state = UploadState("u", 5, 5, Phase.COMPLETE, creation=Creation(whole=HELLO, wanted=Algorithm.SHA512))
    assert whole_digests(state) == {Algorithm.SHA256, Algorithm.SHA512}
    other = hashlib.sha512(b"hello").digest()
    held = check_whole(state, {Algorithm.SHA256: HELLO.value, Algorithm.SHA512: other})
    assert isinstance(held, UploadState)
    assert held.creation.computed == Digest(Algorithm.SHA512, other)
    assert isinstance(check_whole(state, {Algorithm.SHA256: OTHER, Algorithm.SHA512: other}), Refused)


def test_the_digest_of_the_whole_may_come_late_and_is_not_changed() -> None:
    late = accepted(Append(100, complete=False, content_length=1, whole=HELLO))
    assert late.state.creation.whole == HELLO
    again = accepted(Append(100, complete=False, content_length=1, whole=HELLO), late.state)
    assert again.state.creation.whole == HELLO
    other = Append(100, complete=False, content_length=1, whole=Digest(Algorithm.SHA256, OTHER))
    refused = decide_append(late.state, other, now=NOW)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.MISMATCHING_DIGEST


# -- RUFH 10, RFC 9530 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha-256", "sha-512"])
def test_content_digest_holds_one_request(name: str) -> None:
    server, url = made(body=b"12")
    reply = server.handle("PATCH", url, patch(2, Content_Digest=field(b"34x", name)), b"345")
    assert (reply.status, problem(reply)) == (400, rufh.MISMATCHING_DIGEST)
    assert (reply.headers["Upload-Offset"], stored(server, url)) == ("2", b"12")
    reply = server.handle("PATCH", url, patch(2, complete="?1", Content_Digest=field(b"345", name)), b"345")
    assert (reply.status, reply.headers["Upload-Complete"]) == (204, "?1")


def test_content_digest_and_a_cut_drop_the_body() -> None:
    server, url = made(body=b"12")
    begun = server.begin("PATCH", url, patch(2, Content_Length="3", Content_Digest=field(b"345")))
    assert isinstance(begun, Transfer)
    begun.feed(b"34")
    begun.end(BodyEnd.CUT)
    assert head(server, url).headers["Upload-Offset"] == "2"


@pytest.mark.parametrize(("declared", "status"), [(b"12345", 204), (b"12346", 400)])
def test_repr_digest_holds_the_whole(declared: bytes, status: int) -> None:
    server, url = made(body=b"12", Repr_Digest=field(declared))
    reply = server.handle("PATCH", url, patch(2, complete="?1"), b"345")
    assert reply.status == status
    assert head(server, url).status == (204 if status == 204 else 410)


def test_both_digests_may_come_with_a_creation() -> None:
    headers = {"Upload-Complete": "?1", "Repr-Digest": field(b"12"), "Content-Digest": field(b"12")}
    assert MemoryServer().handle("POST", PLACE, headers, b"12").status == 201
    assert MemoryServer().handle("POST", PLACE, headers, b"13").status == 400


@pytest.mark.parametrize(
    "text",
    ["", "sha-256", "sha-256=5", "sha-256=:AAAA:", "sha-256=:A:", "md5=:AAAAAAAAAAAAAAAAAAAAAA==:", "(", "x=:AAAA:"],
)
def test_a_digest_that_cannot_be_read_is_ignored(text: str) -> None:
    server, url = made()
    assert server.handle("PATCH", url, patch(0, Content_Digest=text, Repr_Digest=text), b"x").status == 204


def test_the_client_writes_what_the_server_reads() -> None:
    create = Create(complete=True, content_length=5, digest=HELLO, whole=HELLO, wanted=Algorithm.SHA512)
    headers = RufhDialect().render(create, target="/t", resource=None).headers
    assert rufh.digest_field({"content-digest": headers["Content-Digest"]}, "Content-Digest") == HELLO
    assert rufh.digest_field({"repr-digest": headers["Repr-Digest"]}, "Repr-Digest") == HELLO
    assert rufh.wanted_algorithm({"want-repr-digest": headers["Want-Repr-Digest"]}) is Algorithm.SHA512
    with pytest.raises(FieldError, match="md5"):
        rufh.serialise_wanted(Algorithm.MD5)
    with pytest.raises(FieldError, match="sha1"):
        rufh.serialise_digest(Digest(Algorithm.SHA1, bytes(20)))
