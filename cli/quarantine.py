"""`mailboat quarantine`: what a server on this machine was sent that is no segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mailboat.cli import output
from mailboat.cli.extras import Failure, needing, told_plainly

_COLUMNS = ("upload", "product", "size", "completed", "name", "reason", "detail")

data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The server's data folder."
)


@click.group()
def quarantine() -> None:
    """Look at what a server on this machine has in quarantine: uploads that are no segments."""


@quarantine.command("list")
@data_option
@click.option("--product", help="Of this product only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_quarantined(data: Path, product: str | None, as_json: bool) -> None:
    """List it, oldest first, each with the reason."""
    with needing("server"):
        from mailboat.server.quarantine import list_offline
    with told_plainly():
        found = list_offline(data, product)
    if as_json:
        for each in found:
            output.json_line(each)
        return
    output.rows(_COLUMNS, [_row(each) for each in found], numbers=("size",))
    if not found and output.on_terminal():
        click.echo("Nothing is in quarantine.")


@quarantine.command()
@click.argument("upload_id", metavar="UPLOAD")
@data_option
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write; a new one.",
)
def save(upload_id: str, data: Path, target: Path) -> None:
    """Copy the bytes of one of them into a file."""
    with needing("server"):
        from mailboat.server.quarantine import save_offline
    try:
        with told_plainly():
            size = save_offline(data, upload_id, target)
    except OSError as error:
        raise Failure(f"{target} cannot be written: {error.strerror or error}") from error
    click.echo(f"{target}\t{size}")


def _row(described: dict[str, Any]) -> list[object]:
    name = described["metadata"].get("filename", "")
    shown = {**described, "name": name, "size": output.size(described["size"])}
    return [output.moment(shown["completed"]) if each == "completed" else shown[each] for each in _COLUMNS]
