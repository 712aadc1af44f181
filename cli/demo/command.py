"""`mailboat demo`."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

import click

from mailboat.cli.extras import Failure, needing


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's folder: the server's data, the store, the logs.")
def demo(keep: bool) -> None:
    """See the whole job on this machine, in under a minute, with an outage and a kill -9.

    A program records what it finds in Python's standard library. It is killed, started again, cut off, and has a
    connection for a few seconds at a time. In the end, each record it was told was recorded is compared with what the
    server gives back. The exit status is 0 only if nothing is missing and nothing doubled.
    """
    import asyncio

    with needing("server"):
        from mailboat.server import serving as _  # noqa: F401 - what is missing is told before anything is begun
    folder = Path(tempfile.mkdtemp(prefix="mailboat-demo-"))
    try:
        holds = asyncio.run(_tell(folder))
    except asyncio.CancelledError:
        raise Failure("ended by a signal") from None
    finally:
        if keep:
            click.echo(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if not holds:
        raise click.exceptions.Exit(1)


async def _tell(folder: Path) -> bool:
    import aiohttp

    from mailboat.cli.demo.processes import ChildFailed
    from mailboat.cli.demo.report import report
    from mailboat.cli.demo.story import Story
    from mailboat.cli.demo.voice import Voice

    _end_on_signals()
    voice = Voice()
    try:
        findings = await Story(folder, voice).tell()
    except (ChildFailed, OSError, aiohttp.ClientError) as error:
        raise Failure(f"the demo did not come to its end: {error}") from error
    return report(findings, voice)


def _end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end the demo as Ctrl-C does, so that its processes and its folder are gone afterwards."""
    import asyncio

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
