"""Stores made by hand, as an agent lays them out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgpack
import pytest

from mailboat.protocol import Info, Kind, Preamble, SealReason, SegmentWriter
from mailboat.protocol.records import COUNTERS

SESSION = "018f0000-0000-7000-8000-000000000001"
START = 1_700_000_000 * 10**9

SegmentMaker = Callable[..., bytes]
SessionMaker = Callable[..., Path]


def segment(
    *,
    session_id: str = SESSION,
    index: int = 0,
    first: int = 0,
    blocks: int = 3,
    seal: SealReason | None = SealReason.STOPPED,
    attributes: dict[object, object] | None = None,
    product: str = "Acme Studio",
    started: int = START,
) -> bytes:
    """A segment of `blocks` blocks of five features each; `started` is nanoseconds since the epoch."""
    info = Info(product=product, application="importer", version="2.4.1")
    writer = SegmentWriter(Preamble(session_id, index, 77, first, started, 5 * 10**9, info=info.to_wire()))
    written = bytearray(writer.preamble())
    writer.add(bytes(written))
    counts = [0] * len(COUNTERS)
    counts[Kind.FEATURE - 1] = 5
    for block in range(blocks):
        features = [(Kind.FEATURE, 5 * 10**9 + at, f"f.{block}", {"at": at, **(attributes or {})}) for at in range(5)]
        header, frame = writer.block(b"".join(map(msgpack.packb, features)), counts, started)
        writer.add(frame, header)
        written += frame
    if seal:
        written += writer.seal(seal, started + 10**10, 15 * 10**9)
    return bytes(written)


def session(
    store: Path, segments: Sequence[bytes], *, session_id: str = SESSION, state: str = "waiting", product: str = "acme"
) -> Path:
    """A session's folder in `store`, with these segments."""
    folder = store / product / "importer" / state / session_id
    folder.mkdir(parents=True)
    for index, content in enumerate(segments):
        (folder / f"{index:06}.zst").write_bytes(content)
    return folder


@pytest.fixture
def make_segment() -> SegmentMaker:
    return segment


@pytest.fixture
def make_session() -> SessionMaker:
    return session


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
