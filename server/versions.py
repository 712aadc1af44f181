"""Versions of applications and agents, compared by the numbers in front: 2.10 comes after 2.9, 2.0-rc1 with 2.0."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_NUMBER: Final = re.compile(r"\d{1,9}")


@lru_cache(256)  # of every offer, and there are few different ones
def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without zeros at the end."""
    release = version.partition("+")[0].partition("-")[0]
    found = [int(number) for number in _NUMBER.findall(release)]
    while found and not found[-1]:
        found.pop()
    return tuple(found)
