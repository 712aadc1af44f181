"""What the agent relies on of a file system: the real one and those of the tests keep the same promises."""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailboat.agent import files as files_module
from mailboat.agent.files import FileSystem, OsFileSystem
from testkit.disk import Disk, Unsynced
from testkit.guard import Guarded
from testkit.power import PowerDisk
from testkit.recording import Rig, only, recovered

PAGE = mmap.ALLOCATIONGRANULARITY

MAKERS: dict[str, Callable[[Path], FileSystem]] = {
    "real": lambda _: OsFileSystem(),
    "unsynced": lambda _: Unsynced(),
    "guarded": Guarded,
    "failing": lambda _: Disk().files,
    "forgetful": lambda root: PowerDisk(root, random.Random(1)),
    "forgetful and failing": lambda root: Disk(real=PowerDisk(root, random.Random(1), written_back=1.0)).files,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture(params=MAKERS)
def files(request: pytest.FixtureRequest, root: Path) -> FileSystem:
    made = MAKERS[request.param](root)
    made.make_folder(root)
    return made


@pytest.fixture
def fd(files: FileSystem, root: Path) -> Iterator[int]:
    made = files.create(root / "file")
    yield made
    files.close(made)


def test_folders_are_made_with_those_above_and_only_for_their_owner(files: FileSystem, root: Path) -> None:
    before = os.umask(0)
    try:
        files.make_folder(root / "a" / "b" / "c")
        files.make_folder(root / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert files.names(root / "a") == ["b"]
    for folder in (root / "a", root / "a" / "b", root / "a" / "b" / "c"):
        assert (folder, folder.stat().st_mode & 0o777) == (folder, 0o700)
    (root / "file").touch(exist_ok=True)
    with pytest.raises(OSError, match="file"):
        files.make_folder(root / "file" / "below")


def test_their_owner_may_enter_them_whatever_the_umask(files: FileSystem, root: Path) -> None:
    before = os.umask(0o777)
    try:
        files.make_folder(root / "a" / "b")
    finally:
        os.umask(before)
    assert [each.stat().st_mode & 0o777 for each in (root / "a", root / "a" / "b")] == [0o700, 0o700]


def test_where_there_is_no_place_at_all_no_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    with pytest.raises(FileNotFoundError):
        OsFileSystem().make_folder(Path("a") / "b")


def test_a_file_is_created_once_and_only_for_its_owner(files: FileSystem, root: Path, fd: int) -> None:
    assert (root / "file").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        files.create(root / "file")
    with pytest.raises(FileNotFoundError):
        files.create(root / "nowhere" / "file")
    (root / "link").symlink_to(root / "elsewhere")
    with pytest.raises(FileExistsError):
        files.create(root / "link")


def test_only_what_is_there_is_opened_and_no_link_is_followed(files: FileSystem, root: Path, fd: int) -> None:
    with pytest.raises(FileNotFoundError):
        files.open(root / "nothing")
    (root / "link").symlink_to(root / "file")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        files.open(root / "link")
    again = files.open(root / "file")
    files.append(fd, b"abc")
    assert files.seek_end(again) == 3
    files.append(again, b"def")
    files.close(again)
    assert files.read(root / "file") == b"abcdef"


def test_appending_cutting_and_the_position(files: FileSystem, root: Path, fd: int) -> None:
    files.append(fd, b"0123456789")
    files.append(fd, memoryview(b"abc"))
    assert files.size(root / "file") == 13
    files.truncate(fd, 4)
    files.append(fd, b"-")
    assert files.seek_end(fd) == 5
    files.sync(fd)
    assert files.read(root / "file") == b"0123-"
    assert files.read_range(root / "file", 1, 2) == b"12"
    assert files.read_range(root / "file", 3, 100) == b"3-"
    assert files.read_range(root / "file", 9, 1) == b""


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 9])
def test_a_file_is_read_whole_in_as_many_pieces_as_it_takes(
    size: int, files: FileSystem, root: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_PIECE", 4)
    content = bytes(range(size))
    files.append(fd, content)
    assert files.read(root / "file") == content
    assert files.read_range(root / "file", 1, size) == content[1:]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_more_is_read_than_a_file_was_said_to_have(files: FileSystem) -> None:
    place = Path("/proc/self/cmdline")
    assert place.stat().st_size == 0
    assert files.read(place) == place.read_bytes() != b""


def test_reading_what_is_not_there(files: FileSystem, root: Path) -> None:
    for read in (files.read, files.size, lambda path: files.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read(root / "nothing")
    assert list(files.names(root / "nothing")) == []


def test_a_mapping_is_shared_with_the_file(files: FileSystem, root: Path, fd: int) -> None:
    files.allocate(fd, 0, PAGE)
    files.allocate(fd, PAGE, PAGE)
    assert files.read(root / "file") == bytes(2 * PAGE)
    with files.map(fd, PAGE, PAGE) as memory:
        memory.write(b"stored")
        memory.flush()
        files.sync(fd)
        assert files.read_range(root / "file", PAGE, 7) == b"stored\0"
        files.allocate(fd, 0, 2 * PAGE)
        assert files.read_range(root / "file", PAGE, 6) == b"stored"


def test_what_cannot_be_mapped_is_refused(files: FileSystem, fd: int) -> None:
    with pytest.raises((OSError, ValueError)):
        files.map(fd, 0, PAGE)


def test_a_lock_keeps_others_out_until_it_is_closed(files: FileSystem, root: Path, fd: int) -> None:
    other = files.open(root / "file")
    assert files.lock(fd)
    assert files.lock(fd)
    assert not files.lock(other)
    third = files.open(root / "file")
    files.close(third)
    assert not files.lock(other)
    files.close(other)


def test_the_name_of_a_file_may_be_taken_by_another(files: FileSystem, root: Path, fd: int) -> None:
    assert files.same_file(fd, root / "file")
    files.rename(root / "file", root / "moved")
    assert files.same_file(fd, root / "moved")
    assert not files.same_file(fd, root / "file")
    files.close(files.create(root / "file"))
    assert not files.same_file(fd, root / "file")
    files.rename(root / "moved", root / "file")
    assert files.same_file(fd, root / "file")
    assert files.names(root) == ["file"]


@pytest.mark.parametrize("instead", ["nothing", "another folder", "a file"])
def test_deleted_with_its_folder_a_file_is_open_and_its_name_leads_nowhere(
    files: FileSystem, root: Path, instead: str
) -> None:
    path = root / "a" / "b" / "file"
    files.make_folder(path.parent)
    fd = files.create(path)
    files.append(fd, b"0123456789")
    with files.map(other := files.open(path), 0, 10) as memory:
        files.remove_tree(root / "a")
        if instead == "another folder":
            files.make_folder(path.parent)
            files.close(files.create(path))
        elif instead == "a file":
            files.close(files.create(root / "a"))
        assert not files.same_file(fd, path)
        assert files.read_open(fd, 0, 100) == b"0123456789"
        files.append(fd, b"abc")
        memory[:2] = b"--"
        assert files.read_open(fd, 0, 100) == b"--23456789abc"
    files.close(other)
    files.close(fd)


def test_what_is_open_is_read_anywhere_and_its_position_stays(files: FileSystem, root: Path, fd: int) -> None:
    files.append(fd, b"0123456789")
    assert files.read_open(fd, 4, 3) == b"456"
    assert files.read_open(fd, 8, 100) == b"89"
    assert files.read_open(fd, 10, 1) == b""
    files.append(fd, b"abc")
    assert files.read(root / "file") == b"0123456789abc"


def test_where_a_name_leads_may_be_refused_to_be_told(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    files = OsFileSystem()
    files.make_folder(root)
    fd = files.create(root / "file")

    def refused(_path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(PermissionError):
        files.same_file(fd, root / "file")
    files.close(fd)


def test_a_folder_moves_with_all_in_it_and_onto_nothing(files: FileSystem, root: Path) -> None:
    for name in ("a", "b"):
        files.make_folder(root / name / "one")
        files.close(files.create(root / name / "one" / "file"))
    files.rename(root / "a" / "one", root / "b" / "two")
    assert (list(files.names(root / "a")), files.names(root / "b")) == ([], ["one", "two"])
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        files.rename(root / "b" / "two", root / "b" / "one")
    with pytest.raises(FileNotFoundError):
        files.rename(root / "nothing", root / "b" / "three")
    files.sync_folder(root / "a")
    files.sync_folder(root / "b")
    assert files.names(root / "b" / "two") == ["file"]


def test_removing_is_fine_where_there_is_nothing(files: FileSystem, root: Path, fd: int) -> None:
    files.remove(root / "nothing")
    files.remove_tree(root / "nothing")
    files.remove(root / "file")
    files.append(fd, b"still open")
    files.sync(fd)
    files.make_folder(root / "a" / "b")
    files.remove_tree(root / "a")
    assert list(files.names(root)) == []
    with pytest.raises(OSError, match=r"directory|permitted"):
        files.remove(root)


def test_content_is_replaced_as_a_whole_and_nothing_else_is_left(files: FileSystem, root: Path) -> None:
    files.replace_content(root / "ledger", b"one")
    files.replace_content(root / "ledger", b"another")
    assert files.read(root / "ledger") == b"another"
    assert files.names(root) == ["ledger"]
    files.make_folder(root / "folder" / "in it")
    with pytest.raises(OSError, match="directory"):
        files.replace_content(root / "folder", b"no")
    assert files.names(root) == ["folder", "ledger"]


def test_there_is_room_left_and_a_folder_to_sync(files: FileSystem, root: Path) -> None:
    free, disk = files.room(root)
    assert 0 < free <= disk
    with pytest.raises(FileNotFoundError):
        files.sync_folder(root / "nothing")
    with pytest.raises(FileNotFoundError):
        files.room(root / "nothing")


# -- a file system that sets no blocks aside ---------------------------------------------------------------------------


@pytest.fixture(params=sorted(files_module._NOT_OFFERED), ids=lambda number: errno.errorcode[number])
def without_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OsFileSystem:
    """One that refuses it, in one of the ways in which that is said."""

    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(request.param, "not offered here")

    monkeypatch.setattr(files_module, "_fallocate", refuse)
    return OsFileSystem()


def test_where_no_blocks_are_set_aside_zeros_are_written(without_blocks: OsFileSystem, tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = without_blocks.create(path)
    without_blocks.append(fd, b"head")
    without_blocks.allocate(fd, 0, 100_000)
    assert path.read_bytes() == b"head".ljust(100_000, b"\0")
    without_blocks.allocate(fd, 50_000, 20_000)
    assert path.stat().st_size == 100_000, "what has blocks already stays as it is"
    without_blocks.allocate(fd, 3_000_000, 1_000)
    assert path.stat().st_size == 3_001_000
    assert path.stat().st_blocks * 512 >= 3_001_000, "no holes: to store into one on a full disk kills the process"
    without_blocks.close(fd)


def test_a_failure_while_blocks_are_set_aside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EIO, "the disk is ill")

    monkeypatch.setattr(files_module, "_fallocate", fail)
    files = OsFileSystem()
    fd = files.create(tmp_path / "file")
    with pytest.raises(OSError, match="ill"):
        files.allocate(fd, 0, 100_000)
    files.close(fd)
    assert (tmp_path / "file").stat().st_size == 0


def test_a_session_lives_and_dies_there_as_anywhere(without_blocks: OsFileSystem, tmp_path: Path) -> None:
    rig = Rig(tmp_path, files=without_blocks)
    assert rig.journal.crash_proof
    for number in range(2000):
        rig.recorder.feature("kept", number=number, noise="x" * 100)
    rig.let_go()
    story = only(recovered(tmp_path, files=without_blocks))
    assert [record.attributes["number"] for record in story.records] == list(range(2000))
