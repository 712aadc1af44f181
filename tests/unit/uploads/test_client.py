"""The client's core: the next task, and what each answer means for it."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.client import SMALLEST_TRIED, UploadClient
from mailboat.protocol.uploads.outcomes import (
    Advanced,
    Cancelled,
    Completed,
    Created,
    Exhausted,
    Gone,
    NotOurs,
    Outcome,
    OutOfSync,
    Refused,
    Retry,
    Unauthorised,
)
from mailboat.protocol.uploads.replies import HttpRequest
from mailboat.protocol.uploads.retry import Backoff
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.state import UploadMisuse
from mailboat.protocol.uploads.tasks import STEPS, Done, Failed, Source, Step, Task, Wait
from mailboat.protocol.uploads.values import Append, Cancel, Create, Limits, Query

TARGET = "https://h.example/v1/uploads"
RESOURCE = "https://h.example/v1/uploads/u"
MIB = 1024 * 1024
SEALED = Source(100, sealed=True)
PROBLEM = {"Content-Type": "application/problem+json"}
COMPLETED = b'{"type": "%s"}' % rufh.COMPLETED_UPLOAD.encode()
INCONSISTENT = b'{"type": "%s"}' % rufh.INCONSISTENT_LENGTH.encode()


class Driver:
    """A client and its clock."""

    def __init__(
        self,
        source: Source = SEALED,
        *,
        resource: str | None = RESOURCE,
        acknowledged: int | None = None,
        append_bytes: int | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.now = 1000.0
        self.client = UploadClient(
            RufhDialect(),
            source,
            target=TARGET,
            resource=resource,
            acknowledged=acknowledged,
            append_bytes=append_bytes,
            backoff=backoff,
        )

    def task(self) -> Task:
        return self.client.next_task(self.now)

    def reply(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Outcome:
        return self.client.responded(status, headers or {}, body, now=self.now, wall=1_795_294_800.0, entropy=0.5)

    def broken(self) -> Retry | Exhausted:
        return self.client.broken(now=self.now, entropy=0.5)

    def asked(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Outcome:
        """Begin the next task, of whatever kind, and answer it."""
        assert isinstance(self.task(), Create | Query | Append | Cancel)
        return self.reply(status, headers, body)

    def at(self, offset: int, *, complete: bool = False) -> Outcome:
        """Answer with a success at `offset`."""
        return self.asked(204, {"Upload-Offset": str(offset), "Upload-Complete": "?1" if complete else "?0"})


def appending(
    offset: int = 0, source: Source = SEALED, *, append_bytes: int | None = None, limit: int | None = None
) -> Driver:
    """A client whose append from `offset` is under way."""
    driver = Driver(source, acknowledged=offset, append_bytes=append_bytes, backoff=Backoff(limit=limit))
    assert isinstance(driver.task(), Append)
    return driver


def started(what: str) -> Driver:
    """A client whose next task is the request `what`."""
    if what == "creating":
        return Driver(resource=None)
    return Driver(acknowledged=0 if what == "appending" else None)


# -- the ordinary day ------------------------------------------------------------------------------------------------


def test_create_append_done() -> None:
    driver = Driver(resource=None)
    assert driver.task() == Create(complete=False, length=100, content_length=0)
    assert driver.reply(201, {"Location": "/v1/uploads/u"}) == Created(RESOURCE)
    task = driver.task()
    assert task == Append(0, complete=True, length=100, content_length=100, length_known=True)
    assert driver.client.request(task).url == RESOURCE
    assert driver.client.step is Step.BUSY
    outcome = driver.reply(204, {"Upload-Offset": "100", "Upload-Complete": "?1"})
    assert outcome == driver.client.outcome == Completed(100)
    assert driver.task() == driver.task() == Done(Completed(100))
    assert (driver.client.offset, driver.client.bytes_left, driver.client.step) == (100, 0, Step.DONE)


def test_a_resource_without_a_known_offset_is_asked_first() -> None:
    driver = Driver()
    assert driver.task() == Query()
    assert driver.reply(204, {"Upload-Offset": "60", "Upload-Complete": "?0"}) == Advanced(60)
    assert driver.task() == Append(60, complete=True, length=100, content_length=40)


def test_a_negotiated_offset_is_taken_at_its_word() -> None:
    driver = Driver(acknowledged=60)
    assert driver.task() == Append(60, complete=True, length=100, content_length=40)


def test_an_empty_upload_completes_without_bytes() -> None:
    driver = Driver(Source(0, sealed=True), resource=None)
    driver.asked(201, {"Location": "/v1/uploads/u", "Upload-Offset": "0", "Upload-Complete": "?0"})
    assert driver.task() == Append(0, complete=True, length=0, content_length=0, length_known=True)
    assert driver.reply(204, {"Upload-Offset": "0", "Upload-Complete": "?1"}) == Completed(0)


def test_a_success_without_an_offset_means_that_the_body_was_taken() -> None:
    driver = appending(append_bytes=30)
    assert driver.reply(204, {"Upload-Complete": "?0"}) == Advanced(30)


def test_the_server_s_offset_counts_even_when_it_took_less() -> None:
    driver = appending()
    assert driver.reply(204, {"Upload-Offset": "70", "Upload-Complete": "?0"}) == Advanced(70)
    assert driver.task() == Append(70, complete=True, length=100, content_length=30, length_known=True)


def test_all_bytes_there_but_not_completed_is_completed_with_an_empty_append() -> None:
    driver = Driver()
    driver.at(100)
    assert driver.task() == Append(100, complete=True, length=100, content_length=0)


def test_the_owner_bounds_an_append_and_may_change_its_mind() -> None:
    driver = Driver(acknowledged=0, append_bytes=30)
    assert driver.task() == Append(0, complete=False, length=100, content_length=30)
    driver.reply(204, {"Upload-Complete": "?0"})
    driver.client.append_bytes = 0  # nonsense is the smallest sense
    assert driver.task() == Append(30, complete=False, length=100, content_length=1, length_known=True)
    driver.reply(204, {"Upload-Complete": "?0"})
    driver.client.append_bytes = None
    assert driver.task() == Append(31, complete=True, length=100, content_length=69, length_known=True)


# -- files that grow -------------------------------------------------------------------------------------------------


def test_a_growing_file_is_sent_as_far_as_it_is_written_and_completed_when_sealed() -> None:
    driver = Driver(Source(40, sealed=False), resource=None)
    assert driver.task() == Create(complete=False, length=None, content_length=0)
    driver.reply(201, {"Location": "/v1/uploads/u"})
    assert driver.task() == Append(0, complete=False, length=None, content_length=40)
    driver.client.grown(Source(70, sealed=False))  # while the request is under way
    assert driver.reply(204, {"Upload-Complete": "?0"}) == Advanced(40)
    assert driver.task() == Append(40, complete=False, length=None, content_length=30)
    driver.reply(204, {"Upload-Complete": "?0"})
    assert driver.task() == Wait(None)
    driver.client.grown(Source(70, sealed=True))
    assert driver.client.source == Source(70, sealed=True)
    assert driver.task() == Append(70, complete=True, length=70, content_length=0)
    assert driver.reply(204, {"Upload-Complete": "?1"}) == Completed(70)


@pytest.mark.parametrize(
    ("before", "after", "possible"),
    [
        (Source(5, sealed=False), Source(5, sealed=False), True),
        (Source(5, sealed=False), Source(6, sealed=True), True),
        (Source(5, sealed=False), Source(4, sealed=False), False),
        (Source(5, sealed=True), Source(5, sealed=True), True),
        (Source(5, sealed=True), Source(6, sealed=True), False),
        (Source(5, sealed=True), Source(5, sealed=False), False),
    ],
)
def test_a_file_only_grows_until_it_is_sealed(before: Source, after: Source, possible: bool) -> None:
    driver = Driver(before)
    if possible:
        driver.client.grown(after)
    else:
        with pytest.raises(UploadMisuse, match="cannot follow"):
            driver.client.grown(after)


# -- limits ----------------------------------------------------------------------------------------------------------


def limited(text: str, source: Source = SEALED, append_bytes: int | None = None) -> Driver:
    driver = Driver(source, append_bytes=append_bytes)
    driver.asked(204, {"Upload-Offset": "0", "Upload-Complete": "?0", "Upload-Limit": text})
    return driver


@pytest.mark.parametrize(
    ("text", "append_bytes", "size"),
    [
        ("max-append-size=30", None, 30),
        ("max-append-size=30", 20, 20),
        ("max-append-size=30", 40, 30),
        ("min-append-size=25", 20, 25),  # the server's smallest is no wish
        ("max-append-size=25, min-append-size=25", 20, 25),
        ("max-append-size=500", None, 100),
        ("max-size=100", None, 100),
        ("min-append-size=500", None, 100),  # the last append is exempt
    ],
)
def test_appends_keep_to_the_server_s_limits(text: str, append_bytes: int | None, size: int) -> None:
    task = limited(text, append_bytes=append_bytes).task()
    assert isinstance(task, Append)
    assert task.content_length == size


@pytest.mark.parametrize(
    "text", ["max-size=99", "max-append-size=0", "max-append-size=20, min-append-size=30"], ids=lambda text: text
)
def test_limits_that_cannot_be_kept_end_the_upload_before_a_byte_is_sent(text: str) -> None:
    driver = limited(text)
    failed = driver.task()
    assert isinstance(failed, Failed)
    assert isinstance(failed.outcome, Refused)
    assert failed.outcome.status == 413
    assert driver.task() == failed


def test_a_growing_file_waits_until_it_has_enough_for_an_append() -> None:
    driver = limited("min-append-size=50", Source(49, sealed=False))
    assert driver.client.limits == Limits(min_append_size=50)
    assert driver.task() == Wait(None)
    driver.client.grown(Source(50, sealed=False))
    assert driver.task() == Append(0, complete=False, length=None, content_length=50)


def test_a_resource_whose_lifetime_is_over_is_not_asked_any_more() -> None:
    driver = limited("max-age=60")
    driver.now += 60
    assert driver.task() == Failed(Gone(None))


def test_a_lifetime_told_with_a_refused_creation_is_nobody_s() -> None:
    driver = Driver(resource=None)
    driver.asked(503, {"Upload-Limit": "max-age=0"})
    driver.now += 10
    assert driver.task() == Create(complete=False, length=100, content_length=0)


@pytest.mark.parametrize(
    ("headers", "sizes"),
    [
        ({}, [MIB, MIB // 2, MIB // 4, MIB // 8]),  # a proxy that does not tell its bound
        ({"Upload-Limit": f"max-append-size={100_000}"}, [MIB, 100_000, 50_000]),
    ],
)
def test_too_large_makes_appends_smaller(headers: dict[str, str], sizes: list[int]) -> None:
    driver = Driver(Source(MIB, sealed=True), acknowledged=0)
    for size in sizes:
        task = driver.task()
        assert isinstance(task, Append)
        assert task.content_length == size
        outcome = driver.reply(413, headers)
        assert isinstance(outcome, Retry)
        assert outcome.after == 0.0
        driver.at(0)


def test_too_large_for_the_smallest_append_is_the_end() -> None:
    driver = appending(source=Source(SMALLEST_TRIED, sealed=True))
    assert driver.reply(413) == Refused(413, None, "")


def test_a_server_may_name_a_smaller_append_than_we_would_try() -> None:
    driver = appending()
    assert driver.reply(413, {"Upload-Limit": "max-append-size=10"}) == Retry(
        0.0, "100 bytes were too many for one append"
    )
    driver.at(0)
    assert driver.task() == Append(0, complete=False, length=100, content_length=10)


def test_too_large_for_an_empty_append_or_a_creation_is_the_end() -> None:
    assert appending(100).reply(413) == Refused(413, None, "")
    assert Driver(resource=None).asked(413) == Refused(413, None, "")


# -- trouble ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["creating", "querying", "appending"])
@pytest.mark.parametrize("status", [408, 423, 425, 429, 500, 502, 503, 504, 507])
def test_what_passes_is_tried_again_after_a_pause(start: str, status: int) -> None:
    driver = started(start)
    outcome = driver.asked(status)
    assert outcome == Retry(0.5, f"status {status}")
    assert driver.task() == Wait(1000.5)
    driver.now = 1000.5
    assert isinstance(driver.task(), Create if start == "creating" else Query)


@pytest.mark.parametrize(
    ("value", "after"),
    [("120", 120.5), ("0", 0.5), ("-1", 0.5), ("1000000000", 86400.5), ("junk", 0.5)],
)
def test_retry_after_is_a_floor(value: str, after: float) -> None:
    driver = appending()
    outcome = driver.reply(503, {"retry-after": value})
    assert isinstance(outcome, Retry)
    assert outcome.after == after


def test_retry_after_as_a_date() -> None:
    headers = {"Retry-After": "Sat, 21 Nov 2026 21:00:30 GMT", "Date": "Sat, 21 Nov 2026 21:00:00 GMT"}
    outcome = appending().reply(503, headers)
    assert isinstance(outcome, Retry)
    assert outcome.after == 30.5


def test_a_transfer_cut_after_progress_is_asked_about_at_once() -> None:
    driver = appending()
    assert driver.broken() == Retry(0.0, "the connection was lost")
    assert driver.at(40) == Advanced(40)
    assert isinstance(driver.task(), Append)
    assert driver.broken() == Retry(0.0, "the connection was lost")


def test_without_progress_the_pauses_grow() -> None:
    driver = appending()
    pauses = []
    for _ in range(4):
        outcome = driver.broken()
        assert isinstance(outcome, Retry)
        pauses.append(outcome.after)
        driver.client.wake()
        assert driver.at(0) == Advanced(0)
        assert isinstance(driver.task(), Append)
    assert pauses == [0.0, 1.0, 2.0, 4.0]


def test_a_lost_query_or_creation_pauses() -> None:
    driver = Driver()
    assert isinstance(driver.task(), Query)
    assert driver.broken() == Retry(0.5, "the connection was lost")
    assert driver.task() == Wait(1000.5)
    driver.client.wake()
    assert isinstance(driver.task(), Query)


def test_the_callers_bound_of_failures_ends_it() -> None:
    driver = appending(limit=3)
    driver.broken()
    for _ in range(2):
        driver.client.wake()
        assert isinstance(driver.task(), Query)
        driver.broken()
    assert driver.task() == Failed(Exhausted("the connection was lost"))


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Refused(400, None, "")),
        (401, Unauthorised(401)),
        (403, Unauthorised(403)),
        (404, Gone(404)),
        (407, NotOurs(407, "status 407 of no upload server")),
        (410, Gone(410)),
        (415, Refused(415, None, "")),
        (422, Refused(422, None, "")),
        (302, NotOurs(302, "status 302 of no upload server")),
        (308, NotOurs(308, "status 308 of no upload server")),
        (511, NotOurs(511, "status 511 of no upload server")),
        (104, NotOurs(104, "status 104 of no upload server")),
        (200, NotOurs(200, "a success without the fields of an upload")),
        (204, NotOurs(204, "a success without the fields of an upload")),
    ],
)
@pytest.mark.parametrize("start", ["creating", "querying", "appending"])
def test_what_ends_an_attempt(start: str, status: int, outcome: Outcome) -> None:
    driver = started(start)
    assert driver.asked(status, {"Content-Type": "text/html", "Location": "/signin"}, b"<html>") == outcome
    ended = driver.task()
    assert isinstance(ended, Failed)
    assert ended.outcome == outcome


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_a_refusal_by_what_processes_the_upload_is_about_this_upload_only(status: int) -> None:
    outcome = appending().reply(status, PROBLEM | {"Upload-Complete": "?1"}, b'{"type": "x:y", "detail": "no"}')
    assert outcome == Refused(status, "x:y", "no")


def test_a_created_upload_at_another_origin_is_not_believed() -> None:
    outcome = Driver(resource=None).asked(201, {"Location": "https://evil.example/u"})
    assert outcome == NotOurs(201, "the new upload lies at another origin")


# -- servers whose account cannot be true ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "server_offset"),
    [
        ("59", 59),
        ("0", 0),
        ("101", 101),
        ("999999999999999", 999999999999999),
        ("-1", None),
        ("x", None),
        ("6.5", None),
    ],
)
@pytest.mark.parametrize("how", ["query", "append", "conflict"])
def test_an_impossible_offset_ends_the_upload(how: str, offset: str, server_offset: int | None) -> None:
    driver = appending(60)
    if how == "query":
        driver.broken()
        assert isinstance(driver.task(), Query)
    headers = {"Upload-Offset": offset, "Upload-Complete": "?0"}
    outcome = driver.reply(409 if how == "conflict" else 204, headers)
    assert isinstance(outcome, OutOfSync)
    assert (outcome.acknowledged, outcome.server_offset) == (60, server_offset)
    assert driver.client.offset == 60
    assert driver.task() == Failed(outcome)


def test_more_than_was_ever_sent_is_impossible_once_the_resource_has_told_its_offset() -> None:
    driver = Driver(append_bytes=30)
    driver.at(10)
    assert isinstance(driver.task(), Append)
    outcome = driver.reply(204, {"Upload-Offset": "41", "Upload-Complete": "?0"})
    assert isinstance(outcome, OutOfSync)
    assert outcome.reason == "the server is at 41, acknowledged 10, sent 40"


def test_before_that_an_earlier_process_may_have_sent_all_there_is() -> None:
    driver = appending(10, append_bytes=30)
    assert driver.reply(409, {"Upload-Offset": "90", "Upload-Complete": "?0"}) == Advanced(90)


@pytest.mark.parametrize(
    ("source", "offset"), [(SEALED, 60), (SEALED, 0), (Source(100, sealed=False), 100), (Source(100, sealed=False), 60)]
)
@pytest.mark.parametrize("how", ["query", "append"])
def test_complete_without_having_everything_is_impossible(how: str, source: Source, offset: int) -> None:
    driver = Driver(source, acknowledged=None if how == "query" else 0)
    outcome = driver.at(offset, complete=True)
    assert isinstance(outcome, OutOfSync)
    assert outcome.server_offset == offset


@pytest.mark.parametrize(
    "headers", [{"Upload-Offset": "5"}, {"Upload-Complete": "?1"}, {"Upload-Offset": "0", "Upload-Complete": "?1"}]
)
def test_a_new_upload_that_has_something_already_is_impossible(headers: dict[str, str]) -> None:
    outcome = Driver(resource=None).asked(201, {"Location": "/v1/uploads/u"} | headers)
    assert isinstance(outcome, OutOfSync)


def test_a_completeness_that_cannot_be_read_is_not_guessed() -> None:
    outcome = appending().reply(204, {"Upload-Offset": "100", "Upload-Complete": "yes"})
    assert outcome == OutOfSync(0, None, "the server's offset or completeness cannot be read")


def test_a_server_that_takes_nothing_is_not_asked_for_ever() -> None:
    driver = appending(limit=3)
    for _ in range(2):
        outcome = driver.reply(204, {"Upload-Offset": "0", "Upload-Complete": "?0"})
        assert isinstance(outcome, Retry)
        driver.client.wake()
        driver.at(0)
        assert isinstance(driver.task(), Append)
    assert isinstance(driver.reply(204, {"Upload-Offset": "0", "Upload-Complete": "?0"}), Exhausted)


@pytest.mark.parametrize(
    "headers", [{}, {"Upload-Offset": "0", "Upload-Complete": "?0"}, {"Upload-Offset": "100", "Upload-Complete": "?1"}]
)
def test_a_conflict_that_does_not_tell_another_offset_is_asked_about_after_a_pause(headers: dict[str, str]) -> None:
    driver = appending()
    assert driver.reply(409, headers) == Retry(0.5, "status 409")
    driver.client.wake()
    assert driver.task() == Query()


def test_a_conflict_on_a_query_is_tried_again() -> None:
    assert Driver().asked(409) == Retry(0.5, "status 409")


# -- completed unseen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 409, 410])
def test_the_answer_to_a_completion_that_came_through_unseen(status: int) -> None:
    driver = appending(100)
    assert driver.reply(status, PROBLEM, COMPLETED) == Completed(100)


@pytest.mark.parametrize("body", [COMPLETED, INCONSISTENT])
def test_a_late_request_may_have_done_the_work(body: bytes) -> None:
    driver = appending(60)
    outcome = driver.reply(400, PROBLEM, body)
    assert isinstance(outcome, Retry)
    assert outcome.after == 0.0
    assert driver.task() == Query()
    assert driver.reply(204, {"Upload-Offset": "100", "Upload-Complete": "?1"}) == Completed(100)


def test_and_be_seen_by_the_offset_alone() -> None:
    driver = appending(60)
    driver.reply(400, PROBLEM, INCONSISTENT)
    assert driver.asked(204, {"Upload-Offset": "100"}) == Advanced(100)  # completeness need not be told
    assert driver.asked(400, PROBLEM, COMPLETED) == Completed(100)


@pytest.mark.parametrize("source", [SEALED, Source(100, sealed=False)])
def test_if_not_the_refusal_stands(source: Source) -> None:
    driver = appending(60, source)
    driver.reply(400, PROBLEM, INCONSISTENT)
    refused = Refused(400, rufh.INCONSISTENT_LENGTH, "")
    assert driver.at(60) == refused
    assert driver.task() == Failed(refused)


def test_a_refusal_repeated_stands() -> None:
    driver = appending(100)
    driver.reply(400, PROBLEM, INCONSISTENT)
    assert driver.at(100) == Advanced(100)
    assert driver.asked(400, PROBLEM, INCONSISTENT) == Refused(400, rufh.INCONSISTENT_LENGTH, "")


def test_progress_clears_the_doubt() -> None:
    driver = appending(60)
    driver.reply(400, PROBLEM, INCONSISTENT)
    assert driver.at(80) == Advanced(80)
    assert isinstance(driver.task(), Append)
    assert isinstance(driver.reply(400, PROBLEM, INCONSISTENT), Retry)


# -- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "headers"), [(204, {}), (200, {}), (404, {}), (410, {})])
def test_cancelling(status: int, headers: dict[str, str]) -> None:
    driver = Driver()
    driver.client.cancel()
    assert driver.task() == Cancel()
    assert driver.reply(status, headers) == Cancelled()
    assert driver.task() == Done(Cancelled())


def test_cancelling_what_was_never_created_needs_no_request() -> None:
    driver = Driver(resource=None)
    driver.client.cancel()
    assert driver.task() == driver.task() == Done(Cancelled())


def test_cancelling_waits_for_the_request_under_way() -> None:
    driver = appending()
    driver.client.cancel()
    driver.reply(204, {"Upload-Offset": "50", "Upload-Complete": "?0"})
    assert driver.task() == Cancel()


def test_completed_meanwhile_is_completed() -> None:
    driver = appending()
    driver.client.cancel()
    driver.reply(204, {"Upload-Offset": "100", "Upload-Complete": "?1"})
    assert driver.task() == Done(Completed(100))
    with pytest.raises(UploadMisuse, match="done"):
        driver.client.cancel()


def test_an_upload_out_of_sync_can_still_be_cancelled() -> None:
    driver = Driver()
    driver.at(101)
    driver.client.cancel()
    assert driver.asked(204) == Cancelled()


def test_a_creation_refused_and_cancelled_is_done() -> None:
    driver = Driver(resource=None)
    driver.asked(400)
    driver.client.cancel()
    assert driver.task() == Done(Cancelled())


@pytest.mark.parametrize("trouble", [lambda driver: driver.reply(503), lambda driver: driver.reply(409), Driver.broken])
def test_cancelling_is_tried_again_within_the_bound(trouble: Callable[[Driver], Outcome]) -> None:
    driver = Driver(backoff=Backoff(limit=3))
    driver.client.cancel()
    for _ in range(2):
        assert driver.task() == Cancel()
        assert isinstance(trouble(driver), Retry)
        assert isinstance(driver.task(), Wait)
        driver.client.wake()
    assert driver.task() == Cancel()
    exhausted = trouble(driver)
    assert isinstance(exhausted, Exhausted)
    assert driver.task() == Failed(exhausted)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (405, Refused(405, None, "")),
        (401, Unauthorised(401)),
        (302, NotOurs(302, "status 302 of no upload server")),
        (200, NotOurs(200, "status 200 of no upload server")),
    ],
)
def test_what_cannot_be_cancelled(status: int, outcome: Outcome) -> None:
    driver = Driver()
    driver.client.cancel()
    assert driver.asked(status, {"Content-Type": "text/html"}) == outcome
    ended = driver.task()
    assert isinstance(ended, Failed)
    assert ended.outcome == outcome


# -- misuse ----------------------------------------------------------------------------------------------------------


def test_one_request_at_a_time() -> None:
    driver = appending()
    with pytest.raises(UploadMisuse, match="under way"):
        driver.task()
    driver.broken()
    with pytest.raises(UploadMisuse, match="no request"):
        driver.broken()
    with pytest.raises(UploadMisuse, match="no request"):
        driver.reply(204)


@pytest.mark.parametrize(("resource", "acknowledged"), [(None, 5), (RESOURCE, 101), (RESOURCE, -1)])
def test_an_offset_needs_a_resource_and_bytes(resource: str | None, acknowledged: int) -> None:
    with pytest.raises(UploadMisuse, match=f"offset {acknowledged}"):
        Driver(resource=resource, acknowledged=acknowledged)


def test_steps_outside_of_the_table_are_misuse() -> None:
    driver = Driver()
    with pytest.raises(UploadMisuse, match="from"):
        driver.client._move(Step.READY)
    assert set(STEPS) == set(Step)


# -- whatever comes --------------------------------------------------------------------------------------------------

_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "Upload-Offset": st.sampled_from(["0", "30", "60", "100", "101", "-1", "x"]),
        "Upload-Complete": st.sampled_from(["?0", "?1", "x"]),
        "Upload-Limit": st.sampled_from(["max-append-size=20", "max-size=50", "max-age=5", "min-append-size=70", "x"]),
        "Location": st.sampled_from(["/v1/uploads/u", "https://evil.example/u"]),
        "Retry-After": st.sampled_from(["5", "x"]),
        "Content-Type": st.just("application/problem+json"),
    },
)
_STATUS = st.sampled_from([201, 204, 204, 204, 409, 413, 400, 404, 401, 503, 302]) | st.integers(-1, 1000)
_ANSWERS = st.lists(
    st.none() | st.tuples(_STATUS, _FIELDS, st.sampled_from([b"", COMPLETED, INCONSISTENT])), max_size=30
)


@given(_ANSWERS, st.booleans(), st.sampled_from([None, 30]), st.booleans())
def test_whatever_a_server_answers_the_client_ends_or_goes_on(
    answers: list[tuple[int, dict[str, str], bytes] | None], made: bool, append_bytes: int | None, sealed: bool
) -> None:
    driver = Driver(Source(100, sealed=sealed), resource=RESOURCE if made else None, append_bytes=append_bytes)
    for reply in answers:
        driver.client.wake()
        task = driver.task()
        if isinstance(task, Wait | Done | Failed):
            assert not (isinstance(task, Wait) and sealed)
            break
        assert isinstance(driver.client.request(task), HttpRequest)
        before = driver.client.offset
        if isinstance(task, Append):
            assert task.offset == before
            assert task.offset + (task.content_length or 0) <= 100
        outcome = driver.broken() if reply is None else driver.reply(*reply)
        assert before <= driver.client.offset <= 100
        if isinstance(outcome, Completed):
            assert sealed
            assert driver.client.offset == 100


@given(st.lists(st.none() | st.tuples(_STATUS, _FIELDS), min_size=1, max_size=5), st.integers(1, 5))
def test_with_a_bound_every_server_is_left_at_last(cycle: list[tuple[int, dict[str, str]] | None], limit: int) -> None:
    driver = Driver(resource=None, backoff=Backoff(limit=limit))
    for count in range(2000):
        driver.client.wake()
        task = driver.task()
        if isinstance(task, Done | Failed):
            return
        reply = cycle[count % len(cycle)]
        if reply is None:
            driver.broken()
        else:
            driver.reply(*reply)
    pytest.fail(f"still at it: {driver.client.step}")
