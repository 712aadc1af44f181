"""A disk that forgets, when the power fails, whatever it was not made to keep.

The real files lie underneath, so that mapping and locking are real; beside them stands what of it is on the disk by
now. The model, harsher than any one file system and fair to all that journal their folders:

* A file's bytes are on the disk after `sync`. Before that, any of its pages may be there or not, the old or the new
  one, or torn: the one up to some byte, the other behind it. The same goes for what is stored to a mapping, and for the
  file's size: a truncation or an allocation may be lost or done, or half done.
* A folder's entries are on the disk after `sync_folder`. Before that, any of them may be there or not, in any order,
  but for what cannot be: one entry's changes are not reordered among themselves, and nothing is moved before it was
  made. One rename is one step.
* At any time the disk may write on its own accord (`written_back`): a page keeps the state of that moment then.
* After a failed `sync` the pages that did not reach the disk pass for written: only what is changed afterwards is
  written by the next one. (As Linux does; P. Rebello et al., "Can applications recover from fsync failures?", 2020.)
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mailboat.agent.files import OsFileSystem, Place

PAGE: Final = 4096
SECTOR: Final = 512


@dataclass(eq=False)
class _File:
    """`link` is another name of the file, by which its present content can be read whatever becomes of the first."""

    link: Path
    durable: bytes = b""
    passed: bytes = b""
    """The content at the last failed sync: what is still the same is not written by the next one."""

    @property
    def present(self) -> bytes:
        return self.link.read_bytes()


@dataclass(eq=False)
class _Folder:
    """`entries` are those that the process sees, `durable` those on the disk."""

    entries: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)


_Node = _File | _Folder


@dataclass(eq=False)
class _Change:
    """One change of entries that is not on the disk: each is a folder, a name, and what it names from then on."""

    entries: tuple[tuple[_Folder, str, _Node | None], ...]

    def needs(self, earlier: _Change) -> bool:
        """Whether it cannot be on the disk without the `earlier` one."""
        places = {(id(folder), name) for folder, name, _ in earlier.entries}
        nodes = {id(node) for _, _, node in earlier.entries if node is not None}
        return any((id(folder), name) in places or id(node) in nodes for folder, name, node in self.entries)

    def make(self) -> None:
        for folder, name, node in self.entries:
            if node is None:
                folder.durable.pop(name, None)
            else:
                folder.durable[name] = node


class PowerDisk(OsFileSystem):
    """The files below `root`, all of which are on the disk to begin with."""

    def __init__(self, root: Path, chance: random.Random, *, written_back: float = 0.05) -> None:
        """`written_back` is how likely the disk writes something on its own accord at each call. `root` must be on the
        same file system as its parent, where other names of its files are kept.
        """
        self.root = root
        self._chance = chance
        self._written_back = written_back
        self._vault = root.with_name(f"{root.name}.vault")
        self._vault.mkdir()
        self._files: list[_File] = []
        self._by_number: dict[tuple[int, int], _File] = {}
        self._pending: list[_Change] = []
        root.mkdir(exist_ok=True)
        self._top = self._adopt(root)

    def _adopt(self, path: Path) -> _Folder:
        folder = _Folder()
        for each in path.iterdir():
            node = self._adopt(each) if each.is_dir() else self._file(each, each.read_bytes())
            folder.entries[each.name] = folder.durable[each.name] = node
        return folder

    def _file(self, path: Path, durable: bytes = b"") -> _File:
        link = self._vault / str(len(self._files))
        os.link(path, link)
        status = link.stat()
        file = self._by_number[status.st_dev, status.st_ino] = _File(link, durable)
        self._files.append(file)
        return file

    # -- the port ------------------------------------------------------------------------------------------------

    def make_folder(self, path: Path) -> None:
        self._drift()
        missing = [each for each in (path, *path.parents) if each.is_relative_to(self.root) and not each.exists()]
        super().make_folder(path)
        for each in reversed(missing):
            self._change((each, _Folder()))

    def create(self, path: Path) -> int:
        self._drift()
        fd = super().create(path)
        self._change((path, self._file(path)))
        return fd

    def append(self, fd: int, data: bytes | memoryview) -> None:
        self._drift()
        super().append(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._drift()
        super().truncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._drift()
        super().allocate(fd, offset, length)

    def map(self, fd: int, offset: int, length: int) -> mmap.mmap:
        self._drift()
        return super().map(fd, offset, length)

    def sync(self, fd: int) -> None:
        self._drift()
        file = self._by_number[_number(fd)]
        present = file.present
        file.durable = _mixed(file.durable, present, lambda at: present[at : at + PAGE] != file.passed[at : at + PAGE])

    def sync_folder(self, path: Path) -> None:
        self._drift()
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if self.root.is_relative_to(path) and path != self.root:
            return
        folder = self._folder(path)
        self._settle(change for change in self._pending if any(each is folder for each, _, _ in change.entries))

    def rename(self, source: Place, target: Place) -> None:
        self._drift()
        super().rename(source, target)
        source, target = Path(source), Path(target)
        self._change((source, None), (target, self._folder(source.parent).entries[source.name]))

    def remove(self, path: Path) -> None:
        self._drift()
        there = path.exists()
        super().remove(path)
        if there:
            self._change((path, None))

    def remove_tree(self, path: Path) -> None:
        self._drift()
        there = path.exists()
        super().remove_tree(path)
        if there:
            self._forget_below(self._folder(path))
            self._change((path, None))

    # -- what is on the disk -------------------------------------------------------------------------------------

    def fail_to_sync(self, fd: int) -> None:
        """What a `sync` leaves behind that fails: some pages are on the disk, and all of them pass for written."""
        file = self._by_number[_number(fd)]
        present = file.present
        file.durable = _mixed(file.durable, present, lambda _: self._chance.random() < 0.5)
        file.passed = present

    def lose_power(self, target: Path) -> None:
        """Make at `target` what is found there when the machine runs again."""
        for _ in range(self._chance.randrange(len(self._pending) + 1) if self._chance.random() < 0.8 else 0):
            if self._pending:
                self._settle([self._chance.choice(self._pending)])
        contents: dict[int, bytes] = {}
        self._rebuild(self._top, target, contents)

    def _rebuild(self, folder: _Folder, path: Path, contents: dict[int, bytes]) -> None:
        path.mkdir()
        for name, node in folder.durable.items():
            if isinstance(node, _Folder):
                self._rebuild(node, path / name, contents)
            else:
                assert id(node) not in contents, f"{name} stands in two folders"
                contents[id(node)] = self._found(node)
                (path / name).write_bytes(contents[id(node)])

    def _found(self, file: _File) -> bytes:
        """Its content as it may be after a loss of power."""
        old, new = file.durable, file.present
        match self._chance.randrange(4):
            case 0:
                return old
            case 1:
                return new
            case 2:
                return self._torn(old, new, 0.5)
            case _:
                return self._torn(old, new, self._chance.random())

    def _torn(self, old: bytes, new: bytes, share: float) -> bytes:
        size = self._chance.choice([len(old), len(new), self._chance.randint(*sorted((len(old), len(new))))])
        found = bytearray(old[:size].ljust(size, b"\0"))
        fresh = new[:size].ljust(size, b"\0")
        for at in range(0, size, PAGE):
            if self._chance.random() >= share:
                continue
            start, stop = at, min(size, at + PAGE)
            if self._chance.random() < 0.3:
                start = self._chance.randrange(at, stop)
                start -= start % self._chance.choice([1, SECTOR])
            if self._chance.random() < 0.3:
                stop = self._chance.randrange(start, stop) + 1
            found[start:stop] = fresh[start:stop]
        return bytes(found)

    def _drift(self) -> None:
        """The disk writes something on its own accord, perhaps."""
        if self._chance.random() >= self._written_back:
            return
        if self._pending and self._chance.random() < 0.5:
            self._settle([self._chance.choice(self._pending)])
        elif self._files:
            file = self._chance.choice(self._files)
            file.durable = self._found(file)

    def _settle(self, changes: Iterable[_Change]) -> None:
        """Have these changes on the disk, and those that they need."""
        wanted = list(changes)
        for change in wanted:
            place = self._pending.index(change)
            wanted += [each for each in self._pending[:place] if change.needs(each) and each not in wanted]
        for change in [each for each in self._pending if each in wanted]:
            change.make()
            self._pending.remove(change)

    def _change(self, *entries: tuple[Path, _Node | None]) -> None:
        made = []
        for path, node in entries:
            folder = self._folder(path.parent)
            if node is None:
                folder.entries.pop(path.name)
            else:
                folder.entries[path.name] = node
            made.append((folder, path.name, node))
        self._pending.append(_Change(tuple(made)))

    def _forget_below(self, folder: _Folder) -> None:
        for name, node in list(folder.entries.items()):
            if isinstance(node, _Folder):
                self._forget_below(node)
            self._pending.append(_Change(((folder, name, None),)))
        folder.entries.clear()

    def _folder(self, path: Path) -> _Folder:
        folder = self._top
        for name in path.relative_to(self.root).parts:
            node = folder.entries[name]
            assert isinstance(node, _Folder), path
            folder = node
        return folder


def _number(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _mixed(old: bytes, new: bytes, is_new: Callable[[int], bool]) -> bytes:
    """`new`, with the pages of `old` where `is_new` says no."""
    size = len(new)
    padded = old[:size].ljust(size, b"\0")
    pages = (new if is_new(at) else padded for at in range(0, size, PAGE))
    return b"".join(page[at : at + PAGE] for at, page in zip(range(0, size, PAGE), pages, strict=True))
