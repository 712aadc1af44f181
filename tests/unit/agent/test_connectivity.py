"""What is known of the way to the server, after each kind of event."""

from __future__ import annotations

from mailboat.agent.connectivity import Connectivity, Link
from mailboat.protocol.uploads.retry import Backoff

ALMOST = 0.999_999


def test_a_failure_closes_it_until_a_time_that_grows() -> None:
    link, pauses = Connectivity(), []
    assert link.open_at(0.0)
    for _ in range(12):
        link = link.failed("no connection", 0.0, ALMOST)
        assert link.until is not None
        assert not link.open_at(link.until - 0.001)
        assert link.open_at(link.until)
        pauses.append(link.until)
    assert pauses == sorted(pauses)
    assert pauses[0] <= Backoff().first
    assert 0.99 * Backoff().longest < pauses[-1] <= Backoff().longest
    assert (link.link, link.reason) == (Link.OFFLINE, "no connection")


def test_a_servers_wish_is_a_floor() -> None:
    assert Connectivity().failed("status 503", 10.0, 0.0, 120.0).until == 130.0


def test_an_answer_alone_does_not_make_it_as_new() -> None:
    """A server that answers offers and fails at uploads would be asked in a hurry for ever."""
    link = Connectivity().failed("no connection", 0.0, 1.0).succeeded()
    assert (link.link, link.reason, link.until) == (Link.ONLINE, "", None)
    assert link.failed("no connection", 0.0, 1.0).until == 2 * Backoff().first


def test_being_served_makes_it_as_new() -> None:
    link = Connectivity().failed("no connection", 0.0, 1.0).failed("no connection", 0.0, 1.0).succeeded().served()
    assert link == Connectivity(Link.ONLINE)
    assert link.failed("no connection", 0.0, 1.0).until == Backoff().first


def test_a_refused_key_is_tried_seldom() -> None:
    link = Connectivity().refused("the key", 0.0, 0.0)
    assert (link.link, link.until) == (Link.REFUSED, Backoff().longest)


def test_a_new_way_ends_a_pause_and_nobodys_wish() -> None:
    lost = Connectivity()
    for _ in range(9):
        lost = lost.failed("no connection", 0.0, ALMOST)
    found = lost.way_found()
    assert (found.link, found.reason, found.open_at(0.0)) == (Link.OFFLINE, "no connection", True)
    assert found.failed("no connection", 0.0, 1.0).until == Backoff().first
    asked, refused = lost.failed("status 503", 0.0, 0.0, 120.0), lost.refused("the key", 0.0, 0.0)
    for other in (asked, refused, lost.paused(), lost.succeeded()):
        assert other.way_found() == other


def test_a_pause_is_the_applications_word() -> None:
    paused = Connectivity().failed("no connection", 0.0, 1.0).paused()
    assert not paused.open_at(10.0**9)
    for after in (paused.succeeded(), paused.failed("no connection", 0.0, 1.0), paused.refused("the key", 0.0, 1.0)):
        assert after == paused
    assert paused.resumed().open_at(0.0)
