"""Aim: nobody's backlog delays another, and every bound holds. Method: turns are pure logic, so a test plays the reader
and, for longer runs, a model of queues with known contents."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from workers.turns import Slots, SlotsClosed, Turns


def turns(*, quantum: int = 4, window: int = 8, in_hand_max: int = 100, reserve: int = 8) -> Turns[str]:
    return Turns(quantum=quantum, window=window, in_hand_max=in_hand_max, reserve=reserve)


def test_queues_take_turns_of_a_quantum() -> None:
    """Two queues with backlogs alternate, a quantum each; one that is empty leaves the ring."""
    ring = turns(window=100)
    for queue in ("a", "b"):
        ring.offer(queue)
    order = []
    for got in (4, 4, 4, 1):
        turn = ring.take()
        assert turn is not None
        queue, allowed = turn
        order.append(queue)
        ring.read(queue, allowed=allowed, got=got)
    assert order == ["a", "b", "a", "b"]
    assert ring.in_hand_of("a") == 8
    assert ring.in_hand_of("b") == 5
    turn = ring.take()
    assert turn == ("a", 4)
    ring.read("a", allowed=4, got=0)
    assert ring.take() is None


def test_a_window_bounds_what_one_queue_has_in_hand() -> None:
    """A queue alone gets its window and no more until a part of it is done."""
    ring = turns()
    ring.offer("a")
    for _ in range(2):
        queue, allowed = ring.take() or ("", 0)
        ring.read(queue, allowed=allowed, got=allowed)
    assert ring.in_hand == 8
    assert ring.take() is None
    ring.done("a")
    assert ring.take() is None, "one entry is not worth a read"
    ring.done("a")
    assert ring.take() == ("a", 2)


def test_a_newcomer_is_read_when_others_have_everything() -> None:
    """Backlogs that have in hand what is allowed do not keep one with nothing in hand waiting."""
    ring = turns(quantum=4, window=100, in_hand_max=16, reserve=4)
    for queue in ("a", "b"):
        ring.offer(queue)
    while (turn := ring.take()) is not None:
        ring.read(turn[0], allowed=turn[1], got=turn[1])
    assert ring.in_hand == 16
    ring.offer("new")
    turn = ring.take()
    assert turn == ("new", 4)
    ring.read("new", allowed=4, got=4)
    assert ring.take() is None, "the reserve is for those with nothing in hand"


def test_what_is_offered_during_a_read_is_not_forgotten() -> None:
    """An entry pushed while a read found its queue empty is read next."""
    ring = turns()
    ring.offer("a")
    assert ring.take() == ("a", 4)
    ring.offer("a")
    ring.read("a", allowed=4, got=0)
    assert not ring.is_idle("a")
    assert ring.take() == ("a", 4)


def test_dropped_and_forgotten_queues() -> None:
    """A dropped queue is read no more though entries of it are in hand; it is idle and forgotten when they are done."""
    ring = turns()
    ring.offer("a")
    ring.take()
    ring.read("a", allowed=4, got=4)
    ring.drop("a")
    assert ring.take() is None
    ring.done("a", 4)
    assert ring.is_idle("a")
    ring.forget("a")
    assert ring.in_hand == 0
    ring.done("a")
    assert ring.in_hand == 0, "what is not known is not counted"


@pytest.mark.parametrize("seed", range(5))
def test_any_course_keeps_the_bounds_and_ends(seed: int) -> None:
    """Random backlogs and completions: windows and totals hold, everything is read once, small queues end early."""
    chance = random.Random(seed)
    ring = turns(quantum=3, window=6, in_hand_max=20, reserve=6)
    contents = {f"q{number}": chance.choice([1, 2, 5, 200]) for number in range(12)}
    left = dict(contents)
    in_hand: Counter[str] = Counter()
    ended: list[str] = []
    for queue in left:
        ring.offer(queue)
    for _ in range(20_000):
        turn = ring.take()
        if turn is not None:
            queue, allowed = turn
            assert 1 <= allowed <= 3
            got = min(allowed, left[queue])
            left[queue] -= got
            in_hand[queue] += got
            ring.read(queue, allowed=allowed, got=got)
        assert in_hand.total() == ring.in_hand <= 26
        assert max(in_hand.values(), default=0) <= 6
        if in_hand.total() and (turn is None or chance.random() < 0.5):
            queue = chance.choice([queue for queue, count in in_hand.items() if count])
            in_hand[queue] -= 1
            ring.done(queue)
            if not in_hand[queue] and not left[queue]:
                ended.append(queue)
        if not any(left.values()) and not in_hand.total():
            break
    assert not any(left.values())
    small = [queue for queue in contents if contents[queue] <= 5]
    assert set(ended[: len(small)]) == set(small)


async def test_free_slots_go_round_the_queues() -> None:
    """A queue with one call waiting gets the next slot but one, however many calls another has waiting."""
    slots: Slots[str] = Slots(1)
    await slots.acquire("big")
    order: list[str] = []

    async def call(queue: str) -> None:
        await slots.acquire(queue)
        order.append(queue)
        slots.release()

    tasks = [asyncio.create_task(call("big")) for _ in range(5)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(call("small")))
    await asyncio.sleep(0)
    slots.release()
    await asyncio.wait_for(asyncio.gather(*tasks), 1)
    assert order == ["big", "small", "big", "big", "big", "big"]


async def test_slots_are_bounded_and_survive_cancellation() -> None:
    """No more than the slots are out; one given to a caller that was cancelled is not lost."""
    slots: Slots[str] = Slots(2)
    await slots.acquire("a")
    await slots.acquire("a")
    waiting = asyncio.create_task(slots.acquire("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    slots.release()
    # Given in this very moment and cancelled before it could run.
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(slots.acquire("b"), 1)


async def test_closed_slots_wake_those_that_wait() -> None:
    """After the close nobody gets a slot and nobody waits for one."""
    slots: Slots[str] = Slots(1)
    await slots.acquire("a")
    waiting = asyncio.create_task(slots.acquire("a"))
    await asyncio.sleep(0)
    slots.close()
    with pytest.raises(SlotsClosed):
        await asyncio.wait_for(waiting, 1)
    with pytest.raises(SlotsClosed):
        await slots.acquire("a")
    slots.release()


def read(ring: Turns[str], queue: str) -> int:
    """Have the queue whose turn it is give all that it may; it must be this one."""
    taken = ring.take()
    assert taken is not None
    assert taken[0] == queue
    ring.read(queue, allowed=taken[1], got=taken[1])
    return taken[1]


def test_what_is_put_aside_makes_room_for_others() -> None:
    """It counts no more as in hand; a queue with many of them is read no more until one goes on."""
    ring = Turns[str](quantum=4, window=8, in_hand_max=4, reserve=0, aside_max=4)
    ring.offer("blocked")
    ring.offer("free")
    assert read(ring, "blocked") == 4
    assert ring.take() is None, "everything that is allowed is in hand"
    for _ in range(4):
        assert ring.put_aside("blocked", others_may_pass=False)
    assert (ring.in_hand, ring.in_hand_of("blocked")) == (0, 4)
    assert not ring.is_idle("blocked")
    assert read(ring, "free") == 4
    ring.done("free", 4)
    assert read(ring, "free") == 4
    ring.done("free", 4)
    ring.drop("free")
    assert ring.take() is None, "the other queue has enough that waits"
    ring.take_up("blocked")
    ring.done("blocked")
    assert read(ring, "blocked") == 4


def test_a_queue_whose_messages_go_several_ways_is_read_on() -> None:
    """What waits for one of them beyond the bound has to make room instead."""
    ring = Turns[str](quantum=2, window=8, in_hand_max=8, reserve=0, aside_max=2)
    ring.offer("mixed")
    read(ring, "mixed")
    assert ring.put_aside("mixed", others_may_pass=True)
    assert ring.put_aside("mixed", others_may_pass=True)
    read(ring, "mixed")
    assert not ring.put_aside("mixed", others_may_pass=True)
    assert ring.in_hand == 2


def test_what_is_put_aside_has_a_bound_in_all() -> None:
    """Beyond it queues that would add to it are not read until half of it has gone on."""
    ring = Turns[str](quantum=1, window=8, in_hand_max=8, reserve=0, aside_max=8, aside_total_max=2)
    for queue in ("a", "b"):
        ring.offer(queue)
    for queue in ("a", "b"):
        read(ring, queue)
        assert ring.put_aside(queue, others_may_pass=False)
    read(ring, "a")
    assert not ring.put_aside("a", others_may_pass=False)
    ring.done("a")
    read(ring, "b")
    assert not ring.put_aside("b", others_may_pass=False)
    ring.done("b")
    assert ring.take() is None
    ring.take_up("b")
    ring.done("b")
    assert ring.take() is not None
