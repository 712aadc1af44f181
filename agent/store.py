"""The store: the folder that holds the sessions of one application.

::

    ROOT/PRODUCT/APPLICATION/
        new/ID/           a session being made
        live/ID/          a session whose process runs, or crashed
            lock          held (flock) by that process for life
            journal       see `journal`; that of a sealed session is in memory, and ``journal.at`` says where
            last-words    see `last_words`
            000000.zst    its segments, see `mailboat.protocol.segment`
        waiting/ID/       an ended session that the server has not answered for
        sent/ID/          one that it has, kept until the space is wanted; with a `receipt` unless accepted
        quarantined/ID/   one that cannot be read or sent, with the reason in `reason`
        ledger.json       see `ledger`
        reserve           see `reserve`
        sender.lock       held by the one process that sends

Where a session stands is told by its folder alone, and it moves by one rename. Segments are the only truth:
everything that is said of a session is read from them, so no other file can be lost or disagree.

All functions block. They are called on the store's thread; but `settle` and `retire` on that of the running session's
writer, and `begin` on whichever begins that session.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from mailboat.agent.ended import Descriptions, Waiting, counts_of, legible_records, read_summary
from mailboat.agent.files import FileSystem
from mailboat.agent.journal_place import JOURNAL, JOURNAL_AT, remove
from mailboat.agent.ledger import ACCEPTED, DECLINED, LOST, REJECTED, RETURNED, Ending, LedgerFile
from mailboat.agent.locks import LOCK, lock_again, lock_of_the_dead, take_lock
from mailboat.agent.log import log
from mailboat.agent.reserve import Reserve
from mailboat.agent.segment_file import UNFINISHED, SegmentFile
from mailboat.protocol.errors import SegmentError, StoreError, WireError
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.sealing import Entropy
from mailboat.protocol.segment import Preamble
from mailboat.protocol.summary import Summary

LAST_WORDS: Final = "last-words"
REASON: Final = "reason"
RECEIPT: Final = "receipt"
"""What the server said of a session that it did not take: the fate, and the reason in the next line."""
SENDER_LOCK: Final = "sender.lock"
NEW, LIVE, WAITING, SENT, QUARANTINED = "new", "live", "waiting", "sent", "quarantined"
FATES: Final = frozenset({ACCEPTED, DECLINED, REJECTED, QUARANTINED})
"""What a receipt may say."""
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOTSUP})
"""How a system says that a folder cannot be synced by us; then it was not made by us either."""
_FIRST_READ: Final = 4096
_BEGINNINGS: Final = 8
"""Tries to make a session's folder: each process that starts at the same moment sweeps once."""


def folder_name(text: str) -> str:
    """`text` as the name of a folder: itself where that is harmless, else made so, with a digest to keep names
    apart.
    """
    harmless = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:64].strip(".")
    if harmless == text and harmless:
        return harmless
    return f"{harmless or '_'}-{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:8]}"


class SessionFolder(Struct):
    """A session in ``live/`` whose lock this process holds."""

    path: Path
    lock_fd: int


class Found(Struct, frozen=True):
    """What a look into the store found; `unreadable` are sessions by id, with the reason."""

    waiting: tuple[Waiting, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)


class Store:
    """The sessions of one application on this machine."""

    def __init__(self, files: FileSystem, root: Path, product: str, application: str) -> None:
        """Names the folders; nothing is touched before `open`."""
        self.files = files
        self.folder = root / folder_name(product or "default") / folder_name(application or "default")
        self.reserve = Reserve(files, self.folder)
        self._sender_fd: int | None = None
        self._ledger: LedgerFile | None = None
        self._known: dict[str, Summary] = {}
        self._descriptions = Descriptions()
        self._settled = False
        self._moved: set[str] = set()

    @classmethod
    def at(cls, files: FileSystem, folder: Path) -> Store:
        """The store in a folder that is there already, whatever the names were."""
        store = cls(files, folder.parent.parent, folder.parent.name, folder.name)
        store.folder, store.reserve = folder, Reserve(files, folder)
        return store

    def open(self) -> None:
        """Make the folders where they are missing; `StoreError` when that cannot be done."""
        try:
            for name in (NEW, LIVE, WAITING, SENT, QUARANTINED):
                self.files.make_folder(self.folder / name)
        except OSError as error:
            raise StoreError(
                f"the store folder {self.folder} cannot be used: {error}. "
                "Make it writable for this user, or name another one with store=... or MAILBOAT_STORE"
            ) from error

    def settle(self, path: Path) -> None:
        """Make the folder of a session, and those that lead to it, survive the machine. Raises `OSError`.

        The first time that goes for all folders above the store, too: this process or another one may just have made
        them.
        """
        root = self.folder.parent.parent
        for folder in (path, path.parent, self.folder, self.folder.parent, root):
            self.files.sync_folder(folder)
        if not self._settled:
            for folder in root.parents:
                self._settle_above(folder)
            self._settled = True

    def _settle_above(self, folder: Path) -> None:
        try:
            self.files.sync_folder(folder)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise

    # -- live ----------------------------------------------------------------------------------------------------

    def begin(self, preamble: Preamble, level: int, entropy: Entropy = os.urandom) -> tuple[SessionFolder, SegmentFile]:
        """Make the folder of a new session, with its lock held and its first segment begun. Raises `OSError`; nothing
        stands in the way of another try then. `entropy` is for the key of a segment that is to be sealed.

        It appears in ``live/`` only when both are there, so no other process takes it for a crashed one.
        """
        self.open()
        lock_fd = self._make_new(preamble.session_id)
        segment = None
        made, path = (self.folder / place / preamble.session_id for place in (NEW, LIVE))
        try:
            segment = SegmentFile.create(self.files, made, preamble, level, entropy)
            self.files.rename(made, path)
        except BaseException:
            if segment is not None:
                segment.close()
            self.files.close(lock_fd)
            raise
        segment.path = path / segment.path.name
        return SessionFolder(path, lock_fd), segment

    def _make_new(self, session_id: str) -> int:
        """Make an empty folder in ``new/``; returns its lock, held. What an earlier try left is removed first.

        Another process may be sweeping there, and take the folder before its lock is held: then once more.
        """
        made = self.folder / NEW / session_id
        for _ in range(_BEGINNINGS):
            self.files.remove_tree(made)
            self.files.make_folder(made)
            try:
                fd = self.files.create(made / LOCK)
            except (FileNotFoundError, FileExistsError):
                continue
            if self.files.lock(fd) and self.files.same_file(fd, made / LOCK):
                return fd
            self.files.close(fd)
        raise StoreError(
            f"{made / LOCK} cannot be locked. If its disk has no locks (some network file systems), "
            "name another one with store=... or MAILBOAT_STORE"
        )

    def unmake(self, path: Path) -> None:
        """Delete the folder of a session in which nothing was recorded. The caller holds its lock. Raises `OSError`."""
        remove(self.files, path)
        self.files.remove_tree(path)

    def holds(self, session: SessionFolder, place: str = LIVE) -> bool:
        """Whether the folder of a session of this process is in that `place`, with its lock. Raises `OSError`."""
        return self.files.same_file(session.lock_fd, self.folder / place / session.path.name / LOCK)

    def hold_again(self, session: SessionFolder) -> None:
        """Have the folder of a live session, and its lock, where somebody has deleted them. Raises `OSError`."""
        if not self.holds(session):
            self.open()
            session.lock_fd = lock_again(self.files, session.path, session.lock_fd)
            self._settled = False

    def retire(self, session: SessionFolder) -> Path:
        """Move a sealed live session to those that wait, durably, and let go of its lock; returns its new folder.
        Raises `OSError`; it may be done again then.
        """
        path = self.retire_folder(session.path)
        self.files.close(session.lock_fd)
        return path

    def retire_folder(self, path: Path) -> Path:
        """Move the folder of an ended session from live to waiting, durably. Raises `OSError`; it may be done again."""
        target = self.folder / WAITING / path.name
        if path.name not in self.files.names(target.parent):
            self.files.sync_folder(path)
            self.files.rename(path, target)
        self.files.sync_folder(target.parent)
        self.files.sync_folder(path.parent)
        self._strip(target)
        return target

    def give_up(self, path: Path, reason: str) -> None:
        """Move the folder of a live session that cannot be read to those that wait, with the reason in it and all else
        as it is: `look` will name it among the unreadable. Raises `OSError`; it may be done again.
        """
        self._note_reason(path, reason)
        self.files.rename(path, self.folder / WAITING / path.name)
        self.files.sync_folder(self.folder / WAITING)

    def hope_again(self, path: Path) -> None:
        """Take back that a live session cannot be read: `give_up` may have been cut short. Raises `OSError`."""
        self.files.remove(path / REASON)

    def _strip(self, path: Path, names: Sequence[str] | None = None) -> None:
        """Remove from an ended session what only a live one needs. What does not go now, `look` will remove. `names`:
        what its folder holds, if that is known.
        """
        with contextlib.suppress(OSError):
            for name in self.files.names(path) if names is None else names:
                if name == JOURNAL_AT:
                    remove(self.files, path)
                elif name in (JOURNAL, LAST_WORDS, LOCK, RECEIPT) or name.endswith(UNFINISHED):
                    self.files.remove(path / name)

    def crashed(self) -> Iterable[SessionFolder]:
        """The live sessions whose process is dead, one by one, each with its lock now held by the caller (who closes
        it). One that cannot be looked at stops no other.
        """
        for name in self.files.names(self.folder / LIVE):
            path = self.folder / LIVE / name
            try:
                lock_fd = lock_of_the_dead(self.files, path) if is_canonical(name) else None
            except OSError as error:
                log.warning("session %s cannot be looked at now: %s", name, error)
                continue
            if lock_fd is not None:
                yield SessionFolder(path, lock_fd)

    def sweep(self) -> None:
        """Delete what a crash left of sessions that were never begun. One that cannot be deleted stops no other."""
        for path in [self.folder / NEW / name for name in self.files.names(self.folder / NEW) if is_canonical(name)]:
            try:
                self._sweep_away(path)
            except OSError as error:
                log.warning("%s, which a crash has left, cannot be deleted now: %s", path, error)

    def _sweep_away(self, path: Path) -> None:
        if (fd := lock_of_the_dead(self.files, path)) is not None:
            try:
                self.files.remove_tree(path)
            finally:
                self.files.close(fd)

    # -- waiting -------------------------------------------------------------------------------------------------

    def look(self) -> Found:
        """The sessions that wait. What was read of one before is not read again."""
        known, unreadable = dict[str, Summary](), dict[str, str]()
        for name in self.files.names(home := self.folder / WAITING):
            if name in self._known:
                known[self._known[name].session_id] = self._known[name]
            elif is_canonical(name):
                path = f"{home}{os.sep}{name}"
                try:
                    held = self.files.names(path)
                    if REASON in held:
                        unreadable[name] = self._reason_in(home / name)
                        continue
                    known[name] = self._descriptions.shared(read_summary(self.files, path, held), name)
                    if len(held) > 1:
                        self._strip(home / name, held)
                except (SegmentError, WireError) as error:
                    unreadable[name] = str(error)
                except FileNotFoundError:
                    continue  # another process has just moved it
                except OSError as error:
                    # Of the host, or of the disk, for a time perhaps: no reason to put the session aside for good.
                    log.warning("session %s cannot be looked at now: %s", name, error)
        self._known = known
        return Found(tuple(Waiting(home, each) for each in known.values()), unreadable)

    def _note_reason(self, path: Path, reason: str) -> None:
        said = reason.encode(errors="backslashreplace")
        self.reserve.backing(lambda: self.files.replace_content(path / REASON, said))

    def _reason_in(self, path: Path) -> str:
        return self.files.read_range(path / REASON, 0, _FIRST_READ).decode(errors="replace")

    def quarantine(self, session_id: str, reason: str = "") -> None:
        """Put a waiting session aside for good, with the reason beside it (empty: that which is noted there, if any);
        nothing of it is deleted. Raises `OSError`; then it stands where it stood. The caller has counted it.
        """
        there = self.files.names(self.folder / QUARANTINED)
        names = chain((session_id,), map(f"{session_id}.{{}}".format, count(2)))
        name = next(name for name in names if name not in there)
        session = self.folder / WAITING / session_id
        if reason or REASON not in self.files.names(session):
            self._note_reason(session, reason)
        self.files.rename(session, self.folder / QUARANTINED / name)
        self._known.pop(session_id, None)

    def set_aside(self, ending: Ending) -> Ending | None:
        """Count a waiting session as not to be sent, then put it aside; returns what was counted, None if that had been
        done before. Raises `OSError`; it may be done again then, and counts nothing twice. Of one that cannot be read,
        whatever can be counts.
        """
        counted = None
        if self.ledger.unmoved.get(ending.session_id, RETURNED) == RETURNED:
            if ending.fate == LOST:
                records = legible_records(self.files, self.folder / WAITING / ending.session_id)
                ending = replace(ending, records=records)
            counted, unmoved = ending, self._still_unmoved()
            self.reserve.backing(lambda: self.ledger.add([ending], unmoved))
            self._moved.clear()
        self.quarantine(ending.session_id, ending.why or ending.reason)
        self._moved.add(ending.session_id)
        return counted

    # -- the one process that sends ------------------------------------------------------------------------------

    def become_sender(self) -> bool:
        """Try to be the process that sends for this store; True once it is. Ends of its process free the place.

        Raises `OSError`; it is not the sender then.
        """
        if self._sender_fd is not None and self.files.same_file(self._sender_fd, self.folder / SENDER_LOCK):
            return True
        self.cease_sending()  # it was deleted: somebody else may have made the store anew
        if (fd := take_lock(self.files, self.folder / SENDER_LOCK)) is None:
            return False
        try:
            self._ledger = LedgerFile.found(self.files, self.folder, self._ledger)
            self._ledger.clean_up()
            self._moved.clear()
            self._complete_moves()
        except BaseException:
            self.files.close(fd)
            raise
        self._sender_fd = fd
        return True

    @property
    def sending(self) -> bool:
        """Whether this process is the sender."""
        return self._sender_fd is not None

    def cease_sending(self) -> None:
        """Leave the place of the sender to another process."""
        fd, self._sender_fd = self._sender_fd, None
        if fd is not None:
            self.files.close(fd)

    @property
    def ledger(self) -> LedgerFile:
        """The account of sessions that ended."""
        if self._ledger is None:
            self._ledger = LedgerFile(self.files, self.folder)
        return self._ledger

    def _complete_moves(self) -> None:
        """Move what the ledger has counted, and is not where it belongs: a crash, or the disk, came in between."""
        waiting = self.files.names(self.folder / WAITING)
        places = self.folder / WAITING, self.folder / SENT
        for session_id, fate in self.ledger.unmoved.items():
            if not is_canonical(session_id):
                continue
            if fate == RETURNED:
                self._move_back(session_id)
            elif session_id in waiting and fate in (QUARANTINED, LOST):
                self.quarantine(session_id)
            elif session_id in waiting:
                self._move_to_sent(session_id, *places, fate, "")
            self._moved.add(session_id)

    def finish(self, endings: Sequence[Ending], *, purge: bool) -> None:
        """Enter the ends of waiting sessions into the ledger, then put them away. Raises `OSError`; to finish them
        again counts nothing twice.
        """
        self.enter(endings)
        self.put_away(endings, purge=purge)

    def enter(self, endings: Sequence[Ending]) -> None:
        """Enter the ends of waiting sessions into the ledger, with the moves that `put_away` makes after this, now or
        in another life of the store. Raises `OSError`; to enter them again counts nothing twice.
        """
        counted = {each: fate for each, fate in self.ledger.unmoved.items() if fate != RETURNED}
        fresh = [ending for ending in endings if ending.session_id not in counted]
        if fresh:
            unmoved = self._still_unmoved()
            self.reserve.backing(lambda: self.ledger.add(fresh, unmoved))
            self._moved.clear()

    def put_away(self, endings: Sequence[Ending], *, purge: bool) -> None:
        """Move sessions whose ends are entered to sent, or delete them. Raises `OSError`; it may be done again."""
        self.reserve.backing(lambda: self._put_away(endings, purge=purge))

    def _put_away(self, endings: Sequence[Ending], *, purge: bool) -> None:
        waiting, sent = self.folder / WAITING, self.folder / SENT
        for ending in endings:
            self._known.pop(ending.session_id, None)
            if purge:
                self.files.remove_tree(waiting / ending.session_id)
            else:
                self._move_to_sent(ending.session_id, waiting, sent, ending.fate, ending.reason)
            self._moved.add(ending.session_id)

    def _still_unmoved(self) -> dict[str, str]:
        """The moves that the ledger asked for and that this process has not made; `_moved` begins anew once the ledger
        has been written.
        """
        return {each: fate for each, fate in self.ledger.unmoved.items() if each not in self._moved}

    def _move_to_sent(self, session_id: str, waiting: Path, sent: Path, fate: str, reason: str) -> None:
        """Move a session's folder, if it still waits. No folder is listed for that: there may be thousands."""
        if fate != ACCEPTED:
            self._note_receipt(waiting / session_id / RECEIPT, fate, reason)
        source, target = f"{waiting}{os.sep}{session_id}", f"{sent}{os.sep}{session_id}"
        try:
            self.files.rename(source, target)
        except FileNotFoundError:
            if session_id in self.files.names(waiting):
                raise
        except OSError:
            if session_id not in self.files.names(sent):
                raise
            self.files.remove_tree(sent / session_id)
            self.files.rename(source, target)

    def _note_receipt(self, path: Path, fate: str, reason: str) -> None:
        """Not durably, and not at any price: it is for whoever asks later, and the ledger has counted already."""
        try:
            self.files.remove(path)
            fd = self.files.create(path)
            try:
                self.files.append(fd, f"{fate}\n{reason}\n".encode(errors="backslashreplace"))
            finally:
                self.files.close(fd)
        except OSError as error:
            log.info("the receipt of session %s (%s) cannot be kept: %s", path.parent.name, fate, error)

    # -- what became of sessions of earlier runs ------------------------------------------------------------------

    def receipt(self, session_id: str) -> Ending | None:
        """What became of a session that has ended and is still kept; None for any other."""
        if not is_canonical(session_id):
            return None
        for place, note, otherwise in ((SENT, RECEIPT, ACCEPTED), (QUARANTINED, REASON, QUARANTINED)):
            folder = self.folder / place / session_id
            if session_id in self.files.names(folder.parent):
                said = self.files.read_range(folder / note, 0, _FIRST_READ) if note in self.files.names(folder) else b""
                text = said.decode(errors="replace").strip()
                fate, _, reason = text.partition("\n") if place == SENT and said else (otherwise, "", text)
                return Ending(session_id, fate, reason, *counts_of(self.files, folder)) if fate in FATES else None
        return None

    def take_back(self, session_id: str) -> bool:
        """Let a session that was declined wait again: the server asks for it after all. False when it is not kept any
        more, or was not declined. Raises `OSError`; to take it back again counts nothing twice.
        """
        said = self.receipt(session_id)
        if said is None or said.fate != DECLINED:
            return False
        if self.ledger.unmoved.get(session_id) != RETURNED:
            self.ledger.take_back(said, self._still_unmoved())
            self._moved.clear()
        self._move_back(session_id)
        self._moved.add(session_id)
        return True

    def _move_back(self, session_id: str) -> None:
        source = self.folder / SENT / session_id
        if session_id in self.files.names(source.parent):
            target = self.folder / WAITING / session_id
            self.files.rename(source, target)
            self._strip(target)
