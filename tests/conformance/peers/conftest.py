"""A server to upload to, and what peers in other languages need."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import portalocker
import pytest

from mailboat.server.keys import create_key
from testkit.peers import Target, TusNode
from testkit.serverkit import PRODUCT, ServerProcess, fresh_session_id, make_segment

NPM_PACKAGES = ("tus-js-client@4.3.1", "@tus/server@2.4.5", "@tus/file-store@2.1.1")
SIZE = 1_000_000
"""Bytes of what is uploaded: a dozen requests of the peers."""


@pytest.fixture
def content() -> bytes:
    return make_segment(fresh_session_id(), size=SIZE)


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    data = tmp_path / "data"
    key = await asyncio.to_thread(create_key, data, PRODUCT)
    made = Target(data, key, await ServerProcess.start(data))
    yield made
    await made.process.stop()


@pytest.fixture(scope="session")
def npm_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with `NPM_PACKAGES` installed: one for all test processes, kept for later runs as pytest keeps such."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("NOT TESTED against tus-js-client and @tus/server: node and npm are needed, and not on PATH")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if worker_id == "master" else base.parent.parent) / "mailboat-npm"
    folder.mkdir(exist_ok=True)
    with portalocker.Lock(folder / "lock", timeout=300):
        wanted = " ".join(NPM_PACKAGES)
        done = folder / "installed"
        if not done.exists() or done.read_text() != wanted:
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *NPM_PACKAGES]
            installed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if installed.returncode:
                pytest.skip(f"NOT TESTED against tus-js-client and @tus/server: npm says {installed.stderr[-500:]}")
            done.write_text(wanted)
    return folder


@pytest.fixture
async def node(npm_folder: Path, tmp_path: Path) -> AsyncIterator[TusNode]:
    made = TusNode(npm_folder, tmp_path / "files")
    made.data.mkdir()
    await made.start()
    yield made
    await made.kill()
