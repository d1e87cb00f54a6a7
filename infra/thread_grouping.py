"""Group commit by a thread: as `infra.grouping`, for work that blocks.

The thread takes its next group itself, so it goes on while the event loop reads requests and writes replies.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from infra.errors import overloaded, unavailable
from infra.heartbeat import Heartbeat

T = TypeVar("T")
R = TypeVar("R")


class ThreadGrouper(Generic[T, R]):
    """Hands items to `run` in groups, one group after another, in a thread of its own.

    Parameters: `run` works on a group and returns a result per item, in their order; what it raises goes to every item
    of the group. `group_max` weight of a group at most; `queue_max` weight that waits at most; `weigh` tells an item's
    weight (an item over `group_max` goes alone, one over `queue_max` waits alone); `heartbeat` is touched at the start
    of each group and rests while nothing waits; `name` for texts.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        group_max: int,
        queue_max: int,
        weigh: Callable[[T], int],
        heartbeat: Heartbeat,
        name: str,
    ) -> None:
        assert group_max > 0
        assert queue_max > 0
        self._run = run
        self._group_max = group_max
        self._queue_max = queue_max
        self._weigh = weigh
        self._heartbeat = heartbeat
        self._name = name
        self._waiting: queue.SimpleQueue[tuple[T, asyncio.Future[R]] | None] = queue.SimpleQueue()
        # Each is written by one side alone: the loop counts what comes in, the thread what it has taken.
        self._weight_in = 0
        self._weight_taken = 0
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether `submit` would refuse now because too much waits."""
        return self._weight_in - self._weight_taken >= self._queue_max

    @property
    def taken(self) -> int:
        """Weight of all that was taken in since the start."""
        return self._weight_in

    def submit(self, item: T) -> asyncio.Future[R]:
        """Work on an item; the future of its result. Whoever takes it must await or cancel it.

        An item whose future is cancelled before its group starts is dropped; later its result is. Raises
        RESOURCE_EXHAUSTED (OVERLOADED) when `queue_max` waits, UNAVAILABLE after `close`.
        """
        if self._closed:
            raise unavailable(f"{self._name} is closing; call again")
        if self.full:
            raise overloaded(self._name, self._queue_max)
        future: asyncio.Future[R] = self._loop.create_future()
        self._weight_in += self._weigh(item)
        self._waiting.put((item, future))
        return future

    async def close(self) -> None:
        """Take nothing new, work on everything that waits, return when it is done."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
        await self._ended.wait()

    def _work(self) -> None:
        following: tuple[T, asyncio.Future[R]] | None = None
        while True:
            if following is None:
                self._heartbeat.rest()
            entry = following or self._waiting.get()
            self._heartbeat.touch()
            following = None
            if entry is None:
                break
            group: list[tuple[T, asyncio.Future[R]]] = []
            weight, last = 0, False
            while True:
                item_weight = self._weigh(entry[0])
                if group and weight + item_weight > self._group_max:
                    following = entry
                    break
                self._weight_taken += item_weight
                if not entry[1].done():
                    weight += item_weight
                    group.append(entry)
                try:
                    entry = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if entry is None:
                    last = True
                    break
            if group:
                results: Sequence[R] | Exception
                try:
                    results = self._run([item for item, _ in group])
                except Exception as error:
                    # The thread goes on, and nobody waits for ever.
                    results = error
                self._loop.call_soon_threadsafe(_resolve, group, results)
            if last:
                break
        self._heartbeat.rest()
        self._loop.call_soon_threadsafe(self._ended.set)


def _resolve(group: list[tuple[T, asyncio.Future[R]]], results: Sequence[R] | Exception) -> None:
    if isinstance(results, Exception):
        for _, future in group:
            if not future.done():
                future.set_exception(results)
        return
    for (_, future), result in zip(group, results, strict=True):
        if not future.done():
            future.set_result(result)
