"""The agent's configuration: one frozen object, each field with its default, unit and reason.

Where a value comes from, first found: the arguments, ``MAILBOAT_*`` in the environment, ``mailboat.toml`` or
``[tool.mailboat]`` in ``pyproject.toml`` of the working directory, the default.
"""

from __future__ import annotations

import os
import ssl as tls
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from yarl import URL

from mailboat.agent.link_policy import LinkPolicy
from mailboat.protocol.addresses import resolve
from mailboat.protocol.errors import ConfigError
from mailboat.protocol.limits import MAX_JOURNAL, MAX_SEGMENT, MIB, MIN_JOURNAL, SLOWEST_RATE, SMALLEST_BUDGET
from mailboat.protocol.sealing import PublicKey, require_library

TUS_SCHEME: Final = "tus+"
"""What stands before the URL of a plain tus server."""

STOP_TIMEOUT: Final = 2.0
"""Seconds: what people wait for when they close a program, without asking what it does."""

HOMELESS: Final = Path(os.devnull) / "no home folder, so name one with store or MAILBOAT_STORE"
"""The store of a user without a home, as some containers have: nothing can be made below a file, so records are kept in
memory, and the reason is in what the system says.
"""

_ENVIRONMENT: Final = "MAILBOAT_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
_NOT_FROM_TEXT: Final = frozenset({"properties", "scrub", "ssl", "policy"})


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How an agent records and delivers. Times are seconds, sizes bytes.

    Raises `ConfigError` for an impossible value, naming field, value and what would do.
    """

    server: str | None = None
    """URL of the server; ``tus+https://...`` where uploads are made on a plain tus server; None: record only."""
    api_key: str = ""
    """The product's key, as the server made it."""
    product: str = ""
    """What is sold or run; its applications share a sender and a dashboard."""
    application: str = ""
    """Which program of the product this is. Programs that name neither have one store, and whoever of them sends, sends
    what all have recorded, to its own server."""
    version: str = ""
    """The application's version."""
    environment: str = ""
    """Such as production or staging."""
    store: Path | None = None
    """Folder for the sessions, as seen from the working directory at construction; None: the user's data folder of the
    platform. A user who has none keeps records in memory."""
    enabled: bool = True
    """False: no file, no connection. ``DO_NOT_TRACK=1`` in the environment does the same."""
    test_mode: bool = False
    """Marks the data as internal, shown apart."""
    anonymous: bool = False
    """Says nothing of user, host and command line."""
    properties: Mapping[str, Any] = field(default_factory=dict)
    """The application's own description of the session."""
    scrub: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    """Called with name and attributes before they are kept, from which values under secret names were taken already, as
    always (objects come as they are); gives the attributes to keep. A record on which it fails is dropped, and counted.
    """
    seal_to: str | None = None
    """Public key of the server (``mbs_...``): what is recorded is sealed to it, so that this machine's disk tells
    nothing of it to anybody. Needs the extra ``mailboat[seal]``.
    """
    sealed_journal: Path | None = None
    """Folder for the journals of sealed sessions, which must be in memory; None: one in ``/dev/shm``."""
    synchronize_automatically: bool = True
    """False: only `force_sync` sends, and `stop` where it has a timeout of its own."""
    sync_interval: float = 60.0
    """Between attempts while something waits."""
    startup_delay: float = 5.0
    """Before the first attempt, so that the host's start is left alone."""
    send_on_error: bool = True
    """Whether an error makes the running session eligible at once."""
    alert_interval: float = 300.0
    """Between two sends on error."""
    hooks: bool = True
    """Record what nobody has handled (see `integrations.hooks`); False: nothing of the process is touched."""
    stop_timeout: float | None = None
    """How long `stop` tries to deliver; zero: not at all. None: 2 s, but zero where only `force_sync` sends."""
    save_interval: float = 5.0
    """How much may be lost with the machine's power."""
    journal_bytes: int = 4 * MIB
    """Both halves of the journal: larger blocks compress better, hold the host up less often, and cost memory."""
    segment_bytes: int = 16 * MIB
    """A segment is ended beyond this: the unit that is confirmed and deleted."""
    segment_age: float = 24 * 3600.0
    """A segment is ended after this."""
    compression_level: int = 1
    """zstd's; above 3 the host would notice."""
    max_store_bytes: int | None = 512 * MIB
    """The store's quota; None: none."""
    max_store_age: float = 30 * 24 * 3600.0
    """Sessions older than this are given up: servers refuse them by then."""
    min_free_bytes: int = 256 * MIB
    """Space that the store leaves on its disk, but no more than a sixteenth of it."""
    purge_sent: bool = False
    """Delete sessions once the server has answered, instead of keeping them while there is room."""
    send_all_applications: bool = False
    """Send for every application of the product that keeps its sessions in this store folder; one agent does."""
    sender: bool = True
    """False: this agent only records, `force_sync` included; another one sends."""
    upload_concurrency: int = 2
    """Segments sent at the same time; as many more may wait for their answer."""
    max_upload_rate: int | None = None
    """Bytes a second; None: as fast as it goes."""
    daily_bytes: int | None = None
    """Bytes of segments and offers on a day of local time, over restarts; None: any number. Holds for `force_sync`."""
    policy: LinkPolicy | None = None
    """Which sessions may be sent over which link, where the agent sends by itself; None: all, always. `link_policy` has
    ready ones, such as `urgent_when_metered` and ``quiet_hours(22, 6)``."""
    ssl: tls.SSLContext | bool = True
    """As in aiohttp: a context of the application's own, for a private authority."""

    def __new__(cls, *_: object, **settings: object) -> Self:
        """Unknown settings are told as impossible ones are."""
        known = {each.name for each in fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigError(f"{name}: there is no such setting; there are: {', '.join(sorted(known))}")
        return object.__new__(cls)

    def __post_init__(self) -> None:
        """Check what can be checked without touching anything."""
        kinds = {each.name: str(each.type) for each in fields(self)}
        for name, kind in kinds.items():
            check = _CHECKS.get(name) or _CHECKS.get(kind)
            if check is not None:
                object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.seal_to is not None:
            _check_public_key(self.seal_to)
        if self.stop_timeout is None:
            object.__setattr__(self, "stop_timeout", STOP_TIMEOUT if self.synchronize_automatically else 0.0)
        if self.server is not None:
            _check_server(self.server)
        for name, low, high, unit in _BOUNDS:
            _check_bound(name, getattr(self, name), kinds[name], low, high, unit)
        if not isinstance(self.properties, Mapping):
            raise ConfigError(f"properties={self.properties!r}: expected a mapping of names to plain values")
        if self.scrub is not None and not callable(self.scrub):
            raise ConfigError(f"scrub={self.scrub!r}: expected a callable that takes a name and a map, or None")
        if self.policy is not None and not callable(self.policy):
            wanted = "a callable that takes link and priority and tells whether to send, or None"
            raise ConfigError(f"policy={self.policy!r}: expected {wanted}")

    @property
    def active(self) -> bool:
        """Whether anything may be recorded."""
        return self.enabled and os.environ.get("DO_NOT_TRACK", "").strip().lower() in _FALSE

    @property
    def store_root(self) -> Path:
        """The folder that holds the stores of all products."""
        if self.store is not None:
            return self.store
        import platformdirs  # noqa: PLC0415 - 2 ms, which whoever names a folder is spared

        try:
            found = platformdirs.user_data_path("mailboat", appauthor=False)
        except RuntimeError:
            return HOMELESS
        return found if found.is_absolute() else HOMELESS  # some versions of it leave the "~" where it is

    @classmethod
    def load(cls, **overrides: Any) -> AgentConfig:  # noqa: ANN401 - fields of this class, checked below
        """The configuration from arguments, environment, file and defaults. Raises `ConfigError`."""
        known = {each.name for each in fields(cls)}
        return cls(**{**_from_files(known), **_from_environment(known), **overrides})


_DAY: Final = 24 * 3600.0
_BOUNDS: Final = (
    ("sync_interval", 1.0, 7 * _DAY, "seconds"),
    ("startup_delay", 0.0, _DAY, "seconds"),
    ("alert_interval", 0.0, 7 * _DAY, "seconds"),
    ("stop_timeout", 0.0, _DAY, "seconds"),
    ("save_interval", 0.0, 3600.0, "seconds"),
    ("journal_bytes", MIN_JOURNAL, MAX_JOURNAL, "bytes"),
    ("segment_bytes", 64 * 1024, MAX_SEGMENT // 2, "bytes"),
    ("segment_age", 1.0, 30 * _DAY, "seconds"),
    ("compression_level", 1, 3, "(a level of zstd)"),
    ("max_store_bytes", 1 * MIB, None, "bytes, or None"),
    ("max_store_age", 60.0, None, "seconds"),
    ("min_free_bytes", 0, None, "bytes"),
    ("upload_concurrency", 1, 16, "uploads"),
    ("max_upload_rate", SLOWEST_RATE, None, "bytes a second, or None"),
    ("daily_bytes", SMALLEST_BUDGET, None, "bytes a day, or None"),
)
_MAY_BE_NONE: Final = frozenset({"max_store_bytes", "max_upload_rate", "daily_bytes"})


def _text(name: str, value: Any) -> str:  # noqa: ANN401 - whatever the application gives
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name}={value!r}: expected a text")
    return value or ""


def _key(_: str, value: object) -> str:
    """A key that was read from a file may end with its line. What could be no header's value is told here, not with
    each request, and without saying the key.
    """
    key = value.strip() if isinstance(value, str) else value
    if key is not None and not (isinstance(key, str) and all("!" <= letter <= "~" for letter in key)):
        raise ConfigError("api_key=...: expected a text without spaces, the key as the server has printed it")
    return key or ""


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: expected True or False")
    return value


def _whole(_: str, value: Any) -> Any:  # noqa: ANN401 - as above; `_check_bound` judges it
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _folder(name: str, value: Any) -> Path | None:  # noqa: ANN401 - as above
    if value is None:
        return None
    try:
        if os.fspath(value) and "\0" not in os.fsdecode(value):
            return _from_here(Path(os.fsdecode(value)).expanduser())
    except (TypeError, ValueError, RuntimeError):  # what is no path; nobody's home
        pass
    raise ConfigError(f"{name}={value!r}: expected the path of a folder, or None")


def _from_here(path: Path) -> Path:
    """`path` as it is meant now: the program may go to another folder while it runs."""
    try:
        return path.absolute()
    except OSError:  # the folder that it is in is gone, and nothing can be made there
        return path


def _certificates(name: str, value: object) -> tls.SSLContext | bool:
    if value is not None and not isinstance(value, tls.SSLContext | bool):
        raise ConfigError(f"{name}={value!r}: expected an ssl.SSLContext, True, or False for any certificate at all")
    return True if value is None else value


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "api_key": _key,
    "str": _text,
    "bool": _switch,
    "int": _whole,
    "int | None": _whole,
    "Path | None": _folder,
    "tls.SSLContext | bool": _certificates,
}
"""What makes a setting of its name or type plain, or raises `ConfigError`."""


def _check_bound(name: str, value: object, kind: str, low: float, high: float | None, unit: str) -> None:
    if value is None and name in _MAY_BE_NONE:
        return
    wrong_type = isinstance(value, bool) or not isinstance(value, int if kind.startswith("int") else int | float)
    if wrong_type or not low <= value <= (high if high is not None else float("inf")):  # type: ignore[operator] # a number
        number = "a whole number" if kind.startswith("int") else "a number"
        wanted = f"from {low:,.12g} to {high:,.12g}" if high is not None else f"of at least {low:,.12g}"
        raise ConfigError(f"{name}={value!r}: expected {number} {wanted} {unit}")


def _check_public_key(text: object) -> None:
    require_library("seal_to is given")
    try:
        PublicKey.parse(str(text))
    except ConfigError as error:
        hint = "it is printed by `mailboat keys seal --data DIR` on the server"
        raise ConfigError(f"seal_to={str(text)[:60]!r}: {error}; {hint}") from error


def _check_server(server: object) -> None:
    try:
        parts = urlsplit(str(URL(server.removeprefix(TUS_SCHEME)))) if isinstance(server, str) else None
        usable = parts is not None and resolve(parts.geturl(), parts.geturl() + "/") is not None
    except ValueError:  # a port that is no number, half an address
        parts, usable = None, False
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        usable = False
    elif parts.username or parts.password:
        raise ConfigError("server=...: put the key into api_key, a URL is written to logs")
    if not usable:
        raise ConfigError(
            f"server={server!r}: expected a URL such as https://collect.example.com, or None to record only"
        )


def _from_environment(known: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in known - _NOT_FROM_TEXT:
        text = os.environ.get(_ENVIRONMENT + name.upper())
        if text is not None:
            values[name] = _parse(name, text)
    return values


def _parse(name: str, text: str) -> Any:  # noqa: ANN401 - as the field's type says
    kind = {each.name: str(each.type) for each in fields(AgentConfig)}[name]
    lowered = text.strip().lower()
    if "None" in kind and lowered in ("", "none"):
        return None
    try:
        if kind == "bool":
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[lowered]
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{_ENVIRONMENT}{name.upper()}={text!r}: expected a value of type {kind}") from error
    return Path(text) if kind.startswith("Path") else text


def _read_toml(path: Path) -> dict[str, Any]:
    text = path.read_text("utf-8")  # as TOML is, whatever the locale
    import tomllib  # noqa: PLC0415 - 2 ms, and most programs have no such file

    return tomllib.loads(text)


def _shut_out(error: Exception) -> bool:
    """Whether the process may not look for files where it is: it has been given another user since, perhaps."""
    return isinstance(error, PermissionError) and not os.access(".", os.X_OK)


def _from_files(known: set[str]) -> dict[str, Any]:
    for path, section in ((Path("mailboat.toml"), ()), (Path("pyproject.toml"), ("tool", "mailboat"))):
        try:
            values: Any = _read_toml(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            if section or _shut_out(error):
                continue  # the host's own file, whose faults are not ours to report; or a folder that is not ours
            raise ConfigError(f"{path} cannot be read: {error}") from error
        for name in section:
            values = values.get(name, {}) if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: [{'.'.join(section)}] is no table of settings")
        unknown = set(values) - known
        if unknown:
            raise ConfigError(f"{path}: there is no setting {', '.join(sorted(unknown))}")
        if values:
            return dict(values)
    return {}
