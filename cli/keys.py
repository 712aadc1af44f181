"""`mailboat keys`: keys of a server on this machine, made, listed and revoked offline or while it runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mailboat.cli.extras import Failure, Misuse, needing, told_plainly
from mailboat.cli.output import json_line, moment, rows, warn

ADMIN = "admin"


@click.group()
def keys() -> None:
    """Keys of a server on this machine."""


data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The server's data folder."
)


@keys.command()
@data_option
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
        from mailboat.server.folder import has_catalog
        from mailboat.server.keys import create_key
    with told_plainly():
        begun = not has_catalog(data)
        key = create_key(data, product, Role(role))
    if begun:
        warn(f"{data} had no server's data in it: it is begun, and the key is for a server with --data {data}")
    click.echo(key)


@keys.command("list")
@data_option
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each.")
def list_keys(data: Path, as_json: bool) -> None:
    """List the keys: whose they are, and whether they are still of use. Their texts are kept nowhere."""
    with needing("server"):
        from mailboat.server.offline import with_catalog
    with told_plainly():
        found = with_catalog(data, lambda catalog: catalog.keys())
    if as_json:
        for row in found:
            json_line(
                {"id": row.id, "product": row.product, "role": row.role, "created": row.created, "revoked": row.revoked}
            )
        return
    lines = [
        (
            row.id,
            row.role.value,
            row.product or "(all)",
            moment(row.created),
            "" if row.revoked is None else f"revoked {moment(row.revoked)}",
        )
        for row in found
    ]
    rows(("key", "role", "product", "made", ""), lines)


@keys.command()
@click.argument("key_id")
@data_option
def revoke(key_id: str, data: Path) -> None:
    """Make a key useless, by its id; a running server refuses it within seconds."""
    with needing("server"):
        from mailboat.server.offline import with_catalog
    with told_plainly():
        revoked = with_catalog(data, lambda catalog: catalog.revoke_key(key_id, time.time()))
    if not revoked:
        raise Misuse(f"there is no key {key_id!r} that is still of use; `mailboat keys list` shows them")


@keys.command()
@data_option
@click.option("--new", "fresh", is_flag=True, help="Make another key, though there is one; the older ones stay valid.")
def seal(data: Path, *, fresh: bool) -> None:
    """Print the public key for `seal_to`: what agents seal to it, the server in DATA alone can read.

    The private half is made with it, the first time, and kept in DATA/sealing. Without that, what was sealed is lost.
    """
    with needing("server"):
        from mailboat.server.unsealing import public_key
    with told_plainly():
        try:
            key = public_key(data, fresh=fresh)
        except OSError as error:
            raise Failure(f"a key cannot be kept in {data}: {error.strerror or error}") from error
    click.echo(key.text)
