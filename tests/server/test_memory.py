"""The server's memory: what a body came in serves the next one."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from mailboat.protocol.limits import MIB
from mailboat.server import memory

_ROUNDS = 50
_PAGE = 4096

_FAULTS = f"""
import resource, sys
from mailboat.server.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def body():
    pieces = [b"x" * ({MIB} // 4) for _ in range(4)]  # written to, as what comes from a socket is
    whole = b"".join(pieces)
    return len(pieces), len(bytearray(whole))
body()
before = faults()
for _ in range({_ROUNDS}):
    body()
print(faults() - before)
"""


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to be told to another C library")
def test_kept_memory_is_not_asked_for_again() -> None:
    once = 3 * MIB // _PAGE
    assert _faults("keep") < 3 * once  # as glibc comes, it is as many with each body


def test_nothing_is_said_to_a_library_without_such_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert memory.keep_memory() is False


def test_a_refusal_of_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        asked: list[tuple[int, int]] = []  # noqa: RUF012 - for this test alone

        def mallopt(self, name: int, value: int) -> int:
            self.asked.append((name, value))
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Refusing())
    assert memory.keep_memory() is False
    assert Refusing.asked
