"""The sessions in a store folder: ``<root>/<product>/<application>/<state>/<session id>/NNNNNN.zst``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import click

from mailboat.cli.extras import Failure, Misuse, told_plainly
from mailboat.cli.segments import SUFFIX, Outline, outline
from mailboat.protocol.ids import is_canonical


class State(StrEnum):
    """Where a session stands on its way, told by the folder it lies in."""

    LIVE = "live"
    WAITING = "waiting"
    SENT = "sent"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class StoredSession:
    """One session in a store. `product` and `application` are the names of its folders."""

    id: str
    state: State
    product: str
    application: str
    folder: Path

    @property
    def store(self) -> Path:
        """The folder of its application, which is what an agent calls a store."""
        return self.folder.parent.parent

    def segments(self) -> list[Path]:
        """Its segment files, in order."""
        return sorted(path for path in self.folder.iterdir() if path.suffix == SUFFIX)

    def outlines(self) -> list[Outline]:
        """Its segments in brief, in order."""
        return [outline(path) for path in self.segments()]


def default_store() -> Path:
    """Where an agent configured in the environment or in this folder's files keeps its sessions."""
    from mailboat.agent.config import AgentConfig

    with told_plainly():
        return AgentConfig.load().store_root


store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_store,
    show_default="as configured, or else the user's data folder",
    help="The folder that sessions are kept in.",
)


def stored_sessions(root: Path) -> list[StoredSession]:
    """All sessions below `root`, oldest first. A folder that is not there has none; `Failure` if it cannot be read."""
    try:
        found = list(_walk(root))
    except OSError as error:
        raise Failure(f"the store {root} cannot be read: {error.strerror or error}") from error
    return sorted(found, key=lambda session: (session.id, session.state))


def _walk(root: Path) -> Iterator[StoredSession]:
    for product in _folders(root):
        for application in _folders(product):
            for state in State:
                for folder in _folders(application / state):
                    if is_canonical(folder.name):
                        yield StoredSession(folder.name, state, product.name, application.name, folder)


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def session_named(root: Path, wanted: str) -> StoredSession:
    """The one session whose id begins with `wanted`; a usage error when there is none, or more than one."""
    matching = [session for session in stored_sessions(root) if session.id.startswith(wanted.lower())]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise Misuse(f"no session in {root} has an id that begins with {wanted!r}")
    raise Misuse(f"{wanted!r} begins the ids of {len(matching)} sessions: give more of it")
