"""How much may be sent: no day's budget is exceeded, whatever clocks and processes do; no second's rate either."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.agent.allowance import BURST, DAY, Budget, Rate, day_of
from mailboat.agent.clocks import Clocks
from mailboat.agent.traffic import FILE_NAME, BudgetFile, Grant, Held, Traffic
from testkit.disk import Disk, Unsynced, always

KIB = 1024


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 10)), max_size=60), st.integers(1, 10**6))
def test_a_rate_is_kept_over_any_time(sendings: list[tuple[int, float]], per_second: int) -> None:
    rate, now, log = Rate(per_second), 0.0, list[tuple[float, int]]()
    for count, pause in sendings:
        now += pause
        rate, wait = rate.take(count, now)
        log.append((now + wait, count))
    for at, (begun, _) in enumerate(log):
        total = 0
        for ended, count in log[at:]:
            total += count
            allowed = (ended - begun) * per_second + max(1, per_second * BURST) + log[at][1]
            assert total <= allowed * 1.0001 + 1


def test_a_budget_begins_anew_with_the_day_and_gives_nothing_back_to_a_clock_that_goes_back() -> None:
    spent = Budget(100, day=7).spend(80)
    assert (spent.left, spent.on(7).left, spent.on(8).left, spent.on(6).left) == (20, 20, 100, 20)
    assert spent.on(6).on(7).left == 20
    assert (spent.on(3).left, spent.on(3).on(4).left) == (20, 100)
    assert Budget(100).spend(-5).spent == 0
    assert Budget(100).spend(500).left == 0


class Wall:
    """A clock on the wall that a test sets."""

    def __init__(self) -> None:
        self.now = 100 * DAY + 3600.0

    def clocks(self, east: Callable[[float], float] = lambda _: 0.0) -> Clocks:
        return Clocks(monotonic=lambda: 0, wall=lambda: int(self.now * 1e9), east=east)


@pytest.fixture
def wall() -> Wall:
    return Wall()


def traffic(wall: Wall, folder: Path, limit: int, disk: ThreadPoolExecutor) -> Traffic:
    return Traffic(wall.clocks(), file=BudgetFile(Unsynced(), folder, limit), disk=disk)


async def test_processes_that_die_at_any_point_never_exceed_a_day(wall: Wall, tmp_path: Path, seed: int) -> None:
    draw, limit, by_day = random.Random(seed), 400 * KIB, dict[int, int]()
    with ThreadPoolExecutor(1) as disk:
        process = traffic(wall, tmp_path, limit, disk)
        for _ in range(600):
            what = draw.random()
            if what < 0.05:
                process = traffic(wall, tmp_path, limit, disk)  # the other one was killed
            elif what < 0.1:
                wall.now += draw.uniform(0, DAY)
            else:
                granted = await process.grant(draw.randrange(1, 30 * KIB))
                if isinstance(granted, Grant):
                    sent = draw.randrange(granted.count + 1)
                    wall.now += draw.choice([0.0, 0.0, 0.0, DAY])
                    by_day[granted.day] = by_day.get(granted.day, 0) + sent
                    process.give_back(granted, sent)
    assert by_day
    assert max(by_day.values()) <= limit
    assert sum(by_day.values()) > limit, "a budget that lets nothing pass holds, too"


async def test_what_is_spent_is_spent_until_midnight_of_the_place(wall: Wall, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as disk:
        east = 5 * 3600.0
        process = Traffic(wall.clocks(lambda _: east), file=BudgetFile(Unsynced(), tmp_path, 1000), disk=disk)
        assert await process.grant(700) == Grant(700, day_of(wall.now + east))
        assert await process.grant(700) == Grant(300, day_of(wall.now + east))
        held = await process.grant(1)
        assert held == Held(18 * 3600.0, "the budget of 1000 bytes a day is spent")
        wall.now += held.after
        assert isinstance(await process.grant(1), Grant)


async def test_less_than_is_of_use_is_not_granted_and_not_spent(wall: Wall, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as disk:
        process = traffic(wall, tmp_path, 1000, disk)
        assert isinstance(await process.grant(900, least=900), Grant)
        assert isinstance(await process.grant(500, least=500), Held)
        assert isinstance(await process.grant(100, least=100), Grant)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"day": "x", "spent": 1}', b"\xff" * 100, b"[" * 10**5])
async def test_a_damaged_file_begins_anew(wall: Wall, tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with ThreadPoolExecutor(1) as disk:
        assert isinstance(await traffic(wall, tmp_path, 1000, disk).grant(1000), Grant)
        assert isinstance(await traffic(wall, tmp_path, 1000, disk).grant(1), Held)


async def test_a_disk_that_fails_stops_no_delivery_and_gives_no_second_budget(wall: Wall, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as disk:
        unwritable = Disk(always("replace_content"))
        process = Traffic(wall.clocks(), file=BudgetFile(unwritable.files, tmp_path, 1000), disk=disk)
        assert isinstance(await process.grant(1000), Grant)
        assert isinstance(await process.grant(1), Held)
        unreadable = Disk(always("read"), failing=frozenset({"read"}))
        process = Traffic(wall.clocks(), file=BudgetFile(unreadable.files, tmp_path, 1000), disk=disk)
        held = await process.grant(1)
        assert isinstance(held, Held)
        assert "cannot be read" in held.reason


async def test_the_server_may_ask_for_less_but_not_for_more(wall: Wall) -> None:
    own = Traffic(wall.clocks(), rate=10_000)
    pieces = []
    for asked in (None, 2_000, 50_000, None):
        own.ask(asked)
        pieces.append(own.piece)
    assert pieces == [2500, 500, 2500, 2500]
    free = Traffic(wall.clocks())
    assert not free.paced
    free.ask(4_000)
    assert (free.paced, free.piece) == (True, 1000)
    free.ask(None)
    assert not free.paced


async def test_without_limits_nothing_waits(wall: Wall) -> None:
    free = Traffic(wall.clocks())
    async with asyncio.timeout(10):
        await free.pace(10**12)
        assert await free.grant(10**12) == Grant(10**12)
