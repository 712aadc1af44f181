"""Makes the golden store of today's formats: `python tests/golden/make.py NAME`, from the repository's folder.

A store and segments as an agent of this version leaves them behind, packed into `NAME.tar.gz`, and beside it, in
`NAME.json`, what they hold. Every later version has to open them (`tests/faults/test_released_formats.py`). One is made
for each released version whose formats differ from those before, and none is ever made anew.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "lib"))

from mailboat.agent.files import OsFileSystem  # noqa: E402
from mailboat.agent.journal_layout import VERSION as JOURNAL_VERSION  # noqa: E402
from mailboat.agent.ledger import _VERSION as LEDGER_VERSION  # noqa: E402
from mailboat.agent.ledger import Ending  # noqa: E402
from mailboat.agent.store import Store  # noqa: E402
from mailboat.agent.writer import WriterSettings  # noqa: E402
from mailboat.protocol.segment import FORMAT_VERSION, SEALED_VERSION  # noqa: E402
from testkit.disk import Unsynced  # noqa: E402
from testkit.recording import BOOT, Rig, Time  # noqa: E402
from testkit.sealed import SealedSegment  # noqa: E402
from testkit.segments import event, feature  # noqa: E402


def record(rig: Rig, count: int) -> list[Any]:
    """Records of every kind; what is expected of each is its kind, its name and its attributes."""
    placed = rig.recorder.emitter("order.placed", ["user", "sum"])
    for number in range(count):
        rig.recorder.feature("import.csv", rows=number, text="x" * 50, nested={"a": [1, None, True, 2.5, "ü"]})
        rig.recorder.value("size", number, "bytes", of="file")
        rig.recorder.timing("work", 10**9, {"step": number})
        rig.recorder.event("note", 30, "a message", by="somebody")
        rig.recorder.exception(ValueError("on purpose"), "a context", {"number": number})
        rig.recorder.set_installation("here", {"plan": "pro"})
        placed(number, 12.5)
    kinds = ("feature", "value", "timing", "event", "exception", "installation", "feature")
    names = ("import.csv", "size", "work", "note", "ValueError", "here", "order.placed")
    return list(zip(kinds, names, strict=True)) * count


def session(root: Path, time: Time, count: int) -> tuple[Rig, list[Any]]:
    rig = Rig(root, files=Unsynced(), time=time, settings=WriterSettings(segment_bytes=1500))
    told = record(rig, count)
    time.pass_seconds(5)
    return rig, told


def make(root: Path) -> dict[str, Any]:
    """A store with a session of each standing in `root`; what it holds."""
    time, held = Time(), dict[str, dict[str, Any]]()
    for standing in ("waiting", "sent", "quarantined"):
        rig, told = session(root, time, 3)
        rig.flush(durable=True, seconds=1.0)
        told += record(rig, 2)
        assert rig.end()
        held[standing] = {"id": rig.id, "records": told}
    store = Store(OsFileSystem(), root, "product", "application")
    assert store.become_sender()
    store.finish([Ending(held["sent"]["id"], "accepted", "", len(held["sent"]["records"]))], purge=False)
    store.quarantine(held["quarantined"]["id"], "for a test")
    store.cease_sending()
    rig, told = session(root, time, 3)
    rig.flush(durable=True, seconds=1.0)
    told += record(rig, 2)
    rig.step(6.0)
    rig.let_go()
    held["crashed"] = {"id": rig.id, "records": told}
    sealed = SealedSegment()
    sealed.block([feature("a", number=1), event("b", 40)])
    (root / "sealed.zst").write_bytes(sealed.seal())
    return held


def main() -> None:
    (name,) = sys.argv[1:]
    packed, told = HERE / f"{name}.tar.gz", HERE / f"{name}.json"
    if packed.exists() or told.exists():
        sys.exit(f"{packed} is there: what a released version has left behind does not change")
    with tempfile.TemporaryDirectory() as folder:
        held = make(Path(folder) / "store")
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(Path(folder) / "store", "store")
    formats = {
        "segment": [FORMAT_VERSION, SEALED_VERSION],
        "journal": JOURNAL_VERSION,
        "ledger": LEDGER_VERSION,
        "byte_order": sys.byteorder,
        "boot": BOOT,
    }
    told.write_text(json.dumps({"formats": formats, "sessions": held}, indent=1) + "\n")


if __name__ == "__main__":
    main()
