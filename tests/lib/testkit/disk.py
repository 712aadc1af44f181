"""A disk that fails, fills up, tears writes or dies at any call: the real file system behind the agent's port.

A dead process touches nothing any more: from the call at which a `Disk` is killed on, every call raises `Killed`, so
that no cleaning up of the code under test reaches the files.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mailboat.agent.files import FileSystem, OsFileSystem
from testkit.power import PowerDisk

WRITING = frozenset(
    {
        "make_folder",
        "create",
        "open",
        "append",
        "truncate",
        "sync",
        "sync_folder",
        "allocate",
        "map",
        "lock",
        "replace_content",
        "rename",
        "remove",
        "remove_tree",
    }
)
"""The calls that may fail when a disk does; `close` and the reading ones are left alone."""

EVERY = WRITING | {"read", "read_range", "size", "modified", "names", "same_file", "read_open", "seek_end", "room"}
"""Those that may fail when a host has no descriptors left, or a disk cannot even be read."""

SHORT = 0
"""In place of an error's code: an append that took half of its bytes, and said so; no other call fails so."""


class Unsynced(OsFileSystem):
    """The real files without waiting for the disk: for tests that do not ask what survives the machine."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        path.stat()


class Killed(BaseException):
    """The process that made this call is no more."""


class SyncedAgain(BaseException):
    """A sync was tried again on a descriptor on which one had failed: the system may call it a success."""


def failure(code: int) -> OSError:
    return OSError(code, os.strerror(code)) if code != SHORT else OSError("short write")


Plan = Callable[[int, str], BaseException | None]
"""Told the number of a call (from one) and its name, what it shall raise."""


class Disk:
    """The real files, with a plan of what goes wrong. `calls` are the names of the writing calls so far."""

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        tear: bool = True,
        real: OsFileSystem | None = None,
        failing: frozenset[str] = WRITING,
    ) -> None:
        """With `tear`, an append that fails has written half of its bytes. `real` are the files behind, `failing` the
        calls that are numbered and may fail.
        """
        self._real = real or OsFileSystem()
        self._tear = tear
        self._failing = failing
        self._dead = False
        self.plan: Plan = plan or _no_plan
        self.calls: list[str] = []
        self.descriptors: set[int] = set()
        self.failed_syncs: set[int] = set()
        """The descriptors on which a sync has failed."""

    @property
    def files(self) -> FileSystem:
        """This disk as the agent sees it."""
        return cast("FileSystem", self)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any method of the port
        method = getattr(self._real, name)

        def call(*args: Any) -> Any:  # noqa: ANN401 - as the method
            return self._call(name, method, args)

        return call

    def _call(self, name: str, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as the method
        if self._dead:
            raise Killed
        if name == "sync" and args[0] in self.failed_syncs:
            raise SyncedAgain
        if name in self._failing:
            self.calls.append(name)
            error = self.plan(len(self.calls), name)
            if error is not None:
                if name == "append" and self._tear:
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                if name == "sync":
                    self.failed_syncs.add(args[0])
                    if isinstance(self._real, PowerDisk):
                        self._real.fail_to_sync(args[0])
                self._dead = isinstance(error, Killed)
                raise error
        if name == "replace_content":  # made of several calls, in the midst of which it fails, too
            OsFileSystem.replace_content(cast("OsFileSystem", self), *args)
            return None
        result = method(*args)
        if name in ("open", "create"):
            self.descriptors.add(result)
        if name == "close":
            self.descriptors.discard(args[0])
            self.failed_syncs.discard(args[0])
        return result

    def bury(self) -> None:
        """Close what a killed process had open, as the system does."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                self._real.close(descriptor)
        self.descriptors.clear()


def _no_plan(_number: int, _name: str) -> None:
    return None


def once(at: int, code: int = errno.EIO) -> Plan:
    """The call number `at` fails, no other."""
    return lambda number, name: failure(code) if number == at and _may_fail(name, code) else None


def from_then_on(at: int, code: int = errno.ENOSPC) -> Plan:
    """Every call from number `at` on fails, but for what gives room back."""
    return lambda number, name: failure(code) if number >= at and _may_fail(name, code, back=False) else None


def _may_fail(name: str, code: int, *, back: bool = True) -> bool:
    return name == "append" if code == SHORT else back or not name.startswith("remove")


def killed_at(at: int) -> Plan:
    """The process is killed at the call number `at`."""
    return lambda number, _: Killed() if number == at else None


def always(name: str, code: int = errno.EIO) -> Plan:
    """Every call of one name fails."""
    return lambda _, called: failure(code) if called == name else None
