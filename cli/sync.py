"""`mailboat sync`: send everything that waits, now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailboat.cli import output
from mailboat.cli.extras import Misuse, told_plainly
from mailboat.cli.stores import State, store_option, stored_sessions

if TYPE_CHECKING:
    from mailboat.agent.config import AgentConfig
    from mailboat.agent.report import SyncProgress, SyncReport

LEFT = 1


@click.command()
@store_option
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to try; without it, until the connection fails.")
@click.option("--server", help="The server's URL, if MAILBOAT_SERVER or mailboat.toml do not name it.")
@click.option("--product", help="Send the sessions of this product only: that of the key.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def sync(store: Path, timeout: float | None, server: str | None, product: str | None, as_json: bool) -> None:
    """Send everything that waits, sessions left by a crash included.

    The key is taken from MAILBOAT_API_KEY or mailboat.toml. The exit status is 1 when something is left, or refused.
    """
    with told_plainly():
        from mailboat.agent.config import AgentConfig
        from mailboat.cli.syncing import deliver

        config = AgentConfig.load(**{"server": server} if server else {})
        folders = _folders(store, product or config.product, config)
        left = False
        with _bar() as progress:
            for folder, report, troubles in deliver(config, folders, timeout, progress):
                _tell(folder, report, troubles, as_json=as_json)
                left |= bool(troubles) or not report.complete or _refused(report)
    if left:
        raise click.exceptions.Exit(LEFT)


def _folders(root: Path, product: str, config: AgentConfig) -> list[Path]:
    """The stores below `root` that the key may send for."""
    from mailboat.agent.store import folder_name

    if not config.server:
        raise Misuse("there is no server to send to: give --server, or set MAILBOAT_SERVER")
    waiting = [session for session in stored_sessions(root) if session.state in (State.LIVE, State.WAITING)]
    folders = sorted({session.store for session in waiting})
    if product:
        return [folder for folder in folders if folder.parent.name in (product, folder_name(product))]
    products = sorted({folder.parent.name for folder in folders})
    if len(products) > 1:
        # A key reaches one product; the server would refuse the sessions of the others, for good.
        raise Misuse(f"the store holds sessions of several products ({', '.join(products)}): name one with --product")
    return folders


def _refused(report: SyncReport) -> bool:
    """Whether a session will never be at the server, though it was not the server's plan to do without it."""
    return any(outcome.state in ("quarantined", "rejected") for outcome in report.sessions)


def _tell(folder: Path, report: SyncReport, troubles: list[str], *, as_json: bool) -> None:
    for text in troubles:
        output.warn(text)
    states = [str(outcome.state) for outcome in report.sessions]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    name = f"{folder.parent.name}/{folder.name}"
    if as_json:
        facts = {"store": name, "sessions": counts, "sent": report.bytes_sent, "left": report.bytes_left}
        output.json_line({**facts, "complete": report.complete, "error": report.error or ""})
        return
    told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing waits"
    click.echo(f"{output.printable(name)}\t{told}\t{output.size(report.bytes_sent)} sent")
    if report.error:
        output.warn(f"{output.size(report.bytes_left)} left: {report.error}")
    for outcome in report.sessions:
        if outcome.reason:
            output.warn(f"session {outcome.session_id} is {outcome.state}: {outcome.reason}")


@contextmanager
def _bar() -> Iterator[Callable[[SyncProgress], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not output.on_terminal():
        yield lambda progress: None  # noqa: ARG005 - the lines at the end tell it all
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("sending", total=None)

        def update(progress: SyncProgress) -> None:
            total = progress.bytes_sent + progress.bytes_left
            told = f"session {progress.sessions_done} of {progress.sessions}"
            bar.update(task, completed=progress.bytes_sent, total=total, description=told)

        yield update
