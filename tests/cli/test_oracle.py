"""The pipe between the program and its judge."""

import os

from mailboat.cli.demo.compare import content_of
from mailboat.cli.demo.oracle import Oracle, Told


def written(*calls: tuple[str, dict[str, object]]) -> list[bytes]:
    reading, writing = os.pipe()
    told = Told(writing)
    for what, facts in calls:
        told.line(what, **facts)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.readlines()


def test_records_are_kept_by_session_in_order() -> None:
    oracle = Oracle()
    first: dict[str, object] = {"kind": "feature", "name": "a", "attributes": {"n": 1}}
    other: dict[str, object] = {"kind": "value", "name": "b", "attributes": {}, "value": 2, "unit": "bytes"}
    calls: list[tuple[str, dict[str, object]]] = [
        ("started", {"session": "s"}),
        ("record", first),
        ("record", other),
        ("parsed", {"module": "m"}),
        ("started", {"session": "t"}),
        ("record", first),
    ]
    for line in written(*calls):
        assert oracle.take(line) is not None
    assert oracle.told == {"s": [content_of(first), content_of(other)], "t": [content_of(first)]}
    assert (oracle.records, oracle.parsed, oracle.session_id, oracle.kinds) == (3, 1, "t", {"feature": 2, "value": 1})


def test_a_line_that_death_cut_short_was_not_told() -> None:
    oracle = Oracle()
    oracle.take(b'["started", {"session": "s"}]\n')
    assert oracle.take(b'["record", {"kind": "fea') is None
    assert oracle.take(b'["record", {"kind": "feature", "name": "a", "attributes": {}}]') is None
    assert oracle.told == {"s": []}


def test_a_line_larger_than_the_pipe_is_written_whole() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        Told(writing).record("event", "x" * 300_000, {})
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        (line,) = pipe.readlines()
    os.waitpid(child, 0)
    assert len(line) > 300_000
