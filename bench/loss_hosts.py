"""An application that reports with one of the contenders: ``python -m bench.loss_hosts NAME --url URL ...``.

It records events at a given rate, each with a number of its own, and writes ``NUMBER NANOSECONDS`` when the call has
returned: from then on the event counts as recorded. Then it writes ``end``, leaves as the contender's documentation
has it, and exits. With ``--later`` it records nothing, and stays until its input ends: the next run of the
application, in which contenders that keep what they could not send may send it.

Each contender is set up as its documentation has it for a program of this kind, with its own defaults throughout.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.metadata
import inspect
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ID: Final = "loss_id"
"""What an event's number is called."""

Record = Callable[[int], Awaitable[object] | object]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender sends to, and where it may keep files from run to run."""

    url: str
    key: str
    folder: Path


@asynccontextmanager
async def mailboat(place: Place) -> AsyncIterator[Record]:
    """An agent, and ``async with``."""
    from mailboat.agent import Agent  # noqa: PLC0415 - each process needs one contender

    agent = Agent(server=place.url, api_key=place.key, product="bench", application="loss", store=place.folder)
    async with agent:
        yield lambda number: agent.feature("loss", **{ID: number})


@asynccontextmanager
async def aptabase(place: Place) -> AsyncIterator[Record]:
    """A client, and ``async with``; `track` is to be awaited."""
    client = importlib.import_module("aptabase").Aptabase("A-SH-0000000000", base_url=place.url + "/")
    async with client:
        yield lambda number: client.track("loss", {ID: number})


@asynccontextmanager
async def posthog(place: Place) -> AsyncIterator[Record]:
    """A client, and `shutdown` at the end."""
    client = importlib.import_module("posthog").Posthog("phc_bench", host=place.url)
    try:
        yield lambda number: client.capture("loss", distinct_id="host", properties={ID: number})
    finally:
        client.shutdown()


@asynccontextmanager
async def sentry(place: Place) -> AsyncIterator[Record]:
    """`init`; what is left at the end is sent by its own hook at exit."""
    sdk = importlib.import_module("sentry_sdk")
    sdk.init(dsn=place.url.replace("://", "://0123456789abcdef@") + "/1")

    def record(number: int) -> None:
        with sdk.new_scope() as scope:
            scope.set_tag(ID, str(number))
            sdk.capture_message("loss")

    yield record


@asynccontextmanager
async def glean(place: Place) -> AsyncIterator[Record]:
    """`initialize` and an event metric, sent in the built-in ``events`` ping; the end is its own hook at exit."""
    package, metrics = importlib.import_module("glean"), importlib.import_module("glean.metrics")
    configuration = package.Configuration(server_endpoint=place.url)
    package.Glean.initialize("bench-loss", "1.0", True, configuration=configuration, data_dir=place.folder)  # noqa: FBT003
    common = importlib.import_module("glean._uniffi").CommonMetricData(
        category="bench",
        name="loss",
        send_in_pings=["events"],
        lifetime=importlib.import_module("glean._uniffi").Lifetime.PING,
        disabled=False,
    )
    event = metrics.EventMetricType(common, [ID])

    class Extra(metrics.EventExtras):  # type: ignore[name-defined, misc] # the package may not be here
        def __init__(self, number: int) -> None:
            self.number = number

        def to_ffi_extra(self) -> dict[str, str]:
            return {ID: str(self.number)}

    yield lambda number: event.record(Extra(number))


@dataclass(frozen=True, slots=True)
class Contender:
    """`package` is its name at the registry, `module` the one that is imported."""

    package: str
    module: str
    hosted: Callable[[Place], AbstractAsyncContextManager[Record]]

    @property
    def version(self) -> str | None:
        """The one that is installed; None if there is none."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


CONTENDERS: Final = {
    "mailboat": Contender("mailboat", "mailboat.agent", mailboat),
    "Aptabase": Contender("aptabase", "aptabase", aptabase),
    "PostHog": Contender("posthog", "posthog", posthog),
    "Sentry": Contender("sentry-sdk", "sentry_sdk", sentry),
    "Glean": Contender("glean-sdk", "glean", glean),
}


async def record_all(record: Record, events: int, rate: float) -> None:
    """Record so many events, `rate` a second (all at once if that is zero), and tell of each."""
    begun = time.monotonic()
    for number in range(events):
        before = time.perf_counter_ns()
        returned = record(number)
        if inspect.isawaitable(returned):
            await returned
        took = time.perf_counter_ns() - before
        os.write(1, f"{number} {took}\n".encode())
        if rate:
            await asyncio.sleep(max(0.0, begun + (number + 1) / rate - time.monotonic()))


async def run(contender: Contender, place: Place, events: int, rate: float, *, later: bool) -> None:
    """One run of the application."""
    async with contender.hosted(place) as record:
        if later:
            await asyncio.to_thread(sys.stdin.read)
        await record_all(record, events, rate)
        os.write(1, b"end\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--later", action="store_true")
    asked: Any = parser.parse_args(arguments)
    place = Place(asked.url, asked.key, asked.folder)
    asyncio.run(run(CONTENDERS[asked.name], place, asked.events, asked.rate, later=asked.later))


if __name__ == "__main__":
    main()
