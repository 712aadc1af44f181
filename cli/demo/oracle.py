"""The pipe through which the program says what it was told: the truth that the server is compared with.

The program writes one line of JSON after each recording call has returned (`Told`); whoever started it reads them
(`Oracle`). What was written survives the program, however it ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mailboat.cli.demo.compare import content_of

RECORD: Final = "record"


class Told:
    """The writing end."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is the pipe's; it stays open for as long as the process lives."""
        self._descriptor = descriptor

    def line(self, what: str, **facts: object) -> None:
        """Write one line with one system call, unbuffered; `OSError` when nobody reads any more."""
        rest = json.dumps([what, facts]).encode() + b"\n"
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def record(self, kind: str, name: str, attributes: Mapping[str, Any], **rest: object) -> None:
        """Say that the call that records this has returned."""
        self.line(RECORD, kind=kind, name=name, attributes=attributes, **rest)


@dataclass(slots=True)
class Oracle:
    """The reading end: what the program was told, by session, in order.

    `session_id` is the session of the program that is being read; `parsed` the modules that it says are done.
    """

    told: dict[str, list[str]] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    kinds: dict[str, int] = field(default_factory=dict)
    session_id: str = ""
    parsed: int = 0

    def take(self, line: bytes) -> tuple[str, dict[str, Any]] | None:
        """Take one line; what it says, or None for one that the program's death has cut short."""
        if not line.endswith(b"\n"):
            return None
        what, facts = json.loads(line)
        if what == "started":
            self.session_id = facts["session"]
            self.told[self.session_id] = []
        elif what == "parsed":
            self.parsed += 1
        elif what == RECORD:
            self.told[self.session_id].append(content_of(facts))
            self.kinds[facts["kind"]] = self.kinds.get(facts["kind"], 0) + 1
        return what, facts

    @property
    def records(self) -> int:
        """Records told so far, in all sessions."""
        return sum(map(len, self.told.values()))
