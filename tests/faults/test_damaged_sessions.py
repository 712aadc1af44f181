"""Sessions whose segments are damaged: put aside with the reason, nothing deleted, whatever comes in between; the rest
goes on.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mailboat.agent import ended
from mailboat.agent.eviction import evict
from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal_place import JOURNAL
from mailboat.agent.locks import LOCK
from mailboat.agent.quota import Quota
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.segment_file import DAMAGED
from mailboat.agent.store import LIVE, QUARANTINED, REASON, WAITING, Store
from mailboat.agent.writer import WriterSettings
from mailboat.protocol.segment import Preamble
from testkit.disk import Disk, Killed, Unsynced, killed_at
from testkit.recording import BOOT, Rig, Time, only, recovered, waiting

NOTHING_GOES = Quota(max_bytes=None, max_age=math.inf, min_free=0)


def store_at(root: Path, disk: Disk | None = None) -> Store:
    return Store(disk.files if disk is not None else OsFileSystem(), root, "product", "application")


def crashed(root: Path, time: Time | None = None, *, segment_bytes: int = 10**6) -> tuple[str, list[str]]:
    """A session whose process died, all of it in its segments: its id and what was told."""
    rig = Rig(root, files=Unsynced(), time=time, settings=WriterSettings(segment_bytes=segment_bytes))
    told = []
    for name in ("a", "b", "c"):
        rig.recorder.feature(name)
        told.append(name)
        assert rig.flush()
    rig.let_go()
    folder = rig.store.folder / LIVE / rig.id
    (folder / JOURNAL).unlink()
    return rig.id, told


def rest(store: Store) -> list[str]:
    """Bring all crashed sessions to rest; the complaints."""
    return [str(error) for error in [bring_to_rest(store, each, BOOT) for each in store.crashed()] if error is not None]


def put_aside(store: Store) -> None:
    """What the sender does with those that cannot be read."""
    assert store.become_sender()
    evict(store, NOTHING_GOES, 0.0)
    store.cease_sending()


def lost_at(root: Path) -> Mapping[str, int]:
    return store_at(root).ledger.account(0, {}).lost


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*.zst*")}


def test_a_session_without_any_preamble_is_put_aside_with_its_reason_and_nothing_is_deleted(tmp_path: Path) -> None:
    time = Time()
    damaged, _ = crashed(tmp_path, time)
    time.pass_seconds(1)
    fine, told = crashed(tmp_path, time)
    store = store_at(tmp_path)
    flip(store.folder / LIVE / damaged / "000000.zst", 20)
    before = contents(store.folder / LIVE / damaged)
    assert rest(store) == ["no segment has an intact preamble"]
    put_aside(store)
    aside = store.folder / QUARANTINED / damaged
    assert (aside / REASON).read_text() == "no segment has an intact preamble"
    assert contents(aside) == before
    assert (aside / f"000000.zst{DAMAGED}").exists()
    assert lost_at(tmp_path) == {"unreadable": 3}
    assert [(story.session_id, story.names) for story in waiting(store)] == [(fine, told)]


def test_killed_at_any_call_of_that_nothing_is_deleted_and_each_record_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "boot_id", lambda: BOOT)  # the machine has run on: the journal tells all that it holds
    rig = Rig(tmp_path / "made", files=Unsynced())
    for name in ("a", "b"):
        rig.recorder.feature(name)
        assert rig.flush()
    rig.recorder.feature("in the journal alone")
    session = rig.id
    rig.let_go()
    flip(store_at(tmp_path / "made").folder / LIVE / session / "000000.zst", 20)
    before = contents(tmp_path / "made")
    at, killed = 0, True
    while killed:
        at += 1
        root = tmp_path / str(at)
        shutil.copytree(tmp_path / "made", root)
        disk = Disk(killed_at(at), real=Unsynced())
        try:
            rest(store_at(root, disk))
            put_aside(store_at(root, disk))
            killed = False
        except Killed:
            disk.bury()
        rest(store_at(root))
        put_aside(store_at(root))
        aside = store_at(root).folder / QUARANTINED / session
        assert (aside / REASON).read_text() == "no segment has an intact preamble", at
        assert contents(aside) == before, at
        assert lost_at(root) == {"unreadable": 3}, at
        assert store_at(root).look().unreadable == {}, at
    assert at > 20


def test_one_that_can_be_read_after_all_is_not_put_aside(tmp_path: Path) -> None:
    """Its journal is of a version to come, and a version that reads it comes before it was moved."""
    session, told = crashed(tmp_path)
    store = store_at(tmp_path)
    store.files.replace_content(store.folder / LIVE / session / REASON, b"the journal has version 99")
    assert rest(store) == []
    put_aside(store)
    assert only(waiting(store)).names == told
    assert lost_at(tmp_path) == {}


def test_one_damaged_preamble_among_others_costs_that_segment_alone(tmp_path: Path) -> None:
    session, told = crashed(tmp_path, segment_bytes=1)
    folder = store_at(tmp_path).folder / LIVE / session
    flip(folder / "000002.zst", 20)
    story = only(recovered(tmp_path))
    assert story.names == [told[0], told[2]]
    assert story.numbers == [0, 2]
    assert (store_at(tmp_path).folder / WAITING / session / f"000002.zst{DAMAGED}").exists()


@pytest.mark.parametrize("index", [1, 2, 3])
@pytest.mark.parametrize("keep", [0, 5, 100, 200])
def test_a_segment_cut_anywhere_costs_what_was_cut_off(tmp_path: Path, index: int, keep: int) -> None:
    session, told = crashed(tmp_path, segment_bytes=1)
    path = store_at(tmp_path).folder / LIVE / session / f"{index:06d}.zst"
    os.truncate(path, min(keep, path.stat().st_size - 1))
    story = only(recovered(tmp_path))
    assert [name for name in told if name in story.names] == story.names
    assert set(told) - set(story.names) <= {told[index - 1]}


def lived_in(root: Path, pid: int, started: str, boot: str) -> Path:
    """A session in ``live/`` of that process, without its lock."""
    session, _ = crashed(root)
    folder = store_at(root).folder / LIVE / session
    segment = folder / "000000.zst"
    content = segment.read_bytes()
    old = Preamble.decode(content[: 8 + int.from_bytes(content[4:8], "little")])
    named = Preamble(
        old.session_id, 0, old.salt, 0, old.started_wall, old.started_monotonic, pid, started, boot, old.info
    )
    segment.write_bytes(named.encode() + content[len(old.encode()) :])
    (folder / LOCK).unlink()
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_a_living_process_whose_lock_was_deleted_keeps_its_session(tmp_path: Path) -> None:
    """As by somebody who tidies up: two would write to the same segment."""
    from mailboat.agent.host import boot_id, process_start

    program = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        folder = lived_in(tmp_path, process.pid, process_start(process.pid), boot_id())
        store = store_at(tmp_path)
        assert list(store.crashed()) == []
        assert not (folder / LOCK).exists()
        process.communicate()
    assert rest(store) == []
    assert only(waiting(store)).names == ["a", "b", "c"]


@pytest.mark.parametrize("started", ["", "1"])
def test_another_process_with_its_number_does_not_keep_it(tmp_path: Path, started: str) -> None:
    from mailboat.agent.host import boot_id

    lived_in(tmp_path, os.getpid(), started, boot_id())
    assert rest(store_at(tmp_path)) == []
    assert only(waiting(store_at(tmp_path))).names == ["a", "b", "c"]
