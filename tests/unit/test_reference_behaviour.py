"""docs/reference-behaviour.md names a test for each row of what the reference systems do; all of them exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reference-behaviour.md"
NAMED = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")
ROWS = [*(f"L{number}" for number in range(1, 12)), *(f"T{number}" for number in range(1, 15))]


def lines() -> list[str]:
    return [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]


def test_each_row_is_there_once_and_in_order() -> None:
    first = [line.split("|")[1].strip() for line in lines()]
    assert [name for name in first if re.fullmatch(r"[LT]\d+", name)] == ROWS


def test_each_row_names_a_test_and_each_test_exists() -> None:
    missing = []
    for line in lines():
        named = NAMED.findall(line.split("|")[-2])
        if not named:
            missing.append(f"no test is named: {line[:80]}")
        for path, test in named:
            file = TESTS / path
            if not file.is_file() or not re.search(rf"^(async )?def {test or 'test_'}", file.read_text(), re.MULTILINE):
                missing.append(f"{path}::{test}")
    assert missing == []
