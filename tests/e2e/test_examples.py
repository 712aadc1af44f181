"""The example programs are run, and what they record arrives."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp import web

from mailboat.agent import Agent
from mailboat.agent.integrations.logs import LogHandler
from testkit.servers import Given, Served

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def settings(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user would set; the time to deliver at the end is no part of the examples."""
    monkeypatch.setenv("MAILBOAT_SERVER", server.url)
    monkeypatch.setenv("MAILBOAT_API_KEY", server.key)
    monkeypatch.setenv("MAILBOAT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MAILBOAT_STOP_TIMEOUT", "60")


async def run(name: str, *arguments: str) -> tuple[int, str]:
    """Run an example to its end; its status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLES / name), *arguments, stdout=asyncio.subprocess.PIPE, env=os.environ
    )
    async with asyncio.timeout(100.0):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def arrived(given: Given) -> list[dict[str, Any]]:
    """The records of the one session that has arrived."""
    (session_id,) = await given.sessions()
    return await given.records(session_id)


def named(records: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((record["kind"], record["name"]) for record in records)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_plain_asyncio(given: Given) -> None:
    status, output = await run("plain_asyncio.py")
    assert status == 0
    records = await arrived(given)
    assert output.startswith(f"recorded {len(records)} records")
    assert named(records) == {
        ("timing", "order.process"): 30,
        ("feature", "order.placed"): 30,
        ("event", "stock.low"): 4,
        ("exception", "LookupError"): 3,
    }


async def test_a_command_line_tool(given: Given, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("three small words")
    # The tool's own second may not be enough here, and it says that the rest goes with a later run: so it is run again.
    for _ in range(2):
        status, output = await run("command_line.py", str(tmp_path / "words.txt"), str(tmp_path / "none"))
        assert (status, output.split()[0]) == (0, "3")
    async with Agent(product="Acme Studio", application="count", synchronize_automatically=False) as agent:
        assert (await agent.force_sync(timeout=60.0)).complete
        told = [named(await given.records(each)) for each in await given.sessions() if each != agent.session_id]
    assert told == 2 * [
        {
            ("feature", "count"): 1,
            ("timing", "count.file"): 2,
            ("value", "count.words"): 1,
            ("exception", "FileNotFoundError"): 1,
        }
    ]


async def test_a_synchronous_program(given: Given) -> None:
    status, output = await run("synchronous.py")
    assert (status, output.splitlines()[-1]) == (0, "all delivered")
    assert named(await arrived(given)) == {
        ("timing", "page.render"): 100,
        ("feature", "page.rendered"): 100,
        ("value", "book.size"): 1,
    }


async def test_an_aiohttp_application(given: Given) -> None:
    example = load("web_aiohttp")
    agent = Agent(product="Acme Studio", application="web")
    handler = LogHandler(agent, level=logging.WARNING)
    example.log.addHandler(handler)
    runner = web.AppRunner(example.create_app(agent))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as http:
            for path, status in (
                ("/hello/world", 200),
                ("/hello/nobody", 500),
                ("/hello/" + 30 * "a", 200),
                ("/x", 404),
            ):
                async with http.get(url + path) as response:
                    assert response.status == status
    finally:
        await runner.cleanup()
        example.log.removeHandler(handler)
    records = await arrived(given)
    assert named(records) == {
        ("timing", "http.GET./hello/{name}"): 3,
        ("feature", "http.GET./hello/{name}"): 3,
        ("feature", "greeting"): 2,
        ("exception", "LookupError"): 1,
        ("event", "acme.web"): 1,
        ("timing", "http.GET.unmatched"): 1,
        ("feature", "http.GET.unmatched"): 1,
    }
    requests = [each for each in records if each["kind"] == "feature" and each["name"].startswith("http.")]
    assert [each["attributes"]["status"] for each in requests] == [200, 500, 200, 404]


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:  # noqa: ANN401 - an ASGI application
    """A real uvicorn in this loop."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            async with asyncio.timeout(90.0):
                await task


async def test_a_fastapi_application(given: Given) -> None:
    async with serving(load("web_fastapi").app) as url, aiohttp.ClientSession() as http:
        for path, status in (
            ("/orders/7", 200),
            ("/orders/0", 404),
            ("/orders/-1", 500),
            ("/orders/x", 422),
            ("/y", 404),
        ):
            async with http.get(url + path) as response:
                assert response.status == status
    records = await arrived(given)
    assert named(records) == {
        ("timing", "http.GET./orders/{number}"): 4,
        ("feature", "http.GET./orders/{number}"): 4,
        ("feature", "order.shown"): 1,
        ("exception", "ArithmeticError"): 1,
        ("timing", "http.GET.unmatched"): 1,
        ("feature", "http.GET.unmatched"): 1,
    }
