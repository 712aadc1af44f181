"""Secrets that an application hands over are nowhere: not in the store, in the journal neither, not in the logs, not on
the wire, and not at the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

from mailboat.agent import Agent, Level
from testkit.agents import AgentMaker
from testkit.lines import line_to
from testkit.servers import Given, Served

HARMLESS = "harmless-marker-77b1"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Login(NamedTuple):
    user: str
    password: str


class Secrets:
    """Each secret is another text, so that one that is found tells where it came from."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def __call__(self, where: str) -> str:
        return self.planted.setdefault(where, f"hunter2-{len(self.planted):03}-{os.urandom(6).hex()}")

    def found_in(self, content: bytes) -> list[str]:
        return [where for where, secret in self.planted.items() if secret.encode() in content]


def plant(agent: Agent, secret: Secrets) -> None:
    """Record secrets in every way in which attributes can be given, with something harmless beside them."""
    plain = {"marker": HARMLESS}
    agent.set_installation("inst-1", password=secret("installation"), nested={"token": secret("installation, nested")})
    agent.feature("f", **plain, password=secret("feature"))
    agent.feature("f", **plain, deep={"list": [{"deeper": {"api_key": secret("nested feature")}}]})
    agent.feature("f", **plain, headers={"Authorization": secret("header"), "Set-Cookie": secret("cookie header")})
    agent.feature("f", **plain, cookie=secret("bytes").encode())
    agent.feature("f", **plain, card_number=[secret("a list under the name"), 4111_1111])
    agent.feature("f", **plain, tuple_of=({"client_secret": secret("in a tuple")},))
    agent.feature("f", **plain, said=argparse.Namespace(user="u", password=secret("in an object's text")))
    agent.feature("f", **plain, named=Login("u", secret("in a named tuple")))
    agent.value("v", 1.5, "bytes", **plain, access_token=secret("value"))
    with agent.timing("t", **plain, csrf=secret("timing")):
        pass
    agent.event("e", level=Level.ERROR, message="m", **plain, private_key=secret("event"))
    agent.exception(ValueError("v"), context="c", marker=HARMLESS, sessionid=secret("exception"))
    agent.emitter("declared", "marker", "password", "holding")(
        HARMLESS, secret("emitter"), {"cvv": secret("in an emitter's value")}
    )
    for size in (3, 70_000):  # the ordinary way, and that of records that are too large
        agent.feature("f", **plain, secret=secret(f"beside {size}"), text="x" * size, odd={1, 2})


def unpacked(content: bytes) -> Iterator[bytes]:
    """What any zstd frame in `content` holds, as far as that is one."""
    at = content.find(_ZSTD)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):  # the bytes only look like a frame
            yield zstandard.ZstdDecompressor().decompressobj().decompress(content[at:])
        at = content.find(_ZSTD, at + 1)


def told_by(content: bytes) -> bytes:
    return b"\n".join([content, *unpacked(content)])


def all_files(folder: Path) -> bytes:
    return b"\n".join(told_by(path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file())


async def test_planted_secrets_are_nowhere(
    tmp_path: Path, server: Served, given: Given, make_agent: AgentMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, passed = Secrets(), list[bytes]()
    async with line_to(server.process.port, on_bytes=passed.append) as line:
        properties = {"team": HARMLESS, "db_password": secret("property"), "more": {"jwt": secret("nested property")}}
        agent = make_agent(server=line.url, properties=properties, stop_timeout=60.0)
        async with agent:
            plant(agent, secret)
            journal = next((tmp_path / "store").glob("*/*/live/*/journal")).read_bytes()
            assert HARMLESS.encode() in journal, "what is in the journal would have been seen"
            assert secret.found_in(journal) == []
            await agent.flush(durable=True)
            report = await agent.force_sync(timeout=60.0)
            assert report.error is None, report
            assert agent.status.lost == {}
            live = all_files(tmp_path / "store")
    assert agent.session_id is not None
    wire = told_by(b"".join(passed))
    kept = all_files(tmp_path / "store")
    for place in (live, kept, wire):
        assert HARMLESS.encode() in place, "it would have been seen"
        assert secret.found_in(place) == []
    assert secret.found_in(caplog.text.encode()) == []
    assert b"mbk_" not in kept
    assert server.key not in caplog.text
    assert secret.found_in(server.data.with_name(f"{server.data.name}.log").read_bytes()) == []
    records = json.dumps(await given.records(agent.session_id)).encode()
    assert records.count(HARMLESS.encode()) == 15
    assert records.count(b"[redacted]") >= len(secret.planted) - 4, "those of properties are elsewhere"
    assert secret.found_in(records + json.dumps(await given.sessions()).encode()) == []


async def test_the_applications_own_callable_comes_on_top(
    tmp_path: Path, make_agent: AgentMaker, caplog: pytest.LogCaptureFixture
) -> None:
    secret, seen = Secrets(), list[tuple[str, dict[str, Any]]]()

    def scrub(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
        seen.append((name, dict(attributes)))
        if name == "refused":
            raise RuntimeError("the application's own mistake")
        return {key: value for key, value in attributes.items() if key != "street"}

    agent = make_agent(server=None, scrub=scrub)
    async with agent:
        plant(agent, secret)
        agent.feature("address", street=secret("street"), town=HARMLESS)
        agent.feature("refused", street=secret("refused"), marker="dropped-marker")
        assert agent.status.lost == {"scrub_failed": 1}
    kept = all_files(tmp_path / "store")
    assert HARMLESS.encode() in kept
    assert secret.found_in(kept) == []
    assert b"dropped-marker" not in kept
    assert secret.found_in(caplog.text.encode()) == []
    shown = repr([each for each in seen if each[0] != "address" and each[0] != "refused"]).encode()
    assert secret.found_in(shown) == ["in an object's text"], "the application has its own object, not the text of it"


def test_secrets_on_the_command_line_are_not_told(tmp_path: Path) -> None:
    secret = Secrets()
    program = (
        "import asyncio, os, signal, sys\n"
        "from mailboat.agent import Agent\n"
        "async def live():\n"
        "    async with Agent(store=sys.argv[1], api_key=sys.argv[2], product='p', application='a') as agent:\n"
        "        agent.feature('f')\n"
        "        await agent.flush(durable=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(live())\n"
    )
    words = [
        secret("the agent's own key"),
        f"--api-key={secret('joined')}",
        "--password",
        secret("apart"),
        f"https://user:{secret('in a URL')}@example.com/x",
        f"--marker={HARMLESS}",
    ]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "store"), *words], check=False)
    assert done.returncode == -signal.SIGKILL
    kept = all_files(tmp_path / "store")
    assert HARMLESS.encode() in kept
    assert secret.found_in(kept) == []


async def test_a_secret_outside_of_attributes_is_said_to_be_the_applications_own_care(make_agent: AgentMaker) -> None:
    """Texts are not searched: a message stays as it is, which is why the docstring of `scrub` speaks of names."""
    agent = make_agent(server=None)
    async with agent:
        agent.event("e", message=f"text {HARMLESS}")
        folder = next(agent.config.store_root.glob("*/*/live/*"))
        assert HARMLESS.encode() in await asyncio.to_thread((folder / "journal").read_bytes)
