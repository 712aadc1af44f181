"""What the demo says while it goes on: with colours and a moving bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click

from mailboat.cli import output

Update = Callable[[int], None]
_LABEL_WIDTH: Final = 40


class Voice:
    """Says things on the standard output, each with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def step(self, text: str) -> None:
        """A new part of the story begins."""
        self._line(text, bold=True)

    def say(self, text: str) -> None:
        """Something happened."""
        self._line(f"  {text}", bold=False)

    def _line(self, text: str, *, bold: bool) -> None:
        at = f"{self.seconds:5.1f} s  "
        shown = output.printable(text)
        click.echo(click.style(at, dim=True) + click.style(shown, bold=bold) if output.on_terminal() else at + shown)

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Update]:
        """A bar that moves as `update(done)` is called; only on a terminal, and gone afterwards."""
        if not output.on_terminal():
            yield lambda done: None  # noqa: ARG005 - whoever reads lines is told when it is done
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("         "), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=done)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values under a title."""
        if not output.on_terminal():
            click.echo(f"\n{title}")
            for name, value in rows:
                click.echo(f"  {name:{_LABEL_WIDTH}} {output.printable(value)}")
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in rows:
            table.add_row(Text(name), Text(output.printable(value)))
        Console().print(table)
