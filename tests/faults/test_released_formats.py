"""The stores and segments that released versions have left behind open in this one, whole. They lie in `tests/golden`,
made by the script there.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal_layout import VERSION as JOURNAL_VERSION
from mailboat.agent.ledger import _VERSION as LEDGER_VERSION
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.store import QUARANTINED, SENT, WAITING, Store
from mailboat.cli.sessions import sessions
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.segment import FORMAT_VERSION, SEALED_VERSION
from testkit.recording import Story, read_session
from testkit.sealed import KEYS

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


class Left:
    """What one version has left behind, unpacked."""

    def __init__(self, name: str, folder: Path) -> None:
        told = json.loads((GOLDEN / f"{name}.json").read_text())
        self.formats: dict[str, Any] = told["formats"]
        self.sessions: dict[str, dict[str, Any]] = told["sessions"]
        with tarfile.open(GOLDEN / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        self.root = folder / "store"
        self.store = Store(OsFileSystem(), self.root, "product", "application")

    def holds(self, standing: str, story: Story) -> None:
        records = [(str(record.kind), record.name) for record in story.records]
        assert records == [tuple(each) for each in self.sessions[standing]["records"]], standing
        assert story.gaps == []
        for record in story.records:
            if record.name == "order.placed":
                assert set(record.attributes) == {"user", "sum"}
            if record.name == "import.csv":
                assert record.attributes["nested"] == {"a": [1, None, True, 2.5, "ü"]}


@pytest.fixture(params=NAMES)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Left:
    return Left(request.param, tmp_path)


def test_the_formats_of_today_are_among_them() -> None:
    """A format that changes needs another golden store, made before the version is released."""
    formats = [json.loads((GOLDEN / f"{name}.json").read_text())["formats"] for name in NAMES]
    assert {FORMAT_VERSION, SEALED_VERSION} <= {version for each in formats for version in each["segment"]}
    assert JOURNAL_VERSION in {each["journal"] for each in formats}
    assert LEDGER_VERSION in {each["ledger"] for each in formats}


def test_the_store_opens_and_its_crashed_session_is_recovered(left: Left) -> None:
    if left.formats["byte_order"] != sys.byteorder:
        pytest.skip("a journal never leaves its machine")
    store = left.store
    store.open()
    store.sweep()
    for session in store.crashed():
        assert bring_to_rest(store, session, left.formats["boot"]) is None
    assert store.become_sender()
    found = store.look()
    assert found.unreadable == {}
    assert {each.summary.session_id for each in found.waiting} == {
        left.sessions[standing]["id"] for standing in ("waiting", "crashed")
    }
    for standing in ("waiting", "crashed"):
        left.holds(standing, read_session(store.folder / WAITING / left.sessions[standing]["id"]))
    for waiting in found.waiting:
        assert waiting.summary.installation == "here"
    store.cease_sending()


def test_what_was_sent_or_put_aside_and_the_account_of_it_open_too(left: Left) -> None:
    assert left.store.become_sender()
    for standing, folder in (("sent", SENT), ("quarantined", QUARANTINED)):
        left.holds(standing, read_session(left.store.folder / folder / left.sessions[standing]["id"]))
    account = left.store.ledger.account(0, {})
    assert (account.accepted, left.store.ledger.damaged) == (len(left.sessions["sent"]["records"]), False)
    left.store.cease_sending()


def test_the_command_line_reads_them(left: Left) -> None:
    from click.testing import CliRunner

    done = CliRunner().invoke(sessions, ["verify", "--store", str(left.root), "--json"])
    assert done.exit_code == 0, done.output
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(each["intact"] for each in told)
    assert {each["source"] for each in told} == {each["id"] for each in left.sessions.values()}


def test_a_sealed_segment_opens_with_the_key(left: Left) -> None:
    reader = SegmentReader((left.root / "sealed.zst").read_bytes(), KEYS.unlock)
    assert [(record.name, dict(record.attributes)) for record in reader] == [("a", {"number": 1}), ("b", {})]
    assert reader.intact
