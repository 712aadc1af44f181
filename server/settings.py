"""Where a server's settings come from: flags, the environment, a file, the defaults; the first that says something.

The file is TOML with the names of `ServerConfig`'s fields at its top; in the environment they are written in capitals
after ``MAILBOAT_SERVER_``, lists with commas in between. ``MAILBOAT_SERVER_CONFIG`` names the file where no flag does.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

from mailboat.protocol.errors import ConfigError
from mailboat.server.config import ImpossibleSetting, ServerConfig

PREFIX: Final = "MAILBOAT_SERVER_"
FILE: Final = f"{PREFIX}CONFIG"

OPTIONS: Final = ("data", "host", "port")
"""Settings with an option of their own; the others are given as ``--set NAME=VALUE``."""

_WORDS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def load(
    environment: Mapping[str, str], file: Path | None = None, flags: Mapping[str, object] | None = None
) -> ServerConfig:
    """The settings of a server. `flags` hold values of the right types, or texts; None stands for one not given.

    Raises `ConfigError` that tells where the wrong value was given, the field, and what would do.
    """
    given_file = environment.get(FILE)
    file = file or (Path(given_file) if given_file else None)
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, name, value in _given(environment, file, flags or {}):
        values[name], places[name] = _typed(place, name, value), place
    for field in fields(ServerConfig):
        if field.default is MISSING and field.name not in values:
            raise ConfigError(f"{field.name} is needed: --{field.name}, {PREFIX}{field.name.upper()}, or in the file")
    try:
        return ServerConfig(**values)
    except ImpossibleSetting as error:
        raise ConfigError(f"{places[error.field]}={error.value!r:.80}: {error.needed} is needed") from error


def _given(
    environment: Mapping[str, str], file: Path | None, flags: Mapping[str, object]
) -> Iterator[tuple[str, str, object]]:
    """All that was given, what counts for more coming later: where (as errors say it), the setting, the value."""
    if file is not None:
        yield from ((f"{file}: {name}", name, value) for name, value in _of_file(file).items())
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable != FILE:
            yield variable, variable.removeprefix(PREFIX).lower(), text
    for name, value in flags.items():
        if value is not None:
            yield f"--{name}" if name in OPTIONS else f"--set {name}", name, value


def _of_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error


def _typed(where: str, name: str, value: object) -> object:
    """`value` as the field wants it; `where` says in errors where it was given."""
    kinds = get_type_hints(ServerConfig)
    if name not in kinds:
        raise ConfigError(f"{where}: there is no such setting; there are {', '.join(sorted(kinds))}")
    try:
        return _as(kinds[name], value)
    except (ValueError, KeyError, TypeError) as error:
        wanted = _NAMES.get(kinds[name], "a list of texts")
        raise ConfigError(f"{where}={value!r:.80}: {wanted} is needed") from error


_NAMES: Final[Mapping[object, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def _as(kind: object, value: object) -> object:
    """`value`, a text or what TOML holds, as `kind`; `ValueError`, `KeyError` or `TypeError` where it is none."""
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS[_text(value).strip().lower()]
    if isinstance(value, bool):
        raise TypeError("a truth is no number and no text")
    if kind is int:
        return value if isinstance(value, int) else int(_text(value))
    if kind is float:
        return float(value) if isinstance(value, int | float) else float(_text(value))
    if kind is Path:
        return value if isinstance(value, Path) else Path(_text(value))
    if kind is str:
        return _text(value)
    parts = _text(value).split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise TypeError("no list")
    return tuple(_text(part).strip() for part in parts if part != "")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
