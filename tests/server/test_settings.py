"""Settings of a server from flags, the environment and a file; and what a wrong one is told."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mailboat.cli.root import mailboat
from mailboat.protocol import ConfigError
from mailboat.server import ServerConfig
from mailboat.server.settings import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def test_the_first_that_says_something_counts(file: Path) -> None:
    file.write_text('data = "/srv/a"\nport = 1\nhost = "::1"\nbody_timeout = 5\n')
    environment = {"MAILBOAT_SERVER_PORT": "2", "MAILBOAT_SERVER_HOST": "0.0.0.0", "MAILBOAT_SERVER": "https://x"}
    config = load(environment, file, {"port": 3, "data": None})
    assert (config.port, config.host, config.body_timeout, config.data) == (3, "0.0.0.0", 5.0, Path("/srv/a"))
    assert config == load({**environment, "MAILBOAT_SERVER_CONFIG": str(file)}, None, {"port": "3"})
    assert config.min_free_bytes == ServerConfig(Path("x")).min_free_bytes


def test_every_setting_can_be_given_in_every_place(file: Path) -> None:
    example: dict[str, Any] = {}
    for field in fields(ServerConfig):
        default: Any = "/srv/a" if field.default is MISSING else field.default
        example[field.name] = default + 1 if type(default) in (int, float) else default
    example.update(log_format="text", interim_answers=True, cors_origins=("https://a.example", "https://b.example"))
    expected = ServerConfig(**example)
    texts = {
        name: ",".join(value) if isinstance(value, tuple) else str(value).lower() if value is True else str(value)
        for name, value in example.items()
    }
    assert load({f"MAILBOAT_SERVER_{name.upper()}": text for name, text in texts.items()}) == expected
    assert load({}, None, texts) == expected
    lines = [
        f"{name} = {list(value)!r}"
        if isinstance(value, tuple)
        else f"{name} = {'true' if value is True else repr(value)}"
        for name, value in example.items()
    ]
    file.write_text("\n".join(lines))
    assert load({}, file) == expected


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('port = "x"', "port='x': a whole number"),
        ("port = true", "port=True: a whole number"),
        ("port = 1.5", "port=1.5: a whole number"),
        ("analytics_memory = 1000000", "analytics_memory=1000000: 268435456 or more is needed"),
        ("port = 70000", "port=70000: a number from 0 to 65535"),
        ("host = 1", "host=1: a text"),
        ("body_timeout = []", "body_timeout=[]: a number"),
        ('interim_answers = "perhaps"', "interim_answers='perhaps': true or false"),
        ('cors_origins = "https://a.example/path"', "cors_origins='https://a.example/path': an origin such as"),
        ("body_timeout = inf", "body_timeout=inf: a number above zero"),
        ("key_cache = nan", "key_cache=nan: zero or more"),
        ('first_product = " x"', "first_product=' x': a name of 1 to 200"),
        ("cors_origins = 1", "cors_origins=1: a list of texts"),
        ('log_format = "xml"', "log_format='xml': one of json, text"),
        ("prot = 1", "prot: there is no such setting; there are"),
        ("port = ", "is no TOML"),
        ("[server]\nport = 1", "server: there is no such setting"),
    ],
)
def test_a_wrong_line_is_told_by_its_field(file: Path, line: str, told: str) -> None:
    file.write_text(f'data = "/srv/a"\n{line}\n')
    with pytest.raises(ConfigError) as raised:
        load({}, file)
    assert str(raised.value).startswith(str(file)), "the place"
    assert told in str(raised.value)
    for variable in ("MAILBOAT_SERVER_PROT", "MAILBOAT_SERVER_PORT"):
        with pytest.raises(ConfigError, match=variable):
            load({variable: "x", "MAILBOAT_SERVER_DATA": "/srv/a"})


def test_a_value_that_cannot_work_is_told_with_the_place_that_counted(file: Path) -> None:
    file.write_text('data = "/srv/a"\nport = 70000\n')
    with pytest.raises(ConfigError, match=r"^MAILBOAT_SERVER_PORT=70001: a number from 0 to 65535 is needed$"):
        load({"MAILBOAT_SERVER_PORT": "70001"}, file)
    with pytest.raises(ConfigError, match=r"^--port=70002: "):
        load({"MAILBOAT_SERVER_PORT": "70001"}, file, {"port": 70002})
    assert load({"MAILBOAT_SERVER_PORT": "1"}, file).port == 1


def test_every_setting_is_told_of_where_people_look() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text("utf-8")
    assert [field.name for field in fields(ServerConfig) if f"`{field.name}`" not in page] == []


def test_the_folder_is_needed() -> None:
    with pytest.raises(ConfigError, match="data is needed: --data, MAILBOAT_SERVER_DATA"):
        load({})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "data is needed"),
        (["--data", "d", "--set", "port"], "--set 'port': NAME=VALUE"),
        (["--data", "d", "--set", "min-free-bytes=many"], "--set min_free_bytes='many': a whole number"),
        (["--data", "d", "--set", "nothing=1"], "--set nothing: there is no such setting"),
        (["--data", "d", "--set", "stop-timeout=0"], "--set stop_timeout=0.0: a number above zero"),
        (["--data", "d", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(mailboat, ["serve", *arguments])
    assert result.exit_code == 2
    assert told in result.output
