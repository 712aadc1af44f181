"""What status codes mean, and which Location is followed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mailboat.protocol.addresses import resolve
from mailboat.protocol.uploads.replies import Meaning, meaning_of


@pytest.mark.parametrize(
    ("statuses", "meaning"),
    [
        ([200, 201, 202, 204, 299], Meaning.SUCCESS),
        ([301, 302, 303, 304, 307, 308], Meaning.NOT_OURS),
        ([400, 402, 405, 406, 411, 412, 414, 415, 416, 417, 418, 421, 422, 424, 426, 428, 431, 451], Meaning.REFUSED),
        ([401, 403], Meaning.UNAUTHORISED),
        ([404, 410], Meaning.GONE),
        ([407, 511], Meaning.NOT_OURS),
        ([408, 423, 425, 429, 500, 501, 502, 503, 504, 507, 508, 599], Meaning.RETRY),
        ([409], Meaning.CONFLICT),
        ([413], Meaning.TOO_LARGE),
        ([-1, 0, 99, 100, 104, 199, 600, 999], Meaning.NOT_OURS),
    ],
)
def test_meanings(statuses: list[int], meaning: Meaning) -> None:
    assert {meaning_of(status) for status in statuses} == {meaning}


BASE = "https://collect.example.com/v1/uploads"


@pytest.mark.parametrize(
    ("base", "location", "url"),
    [
        (BASE, "/v1/uploads/u", "https://collect.example.com/v1/uploads/u"),
        (BASE, "uploads/u", "https://collect.example.com/v1/uploads/u"),
        (BASE, "https://collect.example.com/x", "https://collect.example.com/x"),
        (BASE, "https://COLLECT.example.com:443/x", "https://COLLECT.example.com:443/x"),
        ("http://h:8787/v1/uploads", "/v1/uploads/u", "http://h:8787/v1/uploads/u"),
        ("/v1/uploads", "/v1/uploads/u", "/v1/uploads/u"),
        (BASE, "", BASE),
        (BASE, "https://other.example.com/x", None),
        (BASE, "http://collect.example.com/x", None),
        (BASE, "https://collect.example.com:444/x", None),
        (BASE, "//other.example.com/x", None),
        (BASE, "https://collect.example.com.evil.example/x", None),
        (BASE, "https://collect.example.com@evil.example/x", None),
        (BASE, "https://evil.example\\@collect.example.com/x", None),
        (BASE, "https://user@collect.example.com/x", None),
        (BASE, "/v1/up loads", None),
        (BASE, "/v1/\tuploads", None),
        (BASE, "/v1/üploads", None),
        (BASE, "https://[::1/x", None),
        (BASE, "https://collect.example.com:port/x", None),
        ("/v1/uploads", "https://other.example.com/x", None),
    ],
)
def test_a_location_is_followed_within_the_origin_only(base: str, location: str, url: str | None) -> None:
    assert resolve(base, location) == url


@given(st.text(max_size=60) | st.text("/:@[]ht psx.%0#?\\", max_size=30))
def test_the_library_that_connects_finds_the_same_host(location: str) -> None:
    url = resolve(BASE, location)
    assert url is None or URL(url).origin() == URL(BASE).origin()
