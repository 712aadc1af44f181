"""What a plan takes, declines and rejects: the pure decisions, and the plain values a plan is made of."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol import ConfigError, Info, Summary
from mailboat.protocol.negotiation import Policy, Reason, Wish
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Status
from mailboat.server.catalog import SessionState
from mailboat.server.policy import DAY, Account, Details, Plan, advice, month_of, place, rule
from mailboat.server.products import changed, product_name
from testkit.serverkit import AGENT, PRODUCT, fresh_session_id

NOW = 1_800_000_000.0


def offer(*, records: int = 10, errors: int = 0, version: str = "2.4.1", ended: float = NOW) -> Summary:
    counts = dict.fromkeys(COUNTERS, 0) | {"feature": records, "error": errors}
    return Summary(
        session_id=fresh_session_id(),
        info=Info(product=PRODUCT, application="importer", version=version),
        started=ended - 60,
        ended=ended,
        duration=60.0,
        status=Status.STOPPED,
        counts=tuple(counts[name] for name in COUNTERS),
        segments=(),
    )


def ruled(summary: Summary, plan: Plan | None, account: Account = Account(), agent: str = AGENT) -> tuple[str, str]:  # noqa: B008 - frozen
    ruling = rule(summary, plan, agent, NOW, account)
    assert bool(ruling.explanation) == (ruling.state is SessionState.REJECTED)
    return ruling.state.value, ruling.reason.value if ruling.reason else ""


def test_each_reason_of_the_policy_is_given() -> None:
    cases: list[tuple[Reason, Summary, Plan | None, Account, str]] = [
        (Reason.UNKNOWN_PRODUCT, offer(), None, Account(), AGENT),
        (Reason.WRONG_AGENT_TYPE, offer(), Plan(agents=("mailboat-go",)), Account(), AGENT),
        (Reason.UNSUPPORTED_VERSION, offer(), Plan(oldest_agent="0.2"), Account(), AGENT),
        (Reason.TOO_OLD, offer(ended=NOW - 31 * DAY), Plan(), Account(), AGENT),
        (Reason.TOO_OLD, offer(ended=NOW - 8 * DAY), Plan(history_days=7), Account(), AGENT),
        (Reason.OVER_PLAN, offer(records=10), Plan(records_per_month=100), Account(used=91), AGENT),
    ]
    for reason, summary, plan, account, agent in cases:
        assert ruled(summary, plan, account, agent) == ("rejected", reason.value)


def test_a_plan_is_filled_to_its_last_record() -> None:
    plan = Plan(records_per_month=100)
    assert ruled(offer(records=10), plan, Account(used=90)) == ("wanted", "")
    assert ruled(offer(records=11), plan, Account(used=90)) == ("rejected", "over_plan")
    assert "10 are left, and the session has 11" in rule(offer(records=11), plan, AGENT, NOW, Account(90)).explanation
    assert ruled(offer(records=0), plan, Account(used=500)) == ("rejected", "over_plan")
    assert ruled(offer(records=5000), plan, Account(used=500, taken=True)) == ("wanted", "")
    assert ruled(offer(records=5000), replace(plan, details=Details.NONE), Account(500)) == ("declined", "")


@pytest.mark.parametrize(
    ("plan", "calm", "alarmed"),
    [
        (Plan(), "wanted", "wanted"),
        (Plan(details=Details.ERRORS), "declined", "wanted"),
        (Plan(details=Details.NONE), "declined", "declined"),
        (Plan(details=Details.SHARE, share=0.0), "declined", "declined"),
        (Plan(details=Details.SHARE, share=1.0), "wanted", "wanted"),
        (Plan(versions={"2.*": Details.NONE}), "declined", "declined"),
        (Plan(versions={"1.*": Details.NONE}), "wanted", "wanted"),
        (Plan(details=Details.NONE, versions={"2.4.1": Details.ERRORS, "2.*": Details.ALL}), "declined", "wanted"),
    ],
)
def test_details_are_wanted_as_the_plan_says(plan: Plan, calm: str, alarmed: str) -> None:
    assert ruled(offer(), plan)[0] == calm
    assert ruled(offer(errors=1), plan)[0] == alarmed


def test_a_share_is_a_share_and_the_same_each_time() -> None:
    plan = Plan(details=Details.SHARE, share=0.25)
    offers = [offer() for _ in range(2000)]
    first = [ruled(each, plan)[0] for each in offers]
    assert first == [ruled(each, plan)[0] for each in offers]
    assert 0.2 < first.count("wanted") / len(offers) < 0.3  # 500 +- 19
    wider = replace(plan, share=0.5)
    assert all(ruled(each, wider)[0] == "wanted" for each, was in zip(offers, first, strict=True) if was == "wanted")


@given(st.uuids())
def test_a_place_is_between_zero_and_one(session_id: object) -> None:
    assert 0.0 <= place(str(session_id)) < 1.0


def test_months_are_the_calendars() -> None:
    def at(*day: int) -> int:
        return month_of(datetime(*day, tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]

    assert at(2026, 12, 31, 23, 59, 59) + 1 == at(2027, 1, 1)
    assert at(2026, 2, 1) == at(2026, 2, 28, 23)
    assert at(2027, 3, 1) - at(2026, 3, 1) == 12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nothing", 1),
        ("details", "some"),
        ("details", None),
        ("details", ["all"]),
        ("share", 1.5),
        ("share", "a"),
        ("share", True),
        ("share", float("nan")),
        ("versions", ["1.*"]),
        ("versions", {"1.*": "some"}),
        ("versions", {"x" * 201: "all"}),
        ("versions", {str(n): "all" for n in range(101)}),
        ("records_per_month", -1),
        ("records_per_month", 1.5),
        ("records_per_month", "many"),
        ("max_age_days", -1),
        ("max_age_days", 0),
        ("history_days", 0.0),
        ("max_age_days", float("inf")),
        ("history_days", "week"),
        ("agents", "mailboat-python"),
        ("agents", [1]),
        ("oldest_agent", 2),
        ("oldest_agent", "newest"),
        ("sync_interval", 0.1),
        ("backoff_floor", -1),
        ("max_rate", 100),
    ],
)
def test_an_impossible_plan_is_refused_by_its_field(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"plan.{name}"):
        Plan.of({name: value})


def test_a_plan_comes_back_from_its_plain_values() -> None:
    values: dict[str, Any] = {
        "details": "share",
        "share": 0.5,
        "versions": {"1.*": "none"},
        "records_per_month": 10,
        "max_age_days": 3.0,
        "history_days": 90.0,
        "agents": ["mailboat-python"],
        "oldest_agent": "0.1",
        "sync_interval": 600.0,
        "backoff_floor": 30.0,
        "max_rate": 4096,
    }
    assert Plan.of(values).values() == values
    assert Plan.of(Plan().values()) == Plan()


def test_agents_are_asked_to_keep_to_the_calmest_of_their_plans() -> None:
    calm = Plan(sync_interval=600.0, max_rate=9000, details=Details.ERRORS)
    calmer = Plan(sync_interval=60.0, backoff_floor=30.0, max_rate=4096, versions={"1.*": Details.ERRORS})
    assert advice(()) == Policy(details=Wish.SOME)
    assert advice([(Plan(), "1.0")]) == Policy()
    assert advice([(calm, "2.0")]) == Policy(sync_interval=600.0, max_rate=9000, details=Wish.ERRORS)
    assert advice([(calm, "1.0"), (calmer, "1.0")]) == Policy(600.0, 30.0, max_rate=4096, details=Wish.ERRORS)
    assert advice([(calmer, "1.0"), (calmer, "2.0")]).details is Wish.SOME
    assert advice([(Plan(details=Details.SHARE), "1.0")]).details is Wish.SOME


def test_changing_a_plan_leaves_the_rest_of_it() -> None:
    plan = changed({"details": "errors", "history_days": 7}, {"share": 0.5, "history_days": None})
    assert Plan.of(plan) == Plan(details=Details.ERRORS, share=0.5)
    with pytest.raises(ConfigError, match=r"plan\.share"):
        changed({}, {"share": 2})


@pytest.mark.parametrize("name", ["", " a", "a ", "x" * 201, "a\nb", "\ud800", None, 7])
def test_an_impossible_name_is_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="product="):
        product_name(name)
