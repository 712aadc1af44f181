"""tuspy and aiotus upload to our server: whole, cut off on the way, and while the server is killed."""

from __future__ import annotations

import asyncio
import io

import aiotus
import pytest
from tusclient.client import TusClient

from testkit.peers import Target

ACCIDENTS = pytest.mark.parametrize("accident", ["none", "cut", "kill"])
CUTS = (150_000, 200_000)
EARLY = (60_000, 60_000)
"""So early that after the first cut each part still has more than this to send, however fast the others were."""


@ACCIDENTS
@pytest.mark.parametrize("checksum", [False, True], ids=["", "sha1"])
async def test_tuspy(target: Target, content: bytes, accident: str, checksum: bool) -> None:
    def upload() -> str:
        uploader = TusClient(target.endpoint, headers=target.headers).uploader(
            file_stream=io.BytesIO(content),
            chunk_size=300_000,
            retries=len(CUTS),
            retry_delay=0,
            upload_checksum=checksum,
        )
        uploader.upload()
        return str(uploader.url)

    async with target.behind(accident, *CUTS):
        url = await asyncio.to_thread(upload)
    await target.holds(url, content)


async def test_tuspy_goes_on_in_another_process(target: Target, content: bytes) -> None:
    """It knows nothing but the URL, and asks for the offset."""

    def begin() -> str:
        uploader = TusClient(target.endpoint, headers=target.headers).uploader(
            file_stream=io.BytesIO(content), chunk_size=100_000, metadata={"filename": "session.seg"}
        )
        uploader.upload(stop_at=400_000)
        return str(uploader.url)

    def go_on(url: str) -> int:
        uploader = TusClient(target.endpoint, headers=target.headers).uploader(file_stream=io.BytesIO(content), url=url)
        found = uploader.offset
        uploader.upload()
        return found

    async with target.behind("none"):
        url = await asyncio.to_thread(begin)
        await target.kill_and_restart()
        assert await asyncio.to_thread(go_on, url) == 400_000
    await target.holds(url, content)
    head = await target.asked("HEAD", url, Tus_Resumable="1.0.0")
    assert head["Upload-Metadata"] == "filename c2Vzc2lvbi5zZWc="


@ACCIDENTS
async def test_aiotus(target: Target, content: bytes, accident: str) -> None:
    config = aiotus.RetryConfiguration(retry_attempts=5, max_retry_period_seconds=0.01)
    async with target.behind(accident, *CUTS):
        metadata: dict[str, bytes | None] = {"filename": b"session.seg", "final": None}
        url = await aiotus.upload(
            target.endpoint, io.BytesIO(content), metadata, config=config, headers=target.headers, chunksize=300_000
        )
        assert url is not None
        assert await aiotus.metadata(url, config=config, headers=target.headers) == metadata
    await target.holds(str(url), content)


async def test_aiotus_in_parallel_parts(target: Target, content: bytes) -> None:
    config = aiotus.RetryConfiguration(retry_attempts=5, max_retry_period_seconds=0.01)
    parts = [io.BytesIO(content[start : start + 350_000]) for start in range(0, len(content), 350_000)]
    async with target.behind("cut", *EARLY):
        url = await aiotus.upload_multiple(target.endpoint, parts, config=config, headers=target.headers)
    assert url is not None
    await target.holds(str(url), content)
