"""Programs that fork, spawn, thread and end in every way, with a real agent; and the oracle that knows what each of
their processes and threads was told.

Run as a program (``python -m testkit.families SCENARIO SETTINGS PIPE``), this file plays one scenario. Whoever records
has a name, and after each recording call that has returned one line is written to the pipe: name, number, session.
What came out of the pipe is the truth that the store is compared with.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import msgspec

from mailboat.agent import Agent
from mailboat.agent.files import FileSystem, OsFileSystem
from mailboat.agent.last_words import LastWords
from mailboat.agent.locks import LOCK
from mailboat.agent.segment_file import segment_paths
from mailboat.protocol import SegmentReader
from mailboat.protocol.sealing import Keyring, PrivateKey
from testkit.patience import Patience, tell_when_asked

PRODUCT, APPLICATION = "family", "tree"
KEY = PrivateKey(bytes(range(32)))
"""Of the server that sealed families seal to."""


# -- in the processes ------------------------------------------------------------------------------------------------


class Teller:
    """Records, and tells what it was told."""

    def __init__(self, settings: dict[str, Any], pipe: int) -> None:
        self.settings, self.pipe = settings, pipe
        os.set_inheritable(pipe, True)

    def agent(self, **more: object) -> Agent:
        usual: dict[str, Any] = {
            "product": PRODUCT,
            "application": APPLICATION,
            "journal_bytes": 128 * 1024,
            "synchronize_automatically": False,
            "stop_timeout": 0.0,
        }
        return Agent(**{**usual, **self.settings, **more})

    def say(self, line: str) -> None:
        os.write(self.pipe, f"{line}\n".encode())

    def record(self, agent: Agent, who: str, count: int, first: int = 0) -> None:
        """`count` records of `who`, the first with the number `first`."""
        for number in range(first, first + count):
            agent.feature("told", who=who, n=number)
            self.say(f"R {who} {number}")

    def pid(self, who: str) -> None:
        """Say which process is `who`, so that the test may kill it, or see it end."""
        self.say(f"P {who} {os.getpid()}")


def forked(child: Callable[[], object], end: Callable[[int], object] = os._exit) -> int:
    """Fork; the child does its part and ends by `end`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        child()
        status = 0
    finally:
        if end is os._exit or status:
            os._exit(status)
    end(0)
    raise AssertionError("it has ended")


def waited(*pids: int, status: int = 0) -> None:
    for pid in pids:
        _, ended = os.waitpid(pid, 0)
        assert ended == status, f"process {pid} ended with {ended}"


Scenario = Callable[[Teller], object]
SCENARIOS: dict[str, Scenario] = {}


def scenario(play: Scenario) -> Scenario:
    SCENARIOS[play.__name__] = play
    return play


@scenario
def fork(teller: Teller) -> None:
    """Children that end in every way, and a grandchild; the parent records before and after."""
    agent, loop = teller.agent(), asyncio.new_event_loop()
    loop.run_until_complete(agent.start())
    emit = agent.emitter("emitted", "who", "n")
    teller.record(agent, "parent", 50)

    def with_emitter(who: str) -> None:
        emit(who, 0)
        teller.say(f"R {who} 0")
        teller.record(agent, who, 40, 1)

    def stops_only() -> None:
        asyncio.run(agent.stop())

    def silent_parent() -> None:
        waited(forked(lambda: teller.record(agent, "grandchild-of-a-silent-one", 20)))

    def parent_itself() -> None:
        teller.record(agent, "child", 30)
        waited(forked(lambda: teller.record(agent, "grandchild", 30)))
        teller.record(agent, "child", 30, 30)

    def killed() -> None:
        teller.record(agent, "killed", 40)
        os.kill(os.getpid(), signal.SIGKILL)

    pids = [
        forked(lambda: with_emitter("exits-hard")),
        forked(lambda: with_emitter("exits-in-order"), sys.exit),
        forked(parent_itself),
        forked(silent_parent),
        forked(stops_only),
        forked(lambda: None),
    ]
    teller.record(agent, "parent", 50, 50)
    waited(forked(killed), status=signal.SIGKILL)
    waited(*pids)
    teller.record(agent, "parent", 50, 100)
    loop.run_until_complete(agent.stop())
    loop.close()


@scenario
def fork_inside_the_loop(teller: Teller) -> None:
    """Children that leave through the parent's loop, which is at work meanwhile and afterwards."""

    async def parent() -> None:
        async with teller.agent() as agent:
            teller.record(agent, "parent", 20)
            waited(forked(lambda: teller.record(agent, "raises", 20), sys.exit))
            waited(forked(lambda: teller.record(agent, "exits-hard", 20)))
            await agent.flush(durable=True)  # for which a thread must reach the loop
            teller.say("P flushed 0")
            teller.record(agent, "parent", 20, 20)

    asyncio.run(parent())


@scenario
def signalled_as_it_is_born(teller: Teller) -> None:
    """A signal reaches the child before it has run anything of its own, and its handler records."""
    agent, loop = teller.agent(), asyncio.new_event_loop()
    loop.run_until_complete(agent.start())
    parent = os.getpid()

    def handler(*_: object) -> None:
        if os.getpid() != parent:
            agent.feature("told", who="handler", n=0)

    signal.signal(signal.SIGUSR1, handler)
    for at in range(10):
        teller.record(agent, "parent", 10, at * 10)
        pid = os.fork()
        if not pid:
            os._exit(0)
        waited(pid)
    loop.run_until_complete(agent.stop())
    loop.close()


@scenario
def start_in_a_child_whose_thread_begins(teller: Teller) -> None:
    """A child's thread makes the first record, and is held up while it begins the session: until the child has started
    its agent, or as long as that waits for it.
    """
    agent, loop = teller.agent(), asyncio.new_event_loop()
    loop.run_until_complete(agent.start())
    teller.record(agent, "parent", 20)

    def child() -> None:
        begun, started, prepare = threading.Event(), threading.Event(), LastWords.prepare

        def prepare_late(files: FileSystem, folder: Path) -> LastWords | None:
            begun.set()
            started.wait(0.3)
            return prepare(files, folder)

        LastWords.prepare = prepare_late  # type: ignore[method-assign]
        thread = threading.Thread(target=teller.record, args=(agent, "thread", 20))
        thread.start()
        begun.wait()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(agent.start())
        started.set()
        teller.record(agent, "child", 20)
        thread.join()
        loop.run_until_complete(agent.stop())

    waited(forked(child))
    loop.run_until_complete(agent.stop())


@scenario
def preload(teller: Teller) -> None:
    """A web server that loads the application, starts its agent, and only then forks its workers; each runs a loop of
    its own, starts the copy that it has got, serves, and stops. One worker is replaced after it was killed.
    """

    async def load() -> Agent:
        agent = teller.agent()
        await agent.start()
        teller.record(agent, "parent", 20)
        return agent

    async def serve(agent: Agent, who: str) -> None:
        await agent.start()
        teller.record(agent, who, 60)
        await agent.flush(durable=True)
        await agent.stop()

    async def serve_until_killed(agent: Agent) -> None:
        await agent.start()
        teller.record(agent, "killed", 60)
        os.kill(os.getpid(), signal.SIGKILL)

    loop = asyncio.new_event_loop()
    agent = loop.run_until_complete(load())
    pids = [forked(lambda who=who: asyncio.run(serve(agent, who))) for who in ("w1", "w2", "w3")]  # type: ignore[misc]
    waited(forked(lambda: asyncio.run(serve_until_killed(agent))), status=signal.SIGKILL)
    waited(*pids, forked(lambda: asyncio.run(serve(agent, "w4"))))
    teller.record(agent, "parent", 20, 20)
    loop.run_until_complete(agent.stop())
    loop.close()


@scenario
def preload_before_start(teller: Teller) -> None:
    """The parent only makes the agent: each worker starts it."""
    agent = teller.agent()

    async def serve(who: str) -> None:
        async with agent:
            teller.record(agent, who, 40)

    waited(*[forked(lambda who=who: asyncio.run(serve(who))) for who in ("w1", "w2", "w3")])  # type: ignore[misc]


@scenario
def fork_among_threads(teller: Teller) -> None:
    """Threads record as fast as they can, hence hold the lock now and then; the process forks meanwhile, again and
    again. Each child records from its own thread and from another.
    """

    async def parent() -> None:
        async with teller.agent() as agent:
            going = True

            def busily(who: str) -> None:
                number = 0
                while going:
                    agent.feature("told", who=who, n=number, noise=os.urandom(2000))
                    teller.say(f"R {who} {number}")
                    number += 1

            threads = [threading.Thread(target=busily, args=(f"thread-{at}",)) for at in range(3)]
            for thread in threads:
                thread.start()

            def child(who: str) -> None:
                beside = threading.Thread(target=teller.record, args=(agent, f"{who}-thread", 20))
                beside.start()
                teller.record(agent, who, 20)
                beside.join()

            for at in range(12):
                waited(forked(lambda at=at: child(f"child-{at}")))  # type: ignore[misc]
            going = False
            for thread in threads:
                thread.join()

    asyncio.run(parent())


@scenario
def fork_with_the_lock_held(teller: Teller) -> None:
    """Another thread holds the recorder's lock, for good, at the moment of the fork."""

    async def parent() -> None:
        async with teller.agent() as agent:
            teller.record(agent, "parent", 10)
            assert agent._session is not None
            held, release, lock = threading.Event(), threading.Event(), agent._session.recorder.lock

            def hold() -> None:
                with lock:
                    held.set()
                    release.wait()

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            pid = forked(lambda: teller.record(agent, "child", 40))
            waited(pid)  # it does not wait for a thread that it does not have
            release.set()
            holder.join()
            teller.record(agent, "parent", 10, 10)

    asyncio.run(parent())


def orphaned(parent: int) -> None:
    """Wait until this process has lost its parent."""
    while os.getppid() == parent:
        time.sleep(0.005)


@scenario
def fork_while_a_decoder_is_made(teller: Teller) -> None:
    """The store's thread takes up one of two crashed sessions, for which it makes its first decoder, at the moment of
    the fork. The child takes up the other one, without such a thread.
    """
    agent, loop = teller.agent(), asyncio.new_event_loop()
    loop.run_until_complete(agent.start())

    def killed(who: str) -> None:
        teller.record(agent, who, 20)
        os.kill(os.getpid(), signal.SIGKILL)

    for who in ("first", "second"):
        waited(forked(lambda who=who: killed(who)), status=signal.SIGKILL)  # type: ignore[misc]
    loop.run_until_complete(agent.stop())
    make, making, forked_now = msgspec.msgpack.Decoder, threading.Event(), threading.Event()

    def make_late(kind: type) -> Any:  # noqa: ANN401 - a decoder
        making.set()
        forked_now.wait()
        return make(kind)

    async def child() -> None:
        async with agent:
            await agent._recovered
            teller.record(agent, "child", 20)

    msgspec.msgpack.Decoder = make_late  # type: ignore[assignment,misc]
    loop.run_until_complete(agent.start())
    loop.run_until_complete(asyncio.to_thread(making.wait))
    waited(forked(lambda: asyncio.run(child())))
    forked_now.set()
    loop.run_until_complete(agent._recovered)
    teller.record(agent, "parent", 20)
    loop.run_until_complete(agent.stop())


@scenario
def child_outlives_parent(teller: Teller) -> None:
    """The parent is killed while the child records on, until the test lets it end."""

    async def parent() -> None:
        async with teller.agent() as agent:
            teller.record(agent, "parent", 40)
            pid = os.fork()
            if not pid:
                teller.record(agent, "child", 20)
                orphaned(started)
                teller.record(agent, "child", 20, 20)
                teller.pid("child")
                sys.stdin.readline()
                teller.record(agent, "child", 20, 40)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    started = os.getpid()
    asyncio.run(parent())


def spawned(command: list[str]) -> int:
    return os.posix_spawn(command[0], command, os.environ)


@scenario
def execute(teller: Teller) -> None:
    """Programs that are executed by fork and exec, and one by spawn, have agents of their own; a program that knows of
    no agent outlives the parent, and holds none of its locks.
    """

    async def parent() -> None:
        async with teller.agent() as agent:
            teller.record(agent, "parent", 20)
            command = [sys.executable, "-m", MODULE, "alone", json.dumps(teller.settings), str(teller.pipe)]
            pid = os.fork()
            if not pid:
                os.execv(sys.executable, [*command, "executed"])
            waited(pid, spawned([*command, "spawned"]))
            bystander = os.fork()
            if not bystander:
                os.close(teller.pipe)
                os.execv("/bin/cat", ["cat"])
            teller.say(f"P bystander {bystander}")
            teller.record(agent, "parent", 20, 20)
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(parent())


@scenario
def alone(teller: Teller) -> None:
    """A program with an agent, which ends in order."""

    async def live() -> None:
        async with teller.agent() as agent:
            teller.record(agent, sys.argv[4], 30)

    asyncio.run(live())


def _work(settings: dict[str, Any], pipe: Connection, who: str) -> None:
    """What a child of multiprocessing does where nothing was inherited."""
    teller = Teller(settings, pipe.fileno())

    async def live() -> None:
        agent = teller.agent()
        await agent.start()
        teller.record(agent, who, 30)

    asyncio.run(live())  # and does not stop


_inherited: list[tuple[Teller, Agent]] = []


def _work_on(who: str) -> None:
    """What a forked child of multiprocessing does: it records with the agent that it has inherited."""
    teller, agent = _inherited[0]
    teller.record(agent, who, 30)


@scenario
def multiprocess(teller: Teller) -> None:
    """Children of `multiprocessing`, forked ones in a pool and alone, and a spawned one; none stops its agent."""

    async def parent() -> None:
        async with teller.agent() as agent:
            teller.record(agent, "parent", 20)
            _inherited.append((teller, agent))
            pipe = Connection(os.dup(teller.pipe), readable=False)
            forking, spawning = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
            children: list[Any] = [forking.Process(target=_work_on, args=(f"forked-{at}",)) for at in range(2)]
            children.append(spawning.Process(target=_work, args=(teller.settings, pipe, "spawned")))
            for child in children:
                child.start()
            for child in children:
                child.join()
                assert child.exitcode == 0, f"{child} ended with {child.exitcode}"
            with forking.Pool(2) as pool:
                pool.map(_work_on, ["pooled-0", "pooled-1", "pooled-2", "pooled-3"], chunksize=1)
            teller.record(agent, "parent", 20, 20)

    asyncio.run(parent())


# -- ends ------------------------------------------------------------------------------------------------------------


@scenario
def closed_loop(teller: Teller) -> None:
    """Nobody stops; the loop is closed, and recording goes on until the interpreter ends."""

    async def live() -> Agent:
        agent = teller.agent()
        await agent.start()
        teller.record(agent, "loop", 30)
        return agent

    agent = asyncio.run(live())
    teller.record(agent, "later", 30)


@scenario
def stopped_in_another_loop(teller: Teller) -> None:
    """Started in a loop that is closed, stopped in another one."""
    agent = teller.agent()

    async def live() -> None:
        await agent.start()
        teller.record(agent, "loop", 30)

    asyncio.run(live())
    teller.record(agent, "between", 30)
    asyncio.run(agent.stop())
    agent.feature("after.stop")


@scenario
def daemon_threads(teller: Teller) -> None:
    """Daemon threads record until the very end of the interpreter."""

    async def live() -> Agent:
        agent = teller.agent()
        await agent.start()
        return agent

    agent = asyncio.run(live())
    begun = threading.Barrier(4)

    def on_and_on(who: str) -> None:
        teller.record(agent, who, 10)
        begun.wait()
        teller.record(agent, who, 10**9, 10)

    for at in range(3):
        threading.Thread(target=on_and_on, args=(f"daemon-{at}",), daemon=True).start()
    begun.wait()


@scenario
def exit_handlers(teller: Teller) -> None:
    """Handlers that were registered before and after the agent's record at exit; so does a finalizer."""
    import atexit
    import weakref

    agent = teller.agent()
    atexit.register(teller.record, agent, "first-handler", 10)

    async def live() -> None:
        await agent.start()
        teller.record(agent, "loop", 10)

    asyncio.run(live())
    atexit.register(teller.record, agent, "last-handler", 10)
    weakref.finalize(agent, teller.say, "F")


@scenario
def signalled(teller: Teller) -> None:
    """Records until a signal comes, and does what its name says then."""
    how = teller.settings.pop("how")

    async def live() -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        if how == "loop":
            loop.add_signal_handler(signal.SIGTERM, asked.set)
        if how == "exit":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        async with teller.agent() as agent:
            number = 0
            teller.pid("parent")
            while not asked.is_set():
                teller.record(agent, "parent", 20, number)
                number += 20
                if how == "cancelled":
                    await agent.flush(durable=True)
                await asyncio.sleep(0)
            teller.record(agent, "parent", 5, number)

    asyncio.run(live())


# -- at random -------------------------------------------------------------------------------------------------------


class Life:
    """One process of a random family: what it does follows from the seed and its name."""

    def __init__(self, teller: Teller, agent: Agent, seed: int, name: str, depth: int) -> None:
        self._teller, self._agent, self._seed, self._name, self._depth = teller, agent, seed, name, depth
        self._draw = random.Random(f"{seed}.{name}")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = self._children = 0
        self._going: list[int] = []
        self._threads: list[threading.Thread] = []

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self._draw.choice((self._record, self._record, self._fork, self._thread, self._start, self._flush))()
        self._record()

    def end(self) -> None:
        """The last thing that it does; a child that is still at work outlives it, now and then."""
        how = self._draw.choice(("stop", "exit", "exit hard", "kill"))
        if how != "kill" or self._draw.random() < 0.5:
            for pid in self._going:
                os.waitpid(pid, 0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stop":
            for thread in self._threads:  # what is recorded after the stop is ignored
                thread.join()
            self._run(self._agent.stop(timeout=0.0))
        if how == "exit hard":
            os._exit(0)
        sys.exit(0)

    def _record(self) -> None:
        count = self._draw.randrange(1, 30)
        self._teller.record(self._agent, self._name, count, self._told)
        self._told += count

    def _fork(self) -> None:
        if self._depth >= DEEPEST:
            return
        self._children += 1
        name = f"{self._name}.{self._children}"
        pid = os.fork()
        if pid:
            self._going.append(pid)
            if self._draw.random() < 0.3:
                os.waitpid(self._going.pop(), 0)
            return
        child = Life(self._teller, self._agent, self._seed, name, self._depth + 1)
        child.live(self._draw.randrange(1, 8))
        child.end()

    def _thread(self) -> None:
        """Another thread records while this one goes on; it may be there while the process forks."""
        self._children += 1
        name, count = f"{self._name}.t{self._children}", self._draw.randrange(1, 60)
        thread = threading.Thread(target=self._teller.record, args=(self._agent, name, count))
        self._threads.append(thread)
        thread.start()

    def _start(self) -> None:
        """Have the agent deliver for itself, in a loop of this process's own: nothing, where it does so already."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._agent.start())

    def _flush(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._agent.flush(durable=self._draw.random() < 0.5))

    def _run(self, call: Any) -> None:  # noqa: ANN401 - a coroutine
        loop = self._loop or asyncio.new_event_loop()
        loop.run_until_complete(call)


DEEPEST = 3


@scenario
def random_tree(teller: Teller) -> None:
    """Processes that fork, thread, start, flush and end at random."""
    seed = teller.settings.pop("seed")
    agent = teller.agent()
    root = Life(teller, agent, seed, "r", 0)
    root._start()
    root.live(16)
    root.end()


# -- the oracle ------------------------------------------------------------------------------------------------------


@dataclass
class Family:
    """What a family was told, and how it ended. `pids` are those that were named."""

    status: int
    told: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    pids: dict[str, int] = field(default_factory=dict)
    errors: str = ""

    def take(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            if not line.endswith(b"\n"):
                continue  # the last word of a process that was killed while it wrote
            what, *rest = line.decode().split()
            if what == "R":
                who, number = rest[0], int(rest[1])
                assert number == self.told[who], f"the pipe gives {line!r} after {self.told[who]}"
                self.told[who] += 1
            elif what == "P":
                self.pids[rest[0]] = int(rest[1])


_RUN = "import runpy; runpy.run_module('testkit.families', run_name='__main__')"


class Play:
    """A scenario being played, as a context: its process group is killed when that ends."""

    def __init__(
        self, name: str, store: Path, *more: str, sealed: bool = False, before: str = "", **settings: object
    ) -> None:
        """`before` is source that is run before anything of mailboat is imported."""
        run = ["-c", f"{before}\n{_RUN}"] if before else ["-m", MODULE]
        reading, writing = os.pipe()
        # No pipe: whoever outlives the family has it open, too.
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the context
        chosen = {"store": str(store), **({"seal_to": KEY.public.text} if sealed else {}), **settings}
        self.process = subprocess.Popen(
            [sys.executable, *run, name, json.dumps(chosen), str(writing), *more],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            pass_fds=[writing],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
        )
        os.close(writing)
        self._store = store
        self.pipe = os.fdopen(reading, "rb")
        self.family = Family(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.pipe, self.process.stdin, self.errors):
            if stream is not None:
                stream.close()

    def until(self, who: str) -> int:
        """Read on until `who` has said which process it is."""
        with self._patience():
            while who not in self.family.pids and (line := self.pipe.readline()):
                self.family.take([line])
        assert who in self.family.pids, f"it ended before {who} came: {self.process.wait()}"
        return self.family.pids[who]

    def until_told(self, who: str, count: int) -> None:
        """Read on until so many calls of `who` have returned."""
        with self._patience():
            while self.family.told[who] < count and (line := self.pipe.readline()):
                self.family.take([line])
        assert self.family.told[who] >= count, f"it ended before {who} had recorded {count}: {self.process.wait()}"

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """What is waited for in this context comes before long, or the family says where it stands, and ends."""
        with Patience(self.process.pid) as patience:
            yield
        patience.check(self._said)

    def _said(self) -> str:
        """What the family has written to standard error so far."""
        return os.pread(self.errors.fileno(), os.fstat(self.errors.fileno()).st_size, 0).decode()

    def _let_the_dead_let_go(self) -> None:
        """Wait until no session is locked any more: a process that dies closes the pipe before its locks, and would be
        taken for one that lives in between.
        """
        for lock in (self._store / PRODUCT / APPLICATION / "live").glob(f"*/{LOCK}"):
            with contextlib.suppress(FileNotFoundError), lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)

    def to_the_end(self) -> Family:
        """Read until all of the family have ended."""
        with self._patience():
            self.family.take(self.pipe)
            self.family.status = self.process.wait()
            self._let_the_dead_let_go()
        self.family.errors = self._said()
        return self.family


@dataclass(frozen=True)
class Kept:
    """One session of the store, as read back: who recorded in it how often; `reason` is its last segment's."""

    session_id: str
    parent: str | None
    counts: dict[str, int]
    reason: str
    records: int


def kept(store: Path, states: Sequence[str] = ("waiting",)) -> list[Kept]:
    """All sessions of the family in those folders; fails unless each is whole, and each one's records are in order."""
    folder, keys, found = store / PRODUCT / APPLICATION, Keyring([KEY]), []
    for session in sorted(path for state in states for path in (folder / state).glob("*-*")):
        counts: dict[str, int] = defaultdict(int)
        last, total, parent = "", 0, None
        for path in segment_paths(OsFileSystem(), session):
            reader = SegmentReader(path.read_bytes(), keys.unlock)
            for record in reader:
                assert record.sequence == total, f"{path}: {record}"
                total += 1
                if "who" in record.attributes:
                    who = record.attributes["who"]
                    assert record.attributes["n"] >= counts[who], f"{path}: {record}"
                    counts[who] += 1
            assert reader.intact, f"{path}: {reader.gaps}"
            assert reader.seal is not None
            assert reader.preamble is not None
            last, parent = reader.seal.reason.value, reader.preamble.info.get("parent")
        found.append(Kept(session.name, parent, dict(counts), last, total))
    return found


def assert_all_kept(family: Family, sessions: Sequence[Kept]) -> None:
    """What was told is there, once; of calls under way at a death one more record each may be."""
    sums: dict[str, int] = defaultdict(int)
    for session in sessions:
        for who, count in session.counts.items():
            sums[who] += count
    for who in {*sums, *family.told}:
        told, here = family.told[who], sums[who]
        assert told <= here <= told + 1, f"{who}: {told} calls had returned, {here} records are here; {family.errors}"


async def recover_all(store: Path) -> None:
    """Have an agent take up whatever dead processes have left, and end its own session."""
    agent = Agent(store=store, product=PRODUCT, application=APPLICATION, server=None)
    async with agent:
        await agent._recovered
        assert agent.status.trouble == ""


MODULE = "testkit.families"

if __name__ == "__main__":
    tell_when_asked()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its jobs in the background ignore it
    SCENARIOS[sys.argv[1]](Teller(json.loads(sys.argv[2]), int(sys.argv[3])))
