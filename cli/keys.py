"""`mailboat keys`: keys of a server on this machine, made offline or while it runs."""

from __future__ import annotations

from pathlib import Path

import click

from mailboat.cli.extras import needing, told_plainly

ADMIN = "admin"


@click.group()
def keys() -> None:
    """Make keys of a server on this machine."""


@keys.command()
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The server's data folder."
)
@click.option("--product", help="The product that the key reaches; an admin key reaches all.")
@click.option(
    "--role",
    type=click.Choice(["agent", "reader", ADMIN]),
    default="agent",
    show_default=True,
    help="What the key may do: send, read, or everything.",
)
def create(data: Path, product: str | None, role: str) -> None:
    """Make a key and print it, alone, on the standard output. It is shown this once: the server keeps only a digest."""
    if product is None and role != ADMIN:
        raise click.UsageError(f"--product is needed for a key of role {role}")
    with needing("server"):
        from mailboat.server.catalog import Role
        from mailboat.server.keys import create_key
    with told_plainly():
        key = create_key(data, product, Role(role))
    click.echo(key)
