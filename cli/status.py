"""`mailboat status`: how the store on this machine stands, and whether its server can be reached."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mailboat.cli import output
from mailboat.cli.extras import told_plainly
from mailboat.cli.stores import State, StoredSession, store_option, stored_sessions

if TYPE_CHECKING:
    from mailboat.agent.config import AgentConfig

_PATIENCE = 5.0
"""Seconds that the server has to answer."""


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(store: Path, as_json: bool) -> None:
    """Show the store, what became of every record, and whether the configured server answers."""
    with told_plainly():
        from mailboat.agent.config import AgentConfig

        config = AgentConfig.load()
        sessions = stored_sessions(store)
        found = {
            "store": str(store),
            "applications": [_application(folder, list(group)) for folder, group in _by_store(sessions)],
            "server": _server(config),
        }
    if as_json:
        output.json_line(found)
    else:
        _show(found)


def _by_store(sessions: Sequence[StoredSession]) -> list[tuple[Path, list[StoredSession]]]:
    ordered = sorted(sessions, key=lambda session: session.store)
    return [(folder, list(group)) for folder, group in groupby(ordered, key=lambda session: session.store)]


def _application(folder: Path, sessions: Sequence[StoredSession]) -> dict[str, Any]:
    """The sessions of one application by state, their sizes, and the ledger."""
    from mailboat.agent.files import OsFileSystem
    from mailboat.agent.ledger import LedgerFile

    outlines = {session: session.outlines() for session in sessions}
    pending = sum(each.records for session in sessions if session.state is State.WAITING for each in outlines[session])
    states = {}
    for state in State:
        chosen = [session for session in sessions if session.state is state]
        bytes_held = sum(each.size for session in chosen for each in outlines[session])
        states[state.value] = {"sessions": len(chosen), "size": bytes_held}
    return {
        "product": sessions[0].product,
        "application": sessions[0].application,
        "states": states,
        "ledger": LedgerFile(OsFileSystem(), folder).account(pending, {}).to_wire(),
    }


def _server(config: AgentConfig) -> dict[str, Any]:
    if not config.server:
        return {"url": None, "reachable": False, "told": "none is configured (MAILBOAT_SERVER)"}
    import asyncio

    from mailboat.agent.http import TRANSPORT_FAILURES

    try:
        answered, told = asyncio.run(_ask(config))
    except TRANSPORT_FAILURES as error:
        answered, told = False, f"no connection: {type(error).__name__} {error}".rstrip()
    return {"url": config.server, "reachable": answered, "told": told}


async def _ask(config: AgentConfig) -> tuple[bool, str]:
    """Whether a mailboat server answers, and a sentence about it."""
    import asyncio

    from mailboat.agent.http import Http
    from mailboat.protocol.negotiation import SERVER_HEADER

    http = Http(config.server or "", "", "mailboat-cli", config.ssl)
    try:
        async with asyncio.timeout(_PATIENCE):
            answer = await http.request("GET", http.url("/v1/status") or "", {})
    finally:
        await http.close()
    version = answer.headers.get(SERVER_HEADER.lower())
    if version is None:
        return False, f"what answers there (status {answer.status}) is no mailboat server"
    return True, f"mailboat {version} answers"


def _show(found: dict[str, Any]) -> None:
    output.facts([("store", found["store"]), ("server", found["server"]["url"] or "-"), ("", found["server"]["told"])])
    columns = ("product", "application", *(state.value for state in State), "recorded", "accepted", "pending", "lost")
    lines = []
    for each in found["applications"]:
        ledger = each["ledger"]
        states = [f"{held['sessions']} ({output.size(held['size'])})" for held in each["states"].values()]
        lost = sum(ledger["lost"].values()) + sum(ledger["evicted"].values())
        sums = (ledger["recorded"], ledger["accepted"], ledger["pending"], lost)
        lines.append((each["product"], each["application"], *states, *sums))
    if lines:
        output.rows(columns, lines, numbers=columns[2:])
