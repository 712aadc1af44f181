"""Optional parts: a missing one is told in a sentence that says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from mailboat.protocol import ConfigError, MailboatError


class Failure(click.ClickException):
    """The command could not do all that it was asked."""

    exit_code = 1


class Misuse(click.ClickException):
    """The command was asked for what cannot be, or lacks an extra."""

    exit_code = 2


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around imports that need the extra `extra`: a third-party module that is missing becomes a `Misuse`."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "a module"
        if missing.split(".")[0] == "mailboat":
            raise
        raise Misuse(f"this needs {missing}: pip install 'mailboat[{extra}]'") from error


@contextmanager
def told_plainly() -> Iterator[None]:
    """Around the work itself: mailboat's own errors are told in their sentence, without a traceback."""
    try:
        yield
    except ConfigError as error:
        raise Misuse(str(error)) from error
    except MailboatError as error:
        raise Failure(str(error)) from error
