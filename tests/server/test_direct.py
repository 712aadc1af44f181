"""Pieces that go to the disk past the page cache: the same bytes as any other way, wherever they begin and whatever the
disk does; and what a kill leaves.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailboat.protocol.limits import KIB, MIB
from mailboat.server import direct
from mailboat.server.blobs import LocalBlobs, LocalBlobWriter
from mailboat.server.direct import LEAST, PAGE, paged
from testkit.serverkit import fresh_session_id

if sys.platform == "linux":
    import fcntl

    O_DIRECT = os.O_DIRECT
    PWRITE = os.pwrite


def refused_in(folder: Path) -> bool:
    """Whether this folder's file system takes no such writes, or the system has none."""
    if sys.platform != "linux":
        return True
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "probe"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | O_DIRECT, 0o600)
        try:
            return os.pwrite(fd, paged(PAGE), 0) != PAGE
        finally:
            os.close(fd)
            path.unlink()
    except OSError:
        return True


class Disk:
    """The system's `pwrite`, watched: `direct` and `cached` are the ranges written each way. `fault`: what the next
    write past the cache does instead, having written as many bytes as it says.
    """

    def __init__(self) -> None:
        self.direct: list[range] = []
        self.cached: list[range] = []
        self.fault: tuple[int, int] | None = None

    def pwrite(self, fd: int, piece: memoryview, offset: int) -> int:
        past = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & O_DIRECT)
        if past and self.fault is not None:
            (code, kept), self.fault = self.fault, None
            if kept:
                PWRITE(fd, piece[:kept], offset)
            if code:
                raise OSError(code, os.strerror(code))
            return kept
        written = PWRITE(fd, piece, offset)
        (self.direct if past else self.cached).append(range(offset, offset + written))
        return written


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if refused_in(tmp_path):
        pytest.skip("nothing can be written past the page cache here")
    made = Disk()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", made.pwrite)
        yield made


def piece_of(content: bytes, offset: int) -> memoryview:
    """`content` in memory that lies on its pages as it will in a file at `offset`."""
    start = offset % PAGE
    memory = paged(start + len(content) + PAGE)
    memory[start : start + len(content)] = content
    return memory[start : start + len(content)]


def begun(store: LocalBlobs, content: bytes) -> tuple[str, LocalBlobWriter]:
    """A blob that holds `content`, and a writer that goes on."""
    name = fresh_session_id()
    writer = store.append(name, 0)
    writer.write(content)
    return name, writer


def test_memory_begins_at_a_page_whatever_pages_the_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poor(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def holds(page: int = PAGE) -> bool:
        memory = paged(3 * PAGE)
        memory[:] = os.urandom(len(memory))
        return ctypes.addressof(ctypes.c_char.from_buffer(memory)) % page == 0 and len(memory) == 3 * PAGE

    assert holds(direct.LARGE_PAGE if hasattr(mmap, "MADV_HUGEPAGE") else PAGE)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 14, raising=False)
    monkeypatch.setattr(mmap, "mmap", Poor)
    assert holds(), "a kernel without large ones"
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert holds(), "another system"


# -- the same bytes ----------------------------------------------------------------------------------------------------


def test_whole_pages_go_to_the_disk_and_the_rest_through_the_cache(tmp_path: Path, disk: Disk) -> None:
    store, content = LocalBlobs(tmp_path / "blobs"), os.urandom(MIB)
    name, writer = begun(store, content[:1000])
    for end in (300_000, 300_100, 900_001, MIB):
        writer.write(piece_of(content[writer.offset : end], writer.offset))
    assert (writer.sync(), store.read(name, 0, 2 * MIB)) == (MIB, content)
    writer.close()
    assert disk.direct == [range(PAGE, 299_008), range(303_104, 897_024), range(901_120, MIB)]
    pages = {at // PAGE for each in disk.cached for at in each}
    assert pages == {0, 299_008 // PAGE, 897_024 // PAGE}, "no page is written both ways"
    assert sum(map(len, [*disk.direct, *disk.cached])) == MIB, "each byte is written once"


def test_they_are_the_same_wherever_within_a_page_they_begin(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """At the edges of blocks and pages; and at others, all of which come in the course of some nights."""
    monkeypatch.setattr(direct, "LEAST", PAGE)
    store, content, name = LocalBlobs(tmp_path / "blobs"), os.urandom(5 * PAGE), fresh_session_id()
    edges = {0, 1, 511, 512, 513, PAGE - 512, PAGE - 1, PAGE}
    starts = sorted({*edges, *range(seed % 41, PAGE, 41)})
    for start in starts:
        store.remove(name)
        writer = store.append(name, 0)
        writer.write(content[:start])
        writer.close()
        writer = store.append(name, start)  # as a resumed upload goes on
        writer.write(piece_of(content[start : 4 * PAGE + start // 2], start))
        writer.write(piece_of(content[writer.offset :], writer.offset))
        writer.close()
        assert store.read(name, 0, 6 * PAGE) == content, start
    assert sum(map(len, disk.direct)) > 3 * PAGE * len(starts)


def test_they_are_the_same_whatever_comes_and_is_cut_in_between(tmp_path: Path, disk: Disk, seed: int) -> None:
    draw, store = random.Random(seed), LocalBlobs(tmp_path / "blobs")
    name, content = fresh_session_id(), b""
    for _ in range(12):
        content = content[: draw.choice([len(content), draw.randrange(len(content) + 1)])]
        if content:
            store.settle(name, len(content))
        writer = store.append(name, len(content))
        for _ in range(draw.randrange(1, 6)):
            more = draw.randbytes(draw.choice([draw.randrange(PAGE), draw.randrange(2 * LEAST), draw.randrange(MIB)]))
            lying = draw.choice([len(content), len(content), draw.randrange(PAGE)])  # in memory as it will, or not
            writer.write(piece_of(more, lying) if draw.random() < 0.7 else more)
            content += more
            if draw.random() < 0.3:
                assert writer.sync() == len(content)
            if draw.random() < 0.5:
                at = draw.randrange(len(content) + 1)
                assert store.read(name, at, 50_000) == content[at : at + 50_000], "a reader sees it at once"
        writer.close()
        assert store.read(name, 0, len(content) + 1) == content
    assert store.size(name) == len(content)


def test_small_and_odd_pieces_and_those_that_lie_elsewhere_go_through_the_cache(tmp_path: Path, disk: Disk) -> None:
    _, writer = begun(LocalBlobs(tmp_path / "blobs"), b"")
    writer.write(piece_of(bytes(LEAST - 1), 0))
    writer.write(piece_of(bytes(MIB), writer.offset + 512))
    writer.write(bytes(MIB))
    writer.close()
    assert (disk.direct, sum(map(len, disk.cached))) == ([], LEAST - 1 + 2 * MIB)


def test_a_store_can_do_without(tmp_path: Path, disk: Disk) -> None:
    store, content = LocalBlobs(tmp_path / "blobs", direct=False), os.urandom(MIB)
    name, writer = begun(store, b"")
    writer.write(piece_of(content, 0))
    writer.close()
    assert (disk.direct, store.read(name, 0, 2 * MIB)) == ([], content)


# -- when the disk refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["with the flag", "with the first write"])
def test_a_file_system_that_cannot_is_asked_once(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store, content, asked = LocalBlobs(tmp_path / "blobs"), os.urandom(MIB), []
    setting = fcntl.fcntl

    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & O_DIRECT:
            asked.append(fd)
            if where == "with the flag":
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            disk.fault = (errno.EINVAL, 0)
        return setting(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    for _ in range(2):
        name, writer = begun(store, b"")
        writer.write(piece_of(content, 0))
        writer.write(piece_of(content, MIB))
        writer.close()
        assert store.read(name, 0, 3 * MIB) == content * 2
    assert (disk.direct, len(asked)) == ([], 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("kept", [0, 512, PAGE, 300 * KIB])
def test_of_a_write_that_failed_nothing_stays(tmp_path: Path, disk: Disk, code: int, kept: int) -> None:
    """Whatever it has brought to the disk: what a file holds beyond what was noted is announced after a kill."""
    store, content = LocalBlobs(tmp_path / "blobs"), os.urandom(MIB)
    name, writer = begun(store, content[:5000])
    disk.fault = code, kept
    with pytest.raises(OSError, match=os.strerror(code)):
        writer.write(piece_of(content[5000:], 5000))
    assert writer.offset == store.size(name) == 2 * PAGE
    assert writer.sync() == 2 * PAGE
    writer.write(piece_of(content[2 * PAGE :], 2 * PAGE))  # the disk has room again
    writer.close()
    assert store.read(name, 0, 2 * MIB) == content
    assert len(disk.direct) == 1, "it was no refusal"


@pytest.mark.parametrize("kept", [512, PAGE, MIB // 2, MIB - PAGE])
def test_a_write_that_takes_less_is_gone_on_with(tmp_path: Path, disk: Disk, kept: int) -> None:
    store, content = LocalBlobs(tmp_path / "blobs"), os.urandom(MIB)
    name, writer = begun(store, b"")
    disk.fault = 0, kept
    writer.write(piece_of(content, 0))
    writer.close()
    assert store.read(name, 0, 2 * MIB) == content


@pytest.mark.skipif(sys.platform != "linux", reason="the limit, and what it does, is Linux's")
@pytest.mark.parametrize("limit", [3 * MIB, 3 * MIB + 700])
def test_a_file_that_may_not_grow_keeps_what_fitted(tmp_path: Path, limit: int) -> None:
    """The kernel itself refuses, in a process whose files may not grow beyond `limit`."""
    command = _command(tmp_path, "limited", limit)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=_place())
    assert done.returncode == 0, done.stderr
    content = next(_blob_files(tmp_path)).read_bytes()
    assert len(content) == limit
    assert content == _pattern(limit)
    assert done.stdout.split() == [str(limit), str(errno.EFBIG)]


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal")
@pytest.mark.parametrize("head", [0, 1, 4095])
def test_a_kill_leaves_what_was_written_and_nothing_else(tmp_path: Path, seed: int, head: int) -> None:
    draw = random.Random(seed + head)
    for number in range(2):
        folder = tmp_path / str(number)
        process = subprocess.Popen(_command(folder, "endless", head), stdout=subprocess.PIPE, text=True, env=_place())
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(draw.randrange(1, 40))]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        content = next(_blob_files(folder)).read_bytes()
        assert len(content) >= int([line for line in told if line.endswith("\n")][-1])
        assert content == _pattern(len(content))


def _blob_files(folder: Path) -> Iterator[Path]:
    return (path for path in (folder / "blobs").glob("??/*") if path.is_file())


def _command(folder: Path, how: str, number: int) -> list[str]:
    return [sys.executable, __file__, str(folder), how, str(number)]


def _place() -> dict[str, str]:
    """Where a process finds what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _pattern(length: int) -> bytes:
    """The bytes that the processes write: no page is like another one."""
    return array("Q", range(length // 8 + 1)).tobytes()[:length]


def _write(folder: Path, how: str, number: int) -> None:
    """Write the pattern: `number` bytes alone, then by pieces; tell how far it came after each."""
    writer = LocalBlobs(folder / "blobs").append(fresh_session_id(), 0)
    content = _pattern(32 * MIB)
    if how == "endless":
        writer.write(content[:number])
    else:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    memory, draw = paged(MIB), random.Random(number)
    try:
        while writer.offset < len(content):
            start = writer.offset % PAGE
            piece = memory[start : start + draw.randrange(1, MIB - start)]
            more = content[writer.offset : writer.offset + len(piece)]
            piece[: len(more)] = more
            writer.write(piece[: len(more)])
            if how == "endless":
                _tell(writer.offset)
    except OSError as error:
        _tell(writer.offset, error.errno or 0)


def _tell(*numbers: int) -> None:
    sys.stdout.write(" ".join(map(str, numbers)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
