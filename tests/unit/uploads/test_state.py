"""The states of an upload on the server, and the one table of their transitions."""

import itertools

import pytest

from mailboat.protocol.errors import MailboatError
from mailboat.protocol.uploads.state import TRANSITIONS, Event, Phase, UploadMisuse, UploadState
from mailboat.protocol.uploads.values import Limits

UPLOAD = UploadState("u", offset=7, epoch=3)


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_only_what_the_table_names_can_happen(phase: Phase, event: Event) -> None:
    state = UploadState("u", phase=phase)
    if (phase, event) in TRANSITIONS:
        assert state.after(event).phase is TRANSITIONS[phase, event]
    else:
        with pytest.raises(UploadMisuse, match=f"upload u is {phase.value}"):
            state.after(event)


def test_misuse_is_in_the_one_tree() -> None:
    assert issubclass(UploadMisuse, MailboatError)


def test_nothing_leads_back_to_open() -> None:
    assert {before for (before, _), after in TRANSITIONS.items() if after is Phase.OPEN} == {Phase.OPEN}


def test_values_kept_in_catalogs_do_not_change() -> None:
    assert [phase.value for phase in Phase] == ["open", "complete", "cancelled", "expired", "invalid"]


@pytest.mark.parametrize(
    ("phase", "complete", "gone"),
    [
        (Phase.OPEN, False, False),
        (Phase.COMPLETE, True, False),
        (Phase.CANCELLED, False, True),
        (Phase.EXPIRED, False, True),
        (Phase.INVALID, False, True),
    ],
)
def test_what_a_phase_means(phase: Phase, complete: bool, gone: bool) -> None:
    state = UploadState("u", phase=phase)
    assert (state.complete, state.gone) == (complete, gone)


@pytest.mark.parametrize(
    ("phase", "expires", "now", "after"),
    [
        (Phase.OPEN, None, 1e12, Phase.OPEN),
        (Phase.OPEN, 100.0, 99.9, Phase.OPEN),
        (Phase.OPEN, 100.0, 100.0, Phase.EXPIRED),
        (Phase.COMPLETE, 100.0, 101.0, Phase.EXPIRED),
        (Phase.CANCELLED, 100.0, 101.0, Phase.CANCELLED),
        (Phase.INVALID, 100.0, 101.0, Phase.INVALID),
    ],
)
def test_expiry_is_applied_when_looked_at(phase: Phase, expires: float | None, now: float, after: Phase) -> None:
    assert UploadState("u", phase=phase, expires=expires).at(now).phase is after


def test_a_fence_changes_the_epoch_alone() -> None:
    assert UPLOAD.fenced() == UploadState("u", offset=7, epoch=4)


@pytest.mark.parametrize(
    ("max_age", "expires", "now", "after"),
    [
        (None, None, 50.0, None),
        (None, 100.0, 50.0, 100.0),
        (60, None, 50.0, None),
        (60, 100.0, 50.0, 110.0),
        (60, 200.0, 50.0, 200.0),  # never shortened
        (60, 100.0, -1e9, 100.0),  # the clock was set back
    ],
)
def test_use_prolongs_a_life(max_age: int | None, expires: float | None, now: float, after: float | None) -> None:
    state = UploadState("u", limits=Limits(max_age=max_age), expires=expires)
    assert state.prolonged(now).expires == after


@pytest.mark.parametrize(("expires", "after"), [(None, 80.0), (50.0, 50.0), (100.0, 80.0)])
def test_a_part_that_was_used_is_kept_no_longer_than_is_agreed(expires: float | None, after: float) -> None:
    assert UploadState("u", phase=Phase.COMPLETE, expires=expires).used_by(80.0).expires == after
