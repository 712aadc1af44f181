"""Every file of a store that is no segment, empty, full of noise, of an earlier time, or gone: segments are the only
truth, so nothing that they hold is lost, doubled or forged, and the store goes on working.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal_layout import HEAD_SIZE
from mailboat.agent.journal_place import JOURNAL
from mailboat.agent.ledger import Ending
from mailboat.agent.locks import LOCK
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.store import LIVE, NEW, QUARANTINED, REASON, SENDER_LOCK, SENT, WAITING, Store
from testkit.disk import Unsynced
from testkit.recording import BOOT, Rig, Story, Time, waiting

LEDGER = "ledger.json"


@dataclass
class Scene:
    """A store with a session in each folder. `written` are the records of the crashed one that its segment holds,
    `journaled` those that follow in its journal; `earlier` is a copy of it all from before the last records.
    """

    root: Path
    earlier: Path
    crashed: str
    waiting: str
    sent: str
    written: list[str]
    journaled: list[str]

    @property
    def folder(self) -> Path:
        return Store(Unsynced(), self.root, "product", "application").folder

    def places(self) -> dict[str, Path]:
        """Every file that is no segment."""
        found = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".zst"]
        return {str(path.relative_to(self.folder)): path for path in found}


def ended(root: Path, time: Time, name: str) -> str:
    rig = Rig(root, files=Unsynced(), time=time)
    rig.recorder.feature(name)
    assert rig.end()
    return rig.id


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    time, root = Time(), tmp_path / "store"
    done, kept, aside, late = (ended(root, time, name) for name in ("sent", "kept", "aside", "late"))
    store = Store(Unsynced(), root, "product", "application")
    assert store.become_sender()
    store.finish([Ending(done, "accepted", "", 1)], purge=False)
    store.quarantine(aside, "for a test")
    rig = Rig(root, files=Unsynced(), time=time)
    shutil.copytree(root, tmp_path / "earliest")
    written = [f"w{number}" for number in range(40)]
    for name in written[:20]:
        rig.recorder.feature(name)
    rig.step(1.0)
    shutil.copytree(root, tmp_path / "earlier")
    store.finish([Ending(late, "declined", "", 1)], purge=True)
    for name in written[20:]:
        rig.recorder.feature(name)
    rig.flush(durable=True)
    journaled = [f"j{number}" for number in range(10)]
    for name in journaled:
        rig.recorder.feature(name)
    rig.step(6.0)
    rig.let_go()
    store.cease_sending()
    made = Scene(root, tmp_path / "earlier", rig.id, kept, done, written, journaled)
    (made.folder / NEW / late).mkdir()
    (made.folder / NEW / late / LOCK).touch()
    assert set(made.places()) == {
        f"{LIVE}/{rig.id}/{LOCK}",
        f"{LIVE}/{rig.id}/{JOURNAL}",
        f"{NEW}/{late}/{LOCK}",
        f"{QUARANTINED}/{aside}/{REASON}",
        LEDGER,
        SENDER_LOCK,
    }
    return made


def taken_up(scene: Scene, boot: str = BOOT) -> tuple[Story, Store]:
    """What the next process makes of it: the story of the crashed session, and its store, of which it is the sender."""
    store = Store(OsFileSystem(), scene.root, "product", "application")
    store.open()
    store.sweep()
    for session in store.crashed():
        assert bring_to_rest(store, session, boot) is None
    assert store.become_sender()
    found = store.look()
    assert found.unreadable == {}
    assert {each.summary.session_id for each in found.waiting} == {scene.crashed, scene.waiting}
    assert {name: store.files.names(store.folder / name) for name in (NEW, LIVE, SENT)} == {
        NEW: [],
        LIVE: [],
        SENT: [scene.sent],
    }
    story = next(story for story in waiting(store) if story.session_id == scene.crashed)
    assert story.numbers == list(range(len(story.numbers)))
    store.finish([Ending(scene.crashed, "accepted", "", len(story.names))], purge=True)
    return story, store


def accepted(store: Store) -> int:
    return store.ledger.account(0, {}).accepted


KINDS = ("ledger.json", "sender.lock", "lock", "journal", "reason")
Spoil = Callable[[Path, random.Random], None]


def emptied(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


def noise(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.choice([1, 100, 5000, 300_000])))


def noise_within(path: Path, chance: random.Random) -> None:
    """Some bytes of it, wherever; often near the beginning, where what matters stands."""
    content = bytearray(path.read_bytes() or bytes(100))
    for _ in range(chance.randrange(1, 40)):
        at = chance.randrange(min(len(content), chance.choice([200, 2000, len(content)])))
        content[at : at + 8] = chance.randbytes(8)
    path.write_bytes(content)


def gone(path: Path, _: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [emptied, noise, noise_within, gone])
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_file_costs_at_most_what_it_alone_held(scene: Scene, kind: str, spoil: Spoil, seed: int) -> None:
    chance = random.Random(seed)
    for path in scene.places().values():
        if path.name == kind:
            spoil(path, chance)
    story, store = taken_up(scene)
    told = scene.written + scene.journaled
    assert story.names[: len(scene.written)] == scene.written
    if kind != JOURNAL:
        assert story.names == told
    elif spoil is not noise_within:
        assert story.names == scene.written
    if kind != LEDGER:
        assert accepted(store) == 1 + len(story.names)
    elif spoil is not noise_within:
        assert accepted(store) == len(story.names)


def test_a_journal_in_which_any_byte_of_its_head_is_wrong_stops_nothing(scene: Scene) -> None:
    """Also where it now says that its halves lie elsewhere, or that its records begin at 2^63."""
    journal = scene.folder / LIVE / scene.crashed / JOURNAL
    whole = journal.read_bytes()
    assert len(whole) > HEAD_SIZE
    entries = [at for at in range(512, HEAD_SIZE, 512) if any(whole[at : at + 512])]
    assert len(entries) == 2
    kept = scene.root.with_name("kept")
    shutil.copytree(scene.root, kept)
    for at in [*range(16), *range(79, 85), *range(128, 161), *(at + byte for at in entries for byte in range(40))]:
        shutil.rmtree(scene.root)
        shutil.copytree(kept, scene.root)
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        store = Store(Unsynced(), scene.root, "product", "application")
        for session in store.crashed():
            assert bring_to_rest(store, session, BOOT) is None, at
        (story,) = (story for story in waiting(store) if story.session_id == scene.crashed)
        assert story.names[: len(scene.written)] == scene.written, at
        if at < entries[0]:
            assert story.names == scene.written + scene.journaled, at


@pytest.mark.parametrize("earlier", ["earliest", "earlier"])
@pytest.mark.parametrize("kind", ["ledger.json", "journal"])
def test_a_file_of_an_earlier_time_doubles_nothing(scene: Scene, kind: str, earlier: str) -> None:
    for path in scene.places().values():
        if path.name == kind:
            shutil.copyfile(scene.root.with_name(earlier) / path.relative_to(scene.root), path)
    story, store = taken_up(scene)
    assert story.names == scene.written + (scene.journaled if kind != JOURNAL else [])
    assert accepted(store) == 1 + len(story.names)


@pytest.mark.parametrize("folder", [NEW, LIVE, WAITING, SENT, QUARANTINED])
@pytest.mark.parametrize("name", ["a file", "01a0c45f-ae40-75b1-a522-4a58b791f1d9"])
def test_a_file_where_a_session_should_be_stops_no_other(scene: Scene, folder: str, name: str) -> None:
    (scene.folder / folder / name).write_bytes(b"of somebody else")
    store = Store(OsFileSystem(), scene.root, "product", "application")
    store.sweep()
    for session in store.crashed():
        assert bring_to_rest(store, session, BOOT) is None
    assert store.become_sender()
    assert {each.summary.session_id for each in store.look().waiting} == {scene.crashed, scene.waiting}
    story = next(story for story in waiting_of(store) if story.session_id == scene.crashed)
    assert story.names == scene.written + scene.journaled


def waiting_of(store: Store) -> list[Story]:
    for path in (store.folder / WAITING).iterdir():
        if path.is_file():
            path.unlink()
    return waiting(store)


def test_what_replacing_the_ledger_left_behind_is_removed(scene: Scene) -> None:
    left = [scene.folder / f"{LEDGER}.{number}.tmp" for number in (1, 4_000_000)]
    for path in left:
        path.write_bytes(b"half of it")
    _, store = taken_up(scene)
    assert not any(path.exists() for path in left)
    assert accepted(store) == 51
