"""`mailboat products` and `mailboat keys` on a server's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailboat.cli.root import mailboat


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(mailboat, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    assert run("keys", "create", "--data", folder, "--product", "Acme Studio").exit_code == 0
    return folder


def plan_of(data: Path, product: str = "Acme Studio") -> dict[str, object]:
    shown = run("products", "show", product, "--data", data, "--json")
    assert shown.exit_code == 0, shown.output
    plan = json.loads(shown.output)["plan"]
    assert isinstance(plan, dict)
    return plan


def test_a_plan_is_set_field_by_field(data: Path) -> None:
    before = plan_of(data)
    options = ["--details", "share", "--share", "0.5", "--for-version", "1.*=none", "--for-version", "2.0=all"]
    assert run("products", "set", "Acme Studio", "--data", data, *options).exit_code == 0
    more = [
        "--records-per-month",
        "1000",
        "--history-days",
        "90",
        "--agent",
        "mailboat-python",
        "--oldest-agent",
        "0.1",
        "--sync-interval",
        "600",
        "--backoff-floor",
        "30",
        "--max-rate",
        "4096",
    ]
    assert (
        run(
            "products", "set", "Acme Studio", "--data", data, *more, "--max-age-days", "7", "--oldest-agent", "0.1"
        ).exit_code
        == 0
    )
    assert plan_of(data) == {
        "details": "share",
        "share": 0.5,
        "versions": {"1.*": "none", "2.0": "all"},
        "records_per_month": 1000,
        "max_age_days": 7.0,
        "history_days": 90.0,
        "agents": ["mailboat-python"],
        "oldest_agent": "0.1",
        "sync_interval": 600.0,
        "backoff_floor": 30.0,
        "max_rate": 4096,
    }
    back = ["--details", "all", "--share", "1", "--for-version", "", "--records-per-month", "none"]
    back += ["--history-days", "none", "--agent", "", "--oldest-agent", "", "--max-age-days", "30"]
    back += ["--sync-interval", "none", "--backoff-floor", "1", "--max-rate", "none"]
    assert run("products", "set", "Acme Studio", "--data", data, *back).exit_code == 0
    assert plan_of(data) == before


def test_products_are_listed(data: Path) -> None:
    assert run("products", "set", "Another", "--data", data, "--details", "none").exit_code == 0
    lines = run("products", "list", "--data", data).output.splitlines()
    assert lines == ["Acme Studio\tall\t0\tany\tany", "Another\tnone\t0\tany\tany"]
    shown = run("products", "show", "Another", "--data", data).output
    assert "details\tnone\n" in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--share", "2"], "plan.share"),
        (["--records-per-month", "many"], "--records-per-month"),
        (["--history-days", "-1"], "plan.history_days"),
        (["--for-version", "1.*"], "--for-version"),
        (["--for-version", "1.*=some"], "--for-version"),
        (["--oldest-agent", "newest"], "plan.oldest_agent"),
        (["--details", "some"], "--details"),
    ],
)
def test_what_cannot_be_is_told_by_its_field(data: Path, options: list[str], told: str) -> None:
    before = plan_of(data)
    result = run("products", "set", "Acme Studio", "--data", data, *options)
    assert result.exit_code == 2
    assert told in result.output
    assert plan_of(data) == before


def test_a_key_for_a_folder_that_was_none_says_so(tmp_path: Path) -> None:
    """A folder that was misspelt would get a key that the server does not know."""
    data = tmp_path / "dtaa"
    first = run("keys", "create", "--data", data, "--product", "Acme Studio")
    assert (first.exit_code, first.stdout.startswith("mbk_")) == (0, True)
    assert f"{data} had no server's data in it" in first.stderr
    assert run("keys", "create", "--data", data, "--product", "Acme Studio").stderr == ""


def test_an_admin_key_is_of_no_product(data: Path) -> None:
    refused = run("keys", "create", "--data", data, "--role", "admin", "--product", "Acme Studio")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "reaches all products" in refused.stderr


def test_where_there_is_no_server_nothing_is_made(tmp_path: Path) -> None:
    for command in (["products", "list"], ["keys", "list"], ["keys", "revoke", "key-1"]):
        result = run(*command, "--data", tmp_path / "nothing")
        assert result.exit_code == 2
        assert "no server's data" in result.output
    assert not (tmp_path / "nothing").exists()
    assert run("products", "show", "x", "--data", tmp_path / "nothing").exit_code == 2


def test_keys_are_listed_and_revoked(data: Path) -> None:
    (line,) = run("keys", "list", "--data", data).output.splitlines()
    key_id, role, product, _, revoked = line.split("\t")
    assert (role, product, revoked) == ("agent", "Acme Studio", "")
    assert run("keys", "revoke", key_id, "--data", data).exit_code == 0
    again = run("keys", "revoke", key_id, "--data", data)
    assert again.exit_code == 2
    assert "no key" in again.output
    (row,) = map(json.loads, run("keys", "list", "--data", data, "--json").output.splitlines())
    assert row["id"] == key_id
    assert row["revoked"] > row["created"]
