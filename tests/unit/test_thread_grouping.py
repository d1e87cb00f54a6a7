"""Aim: a thread serves groups one after another, every caller gets its own result, and every bound holds. Method: a run
function that waits for the test, so that the test decides what arrives meanwhile."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from infra.errors import Refusal
from infra.heartbeat import Heartbeat
from infra.thread_grouping import ThreadGrouper

SECONDS = 5


class Gate:
    """A run function that records its groups and finishes each when told."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.started: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.allowed: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run(self, items: list[int]) -> list[int]:
        self.groups.append(items)
        self.started.put(None)
        self.allowed.get(timeout=SECONDS)
        if min(items) < 0:
            raise ValueError(items)
        return [item * 10 for item in items]

    def allow(self, groups: int) -> None:
        for _ in range(groups):
            self.allowed.put(None)

    async def has_started(self) -> None:
        await asyncio.to_thread(self.started.get, timeout=SECONDS)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def make(gate: Gate) -> AsyncIterator[Callable[..., ThreadGrouper[int, int]]]:
    """Groupers that end with the test."""
    made: list[ThreadGrouper[int, int]] = []

    def new(**bounds: Any) -> ThreadGrouper[int, int]:
        usual = {"group_max": 100, "queue_max": 100, "weigh": lambda _: 1, "heartbeat": Heartbeat(60), "name": "queue"}
        bounds = {**usual, **bounds}
        made.append(ThreadGrouper(gate.run, **bounds))
        return made[-1]

    yield new
    gate.allow(100)
    for grouper in made:
        await asyncio.wait_for(grouper.close(), SECONDS)


async def results_of(*futures: asyncio.Future[int]) -> list[int]:
    return await asyncio.wait_for(asyncio.gather(*futures), SECONDS)


async def test_what_arrives_meanwhile_forms_the_next_group(gate: Gate, make: Callable[..., Any]) -> None:
    """An idle grouper starts at once; what comes while it works goes together, in order."""
    grouper = make()
    first = grouper.submit(1)
    await gate.has_started()
    rest = [grouper.submit(item) for item in (2, 3, 4)]
    gate.allow(2)
    assert await results_of(first, *rest) == [10, 20, 30, 40]
    assert gate.groups == [[1], [2, 3, 4]]


async def test_weights_bound_a_group_and_the_heavy_go_alone(gate: Gate, make: Callable[..., Any]) -> None:
    """Weights bound a group's sum; an item over it is a group of its own."""
    grouper = make(group_max=10, queue_max=1_000, weigh=lambda item: item)
    first = grouper.submit(1)
    await gate.has_started()
    rest = [grouper.submit(item) for item in (4, 5, 3, 99, 2)]
    gate.allow(5)
    await results_of(first, *rest)
    assert gate.groups == [[1], [4, 5], [3], [99], [2]]


async def test_a_full_queue_refuses_at_once(gate: Gate, make: Callable[..., Any]) -> None:
    """Beyond queue_max a caller is told to come later; what was taken is served, and then there is room again."""
    grouper = make(queue_max=2)
    first = grouper.submit(1)
    await gate.has_started()
    waiting = [grouper.submit(item) for item in (2, 3)]
    assert grouper.full
    with pytest.raises(Refusal) as caught:
        grouper.submit(4)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    gate.allow(3)
    assert await results_of(first, *waiting) == [10, 20, 30]
    assert not grouper.full
    assert await results_of(grouper.submit(5)) == [50]


async def test_a_caller_who_left_is_dropped_before_its_group_and_forgotten_after(
    gate: Gate, make: Callable[..., Any]
) -> None:
    """Cancelled while it waits: never worked on. Cancelled under way: worked on, and nobody minds."""
    grouper = make()
    under_way = grouper.submit(1)
    await gate.has_started()
    left, stays = grouper.submit(2), grouper.submit(3)
    left.cancel()
    under_way.cancel()
    gate.allow(2)
    assert await results_of(stays) == [30]
    assert gate.groups == [[1], [3]]
    assert not grouper.full


async def test_close_works_on_what_waits_and_takes_nothing_new(gate: Gate, make: Callable[..., Any]) -> None:
    """What was taken before the end is served, in groups as ever; later callers are told to come again."""
    grouper = make(group_max=2)
    first = grouper.submit(1)
    await gate.has_started()
    waiting = [grouper.submit(item) for item in (2, 3, 4)]
    closing = [asyncio.ensure_future(grouper.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Refusal) as caught:
        grouper.submit(5)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert not closing[0].done()
    gate.allow(3)
    assert await results_of(first, *waiting) == [10, 20, 30, 40]
    await asyncio.wait_for(asyncio.gather(*closing), SECONDS)
    assert gate.groups == [[1], [2, 3], [4]]


async def test_an_error_goes_to_its_group_and_the_thread_goes_on(gate: Gate, make: Callable[..., Any]) -> None:
    """Every caller of the group gets it; the next group is served."""
    grouper = make()
    first = grouper.submit(1)
    await gate.has_started()
    bad = [grouper.submit(item) for item in (-1, 2)]
    gate.allow(2)
    assert await results_of(first) == [10]
    for future in bad:
        with pytest.raises(ValueError, match="-1, 2"):
            await asyncio.wait_for(future, SECONDS)
    gate.allow(1)
    assert await results_of(grouper.submit(3)) == [30]


async def test_a_group_that_hangs_is_a_stalled_thread_and_an_idle_thread_is_none(
    gate: Gate, make: Callable[..., Any]
) -> None:
    """The heartbeat tells the seconds of a group under way that are too many; nothing is due while nothing waits."""
    heartbeat = Heartbeat(0.05)
    grouper = make(heartbeat=heartbeat)
    future = grouper.submit(1)
    await gate.has_started()
    async with asyncio.timeout(SECONDS):
        while not heartbeat.stalled_seconds:  # noqa: ASYNC110 - time is what is awaited
            await asyncio.sleep(0.01)
    gate.allow(1)
    assert await results_of(future) == [10]
    async with asyncio.timeout(SECONDS):
        while heartbeat.stalled_seconds:  # noqa: ASYNC110 - the thread rests after its answer
            await asyncio.sleep(0.01)
    # Longer than a sign of life may take: an idle thread owes none.
    await asyncio.sleep(0.1)
    assert heartbeat.stalled_seconds == 0
