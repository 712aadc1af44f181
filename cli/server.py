"""`mailboat server`: looking after a server on this machine: check, backup, restore (and `quarantine`, apart)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailboat.cli.extras import Failure, needing, told_plainly
from mailboat.cli.output import json_line, rows, size, warn
from mailboat.protocol import MailboatError

if TYPE_CHECKING:
    from mailboat.server.check import Fault, Findings

data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True, help="The server's data folder."
)
_folder = click.Path(path_type=Path, file_okay=False)


@click.group()
def server() -> None:
    """Look after a server on this machine."""


@server.command()
@data_option
@click.option("--quick", is_flag=True, help="Look at sizes only: do not read the segments to compare their digests.")
@click.option("--repair", is_flag=True, help="Put right what can be without losing anything; the server must not run.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each fault, and one for the totals.")
def check(data: Path, quick: bool, repair: bool, as_json: bool) -> None:
    """Hold the catalog, the segments and the analytics store against each other. Exit status 1 if something is wrong.

    While the server runs its analytics store is left out. Nothing is changed without --repair.
    """
    with needing("server"):
        from mailboat.server.upkeep import check_folder, repair_folder
    with told_plainly():
        findings = check_folder(data, deep=not quick)
        _tell(findings, as_json=as_json)
        left: tuple[Fault, ...] | list[Fault] = findings.faults
        if repair and findings.faults:
            repaired = repair_folder(data, findings)
            for line in repaired.done:
                warn(f"repaired: {line}")
            left = repaired.left
    sys.exit(1 if left else 0)


def _tell(findings: Findings, *, as_json: bool) -> None:
    totals = {
        "uploads": findings.uploads,
        "blobs": findings.blobs,
        "bytes": findings.bytes,
        "sessions": findings.sessions,
        "records": findings.records,
        "faults": len(findings.faults),
    }
    if as_json:
        for fault in findings.faults:
            json_line({"kind": fault.kind.value, "subject": fault.subject, "detail": fault.detail})
        json_line({**totals, "notes": findings.notes})
        return
    if findings.faults:
        rows(("fault", "of", "what"), [(fault.kind.value, fault.subject, fault.detail) for fault in findings.faults])
    for note in findings.notes:
        warn(note)
    counted = f"{findings.uploads} uploads with {size(findings.bytes)}, {findings.sessions} sessions"
    warn(f"{counted}, {findings.records} records: {len(findings.faults) or 'no'} faults")


@server.command()
@data_option
@click.option("--to", "target", type=_folder, required=True, help="A folder that is empty or not there yet.")
def backup(data: Path, target: Path) -> None:
    """Back a server's folder up, whether it runs or not. What it receives meanwhile is for the next backup."""
    with needing("server"):
        from mailboat.server.backup import back_up
    with told_plainly():
        try:
            made = back_up(data, target)
        except MailboatError:
            raise
        except OSError as error:
            raise Failure(f"the backup to {target} failed, and is of no use: {error}") from error
    warn(f"{made.segments} uploads with {size(made.bytes)} are in {target}")
    for upload_id in made.lost:
        warn(f"upload {upload_id}: its bytes are not there; `mailboat server check` tells more")
    sys.exit(1 if made.lost else 0)


@server.command()
@click.option("--from", "source", type=_folder, required=True, help="A backup.")
@data_option
def restore(source: Path, data: Path) -> None:
    """Make a server's folder of a backup, and check it. The folder must be empty or not there yet.

    The first start loads the analytics store anew. Agents send again what came after the backup, as far as they have
    it.
    """
    with needing("server"):
        from mailboat.server.backup import restore as lay_out
        from mailboat.server.upkeep import check_folder
    with told_plainly():
        try:
            lay_out(source, data)
        except MailboatError:
            raise
        except OSError as error:
            raise Failure(f"restoring to {data} failed; empty that folder before you try again: {error}") from error
        findings = check_folder(data)
    _tell(findings, as_json=False)
    sys.exit(1 if findings.faults else 0)
