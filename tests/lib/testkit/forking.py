"""A forked child of the test process, which does one thing, tells what came of it, and lives until it is let go."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from testkit.patience import Patience, tell_when_asked


@dataclass
class Child:
    """`told` is the pipe through which it tells its result."""

    pid: int
    told: int

    def result(self) -> Any:  # noqa: ANN401 - whatever JSON can hold
        """What the call returned; fails with the traceback if it raised."""
        with os.fdopen(os.dup(self.told), "rb") as pipe, Patience(self.pid) as patience:
            line = pipe.readline()
        patience.check()
        answer = json.loads(line)
        assert "raised" not in answer, answer["raised"]
        return answer["returned"]

    @property
    def alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)


@contextmanager
def in_child(call: Callable[[], object] = lambda: None) -> Iterator[Child]:
    """A child that has called `call`, or is just doing so; it is killed when the context ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        tell_when_asked()
        try:
            answer: dict[str, object] = {"returned": call()}
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told
            answer = {"raised": traceback.format_exc()}
        os.write(writing, json.dumps(answer).encode() + b"\n")
        while True:
            signal.pause()
    os.close(writing)
    try:
        yield Child(pid, reading)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
