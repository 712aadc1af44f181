"""Bodies are counted whole, byte by byte, and with pipelined requests behind them."""

from collections import Counter

import pytest

from mailboat.cli.demo.meter import Meter, uploaded

HEAD = b"PATCH /v1/uploads/1 HTTP/1.1\r\nHost: x\r\ncontent-length:  5 \r\n\r\n"
STREAM = (
    HEAD
    + b"abcde"
    + b"HEAD /v1/uploads/1 HTTP/1.1\r\n\r\n"
    + b"POST /v1/negotiate HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz"
)
BODIES = {("PATCH", "/v1/uploads/1"): 5, ("POST", "/v1/negotiate"): 3}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_bodies_are_counted_however_the_stream_is_cut(size: int) -> None:
    bodies: Counter[tuple[str, str]] = Counter()
    meter = Meter(bodies)
    for at in range(0, len(STREAM), size):
        meter.feed(STREAM[at : at + size])
    assert bodies == BODIES
    assert meter.under_way is None


def test_the_request_under_way_is_known() -> None:
    meter = Meter(Counter())
    meter.feed(HEAD[:-1])
    assert meter.under_way is None
    meter.feed(HEAD[-1:] + b"abc")
    assert meter.under_way == ("PATCH", "/v1/uploads/1")
    meter.feed(b"de")
    assert meter.under_way is None


def test_only_bytes_of_segments_count_as_uploaded() -> None:
    assert uploaded(Counter(BODIES)) == 5
    assert uploaded(Counter({("POST", "http://h/v1/uploads"): 7, ("GET", "/v1/uploads"): 1})) == 7


def test_a_stream_that_is_no_http_is_counted_under_no_name() -> None:
    bodies: Counter[tuple[str, str]] = Counter()
    meter = Meter(bodies)
    meter.feed(b"\0" * 70_000)
    meter.feed(b"\0" * 10)
    assert bodies == {("", ""): 10}


def test_a_length_that_is_none_has_no_body() -> None:
    bodies: Counter[tuple[str, str]] = Counter()
    Meter(bodies).feed(b"PATCH /v1/uploads/1 HTTP/1.1\r\nContent-Length: many\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    assert bodies == {}
