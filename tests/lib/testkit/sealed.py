"""Sealed segments with records of one's own, and a key pair to seal and open them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mailboat.protocol import Info, Preamble, SealReason, SegmentWriter
from mailboat.protocol.disclosure import sealed_info
from mailboat.protocol.records import COUNTERS, count_raw
from mailboat.protocol.sealing import Keyring, Note, PrivateKey, PublicKey, Sealer
from testkit.segments import CLOCK, SESSION, Raw, pack

PRIVATE = PrivateKey(bytes(range(32)))
OTHER = PrivateKey(bytes(range(1, 33)))
KEYS = Keyring([PRIVATE])
SECRET = "planted-secret-9f31"


def sealed_writer(
    session_id: str = SESSION, index: int = 0, first: int = 0, info: Info | None = None, salt: int = 7
) -> SegmentWriter:
    """A writer of a segment sealed to `PRIVATE`."""
    to: PublicKey = PRIVATE.public
    clear, how = sealed_info(info or Info(product="Acme Studio", user=SECRET), to, session_id)
    preamble = Preamble(session_id, index, salt, first, CLOCK, 0, info=clear.to_wire(), sealed=how)
    return SegmentWriter(preamble, 1, Sealer(to, session_id, index, os.urandom))


class SealedSegment:
    """One sealed segment in the making; `data` are its bytes so far, `ends` where its blocks end."""

    def __init__(
        self, session_id: str = SESSION, index: int = 0, first: int = 0, info: Info | None = None, salt: int = 7
    ) -> None:
        self.writer = sealed_writer(session_id, index, first, info, salt)
        self.data = b""
        self.ends: list[int] = []
        self._keep(self.writer.preamble())

    def block(self, records: Iterable[Raw], note: Note | None = None) -> bytes:
        given, counts = list(records), [0] * len(COUNTERS)
        for record in given:
            count_raw(record, counts, {})
        header, frame = self.writer.block(b"".join(map(pack, given)), counts, CLOCK, note or Note())
        self.writer.add(frame, header)
        self.data += frame
        self.ends.append(len(self.data))
        return frame

    def seal(self, reason: SealReason = SealReason.STOPPED, installation: dict[str, object] | None = None) -> bytes:
        """End it; returns the whole segment."""
        self._keep(self.writer.seal(reason, CLOCK + 10**12, 10**12, installation))
        return self.data

    def _keep(self, frame: bytes) -> None:
        self.writer.add(frame)
        self.data += frame
