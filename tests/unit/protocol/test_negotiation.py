"""Negotiation messages: they survive both encodings, and no bytes of a peer raise anything but `WireError`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailboat.protocol import wire
from mailboat.protocol.errors import WireError
from mailboat.protocol.limits import BACKOFF_FIRST, MAX_OFFERS, MAX_RETRY_AFTER, MAX_RIDER, MAX_RIDING, MAX_SEGMENT
from mailboat.protocol.negotiation import (
    Decision,
    Policy,
    Reply,
    Request,
    Rider,
    Riding,
    SegmentDecision,
    Verdict,
    Wish,
)
from mailboat.protocol.segment import Preamble, Seal, SealReason
from mailboat.protocol.summary import Info, summarise
from testkit.segments import SESSION

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
BOTH = pytest.mark.parametrize("media_type", wire.MEDIA_TYPES)

OFFER = summarise(
    [(Preamble(SESSION, 0, 1, 0, 10**18, 5), Seal(SealReason.STOPPED, 0, 0, 0, (0,) * 12, 10**18, 9, b"\1" * 32), 100)]
)
segments = st.builds(
    SegmentDecision,
    index=st.integers(0, 99_999),
    url=TEXT,
    offset=st.integers(0, MAX_SEGMENT),
    complete=st.booleans(),
    sha256=st.just("") | st.just("ab" * 32),
)
decisions = st.builds(
    Decision,
    session_id=st.uuids().map(str),
    verdict=st.sampled_from(Verdict),
    reason=TEXT,
    explanation=TEXT,
    after=st.floats(0, MAX_RETRY_AFTER),
    priority=st.integers(-5, 5),
    segments=st.lists(segments, max_size=3).map(tuple),
)
policies = st.builds(
    Policy,
    sync_interval=st.none() | st.floats(0, MAX_RETRY_AFTER),
    backoff_floor=st.floats(0, MAX_RETRY_AFTER),
    max_offers=st.integers(1, MAX_OFFERS),
    max_rate=st.none() | st.integers(1024, 2**40),
    details=st.sampled_from(Wish),
)
replies = st.builds(
    Reply,
    decisions=st.lists(decisions, max_size=3).map(tuple),
    wanted=st.lists(st.uuids().map(str), max_size=3).map(tuple),
    policy=policies,
)
requests = st.builds(
    Request,
    agent=TEXT,
    offers=st.lists(st.just(OFFER), max_size=2).map(tuple),
    sent=st.floats(0, 1e10),
    ledger=st.dictionaries(TEXT, st.integers(0, 9), max_size=3),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@BOTH
@given(reply=replies)
def test_a_reply_survives_the_wire(reply: Reply, media_type: str) -> None:
    assert Reply.decode(reply.encode(media_type), media_type) == reply


@BOTH
@given(request=requests)
def test_a_request_survives_the_wire(request: Request, media_type: str) -> None:
    assert Request.decode(request.encode(media_type), media_type) == request


@BOTH
@given(body=st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_and_nothing_worse(body: bytes, media_type: str) -> None:
    for message in (Request, Reply):
        with pytest.raises(WireError):
            message.decode(body, media_type)


@BOTH
@pytest.mark.parametrize("message", [Reply((Decision(SESSION, Verdict.SEND),), (SESSION,)), Request("a", (OFFER,))])
def test_a_message_cut_anywhere_is_refused(message: Reply | Request, media_type: str) -> None:
    body = message.encode(media_type)
    for cut in range(len(body)):
        with pytest.raises(WireError):
            type(message).decode(body[:cut], media_type)
    with pytest.raises(WireError):
        type(message).decode(body + b"\x01", media_type)


@BOTH
@given(data=st.data())
def test_a_message_with_anything_in_any_place_is_read_or_refused(data: st.DataObject, media_type: str) -> None:
    whole = Reply((Decision(SESSION, Verdict.SEND, segments=(SegmentDecision(0, "/u", 0, False),)),)).encode()
    message: Any = msgpack.unpackb(whole)
    place, path = message, data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    for at, step in enumerate(path):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = keys[step % len(keys)]
        if at == len(path) - 1 or not isinstance(place[key], dict | list):
            place[key] = data.draw(JUNK)
            break
        place = place[key]
    with contextlib.suppress(WireError):
        assert isinstance(Reply.decode(wire.encode(message, media_type), media_type), Reply)


@BOTH
@pytest.mark.parametrize("version", [0, 2, 2**31, None, "1", 1.0, True])
def test_another_version_is_refused(version: object, media_type: str) -> None:
    with pytest.raises(WireError, match=r"reply\.v"):
        Reply.decode(wire.encode({"v": version, "decisions": []}, media_type), media_type)


@BOTH
def test_members_to_come_are_ignored(media_type: str) -> None:
    message = {"v": 1, "decisions": [{"session": SESSION, "verdict": "have", "new": [1]}], "new": {"x": 1}}
    assert Reply.decode(wire.encode(message, media_type), media_type) == Reply((Decision(SESSION, Verdict.HAVE),))


def decision(**changes: object) -> Decision:
    body = wire.encode(
        {"v": 1, "decisions": [{"session": SESSION, "verdict": "send", **changes}]}, wire.JSON_MEDIA_TYPE
    )
    return Reply.decode(body, wire.JSON_MEDIA_TYPE).decisions[0]


def test_a_verdict_to_come_reads_as_later() -> None:
    assert decision(verdict="perhaps").verdict is Verdict.LATER


@pytest.mark.parametrize(
    ("asked", "obeyed"), [(0, 0.0), (5.5, 5.5), (10**9, MAX_RETRY_AFTER), (10**15, MAX_RETRY_AFTER)]
)
def test_a_server_cannot_silence_a_session_for_good(asked: float, obeyed: float) -> None:
    assert decision(after=asked).after == obeyed


@pytest.mark.parametrize(
    "changes",
    [
        {"after": -1},
        {"after": float("inf")},
        {"session": "../../etc"},
        {"session": SESSION.upper()},
        {"priority": 2**40},
        {"segments": [{"index": -1, "url": "/u"}]},
        {"segments": [{"index": 0, "url": "/u", "offset": -1}]},
        {"segments": [{"index": 0, "url": "/u", "offset": 2**62}]},
        {"segments": [{"index": 0, "url": "x" * 3000}]},
        {"segments": [{"index": 0, "url": "/u", "sha256": "a" * 65}]},
        {"verdict": 5},
    ],
)
def test_a_lying_server_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(WireError, match=r"reply\.decisions\[0\]"):
        decision(**changes)


def test_no_more_is_taken_than_a_request_may_hold() -> None:
    body = Request("a", (OFFER,) * (MAX_OFFERS + 1)).encode()
    with pytest.raises(WireError, match=rf"request\.offers: a list of {MAX_OFFERS + 1}"):
        Request.decode(body)


def test_a_policy_is_as_the_server_said_or_as_usual() -> None:
    assert Reply.decode(wire.encode({"v": 1}, wire.JSON_MEDIA_TYPE), wire.JSON_MEDIA_TYPE).policy == Policy()
    assert Policy().backoff_floor == BACKOFF_FIRST
    unheard = wire.encode({"v": 1, "policy": {"details": "tuesdays"}}, wire.JSON_MEDIA_TYPE)
    assert Reply.decode(unheard, wire.JSON_MEDIA_TYPE).policy.details is Wish.SOME
    for wrong in ({"max_offers": 0}, {"backoff_floor": -1}, {"sync_interval": 10**9}, {"max_rate": 5}):
        with pytest.raises(WireError, match=r"reply\.policy"):
            Reply.decode(wire.encode({"v": 1, "policy": wrong}, wire.JSON_MEDIA_TYPE), wire.JSON_MEDIA_TYPE)


# -- segments that ride along ------------------------------------------------------------------------------------------

RIDERS = (
    Rider(SESSION, 0, memoryview(bytes(range(256)) * 2)),
    Rider(SESSION, 1, memoryview(os.urandom(300_000))),  # more than one stored block
    Rider(SESSION, 2, memoryview(b"x")),
)


@pytest.mark.parametrize("media_type", wire.MEDIA_TYPES)
def test_riders_go_round(media_type: str) -> None:
    request = Request("mailboat-python/0.1.0", (), 1.5, {"accepted": 3}, RIDERS)
    assert Request.decode(request.encode(media_type), media_type) == request


@pytest.mark.parametrize("riders", [(), RIDERS[:1], RIDERS])
def test_riders_are_compressed_with_the_rest_but_not_again(riders: tuple[Rider, ...]) -> None:
    request = Request("mailboat-python/0.1.0", (), 1.5, {"accepted": 3}, riders)
    body = request.compressed()
    assert wire.decompress(body) == request.encode()
    assert all(bytes(rider.content[:1000]) in body for rider in riders)
    assert zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(body) == request.encode()


@pytest.mark.parametrize("value", [None, 7, [1], "%", "QQ"])
def test_a_rider_without_bytes_is_named(value: object) -> None:
    message = {"v": 1, "offers": [], "riders": [{"session": SESSION, "index": 0, "bytes": value}]}
    with pytest.raises(WireError, match=r"request\.riders\[0\]\.bytes"):
        Request.decode(json.dumps(message).encode(), wire.JSON_MEDIA_TYPE)


def test_frames_beyond_the_limit_are_refused() -> None:
    body = wire.compress(b"a" * 600, stored=b"b" * 600)
    assert wire.decompress(body, 1200) == b"a" * 600 + b"b" * 600
    with pytest.raises(WireError, match="more than 1199"):
        wire.decompress(body, 1199)


@pytest.mark.parametrize("cut", [1, 100, 700])
def test_a_cut_stored_frame_is_no_message(cut: int) -> None:
    request = Request("mailboat-python/0.1.0", (), riders=(Rider(SESSION, 0, memoryview(bytes(1000))),))
    with pytest.raises(WireError):
        Request.decode(wire.decompress(request.compressed()[:-cut]))


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        (None, Riding()),
        ({}, Riding()),
        ({"segment": 5, "request": 9}, Riding(5, 9)),
        ({"segment": 10**9, "request": 10**9, "colour": "blue"}, Riding(MAX_RIDER, MAX_RIDING)),
    ],
)
def test_terms_of_other_versions(told: object, understood: Riding) -> None:
    message = {"v": 1, "decisions": [], "policy": {"riding": told}}
    assert Reply.decode(json.dumps(message).encode(), wire.JSON_MEDIA_TYPE).policy.riding == understood


# -- read at once, or with care ----------------------------------------------------------------------------------------

OFFERED = replace(
    OFFER,
    info=Info(product="Acme", version="2.4", parent=SESSION, properties={"edition": "pro", "seats": 3, "share": 0.5}),
    segments=(replace(OFFER.segments[0], size=3),),
    installation="i-1",
    installation_properties={"plan": None, "trial": True},
    lost={"disk_full": 2},
)
SAID: dict[type[Request | Reply], dict[str, Any]] = {
    kind: msgpack.unpackb(message.encode())
    for kind, message in (
        (Request, Request("a/1", (OFFERED,), 5.0, {"pending": 1}, (Rider(SESSION, 0, memoryview(b"abc")),))),
        (
            Reply,
            Reply(
                (
                    Decision(
                        SESSION,
                        Verdict.HAVE,
                        "r",
                        "e",
                        1.5,
                        2,
                        (SegmentDecision(0, "/u", 3, complete=True, sha256="ab"),),
                    ),
                ),
                (SESSION,),
                Policy(5.0, 1.0, 10, 2048, Wish.ERRORS, Riding(10, 20)),
            ),
        ),
    )
}


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each member of a message."""
    inner: Iterable[tuple[Any, Any]] = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def outcome(kind: type[Request | Reply], body: bytes) -> tuple[str, Any]:
    """What is read, with the types of all values, or what is wrong."""
    try:
        read = kind.decode(body)
    except WireError as error:
        return "refused", str(error)
    if isinstance(read, Request):  # a view is shown as where it lies, not as what it holds
        return "read", repr(
            (replace(read, riders=()), [replace(each, content=bytes(each.content)) for each in read.riders])
        )
    return "read", repr(read)


def outcome_with_care(kind: type[Request | Reply], body: bytes) -> tuple[str, Any]:
    """The same, read through `Fields`."""

    def untyped(_kind: object, _body: bytes) -> None:
        raise wire.Untyped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "typed", untyped)
        return outcome(kind, body)


@pytest.mark.parametrize("kind", [Request, Reply])
@given(st.data())
def test_what_is_read_at_once_is_what_is_read_with_care(kind: type[Request | Reply], data: st.DataObject) -> None:
    """Whatever stands in one place of a message."""
    message = copy.deepcopy(SAID[kind])
    *path, last = data.draw(st.sampled_from(list(places(message))))
    inner: Any = message
    for key in path:
        inner = inner[key]
    if data.draw(st.booleans()) or isinstance(inner, list):
        inner[last] = data.draw(JUNK | ODD)
    else:
        del inner[last]
    body = msgpack.packb(message)
    assert outcome(kind, body) == outcome_with_care(kind, body)


NUMBERS = [2**31, -(2**31), 2**31 + 1, 99_999, 100_000, 2**63, 1e15, 1e16, float("nan"), float("inf"), -0.0]
TEXTS = ["", "x" * 5000, "é" * 3000, SESSION, f"{SESSION}\n", SESSION.upper()]
MAPS = [{"x" * 5000: 1}, {str(number): number for number in range(65)}, {"a": ["b"]}, {"a": 2**64 - 1}]
ODD = st.sampled_from([*NUMBERS, *TEXTS, *MAPS, [], {}])


@pytest.mark.parametrize("kind", [Request, Reply])
def test_what_is_as_it_should_be_is_read_at_once(kind: type[Request | Reply], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the other test compares one thing with itself."""

    def fields(*_: object) -> Any:  # noqa: ANN401 - stands for a class
        raise AssertionError("it is read with care")

    monkeypatch.setattr("mailboat.protocol.negotiation._message", fields)
    assert kind.decode(msgpack.packb(SAID[kind])).encode() == msgpack.packb(SAID[kind])
