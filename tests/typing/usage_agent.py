"""The agent's public surface as a strictly typed host application uses it; checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable

from mailboat.agent import (
    Agent,
    AgentConfig,
    Alert,
    ConfigError,
    Level,
    Record,
    SessionOutcome,
    SyncProgress,
    SyncReport,
)


async def use(agent: Agent) -> None:
    agent.feature("import.csv", rows=1200, source="drive")
    agent.value("import.size", 18_230, unit="bytes", path="a")
    with agent.timing("import.parse", rows=3) as timing:
        timing.cancel()
    agent.event("cache.miss", level=Level.WARNING, message="text", key="k1")
    agent.exception()
    agent.exception(ValueError("no"), context="while importing", rows=1)
    agent.exception(ValueError("odd"), "while reading", level=Level.WARNING)
    agent.set_installation("inst-42", plan="pro")
    placed: Callable[..., None] = agent.emitter("order.placed", "user_id", "price")
    placed(7, 9.5)
    kept: bool = await agent.flush(durable=True)
    report: SyncReport = await agent.force_sync(timeout=30.0, progress=tell)
    session_id = agent.session_id
    if session_id is not None and kept and not report.complete:
        outcome: SessionOutcome = await agent.delivered(session_id, timeout=10.0)
        state: str = outcome.state
        known: tuple[str, int, str | None, str] = (state, report.bytes_left, report.error, agent.status.connectivity)
        print(known)  # noqa: T201
    agent.pause()
    agent.resume()
    agent.on_alert(decide)
    agent.on_alert(forget)


def tell(progress: SyncProgress) -> None:
    done: int = progress.sessions_done
    assert done <= progress.sessions


def decide(alert: Alert) -> bool | float | None:
    first: Record = alert[0]
    names: list[str] = [record.name for record in alert]
    if first.message is None or len(alert) + alert.omitted > 10:
        return 30.0
    return "harmless" not in names


def forget(_: Alert) -> None:
    return None


async def life() -> None:
    try:
        config = AgentConfig.load(server=None, product="Acme Studio")
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    agent = Agent(config)
    await agent.start()
    await agent.stop(timeout=0)
    async with Agent(server="https://collect.example.com", api_key="mbk_x", max_store_bytes=None) as other:
        await use(other)
