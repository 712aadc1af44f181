"""A terminal that is connected for two minutes a day.

It records all day without any connection, and when the line is up it delivers as much as the window allows. What is
left goes on in the next window, at the very byte.

Run it with a server: MAILBOAT_SERVER=http://127.0.0.1:8787 MAILBOAT_API_KEY=mbk_... python
examples/connectivity_window.py
"""

from __future__ import annotations

import asyncio
import sys

from mailboat.agent import Agent, SyncProgress, SyncReport


def show(progress: SyncProgress) -> None:
    """One line that is written over."""
    print(f"\r{progress.bytes_sent} bytes sent, {progress.bytes_left} left", end="", file=sys.stderr)


async def use_window(agent: Agent, seconds: float) -> SyncReport:
    """The line is up for so many seconds."""
    report = await agent.force_sync(timeout=seconds, progress=show)
    print(file=sys.stderr)
    return report


async def main() -> int:
    """A day of readings, then one window; exit status 1 if something is left for tomorrow."""
    async with Agent(
        product="Acme Terminal", application="reader", version="3.1.0", synchronize_automatically=False, stop_timeout=0
    ) as agent:
        reading = agent.emitter("meter.reading", "meter", "kilowatt_hours")
        for minute in range(24 * 60):
            reading(minute % 12, minute * 0.25)
        report = await use_window(agent, seconds=120.0)
        for outcome in report.sessions:
            print(outcome.session_id, outcome.state, outcome.reason, outcome.bytes_left)
        print("all delivered" if report.complete else f"{report.bytes_left} bytes left: {report.error}")
        return 0 if report.complete else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
