"""Aim: no loop dies, hangs unnoticed or outlives its stop. Method: loops of a few lines, told what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from infra.heartbeat import Watchdog
from workers.loops import Loops


@pytest.fixture
def watchdog() -> Watchdog:
    return Watchdog(0.2)


@pytest.fixture
async def loops(watchdog: Watchdog) -> AsyncIterator[Loops]:
    running = Loops(retry_seconds_max=0.05, watchdog=watchdog)
    yield running
    await running.stop(1)


async def test_a_loop_that_fails_goes_on(loops: Loops) -> None:
    """An outage and an error of ours are both followed by another turn."""
    turns: list[int] = []
    done = asyncio.Event()

    async def step() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            raise RedisConnectionError("gone")
        if len(turns) == 2:
            raise ValueError("a mistake")
        done.set()

    loops.add("a", step, interval_seconds=0.01)
    await asyncio.wait_for(done.wait(), 5)


async def test_a_loop_turns_when_woken_and_at_once_when_it_says_so(loops: Loops) -> None:
    """A notice ends the wait, also one that comes during a turn; True means another turn now."""
    wake, turned = asyncio.Event(), asyncio.Semaphore(0)
    more = [True, True, False]

    async def step() -> bool:
        turned.release()
        if len(more) == 1:
            wake.set()
        return more.pop(0) if more else False

    loops.add("a", step, interval_seconds=60, wake=wake)
    for _ in range(4):
        await asyncio.wait_for(turned.acquire(), 5)
    wake.set()
    await asyncio.wait_for(turned.acquire(), 5)


async def test_loops_that_hang_die_or_only_fail_are_stalled(loops: Loops, watchdog: Watchdog) -> None:
    """The watchdog names those without a finished turn for too long, and for how long; only those, and none stopped."""

    async def good() -> None:
        pass

    async def hanging() -> None:
        await asyncio.Event().wait()

    async def failing() -> None:
        raise OSError("down")

    loops.add("good", good, interval_seconds=0.01)
    loops.add("hanging", hanging, interval_seconds=0.01)
    loops.add("failing", failing, interval_seconds=0.01)
    dead = loops.add("dead", good, interval_seconds=0.01)
    assert watchdog.stalled() == {}
    assert dead.task is not None
    dead.task.cancel()
    async with asyncio.timeout(5):
        while len(watchdog.stalled()) < 3:  # noqa: ASYNC110 - time is what is awaited
            await asyncio.sleep(0.02)
    stalled = watchdog.stalled()
    assert sorted(stalled) == ["dead", "failing", "hanging"]
    assert min(stalled.values()) > 0.2
    await loops.stop(0)
    assert watchdog.stalled() == {}


async def test_a_stop_lets_a_turn_finish_and_cancels_one_that_hangs() -> None:
    """Within its time a turn ends by itself; afterwards it is cancelled."""
    loops = Loops(retry_seconds_max=1, watchdog=Watchdog(1))
    started, finished = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        started.set()
        await asyncio.sleep(0.05)
        finished.set()

    async def hanging() -> None:
        await asyncio.Event().wait()

    loops.add("slow", slow, interval_seconds=60)
    loops.add("hanging", hanging, interval_seconds=60)
    await asyncio.wait_for(started.wait(), 5)
    await asyncio.wait_for(loops.stop(0.3), 5)
    assert finished.is_set()
