"""One short life of a session, the same each time, on a disk with a plan of what goes wrong."""

from __future__ import annotations

from pathlib import Path

from mailboat.agent.writer import WriterSettings
from testkit.disk import Disk
from testkit.recording import Rig, Story, recovered


class Life:
    """A session with emitters, errors, rotation, durable flushes and its end; `told` is what was recorded."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root, self.disk = root, disk
        self.told: list[str] = []
        self.lost = 0
        self.exposed = True
        """Whether there were records that the death of the process would have cost: the disk refused the journal."""

    def live(self) -> None:
        rig = self.rig = Rig(self.root, files=self.disk.files, settings=WriterSettings(segment_bytes=200))
        rig.recorder.emitter("placed", ["a"])
        self._record(rig, 3)
        rig.flush(seconds=1)
        self._record(rig, 3)
        rig.flush(durable=True, seconds=1)
        self._record(rig, 600)
        rig.step(6)
        rig.recorder.event(self._next(), level=40)
        rig.step(1)
        self._record(rig, 1)
        for _ in range(2):
            rig.flush(seconds=1.1)
        rig.end()
        self.lost = rig.recorder.lost.total()

    def _record(self, rig: Rig, count: int) -> None:
        for _ in range(count):
            rig.recorder.feature(self._next(), text="x" * 100)
        self.exposed = not rig.journal.crash_proof

    def _next(self) -> str:
        self.told.append(f"r{len(self.told)}")
        return self.told[-1]

    def afterwards(self) -> list[Story]:
        """What the next process finds, on a disk that is well again."""
        self.disk.bury()
        return recovered(self.root)
