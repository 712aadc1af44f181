"""A segment is a standard .zst file: any tool that reads RFC 8878 gives its records as one stream of msgpack."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import msgpack
import pytest
import zstandard

from mailboat.agent.store import WAITING
from testkit.recording import Rig


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """Sealed, with records in three blocks."""
    rig = Rig(tmp_path)
    for number in range(3):
        rig.recorder.feature("feature", number=number)
        rig.recorder.event("event", level=30, message=f"message {number}")
        assert rig.flush()
    assert rig.end()
    return rig.store.folder / WAITING / rig.id / "000000.zst"


def told_by(stream: bytes) -> list[list[object]]:
    """Name and attributes, or name, level and text, of each record."""
    records = list(msgpack.Unpacker(io.BytesIO(stream)))
    return [[record[2], *record[3:]] for record in records]


EXPECTED = [
    each for number in range(3) for each in (["feature", {"number": number}], ["event", {}, 30, f"message {number}"])
]


def test_the_library_of_zstandard_reads_it(segment: Path) -> None:
    with (
        segment.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
    ):
        assert told_by(stream.read()) == EXPECTED


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
def test_the_program_zstd_reads_it(segment: Path) -> None:
    assert told_by(subprocess.run(["zstd", "-dc", segment], capture_output=True, check=True).stdout) == EXPECTED
    subprocess.run(["zstd", "-tq", segment], check=True)
