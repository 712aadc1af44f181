"""The ready-made policies for links, and what the configuration takes."""

from __future__ import annotations

import pytest

from mailboat.agent import AgentConfig, ConfigError
from mailboat.agent.link_policy import (
    LinkState,
    Priority,
    always,
    both,
    never_metered,
    quiet_hours,
    urgent_when_metered,
)

FREE, METERED = LinkState(), LinkState(metered=True, name="lte")
URGENT, ORDINARY = Priority.URGENT, Priority.ORDINARY


def test_metered_links() -> None:
    assert always(METERED, ORDINARY)
    assert urgent_when_metered(FREE, ORDINARY)
    assert urgent_when_metered(METERED, URGENT)
    assert not urgent_when_metered(METERED, Priority.WANTED)
    assert never_metered(FREE, ORDINARY)
    assert not never_metered(METERED, URGENT)


@pytest.mark.parametrize(
    ("begin", "end", "hour", "quiet"),
    [
        (22, 6, 23.5, True),
        (22, 6, 0.0, True),
        (22, 6, 5.99, True),
        (22, 6, 6.0, False),
        (22, 6, 12.0, False),
        (12, 13.5, 13.0, True),
        (12, 13.5, 13.5, False),
        (0, 24, 3.0, True),
        (8, 8, 8.0, False),
    ],
)
def test_quiet_hours(begin: float, end: float, hour: float, quiet: bool) -> None:
    policy = quiet_hours(begin, end)
    assert policy(LinkState(hour=hour), ORDINARY) is not quiet
    assert policy(LinkState(hour=hour), URGENT)


def test_quiet_hours_that_are_none() -> None:
    with pytest.raises(ValueError, match="hour 25"):
        quiet_hours(25, 6)


def test_both() -> None:
    policy = both(quiet_hours(22, 6, least=Priority.WANTED), urgent_when_metered)
    assert policy(LinkState(hour=23), Priority.WANTED)
    assert not policy(LinkState(hour=23, metered=True), Priority.WANTED)
    assert not policy(LinkState(hour=23), ORDINARY)


@pytest.mark.parametrize(
    ("field", "value"),
    [("policy", 7), ("daily_bytes", 100), ("daily_bytes", "1 MB"), ("max_upload_rate", 10), ("stop_timeout", -1)],
)
def test_settings_that_cannot_work(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        AgentConfig(**{field: value})  # type: ignore[arg-type]


def test_stop_delivers_where_the_agent_delivers_by_itself() -> None:
    assert AgentConfig().stop_timeout == 2.0
    assert AgentConfig(synchronize_automatically=False).stop_timeout == 0.0
    assert AgentConfig(synchronize_automatically=False, stop_timeout=9.0).stop_timeout == 9.0
