"""Which exceptions are the same: those of one type that went the same way through the same code.

The way is the stack without what changes from one run, machine or release to the next: line numbers, the folders above
a file, the numbers in generated names, and how deep a recursion went. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

GROUP_LENGTH: Final = 16
"""Hexadecimal digits of a group: 64 bits tell the groups of one product apart."""

_KEPT_STEPS: Final = 3
_ROOTS: Final = re.compile(r".*/(?:site-packages|dist-packages|lib/python\d+\.\d+|lib/pypy\d+\.\d+)/|.*\.zip/")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]+")
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_NUMBER: Final = re.compile(r"\d+")


def group_of(type_name: str, stack: Sequence[Any], causes: Sequence[Any], message: str | None) -> str:
    """The group of an exception, `GROUP_LENGTH` hexadecimal digits.

    `stack` and `causes` are as in an EXCEPTION record; what in them is malformed is passed over. Without any stack the
    message takes its place, with numbers and quoted texts blanked out.
    """
    frames = list(normalised(stack))
    parts = [type_name, *(frames or [_blanked(message or "")])]
    for cause in causes:
        if isinstance(cause, list | tuple) and len(cause) > 1:
            parts += ["", str(cause[1]), *(normalised(cause[3]) if len(cause) > 3 else ())]  # noqa: PLR2004 - its stack
    text = "\n".join(parts).encode("utf-8", "replace")
    return hashlib.blake2b(text, digest_size=GROUP_LENGTH // 2).hexdigest()


def normalised(stack: object) -> Iterator[str]:
    """The frames of a stack as ``file:function``, outermost first, a run of equal ones given once."""
    before = None
    for frame in stack if isinstance(stack, list | tuple) else ():
        if not isinstance(frame, list | tuple) or not frame:
            continue
        text = _frame(str(frame[0]), str(frame[2]) if len(frame) > 2 else "")  # noqa: PLR2004 - [file, line, function]
        if text != before:
            yield text
        before = text


@lru_cache(maxsize=4096)  # the same few hundred frames, over and over
def _frame(path: str, function: str) -> str:
    return f"{_file(path)}:{_NUMBER.sub('#', _ADDRESS.sub('#', function))}"


def _file(path: str) -> str:
    """A file as its package knows it, or else by its last steps."""
    path = path.replace("\\", "/")
    within = _ROOTS.sub("", path, count=1)
    return within if within != path else "/".join(path.split("/")[-_KEPT_STEPS:])


def _blanked(message: str) -> str:
    return _NUMBER.sub("#", _ADDRESS.sub("#", _QUOTED.sub("?", message)))
