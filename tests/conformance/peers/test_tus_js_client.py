"""tus-js-client uploads to our server, by tus and by both drafts it speaks, through cuts and a kill of the server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from testkit.peers import Target

PROTOCOLS = pytest.mark.parametrize("protocol", ["tus-v1", "ietf-draft-03", "ietf-draft-05"])
CUTS = (150_000, 200_000)


class Client:
    """The program `upload.cjs` on one file."""

    def __init__(self, npm_folder: Path, file: Path, target: Target, protocol: str) -> None:
        self.folder = npm_folder
        self.options = {"file": str(file), "protocol": protocol, "headers": target.headers, "chunkSize": 300_000}

    async def run(self, **options: object) -> str:
        """The URL of the upload, or an `AssertionError` with what the client said."""
        process = await asyncio.create_subprocess_exec(
            "node",
            str(Path(__file__).with_name("upload.cjs")),
            str(self.folder),
            json.dumps(self.options | options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()


@pytest.fixture
def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "content"
    path.write_bytes(content)
    return path


@PROTOCOLS
@pytest.mark.parametrize("accident", ["none", "cut", "kill"])
async def test_through_accidents(
    npm_folder: Path, target: Target, content: bytes, file: Path, accident: str, protocol: str
) -> None:
    client = Client(npm_folder, file, target, protocol)
    async with target.behind(accident, *CUTS):
        url = await client.run(endpoint=target.endpoint, metadata={"filename": "session.seg"})
    await target.holds(url, content)


@PROTOCOLS
async def test_another_process_goes_on(
    npm_folder: Path, target: Target, content: bytes, file: Path, protocol: str
) -> None:
    client = Client(npm_folder, file, target, protocol)
    async with target.behind("none"):
        url = await client.run(endpoint=target.endpoint, stopAt=300_000)
        assert (await target.asked("HEAD", url, Upload_Draft_Interop_Version="9"))["Upload-Offset"] == "300000"
        await target.kill_and_restart()
        assert await client.run(uploadUrl=url) == url
    await target.holds(url, content)


@pytest.mark.parametrize(
    "options",
    [
        {"uploadDataDuringCreation": True},
        {"overridePatchMethod": True},
        {"parallelUploads": 3},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_the_extensions_it_uses(
    npm_folder: Path, target: Target, content: bytes, file: Path, options: dict[str, object]
) -> None:
    client = Client(npm_folder, file, target, "tus-v1")
    async with target.behind("cut", CUTS[0]):
        url = await client.run(endpoint=target.endpoint, **options)
    await target.holds(url, content)


async def test_a_stream_whose_length_it_learns_at_its_end(
    npm_folder: Path, target: Target, content: bytes, file: Path
) -> None:
    client = Client(npm_folder, file, target, "tus-v1")
    async with target.behind("none"):  # what has left its stream it cannot send again
        url = await client.run(endpoint=target.endpoint, uploadLengthDeferred=True, stream=True, chunkSize=50_000)
    await target.holds(url, content)
