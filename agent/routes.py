"""Hears from the kernel that the machine has a new way to others: an address given, a cable plugged in, a tunnel up.

Linux tells it to whoever has subscribed (rtnetlink(7)), which costs one descriptor and nothing else until something
comes. Nothing is asked of it, and nothing is believed: all that follows is that the server is tried, as it may answer
now. Elsewhere, and where a sandbox or another kind of event loop forbids it, nothing is heard; a connection that
returns is found by trying, as ever.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from mailboat.agent.descriptors import DESCRIPTORS
from mailboat.agent.log import log

SETTLE: Final = 1.0
"""Seconds from a new way to word of it: names are looked up through what comes just after the route."""

APART: Final = 60.0
"""Seconds between two words of it, at least: an interface that comes and goes must not have the server tried all the
time. What comes too early is told at the end of them."""

_GROUPS: Final = 0x40 | 0x400
"""RTMGRP_IPV4_ROUTE and RTMGRP_IPV6_ROUTE: whatever makes a connection usable adds a route in the end."""

_NEW_ROUTE: Final = 24
"""RTM_NEWROUTE."""

_HEAD: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port. Messages begin at multiples of four."""

_AT_ONCE: Final = 16
"""Datagrams read in one turn of the loop; the rest waits for the next one."""

_DATAGRAM: Final = 65_536


class Ways(Protocol):
    """What hears of new ways to others."""

    def listen(self, told: Callable[[], None]) -> None:
        """Call `told` in the running loop, soon after there is one, until `leave`. Without effect while it listens."""

    def leave(self) -> None:
        """Listen no more."""


class Routes:
    """As the kernel tells it. Used within one loop."""

    def __init__(self, subscribe: Callable[[], int | None] | None = None) -> None:
        """`subscribe` gives a descriptor to read messages from, None where there is none to be had."""
        self._subscribe = subscribe if subscribe is not None else _subscribe
        self._fd: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._told: Callable[[], None]
        self._timer: asyncio.TimerHandle | None = None
        self._last = float("-inf")

    def listen(self, told: Callable[[], None]) -> None:
        """See `Ways`."""
        if self._fd is not None:
            return
        fd, loop = self._subscribe(), asyncio.get_running_loop()
        if fd is None:
            return
        self._fd, self._loop, self._told = fd, loop, told
        try:
            loop.add_reader(fd, self._readable)
        except (NotImplementedError, OSError, ValueError) as error:
            log.debug("new ways to others cannot be listened for: %r", error)
            self._close()

    def leave(self) -> None:
        """See `Ways`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            DESCRIPTORS.close(fd)

    def _readable(self) -> None:
        assert self._fd is not None  # noqa: S101 - its reader was taken out before
        try:
            for _ in range(_AT_ONCE):
                if any(kind == _NEW_ROUTE for kind in _kinds(os.read(self._fd, _DATAGRAM))):
                    self._there_is_one()
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # there were more than it could keep
                self._there_is_one()
            else:
                log.debug("new ways to others are not heard of any more: %s", error)
                self.leave()

    def _there_is_one(self) -> None:
        if self._timer is None:
            at = max(self._loop.time() + SETTLE, self._last + APART)
            self._timer = self._loop.call_at(at, self._tell)

    def _tell(self) -> None:
        self._timer, self._last = None, self._loop.time()
        self._told()


def _kinds(datagram: bytes) -> Iterator[int]:
    """The types of the messages in it."""
    at = 0
    while at + _HEAD.size <= len(datagram):
        length, kind, *_ = _HEAD.unpack_from(datagram, at)
        yield kind
        at += max(_HEAD.size, (length + 3) & ~3)


def _subscribe() -> int | None:
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    try:
        return DESCRIPTORS.opened(lambda: _opened(family))
    except OSError as error:
        log.debug("new ways to others cannot be listened for: %s", error)
        return None


def _opened(family: int) -> int:
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0) as made:
        made.bind((0, _GROUPS))
        return made.detach()
