"""Recovery of what a crash left in the middle of something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mailboat.agent.writer import WriterSettings
from testkit.disk import Disk, Killed
from testkit.recording import Rig, only, recovered


def killed_at_append(number: int) -> Callable[[int, str], BaseException | None]:
    """The process is killed at the append of that number."""
    appends: list[int] = []

    def plan(call: int, name: str) -> BaseException | None:
        if name == "append":
            appends.append(call)
        return Killed() if name == "append" and len(appends) == number else None

    return plan


@pytest.mark.parametrize("append", [6, 7, 8, 9], ids=["seal", "preamble", "declarations", "block"])
def test_killed_at_any_write_of_a_rotation(tmp_path: Path, append: int) -> None:
    """Also between the new segment's preamble and the declarations that it repeats: its records keep their names."""
    disk = Disk(killed_at_append(append))
    rig = Rig(tmp_path, files=disk.files, settings=WriterSettings(segment_bytes=1))
    placed = rig.recorder.emitter("order.placed", ["user"])
    placed(1)
    assert rig.flush()
    placed(2)
    with pytest.raises(Killed):
        rig.flush()
    disk.bury()
    story = only(recovered(tmp_path))
    assert story.gaps == []
    assert [(record.name, dict(record.attributes)) for record in story.records] == [
        ("order.placed", {"user": 1}),
        ("order.placed", {"user": 2}),
    ]
