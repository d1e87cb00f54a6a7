"""Aim: items are served in groups, each caller gets its own outcome, and every bound holds. Method: a run function
that waits for the test, so that the test decides what arrives meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from infra.errors import Refusal
from infra.grouping import Grouper, isolating
from infra.heartbeat import Heartbeat


class Gate:
    """A run function that records its groups and finishes each when told."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.started = asyncio.Semaphore(0)
        self.allowed = asyncio.Semaphore(0)

    async def run(self, items: list[int]) -> Sequence[int | Exception]:
        self.groups.append(items)
        self.started.release()
        await self.allowed.acquire()
        return [ValueError(str(item)) if item < 0 else item * 10 for item in items]


@pytest.fixture
async def gate() -> Gate:
    return Gate()


async def test_what_arrives_meanwhile_forms_the_next_group(gate: Gate) -> None:
    """An idle grouper starts at once; what comes while it works goes together, in order."""
    grouper = Grouper(gate.run, group_max=100, queue_max=100)
    first = grouper.submit_nowait(1)
    await asyncio.wait_for(gate.started.acquire(), 1)
    rest = [grouper.submit_nowait(item) for item in (2, 3, 4)]
    gate.allowed.release()
    gate.allowed.release()
    assert await asyncio.wait_for(asyncio.gather(first, *rest), 1) == [10, 20, 30, 40]
    assert gate.groups == [[1], [2, 3, 4]]


async def test_callers_that_wake_together_share_the_first_group(gate: Gate) -> None:
    """Submissions of one turn of the loop are one group, also when nothing is under way."""
    grouper = Grouper(gate.run, group_max=100, queue_max=100)
    gate.allowed.release()
    results = await asyncio.wait_for(asyncio.gather(*(grouper.submit(item) for item in range(5))), 1)
    assert results == [0, 10, 20, 30, 40]
    assert gate.groups == [[0, 1, 2, 3, 4]]


async def test_items_that_come_in_numbers_are_gathered() -> None:
    """After a group of many the next one starts only when its time has come, with all that came meanwhile."""
    groups: list[list[int]] = []
    started: list[float] = []

    async def run(items: list[int]) -> list[int]:
        groups.append(items)
        started.append(asyncio.get_running_loop().time())
        return items

    grouper = Grouper(run, group_max=100, queue_max=100, gather_seconds=0.05)
    await asyncio.wait_for(asyncio.gather(*(grouper.submit(item) for item in range(10))), 1)
    first = grouper.submit_nowait(10)
    await asyncio.sleep(0.01)
    await asyncio.wait_for(asyncio.gather(first, grouper.submit(11)), 1)
    assert groups == [list(range(10)), [10, 11]]
    assert started[1] - started[0] >= 0.045


async def test_one_heavy_item_says_that_many_come() -> None:
    """What is gathered for is weight: after a single item of much of it the next group waits for its time."""
    started: list[float] = []

    async def run(items: list[int]) -> list[int]:
        started.append(asyncio.get_running_loop().time())
        return items

    grouper = Grouper(run, group_max=100, queue_max=100, weigh=lambda item: item, gather_seconds=0.05)
    for _ in range(2):
        await asyncio.wait_for(grouper.submit(10), 1)
    assert started[1] - started[0] >= 0.045


async def test_an_item_that_comes_alone_does_not_wait() -> None:
    """One after another, each starts at once, and so does what waits when the grouper closes or a group is full."""

    async def run(items: list[int]) -> list[int]:
        return items

    grouper = Grouper(run, group_max=8, queue_max=100, gather_seconds=30)
    for item in range(3):
        assert await asyncio.wait_for(grouper.submit(item), 1) == item
    await asyncio.wait_for(asyncio.gather(*(grouper.submit(item) for item in range(16))), 1)
    late = grouper.submit_nowait(3)
    await asyncio.sleep(0)
    await asyncio.wait_for(grouper.close(), 1)
    assert late.result() == 3


async def test_groups_and_groups_under_way_are_bounded(gate: Gate) -> None:
    """No group exceeds group_max and no more than in_flight_max run at once."""
    grouper = Grouper(gate.run, group_max=2, queue_max=100, in_flight_max=2)
    futures = [grouper.submit_nowait(item) for item in range(7)]
    for _ in range(2):
        await asyncio.wait_for(gate.started.acquire(), 1)
    await asyncio.sleep(0)
    assert gate.groups == [[0, 1], [2, 3]]
    for _ in range(4):
        gate.allowed.release()
    assert await asyncio.wait_for(asyncio.gather(*futures), 1) == [item * 10 for item in range(7)]
    assert gate.groups == [[0, 1], [2, 3], [4, 5], [6]]


async def test_weights_bound_a_group_and_the_heavy_go_alone(gate: Gate) -> None:
    """With weights group_max bounds their sum; an item over it is a group of its own."""
    grouper = Grouper(gate.run, group_max=10, queue_max=1_000, weigh=lambda item: item)
    futures = [grouper.submit_nowait(item) for item in (4, 5, 3, 99, 1)]
    for _ in range(4):
        gate.allowed.release()
    await asyncio.wait_for(asyncio.gather(*futures), 1)
    assert gate.groups == [[4, 5], [3], [99], [1]]


async def test_a_full_queue_refuses_at_once(gate: Gate) -> None:
    """Beyond queue_max waiting items a caller gets RESOURCE_EXHAUSTED; those that wait are served."""
    grouper = Grouper(gate.run, group_max=1, queue_max=2, name="letters")
    under_way = grouper.submit_nowait(1)
    await asyncio.wait_for(gate.started.acquire(), 1)
    waiting = [grouper.submit_nowait(2), grouper.submit_nowait(3)]
    with pytest.raises(Refusal) as caught:
        await grouper.submit(4)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "letters" in caught.value.message
    for _ in range(3):
        gate.allowed.release()
    assert await asyncio.wait_for(asyncio.gather(under_way, *waiting), 1) == [10, 20, 30]


async def test_each_item_has_its_own_outcome(gate: Gate) -> None:
    """An exception in the results reaches its item alone; what run raises reaches the whole group."""
    grouper = Grouper(gate.run, group_max=10, queue_max=10)
    gate.allowed.release()
    good, bad = grouper.submit_nowait(1), grouper.submit_nowait(-2)
    assert await asyncio.wait_for(good, 1) == 10
    with pytest.raises(ValueError, match="-2"):
        await asyncio.wait_for(bad, 1)

    tries = 0

    async def broken_once(items: list[int]) -> Sequence[int | Exception]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("gone")
        return items

    other: Grouper[int, int] = Grouper(broken_once, group_max=10, queue_max=10)
    outcomes = await asyncio.wait_for(asyncio.gather(other.submit(1), other.submit(2), return_exceptions=True), 1)
    assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
    assert await asyncio.wait_for(other.submit(3), 1) == 3


async def test_a_wrong_number_of_results_is_an_error(gate: Gate) -> None:
    """Results that do not fit their items never reach the wrong caller."""

    async def short(items: list[int]) -> Sequence[int | Exception]:
        return items[1:]

    grouper: Grouper[int, int] = Grouper(short, group_max=10, queue_max=10)
    with pytest.raises(AssertionError):
        await asyncio.wait_for(grouper.submit(1), 1)


async def test_cancelled_items_are_dropped_before_their_group(gate: Gate) -> None:
    """Who gave up while waiting costs nothing; who gave up later disturbs nobody."""
    grouper = Grouper(gate.run, group_max=10, queue_max=10)
    started = grouper.submit_nowait(1)
    await asyncio.wait_for(gate.started.acquire(), 1)
    dropped, kept = grouper.submit_nowait(2), grouper.submit_nowait(3)
    dropped.cancel()
    started.cancel()
    gate.allowed.release()
    gate.allowed.release()
    assert await asyncio.wait_for(kept, 1) == 30
    assert gate.groups == [[1], [3]]


async def test_close_drains_and_then_refuses(gate: Gate) -> None:
    """Closing serves everything that waits before it returns; afterwards UNAVAILABLE."""
    grouper = Grouper(gate.run, group_max=1, queue_max=10)
    futures = [grouper.submit_nowait(item) for item in (1, 2, 3)]
    closing = asyncio.ensure_future(grouper.close())
    await asyncio.wait_for(gate.started.acquire(), 1)
    assert not closing.done()
    for _ in range(3):
        gate.allowed.release()
    await asyncio.wait_for(closing, 1)
    assert [future.result() for future in futures] == [10, 20, 30]
    with pytest.raises(Refusal) as caught:
        await grouper.submit(4)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_isolating_leaves_the_error_with_the_bad_item() -> None:
    """A bad item among many fails alone; the good ones get their results in order; an outage fails all."""
    groups: list[int] = []

    async def strict(items: list[int]) -> Sequence[int | Exception]:
        groups.append(len(items))
        if 13 in items:
            raise ValueError("13")
        if 99 in items:
            raise OSError("down")
        return [item * 2 for item in items]

    run = isolating(strict, (OSError,))
    results = await run([1, 2, 13, 4, 5])
    assert [result for result in results if not isinstance(result, Exception)] == [2, 4, 8, 10]
    assert isinstance(results[2], ValueError)
    assert len(groups) <= 7
    with pytest.raises(OSError, match="down"):
        await run([1, 99, 2])


async def test_a_group_that_hangs_is_told_while_others_go_on() -> None:
    """The heartbeat shows the oldest group under way, and nothing when there is none."""
    heartbeat, hanging = Heartbeat(0.05), asyncio.Event()

    async def run(items: list[int]) -> Sequence[int]:
        if items[0] == 0:
            await hanging.wait()
        return items

    grouper = Grouper(run, group_max=1, queue_max=100, in_flight_max=2, heartbeat=heartbeat)
    assert heartbeat.stalled_seconds == 0
    first = grouper.submit_nowait(0)
    async with asyncio.timeout(10):
        while heartbeat.stalled_seconds <= 0.1:
            assert await grouper.submit(1) == 1
            await asyncio.sleep(0.01)
    hanging.set()
    assert await asyncio.wait_for(first, 1) == 0
    await asyncio.wait_for(grouper.submit(2), 1)
    await grouper.close()
    await asyncio.sleep(0.1)
    assert heartbeat.stalled_seconds == 0
