"""Whoever does not want to be tracked: nothing is written, nobody is spoken to. Watched by an audit hook in a process
of its own, which sees every call of the interpreter's that opens, makes, moves, maps or connects.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, json, os, sys

seen = []
watching = False
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CALLS = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.fork",
    "mmap.__new__", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp", "subprocess.Popen", "sqlite3.connect",
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "http.client.connect", "urllib.Request",
}

def hook(event, arguments):
    if not watching:
        return
    if event in CALLS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
        seen.append(f"{event} {arguments[:2]!r:.120}")

sys.addaudithook(hook)

from mailboat.agent import Agent, Level

async def life(settings):
    agent = Agent(product="Acme Studio", application="importer", **settings)
    agent.feature("before.start")
    async with agent:
        agent.feature("f", rows=1)
        agent.value("v", 2.0, unit="bytes")
        with agent.timing("t"):
            pass
        agent.event("e", level=Level.CRITICAL, message="m")
        try:
            raise ValueError("on purpose")
        except ValueError as error:
            agent.exception(error)
        agent.set_installation("inst-1", plan="pro")
        agent.emitter("declared", "a")(1)
        await agent.flush(durable=True)
        report = await agent.force_sync(timeout=5.0)
        agent.pause()
        agent.resume()
        threads = [each for each in __import__("threading").enumerate() if each.name.startswith("mailboat")]
    agent.feature("after.stop")
    return {"sent": report.complete, "threads": len(threads), "state": str(agent.status.state)}

async def main():
    global watching
    watching = True  # the loop's own socket pair is there by now
    try:
        return await life(json.loads(sys.argv[1]))
    finally:
        watching = False

result = asyncio.run(main())
watching = True
print(json.dumps({**result, "seen": seen}))
"""


def life(tmp_path: Path, settings: dict[str, object], **environment: str) -> dict[str, object]:
    given = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    # An address of this machine at which nobody listens: speaking to it would be seen, and go nowhere.
    chosen = {"store": str(tmp_path / "store"), "server": "http://127.0.0.1:9", "api_key": "mbk_x", **settings}
    command = [sys.executable, "-c", PROGRAM, json.dumps(chosen)]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({"enabled": False}, {}),
        ({}, {"DO_NOT_TRACK": "1"}),
        ({}, {"MAILBOAT_ENABLED": "false"}),
        ({"enabled": True}, {"DO_NOT_TRACK": "true"}),
    ],
)
def test_whoever_is_not_tracked_finds_no_file_no_connection_and_no_thread(
    tmp_path: Path, settings: dict[str, object], environment: dict[str, str]
) -> None:
    answer = life(tmp_path, settings, **environment)
    assert answer["seen"] == []
    assert answer["threads"] == 0
    assert answer["state"] == "disabled"
    assert list(tmp_path.iterdir()) == []


def test_the_same_life_is_seen_where_tracking_is_on(tmp_path: Path) -> None:
    answer = life(tmp_path, {})
    seen = answer["seen"]
    assert isinstance(seen, list)
    for call in ("open", "os.mkdir", "os.rename", "mmap.__new__", "socket.connect"):
        assert any(line.startswith(call) for line in seen), f"{call} would not have been seen"
    assert answer["threads"]
    assert (tmp_path / "store").is_dir()
