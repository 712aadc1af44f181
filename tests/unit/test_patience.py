"""Processes that stand still tell the test that waits for them where."""

import subprocess
import sys

import pytest

from testkit.patience import TELL_WHEN_ASKED, Patience

STANDING = """
import os, threading

def stands_here():
    os.write(1, b"it stands\\n")
    while True:
        never.acquire()

def waits_for_its_child():
    child = os.fork() or stands_here()
    os.waitpid(child, 0)

never = threading.Lock()
never.acquire()
threading.Thread(target=stands_here, daemon=True).start()
if not os.fork():
    os.execv("/bin/sh", ["sh", "-c", "echo it stands; exec sleep 1000"])
waits_for_its_child()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells of no other processes")
def test_whoever_stands_still_tells_where() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", TELL_WHEN_ASKED + STANDING]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "it stands\n"
        with Patience(process.pid, 0.0) as patience:
            _, errors = process.communicate()
        with pytest.raises(AssertionError, match="they stood still for 0 s") as failed:
            patience.check(lambda: errors)
    told = str(failed.value)
    assert told.count("child of") == 3
    assert told.count(", and does not answer") == 1
    assert told.count("in stands_here") == 2
    assert told.count("in waits_for_its_child") == 2


def test_whoever_ends_in_time_is_not_asked() -> None:
    with subprocess.Popen([sys.executable, "-c", TELL_WHEN_ASKED], stderr=subprocess.PIPE, text=True) as process:
        with Patience(process.pid) as patience:
            _, errors = process.communicate()
        patience.check(lambda: errors)
    assert process.returncode == 0
