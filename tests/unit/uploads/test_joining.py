"""Uploads made of others, as far as the conformance rows do not tell."""

import pytest
from msgspec.structs import replace

from mailboat.protocol.uploads.decisions import Refusal, Refused
from mailboat.protocol.uploads.joining import decide_joining
from mailboat.protocol.uploads.state import Creation, Phase, UploadState
from mailboat.protocol.uploads.values import Limits

PART = Creation(partial=True)
FIRST = UploadState("a", 3, 3, Phase.COMPLETE, creation=PART)
SECOND = UploadState("b", 2, 4, creation=PART, expires=2000.0)
FINAL = UploadState("f", epoch=1, expires=3000.0, creation=Creation(parts=("a", "b")), limits=Limits(max_size=10))


def test_it_waits_for_its_parts_and_completes_with_the_last() -> None:
    waiting = decide_joining(FINAL, [FIRST, SECOND], now=1000.0)
    assert waiting == replace(FINAL, length=7)
    done = decide_joining(FINAL, [FIRST, replace(SECOND, offset=4, phase=Phase.COMPLETE)], now=1000.0)
    assert done == replace(FINAL, length=7, offset=7, phase=Phase.COMPLETE, epoch=2, expires=None)


def test_once_complete_it_needs_its_parts_no_more() -> None:
    complete = replace(FINAL, length=7, offset=7, phase=Phase.COMPLETE)
    assert decide_joining(complete, [None, None], now=1000.0) is complete


@pytest.mark.parametrize("now", [2000.0, 3000.0])
def test_it_is_gone_when_it_or_a_part_expires(now: float) -> None:
    refused = decide_joining(FINAL, [FIRST, SECOND], now=now)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.GONE
    assert refused.state is not None
    assert refused.state.gone
