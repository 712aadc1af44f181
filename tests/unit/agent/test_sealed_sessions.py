"""Sealed sessions: the disk tells nothing, the server's key tells everything, and a crash needs no key."""

from __future__ import annotations

import errno
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailboat.agent import AgentConfig
from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal_place import InMemory, is_private, memory_folder
from mailboat.agent.recovery import bring_to_rest, recover
from mailboat.agent.segment_file import segment_paths
from mailboat.agent.store import LIVE, WAITING, Store
from mailboat.agent.writer import WriterSettings
from mailboat.protocol import Record, SealReason, SegmentReader
from mailboat.protocol.disclosure import opened
from mailboat.protocol.errors import ConfigError
from testkit.disk import Disk, Killed, failure
from testkit.recording import BOOT, OTHER_BOOT, Rig
from testkit.sealed import KEYS, PRIVATE, SECRET

PUBLIC = PRIVATE.public


def sealed_rig(root: Path, **settings: object) -> Rig:
    return Rig(root, seal_to=PUBLIC, **settings)  # type: ignore[arg-type] # settings of the rig


def on_disk(root: Path) -> bytes:
    """All bytes below the store's folder that a disk is behind: the folder `memory` stands for ``/dev/shm``."""
    paths = [path for path in root.rglob("*") if path.is_file() and "memory" not in path.relative_to(root).parts]
    assert paths
    return b"".join(path.read_bytes() for path in paths)


def in_memory(root: Path) -> list[Path]:
    return sorted(path for path in (root / "memory").glob("*") if path.is_file())


def read(root: Path, session_id: str, state: str = WAITING) -> list[Record]:
    """The session's records, with the key; fails where anything is missing."""
    records: list[Record] = []
    for path in segment_paths(OsFileSystem(), root / "product" / "application" / state / session_id):
        reader = SegmentReader(path.read_bytes(), KEYS.unlock)
        records += reader
        assert reader.gaps == []
        assert reader.intact
    assert [record.sequence for record in records] == list(range(len(records)))
    return records


def record_secrets(rig: Rig) -> list[str]:
    """Records of all kinds, some in blocks, some only in the journal; the names of all."""
    emit = rig.recorder.emitter(f"{SECRET}.emitted", ("first", "second"))
    rig.recorder.feature(f"{SECRET}.before", text=SECRET)
    rig.recorder.set_installation(SECRET, {"plan": SECRET})
    emit(1, SECRET)
    rig.flush(durable=True)
    late = rig.recorder.emitter(f"{SECRET}.late", ("third",))
    rig.recorder.event(SECRET, message=SECRET)
    late(SECRET)
    rig.flush()
    rig.recorder.exception(ValueError(SECRET), SECRET, {})
    emit(2, SECRET)
    late(SECRET)
    names = ["before", "", "emitted", "", "late", "", "emitted", "late"]
    return [name and f"{SECRET}.{name}" for name in names]


def assert_told(records: list[Record], names: list[str]) -> None:
    assert len(records) == len(names)
    for record, name in zip(records, names, strict=True):
        assert not name or record.name == name
    emitted = [record.attributes for record in records if record.name.endswith(".emitted")]
    assert emitted == [{"first": 1, "second": SECRET}, {"first": 2, "second": SECRET}]
    assert [record.attributes for record in records if record.name.endswith(".late")] == [{"third": SECRET}] * 2


def left_to_recovery(rig: Rig, boot: str = BOOT, files: OsFileSystem | None = None) -> Store:
    store = Store(files or OsFileSystem(), rig.store.folder.parent.parent, "product", "application")
    for session in store.crashed():
        assert bring_to_rest(store, session, boot) is None
    return store


# -- what the disk tells -----------------------------------------------------------------------------------------------


def test_the_disk_tells_nothing_at_any_time(tmp_path: Path) -> None:
    rig = sealed_rig(tmp_path)
    names = record_secrets(rig)
    assert SECRET.encode() not in on_disk(tmp_path)
    assert any(SECRET.encode() in path.read_bytes() for path in in_memory(tmp_path)), "it is in the journal's memory"
    assert rig.end()
    assert SECRET.encode() not in on_disk(tmp_path)
    assert in_memory(tmp_path) == [], "an ended session needs no journal"
    assert_told(read(tmp_path, rig.id), names)


def test_the_journal_is_for_its_user_alone(tmp_path: Path) -> None:
    rig = sealed_rig(tmp_path)
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in in_memory(tmp_path)] == [0o600]
    rig.let_go()


def test_what_is_offered_is_in_boxes(tmp_path: Path) -> None:
    rig = sealed_rig(tmp_path)
    record_secrets(rig)
    assert rig.end()
    (waiting,) = rig.store.look().waiting
    assert SECRET not in repr(waiting.summary.to_wire())
    summary = opened(waiting.summary, KEYS)
    assert (summary.installation, summary.installation_properties) == (SECRET, {"plan": SECRET})


def test_a_save_interval_is_all_that_the_machine_can_take(tmp_path: Path) -> None:
    rig = sealed_rig(tmp_path, settings=WriterSettings(save_interval=5.0))
    rig.recorder.feature("kept")
    rig.step(6.0)
    rig.recorder.feature("since then")
    shutil.rmtree(tmp_path / "memory")  # what the machine's end does to it
    rig.let_go()
    left_to_recovery(rig, OTHER_BOOT)
    assert [record.name for record in read(tmp_path, rig.id)] == ["kept"]


def test_a_segment_whose_sync_fails_is_repeated_under_another_key(tmp_path: Path) -> None:
    failing = False
    disk = Disk(lambda _, name: failure(errno.EIO) if failing and name == "sync" else None)
    rig = sealed_rig(tmp_path, files=disk.files)
    names = record_secrets(rig)
    failing = True
    rig.flush(durable=True)
    failing = False
    assert rig.flush(durable=True, seconds=2.0)
    assert rig.end()
    folder = tmp_path / "product" / "application" / WAITING / rig.id
    assert len(segment_paths(OsFileSystem(), folder)) == 2
    assert_told(read(tmp_path, rig.id), names)


# -- after a crash -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("died_after", ["nothing", "a block", "a rotation"])
def test_a_crash_is_recovered_without_any_key(tmp_path: Path, died_after: str) -> None:
    rig = sealed_rig(tmp_path, settings=WriterSettings(segment_bytes=64 if died_after == "a rotation" else 2**20))
    names = record_secrets(rig)
    if died_after != "nothing":
        rig.flush()
    rig.let_go()
    store = left_to_recovery(rig)
    assert SECRET.encode() not in on_disk(tmp_path)
    assert in_memory(tmp_path) == []
    assert_told(read(tmp_path, rig.id), names)
    (waiting,) = store.look().waiting
    assert opened(waiting.summary, KEYS).installation == SECRET
    assert waiting.summary.status.value == "crashed"
    assert waiting.summary.records == len(names)


def test_a_recovery_that_is_killed_at_any_call_is_done_again(tmp_path: Path) -> None:
    original = tmp_path / "original"
    rig = sealed_rig(original)
    names = record_secrets(rig)
    shutil.copytree(original, tmp_path / "left")  # as it stands on the disk and in memory, the process being dead
    rig.let_go()
    for number in kills():
        root = tmp_path / "again"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "left", root)
        note = root / "product" / "application" / LIVE / rig.id / "journal.at"
        note.write_text(str(root / "memory" / rig.id))
        died = killed_while_recovering(root, number)
        store = Store(OsFileSystem(), root, "product", "application")
        for session in store.crashed():
            assert bring_to_rest(store, session, BOOT) is None
        store.look()
        assert_told(read(root, rig.id), names)
        assert SECRET.encode() not in on_disk(root)
        assert in_memory(root) == []
        if not died:
            assert number > 15
            return


def kills() -> Iterator[int]:
    yield from range(1, 200)


def killed_while_recovering(root: Path, number: int) -> bool:
    disk = Disk(lambda made, _: Killed() if made == number else None)
    store = Store(disk.files, root, "product", "application")
    try:
        for session in store.crashed():
            recover(store, session, BOOT)
        store.look()
    except Killed:
        return True
    finally:
        disk.bury()
    return False


def test_without_the_library_a_crashed_session_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = sealed_rig(tmp_path)
    names = record_secrets(rig)
    rig.let_go()
    store = Store(OsFileSystem(), tmp_path, "product", "application")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "nacl.bindings", None)
        (session,) = store.crashed()
        error = bring_to_rest(store, session, BOOT)
        assert isinstance(error, ConfigError)
        assert "pip install 'mailboat[seal]'" in str(error)
    left_to_recovery(rig)
    assert_told(read(tmp_path, rig.id), names)


# -- where there is no place in memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["none", "others may enter", "a link"])
def test_without_a_place_of_its_own_the_journal_is_in_the_process(tmp_path: Path, why: str) -> None:
    folder = tmp_path / "memory"
    if why == "others may enter":
        folder.mkdir()
        folder.chmod(0o777)
    elif why == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    place = InMemory(OsFileSystem(), None if why == "none" else folder)
    (tmp_path / "session").mkdir()
    assert place.create(tmp_path / "session") is None
    assert list((tmp_path / "session").iterdir()) == []


def test_a_journal_in_a_folder_that_is_not_ours_any_more_is_not_read(tmp_path: Path) -> None:
    rig = sealed_rig(tmp_path)
    rig.recorder.feature("kept")
    rig.flush(durable=True)
    rig.recorder.feature("forged")
    rig.let_go()
    (tmp_path / "memory").chmod(0o755)
    left_to_recovery(rig)
    assert [record.name for record in read(tmp_path, rig.id)] == ["kept"]


def test_a_folder_in_memory_is_found_where_the_system_has_one(tmp_path: Path) -> None:
    assert memory_folder(tmp_path) == tmp_path
    found = memory_folder(None)
    if sys.platform == "linux" and Path("/dev/shm").is_mount():
        assert found is not None
        OsFileSystem().make_folder(found)
        assert is_private(found)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_a_mistyped_key_is_refused_before_anything_is_sealed_to_it() -> None:
    text = PUBLIC.text
    wrong = text[:10] + ("A" if text[10] != "A" else "B") + text[11:]
    with pytest.raises(ConfigError, match=r"seal_to=.*mistyped.*mailboat keys seal"):
        AgentConfig(seal_to=wrong)
    assert AgentConfig(seal_to=text).seal_to == text


def test_without_the_library_sealing_is_refused_with_what_to_install() -> None:
    program = (
        "import sys; sys.modules['nacl'] = None\n"
        "from mailboat.agent import AgentConfig\n"
        "from mailboat.protocol.errors import ConfigError\n"
        "AgentConfig()\n"
        "try: AgentConfig(seal_to=sys.argv[1])\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, PUBLIC.text], capture_output=True, text=True, check=True)
    assert done.stdout == "seal_to is given: sealing needs PyNaCl: pip install 'mailboat[seal]'\n"


def test_the_reason_of_a_segment_left_by_a_crash_says_that_the_session_goes_on(tmp_path: Path) -> None:
    rig = sealed_rig(tmp_path)
    record_secrets(rig)
    rig.let_go()
    left_to_recovery(rig)
    folder = tmp_path / "product" / "application" / WAITING / rig.id
    reasons = []
    for path in segment_paths(OsFileSystem(), folder):
        reader = SegmentReader(path.read_bytes(), KEYS.unlock)
        list(reader)
        assert reader.seal is not None
        reasons.append(reader.seal.reason)
    assert reasons == [SealReason.ROTATED, SealReason.CRASHED]
