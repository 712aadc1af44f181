"""A recording process that is killed, and the oracle that knows what it was told.

Run as a program, this file is the *victim*: it records with a real agent until it is killed, and after each recording
call that has returned it writes one line to a pipe, with one system call. What came out of the pipe is the truth that
the server is compared with: each of those records must be there, once, in order, as it was; of the call that was under
way when the process died, one more record per thread may be.

What a record holds follows from the seed, the thread and the record's number, so nothing but the numbers is told.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import sys
import threading
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mailboat.agent import Agent, Level
from testkit.patience import Patience, tell_when_asked

Json = Mapping[str, Any]

_PIPE_SIZE = 4096
"""Small, so that a victim is never far ahead of whoever decides when it dies."""


# -- what is recorded --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """One record as it must come back; `rest` are the members beside kind, name and attributes."""

    kind: str
    name: str
    attributes: Json
    rest: Json = field(default_factory=dict)


def planned(seed: int, thread: int, number: int) -> Planned:
    """The record that a thread makes as its `number`-th."""
    draw = zlib.crc32(f"{seed}.{thread}.{number}".encode())
    shape, size = draw % 40, draw >> 8
    kind, name, _, length, rest = next(row for row in _KINDS if shape < row[2])
    attributes: dict[str, object] = {"t": thread, "n": number}
    if length is not None:
        attributes["text"] = _text(draw, length[0] + size % length[1])
    return Planned(kind, name, attributes, rest(number, draw) if rest is not None else {})


Rest = Callable[[int, int], Json]

# Kind, name, the share of forty shapes up to which it goes, least and spread of the length of its text, other members.
_KINDS: tuple[tuple[str, str, int, tuple[int, int] | None, Rest | None], ...] = (
    ("feature", "small", 14, (0, 60), None),
    ("value", "size", 18, None, lambda number, _: {"value": number, "unit": "bytes"}),
    ("timing", "work", 22, None, None),
    ("event", "note", 26, None, lambda _, draw: {"level": int(Level.WARNING), "message": _text(draw, draw % 200)}),
    ("exception", "ValueError", 28, None, lambda number, _: {"message": f"number {number}", "context": "on purpose"}),
    ("feature", "declared", 34, (0, 40), None),
    ("installation", "here", 35, None, None),
    ("feature", "noise", 39, (500, 6_000), None),
    ("feature", "huge", 40, (20_000, 120_000), None),
)


def _text(draw: int, size: int) -> str:
    """Text that does not compress well."""
    return random.Random(draw).randbytes(size // 2 + 1).hex()[:size]


# -- the victim --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Habits:
    """How a victim behaves; chosen from its seed. `errors` says whether it records exceptions at all (they cause syncs
    and sends).
    """

    seed: int
    store: str
    server: str
    key: str
    application: str
    threads: int = 1
    flushes: bool = False
    syncs: bool = False
    automatic: bool = False
    segment_bytes: int = 64 * 1024
    seal_to: str | None = None
    sender: bool = True

    @classmethod
    def drawn(
        cls, seed: int, store: Path, server: str, key: str, application: str, seal_to: str | None = None
    ) -> Habits:
        """`seal_to` is the key of a server that opens what is sealed: about every third victim uses it."""
        draw = random.Random(seed)
        return cls(
            seed,
            str(store),
            server,
            key,
            application,
            threads=draw.choice((1, 1, 2, 4)),
            flushes=draw.random() < 0.5,
            syncs=draw.random() < 0.5,
            automatic=draw.random() < 0.5,
            segment_bytes=draw.choice((64 * 1024, 256 * 1024, 16 * 1024 * 1024)),
            seal_to=draw.choice((None, None, seal_to)),
        )


class Victim:
    """Records until it is killed."""

    def __init__(self, habits: Habits, pipe: int) -> None:
        self._habits, self._pipe = habits, pipe
        self._draw = random.Random(habits.seed)
        self._agent = Agent(
            server=habits.server,
            api_key=habits.key,
            product="Acme Studio",
            application=habits.application,
            version="1.0",
            store=Path(habits.store),
            journal_bytes=128 * 1024,
            segment_bytes=habits.segment_bytes,
            seal_to=habits.seal_to,
            sender=habits.sender,
            save_interval=0.02,
            startup_delay=0.0,
            sync_interval=1.0,
            alert_interval=0.05,
            synchronize_automatically=habits.automatic,
        )

    def tell(self, line: str) -> None:
        """One line, one system call; no more is written once nobody reads."""
        os.write(self._pipe, f"{line}\n".encode())

    async def live(self) -> None:
        """Until the end."""
        self.tell("B")
        await self._agent.start()
        self.tell(f"S {self._agent.session_id}")
        for thread in range(1, self._habits.threads):
            threading.Thread(target=self._thread, args=(thread,), daemon=True).start()
        side: set[asyncio.Task[object]] = set()
        emit = self._agent.emitter("declared", "t", "n", "text")
        number = 0
        while True:
            for _ in range(self._draw.randrange(1, 60)):
                self._record(0, number, emit)
                number += 1
            if self._habits.flushes and self._draw.random() < 0.2:
                await self._agent.flush(durable=self._draw.random() < 0.5)
            if self._habits.syncs and self._draw.random() < 0.1 and not side:
                side.add(asyncio.create_task(self._agent.force_sync(timeout=5.0)))
            await asyncio.sleep(self._draw.choice((0, 0, 0.001, 0.004)))
            side = {task for task in side if not task.done()}

    def _thread(self, thread: int) -> None:
        emit = self._agent.emitter("declared", "t", "n", "text")
        number = 0
        with suppress(BrokenPipeError):
            while True:
                self._record(thread, number, emit)
                number += 1

    def _record(self, thread: int, number: int, emit: Any) -> None:  # noqa: ANN401 - an emitter takes any values
        plan = planned(self._habits.seed, thread, number)
        agent, attributes = self._agent, dict(plan.attributes)
        match plan.kind:
            case "feature" if plan.name == "declared":
                emit(*attributes.values())
            case "feature":
                agent.feature(plan.name, **attributes)
            case "value":
                agent.value(plan.name, plan.rest["value"], plan.rest["unit"], **attributes)
            case "timing":
                with agent.timing(plan.name, **attributes):
                    pass
            case "event":
                agent.event(plan.name, plan.rest["level"], plan.rest["message"], **attributes)
            case "exception":
                agent.exception(ValueError(plan.rest["message"]), plan.rest["context"], **attributes)
            case _:
                agent.set_installation(plan.name, **attributes)
        self.tell(f"R {thread} {number}")


# -- the oracle --------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What one victim was told: its session, and how many calls had returned in each thread."""

    habits: Habits
    session_id: str | None = None
    returned: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    lines: int = 0

    def take(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return  # the last word of a process that was killed while it wrote
        self.lines += 1
        what, *facts = line.decode().split()
        if what == "S":
            (self.session_id,) = facts
        elif what == "R":
            thread, number = map(int, facts)
            assert number == self.returned[thread], f"the pipe gives {line!r} after {self.returned}"
            self.returned[thread] += 1

    @property
    def records(self) -> int:
        return sum(self.returned.values())


@asynccontextmanager
async def victim(habits: Habits) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """A victim at work, and its pipe; it is dead when the context ends."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testkit.oracle", json.dumps(asdict(habits)), str(writing)),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        pass_fds=[writing],
        stdin=asyncio.subprocess.DEVNULL,
    )
    os.close(writing)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    try:
        yield process, reader
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        transport.close()


async def killed(habits: Habits, after: int) -> Told:
    """Let a victim live until `after` lines were read, kill it with -9, and read to the end what it was told."""
    told = Told(habits)
    async with victim(habits) as (process, pipe):
        with Patience(process.pid) as patience:
            while told.lines < after and (line := await pipe.readline()):
                told.take(line)
        patience.check()
        assert told.lines >= after, f"the victim died by itself: exit status {await process.wait()}, {habits}"
        process.kill()
        while line := await pipe.readline():
            told.take(line)
        assert await process.wait() == -9, "it was to be killed, not to end"
    return told


def complaints(told: Told, records: Iterable[Json]) -> list[str]:
    """What is wrong with the records that the server has of a victim's session; nothing, if all is well."""
    found: dict[int, int] = defaultdict(int)
    wrong = []
    for sequence, record in enumerate(records):
        attributes = record["attributes"]
        thread, number = attributes.get("t"), attributes.get("n")
        expected = planned(told.habits.seed, thread, number) if isinstance(thread, int) else None
        if expected is None or number != found[thread]:
            wrong.append(f"record {sequence} is {number} of thread {thread}, after {dict(found)}: {record!r:.300}")
            return wrong
        found[thread] += 1
        given = {"kind": record["kind"], "name": record["name"], "attributes": attributes}
        asked = {"kind": expected.kind, "name": expected.name, "attributes": expected.attributes}
        rest = {name: record.get(name) for name in expected.rest}
        if record["sequence"] != sequence or given != asked or rest != expected.rest:
            wrong.append(f"record {sequence} differs: {record!r:.200}")
    for thread in sorted({*found, *told.returned}):
        here, returned = found[thread], told.returned[thread]
        if not returned <= here <= returned + 1:
            wrong.append(f"thread {thread}: {returned} calls had returned, {here} records are here")
    return wrong


if __name__ == "__main__":
    tell_when_asked()
    with suppress(BrokenPipeError):
        asyncio.run(Victim(Habits(**json.loads(sys.argv[1])), int(sys.argv[2])).live())
