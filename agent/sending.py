"""What delivers for a running agent, from the moment on in which it is loaded.

The modules that only delivering needs are a third of all. They are not loaded with the agent, whose import the host
waits for, but when an agent starts that has a server: on the store's thread, for which the event loop does not wait,
and before `Agent.start` returns. This is the one place that loads them. Of the libraries that they need, aiohttp is
loaded with the agent all the same: it takes ten times as long as they do, and would keep the interpreter from the event
loop for much of that, in whatever thread.

By then the process may be another one than when the agent was imported: it may have changed its root or its user, have
no descriptor left, or a newer version may lie where its modules were. Where loading fails, nothing of what is recorded
is harmed: the reason is logged and told (`trouble`), and it is tried again, every `LOAD_INTERVAL` seconds and by each
`force_sync`. What the application says meanwhile (that it pauses, what link there is) is heard once that succeeds.

No child is forked in the middle of it: it would wait for ever for a module that a thread of its parent was loading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final

import aiohttp  # noqa: F401 - see above

from mailboat.agent.clocks import Clocks
from mailboat.agent.config import TUS_SCHEME, AgentConfig
from mailboat.agent.descriptors import DESCRIPTORS
from mailboat.agent.eligibility import Eligibility
from mailboat.agent.log import log
from mailboat.agent.loops import owned
from mailboat.agent.report import SessionOutcome, SyncProgress, SyncReport, one_line
from mailboat.agent.sources import Sources

if TYPE_CHECKING:
    from mailboat.agent.delivery import Delivery
    from mailboat.agent.synchronizer import Synchronizer

LOAD_INTERVAL: Final = 5.0
"""Seconds between two tries to load what delivers: what keeps it from that, such as a want of descriptors, may pass."""


class Sending:
    """Delivers what comes from `sources` (see `begin`) as `config` says. Used within one loop, but for `load`."""

    def __init__(self, config: AgentConfig, clocks: Clocks, disk: Executor) -> None:
        """`disk` is the store's thread."""
        self._config, self._clocks, self._disk = config, clocks, disk
        self._assemble: Callable[[AgentConfig, str, Clocks, Sources], Delivery] | None = None
        self._said: tuple[str, Sources] | None = None
        self._delivery: Delivery | None = None
        self._unheard: list[Callable[[Synchronizer], None]] = []
        self._listeners: Sequence[Callable[[SessionOutcome], None]] = ()
        self._automatic = config.synchronize_automatically and config.sender
        self._abandoned = False
        self.eligibility: Eligibility | None = None
        """When the running session is to be sent, where that is done by itself."""
        self.trouble = ""
        """Why nothing can be sent, while what delivers cannot be loaded."""

    def load(self) -> None:
        """Load what delivers, unless it is. Blocks, and never raises."""
        if self._assemble is not None:
            return
        try:
            with DESCRIPTORS.unforked():
                from mailboat.agent.delivery import assemble  # noqa: PLC0415 - see above

                if str(self._config.server).startswith(TUS_SCHEME):
                    import mailboat.agent.tus_sink  # noqa: F401, PLC0415 - `delivery` finds it loaded
        except Exception as error:  # noqa: BLE001 - whatever a disk, a package or its files do; it is told, and tried again
            told = one_line(f"what delivers cannot be loaded: {type(error).__name__}: {error}")
            if told != self.trouble:
                log.warning("%s; what is recorded is kept, and it is tried again", told)
            self.trouble = told
        else:
            self._assemble, self.trouble = assemble, ""

    def begin(
        self,
        agent: str,
        sources: Sources,
        recorded: Callable[[], int],
        listeners: Sequence[Callable[[SessionOutcome], None]],
        recovered: asyncio.Task[None],
    ) -> list[asyncio.Task[None]]:
        """Deliver from now on, as soon as it can be, but by itself only once what crashed is `recovered`; returns the
        tasks that do it. `agent` names the sender to the server, `recorded` tells how many records the running session
        has, `listeners` are told of outcomes.
        """
        self._said, self._listeners = (agent, sources), listeners
        if self._automatic:
            self.eligibility = Eligibility(self._clocks, recorded, self._wake, self._config.alert_interval)
        self._put_together()
        running = owned(self._run(recovered), "mailboat-sync")
        if self.eligibility is None:
            return [running]
        return [running, owned(self.eligibility.watch(), "mailboat-watch")]

    def _put_together(self) -> None:
        if self._assemble is None or self._said is None or self._delivery is not None or self._abandoned:
            return
        agent, sources = self._said
        self._delivery = self._assemble(self._config, agent, self._clocks, sources)
        self._delivery.synchronizer.listeners += self._listeners
        unheard, self._unheard = self._unheard, []
        for call in unheard:
            call(self._delivery.synchronizer)

    @property
    def synchronizer(self) -> Synchronizer | None:
        """What delivers, once it is loaded and until its loop is gone."""
        return self._delivery.synchronizer if self._delivery is not None and not self._abandoned else None

    async def _loaded(self) -> Synchronizer | None:
        """What delivers; it is loaded, if it is not. None, and `trouble` says why, where that fails."""
        if self._delivery is None:
            await asyncio.get_running_loop().run_in_executor(self._disk, self.load)
            self._put_together()
        return self.synchronizer

    async def window(self, seconds: float | None, progress: Callable[[SyncProgress], None] | None) -> SyncReport:
        """See `Synchronizer.window`."""
        sync = await self._loaded()
        if sync is None:
            return SyncReport(error=self.trouble)
        report = await sync.window(seconds, progress)
        if self.eligibility is not None and report.error is None:  # else a trigger that was near must still come
            self.eligibility.offered()
        return report

    def _wake(self) -> None:
        self.tell(lambda sync: sync.wake(include_live=True))

    @property
    def on_errors(self) -> Callable[[float], None] | None:
        """What is to be called when there were errors, if they are to be sent."""
        return self.eligibility.errors if self.eligibility is not None and self._config.send_on_error else None

    def errors_no_more(self) -> None:
        """No error matters any more."""
        if self.eligibility is not None:
            self.eligibility.close()

    async def _run(self, recovered: asyncio.Task[None]) -> None:
        while self.synchronizer is None:
            await asyncio.sleep(LOAD_INTERVAL)
            await self._loaded()
        if self._automatic:
            await asyncio.wait([recovered])
            await self.synchronizer.run(self._config.startup_delay)

    def tell(self, call: Callable[[Synchronizer], None]) -> None:
        """`call` what delivers, now or once it is loaded."""
        if self.synchronizer is not None:
            call(self.synchronizer)
        else:
            self._unheard.append(call)

    def abandon(self) -> None:
        """Its loop is gone: nothing can be delivered any more."""
        self._abandoned = True

    async def close(self) -> None:
        """Let go of all connections."""
        if self._delivery is not None:
            await self._delivery.http.close()
