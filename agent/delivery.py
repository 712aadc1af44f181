"""Puts together what delivers: connections, limits, synchronizer; for an agent, and for the command line."""

from __future__ import annotations

from concurrent.futures import Executor

from msgspec import Struct
from yarl import URL

from mailboat.agent.clocks import Clocks
from mailboat.agent.config import TUS_SCHEME, AgentConfig
from mailboat.agent.files import FileSystem
from mailboat.agent.http import Http
from mailboat.agent.rounds import Sink
from mailboat.agent.routes import Routes
from mailboat.agent.sources import Sources
from mailboat.agent.stores import Stores
from mailboat.agent.synchronizer import Synchronizer
from mailboat.agent.traffic import BudgetFile, Traffic


class Delivery(Struct, frozen=True):
    """What delivers to the configured server: close `http` after `synchronizer.finish()`."""

    http: Http
    synchronizer: Synchronizer


def assemble(config: AgentConfig, agent: str, clocks: Clocks, sources: Sources) -> Delivery:
    """Deliver what comes from `sources`; `agent` names the sender to the server. Within a running loop."""
    stores, disk = sources.stores, sources.disk
    traffic = _traffic(config, clocks, stores, disk)
    http, sink = _connect(config, agent, clocks, stores.own.files, disk, traffic)
    synchronizer = Synchronizer(http, sources, clocks, config, agent=agent, traffic=traffic, sink=sink, ways=Routes())
    return Delivery(http, synchronizer)


def _connect(
    config: AgentConfig, agent: str, clocks: Clocks, files: FileSystem, disk: Executor, traffic: Traffic
) -> tuple[Http, Sink | None]:
    """The connections to the configured server, and what delivers there if it is a plain tus server."""
    server = config.server or ""
    target = server.removeprefix(TUS_SCHEME)
    http = Http(target, config.api_key, agent, config.ssl)
    if target == server:
        return http, None
    from mailboat.agent.tus_sink import TusSink  # noqa: PLC0415 - see `sending`

    return http, TusSink(http, str(URL(target)), config.product, clocks, files, disk, traffic)


def _traffic(config: AgentConfig, clocks: Clocks, stores: Stores, disk: Executor) -> Traffic:
    file = None
    if config.daily_bytes is not None:
        folder = stores.own.folder.parent if config.send_all_applications else stores.own.folder
        file = BudgetFile(stores.own.files, folder, config.daily_bytes)
    return Traffic(clocks, config.max_upload_rate, file, disk)
