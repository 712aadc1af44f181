"""Segments that ride along with their offers: kept as durably as uploads, each once, whatever the others are."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailboat.protocol import Status, Summary, wire
from mailboat.protocol.limits import MAX_RIDER
from mailboat.protocol.negotiation import Decision, Reply, Request, Rider
from mailboat.server import ServerConfig, packs
from mailboat.server.app import create_app
from mailboat.server.backup import back_up, restore
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import ProductRow, Role, UploadRow, Verification
from mailboat.server.check import Kind, check
from mailboat.server.context import BLOBS, CATALOG, CONFIG, COUNTERS
from mailboat.server.ingest import INGEST
from mailboat.server.keys import create_key
from mailboat.server.packs import YOUNG, Packs, Place, id_of, is_packed, place_of
from mailboat.server.riding import TERMS, sweep
from mailboat.server.serving import RunningServer, running
from testkit.serverkit import AGENT, PRODUCT, Wire, fresh_session_id, make_segment, of_product, summary_of, wired


def small(size: int = 3_000) -> tuple[Summary, bytes]:
    """A session of one small segment, and its bytes."""
    content = make_segment(fresh_session_id(), size=size)
    return summary_of(content), content


def rider(summary: Summary, content: bytes, index: int = 0) -> Rider:
    return Rider(summary.session_id, index, memoryview(content))


async def ride(client: Wire, *aboard: tuple[Summary, bytes], json: bool = False) -> tuple[Decision, ...]:
    """Offer sessions with their bytes."""
    request = Request(
        AGENT, tuple(summary for summary, _ in aboard), riders=tuple(rider(*each) for each in aboard if each[1])
    )
    if json:
        answer = await client.ask(
            "POST", "/v1/negotiate", data=request.encode(wire.JSON_MEDIA_TYPE), Content_Type=wire.JSON_MEDIA_TYPE
        )
        assert answer.status == 200, answer
        return Reply.decode(answer.body, wire.JSON_MEDIA_TYPE).decisions
    return (await asked(client, request)).decisions


async def asked(client: Wire, request: Request) -> Reply:
    answer = await client.ask(
        "POST",
        "/v1/negotiate",
        data=request.compressed(),
        Content_Type=wire.MSGPACK_MEDIA_TYPE,
        Content_Encoding="zstd",
    )
    assert answer.status == 200, answer
    return Reply.decode(answer.body)


async def kept(server: RunningServer, summary: Summary) -> list[tuple[UploadRow, bytes]]:
    """The uploads of a session as the catalog has them, with their bytes."""
    row = await server.app[CATALOG].session(PRODUCT, summary.session_id)
    assert row is not None
    found = []
    for segment in row.segments:
        upload = await server.app[CATALOG].upload(segment.upload_id)
        assert upload is not None
        content = await asyncio.to_thread(server.app[BLOBS].read, upload.id, 0, MAX_RIDER + 1)
        found.append((upload, content))
    return found


@pytest.mark.parametrize("json", [False, True])
async def test_a_small_session_is_here_with_its_offer(server: RunningServer, client: Wire, *, json: bool) -> None:
    sessions = [small(), small(60_000)]
    decisions = await ride(client, *sessions, json=json)
    for (summary, content), decision in zip(sessions, decisions, strict=True):
        (state,) = summary.segments
        assert (decision.verdict, decision.session_id) == ("have", summary.session_id)
        (segment,) = decision.segments
        assert (segment.offset, segment.complete, segment.sha256) == (len(content), True, state.sha256)
        ((upload, held),) = await kept(server, summary)
        assert held == content
        assert (upload.verification, upload.state.complete, upload.records) == (
            Verification.VERIFIED,
            True,
            summary.records,
        )
    await server.app[INGEST].settled()
    assert server.app[COUNTERS]["ingest_segments"] == 2
    assert await client.negotiate(*(summary for summary, _ in sessions)) == decisions


async def test_a_full_request_is_one_transaction_and_one_flush(
    server: RunningServer, client: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = server.app[BLOBS]
    assert isinstance(blobs, LocalBlobs)
    flushes = 0
    sync = blobs.packs._sync_data

    def counted(fd: int) -> None:
        nonlocal flushes
        flushes += 1
        sync(fd)

    monkeypatch.setattr(blobs.packs, "_sync_data", counted)
    await server.app[INGEST].settled()  # which has taken its lease then
    before = server.app[CATALOG].commits  # type: ignore[attr-defined] # SQLite's
    decisions = await ride(client, *(small() for _ in range(40)))
    assert {decision.verdict for decision in decisions} == {"have"}
    assert flushes == 1
    assert server.app[CATALOG].commits - before == 1  # type: ignore[attr-defined]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes((content[middle] ^ 1,)) + content[middle + 1 :]


async def test_a_damaged_one_stops_no_other(server: RunningServer, client: Wire) -> None:
    one, (summary, content), other = small(), small(), small()
    decisions = await ride(client, one, (summary, flipped(content)), other)
    assert [decision.verdict for decision in decisions] == ["have", "reject", "have"]
    assert decisions[1].reason == "corrupted"
    ((upload, held),) = await kept(server, summary)
    assert (upload.verification, held) == (Verification.REJECTED, flipped(content))
    row = await server.app[CATALOG].session(PRODUCT, summary.session_id)
    assert row is not None
    assert (row.state, row.reason) == ("rejected", "corrupted")


async def test_a_segment_of_another_session_is_not_taken_for_it(client: Wire) -> None:
    (summary, content), (_, other) = small(), small()
    assert len(content) == len(other)
    (decision,) = await ride(client, (summary, other))
    assert (decision.verdict, decision.reason) == ("reject", "corrupted")


async def test_what_cannot_be_used_is_passed_over(server: RunningServer, client: Wire) -> None:
    (short, content), (long, more), (large, much), honest = small(), small(), small(MAX_RIDER + 5_000), small()
    (unoffered, stray) = small()
    assert len(much) > MAX_RIDER
    request = Request(
        AGENT,
        (short, long, large, honest[0]),
        riders=(
            rider(short, content[:-1]),
            rider(long, more + b"\0"),
            rider(large, much),
            rider(unoffered, stray),
            rider(honest[0], honest[1], index=7),
            rider(*honest),
            rider(*honest),
        ),
    )
    decisions = (await asked(client, request)).decisions
    assert [decision.verdict for decision in decisions] == ["send", "send", "send", "have"]
    assert [decision.segments[0].offset for decision in decisions[:3]] == [0, 0, 0]
    assert server.app[COUNTERS]["riders"] == 1
    assert server.app[COUNTERS]["riders_passed_over"] == 6
    path = decisions[0].segments[0].url
    answer = await client.append(path, content, 0, complete=True)  # as any other upload
    assert (answer.status, answer.complete) == (204, True)


async def test_an_empty_or_running_one_is_passed_over(client: Wire) -> None:
    summary, content = small()
    state = replace(summary.segments[0], sealed=False, sha256="")
    live = replace(summary, status=Status.RUNNING, segments=(state,))
    request = Request(AGENT, (live,), riders=(rider(live, content),))
    (decision,) = (await asked(client, request)).decisions
    assert (decision.verdict, decision.segments[0].offset) == ("send", 0)
    request = Request(AGENT, (summary,), riders=(rider(summary, b""),))
    (decision,) = (await asked(client, request)).decisions
    assert (decision.verdict, decision.segments[0].offset) == ("send", 0)


async def test_what_is_here_already_is_not_kept_twice(server: RunningServer, client: Wire) -> None:
    summary, content = small()
    first = await ride(client, (summary, content))
    ((upload, _),) = await kept(server, summary)
    assert await ride(client, (summary, content)) == first
    assert await ride(client, (summary, flipped(content))) == first
    ((again, held),) = await kept(server, summary)
    assert (again, held) == (upload, content)
    (pack,) = (server.app[CONFIG].data / "segments" / "packs").iterdir()
    assert pack.read_bytes() == content + bytes(2 * len(content))  # what came in vain is overwritten


async def test_one_that_was_uploaded_stays_as_it_is(server: RunningServer, client: Wire) -> None:
    summary, content = small()
    path = await client.upload_of(content)
    assert (await client.append(path, content, 0, complete=True)).complete
    (decision,) = await ride(client, (summary, content))
    assert (decision.verdict, decision.segments[0].url) == ("have", path)
    ((upload, held),) = await kept(server, summary)
    assert (is_packed(upload.id), held) == (False, content)


async def test_it_takes_the_place_of_an_unfinished_upload(server: RunningServer, client: Wire) -> None:
    summary, content = small()
    path = await client.upload_of(content)
    await client.append(path, content[:1000], 0, complete=False)
    (decision,) = await ride(client, (summary, content))
    assert (decision.verdict, decision.segments[0].offset) == ("have", len(content))
    assert (await client.append(path, content[1000:], 1000, complete=True)).status in (404, 410)
    ((_, held),) = await kept(server, summary)
    assert held == content


async def test_details_that_are_not_wanted_are_not_kept(server: RunningServer, client: Wire) -> None:
    await server.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, {"details": "none"}))
    summary, content = small()
    (decision,) = await ride(client, (summary, content))
    assert decision.verdict == "decline"
    assert server.app[COUNTERS]["riders_passed_over"] == 1
    assert not (server.app[CONFIG].data / "segments" / "packs").exists()


async def test_the_terms_are_told(client: Wire) -> None:
    reply = await asked(client, Request(AGENT, (small()[0],)))
    assert reply.policy.riding == TERMS


async def test_a_backup_has_them_and_a_check_finds_no_fault(
    server: RunningServer, client: Wire, key: str, tmp_path: Path
) -> None:
    sessions = [small() for _ in range(3)]
    await ride(client, *sessions)
    findings = await check(server.app[CATALOG], server.app[BLOBS], None)
    assert (findings.uploads, findings.faults) == (3, [])
    manifest = await asyncio.to_thread(back_up, server.app[CONFIG].data, tmp_path / "backup")
    assert (manifest.segments, manifest.lost) == (3, ())
    assert manifest.bytes == sum(len(content) for _, content in sessions)
    await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "restored")
    async with running(ServerConfig(data=tmp_path / "restored", port=0)) as other, wired(other.url, key) as there:
        assert {each.verdict for each in await there.negotiate(*(summary for summary, _ in sessions))} == {"have"}
        for summary, content in sessions:
            assert [held for _, held in await kept(other, summary)] == [content]
        findings = await check(other.app[CATALOG], other.app[BLOBS], None)
        assert (findings.uploads, findings.faults) == (3, [])


async def test_a_check_finds_what_a_pack_has_lost(server: RunningServer, client: Wire) -> None:
    (one, _), (two, _) = sessions = [small(), small()]
    await ride(client, *sessions)
    (pack,) = (server.app[CONFIG].data / "segments" / "packs").iterdir()
    await asyncio.to_thread(os.truncate, pack, pack.stat().st_size - 1)
    ((_, whole),), ((upload, cut),) = await kept(server, one), await kept(server, two)
    assert (len(whole), len(cut)) == (one.size, two.size - 1)
    findings = await check(server.app[CATALOG], server.app[BLOBS], None)
    assert [(fault.kind, fault.subject) for fault in findings.faults] == [(Kind.BYTES_LOST, upload.id)]


# -- the disk, and the end of the process ------------------------------------------------------------------------------


class _FaultyBlobs(LocalBlobs):
    """Refuses the next flush of a pack."""

    failing = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sync = self.packs._sync_data

        def faulty(fd: int) -> None:
            if self.failing:
                self.failing -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(fd)

        self.packs._sync_data = faulty


@pytest.fixture
async def faulty(config: ServerConfig, key: str) -> AsyncIterator[tuple[RunningServer, Wire, _FaultyBlobs]]:
    app = create_app(config, open_blobs=_FaultyBlobs)
    async with running(config, app) as server, wired(server.url, key) as client:
        blobs = app[BLOBS]
        assert isinstance(blobs, _FaultyBlobs)
        yield server, client, blobs


async def test_nothing_is_acknowledged_that_the_disk_has_refused(
    faulty: tuple[RunningServer, Wire, _FaultyBlobs],
) -> None:
    server, client, blobs = faulty
    summary, content = small()
    blobs.failing = 1
    body = Request(AGENT, (summary,), riders=(rider(summary, content),)).compressed()
    answer = await client.ask(
        "POST", "/v1/negotiate", data=body, Content_Type=wire.MSGPACK_MEDIA_TYPE, Content_Encoding="zstd"
    )
    assert answer.status >= 500
    assert await server.app[CATALOG].session(PRODUCT, summary.session_id) is None
    (decision,) = await ride(client, (summary, content))
    assert decision.verdict == "have"
    ((_, held),) = await kept(server, summary)
    assert held == content
    assert len(blobs.packs.old()) == 0  # the one that failed is young yet
    assert len(list((server.app[CONFIG].data / "segments" / "packs").iterdir())) == 2


def test_ids_tell_where_a_blob_lies() -> None:
    @given(
        st.integers(0, 2**48 - 1),
        st.integers(0, packs.PACK_BYTES - 1),
        st.integers(1, MAX_RIDER),
        st.integers(0, 2**26),
    )
    def check(pack: int, offset: int, size: int, further: int) -> None:
        place = Place(pack, offset, size)
        blob_id = id_of(place)
        assert is_packed(blob_id)
        assert place_of(blob_id) == place
        assert id_of(Place(pack, 0, 0)) <= blob_id < id_of(Place(pack + 1, 0, 0)) or pack == 2**48 - 1
        if offset + further < packs.PACK_BYTES and further:
            assert blob_id < id_of(Place(pack, offset + further, size))

    check()
    assert not is_packed(fresh_session_id())


def put_packs(folder: Path, clock: list[int]) -> Packs:
    return Packs(folder / "packs", os.fsync, lambda: clock[0])


def test_packs_are_begun_anew_when_full_and_by_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 10_000)
    clock = [5]
    made = put_packs(tmp_path, clock)
    ids = [each for number in range(6) for each in made.put([bytes((number + 1,)) * 3_000, b"x"])]
    assert {place_of(each).pack for each in ids} == {5, 6}  # the clock stood still
    other = put_packs(tmp_path, clock)
    (last,) = other.put([b"last"])
    assert place_of(last).pack == 7
    assert [other.read(each, 0, 10**6) for each in ids[::2]] == [bytes((n + 1,)) * 3_000 for n in range(6)]
    assert [other.read(each, 0, 9) for each in ids[1::2]] == [b"x"] * 6
    assert (other.read(ids[0], 2_990, 100), other.read(ids[0], 3_000, 100)) == (b"\1" * 10, b"")
    assert (other.size(ids[0]), other.size(id_of(Place(99, 0, 5)))) == (3_000, 0)
    with pytest.raises(FileNotFoundError):
        other.read(id_of(Place(99, 0, 5)), 0, 5)


def test_a_pack_is_old_an_hour_after_it_was_written_to_last_and_strange_files_are_passed_over(tmp_path: Path) -> None:
    hour, now = packs.YOUNG, time.time_ns() // 1_000_000
    clock = [now - 3 * hour]
    made = put_packs(tmp_path, clock)
    first = place_of(made.put([b"x"])[0]).pack
    (tmp_path / "packs" / "copy.pack").write_bytes(b"")
    assert made._pack is not None
    made._pack.failed = True
    clock[0] = now
    assert place_of(made.put([b"y"])[0]).pack != first
    assert made.old() == (), "it was begun three hours ago, and written to just now"
    clock[0] = now + 2 * hour
    assert made.old() == (first,)


def test_whoever_waits_shares_a_flush(tmp_path: Path) -> None:
    """Eight put at the same time, while the first flush is held: one more serves the rest."""
    begun, go, flushes = threading.Event(), threading.Event(), []

    def sync(fd: int) -> None:
        flushes.append(os.fstat(fd).st_size)
        begun.set()
        assert go.wait(30)

    made = Packs(tmp_path / "packs", sync, lambda: 1)
    ids: list[str] = []
    threads = [threading.Thread(target=lambda n=n: ids.extend(made.put([bytes((n,)) * 10]))) for n in range(1, 9)]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    while made._pack is None or made._pack.end < 80:  # all are written, and wait
        threads[-1].join(0.01)
    assert ids == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert flushes == [10, 80]
    assert sorted(made.read(each, 0, 99) for each in ids) == [bytes((n,)) * 10 for n in range(1, 9)]


async def test_a_pack_goes_when_nothing_is_known_of_it(
    server: RunningServer, client: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, blobs = server.app[CATALOG], server.app[BLOBS]
    assert isinstance(blobs, LocalBlobs)
    known, content = small()
    await ride(client, (known, content))
    (used,) = await asyncio.to_thread(blobs.put, [b"nobody knows of these"])
    now = blobs.packs._clock_ms() + 2 * YOUNG
    monkeypatch.setattr(blobs.packs, "_clock_ms", lambda: now)
    assert await sweep(catalog, blobs) == 0  # it is still written to
    blobs.packs._pack = None
    assert await sweep(catalog, blobs) == 0  # a session is in it
    await asyncio.to_thread(blobs.remove, used)
    (lost,) = await asyncio.to_thread(blobs.put, [b"of a request whose answer was never given"])
    blobs.packs._pack = None
    now += 2 * YOUNG
    assert await sweep(catalog, blobs) == 1
    assert await asyncio.to_thread(blobs.size, lost) == 0
    ((_, held),) = await kept(server, known)
    assert held == content


def test_what_is_removed_is_gone_for_good_and_a_pack_that_was_cut_stays_so(tmp_path: Path) -> None:
    synced: list[int] = []
    made = Packs(tmp_path / "packs", lambda fd: synced.append(os.fstat(fd).st_ino), lambda: 1)
    first, second = made.put([b"one" * 100, b"two" * 100])
    (pack,) = (tmp_path / "packs").iterdir()
    synced.clear()
    made.remove(first)
    assert pack.read_bytes() == bytes(300) + b"two" * 100
    assert synced == [pack.stat().st_ino], "after power loss the bytes would be back"
    os.truncate(pack, 400)
    made.remove(second)
    assert pack.read_bytes() == bytes(400)
    os.truncate(pack, 200)
    made.remove(second)
    assert pack.stat().st_size == 200


async def test_one_that_could_be_of_two_products_is_of_none(config: ServerConfig, server: RunningServer) -> None:
    """An admin's key reaches all products, and a rider names none."""
    key = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    await server.app[CATALOG].put_product(ProductRow("Other", 1.0))
    summary, content = small()
    sole, its = small()
    offers = (summary, of_product(summary, "Other"), sole)
    async with wired(server.url, key) as admin:
        riders = (rider(summary, content), rider(sole, its))
        reply = await asked(admin, Request(AGENT, offers, riders=riders))
    assert [each.verdict for each in reply.decisions] == ["send", "send", "have"]
    assert server.app[COUNTERS]["riders_passed_over"] == 1
