"""Recording calls: whatever they are given, and from however many threads at once."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum
from itertools import count
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from yarl import URL

from mailboat.agent.journal import Half
from mailboat.agent.recorder import Recorder
from mailboat.agent.secret_names import REDACTED
from mailboat.protocol.limits import MIB
from mailboat.protocol.records import Kind
from testkit.disk import Unsynced
from testkit.recording import Rig, only, waiting


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, files=Unsynced())


class NoText:
    def __str__(self) -> str:
        raise LookupError("no text")


class OddMap(dict[str, object]):
    def items(self) -> object:  # type: ignore[override]
        raise LookupError("no entries")


class NoZone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        raise LookupError("no such zone")

    dst = utcoffset

    def tzname(self, _: datetime | None) -> str:
        return "nowhere"


def branching() -> list[object]:
    """Holds itself three times, at any depth: gone through to the end it would be without end."""
    made: list[object] = []
    made.extend([made, made, made])
    return made


@pytest.mark.parametrize(
    "value",
    [
        object(),
        NoText(),
        OddMap(a=1),
        2**70,
        -(10**5000),
        "\ud800",
        {1, 2},
        range(10**9),
        branching(),
        {(1, 2): {(3,): 4}},
        {NoText(): 1},
        memoryview(b"x"),
        [[[[[object()]]]]],
        datetime(2026, 11, 25, tzinfo=NoZone()),
        float("nan"),
        b"\xff" * 10,
        "x" * 3_000_000,
        [object()] * 100_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_value_is_its_record_and_those_beside_it_are_kept(rig: Rig, value: object) -> None:
    rig.recorder.feature("before")
    rig.recorder.feature("odd", value=value)
    rig.recorder.value("number", value)  # type: ignore[arg-type] # that is the point
    rig.recorder.event("level", level=value, message=value)  # type: ignore[arg-type] # that is the point
    rig.recorder.set_installation("inst", {"value": value})
    rig.recorder.feature("after")
    assert rig.end()
    story = only(waiting(rig.store))
    assert story.names == ["before", "odd", "number", "level", "inst", "after"]
    assert story.gaps == []
    assert story.lost == {}


class Unbound:
    """As proxies of web frameworks are, outside of a request."""

    @property  # type: ignore[misc] # that is the point
    def __class__(self) -> Any:  # noqa: ANN401 - none
        raise LookupError("outside of a request")


class OddNumber(int):
    def __int__(self) -> int:
        raise LookupError("no number")


class OddText(str):
    __slots__ = ()

    def upper(self) -> str:
        raise LookupError("no text")

    __str__ = upper


@pytest.mark.parametrize("kind", [Unbound, OddNumber, OddText])
def test_what_a_value_says_of_itself_harms_nobody(rig: Rig, kind: type) -> None:
    value = kind()
    rig.recorder.feature("odd", value=value, within=[{"value": value}])
    rig.recorder.value("number", value, unit=value)
    rig.recorder.event("level", level=value, message=value)
    rig.recorder.exception(ValueError("boom"), value, {"value": value})
    rig.recorder.set_installation(value, {"value": value})
    assert rig.end()
    story = only(waiting(rig.store))
    assert (len(story.records), story.gaps, story.lost) == (5, [], {})


def test_eight_threads_lose_and_double_nothing_and_each_keeps_its_order(rig: Rig) -> None:
    def record(thread: int) -> None:
        emit = rig.recorder.emitter("placed", ["thread", "number"])
        for number in range(0, 5000, 2):
            rig.recorder.feature("said", thread=thread, number=number)
            emit(thread, number + 1)

    threads = [threading.Thread(target=record, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rig.step()
    for thread in threads:
        thread.join()
    assert rig.recorder.recorded == 40_000
    assert rig.end()
    story = only(waiting(rig.store))
    assert story.numbers == list(range(40_000))
    for each in range(8):
        own = [record.attributes["number"] for record in story.records if record.attributes["thread"] == each]
        assert own == list(range(5000))


def test_a_burst_while_the_writer_is_held_up_takes_all_the_growth_then_loses_by_count(rig: Rig) -> None:
    """However small the journal is: its descriptors are few, so what is added comes in larger halves."""
    text, kept = "x" * 100_000, 56 * MIB // 100_000
    for _ in range(kept):
        rig.recorder.feature("in.time", text=text)
    assert rig.recorder.lost.total() == 0
    for _ in range(200):
        rig.recorder.feature("too.much", text=text)
    lost = rig.recorder.lost["journal_full"]
    assert 0 < lost < 200
    rig.step()
    rig.recorder.feature("room.again")
    assert rig.end()
    story = only(waiting(rig.store))
    assert story.names == ["in.time"] * kept + ["too.much"] * (200 - lost) + ["room.again"]
    assert story.lost == {"journal_full": lost}


class Growing(Unsynced):
    """The disk gives room for another half, and while it does, other threads go on."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = lambda: None

    def allocate(self, fd: int, offset: int, length: int) -> None:
        super().allocate(fd, offset, length)
        self.meanwhile()


def test_what_is_recorded_while_the_journal_grows_costs_no_look_at_all_that_the_half_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Growing()
    rig, counted, count_anew = Rig(tmp_path, files=files), list[int](), Recorder._count_anew

    def counting(self: Recorder, half: Half, otherwise: list[int]) -> list[int]:
        counted.append(half.generation)
        return count_anew(self, half, otherwise)

    monkeypatch.setattr(Recorder, "_count_anew", counting)
    files.meanwhile = lambda: rig.recorder.event("between")
    for number in range(4):  # the second half is there, the following ones are made
        rig.recorder.feature(f"r{number}")
        assert rig.recorder.turn()
    assert counted == []
    rig.end()
    story = only(waiting(rig.store))
    assert sorted(story.names) == ["between"] * 3 + ["r0", "r1", "r2", "r3"]
    assert story.numbers == list(range(7))


def test_real_signals_that_record_while_their_thread_records(rig: Rig) -> None:
    inner: list[str] = []
    numbers = count()

    def handler(_signal: int, _frame: FrameType | None) -> None:
        name = f"inner-{next(numbers)}"  # taken first: a handler is itself interrupted by the next signal
        rig.recorder.feature(name, text="x" * 300)
        inner.append(name)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for number in range(30_000):
            rig.recorder.feature(f"outer-{number}")
            if not number % 500:
                rig.step()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert inner
    assert rig.end()
    names = only(waiting(rig.store)).names
    assert [name for name in names if name.startswith("outer")] == [f"outer-{number}" for number in range(30_000)]
    assert sorted(name for name in names if name.startswith("inner")) == sorted(inner)


def test_an_emitter_is_the_same_for_the_same_declaration_and_takes_its_fields_only(rig: Rig) -> None:
    placed = rig.recorder.emitter("placed", ["user"])
    assert rig.recorder.emitter("placed", ["user"]) is placed
    assert rig.recorder.emitter("placed", ["user"], Kind.VALUE) is not placed
    with pytest.raises(TypeError):
        placed()
    with pytest.raises(ValueError, match="none that can be recorded by position"):
        rig.recorder.emitter("placed", ["user"], Kind.POSITIONAL)
    with pytest.raises(ValueError, match="at most 64"):
        rig.recorder.emitter("wide", [str(each) for each in range(65)])


def test_nothing_is_recorded_after_the_end_and_nothing_raised(rig: Rig) -> None:
    placed = rig.recorder.emitter("placed", ["user"])
    rig.recorder.feature("in.time")
    assert rig.end()
    rig.recorder.feature("too.late", odd=object())
    placed(1)
    rig.recorder.stop()
    assert rig.recorder.turn()
    assert only(waiting(rig.store)).names == ["in.time"]
    assert rig.recorder.recorded == 1


AT_EIGHT = datetime(2026, 11, 25, 8, 30, tzinfo=timezone(timedelta(hours=1)))


class Price(float):
    pass


class Colour(IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (AT_EIGHT, "2026-11-25T07:30:00Z"),
        (AT_EIGHT.replace(microsecond=25), "2026-11-25T07:30:00.000025Z"),
        (AT_EIGHT.replace(year=1900), "1900-11-25T07:30:00Z"),
        (AT_EIGHT.replace(tzinfo=None), "2026-11-25T08:30:00"),
        (AT_EIGHT.date(), "2026-11-25"),
        (timedelta(seconds=90), "PT90S"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Price(1.5), 1.5),
        (Colour.RED, 3),
        (("a", 1), ["a", 1]),
        ({"deep": [{"er": None}]}, {"deep": [{"er": None}]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_reads_alike_by_keyword_by_position_and_nested(rig: Rig, value: object, read: object) -> None:
    placed = rig.recorder.emitter("placed", ["value"])
    for _ in range(2):  # the name is judged at first, and known then
        rig.recorder.feature("by keyword", value=value)
    placed(value)
    assert rig.end()
    found = [record.attributes["value"] for record in only(waiting(rig.store)).records]
    assert found == [read] * 3


def test_secrets_are_taken_out_of_every_kind_of_record_before_they_reach_the_journal(rig: Rig) -> None:
    recorder, planted = rig.recorder, "hunter2"
    hidden = [
        {"password": planted},
        {"a": [{"b": {"api_key": planted}}]},
        ({"Cookie": planted},),
        {b"authorization": planted},
        Hashable(pin=planted),
    ]
    for _ in range(2):
        for value in hidden:
            recorder.feature("f", note=value)
            recorder.value("v", 1.5, note=value)
            recorder.value("v", value)  # type: ignore[arg-type] # that is the point
            recorder.event("e", note=value)
            recorder.timing("t", 5, {"note": value})
            recorder.emitter("placed", ["note", "passphrase", "token"])(value, planted, planted)
        recorder.feature("f", password=planted, access_token=planted, n=1)
        recorder.value("v", 1.5, secret=planted)
        recorder.event("e", authorization=planted)
        recorder.exception(ValueError("boom"), None, {"session_id": planted})
        recorder.set_installation("inst", {"jwt": planted})
        recorder.feature("f", note={1, 2}, big={"cvv": planted, "text": "x" * 3_000_000})
    held = b"".join(bytes(half.memory) for half in rig.journal.halves)
    assert planted.encode() not in held
    assert rig.end()
    story = only(waiting(rig.store))
    assert len(story.records) == 2 * (len(hidden) * 6 + 6)
    assert planted not in repr(story.records)
    assert repr(story.records).count(REDACTED) > 2 * len(hidden) * 6


@dataclass
class Login:
    user: str
    password: object
    more: object = None
    left_out: str = field(default="kept quiet", repr=False)


@attrs.define
class OfAttrs:
    user: str
    password: str


class OfMsgspec(msgspec.Struct):
    user: str
    password: str


class OfPydantic(pydantic.BaseModel):
    user: str
    password: str


class Pair(NamedTuple):
    user: str
    password: str


class Failing:
    """Both as a value and as a part of one."""

    def __init__(self) -> None:
        self.password = "hunter2"

    def __repr__(self) -> str:
        raise LookupError(f"password={self.password!r}")


def endless() -> Login:
    made = Login("visible", "hunter2")
    made.more = [made, {"again": made}]
    return made


def deep() -> Login:
    made = Login("visible", "hunter2")
    for _ in range(3000):
        made = Login("visible", "hunter2", made)
    return made


def test_secrets_are_taken_out_of_what_objects_say_of_themselves(rig: Rig) -> None:
    planted = "hunter2"
    said: list[object] = [
        Login("visible", planted),
        Login("visible", planted, [Login("visible", [planted])]),
        OfAttrs("visible", planted),
        OfMsgspec("visible", planted),
        OfPydantic(user="visible", password=planted),
        SimpleNamespace(user="visible", password=planted),
        Pair("visible", planted),
        [Pair("cookie of the visible", planted)],
        Login("visible", planted, "x" * 3_000_000),
        Login("visible", planted * 500_000),
        endless(),
        URL(f"https://user:{planted}@visible.example.com/"),
    ]
    unsaid: list[object] = [deep(), Failing(), Login("a", Failing()), Pair("a", Failing()), [Failing()] * 100]  # type: ignore[arg-type]
    placed = rig.recorder.emitter("placed", ["value", "number"])
    for value in [*said, *unsaid]:
        for _ in range(2):  # the name is judged at first, and known then
            rig.recorder.feature("f", value=value)
        rig.recorder.feature("f", value=[{"within": (value, value)}], key={(1, 2): value})
        rig.recorder.event("f", message=value)  # type: ignore[arg-type] # that is the point
        rig.recorder.set_installation("f", {"value": value})
        placed(value, 1)
    held = b"".join(bytes(half.memory) for half in rig.journal.halves)
    assert planted.encode() not in held
    assert b"kept quiet" not in held
    assert rig.end()
    story = only(waiting(rig.store))
    assert (len(story.records), story.gaps, story.lost) == (6 * len([*said, *unsaid]), [], {})
    assert planted not in repr(story.records)
    assert all("visible" in repr(record) for record in story.records[: 6 * len(said)])


def test_a_named_tuple_is_a_map(rig: Rig) -> None:
    rig.recorder.feature("f", login=Pair("x", "hunter2"), within=[Pair("y", "hunter2")])
    assert rig.end()
    (record,) = only(waiting(rig.store)).records
    assert record.attributes == {
        "login": {"user": "x", "password": REDACTED},
        "within": [{"user": "y", "password": REDACTED}],
    }


class Hashable(dict[str, str]):
    def __hash__(self) -> int:  # type: ignore[override]
        return 1


def test_numbers_of_tokens_stay_and_declared_secrets_do_not(rig: Rig) -> None:
    emit = rig.recorder.emitter("said", ["tokens_used", "password"])
    emit(812, "hunter2")
    emit(True, "hunter2")
    emit("abc", None)
    assert rig.end()
    found = [tuple(record.attributes.values()) for record in only(waiting(rig.store)).records]
    assert found == [(812, REDACTED), (True, REDACTED), (REDACTED, REDACTED)]


def test_a_plain_record_under_known_names_takes_the_direct_way(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    odd: list[object] = []
    keep = rig.recorder._without_secrets

    def noted(fields: Sequence[Any]) -> Sequence[Any]:
        odd.append(fields[2])
        return keep(fields)

    monkeypatch.setattr(rig.recorder, "_without_secrets", noted)
    emit = rig.recorder.emitter("placed", ["a", "b", "c"])
    for _ in range(3):
        rig.recorder.feature("plain", a=1, b="x", c=None, d=1.5, e=True, f=b"y")
        rig.recorder.value("plain", 3, "bytes", a=1)
        rig.recorder.event("plain", a=1)
        emit(1, None, "x")
    assert odd == ["plain"]
    rig.recorder.feature("listed", a=[1])
    assert odd == ["plain", "listed"]
    assert rig.end()


def test_recording_causes_no_garbage_collection(rig: Rig) -> None:
    emit = rig.recorder.emitter("placed", ["a", "b"])
    for step in range(2):
        gc.collect()  # so that what others have made before brings none of it about
        before = [generation["collections"] for generation in gc.get_stats()]
        for number in range(1000):  # more than the threshold of the youngest generation, if each left one container
            rig.recorder.feature("plain", a=number, b="x", c=1.5)
            emit(number, "x")
        after = [generation["collections"] for generation in gc.get_stats()]
        if step:  # the first time names are judged
            assert after == before
    assert rig.end()
