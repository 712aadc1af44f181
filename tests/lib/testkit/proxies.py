"""The demo's fault proxy, exact in what it carries, and telling how far it is."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios

from mailboat.cli.demo.faults import FaultProxy
from mailboat.cli.demo.meter import Meter, uploaded

_LOOK_AGAIN = 0.0005


class CountingProxy(FaultProxy):
    """Tells how many bytes of segments were carried to the server, and when.

    A piece counts as carried when the server's machine has it. Otherwise a cut would also discard, in this process's
    own kernel, what was counted but never sent: up to 32 KiB on each new connection.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self._moved = asyncio.Condition()

    async def _send_up(self, meter: Meter, writer: asyncio.StreamWriter, piece: bytes) -> None:
        await super()._send_up(meter, writer, piece)
        while _unacknowledged(writer):  # noqa: ASYNC110 - the kernel tells nobody when the other side has it
            await asyncio.sleep(_LOOK_AGAIN)
        async with self._moved:
            self._moved.notify_all()

    @property
    def segment_bytes(self) -> int:
        """Bytes of segments that were carried to the server, those carried twice included."""
        return uploaded(self.bodies)

    async def passed(self, count: int) -> None:
        """Return when so many bytes of segments were carried in all."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.segment_bytes >= count)


class LostLineProxy(CountingProxy):
    """A line that is lost as lines are: what has come as far as the server's machine, the server still reads.

    (The resets of `FaultProxy` make the server's kernel throw away what the server has not read yet. That is harsher,
    and tells nothing of what an agent sends twice when the server is slow for lack of a processor.) While `silent` is
    not set, connections stay and nothing passes: half open.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self._lost: list[asyncio.StreamWriter] = []
        self.silent = asyncio.Event()
        self.silent.set()

    async def _hold(self, count: int) -> None:
        await self.silent.wait()
        await super()._hold(count)

    async def close(self) -> None:
        """As `FaultProxy.close`; nothing is left hanging in the silence."""
        self.silent.set()
        await super().close()

    async def __aexit__(self, *about: object) -> None:
        await super().__aexit__(*about)
        for writer in self._lost:
            writer.transport.abort()

    def _end_at_server(self, writer: asyncio.StreamWriter) -> None:
        self._lost.append(writer)
        writer.close()


def _unacknowledged(writer: asyncio.StreamWriter) -> int:
    """Bytes that the other side's kernel has not confirmed; none once the connection is over."""
    if writer.transport.is_closing():
        return 0
    try:
        answer = fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])
