"""Tables of requirements: one row for each, with its section, its level and a check."""

from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[], None]


@dataclass(frozen=True)
class Row:
    section: str
    level: str
    text: str
    check: Check

    def __str__(self) -> str:
        return f"{self.section} {self.level}: {self.text}"


class Table:
    """The requirements of a document on one role; `row` enters a check."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def row(self, section: str, level: str, text: str) -> Callable[[Check], Check]:
        """Enter the decorated check; `level` is the document's MUST, SHOULD, MAY, or "-" for what it describes."""
        assert (section, text) not in {(row.section, row.text) for row in self.rows}

        def enter(check: Check) -> Check:
            self.rows.append(Row(section, level, text, check))
            return check

        return enter
