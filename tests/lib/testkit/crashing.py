"""Programs that run an agent and come to a bad end, each in a process of its own, and what is found afterwards."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from mailboat.agent.host import boot_id
from testkit.patience import TELL_WHEN_ASKED, Patience
from testkit.recording import Story, recovered

_PROGRAM = """
import asyncio, ctypes, faulthandler, gc, logging, os, signal, sys, threading
from mailboat.agent import Agent

def make(**settings):
    return Agent(server=None, product="product", application="application", store=os.environ["STORE"], **settings)

agent = make()
"""


@dataclass(frozen=True)
class End:
    """How a program has ended; a negative status is the number of the signal that ended it."""

    status: int
    output: str
    errors: str


async def run(store: Path, program: str, *, prelude: str = "", **environment: str) -> End:
    """Run `prelude` and `program`, in which `agent` is an agent that was not started yet, to the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        TELL_WHEN_ASKED + _PROGRAM + prelude + textwrap.dedent(program),
        env={**os.environ, "STORE": str(store), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with Patience(process.pid) as patience:
        output, errors = await process.communicate()
    patience.check(errors.decode)
    assert process.returncode is not None
    return End(process.returncode, output.decode(), errors.decode())


def stories(store: Path) -> list[Story]:
    """What is in the store after all that ran there is dead, and was recovered."""
    return recovered(store, boot_id())


def files_in(store: Path) -> set[str]:
    """The names of all files that the store holds."""
    return {path.name for path in store.rglob("*") if path.is_file()}
