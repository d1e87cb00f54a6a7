"""The tasks of a worker: each is a step done again and again, watched, never dead.

A step is one bounded turn. Between two turns a loop waits for its interval or until it is woken. A step that fails is
logged and done again after a growing wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from infra.database import TRANSIENT
from infra.errors import Refusal
from infra.heartbeat import Heartbeat, Watchdog
from workers.backoff import delay_seconds
from workers.metrics import LOOP_FAILURES

log = structlog.get_logger(__name__)

# Outages of what we depend on: one line tells enough.
OUTAGES = (*TRANSIENT, RedisError, TimeoutError, Refusal)

# A step may say that it wants another turn at once.
Step = Callable[[], Awaitable[bool | None]]


@dataclass(slots=True)
class Loop:
    """One loop. `wake` ends its wait; each turn that did not fail touches `heartbeat`."""

    name: str
    step: Step
    interval_seconds: float
    heartbeat: Heartbeat
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Loops:
    """Starts and stops loops, and has them watched: one that hangs, is dead or fails again and again is stalled.

    Parameters: `retry_seconds_max` longest wait after failures; `watchdog` gives each loop its heartbeat.
    """

    def __init__(self, *, retry_seconds_max: float, watchdog: Watchdog) -> None:
        self._retry_seconds_max = retry_seconds_max
        self._watchdog = watchdog
        self._loops: list[Loop] = []
        self._stopping = asyncio.Event()

    def add(self, name: str, step: Step, *, interval_seconds: float, wake: asyncio.Event | None = None) -> Loop:
        """Start a loop; `wake` is an event of the caller's that ends the wait between two turns."""
        heartbeat = self._watchdog.heartbeat(name, interval_seconds=interval_seconds)
        heartbeat.touch()
        loop = Loop(name, step, interval_seconds, heartbeat, wake or asyncio.Event())
        self._loops.append(loop)
        loop.task = asyncio.create_task(self._run(loop), name=name)
        return loop

    async def remove(self, loop: Loop) -> None:
        """End one loop in the middle of its turn; no sign of life is due from it any more."""
        self._loops.remove(loop)
        if loop.task is not None:
            loop.task.cancel()
            await asyncio.gather(loop.task, return_exceptions=True)
        loop.heartbeat.rest()

    async def stop(self, seconds: float) -> None:
        """Let every loop finish its turn, at most so long; then cancel what is left."""
        self._stopping.set()
        tasks = []
        for loop in self._loops:
            loop.wake.set()
            if loop.task is not None:
                tasks.append(loop.task)
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=max(0.0, seconds))
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for loop in self._loops:
            loop.heartbeat.rest()

    async def _run(self, loop: Loop) -> None:
        failures = 0
        while not self._stopping.is_set():
            wait = loop.interval_seconds
            # What wakes the loop from now on is not covered by the turn that begins.
            loop.wake.clear()
            try:
                again = await loop.step()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                failures += 1
                LOOP_FAILURES.labels(loop.name).inc()
                wait = delay_seconds(failures, base=0.1, longest=self._retry_seconds_max)
                if isinstance(error, OUTAGES):
                    log.warning("loop failed", loop=loop.name, failures=failures, error=_described(error))
                else:
                    log.exception("loop failed", loop=loop.name, failures=failures)
                # A failing loop is not to be hurried by notices.
                loop.wake.clear()
                await self._pause(self._stopping, wait)
                continue
            failures = 0
            loop.heartbeat.touch()
            if again:
                # Others get their turn all the same.
                await asyncio.sleep(0)
                continue
            await self._pause(loop.wake, wait)

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass


def _described(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
