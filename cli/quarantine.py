"""`mailboat server quarantine`: what a server on this machine was sent that is no segment, or no intact one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mailboat.cli import output
from mailboat.cli.extras import Failure, needing, told_plainly

_COLUMNS = ("upload", "product", "size", "completed", "name", "reason", "detail")

data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The server's data folder."
)
_uploads = click.argument("upload_ids", metavar="UPLOAD...", nargs=-1, required=True)


@click.group()
def quarantine() -> None:
    """What a server on this machine has in quarantine: uploads that are no segments, or no intact ones.

    `list`, `show` and `save` look, whether the server runs or not. `replay` and `drop` want it stopped; while it runs,
    ask its API for the same (POST /api/v1/quarantine/UPLOAD/replay, DELETE /api/v1/quarantine/UPLOAD).
    """


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
def show(upload_id: str, data: Path) -> None:
    """Show all that is known of one of them, as a JSON object."""
    with needing("server"):
        from mailboat.server.quarantine import show_offline
    with told_plainly():
        output.json_line(show_offline(data, upload_id))


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


@quarantine.command()
@_uploads
@data_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def replay(upload_ids: tuple[str, ...], data: Path, as_json: bool) -> None:
    """Look into them as if they had just come: after an update that reads more, or a change of the plan.

    What is well is loaded by the next start of the server. Exit status 1 if something stays in quarantine.
    """
    with needing("server"):
        from mailboat.server.upkeep import replay_quarantined
    with told_plainly():
        found = replay_quarantined(data, upload_ids)
    for each in found:
        if as_json:
            output.json_line(each)
        else:
            click.echo("\t".join((each["upload"], each["verification"], each["detail"])))
    sys.exit(any(each["verification"] in ("quarantined", "rejected") for each in found))


@quarantine.command()
@_uploads
@data_option
def drop(upload_ids: tuple[str, ...], data: Path) -> None:
    """Do away with their bytes."""
    with needing("server"):
        from mailboat.server.upkeep import drop_quarantined
    with told_plainly():
        drop_quarantined(data, upload_ids)


def _row(described: dict[str, Any]) -> list[object]:
    name = described["metadata"].get("filename", "")
    shown = {**described, "name": name, "size": output.size(described["size"])}
    return [output.moment(shown["completed"]) if each == "completed" else shown[each] for each in _COLUMNS]
