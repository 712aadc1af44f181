"""Encodings, compression, and reading a peer's map member by member."""

from __future__ import annotations

import contextlib
import threading

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol import wire
from mailboat.protocol.errors import WireError
from mailboat.protocol.ids import canonical, is_canonical, new_id
from mailboat.protocol.wire import Fields
from testkit.forking import in_child
from testkit.segments import SESSION

BOTH = pytest.mark.parametrize("media_type", wire.MEDIA_TYPES)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


@BOTH
@given(message=VALUES)
def test_plain_values_survive_both_encodings(message: object, media_type: str) -> None:
    assert wire.decode(wire.encode(message, media_type), media_type) == message


@BOTH
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"[" * 100_000,
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xff\xfe",
        b"{}{}",
    ],
)
def test_what_is_no_message_is_refused(body: bytes, media_type: str) -> None:
    with pytest.raises(WireError, match=r"the body is no application/"):
        wire.decode(body, media_type)


def test_a_map_with_keys_that_are_no_text_is_refused() -> None:
    for body in (b"\x81\x01\x02", b"\x81\x91\x01\x02", b"\x81\x80\x02"):
        with pytest.raises(WireError):
            wire.decode(body, wire.MSGPACK_MEDIA_TYPE)


@given(st.binary(max_size=2000))
def test_a_body_survives_compression(body: bytes) -> None:
    assert wire.decompress(wire.compress(body)) == body
    assert wire.decompress(wire.compress(body), limit=len(body)) == body


@pytest.mark.parametrize("more", [-1, 0, 1, 3_000_000])
def test_what_grows_beyond_its_first_piece_is_whole(more: int) -> None:
    body = bytes(range(256)) * 1024 + b"x" * more if more >= 0 else (bytes(range(256)) * 1024)[:more]
    assert wire.decompress(wire.compress(body)) == body
    assert wire.decompress(wire.compress(body, stored=body), limit=2 * len(body)) == 2 * body
    with pytest.raises(WireError, match="more than"):
        wire.decompress(wire.compress(body), limit=len(body) - 1)


def test_a_bomb_costs_no_more_than_its_limit() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(300 * 1024 * 1024))
    with pytest.raises(WireError, match="more than 1000 bytes"):
        wire.decompress(bomb, limit=1000)


def test_a_window_beyond_the_agreed_is_refused() -> None:
    frame = zstandard.compress(b"x" * 1000)
    assert frame[4] >> 5 & 1
    unsized = frame[:4] + bytes([0, 30 - 10 << 3]) + frame[7:]  # a window of a gibibyte, and no content size
    assert zstandard.get_frame_parameters(unsized).window_size == 2**30
    with pytest.raises(WireError, match="does not decompress"):
        wire.decompress(unsized)


@given(st.binary(max_size=200).filter(lambda body: not body.startswith(b"\x28\xb5\x2f\xfd")))
def test_what_is_no_zstd_gives_no_content(body: bytes) -> None:
    content = None
    with contextlib.suppress(WireError):
        content = wire.decompress(body)
    assert not content  # refused, or frames that every decoder passes over


def fields(**values: object) -> Fields:
    return Fields(values, "m")


def test_members_are_read_by_kind() -> None:
    read = fields(t="x", w=5, n=1.5, f=True, i=SESSION, m={"a": 1}, e=[{"v": 1}, {"v": 2}])
    assert (read.text("t"), read.whole("w"), read.number("n"), read.flag("f"), read.id("i")) == (
        "x",
        5,
        1.5,
        True,
        SESSION,
    )
    assert read.mapping("m") == {"a": 1}
    assert read.each("e", 2, lambda each: each.whole("v")) == (1, 2)
    assert "t" in read
    assert "absent" not in read


def test_null_counts_as_missing() -> None:
    read = fields(t=None)
    assert (read.text("t", "d"), read.mapping("t"), read.each("t", 1, lambda each: each)) == ("d", {}, ())
    assert "t" not in read
    for ask in (read.text, read.whole, read.number, read.flag, read.id):
        with pytest.raises(WireError, match=r"m\.t: (is missing|expected)"):
            ask("t")


@pytest.mark.parametrize("value", [5, b"x", ["x"], {}, True, "\udc80", "x\ud800y"])
def test_what_is_no_text(value: object) -> None:
    with pytest.raises(WireError, match=r"m\.t"):
        fields(t=value).text("t")


@pytest.mark.parametrize("value", ["5", 1.0, True, -1, 2**63, None, []])
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(WireError, match=r"m\.w"):
        fields(w=value).whole("w")


@pytest.mark.parametrize("value", ["5", True, -0.1, 1e16, float("nan"), float("inf"), float("-inf"), None, []])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(WireError, match=r"m\.n"):
        fields(n=value).number("n")


@pytest.mark.parametrize("value", [0, 1, "true", None, []])
def test_what_is_no_flag(value: object) -> None:
    with pytest.raises(WireError, match=r"m\.f"):
        fields(f=value).flag("f")


@pytest.mark.parametrize("value", [[], "x", 5, {1: 2}, {b"a": 1}])
def test_what_is_no_map(value: object) -> None:
    with pytest.raises(WireError, match=r"m\.m"):
        fields(m=value).mapping("m")


@pytest.mark.parametrize("value", [{}, "x", b"x", 5, [5], [[]], [{}, {}, {}]])
def test_what_is_no_list_of_maps(value: object) -> None:
    with pytest.raises(WireError, match=r"m\.e"):
        fields(e=value).each("e", 2, lambda each: each)


@pytest.mark.parametrize("value", [None, 5, [], "text"])
def test_a_message_is_a_map(value: object) -> None:
    with pytest.raises(WireError, match="m: expected a map"):
        Fields(value, "m")


@pytest.mark.parametrize(
    "text", ["", "../x", SESSION.upper(), "{" + SESSION + "}", SESSION.replace("-", ""), SESSION + "\n", SESSION + "/"]
)
def test_only_canonical_ids_pass(text: str) -> None:
    assert not is_canonical(text)
    with pytest.raises(WireError, match="canonical"):
        canonical(text, "id")


@given(st.integers(), st.binary(min_size=10, max_size=10))
def test_new_ids_are_canonical_and_of_version_seven(milliseconds: int, entropy: bytes) -> None:
    made = new_id(milliseconds, entropy)
    assert is_canonical(made)
    assert (made[14], made[19] in "89ab") == ("7", True)


@given(st.integers(0, 2**47), st.integers(1, 2**46), st.binary(min_size=20, max_size=20))
def test_ids_made_later_sort_later(milliseconds: int, later: int, entropy: bytes) -> None:
    assert new_id(milliseconds, entropy[:10]) < new_id(milliseconds + later, entropy[10:])


def test_an_id_takes_exactly_its_entropy() -> None:
    with pytest.raises(ValueError, match="9 bytes, 10 are needed"):
        new_id(1, bytes(9))


class First(msgspec.Struct):
    first: int


class Second(msgspec.Struct):
    second: int


def test_decoders_are_made_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that make one of the same types at once end the process: msgspec shares what it has half found out."""
    made, inside, met = msgspec.msgpack.Decoder, threading.Lock(), threading.Event()

    def making(kind: type) -> object:
        if not inside.acquire(blocking=False):
            met.set()
            inside.acquire()
        try:
            met.wait(0.2)  # for another one; there must be none
            return made(kind)
        finally:
            inside.release()

    monkeypatch.setattr(wire, "_decoders", {})
    monkeypatch.setattr(msgspec.msgpack, "Decoder", making)
    body, start = msgspec.msgpack.encode({"first": 1, "second": 2}), threading.Barrier(4)

    read: list[object] = []

    def reading(kind: type) -> None:
        start.wait(10)
        with contextlib.suppress(wire.Untyped):
            read.append(wire.typed(kind, body))

    threads = [threading.Thread(target=reading, args=(kind,)) for kind in (First, First, Second, Second)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert not met.is_set()
    assert {*map(repr, read)} <= {"First(first=1)", "Second(second=2)"}
    assert read, "one of them has made one"
    assert [repr(wire.typed(kind, body)) for kind in (First, Second)] == ["First(first=1)", "Second(second=2)"]


def test_nobody_waits_for_a_decoder_that_another_thread_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked child there is no such thread, and what it has half found out stays so."""
    made, making, release = msgspec.msgpack.Decoder, threading.Event(), threading.Event()
    body = msgspec.msgpack.encode({"first": 1, "second": 2})

    def slowly(kind: type) -> object:
        making.set()
        assert release.wait(30)
        return made(kind)

    def refused() -> list[str]:
        """Those that are to be read otherwise."""
        told = []
        for kind in (First, Second):
            try:
                wire.typed(kind, body)
            except wire.Untyped:
                told.append(f"typed {kind.__name__}")
            try:
                wire.fitting(kind, {"first": 1, "second": 2})
            except wire.Untyped:
                told.append(f"fitting {kind.__name__}")
        return told

    everybody = ["typed First", "fitting First", "typed Second", "fitting Second"]
    monkeypatch.setattr(wire, "_decoders", {})
    monkeypatch.setattr(msgspec.msgpack, "Decoder", slowly)
    read: list[First] = []
    maker = threading.Thread(target=lambda: read.append(wire.typed(First, body)))
    maker.start()
    assert making.wait(10)
    try:
        assert refused() == everybody
        with in_child(refused) as child:
            assert child.result() == everybody
    finally:
        release.set()
        maker.join(30)
    assert read == [First(1)]
    assert refused() == []
