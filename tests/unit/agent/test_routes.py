"""That the machine has a new way to others: heard of from the kernel, and told neither too often nor too late."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from mailboat.agent.descriptors import DESCRIPTORS
from mailboat.agent.routes import APART, SETTLE, Routes
from testkit import virtual
from testkit.virtual import VirtualLoop

NEW_ROUTE, ROUTE_GONE, NEW_ADDRESS = 24, 25, 20


def message(kind: int, length: int = 28) -> bytes:
    return struct.pack("=IHHII", length, kind, 0, 0, 0) + bytes(max(0, length - 16))


class Heard:
    """Routes that hear what a test says, and when they told of it (virtual seconds)."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.kernel, hers = socket.socketpair(type=socket.SOCK_DGRAM)
        hers.setblocking(False)
        self.fd = hers.detach()
        self.routes = Routes(lambda: DESCRIPTORS.opened(lambda: self.fd))
        self.told: list[float] = []
        self.began = loop.now
        self.routes.listen(lambda: self.told.append(round(loop.now - self.began, 3)))

    def end(self) -> None:
        self.routes.leave()
        self.kernel.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(self.fd)


def story(tell: Callable[[Heard], Coroutine[Any, Any, None]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        heard = Heard(loop)
        await tell(heard)
        heard.end()

    virtual.run(main)


def test_word_of_a_new_route_comes_when_it_has_settled() -> None:
    async def tell(heard: Heard) -> None:
        await asyncio.sleep(5.0)
        for _ in range(40):
            heard.kernel.send(message(NEW_ROUTE))
        await asyncio.sleep(APART)
        assert heard.told == [5.0 + SETTLE]

    story(tell)


def test_a_route_is_found_among_other_messages() -> None:
    async def tell(heard: Heard) -> None:
        for kind in (ROUTE_GONE, NEW_ADDRESS):
            heard.kernel.send(message(kind))
        await asyncio.sleep(APART)
        assert heard.told == []
        heard.kernel.send(message(NEW_ADDRESS, length=29) + bytes(3) + message(NEW_ROUTE))
        await asyncio.sleep(APART)
        assert heard.told == [APART + SETTLE]

    story(tell)


def test_an_interface_that_comes_and_goes_is_told_of_once_a_minute() -> None:
    async def tell(heard: Heard) -> None:
        for _ in range(300):
            heard.kernel.send(message(NEW_ROUTE))
            await asyncio.sleep(1.0)
        await asyncio.sleep(APART)
        assert heard.told == [SETTLE + APART * turn for turn in range(6)], "the last one is told, too"

    story(tell)


@pytest.mark.parametrize("noise", [b"\0", message(NEW_ROUTE)[:7], bytes(16), b"\xff" * 200, message(0, length=0)])
def test_what_is_no_message_is_nothing(noise: bytes) -> None:
    async def tell(heard: Heard) -> None:
        heard.kernel.send(noise)
        await asyncio.sleep(APART)
        assert heard.told == []

    story(tell)


def test_nothing_is_told_after_the_end() -> None:
    async def tell(heard: Heard) -> None:
        heard.kernel.send(message(NEW_ROUTE))
        await asyncio.sleep(SETTLE / 2)
        heard.routes.leave()
        await asyncio.sleep(APART)
        assert heard.told == []

    story(tell)


def test_where_nothing_can_be_heard_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mailboat")

    def refused(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    async def silent() -> None:
        monkeypatch.setattr("mailboat.agent.routes._opened", refused)
        routes = Routes()
        routes.listen(lambda: None)
        monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
        routes.listen(lambda: None)
        routes.leave()

    asyncio.run(silent())
    told = [(record.levelname, record.message) for record in caplog.records if record.name == "mailboat"]
    assert told == [("DEBUG", "new ways to others cannot be listened for: [Errno 1] Operation not permitted")]


def test_a_loop_that_watches_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of Windows."""

    def refused(*_: object) -> None:
        raise NotImplementedError

    async def main(loop: VirtualLoop) -> None:
        monkeypatch.setattr(loop, "add_reader", refused)
        heard = Heard(loop)
        heard.end()

    virtual.run(main)


CHILD = """
import asyncio, fcntl, socket, struct
from mailboat.agent import routes

async def main():
    routes.SETTLE = 0.0
    told = asyncio.Event()
    heard = routes.Routes()
    heard.listen(told.set)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
    await asyncio.wait_for(told.wait(), 60.0)
    heard.leave()
    print("heard")

asyncio.run(main())
"""


OWN_NETWORK = ("unshare", "--user", "--map-root-user", "--net")


def test_the_kernel_tells_of_an_interface_that_comes_up() -> None:
    """In a network of its own, which has nothing but an interface that is down."""
    if not shutil.which("unshare") or subprocess.run([*OWN_NETWORK, "true"], check=False).returncode:
        pytest.skip("no network of its own is to be had here")
    done = subprocess.run([*OWN_NETWORK, sys.executable, "-c", CHILD], check=True, capture_output=True, timeout=100)
    assert done.stdout == b"heard\n"
