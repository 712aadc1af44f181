"""Outcomes as a table: by rich where it is installed, in plain columns otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness import Comparison, Outcome, Sense, Spread, Standing

HEADINGS = ("row", "what", "time", "speed", "processor", "of which", "ratio (quartiles)", "of processor", "budget")

MIN_WIDTH = 180
"""Characters assumed of a line where the output is no terminal."""

_TEXTS = (0, 1, len(HEADINGS) - 1)


def lines(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """The cells under `HEADINGS`; a line for each contender, the reference first."""
    return [line for outcome in outcomes for line in _lines(outcome)]


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What the rows are about, and who is missing."""
    about = [f"{outcome.comparison.id}: {outcome.comparison.about}" for outcome in outcomes]
    absent = {peer.name: peer.reason for outcome in outcomes for peer in outcome.comparison.absent}
    return about + [f"without {name}: {reason}" for name, reason in absent.items()]


def show(outcomes: Sequence[Outcome], title: str) -> None:
    """Print the table."""
    try:
        from rich.console import Console  # noqa: PLC0415 - optional
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        _show_plain(outcomes, title)
        return
    table = Table(title=title)
    used = _used(outcomes)
    for column in used:
        table.add_column(HEADINGS[column], justify="left" if column in _TEXTS else "right", no_wrap=True)
    for outcome in outcomes:
        for cells in _lines(outcome):
            table.add_row(*(cells[column] for column in used))
        table.add_section()
    console = Console()
    if console.width < MIN_WIDTH and not console.is_terminal:
        console = Console(width=MIN_WIDTH)
    console.print(table)
    for note in notes(outcomes):
        console.print(note, markup=False)


def _used(outcomes: Sequence[Outcome]) -> list[int]:
    """The columns in which anything stands."""
    return [column for column, cells in enumerate(zip(*lines(outcomes), strict=True)) if any(cells)]


def _show_plain(outcomes: Sequence[Outcome], title: str) -> None:
    used = _used(outcomes)
    rows = [[row[column] for column in used] for row in (HEADINGS, *lines(outcomes))]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    print(title)
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for note in notes(outcomes):
        print(note)


def _lines(outcome: Outcome) -> list[tuple[str, ...]]:
    asked = outcome.comparison
    made = []
    for standing in outcome.standings:
        verdict = ""
        if standing is outcome.subject and asked.budget is not None:
            verdict = f"{asked.budget.shown(asked.unit)} {'met' if outcome.met else 'missed'}"
        first = asked.id if standing is outcome.standings[0] else ""
        made.append((first, standing.name, *_figures(standing, asked), verdict))
    return made


def _figures(standing: Standing, asked: Comparison) -> tuple[str, ...]:
    unit = asked.unit
    time = f"{standing.wall.median * unit.factor:.4g} {unit.time}"
    rate = f"{unit.rate_factor / standing.wall.median:.4g} {unit.rate}" if unit.rate else ""
    processor = f"{standing.cpu.median * unit.factor:.3g} {unit.time}" if standing.cpu.median else ""
    parts = ", ".join(f"{name} {spread.median * unit.factor:.2f}" for name, spread in standing.parts.items())
    return time, rate, processor, parts, _ratio(standing.ratio, asked), _ratio(standing.cpu_ratio, asked)


def _ratio(spread: Spread | None, asked: Comparison) -> str:
    if asked.sense is Sense.EXTRA:
        if spread is None:
            return ""
        median, low, high = (each * asked.unit.factor for each in (spread.median, *spread.quartiles))
        return f"{median:+.2f} ({low:+.2f} to {high:+.2f})"
    return "1" if spread is None else "{:.2f} x ({:.2f} to {:.2f})".format(spread.median, *spread.quartiles)
