"""Which exceptions are one, and which are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from mailboat.server.grouping import group_of, normalised

STACK = [["/srv/app/main.py", 10, "main"], ["/srv/app/load.py", 20, "load"]]
CAUSE = ["cause", "KeyError", "'a'", STACK]


def group(
    stack: object = STACK, name: str = "ValueError", causes: Sequence[Any] = (), message: str | None = "bad"
) -> str:
    return group_of(name, cast("Sequence[Any]", stack), causes, message)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/srv/app/load.py", "/srv/app/load.py"),
        ("/home/ann/venv/lib/python3.11/site-packages/acme/load.py", "/usr/lib/python3/dist-packages/acme/load.py"),
        ("/usr/lib/python3.11/json/decoder.py", "/opt/python/lib/python3.13/json/decoder.py"),
        ("/home/ann/app/tool/load.py", "/mnt/x/app/tool/load.py"),
        (r"C:\Program Files\Acme\app\tool\load.py", "/mnt/x/app/tool/load.py"),
        ("/srv/app.zip/acme/load.py", "/elsewhere/other.zip/acme/load.py"),
    ],
)
def test_files_are_the_same_wherever_they_are_installed(one: str, other: str) -> None:
    assert group([[one, 1, "f"]]) == group([[other, 99, "f"]])


@pytest.mark.parametrize(
    "other",
    [
        group([["/srv/app/main.py", 10, "main"], ["/srv/app/save.py", 20, "load"]]),
        group([["/srv/app/main.py", 10, "main"], ["/srv/app/load.py", 20, "save"]]),
        group(STACK[:1]),
        group(STACK[::-1]),
        group(name="KeyError"),
        group(causes=[CAUSE]),
        group([]),
    ],
)
def test_another_way_or_type_is_another_group(other: str) -> None:
    assert other != group()


def test_lines_messages_and_generated_names_do_not_matter() -> None:
    moved = [["/srv/app/main.py", 11, "main"], ["/srv/app/load.py", 2000, "load"]]
    assert group(moved, message="worse") == group()
    assert group([["a.py", 1, "<lambda_17>"]]) == group([["a.py", 1, "<lambda_4>"]])
    assert group([["a.py", 1, "call_0x7f01"]]) == group([["a.py", 1, "call_0xffee"]])


def test_recursion_of_any_depth_is_one() -> None:
    frame = ["/srv/app/walk.py", 5, "walk"]
    assert group([STACK[0], *([frame] * 90)]) == group([STACK[0], *([frame] * 3)])


def test_causes_are_told_apart_by_their_type_and_way() -> None:
    assert group(causes=[CAUSE]) == group(causes=[["cause", "KeyError", "'b'", STACK]])
    assert group(causes=[CAUSE]) != group(causes=[["cause", "OSError", "'a'", STACK]])
    assert group(causes=[CAUSE]) != group(causes=[["cause", "KeyError", "'a'", STACK[:1]]])


def test_without_a_stack_the_message_decides_but_for_what_varies_in_it() -> None:
    assert group([], message="no user 'ann' in 17 rows") == group([], message="no user 'bob' in 4 rows")
    assert group([], message="no user 'ann'") != group([], message="no group 'ann'")
    assert group([], message=None) == group([], message="")


@pytest.mark.parametrize("stack", [None, 7, "text", [7, [], None, "x"], [[b"bytes", None, 3]], [[]]])
def test_what_is_malformed_is_passed_over(stack: object) -> None:
    assert len(group(stack, causes=[7, [], ["cause"], ["cause", 5], ["cause", "T", "m", 3]])) == 16
    assert all(":" in frame for frame in normalised(stack))
