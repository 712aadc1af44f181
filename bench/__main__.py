"""``python -m bench``: run measurements, print a table of each, write its JSON."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from bench import (
    backlog,
    cuts,
    footprint,
    hot_path,
    ingesting,
    negotiating,
    peers,
    querying,
    sealing,
    takeover,
    tus,
    upload,
    whole_path,
)
from bench.harness import MIN_REPETITIONS, Measurement, Settings, compare
from bench.machine import machine, versions
from bench.results import Result
from bench.table import show

_ALL = (
    hot_path,
    whole_path,
    footprint,
    upload,
    tus,
    cuts,
    takeover,
    backlog,
    negotiating,
    ingesting,
    querying,
    sealing,
)
MEASUREMENTS = {each.NAME: cast("Measurement", each) for each in _ALL}
MIB = 1024 * 1024
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class _Asked:
    """The command line."""

    names: Sequence[str]
    repetitions: int | None
    size: int
    calls: int
    sessions: int
    records: int
    output: Path | None
    folder: Path | None


def _asked(arguments: Sequence[str]) -> _Asked:
    known = ", ".join(f"{name} ({each.ABOUT})" for name, each in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(prog="python -m bench", description=f"Measurements: {known}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="measurements to run; all of them if none is named")
    parser.add_argument("--repetitions", type=int, help="turns of each contender (default: as each measurement needs)")
    parser.add_argument("--size", type=int, default=512 * MIB, help="bytes to upload (default: 512 MiB)")
    parser.add_argument("--calls", type=int, default=20_000, help="recording calls (default: %(default)s)")
    parser.add_argument("--sessions", type=int, default=5000, help="sessions that wait (default: %(default)s)")
    parser.add_argument("--records", type=int, default=10_000_000, help="records asked about (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file for the JSON (default: bench/results/NAME.json)")
    parser.add_argument("--folder", type=Path, help="where to work: the disk to be measured (default: temporary files)")
    given = parser.parse_args(arguments)
    names = given.names or list(MEASUREMENTS)
    for name in names:
        if name not in MEASUREMENTS:
            parser.error(f"there is no measurement {name!r}, there are: {', '.join(MEASUREMENTS)}")
    if given.output is not None and len(names) > 1:
        parser.error("--output names one file: name one measurement too")
    for name in ("repetitions", "size", "calls", "sessions", "records"):
        number = getattr(given, name)
        if number is not None and number < 1:
            parser.error(f"--{name} {number}: expected a number above zero")
    return _Asked(
        names, given.repetitions, given.size, given.calls, given.sessions, given.records, given.output, given.folder
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


async def _measure(each: Measurement, asked: _Asked, folder: Path) -> Result:
    settings = Settings(folder, asked.size, asked.calls, asked.sessions, asked.records)
    repetitions = asked.repetitions or each.REPETITIONS
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    before = machine()
    async with aclosing(each.comparisons(settings)) as comparisons:
        outcomes = [await compare(comparison, repetitions, _progress) async for comparison in comparisons]
    _progress("")
    told = {"repetitions": repetitions, "size": asked.size, "calls": asked.calls, "sessions": asked.sessions}
    told["records"] = asked.records
    return Result(each.NAME, each.ABOUT, begun, before, versions(peers.PACKAGES), told, outcomes)


def main(arguments: Sequence[str]) -> None:
    """Run what `arguments` ask for."""
    asked = _asked(arguments)
    if asked.repetitions is not None and asked.repetitions < MIN_REPETITIONS:
        print(f"{asked.repetitions} repetitions show that it works; for figures take {MIN_REPETITIONS} or more")
    for name in asked.names:
        with tempfile.TemporaryDirectory(prefix="mailboat-bench-", dir=asked.folder) as folder:
            result = asyncio.run(_measure(MEASUREMENTS[name], asked, Path(folder)))
        output = asked.output or RESULTS / f"{name}.json"
        result.write(output)
        show(result.outcomes, result.about)
        print(f"written to {output}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
