"""Errors first (delivery.md, section 5; L5): at once, then held together by a timer, grouped, vetoed, put off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.agent import Alert
from mailboat.agent.alerts import Alerts, OnAlert
from mailboat.agent.eligibility import Eligibility, ErrorSends
from mailboat.protocol.limits import ALERT_WINDOW, MAX_ALERT_RECORDS
from mailboat.protocol.records import Kind, Level
from testkit.recording import SECOND, Time
from testkit.timers import VirtualTimers

INTERVAL = 300.0


@dataclass
class Sending:
    """Alerts and eligibility as the agent puts them together, in virtual time."""

    time: Time = field(default_factory=Time)
    sent_at: list[float] = field(default_factory=list)
    recorded: int = 0

    def __post_init__(self) -> None:
        self.timers = VirtualTimers(self.time)
        self.begun = self.time.monotonic
        clocks = self.time.clocks
        self.eligibility = Eligibility(clocks, lambda: self.recorded, self._sent, INTERVAL, self.timers)
        self.alerts = Alerts(clocks)
        self.alerts.enter(self.timers, self.eligibility.errors)

    def _sent(self) -> None:
        self.sent_at.append(self.now)

    @property
    def now(self) -> float:
        return (self.time.monotonic - self.begun) / SECOND

    def error(self, name: str = "bad", level: int = Level.ERROR) -> None:
        self.alerts.noted(Kind.EVENT, name, {"a": 1}, level, "text")

    def go_on(self, seconds: float = 0.0) -> None:
        self.timers.go_on(seconds)


def collect(into: list[Alert], answer: bool | float | None = None) -> OnAlert:
    def callback(alert: Alert) -> bool | float | None:
        into.append(alert)
        return answer

    return callback


def test_an_error_is_sent_at_once_and_later_ones_are_held_together_by_a_timer() -> None:
    sending = Sending()
    sending.error()
    sending.go_on()
    assert sending.sent_at == [0.0]
    for _ in range(50):
        sending.error()
        sending.go_on(1.0)
    assert sending.sent_at == [0.0]
    assert sending.timers.armed == 1
    sending.go_on(1000.0)  # no further error comes: the timer sends, and only once
    assert sending.sent_at == [0.0, INTERVAL]
    assert sending.timers.armed == 0
    sending.error()
    sending.go_on()
    assert sending.sent_at[2:] == [1050.0]


def test_errors_of_one_moment_are_told_together_the_first_one_first() -> None:
    sending, told = Sending(), list[Alert]()
    sending.alerts.add(collect(told))
    sending.error("first")
    sending.go_on(ALERT_WINDOW / 2)
    sending.error("second", Level.CRITICAL)
    assert (told, sending.sent_at) == ([], [])
    sending.go_on(ALERT_WINDOW / 2)
    sending.error("too late")
    (alert,) = told
    assert [(each.name, each.kind, each.level, each.message, each.attributes) for each in alert] == [
        ("first", "event", Level.ERROR, "text", {"a": 1}),
        ("second", "event", Level.CRITICAL, "text", {"a": 1}),
    ]
    assert alert[0].time == pytest.approx((sending.begun + sending.time.offset) / SECOND)
    assert (alert[0].sequence, len(alert), alert.omitted) == (-1, 2, 0)
    assert sending.sent_at == [pytest.approx(ALERT_WINDOW)]
    sending.go_on(ALERT_WINDOW)
    assert [each.name for each in told[1]] == ["too late"]


def test_a_flood_is_told_in_part_and_counted() -> None:
    sending, told = Sending(), list[Alert]()
    sending.alerts.add(collect(told))
    for number in range(1000):
        sending.error(f"bad.{number}")
    assert sending.timers.armed == 1  # the flood reaches the loop as one
    sending.go_on(ALERT_WINDOW)
    assert [len(each) for each in told] == [MAX_ALERT_RECORDS]
    assert (told[0][0].name, told[0].omitted) == ("bad.0", 1000 - MAX_ALERT_RECORDS)


@pytest.mark.parametrize("answers", [(False,), (None, False), (False, 10.0), (10.0, False, None)])
def test_one_veto_is_enough_and_holds_for_these_errors_only(answers: tuple[bool | float | None, ...]) -> None:
    sending, told = Sending(), list[Alert]()
    allowed = False

    def once_allowed(answer: bool | float | None) -> OnAlert:
        def callback(alert: Alert) -> bool | float | None:
            told.append(alert)
            return None if allowed else answer

        return callback

    for answer in answers:
        sending.alerts.add(once_allowed(answer))
    sending.error()
    sending.go_on(10 * INTERVAL)
    assert len(told) == len(answers)
    assert sending.sent_at == []
    allowed = True
    sending.error()
    sending.go_on(ALERT_WINDOW)
    assert sending.sent_at == [pytest.approx(10 * INTERVAL + ALERT_WINDOW)]


def test_a_send_is_put_off_by_the_longest_delay_and_never_by_a_later_error() -> None:
    sending, told = Sending(), list[Alert]()
    sending.alerts.add(collect(told, 5.0))
    sending.alerts.add(collect(told, 20))
    sending.alerts.add(collect(told, True))
    sending.error()
    sending.go_on(10.0)
    sending.error()
    sending.go_on(1000.0)
    assert sending.sent_at == [pytest.approx(20.0 + ALERT_WINDOW)]
    assert len(told) == 6


@pytest.mark.parametrize("answer", ["later", -1.0, float("nan"), float("inf"), [5]])
def test_a_callback_that_fails_or_answers_nonsense_is_counted_and_the_session_is_sent(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(alert: Alert) -> None:
        raise ZeroDivisionError(len(alert))

    sending = Sending()
    sending.alerts.add(failing)
    sending.alerts.add(lambda _: answer)  # type: ignore[arg-type, return-value] # what an untyped application may do
    with caplog.at_level(logging.WARNING, "mailboat"):
        sending.error()
        sending.go_on(ALERT_WINDOW)
    assert sending.alerts.failures == 2
    assert sending.sent_at == [pytest.approx(ALERT_WINDOW)]
    assert [record.name for record in caplog.records] == ["mailboat"] * 2


def test_errors_recorded_by_a_callback_raise_no_alert() -> None:
    sending, told = Sending(), list[Alert]()

    def recording(alert: Alert) -> None:
        told.append(alert)
        sending.error("again")

    sending.alerts.add(recording)
    sending.error()
    sending.go_on(10 * INTERVAL)
    assert [[each.name for each in alert] for alert in told] == [["bad"]]
    assert len(sending.sent_at) == 1


@pytest.mark.parametrize("end", [Alerts.leave, lambda alerts: setattr(alerts._loop, "closed", True)])
def test_after_the_end_nothing_is_told(end: Callable[[Alerts], None]) -> None:
    sending, told = Sending(), list[Alert]()
    sending.alerts.add(collect(told))
    end(sending.alerts)
    sending.error()
    sending.error()
    sending.go_on(10.0)
    assert (told, sending.sent_at, sending.timers.armed) == ([], [], 0)


def test_without_leave_to_send_the_application_is_told_all_the_same() -> None:
    sending, told = Sending(), list[Alert]()
    sending.alerts.add(collect(told))
    sending.alerts.enter(sending.timers, None)
    sending.error()
    sending.go_on(10.0)
    assert (len(told), sending.sent_at) == (1, [])


def test_a_closed_eligibility_sends_nothing_that_was_held() -> None:
    sending = Sending()
    sending.error()
    sending.go_on()
    sending.error()
    sending.go_on(1.0)
    sending.eligibility.close()
    sending.go_on(10 * INTERVAL)
    assert sending.sent_at == [0.0]


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), min_size=1, max_size=30),
    st.floats(0, 1000),
)
def test_sends_keep_their_distance_and_every_error_is_sent_in_time(
    errors: list[tuple[float, float]], interval: float
) -> None:
    """Each error, `pause` after the one before and to be put off by `delay`, is sent no later than it had to be."""
    value, now, sends, latest = ErrorSends(interval), 0.0, list[float](), 0.0
    for pause, delay in errors:
        arrival = now + pause
        if value.due is not None and value.due <= arrival:
            now = value.due
            sends.append(now)
            value = value.sent(now)
        now = arrival
        latest = max(latest, now + delay + interval)
        value = value.wanted(now, delay)
        assert value.due is not None
        assert value.due >= now
    assert value.due is not None
    sends.append(value.due)
    assert all(b - a >= interval - 1e-6 for a, b in pairwise(sends))
    assert sends[-1] <= latest
