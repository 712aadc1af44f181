"""The group of all commands.

The modules imported here import click and nothing heavy: each command imports what it needs when it runs, so that
`mailboat --help` loads neither server nor DuckDB.
"""

from __future__ import annotations

import click

from mailboat.cli.demo.command import demo
from mailboat.cli.keys import keys
from mailboat.cli.products import products
from mailboat.cli.quarantine import quarantine
from mailboat.cli.serve import serve
from mailboat.cli.server import server
from mailboat.cli.sessions import sessions
from mailboat.cli.status import status
from mailboat.cli.sync import sync


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mailboat", prog_name="mailboat")
def mailboat() -> None:
    """Record sessions, keep them through crashes and outages, deliver each record exactly once."""


server.add_command(quarantine)
for command in (demo, serve, keys, products, server, sessions, sync, status):
    mailboat.add_command(command)
