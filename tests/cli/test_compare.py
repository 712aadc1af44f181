"""The demo's comparison must be able to fail: losses, doubles and forgeries made up here are all named."""

import random

from mailboat.cli.demo.compare import Comparison, Given, SessionComparison, compare, content_of


def record(sequence: int, name: str, **rest: object) -> dict[str, object]:
    return {"sequence": sequence, "time": 1.5, "kind": "feature", "name": name, "attributes": {"n": 1}, **rest}


def told(*names: str) -> list[str]:
    return [content_of({"kind": "feature", "name": name, "attributes": {"n": 1}}) for name in names]


def given(*names: str, first: int = 0) -> list[Given]:
    return [Given.of(record(sequence, name)) for sequence, name in enumerate(names, first)]


def one(names: list[str], records: list[Given], *, killed: bool = False) -> SessionComparison:
    (found,) = compare({"s": names}, {"s": records}, killed={"s"} if killed else set()).sessions
    return found


def test_all_there_once_and_in_order_holds() -> None:
    found = compare({"s": told("a", "b", "c")}, {"s": given("a", "b", "c")})
    assert found.holds
    assert (found.total("told"), found.total("kept"), found.total("missing")) == (3, 3, 0)


def test_the_order_in_which_pages_came_does_not_matter(seed: int) -> None:
    records = given(*"abcdefgh")
    random.Random(seed).shuffle(records)
    assert one(told(*"abcdefgh"), records).holds


def test_nothing_to_compare_does_not_hold() -> None:
    assert not Comparison(()).holds
    assert not compare({}, {}).holds
    assert not compare({"s": []}, {"s": []}).holds


def test_a_lost_record_is_named() -> None:
    found = one(told("a", "b", "c"), [*given("a"), *given("c", first=2)])
    assert not found.holds
    assert found.missing == tuple(told("b"))
    assert found.skipped == (1,)


def test_a_lost_last_record_is_named() -> None:
    assert one(told("a", "b"), given("a")).missing == tuple(told("b"))


def test_a_whole_lost_session_is_missing() -> None:
    found = compare({"s": told("a"), "t": told("b", "c")}, {"s": given("a")})
    assert not found.holds
    assert found.total("missing") == 2


def test_a_record_that_came_under_one_number_twice_is_a_double() -> None:
    found = one(told("a", "b"), [*given("a", "b"), *given("b", first=1)])
    assert not found.holds
    assert (found.duplicated, found.unknown, found.kept) == (tuple(told("b")), (), 2)


def test_a_record_that_came_again_under_another_number_is_a_double() -> None:
    found = one(told("a", "b"), given("a", "b", "a"))
    assert not found.holds
    assert found.duplicated == tuple(told("a"))


def test_what_was_told_twice_may_be_there_twice() -> None:
    assert one(told("a", "a"), given("a", "a")).holds
    assert one(told("a", "a"), given("a")).missing == tuple(told("a"))
    assert one(told("a", "a"), given("a", "a", "a")).duplicated == tuple(told("a"))


def test_a_record_that_was_never_told_is_unknown() -> None:
    found = one(told("a"), given("a", "x"))
    assert not found.holds
    assert found.unknown == tuple(told("x"))
    assert not compare({"s": told("a")}, {"s": given("a"), "t": given("x")}).holds


def test_records_in_another_order_are_named() -> None:
    found = one(told("a", "b", "c"), given("a", "c", "b"))
    assert not found.holds
    assert found.disordered == tuple(told("c", "b"))
    assert not found.missing


def test_order_is_judged_apart_from_losses() -> None:
    found = one(told("a", "b", "c", "d"), [*given("a"), *given("c", "d", first=2)])
    assert found.missing == tuple(told("b"))
    assert found.disordered == ()


def test_the_call_that_the_kill_interrupted_may_have_been_kept() -> None:
    found = one(told("a", "b"), given("a", "b", "c"), killed=True)
    assert found.holds
    assert found.in_flight == tuple(told("c"))


def test_more_than_the_one_interrupted_call_is_not_excused() -> None:
    assert one(told("a"), given("a", "x", "y"), killed=True).unknown == tuple(told("x", "y"))


def test_only_the_last_record_can_have_been_interrupted() -> None:
    assert one(told("a", "b"), given("a", "x", "b"), killed=True).unknown == tuple(told("x"))


def test_a_kill_excuses_neither_loss_nor_double() -> None:
    assert one(told("a", "b"), given("a"), killed=True).missing == tuple(told("b"))
    assert one(told("a", "b"), given("a", "b", "b"), killed=True).duplicated == tuple(told("b"))


def test_contents_differ_in_every_field_that_the_application_knows() -> None:
    base = record(0, "a", value=1, unit="bytes", level=20, message="m", context="c")
    changes = {"kind": "value", "name": "b", "attributes": {"n": 2}, "value": 2, "unit": "", "level": 30}
    for field, other in {**changes, "message": "n", "context": "d"}.items():
        assert content_of({**base, field: other}) != content_of(base), field


def test_what_the_agent_reads_from_a_clock_is_not_compared() -> None:
    assert content_of(record(0, "a", duration=0.25)) == content_of({**record(7, "a", duration=0.5), "time": 99.0})


def test_absent_and_empty_by_null_are_the_same() -> None:
    assert content_of(record(0, "a", unit=None)) == content_of(record(0, "a"))
