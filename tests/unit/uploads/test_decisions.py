"""The server's core: what follows from a request on an upload."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailboat.protocol.uploads.decisions import (
    Accepted,
    Appended,
    BodyEnd,
    Cancelled,
    Found,
    Refusal,
    Refused,
    decide_append,
    decide_cancel,
    decide_create,
    decide_query,
    finish_append,
    record_bytes,
)
from mailboat.protocol.uploads.state import Phase, UploadMisuse, UploadState
from mailboat.protocol.uploads.values import Append, Create, Limits

NOW = 1000.0
OPEN = UploadState("u", offset=100, epoch=5)
COMPLETE = UploadState("u", offset=100, length=100, phase=Phase.COMPLETE, epoch=5)
LIMITS = Limits(max_size=1000, min_size=10, max_append_size=200, min_append_size=20, max_age=60)


def create(request: Create, limits: Limits | None = None) -> Accepted | Refused:
    return decide_create(request, upload_id="u", limits=limits or Limits(), now=NOW, dialect="d")


def accepted(request: Create | Append, state: UploadState = OPEN) -> Accepted:
    verdict = create(request, state.limits) if isinstance(request, Create) else decide_append(state, request, now=NOW)
    assert isinstance(verdict, Accepted)
    return verdict


def refusal_of(verdict: object) -> Refusal:
    assert isinstance(verdict, Refused)
    return verdict.refusal


# -- creation --------------------------------------------------------------------------------------------------------


def test_a_creation_makes_an_open_upload_whose_body_goes_to_the_start() -> None:
    verdict = accepted(Create(complete=False, length=500))
    assert verdict.state == UploadState("u", length=500, epoch=1, dialect="d")
    assert (verdict.from_offset, verdict.max_bytes, verdict.epoch) == (0, 0, 1)


def test_a_lifetime_starts_at_creation() -> None:
    verdict = create(Create(complete=False), Limits(max_age=60))
    assert isinstance(verdict, Accepted)
    assert verdict.state.expires == NOW + 60


@pytest.mark.parametrize(
    ("request_", "length"),
    [
        (Create(complete=True, content_length=50), 50),
        (Create(complete=True, length=50, content_length=50), 50),
        (Create(complete=True, length=50, content_length=None), 50),
        (Create(complete=True, content_length=None), None),
        (Create(complete=False, content_length=50), None),
        (Create(complete=False, length=70, content_length=50), 70),
    ],
)
def test_the_length_is_recorded_as_soon_as_it_is_stated(request_: Create, length: int | None) -> None:
    assert accepted(request_).state.length == length


@pytest.mark.parametrize(
    "request_",
    [
        Create(complete=True, length=60, content_length=50),
        Create(complete=True, length=40, content_length=50),
        Create(complete=False, length=40, content_length=50),
    ],
)
def test_lengths_that_contradict_each_other_create_nothing(request_: Create) -> None:
    verdict = create(request_)
    assert refusal_of(verdict) is Refusal.INCONSISTENT_LENGTH
    assert isinstance(verdict, Refused)
    assert verdict.state is None


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        (Create(complete=False, length=1001), Refusal.TOO_LARGE),
        (Create(complete=True, content_length=1001), Refusal.TOO_LARGE),
        (Create(complete=False, length=9), Refusal.TOO_SMALL),
        (Create(complete=False, length=500, content_length=201), Refusal.APPEND_TOO_LARGE),
        (Create(complete=False, length=500, content_length=19), Refusal.APPEND_TOO_SMALL),
    ],
)
def test_limits_refuse_a_creation_and_are_told(request_: Create, refusal: Refusal) -> None:
    verdict = create(request_, LIMITS)
    assert refusal_of(verdict) is refusal
    assert isinstance(verdict, Refused)
    assert verdict.limits == LIMITS


@pytest.mark.parametrize(
    "request_",
    [
        Create(complete=False),  # asks for a resource only
        Create(complete=False, length=1000),
        Create(complete=True, content_length=15),  # the last append may be small
        Create(complete=False, length=500, content_length=200),
        Create(complete=False, content_length=None),
    ],
)
def test_within_the_limits(request_: Create) -> None:
    assert isinstance(create(request_, LIMITS), Accepted)


# -- appends ---------------------------------------------------------------------------------------------------------


def test_an_append_is_taken_at_the_upload_s_offset_under_a_new_epoch() -> None:
    verdict = accepted(Append(100, complete=False, content_length=30))
    assert (verdict.from_offset, verdict.max_bytes, verdict.epoch) == (100, 30, 6)
    assert verdict.state.offset == 100


@pytest.mark.parametrize("offset", [0, 99, 101, 10**14])
def test_another_offset_is_refused_and_the_right_one_fenced(offset: int) -> None:
    verdict = decide_append(OPEN, Append(offset, complete=False, content_length=30), now=NOW)
    assert verdict == Refused(
        Refusal.MISMATCHING_OFFSET, f"the upload stands at 100, the request at {offset}", replace(OPEN, epoch=6), offset
    )


@pytest.mark.parametrize(
    ("length", "request_", "refused"),
    [
        (None, Append(100, complete=True, content_length=30), False),
        (130, Append(100, complete=True, content_length=30), False),
        (130, Append(100, complete=True, content_length=29), True),
        (130, Append(100, complete=True, content_length=31), True),
        (130, Append(100, complete=False, content_length=30), False),
        (130, Append(100, complete=False, content_length=31), True),
        (130, Append(100, complete=False, length=131, content_length=1), True),
        (130, Append(100, complete=False, length=130, content_length=1), False),
        (130, Append(100, complete=True, content_length=None), False),
        (None, Append(100, complete=False, length=99), True),
        (None, Append(100, complete=False, length=100), False),
        (None, Append(100, complete=True, length=131, content_length=30), True),
    ],
)
def test_statements_of_length_must_agree(length: int | None, request_: Append, refused: bool) -> None:
    verdict = decide_append(replace(OPEN, length=length), request_, now=NOW)
    assert isinstance(verdict, Refused) is refused
    if refused:
        assert refusal_of(verdict) is Refusal.INCONSISTENT_LENGTH
        assert verdict.state == replace(OPEN, length=length, epoch=6)  # nothing else has changed
    else:
        assert isinstance(verdict, Accepted)


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        (Append(100, complete=False, content_length=201), Refusal.APPEND_TOO_LARGE),
        (Append(100, complete=False, content_length=19), Refusal.APPEND_TOO_SMALL),
        (Append(100, complete=False, content_length=0), Refusal.APPEND_TOO_SMALL),
        (Append(100, complete=False, length=1001, content_length=30), Refusal.TOO_LARGE),
        (Append(100, complete=True, content_length=0), None),
        (Append(100, complete=True, content_length=200), None),
        (Append(100, complete=False, content_length=20), None),
    ],
)
def test_limits_of_an_append(request_: Append, refusal: Refusal | None) -> None:
    verdict = decide_append(replace(OPEN, limits=LIMITS), request_, now=NOW)
    assert isinstance(verdict, Accepted) if refusal is None else refusal_of(verdict) is refusal


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        (Append(100, complete=False, content_length=None), 200),
        (Append(100, complete=False, length=150, content_length=None), 50),
        (Append(100, complete=False, length=1000, content_length=None), 200),
    ],
)
def test_a_body_of_unknown_size_is_bounded_by_the_nearest_limit(request_: Append, most: int) -> None:
    assert accepted(request_, replace(OPEN, limits=LIMITS)).max_bytes == most


def test_a_body_of_unknown_size_is_bounded_by_the_room_left() -> None:
    state = replace(OPEN, offset=900, limits=LIMITS)
    assert accepted(Append(900, complete=False, content_length=None), state).max_bytes == 100


def test_without_any_limit_there_is_no_bound() -> None:
    assert accepted(Append(100, complete=False, content_length=None)).max_bytes is None


@pytest.mark.parametrize(
    ("content_length", "refusal"),
    [(0, Refusal.COMPLETED), (1, Refusal.COMPLETED_EXTENDED), (None, Refusal.COMPLETED_EXTENDED)],
)
@pytest.mark.parametrize("offset", [100, 0])
def test_nothing_is_appended_to_a_complete_upload(content_length: int | None, refusal: Refusal, offset: int) -> None:
    verdict = decide_append(COMPLETE, Append(offset, complete=True, content_length=content_length), now=NOW)
    assert refusal_of(verdict) is refusal
    assert verdict.state == COMPLETE


@pytest.mark.parametrize("phase", [Phase.CANCELLED, Phase.EXPIRED, Phase.INVALID])
def test_what_is_gone_stays_gone(phase: Phase) -> None:
    state = UploadState("u", phase=phase)
    for verdict in (
        decide_append(state, Append(0, complete=False), now=NOW),
        decide_query(state, now=NOW),
        decide_cancel(state, now=NOW),
    ):
        assert refusal_of(verdict) is Refusal.GONE
        assert verdict.state == state


def test_an_upload_expires_when_it_is_looked_at_and_an_append_prolongs_it() -> None:
    state = replace(OPEN, limits=Limits(max_age=60), expires=NOW + 1)
    assert refusal_of(decide_query(state, now=NOW + 1)) is Refusal.GONE
    verdict = accepted(Append(100, complete=False, content_length=30), state)
    assert verdict.state.expires == NOW + 60
    finished = finish_append(verdict.state, verdict, offset=110, end=BodyEnd.CUT, now=NOW + 30)
    assert finished.state is not None
    assert finished.state.expires == NOW + 90


# -- the end of a body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "offset", "end", "phase"),
    [
        (Append(100, complete=False, content_length=30), 130, BodyEnd.WHOLE, Phase.OPEN),
        (Append(100, complete=False, content_length=30), 117, BodyEnd.CUT, Phase.OPEN),
        (Append(100, complete=True, content_length=30), 130, BodyEnd.WHOLE, Phase.COMPLETE),
        (Append(100, complete=True, content_length=30), 130, BodyEnd.CUT, Phase.OPEN),
        (Append(100, complete=True, content_length=30), 129, BodyEnd.WHOLE, Phase.OPEN),
        (Append(100, complete=True, content_length=None), 155, BodyEnd.WHOLE, Phase.COMPLETE),
        (Append(100, complete=True, content_length=0), 100, BodyEnd.WHOLE, Phase.COMPLETE),
        (Append(100, complete=False, length=130, content_length=30), 130, BodyEnd.WHOLE, Phase.OPEN),
        (Append(100, complete=False, length=130, content_length=30, completes_at_length=True), 130, BodyEnd.WHOLE,
         Phase.COMPLETE),
        (Append(100, complete=False, length=131, content_length=30, completes_at_length=True), 130, BodyEnd.WHOLE,
         Phase.OPEN),
        (Create(complete=True, content_length=0), 0, BodyEnd.WHOLE, Phase.COMPLETE),
        (Create(complete=False, length=0, completes_at_length=True), 0, BodyEnd.WHOLE, Phase.COMPLETE),
        (Create(complete=False, length=0), 0, BodyEnd.WHOLE, Phase.OPEN),
    ],
)  # fmt: skip
def test_what_came_is_kept_and_only_a_whole_last_body_completes(
    request_: Create | Append, offset: int, end: BodyEnd, phase: Phase
) -> None:
    verdict = accepted(request_)
    finished = finish_append(verdict.state, verdict, offset=offset, end=end, now=NOW)
    assert isinstance(finished, Appended)
    assert (finished.state.offset, finished.state.phase) == (offset, phase)
    if phase is Phase.COMPLETE:
        assert finished.state.length == offset


def test_completing_short_of_the_length_is_refused_but_the_bytes_stay() -> None:
    verdict = accepted(Append(100, complete=True, length=200, content_length=None))
    finished = finish_append(verdict.state, verdict, offset=150, end=BodyEnd.WHOLE, now=NOW)
    assert refusal_of(finished) is Refusal.INCONSISTENT_LENGTH
    assert finished.state == replace(OPEN, offset=150, length=200, epoch=6)


def test_more_than_the_stated_length_spoils_the_upload() -> None:
    verdict = accepted(Append(100, complete=False, length=150, content_length=None))
    finished = finish_append(verdict.state, verdict, offset=150, end=BodyEnd.OVERRUN, now=NOW)
    assert refusal_of(finished) is Refusal.INCONSISTENT_LENGTH
    assert finished.state is not None
    assert finished.state.phase is Phase.INVALID


@pytest.mark.parametrize(
    ("limits", "offset", "refusal"),
    [
        (Limits(max_append_size=50), 150, Refusal.APPEND_TOO_LARGE),
        (Limits(max_append_size=50, max_size=1000), 150, Refusal.APPEND_TOO_LARGE),
        (Limits(max_size=150), 150, Refusal.TOO_LARGE),
    ],
)
def test_more_than_a_limit_keeps_what_is_within_it(limits: Limits, offset: int, refusal: Refusal) -> None:
    verdict = accepted(Append(100, complete=False, content_length=None), replace(OPEN, limits=limits))
    finished = finish_append(verdict.state, verdict, offset=offset, end=BodyEnd.OVERRUN, now=NOW)
    assert refusal_of(finished) is refusal
    assert finished.state is not None
    assert (finished.state.offset, finished.state.phase) == (offset, Phase.OPEN)


@pytest.mark.parametrize(("size", "offset"), [(None, 150), (50, 149)])
def test_an_overrun_without_a_bound_or_short_of_it_is_misuse(size: int | None, offset: int) -> None:
    verdict = accepted(Append(100, complete=False, content_length=size))
    with pytest.raises(UploadMisuse, match="overrun"):
        finish_append(verdict.state, verdict, offset=offset, end=BodyEnd.OVERRUN, now=NOW)


def test_progress_is_recorded_on_the_way() -> None:
    verdict = accepted(Append(100, complete=True, content_length=30))
    state = record_bytes(verdict.state, verdict, offset=110)
    assert isinstance(state, UploadState)
    assert (state.offset, state.phase, state.epoch) == (110, Phase.OPEN, 6)
    finished = finish_append(state, verdict, offset=130, end=BodyEnd.WHOLE, now=NOW)
    assert finished == Appended(replace(OPEN, offset=130, length=130, phase=Phase.COMPLETE, epoch=6))


@pytest.mark.parametrize("offset", [99, 131])
def test_progress_outside_of_what_was_accepted_is_misuse(offset: int) -> None:
    verdict = accepted(Append(100, complete=True, content_length=30))
    with pytest.raises(UploadMisuse, match=f"offset {offset}"):
        record_bytes(verdict.state, verdict, offset=offset)


def test_an_offset_once_recorded_does_not_go_back() -> None:
    verdict = accepted(Append(100, complete=False, content_length=30))
    state = record_bytes(verdict.state, verdict, offset=120)
    assert isinstance(state, UploadState)
    with pytest.raises(UploadMisuse):
        record_bytes(state, verdict, offset=119)


# -- the fence -------------------------------------------------------------------------------------------------------


def newer(state: UploadState, what: str) -> UploadState:
    """What a newer request leaves behind."""
    verdict: Accepted | Refused | Found | Cancelled
    if what == "query":
        verdict = decide_query(state, now=NOW)
    elif what == "cancel":
        verdict = decide_cancel(state, now=NOW)
    else:
        request = {
            "append": Append(100, complete=False, content_length=1),
            "wrong append": Append(0, complete=False, content_length=1),
            "contradicting append": Append(100, complete=False, length=1),
        }[what]
        verdict = decide_append(state, request, now=NOW)
    assert verdict.state is not None
    return verdict.state


@pytest.mark.parametrize("what", ["append", "wrong append", "contradicting append", "query", "cancel"])
def test_the_newest_request_shuts_out_the_older_transfer(what: str) -> None:
    older = accepted(Append(100, complete=True, content_length=30))
    stored = newer(older.state, what)
    assert stored.epoch == older.epoch + 1
    for late in (
        record_bytes(stored, older, offset=110),
        finish_append(stored, older, offset=130, end=BodyEnd.WHOLE, now=NOW),
        finish_append(stored, older, offset=130, end=BodyEnd.CUT, now=NOW),
    ):
        assert refusal_of(late) is Refusal.SUPERSEDED
        assert isinstance(late, Refused)
        assert late.state is stored  # nothing of it is kept


def test_an_upload_that_ended_otherwise_shuts_out_a_transfer_of_its_own_epoch() -> None:
    older = accepted(Append(100, complete=True, content_length=30))
    ended = replace(older.state, phase=Phase.EXPIRED)
    assert refusal_of(record_bytes(ended, older, offset=110)) is Refusal.SUPERSEDED


def test_queries_of_a_complete_upload_change_nothing() -> None:
    assert decide_query(COMPLETE, now=NOW) == Found(COMPLETE)


def test_cancelling_discards_the_bytes_of_an_incomplete_upload_only() -> None:
    assert decide_cancel(OPEN, now=NOW) == Cancelled(replace(OPEN, phase=Phase.CANCELLED, epoch=6), discard=True)
    kept = decide_cancel(COMPLETE, now=NOW)
    assert kept == Cancelled(replace(COMPLETE, phase=Phase.CANCELLED, epoch=6), discard=False)


@given(
    st.integers(0, 50),
    st.none() | st.integers(0, 50),
    st.booleans(),
    st.none() | st.integers(0, 50),
    st.none() | st.integers(0, 50),
    st.booleans(),
)
def test_whatever_is_asked_an_accepted_body_fits(
    offset: int, length: int | None, complete: bool, stated: int | None, size: int | None, at_length: bool
) -> None:
    state = UploadState("u", offset=offset, length=length, limits=Limits(max_size=40, max_append_size=20))
    request = Append(offset, complete=complete, length=stated, content_length=size, completes_at_length=at_length)
    verdict = decide_append(state, request, now=NOW)
    assert verdict.state is not None
    assert verdict.state.offset == offset
    if isinstance(verdict, Accepted):
        assert verdict.max_bytes is not None
        assert 0 <= verdict.max_bytes <= 20
        end = offset + verdict.max_bytes
        assert end <= 40
        finished = finish_append(verdict.state, verdict, offset=end, end=BodyEnd.WHOLE, now=NOW)
        assert finished.state is not None
        assert finished.state.offset == end
        if finished.state.complete:
            assert finished.state.length == end
            assert length in (None, end)
