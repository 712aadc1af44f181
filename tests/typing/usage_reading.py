"""Reading a session file, as in the API page."""

from pathlib import Path
from typing import assert_type

from mailboat.protocol import Preamble, Record, Seal, SegmentReader


def names_in(path: Path) -> list[str]:
    reader = SegmentReader(path.read_bytes())
    names = []
    for record in reader:
        assert_type(record, Record)
        names.append(record.name)
    assert_type(reader.preamble, Preamble | None)
    assert_type(reader.seal, Seal | None)
    return names


def misuses(path: Path) -> None:
    SegmentReader(path)  # type: ignore[arg-type]  # bytes, not the path of them
    SegmentReader(str(path))  # type: ignore[arg-type]
    for record in SegmentReader(b""):
        record.name = "other"  # type: ignore[misc]  # what was recorded does not change
