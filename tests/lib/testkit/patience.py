"""How long a test waits for processes that it has started, and what it is told of those that stand still.

A test that waits in vain ends with its time limit, which tells where the test stands and nothing of the process that it
waits for. So such processes tell it when they are asked (`tell_when_asked`): they write the stacks of all their threads
to standard error, and end. Whoever waits does so with `Patience`. Where a system has no such signal, they only end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0
"""Seconds: many times what a machine under load needs, and half of a test's time limit."""

GRACE = 5.0
"""Seconds that a process has to tell where it stands, before it is killed."""

ASKED = getattr(signal, "SIGUSR2", signal.SIGTERM)

TELL_WHEN_ASKED = (
    "import faulthandler, signal\n"
    "if hasattr(faulthandler, 'register'):\n"
    "    faulthandler.register(signal.SIGUSR2, file=2, chain=True)\n"  # what is chained is the system's own: to end
)
"""For a program's beginning. It holds for the processes that this forks, too."""

_PROCESSES = Path("/proc")


def tell_when_asked() -> None:
    """Have this process, and those that it forks, tell where it stands when it is asked, and end."""
    exec(TELL_WHEN_ASKED, {})


@dataclass(frozen=True)
class Standing:
    """A process as the kernel sees it: its state in a letter, and of each thread the name and where in the kernel it
    waits. `answers`: it will tell when it is asked. A program of others' will not, nor will ours while it forks.
    """

    pid: int
    parent: int
    session: int
    state: str
    threads: tuple[str, ...]
    answers: bool

    @classmethod
    def of(cls, process: Path) -> Standing | None:
        """The one with that folder in ``/proc``; None when it is gone."""
        try:
            state, parent, _, session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            threads = tuple(map(_waiting, sorted((process / "task").iterdir())))
        except OSError:
            return None
        answers = int(status["SigCgt"], 16) & ~int(status["SigBlk"], 16) & 1 << ASKED - 1
        return cls(int(process.name), int(parent), int(session), state, threads, bool(answers))

    def __str__(self) -> str:
        """In a line."""
        silent = "" if self.answers else ", and does not answer"
        return f"process {self.pid}, child of {self.parent}, {self.state}: {', '.join(self.threads)}{silent}"


def _waiting(thread: Path) -> str:
    name, place = ((thread / what).read_text().strip() for what in ("comm", "wchan"))
    return f"{name} in {place}"


def family_of(leader: int) -> list[Standing]:
    """That process, what descends from it, and what is left of the session that it leads. None where the system does
    not tell.
    """
    processes = [each for each in _PROCESSES.iterdir() if each.name.isdigit()] if _PROCESSES.is_dir() else []
    alive = [each for each in map(Standing.of, processes) if each is not None and each.state != "Z"]
    family: list[Standing] = []
    fresh = [each for each in alive if leader in (each.pid, each.session)]
    while fresh:
        family += fresh
        parents = {each.pid for each in fresh}
        fresh = [each for each in alive if each.parent in parents and each not in family]
    return sorted(family, key=lambda each: each.pid)


def ask(leader: int) -> list[Standing]:
    """Have that process and its family tell where they stand, one after the other, and end; returns who that is."""
    family = family_of(leader)
    for each in family:
        _send(each.pid, signal.SIGSTOP)  # or some went on when others end
    for each in family:
        _end(each)
    if not family:
        _send(leader, ASKED)
    return family


def _end(standing: Standing) -> None:
    if standing.answers:
        _send(standing.pid, ASKED)
        _send(standing.pid, signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(standing.pid)
            select.select([ended], [], [], GRACE)
            os.close(ended)
    _send(standing.pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Patience:
    """A context in which a process and its family have so many seconds; then they are asked, and end."""

    def __init__(self, leader: int, seconds: float = PATIENCE) -> None:
        self._leader, self._seconds = leader, seconds
        self._asked: list[Standing] | None = None
        self._timer = threading.Timer(seconds, self._ask)
        self._timer.daemon = True

    def _ask(self) -> None:
        self._asked = ask(self._leader)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._timer.join()

    def check(self, errors: Callable[[], str] = lambda: "(on standard error)") -> None:
        """Fail if it has come to an end; `errors` gives what the family has written to standard error."""
        if self._asked is not None:
            who = "\n".join(map(str, self._asked))
            told = f"they stood still for {self._seconds:g} s, and have told where, in this order:\n{who}\n\n{errors()}"
            raise AssertionError(told)
