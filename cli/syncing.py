"""Sending what waits in stores whose applications do not run: the agent's own synchronizer, without an agent.

Sessions left by a crash are recovered first, as an agent does at its start. A running application's session is its own:
it is not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.delivery import assemble
from mailboat.agent.files import OsFileSystem
from mailboat.agent.host import boot_id
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.report import SyncProgress, SyncReport
from mailboat.agent.sources import Live, Sources
from mailboat.agent.store import Store
from mailboat.agent.stores import Stores
from mailboat.protocol import __version__
from mailboat.protocol.errors import ConfigError

Progress = Callable[[SyncProgress], None]
AGENT = f"mailboat-cli/{__version__}"


def deliver(
    config: AgentConfig, stores: Sequence[Path], timeout: float | None, progress: Progress
) -> Iterator[tuple[Path, SyncReport, list[str]]]:
    """Send everything that waits in each of the `stores` (folders of applications), one after the other.

    Yields each with its report and with what could not be recovered. `timeout` is seconds for all of them; without it,
    the first failure of the connection ends the attempt.
    """
    clocks = Clocks()
    deadline = None if timeout is None else clocks.now() + timeout
    for folder in stores:
        left = None if deadline is None else max(0.0, deadline - clocks.now())
        store = open_store(folder)
        troubles = recover_crashed(store)
        report = asyncio.run(_deliver(config, store, clocks, left, progress))
        yield folder, report, troubles


def open_store(folder: Path) -> Store:
    """The store of one application, by its folder; `StoreError` when it cannot be used."""
    store = Store.at(OsFileSystem(), folder)
    store.open()
    return store


def recover_crashed(store: Store) -> list[str]:
    """Bring sessions whose process died to rest; a line for each that could not be."""
    troubles = []
    store.sweep()
    for session in store.crashed():
        error = bring_to_rest(store, session, boot_id())
        if isinstance(error, OSError | ConfigError):
            troubles.append(f"session {session.path.name} cannot be recovered: {error}")
        elif error is not None:
            troubles.append(f"session {session.path.name} cannot be read, it is put aside: {error}")
    return troubles


async def _deliver(
    config: AgentConfig, store: Store, clocks: Clocks, seconds: float | None, progress: Progress
) -> SyncReport:
    with _one_thread() as disk:
        stores = Stores(store)
        delivery = assemble(replace(config, sender=True), AGENT, clocks, Sources(stores, live=_no_session, disk=disk))
        http, synchronizer = delivery.http, delivery.synchronizer
        try:
            report = await synchronizer.window(seconds, progress)
            await synchronizer.finish()
        finally:
            await http.close()
    stores.cease_sending()
    return report


async def _no_session() -> Live | None:
    """There is no running session here."""
    return None


@contextmanager
def _one_thread() -> Iterator[Executor]:
    """The store's thread: its operations must not overtake each other."""
    with ThreadPoolExecutor(1, thread_name_prefix="mailboat-store") as disk:
        yield disk
