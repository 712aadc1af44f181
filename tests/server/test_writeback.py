"""What is begun to be written ahead of a sync is the same bytes, and nothing depends on it."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from mailboat.protocol.limits import MIB
from mailboat.server import blobs, writeback
from mailboat.server.blobs import LocalBlobs
from testkit.serverkit import fresh_session_id

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system has sync_file_range")

Range = tuple[int, int]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """The ranges whose writing was begun."""
    ranges: list[Range] = []

    def begin(fd: int, offset: int, length: int) -> None:
        ranges.append((offset, length))
        writeback.begin_writing(fd, offset, length)

    monkeypatch.setattr(blobs, "begin_writing", begin)
    return ranges


def test_each_byte_is_begun_once_in_large_ranges(tmp_path: Path, begun: list[Range], seed: int) -> None:
    draw, blob = random.Random(seed), fresh_session_id()
    start = draw.randrange(100_000)
    store = LocalBlobs(tmp_path / "blobs")
    head = store.append(blob, 0)
    content = draw.randbytes(start)
    head.write(content)
    head.sync()
    head.close()
    writer = store.append(blob, start)
    while len(content) < 9 * MIB:
        piece = draw.randbytes(draw.randrange(1, 3 * MIB))
        writer.begin(memoryview(piece))
        writer.settle()
        content += piece
    assert writer.sync() == len(content)
    writer.close()
    assert store.read(blob, 0, len(content) + 1) == content
    ends = [offset + length for offset, length in begun]
    assert [offset for offset, _ in begun] == [start, *ends[:-1]]
    assert all(length >= 2 * MIB for _, length in begun)
    assert len(content) - ends[-1] < 2 * MIB


def test_little_is_left_to_the_sync(tmp_path: Path, begun: list[Range]) -> None:
    writer = LocalBlobs(tmp_path / "blobs").append(fresh_session_id(), 0)
    for _ in range(100):
        writer.begin(memoryview(bytes(1000)))
    writer.sync()
    writer.close()
    assert begun == []


@linux
def test_the_system_has_the_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(MIB))
        assert writeback._CALL is not None
        assert writeback._CALL(file.fileno(), 0, MIB, 2) == 0
        assert writeback._CALL(-1, 0, MIB, 2) == -1, "an error is told by its result, and ignored by `begin_writing`"
        writeback.begin_writing(-1, 0, MIB)
    assert path.stat().st_size == MIB


def test_other_systems_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert writeback._sync_file_range() is None
    monkeypatch.setattr(writeback, "_CALL", None)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        writeback.begin_writing(fd, 0, MIB)
    finally:
        os.close(fd)
