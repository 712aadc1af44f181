"""Many agents and one server in one event loop of virtual time, from one seed: real cores, random bad luck.

Whatever happened, once the network heals and everybody is left alone: all is delivered, nothing twice, the accounts
balance. `World.live` runs it; `complaints` says what of it does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mailboat.agent.allowance import BURST, DAY, day_of
from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.connectivity import Link
from mailboat.agent.link_policy import LinkState, urgent_when_metered
from mailboat.agent.sources import Live, Sources
from mailboat.agent.store import QUARANTINED, SENT, WAITING, Store
from mailboat.agent.stores import Stores
from mailboat.agent.synchronizer import Synchronizer
from mailboat.agent.traffic import BudgetFile, Traffic
from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.limits import MAX_RETRY_AFTER
from mailboat.protocol.summary import Info
from mailboat.server.policy import Details, Plan
from testkit.guard import Guarded
from testkit.segments import START, Segment, event, feature
from testkit.simnet import Line, Seen, SimHttp
from testkit.simserver import SimServer
from testkit.virtual import Inline, VirtualLoop

PRODUCT = "Acme Studio"
AGENT = "mailboat-python/0.1.0"
MISFORTUNES = 7
"""What befalls an agent, on average."""
PATIENCE = MAX_RETRY_AFTER + 4 * 3600.0
"""Seconds after healing in which all must be there: the longest Retry-After that is obeyed, and the pauses on top."""


@dataclass
class Made:
    """A session as it was recorded."""

    session_id: str
    segments: list[bytes]
    records: int
    errors: bool


async def _nobody() -> Live | None:
    return None


class Rumours:
    """In place of the kernel: tells of a new way to others when a test does."""

    def __init__(self) -> None:
        self.told: Callable[[], None] | None = None

    def listen(self, told: Callable[[], None]) -> None:
        self.told = told

    def leave(self) -> None:
        self.told = None


@dataclass
class SimAgent:
    """One store and the process that sends for it, which may be killed and started anew."""

    name: str
    root: Path
    loop: VirtualLoop
    draw: random.Random
    server: SimServer
    config: AgentConfig
    made: list[Made] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    seen: Seen = field(default_factory=Seen)
    wall: float = START + 86_400.0
    paused: bool = False

    def __post_init__(self) -> None:
        self.files, self.disk = Guarded(self.root, PRODUCT, self.name), Inline()
        # A budget that stories of an hour run into: smaller than anybody may configure.
        self.budget = None if self.config.daily_bytes is None else self.draw.choice([10_000, 25_000])
        self.line = Line(
            self.draw, latency=self.draw.choice([0.01, 0.1, 1.0]), bandwidth=10 ** self.draw.uniform(3.5, 6)
        )
        self.days: dict[int, int] = {}
        self.clocks = Clocks(
            monotonic=lambda: int(self.loop.now * 1e9),
            wall=lambda: int((self.wall + self.loop.now) * 1e9),
            entropy=self.draw.randbytes,
            chance=self.draw.random,
            east=lambda _: 0.0,
        )
        store = Store(self.files, self.root, PRODUCT, self.name)
        store.open()
        self.folder = store.folder
        self.start()

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.http = SimHttp(self.server, self.line, self.seen)
        self.stores = Stores(Store(self.files, self.root, PRODUCT, self.name))
        file = None
        if self.budget is not None:
            file = BudgetFile(self.files, self.folder, self.budget)
        traffic = Traffic(self.clocks, self.config.max_upload_rate, file, self.disk)
        sources = Sources(self.stores, _nobody, self.disk)
        self.ways = Rumours()
        self.sync = Synchronizer(
            self.http, sources, self.clocks, self.config, agent="mailboat-python/1", traffic=traffic, ways=self.ways
        )
        self.sync.listeners.append(lambda outcome: self.outcomes.update([outcome.session_id]))
        self.running = asyncio.create_task(self.sync.run(self.draw.uniform(0, 5)))
        self.paused = False

    async def kill(self) -> None:
        """No orderly end: tasks stop where they are, and the kernel lets go of the locks."""
        await self.sync.close()
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.sync.finish()
        self.stores.cease_sending()

    def pause(self) -> None:
        self.paused = self.http.paused = True
        self.sync.pause()

    def resume(self) -> None:
        self.paused = self.http.paused = False
        self.sync.resume()

    async def window(self, seconds: float) -> None:
        self.http.window_open += 1
        try:
            await self.sync.window(seconds)
        finally:
            self.http.window_open -= 1

    # -- what it records -----------------------------------------------------------------------------------------

    def record(self, *, told: bool = True) -> Made:
        """A session has ended and waits to be sent; one that this process is not `told` of is another's."""
        session_id = new_id(int(self.clocks.wall() // 10**6), self.draw.randbytes(ENTROPY_BYTES))
        errors = self.draw.random() < 0.3
        segments, first = [], 0
        for index in range(self.draw.choice([1, 1, 1, 2, 3])):
            segment = Segment(session_id, index, first, Info(product=PRODUCT, application=self.name, version="1.0"))
            raw = [feature("noise", noise=self.draw.randbytes(int(10 ** self.draw.uniform(1, 4.3))))]
            if errors:
                raw.append(event("trouble", level=40))
            segment.block(raw)
            segments.append(segment.seal())
            first += len(raw)
        made = Made(session_id, segments, first, errors)
        folder = self.folder / WAITING / session_id
        fresh = self.folder / "new" / session_id
        fresh.mkdir()
        for index, content in enumerate(segments):
            (fresh / f"{index:06d}.zst").write_bytes(content)
        fresh.rename(folder)
        self.made.append(made)
        if told:
            self.sync.wake()
        return made

    # -- what must hold ------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self.files.names(self.folder / WAITING)

    def complaints(self) -> list[str]:
        return [f"{self.name}: {each}" for each in (*self._sessions(), *self._account(), *self._limits())]

    def _sessions(self) -> list[str]:
        wrong = []
        sent, aside = (set(self.files.names(self.folder / place)) for place in (SENT, QUARANTINED))
        for made in self.made:
            poisoned = made.session_id in self.server.poison
            whole = self.server.holds(made.session_id, made.segments)
            said = self.stores.receipt(made.session_id)
            fate = said.fate if said is not None else "gone"
            wanted = made.session_id in self.server.wanted
            if fate == "declined" and not whole and not wanted:
                continue  # whatever becomes of its uploads, the server has said that it needs none
            if poisoned and (fate != QUARANTINED or whole or made.session_id not in aside):
                wrong.append(f"poisoned {made.session_id} is {fate}")
            elif not poisoned and (made.session_id not in sent or (fate == "accepted") is not whole):
                wrong.append(f"{made.session_id} is {fate}, and the server {'has' if whole else 'has not'} all of it")
            elif not poisoned and not whole and self.server.told.get(made.session_id) not in ("decline", "reject"):
                wrong.append(
                    f"{made.session_id} is {fate}, and the server said {self.server.told.get(made.session_id)}"
                )
        return wrong

    def _account(self) -> list[str]:
        ledger = self.sync.backlog.ledger
        by_fate = Counter[str]()
        for made in self.made:
            said = self.stores.receipt(made.session_id)
            by_fate[said.fate if said is not None else "gone"] += made.records
        told = {
            "accepted": ledger.accepted,
            "declined": ledger.declined,
            "rejected": sum(ledger.rejected.values()) - ledger.rejected.get(QUARANTINED, 0),
            QUARANTINED: ledger.rejected.get(QUARANTINED, 0),
            "pending": ledger.pending,
        }
        balanced = ledger.recorded == sum(made.records for made in self.made)
        right = {fate: count for fate, count in told.items() if count} == dict(by_fate)
        return [] if balanced and right else [f"the ledger says {told}, it is {dict(by_fate)}"]

    def _limits(self) -> list[str]:
        wrong = [f"sent while paused: {each}" for each in self.seen.forbidden]
        wrong += [f"trouble: {self.sync.trouble}"] if self.sync.trouble else []
        rate, budget = self.config.max_upload_rate, self.budget
        largest = max((count for _, count in self.seen.pieces), default=0)
        if rate is not None:
            level, since = 0.0, 0.0
            for at, count in self.seen.pieces:
                level, since = max(0.0, level - (at - since) * rate) + count, at
                if level > rate * BURST + largest + 1:
                    wrong.append(f"at {at} it is {level - rate * BURST:.0f} bytes ahead of its rate {rate}")
                    break
        if budget is not None:
            most = max(self.days.values(), default=0)
            if most > budget + max((count for _, count in self.seen.bodies), default=0):
                wrong.append(f"{most} bytes on one day, {budget} are allowed")
        return wrong

    def note_day(self) -> None:
        """Count what was sent since the last call for the latest day that the wall clock has shown."""
        done = sum(count for _, count in self.seen.pieces)
        day = max([day_of(self.clocks.local()), *self.days])
        self.days[day] = self.days.get(day, 0) + done - sum(self.days.values())


class World:
    """`live` it once."""

    def __init__(self, loop: VirtualLoop, root: Path, seed: int, agents: int, hours: float, sessions: int) -> None:
        """`agents` stores, each with about so many `sessions`, in `hours` of bad luck."""
        self.loop, self.root, self.seed = loop, root, seed
        self.draw = random.Random(seed)
        self.hours, self.sessions = hours, sessions
        details = self.draw.choice([Details.ALL, Details.ALL, Details.ERRORS, Details.SHARE])
        plan = Plan(details=details, share=0.5, sync_interval=self.draw.choice([None, None, 120.0, 600.0]))
        unreasonable = self.draw.random() < 0.05
        self.server = SimServer(self.draw, lambda: START + 86_400.0 + loop.now, PRODUCT, unreasonable, plan)
        self.agents = [self._agent(f"app-{number}") for number in range(agents)]

    def _agent(self, name: str) -> SimAgent:
        draw = random.Random(f"{self.seed} {name}")
        config = AgentConfig(
            server="http://server.example",
            product=PRODUCT,
            application=name,
            sync_interval=draw.choice([60.0, 300.0, 900.0]),
            upload_concurrency=draw.choice([1, 2, 5]),
            max_upload_rate=draw.choice([None, None, 2048, 50_000]),
            daily_bytes=draw.choice([*[None] * 7, 100_000]),
            policy=draw.choice([None, None, urgent_when_metered]),
        )
        return SimAgent(name, self.root, self.loop, draw, self.server, config)

    async def live(self) -> list[str]:
        """Bad luck, then healing; returns what is wrong in the end."""
        end = self.loop.now + self.hours * 3600.0
        for agent in self.agents:
            for _ in range(self.draw.randrange(self.sessions)):
                self._record(agent)
        misfortunes = [self._misfortunes(agent, end) for agent in self.agents]
        await asyncio.gather(self._servers_misfortunes(end), *misfortunes)
        self._heal()
        deadline = self.loop.now + PATIENCE + sum(self._days_needed(agent) for agent in self.agents) * DAY
        while self.loop.now < deadline and not self._settled():
            await asyncio.sleep(60.0)
            self._note_days()
        wrong = [each for agent in self.agents for each in agent.complaints()]
        for agent in self.agents:
            await agent.kill()
        return wrong

    def _settled(self) -> bool:
        return all(agent.idle for agent in self.agents) and not self.server.declined & self.server.wanted

    def _days_needed(self, agent: SimAgent) -> int:
        size = sum(len(segment) for made in agent.made for segment in made.segments)
        return 0 if agent.budget is None else 3 + 2 * size // agent.budget

    def _record(self, agent: SimAgent) -> None:
        made = agent.record()
        if self.draw.random() < 0.05:
            self.server.poison.add(made.session_id)

    def _note_days(self) -> None:
        for agent in self.agents:
            agent.note_day()

    def _heal(self) -> None:
        self.server.trouble, self.server.refusing = 0.0, False
        if self.draw.random() < 0.3:  # details that were declined are asked for after all
            self.server.wanted = set(self.server.declined)
        for agent in self.agents:
            self._record(agent)
            agent.line.up, agent.line.portal, agent.line.silent, agent.line.loss = True, False, False, 0.0
            agent.sync.set_way(LinkState())
            agent.resume()

    async def _servers_misfortunes(self, end: float) -> None:
        while self.loop.now < end:
            await asyncio.sleep(self.draw.expovariate(MISFORTUNES / (self.hours * 3600.0)))
            what = self.draw.choice(["trouble", "well", "well", "refusing", "restart", "forget"])
            self.server.trouble = self.draw.choice([0.1, 0.5, 1.0]) if what == "trouble" else 0.0
            self.server.refusing = what == "refusing"
            if what == "restart":
                self.server.restart()
            if what == "forget":
                self.server.forget()

    async def _misfortunes(self, agent: SimAgent, end: float) -> None:
        events: dict[str, Callable[[], object]] = {
            "down": lambda: setattr(agent.line, "up", False),
            "up": lambda: self._up(agent),
            "portal": lambda: setattr(agent.line, "portal", True),
            "silent": lambda: setattr(agent.line, "silent", True),
            "loss": lambda: setattr(agent.line, "loss", agent.draw.choice([0.05, 0.3])),
            "record": lambda: self._record(agent),
            "pause": agent.pause,
            "resume": agent.resume,
            "metered": lambda: agent.sync.set_way(LinkState(metered=agent.draw.random() < 0.5)),
            "clock": lambda: self._set_clock(agent),
            "route": lambda: agent.ways.told is not None and agent.ways.told(),
        }
        names = [*events, "window", "kill", "up", "up", "record", "resume"]
        while self.loop.now < end:
            await asyncio.sleep(agent.draw.expovariate(MISFORTUNES / (self.hours * 3600.0)))
            agent.note_day()
            what = agent.draw.choice(names)
            if what == "kill":
                await agent.kill()
                agent.start()
            elif what == "window":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(agent.window(agent.draw.uniform(0, 20)), agent.draw.uniform(0, 30))
            else:
                events[what]()

    @staticmethod
    def _up(agent: SimAgent) -> None:
        agent.line.up, agent.line.portal, agent.line.silent, agent.line.loss = True, False, False, 0.0
        if agent.draw.random() < 0.5 and agent.sync.link.link is not Link.PAUSED:
            agent.sync.resume()

    @staticmethod
    def _set_clock(agent: SimAgent) -> None:
        agent.note_day()
        agent.wall += agent.draw.choice([-1, 1]) * agent.draw.choice([1.0, 3600.0, 3 * 3600.0])


async def lived(loop: VirtualLoop, root: Path, seed: int, agents: int, hours: float, sessions: int) -> list[str]:
    """What is wrong at the end of a world."""
    return await World(loop, root, seed, agents, hours, sessions).live()
