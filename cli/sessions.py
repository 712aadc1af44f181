"""`mailboat sessions`: look into the store on this machine, no server needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from mailboat.cli import output
from mailboat.cli.extras import Failure, Misuse, told_plainly
from mailboat.cli.segments import PIECE, SUFFIX, Outline, Reading, spans_of
from mailboat.cli.stores import State, StoredSession, session_named, store_option, stored_sessions
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.sealing import Keyring, PrivateKey

DAMAGED = 1
_COLUMNS = ("session", "state", "product", "application", "version", "started", "records", "errors", "size", "segments")
_NUMBERS = ("records", "errors", "size", "segments")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.group()
def sessions() -> None:
    """List, show, print, verify, export and purge the sessions kept on this machine."""


@sessions.command("list")
@store_option
@json_option
def list_sessions(store: Path, as_json: bool) -> None:
    """List the sessions in the store, oldest first."""
    described = [_describe(session) for session in stored_sessions(store)]
    if as_json:
        for each in described:
            output.json_line(each)
        return
    output.rows(_COLUMNS, [_row(each) for each in described], numbers=_NUMBERS)
    if not described and output.on_terminal():
        click.echo(f"No sessions in {output.printable(store)}.")


@sessions.command()
@click.argument("session_id", metavar="ID")
@store_option
@json_option
def show(session_id: str, store: Path, as_json: bool) -> None:
    """Show what is known of one session. The beginning of its ID is enough."""
    session = session_named(store, session_id)
    described = _describe(session, detailed=True)
    if as_json:
        output.json_line(described)
        return
    pairs = [(name, value) for name, value in described.items() if value not in ("", None, {}, [])]
    output.facts([(name, _shown(name, value)) for name, value in pairs])


key_option = click.option(
    "--key",
    "key_files",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="A file with a server's private key (DATA/sealing/*.key there), for what is sealed to it.",
)


@sessions.command()
@click.argument("source", metavar="FILE_OR_ID")
@key_option
@store_option
@json_option
def cat(source: str, key_files: Sequence[Path], store: Path, as_json: bool) -> None:  # noqa: ARG001 - records are JSON
    """Print the records of a session, or of a bare segment file, as lines of JSON.

    Of a damaged one, what can be read is printed; what cannot is told on the standard error, and the exit status is 1.
    So it is with one that is sealed, unless the key it is sealed to is given.
    """
    readings, complaints = _open(source, store, _keyring(key_files))
    for reading in readings:
        for record in _iterate(reading):
            output.json_line(record.to_dict())
    _report(readings, [*complaints, *(_locked(reading) for reading in readings if reading.locked)])


def _locked(reading: Reading) -> str:
    return (
        f"{reading.path}: sealed: {reading.locked} records can be read with the private key {reading.sealed_to} of its "
        "server alone, given with --key FILE"
    )


def _keyring(files: Sequence[Path]) -> Keyring | None:
    if not files:
        return None
    with told_plainly():
        try:
            return Keyring(PrivateKey.parse(path.read_text("utf-8", "replace").strip()) for path in files)
        except OSError as error:
            raise Misuse(f"{error.filename}: the key cannot be read: {error.strerror}") from error


@sessions.command()
@click.argument("sources", metavar="[FILE_OR_ID]...", nargs=-1)
@store_option
@json_option
def verify(sources: Sequence[str], store: Path, as_json: bool) -> None:
    """Check sessions or segment files against their checksums, record by record; all of the store when none is named.

    What is sealed is checked without its key, block by block. The exit status is 1 when anything is damaged.
    """
    wanted = sources or [session.id for session in stored_sessions(store)]
    damaged = 0
    for source in wanted:
        readings, missing = _open(source, store)
        records = sum(1 for reading in readings for _ in _iterate(reading))
        records += sum(reading.locked for reading in readings)
        complaints = [*missing, *(text for reading in readings for text in _complaints(reading))]
        damaged += bool(complaints)
        if as_json:
            output.json_line({"source": source, "records": records, "intact": not complaints, "damage": complaints})
        else:
            click.echo(f"{output.printable(source)}\t{'damaged' if complaints else 'intact'}\t{records} records")
            for text in complaints:
                output.warn(f"  {text}")
    if damaged:
        raise click.exceptions.Exit(DAMAGED)


@sessions.command()
@click.argument("session_id", metavar="ID")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    show_default="here",
    help="The folder to write to; made if it is not there.",
)
@store_option
@json_option
def export(session_id: str, folder: Path, store: Path, as_json: bool) -> None:
    """Copy a session out of the store into one file, a package, to be carried by hand; prints the file's name.

    A package is the session's segments, one after the other: `mailboat sessions cat` reads it anywhere, and a server
    takes it as an upload by any client. Packages may be joined (`cat A B >C`).
    """
    session = session_named(store, session_id)
    package = folder / f"{session.id}{SUFFIX}"
    # Written under another name first: a file of the right name is a whole one.
    unfinished = package.with_name(f"{package.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as target:
            for path in session.segments():
                with path.open("rb") as segment:
                    shutil.copyfileobj(segment, target, PIECE)
        unfinished.replace(package)
    except OSError as error:
        raise Failure(f"session {session.id} cannot be exported to {folder}: {error.strerror or error}") from error
    if as_json:
        output.json_line({"session": session.id, "file": str(package), "size": package.stat().st_size})
    else:
        click.echo(str(package))
    if session.state is State.LIVE:
        output.warn("the session is still running: its last segment is not sealed, and a server will keep it apart")


@sessions.command()
@click.argument("session_ids", metavar="[ID]...", nargs=-1)
@store_option
@json_option
def purge(session_ids: Sequence[str], store: Path, as_json: bool) -> None:
    """Delete sessions that the server has answered for: those named, or all that were sent; prints their ids.

    What still waits is never deleted here.
    """
    chosen = [session_named(store, each) for each in session_ids] or [
        session for session in stored_sessions(store) if session.state is State.SENT
    ]
    for session in chosen:
        if session.state is not State.SENT:
            raise Misuse(f"session {session.id} is {session.state}: only sessions that were sent are purged")
    for session in chosen:
        try:
            shutil.rmtree(session.folder)
        except OSError as error:
            raise Failure(f"session {session.id} cannot be deleted: {error.strerror or error}") from error
        if as_json:
            output.json_line({"session": session.id, "purged": True})
        else:
            click.echo(session.id)


def _open(source: str, store: Path, keys: Keyring | None = None) -> tuple[list[Reading], list[str]]:
    """The segments that `source` names, and what is wrong with their number."""
    path = Path(source)
    if path.is_file():
        return _of_package(path, keys), []
    if path.suffix or len(path.parts) > 1:
        raise Misuse(f"there is no file {source}")
    session = session_named(store, source)
    segments = session.segments()
    present = {path.stem for path in segments}
    last = max((int(stem) for stem in present if stem.isdigit()), default=-1)
    missing = [name for index in range(last + 1) if (name := f"{index:06}") not in present]
    complaints = [f"segment {name} is missing" for name in missing]
    if not segments and session.state is not State.LIVE:
        complaints.append("there is no segment in it")
    return [Reading(path, keys=keys) for path in segments], complaints


def _of_package(path: Path, keys: Keyring | None) -> list[Reading]:
    """The segments of a file: one, or those of a package."""
    try:
        return [Reading(path, span, keys) for span in spans_of(path)]
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}") from error


def _iterate(reading: Reading) -> Iterator[Any]:
    try:
        yield from reading
    except OSError as error:
        raise Failure(f"{reading.path} cannot be read: {error.strerror or error}") from error


def _complaints(reading: Reading) -> list[str]:
    growing = State.LIVE in reading.path.parts[-3:-2]
    return [f"{reading.path}: {text}" for text in reading.complaints(growing=growing)]


def _report(readings: Sequence[Reading], complaints: Sequence[str]) -> None:
    found = [*complaints, *(text for reading in readings for text in _complaints(reading))]
    for text in found:
        output.warn(text)
    if found:
        raise click.exceptions.Exit(DAMAGED)


# -- descriptions ----------------------------------------------------------------------------------------------------


def _describe(session: StoredSession, *, detailed: bool = False) -> dict[str, Any]:
    """One session as a map of plain values."""
    base: dict[str, Any] = {"session": session.id, "state": session.state.value}
    try:
        outlines = session.outlines()
    except OSError as error:
        folders = {"product": session.product, "application": session.application}
        return base | folders | {"error": str(error.strerror or error)}
    described = base | _brief(session, outlines)
    return described | _details(outlines) if detailed else described


def _brief(session: StoredSession, outlines: Sequence[Outline]) -> dict[str, Any]:
    first = outlines[0] if outlines else None
    info = first.info if first else None
    return {
        "product": (info.product if info else "") or session.product,
        "application": (info.application if info else "") or session.application,
        "version": info.version if info else "",
        "started": first.preamble.started_wall / 1e9 if first and first.preamble else None,
        "records": sum(each.records for each in outlines),
        "errors": sum(each.errors for each in outlines),
        "size": sum(each.size for each in outlines),
        "segments": len(outlines),
        "folder": str(session.folder),
    }


def _details(outlines: Sequence[Outline]) -> dict[str, Any]:
    counts = map(sum, zip(*(each.counts for each in outlines), strict=True)) if outlines else ()
    last = outlines[-1].seal if outlines else None
    info = outlines[0].info.to_wire() if outlines else {}
    known = {"product", "application", "version"}
    return {
        "ended": last.ended_wall / 1e9 if last else None,
        "end": last.reason.value if last else "",
        "sealed_to": outlines[0].sealed_to if outlines else "",
        "raw_size": sum(each.raw_bytes or 0 for each in outlines) or None,
        "counts": {name: count for name, count in zip(COUNTERS, counts, strict=False) if count},
        "installation": dict(last.installation) if last and last.installation else None,
        **{name: value for name, value in info.items() if name not in known and value not in ("", None, False)},
        "files": [
            {"name": each.path.name, "size": each.size, "records": each.records, "sealed": each.seal is not None}
            for each in outlines
        ],
    }


def _row(described: dict[str, Any]) -> list[object]:
    return [_shown(name, described.get(name, "")) for name in _COLUMNS]


def _shown(name: str, value: object) -> object:
    match name, value:
        case (("size" | "raw_size"), int()):
            return output.size(value)
        case (("started" | "ended"), float()):
            return output.moment(value)
        case _, dict():
            return ", ".join(f"{key}: {each}" for key, each in value.items())
        case _, list():
            return ", ".join(f"{each['name']} ({output.size(each['size'])})" for each in value)
        case _, None:
            return ""
    return value
