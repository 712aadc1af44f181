"""What people read, and what programs read: tables on a terminal, lines with tabs or JSON everywhere else."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import click

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024


def on_terminal() -> bool:
    """Whether a person looks at the standard output."""
    return sys.stdout.isatty()


def printable(text: object) -> str:
    """`text` without characters that could move a terminal's cursor, break a line or fail to be encoded."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def size(count: float) -> str:
    """Bytes in a unit of fitting size."""
    for unit in _UNITS:
        if abs(count) < _STEP or unit == _UNITS[-1]:
            break
        count /= _STEP
    return f"{count:.0f} {unit}" if unit == _UNITS[0] else f"{count:.1f} {unit}"


def moment(seconds: float) -> str:
    """A point in time, given as seconds since the epoch, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        # A clock that was set to nonsense is shown as it is.
        return f"{seconds:.0f}"


def rows(columns: Sequence[str], lines: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()) -> None:
    """Rows under `columns`: a table on a terminal (`numbers` to the right), otherwise lines with tabs and no head."""
    if not on_terminal():
        for line in lines:
            click.echo("\t".join(map(printable, line)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(printable(cell)) for cell in line))
    Console().print(table)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Names with their values: two columns on a terminal, ``name<TAB>value`` otherwise."""
    rows(("", ""), pairs)


def json_line(value: object) -> None:
    """`value` as one line of JSON. What JSON cannot express is given as text, bytes as base64."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):
        text = json.dumps(_plain(value), allow_nan=False)
    click.echo(text)


def _plain(value: object) -> object:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {name if isinstance(name, str) else str(name): _plain(each) for name, each in value.items()}
        case Sequence():
            return [_plain(each) for each in value]
        case _:
            return str(value)


def warn(text: str) -> None:
    """One line to the standard error."""
    click.echo(printable(text), err=True)
