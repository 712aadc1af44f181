"""What happens to the process, told to whom it concerns; the whole of it is in e2e/test_processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mailboat.agent import Agent
from testkit.forking import in_child
from testkit.recording import Rig


@pytest.mark.parametrize("refused", ["select.epoll", "os.dup2"])
async def test_a_child_knows_what_it_is_though_the_system_gives_it_no_selector_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """Both agents are told, and all of the child's copies let go of the parent's loop."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    one, other = (Agent(server=None, product="p", application=each, store=tmp_path) for each in ("one", "other"))
    async with one, other:

        def look() -> list[object]:
            states: list[object] = [each.status.state.value for each in (one, other)]
            return [*states, one._loop is other._loop is None, caplog.text.count("shares the selector")]

        monkeypatch.setattr(refused, refuse)
        with in_child(look) as child:
            assert child.result() == ["forked", "forked", True, 2]
        monkeypatch.undo()
        assert {one.status.state, other.status.state} == {"running"}


def test_a_child_leaves_its_parents_mapping_alone_that_it_cannot_close(tmp_path: Path) -> None:
    """The writer's thread reads it in this moment, and the child has a copy of what it reads with."""
    rig = Rig(tmp_path)
    rig.recorder.feature("parent")
    half = rig.journal.active
    before = bytes(half.memory)
    with half.content():
        rig.recorder.forget_after_fork()
        assert not half.memory.closed
        rig.recorder.feature("child")
        assert bytes(half.memory) == before
    assert (rig.recorder.lost, rig.recorder.recorded) == ({"forked": 1}, 0)
