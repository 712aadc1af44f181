"""What a fork makes of open descriptors: the parent's locks are the parent's alone."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from mailboat.agent.descriptors import DESCRIPTORS
from mailboat.agent.files import OsFileSystem
from testkit.forking import in_child

FILES = OsFileSystem()


def test_a_lock_is_free_once_the_parent_lets_go_though_the_child_lives_on(tmp_path: Path) -> None:
    fd = FILES.create(tmp_path / "lock")
    assert FILES.lock(fd)
    with in_child() as child:
        assert child.result() is None  # it runs by now
        other = FILES.open(tmp_path / "lock")
        assert not FILES.lock(other)
        FILES.close(fd)
        assert FILES.lock(other)
        FILES.close(other)
        assert child.alive


def test_a_child_cannot_close_what_has_the_same_number_by_now(tmp_path: Path) -> None:
    stale = FILES.create(tmp_path / "parents")

    def look() -> bool:
        mine = os.dup2(os.open(tmp_path, os.O_RDONLY), stale)
        try:
            FILES.close(stale)
        except OSError as error:
            return error.errno == errno.EBADF and os.fstat(mine).st_nlink > 0
        return False

    with in_child(look) as child:
        assert child.result()
    FILES.close(stale)
    with pytest.raises(OSError, match="Bad file descriptor"):
        FILES.close(stale)


def test_a_fork_waits_for_a_file_that_is_just_being_opened(tmp_path: Path) -> None:
    opened: list[int] = []
    begun = threading.Event()

    def slowly() -> int:
        opened.append(os.open(tmp_path, os.O_RDONLY))
        begun.set()
        time.sleep(0.05)  # long enough for the fork to come in between, if it does not wait; nothing fails if it is not
        return opened[0]

    thread = threading.Thread(target=lambda: DESCRIPTORS.opened(slowly))
    thread.start()
    begun.wait()

    def is_closed() -> bool:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])
        return True

    with in_child(is_closed) as child:
        assert child.result()
    thread.join()
    DESCRIPTORS.close(opened[0])


def test_a_fork_does_not_wait_for_a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mailboat.agent.descriptors.FORK_PATIENCE", 0.01)
    begun, gate, opened = threading.Event(), threading.Event(), []

    def hanging() -> int:
        begun.set()
        gate.wait()
        opened.append(os.open(tmp_path, os.O_RDONLY))
        return opened[0]

    hung = threading.Thread(target=lambda: DESCRIPTORS.opened(hanging))
    hung.start()
    begun.wait()
    with in_child(lambda: DESCRIPTORS.opened(lambda: os.open(tmp_path, os.O_RDONLY)) > 0) as child:
        assert child.result()
    gate.set()
    hung.join()
    DESCRIPTORS.close(opened[0])
