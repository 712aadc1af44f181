"""Last words become the last record of their session, once, whatever comes in between and whatever they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailboat.agent import Level
from mailboat.agent.store import LAST_WORDS, LIVE
from mailboat.protocol.limits import MAX_LAST_WORDS
from mailboat.protocol.segment import SealReason
from testkit.disk import EVERY, Disk, Killed, Unsynced, killed_at
from testkit.recording import BOOT, OTHER_BOOT, SECOND, Rig, Story, only, recovered

DUMP = b'Fatal Python error: Bus error\n\nCurrent thread 0x01 (most recent call first):\n  File "a.py", line 3 in f\n'


def died(root: Path, words: bytes = DUMP, *, flushed: bool = False, leaving: bool = False) -> Rig:
    """A session of two records whose process has died with these last words."""
    rig = Rig(root, files=Unsynced())
    rig.recorder.feature("a")
    rig.recorder.set_installation("inst-1", {})
    if flushed:
        rig.flush(durable=True)
    if leaving:
        rig.journal.note_leaving()
    path = rig.store.folder / LIVE / rig.id / LAST_WORDS
    path.write_bytes(words)
    at = rig.time.monotonic + rig.time.offset + 7 * SECOND
    os.utime(path, ns=(at, at))
    rig.let_go()
    return rig


def found(root: Path, boot: str = BOOT) -> Story:
    story = only(recovered(root, boot, Unsynced()))
    assert sorted(path.name for path in story.folder.iterdir()) == ["000000.zst"]
    return story


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("leaving", [True, False])
def test_they_are_the_last_record_of_a_crashed_session(tmp_path: Path, flushed: bool, leaving: bool) -> None:
    died(tmp_path, flushed=flushed, leaving=leaving)
    story = found(tmp_path)
    assert story.names == ["a", "inst-1", "process.died"]
    last = story.records[-1]
    assert (last.kind, last.level, last.message) == ("event", Level.CRITICAL, "Bus error")
    assert last.attributes == {"last_words": DUMP.decode().strip()}
    assert last.time - story.records[0].time == pytest.approx(7.0, abs=0.001)
    assert story.reasons == [SealReason.CRASHED]
    assert story.numbers == [0, 1, 2]


def test_the_machine_having_died_too_they_follow_what_was_synced(tmp_path: Path) -> None:
    died(tmp_path, flushed=True)
    assert found(tmp_path, OTHER_BOOT).names == ["a", "inst-1", "process.died"]


@pytest.mark.parametrize("flushed", [True, False])
def test_a_recovery_that_is_killed_at_any_call_says_them_once(tmp_path: Path, flushed: bool) -> None:
    at, killed = 0, True
    while killed:
        at += 1
        root = tmp_path / str(at)
        died(root, flushed=flushed)
        disk = Disk(killed_at(at), real=Unsynced(), failing=EVERY)
        try:
            recovered(root, BOOT, disk.files)
            killed = False
        except Killed:
            disk.bury()
        assert only(recovered(root, BOOT, Unsynced())).names == ["a", "inst-1", "process.died"], at
    assert at > 10


@pytest.mark.parametrize("nothing", [b"", b"\0" * 4096, b" \n\r\n"])
def test_an_empty_file_says_nothing(tmp_path: Path, nothing: bytes) -> None:
    died(tmp_path, nothing)
    assert found(tmp_path).names == ["a", "inst-1"]


@pytest.mark.parametrize(
    "noise", [b"\xff\xfe\x00\x80 not text", b"x" * 10 * MAX_LAST_WORDS, b"\n\nFatal Python error: \n", DUMP * 10_000]
)
def test_noise_costs_nothing_and_is_bounded(tmp_path: Path, noise: bytes) -> None:
    died(tmp_path, noise)
    story = found(tmp_path)
    assert story.names == ["a", "inst-1", "process.died"]
    assert len(story.records[-1].attributes["last_words"]) <= MAX_LAST_WORDS
    assert story.gaps == []


def test_nothing_follows_a_session_that_had_ended(tmp_path: Path) -> None:
    rig = Rig(tmp_path, files=Unsynced())
    rig.recorder.feature("a")
    assert rig.end()
    (folder,) = (rig.store.folder / "waiting").iterdir()
    folder.rename(rig.store.folder / LIVE / folder.name)  # as if the rename had not reached the disk
    (rig.store.folder / LIVE / folder.name / LAST_WORDS).write_bytes(DUMP)
    story = found(tmp_path)
    assert (story.names, story.reasons) == (["a"], [SealReason.STOPPED])
