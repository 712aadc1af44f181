"""Settings of an agent: where they come from, which of them wins, and that none that cannot work is taken."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent, AgentConfig, ConfigError

FIELDS = [
    "server",
    "api_key",
    "product",
    "application",
    "version",
    "environment",
    "store",
    "enabled",
    "test_mode",
    "anonymous",
    "properties",
    "scrub",
    "synchronize_automatically",
    "sync_interval",
    "startup_delay",
    "send_on_error",
    "alert_interval",
    "stop_timeout",
    "save_interval",
    "journal_bytes",
    "segment_bytes",
    "segment_age",
    "compression_level",
    "max_store_bytes",
    "max_store_age",
    "min_free_bytes",
    "purge_sent",
    "send_all_applications",
    "sender",
    "upload_concurrency",
    "max_upload_rate",
    "ssl",
]
"""Those that others rely on; there are more."""


@pytest.fixture(autouse=True)
def nothing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the environment nor by a file."""
    monkeypatch.chdir(tmp_path)
    for name in (*FIELDS, "HOOKS"):
        monkeypatch.delenv(f"MAILBOAT_{name.upper()}", raising=False)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)


def test_the_fields_and_their_defaults_are_those_that_are_promised() -> None:
    config = AgentConfig()
    assert set(FIELDS) <= {field.name for field in dataclasses.fields(config)}
    assert AgentConfig.load() == config == Agent().config
    promised = {
        "server": None,
        "api_key": "",
        "store": None,
        "enabled": True,
        "sender": True,
        "synchronize_automatically": True,
        "send_on_error": True,
        "sync_interval": 60.0,
        "startup_delay": 5.0,
        "alert_interval": 300.0,
        "stop_timeout": 2.0,
        "save_interval": 5.0,
        "segment_bytes": 16 * 2**20,
        "segment_age": 24 * 3600.0,
        "max_store_bytes": 512 * 2**20,
        "max_store_age": 30 * 24 * 3600.0,
        "min_free_bytes": 256 * 2**20,
        "purge_sent": False,
        "send_all_applications": False,
        "anonymous": False,
        "test_mode": False,
    }
    assert {name: getattr(config, name) for name in promised} == promised
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.product = "another"  # type: ignore[misc]


def test_it_can_be_copied_changed_and_sent_to_another_process() -> None:
    config = AgentConfig(product="Acme Studio", store=Path("store"), properties={"plan": "pro"})
    assert copy.copy(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, version="2").version == "2"


# -- where it comes from -----------------------------------------------------------------------------------------------


def test_arguments_win_over_the_environment_and_that_over_files(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("product", "application", "version", "environment")
    Path("pyproject.toml").write_text("[tool.mailboat]\n" + "".join(f'{name} = "pyproject"\n' for name in names))
    assert AgentConfig.load().product == "pyproject"
    Path("mailboat.toml").write_text("".join(f'{name} = "file"\n' for name in names[1:]))
    for name in names[2:]:
        monkeypatch.setenv(f"MAILBOAT_{name.upper()}", "environment")
    config = AgentConfig.load(environment="argument")
    assert [getattr(config, name) for name in names] == ["", "file", "environment", "argument"], "one file is read"
    assert Agent(environment="argument").config == config


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("server", "https://collect.example.com", "https://collect.example.com"),
        ("server", "", None),
        ("api_key", "mbk_x\n", "mbk_x"),
        ("store", "/var/lib/store", Path("/var/lib/store")),
        ("store", "~/store", Path("~/store")),
        ("store", "", None),
        ("enabled", "no", False),
        ("purge_sent", " YES ", True),
        ("sync_interval", "7.5", 7.5),
        ("journal_bytes", "262144", 262144),
        ("max_store_bytes", "none", None),
        ("max_upload_rate", "100000", 100000),
    ],
)
def test_texts_of_the_environment_are_read_as_what_they_are(
    name: str, text: str, meant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MAILBOAT_{name.upper()}", text)
    config = AgentConfig.load()
    assert getattr(config, name) == (meant.expanduser() if isinstance(meant, Path) else meant)
    assert type(getattr(config, name)) is type(meant)


@pytest.mark.parametrize(
    ("name", "text"),
    [("enabled", "maybe"), ("journal_bytes", "many"), ("save_interval", "5 s"), ("segment_age", "nan")],
)
def test_what_the_environment_says_wrongly_is_told_with_its_name(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MAILBOAT_{name.upper()}", text)
    with pytest.raises(ConfigError, match=rf"(?i){name}='?{text}"):
        AgentConfig.load()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nothing = 1", r"mailboat\.toml: there is no setting nothing"),
        ("enabled = 'false'", "enabled='false': expected True or False"),
        ("store = 5", "store=5: expected the path of a folder"),
        ("not toml", r"mailboat\.toml cannot be read"),
    ],
)
def test_a_file_of_its_own_that_cannot_work_is_told(text: str, told: str) -> None:
    Path("mailboat.toml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        AgentConfig.load()


@pytest.mark.parametrize("text", ["", "not toml", "tool = 5", "[tool]", "[tool.other]\nproduct = 'x'"])
def test_the_file_of_the_host_is_none_of_its_business_where_it_says_nothing_of_it(text: str) -> None:
    Path("pyproject.toml").write_text(text)
    assert AgentConfig.load() == AgentConfig()


@pytest.mark.parametrize("text", ["[tool]\nmailboat = 'x'", "[[tool.mailboat]]\nproduct = 'x'"])
def test_settings_that_are_no_table_are_told(text: str) -> None:
    Path("pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape("[tool.mailboat] is no table")):
        AgentConfig.load()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [AgentConfig, AgentConfig.load, Agent])
def test_an_unknown_setting_is_told_with_those_that_there_are(make: Any) -> None:  # noqa: ANN401 - three ways to the same
    with pytest.raises(ConfigError, match=r"sync_intervall: there is no such setting; there are: .*, sync_interval,"):
        make(sync_intervall=60.0)


WHOLE = [
    "journal_bytes",
    "segment_bytes",
    "compression_level",
    "max_store_bytes",
    "min_free_bytes",
    "upload_concurrency",
]
TIMES = [
    "sync_interval",
    "startup_delay",
    "alert_interval",
    "stop_timeout",
    "save_interval",
    "segment_age",
    "max_store_age",
]
SWITCHES = [
    "enabled",
    "test_mode",
    "anonymous",
    "synchronize_automatically",
    "send_on_error",
    "hooks",
    "purge_sent",
    "send_all_applications",
    "sender",
]
TEXTS = ["product", "application", "version", "environment"]
IMPOSSIBLE: list[dict[str, Any]] = [
    *({name: value} for name in WHOLE for value in (-1, 1.5, math.nan, math.inf, "1", True)),
    *({name: value} for name in TIMES for value in (-1, math.nan, -math.inf, "1", False)),
    *({name: value} for name in SWITCHES for value in ("no", "false", 0, 1, None)),
    *({name: value} for name in TEXTS for value in (1.2, b"text", ["text"])),
    *({name: value} for name in ("store", "sealed_journal") for value in (5, "", b"", ["folder"], "a\0b")),
    {"store": "~nobody-of-this-name/store"},
    *({"ssl": value} for value in ("no", 0, Agent)),
    *({"server": value} for value in ("", "https://", "ftp://example.com", "tus+ftp://example.com", "http://a b", 5)),
    *({"properties": value} for value in (None, ["plan"])),
    *({"scrub": 1}, {"policy": 1}),
    {"compression_level": 4},
    {"max_upload_rate": 0},
]


@pytest.mark.parametrize("make", [AgentConfig, AgentConfig.load, Agent])
@pytest.mark.parametrize("settings", IMPOSSIBLE, ids=str)
def test_an_impossible_value_is_told_with_field_value_and_what_would_do(
    settings: Mapping[str, Any],
    make: Any,  # noqa: ANN401 - three ways to the same
) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}: expected ")):
        make(**settings)


@pytest.mark.parametrize("key", ["mbk_a b", "mbk_a\nX-Other: b", "mbk_\x00", "mbk_ключ", b"mbk_x", 5])
def test_a_key_that_no_request_could_carry_is_refused_without_saying_it(key: Any) -> None:  # noqa: ANN401 - impossible ones
    with pytest.raises(ConfigError, match=r"^api_key=\.\.\.: expected ") as raised:
        AgentConfig(api_key=key)
    assert "mbk_" not in str(raised.value)


def test_what_is_only_written_otherwise_is_taken() -> None:
    given: dict[str, Any] = {
        "api_key": " mbk_x\n",
        "product": None,
        "environment": None,
        "store": "~/store",
        "journal_bytes": 1e6,
        "max_store_bytes": None,
        "max_store_age": math.inf,
        "stop_timeout": 0,
        "ssl": None,
    }
    config = AgentConfig(**given)
    assert (config.api_key, config.product, config.environment, config.ssl) == ("mbk_x", "", "", True)
    assert (config.store, config.stop_timeout) == (Path.home() / "store", 0)
    assert (config.journal_bytes, type(config.journal_bytes)) == (1_000_000, int)
    context = ssl.create_default_context()
    assert AgentConfig(ssl=context).ssl is context
    assert AgentConfig(store=Path("here")).store == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("said", "active"), [("1", False), ("true", False), ("yes", False), ("0", True), ("", True), ("no", True)]
)
def test_do_not_track_is_heard(said: str, active: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", said)
    assert AgentConfig().active is active
    assert not AgentConfig(enabled=False).active
