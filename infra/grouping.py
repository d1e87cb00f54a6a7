"""Group commit: whatever arrives while one group is being worked on forms the next.

A statement over a thousand rows costs little more than one over a single row, so callers that come one by one are
served together. Nobody waits for a group to fill: an idle grouper starts at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Generic, TypeVar

import structlog

from infra import tracing
from infra.errors import overloaded, unavailable
from infra.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# A group of so much weight says that the next will not be a lone item.
_BUSY_WEIGHT = 4

Run = Callable[[list[T]], Awaitable[Sequence[R | Exception]]]


def isolating(run: Run[T, R], outages: tuple[type[BaseException], ...]) -> Run[T, R]:
    """A run function that halves a group which fails until the bad item stands alone and gets the error itself.

    `outages` concern the whole group and are raised. `run` must be all or nothing: what it raises for has no effect.
    """

    async def isolated(items: list[T]) -> Sequence[R | Exception]:
        try:
            return await run(items)
        except outages:
            raise
        except Exception as error:
            if len(items) == 1:
                return [error]
        half = len(items) // 2
        return [*await isolated(items[:half]), *await isolated(items[half:])]

    return isolated


class Grouper(Generic[T, R]):
    """Hands items to `run` in groups and each caller its own result.

    Parameters: `run` works on a group and returns a result or an exception per item, in their order; what it raises
    goes to every item of the group. `group_max` weight of a group at most; `queue_max` weight that waits at most;
    `in_flight_max` groups under way at once (1: they follow each other); `weigh` tells an item's weight (1 each
    when not given; an item over `group_max` goes alone, one over `queue_max` waits alone); `gather_seconds` how far
    apart groups start at least while items come in numbers (0: each starts at once), so that a busy system works in few
    large groups; an item that comes alone never waits for it; `name` for texts; `heartbeat` is told since when the
    oldest group under way has been, so that one that hangs is seen although others go on.
    """

    def __init__(
        self,
        run: Run[T, R],
        *,
        group_max: int,
        queue_max: int,
        in_flight_max: int = 1,
        weigh: Callable[[T], int] | None = None,
        gather_seconds: float = 0.0,
        name: str = "queue",
        heartbeat: Heartbeat | None = None,
    ) -> None:
        assert group_max > 0
        assert queue_max > 0
        assert in_flight_max > 0
        self._run = run
        self._group_max = group_max
        self._queue_max = queue_max
        self._in_flight_max = in_flight_max
        self._weigh = weigh
        self._name = name
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._waiting_weight = 0
        self._heartbeat = heartbeat
        self._spans = tracing.active()
        # With traces: the context of each that waits.
        self._contexts: dict[asyncio.Future[R], Context] = {}
        # With the moment of its start; the oldest is first.
        self._groups: dict[asyncio.Task[None], float] = {}
        self._scheduled = False
        self._gather_seconds = gather_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._started_at = 0.0
        self._started_weight = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Items that no group has taken yet."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether `submit` would refuse now because too much waits."""
        return self._waiting_weight >= self._queue_max

    async def submit(self, item: T) -> R:
        """Work on an item and return its result.

        An item whose caller is cancelled before its group starts is dropped; later its result is. Raises
        RESOURCE_EXHAUSTED (OVERLOADED) when `queue_max` waits, UNAVAILABLE after `close`, and whatever `run`
        gave for the item.
        """
        return await self.submit_nowait(item)

    def submit_nowait(self, item: T) -> asyncio.Future[R]:
        """Like `submit`, but return the future of the result. Whoever takes it must await or cancel it."""
        if self._closed:
            raise unavailable(f"{self._name} is closing; call again")
        if self.full:
            raise overloaded(self._name, self._queue_max)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._spans is not None:
            self._contexts[future] = copy_context()
        self._waiting_weight += self._weight_of(item)
        if not self._scheduled and len(self._groups) < self._in_flight_max:
            # Not now but after what is ready to run: callers that wake together share a group.
            self._scheduled = True
            loop.call_soon(self._start_groups)
        return future

    async def close(self) -> None:
        """Take nothing new, work on everything that waits, return when it is done."""
        self._closed = True
        while self._waiting or self._groups:
            self._start_groups()
            if self._groups:
                await asyncio.wait(self._groups)

    def _start_groups(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._groups) < self._in_flight_max:
            if self._gathers():
                return
            group = self._take()
            if group:
                self._started_weight = sum(self._weight_of(item) for item, _ in group)
                task = asyncio.ensure_future(self._work(group)) if self._spans is None else self._traced(group)
                self._groups[task] = time.monotonic()
                self._tell_life()
                task.add_done_callback(self._finished)

    def _gathers(self) -> bool:
        """Whether the next group waits for more; then a timer starts it."""
        if not self._gather_seconds or self._closed or self._waiting_weight >= self._group_max:
            return False
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = self._started_at + self._gather_seconds
        if self._started_weight < _BUSY_WEIGHT or now >= due:
            self._started_at = now
            return False
        self._scheduled = True
        self._timer = loop.call_at(due, self._start_groups)
        return True

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        group: list[tuple[T, asyncio.Future[R]]] = []
        weight = 0
        while self._waiting:
            item, future = self._waiting[0]
            item_weight = self._weight_of(item)
            if not future.done():
                weight += item_weight
                if group and weight > self._group_max:
                    break
                group.append((item, future))
            elif self._contexts:
                self._contexts.pop(future, None)
            self._waiting.popleft()
            self._waiting_weight -= item_weight
        return group

    def _traced(self, group: list[tuple[T, asyncio.Future[R]]]) -> asyncio.Task[None]:
        """Work on a group in the trace of its first item that has one."""
        spans, contexts = self._spans, [self._contexts.pop(future, None) for _, future in group]
        assert spans is not None
        leader = spans.leader(contexts)
        if leader is None:
            return asyncio.ensure_future(self._work(group))

        async def work() -> None:
            with spans.group(self._name, contexts):
                await self._work(group)

        return asyncio.get_running_loop().create_task(work(), context=leader.copy())

    def _weight_of(self, item: T) -> int:
        return 1 if self._weigh is None else self._weigh(item)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._groups.pop(task, None)
        self._tell_life()
        self._start_groups()

    def _tell_life(self) -> None:
        if self._heartbeat is None:
            return
        oldest = next(iter(self._groups.values()), None)
        if oldest is None:
            self._heartbeat.rest()
        else:
            self._heartbeat.busy_since(oldest)

    async def _work(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._run([item for item, _ in group])
            if len(results) != len(group):
                raise AssertionError(f"{self._name}: {len(results)} results for {len(group)} items")
        except asyncio.CancelledError:
            # Only the end of the loop cancels a group; its callers must not wait for ever.
            for _, future in group:
                future.cancel()
            raise
        except Exception as error:
            results = [error] * len(group)
        for (_, future), result in zip(group, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
