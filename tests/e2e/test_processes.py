"""Processes that fork, execute, spawn, thread and end in every way: what their recording calls were told is kept, once,
in a session of the process that made it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from testkit.families import Family, Kept, Play, assert_all_kept, kept, recover_all


async def played(name: str, store: Path, **settings: Any) -> tuple[Family, list[Kept]]:  # noqa: ANN401 - of `Play`
    """The scenario played to its end, and what the store holds once all of it was taken up."""
    with Play(name, store, **settings) as play:
        family = await asyncio.to_thread(play.to_the_end)
    assert "Traceback" not in family.errors, family.errors
    await recover_all(store)
    sessions = kept(store)
    assert_all_kept(family, sessions)
    return family, sessions


def of(sessions: Iterable[Kept], who: str) -> Kept:
    (session,) = [each for each in sessions if who in each.counts]
    return session


# -- forks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_forked_child_records_in_a_session_of_its_own(tmp_path: Path, sealed: bool) -> None:
    family, sessions = await played("fork", tmp_path, sealed=sealed)
    assert family.status == 0
    assert "could not be sealed" not in family.errors
    parent = of(sessions, "parent")
    assert (parent.counts, parent.reason, parent.parent) == ({"parent": 150}, "stopped", None)
    for who in ("exits-hard", "exits-in-order", "child", "killed"):
        assert of(sessions, who).parent == parent.session_id
        assert set(of(sessions, who).counts) == {who}
    assert of(sessions, "grandchild").parent == of(sessions, "child").session_id
    # An end in order is told from a crash, though nobody has stopped.
    assert of(sessions, "exits-in-order").reason == "stopped"
    assert of(sessions, "exits-hard").reason == of(sessions, "killed").reason == "crashed"
    assert of(sessions, "grandchild-of-a-silent-one").parent == parent.session_id
    # Those that did not record have no session: seven processes did, and the one that took them up.
    assert len(sessions) == 8


async def test_a_child_that_leaves_through_the_parents_loop_does_not_stop_that(tmp_path: Path) -> None:
    with Play("fork_inside_the_loop", tmp_path) as play:
        await asyncio.to_thread(play.until, "flushed")
        family = await asyncio.to_thread(play.to_the_end)
    assert family.status == 0
    assert "could not be sealed" not in family.errors, "the parent's loop was not told that its session is sealed"
    await recover_all(tmp_path)
    sessions = kept(tmp_path)
    assert_all_kept(family, sessions)
    assert of(sessions, "parent").counts == {"parent": 40}
    for who in ("raises", "exits-hard"):
        assert of(sessions, who).parent == of(sessions, "parent").session_id


async def test_a_server_that_preloads_the_application_and_forks_its_workers(tmp_path: Path) -> None:
    family, sessions = await played("preload", tmp_path)
    assert family.status == 0
    parent = of(sessions, "parent")
    assert (parent.counts, parent.reason) == ({"parent": 40}, "stopped")
    for who in ("w1", "w2", "w3", "w4"):
        assert (of(sessions, who).reason, of(sessions, who).parent) == ("stopped", parent.session_id)
    assert of(sessions, "killed").reason == "crashed"


async def test_a_child_is_started_while_its_first_record_begins_a_session(tmp_path: Path) -> None:
    family, sessions = await played("start_in_a_child_whose_thread_begins", tmp_path)
    assert family.status == 0, family.errors
    assert of(sessions, "child") == of(sessions, "thread")
    assert of(sessions, "child").parent == of(sessions, "parent").session_id
    assert of(sessions, "child").reason == "stopped"


async def test_workers_that_start_what_their_parent_has_only_made(tmp_path: Path) -> None:
    _, sessions = await played("preload_before_start", tmp_path)
    assert {frozenset(each.counts.items()) for each in sessions} == {
        frozenset({(who, 40)}) for who in ("w1", "w2", "w3")
    } | {frozenset()}
    assert all(each.parent is None for each in sessions)


async def test_a_fork_while_other_threads_record(tmp_path: Path) -> None:
    family, sessions = await played("fork_among_threads", tmp_path)
    assert family.status == 0
    assert of(sessions, "thread-0") == of(sessions, "thread-2")
    for at in range(12):
        assert of(sessions, f"child-{at}").counts == {f"child-{at}": 20, f"child-{at}-thread": 20}


async def test_a_fork_while_the_lock_is_held_by_a_thread_that_the_child_has_not(tmp_path: Path) -> None:
    family, sessions = await played("fork_with_the_lock_held", tmp_path)
    assert family.status == 0
    assert of(sessions, "child").counts == {"child": 40}
    assert of(sessions, "parent").counts == {"parent": 20}


async def test_a_fork_while_another_thread_makes_what_reads_sessions(tmp_path: Path) -> None:
    family, sessions = await played("fork_while_a_decoder_is_made", tmp_path)
    assert family.status == 0, family.errors
    assert {who: of(sessions, who).reason for who in ("first", "second")} == {"first": "crashed", "second": "crashed"}
    for who in ("child", "parent"):
        assert (of(sessions, who).counts, of(sessions, who).reason) == ({who: 20}, "stopped")


async def test_a_signal_handler_that_records_in_a_child_just_born(tmp_path: Path) -> None:
    at_once = "import os, signal; os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGUSR1))"
    with Play("signalled_as_it_is_born", tmp_path, before=at_once) as play:
        family = await asyncio.to_thread(play.to_the_end)
    assert family.status == 0, family.errors
    await recover_all(tmp_path)
    sessions = kept(tmp_path)
    assert of(sessions, "parent").counts == {"parent": 100}
    assert len([each for each in sessions if each.counts == {"handler": 1}]) == 10


async def test_a_child_that_outlives_its_parent(tmp_path: Path) -> None:
    with Play("child_outlives_parent", tmp_path) as play:
        await asyncio.to_thread(play.until, "child")
        # The parent is dead, and taken up though its child lives; the child's session is not.
        await recover_all(tmp_path)
        early = kept(tmp_path)
        assert of(early, "parent").counts == {"parent": 40}
        assert not [each for each in early if "child" in each.counts]
        assert play.process.stdin is not None
        play.process.stdin.write(b"\n")
        play.process.stdin.close()
        family = await asyncio.to_thread(play.to_the_end)
    await recover_all(tmp_path)
    sessions = kept(tmp_path)
    assert_all_kept(family, sessions)
    assert of(sessions, "child").parent == of(sessions, "parent").session_id
    assert of(sessions, "child").counts == {"child": 60}


async def test_programs_that_are_executed_have_agents_of_their_own_and_no_lock_of_ours(tmp_path: Path) -> None:
    with Play("execute", tmp_path) as play:
        bystander = await asyncio.to_thread(play.until, "bystander")
        family = await asyncio.to_thread(play.to_the_end)
        os.kill(bystander, 0)  # it lives
        await recover_all(tmp_path)
        sessions = kept(tmp_path)
    assert family.status == -signal.SIGKILL
    assert_all_kept(family, sessions)
    assert of(sessions, "parent").reason == "crashed"
    for who in ("executed", "spawned"):
        assert (of(sessions, who).reason, of(sessions, who).parent) == ("stopped", None)


async def test_children_of_multiprocessing_that_nobody_stops(tmp_path: Path) -> None:
    family, sessions = await played("multiprocess", tmp_path)
    assert family.status == 0
    for who in ("forked-0", "forked-1"):
        assert (of(sessions, who).reason, of(sessions, who).counts) == ("stopped", {who: 30})
    assert of(sessions, "spawned").reason == "stopped"
    pooled = [each for each in sessions if any(who.startswith("pooled") for who in each.counts)]
    assert sum(sum(each.counts.values()) for each in pooled) == 120
    assert 1 <= len(pooled) <= 2


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["closed_loop", "stopped_in_another_loop", "daemon_threads", "exit_handlers"])
async def test_a_process_that_ends_in_order_though_nobody_stops_in_the_loop(tmp_path: Path, name: str) -> None:
    family, sessions = await played(name, tmp_path)
    assert family.status == 0
    assert sum(family.told.values()) >= 30
    (session,) = [each for each in sessions if each.counts]
    assert session.reason == "stopped"
    assert session.records == sum(session.counts.values())


@pytest.mark.parametrize(
    ("how", "sent", "status", "reason"),
    [
        ("nothing", signal.SIGTERM, -signal.SIGTERM, "crashed"),
        ("nothing", signal.SIGINT, -signal.SIGINT, "stopped"),
        ("cancelled", signal.SIGINT, -signal.SIGINT, "stopped"),
        ("exit", signal.SIGTERM, 3, "stopped"),
        ("loop", signal.SIGTERM, 0, "stopped"),
        ("nothing", signal.SIGKILL, -signal.SIGKILL, "crashed"),
    ],
)
async def test_a_process_that_is_ended_by_a_signal(
    tmp_path: Path, how: str, sent: signal.Signals, status: int, reason: str
) -> None:
    with Play("signalled", tmp_path, how=how) as play:
        pid = await asyncio.to_thread(play.until, "parent")
        await asyncio.to_thread(play.until_told, "parent", 200)
        os.kill(pid, sent)
        family = await asyncio.to_thread(play.to_the_end)
    assert family.status == status, family.errors
    await recover_all(tmp_path)
    sessions = kept(tmp_path)
    assert_all_kept(family, sessions)
    assert of(sessions, "parent").reason == reason


async def test_stop_ends_within_its_time_though_the_server_hangs(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await forever.wait()
        writer.close()

    forever = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    before = time.monotonic()
    try:
        with Play("alone", tmp_path, "it", server=url, api_key="mbk_x", stop_timeout=0.5) as play:
            family = await asyncio.to_thread(play.to_the_end)
    finally:
        forever.set()
        server.close()
        await server.wait_closed()
    assert begun.is_set(), "it did not even try"
    assert family.status == 0, family.errors
    assert time.monotonic() - before < 30.0, "half a second was its time; a machine under load may take many times that"
    (session,) = kept(tmp_path)
    assert_all_kept(family, [session])
    assert session.reason == "stopped"


# -- at random -------------------------------------------------------------------------------------------------------


async def random_family(store: Path, seed: int) -> None:
    with Play("random_tree", store, seed=seed, sealed=seed % 3 == 0) as play:
        family = await asyncio.to_thread(play.to_the_end)
    assert "Traceback" not in family.errors, family.errors
    await recover_all(store)
    assert_all_kept(family, kept(store))
    assert sum(family.told.values()) > 0


@pytest.mark.parametrize("turn", range(5))
async def test_processes_that_do_anything_at_random(tmp_path: Path, seed: int, turn: int) -> None:
    await random_family(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(1000))
async def test_soak_processes_that_do_anything_at_random(tmp_path: Path, seed: int, turn: int) -> None:
    await random_family(tmp_path, seed)
