"""The commands that the pages show are those there are: each is parsed as it stands, and none is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from mailboat.cli.root import mailboat
from mailboat.server.settings import load

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
DEPLOYMENT = ROOT / "docs" / "deployment.md"


def shown(page: Path) -> list[str]:
    """The command lines in a page's blocks of code."""
    lines = re.findall(
        r"^ {4}(?:sudo -u mailboat |ExecStart=/opt/mailboat/bin/)?(mailboat .*)$", page.read_text("utf-8"), re.MULTILINE
    )
    inline = re.findall(r"`(mailboat [a-z]+ [^`]*--[^`]*)`", page.read_text("utf-8"))
    return [*lines, *inline]


def parse(line: str) -> list[str]:
    """Take a command line apart as the command does; the words of the command itself. Raises what click raises."""
    command: click.Command = mailboat
    words = shlex.split(line, comments=True)[1:]
    context, path = click.Context(mailboat, info_name="mailboat"), []
    while isinstance(command, click.Group):
        path.append(words.pop(0))
        found = command.get_command(context, path[-1])
        assert found is not None, f"there is no command {' '.join(path)}"
        command = found
        context = click.Context(command, parent=context, info_name=path[-1])
    try:
        command.make_context(path[-1], words, parent=context.parent)
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # it is a file of the reader's
            raise
    return path


def test_each_command_on_the_pages_is_one_that_is_there() -> None:
    lines = [line for page in PAGES for line in shown(page)]
    paths = {" ".join(parse(line)) for line in lines}
    assert {"serve", "keys create", "products set", "server check", "server backup", "server restore", "sync"} <= paths


@pytest.mark.parametrize(
    "line", ["mailboat nothing", "mailboat server mend", "mailboat serve --dta x", "mailboat keys"]
)
def test_this_test_would_see_one_that_is_not(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError, IndexError)):
        parse(line)


def test_the_settings_file_on_the_page_is_one_and_the_unit_waits_for_the_server_to_stop(tmp_path: Path) -> None:
    page = DEPLOYMENT.read_text("utf-8")
    block = page.partition("# /etc/mailboat.toml\n")[2].partition("\n\n")[0]
    file = tmp_path / "mailboat.toml"
    file.write_text(re.sub(r"^ {4}", "", block, flags=re.MULTILINE))
    config = load({}, file)
    assert (config.data, config.port) == (Path("/var/lib/mailboat"), 8787)
    unit = dict(re.findall(r"^ {4}(\w+)=(.*)$", page.partition("[Unit]")[2].partition("[Install]")[0], re.MULTILINE))
    assert unit["ReadWritePaths"] == str(config.data) == f"/var/lib/{unit['StateDirectory']}"
    assert float(unit["TimeoutStopSec"]) > config.stop_timeout
    assert unit["ExecStart"].endswith("--config /etc/mailboat.toml")
