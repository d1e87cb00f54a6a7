"""Group commit: operations that arrive while a transaction runs form the next one.

Brands hash to lanes. A transaction serves one lane (`costcenter.lane`): it locks the lane's row, reads of the brands
concerned what it does not know, decides in Python (`costcenter.book`) and writes set-based. So any number of processes
decide one after another on fresh state, and none waits for another inside a transaction while holding what that one
wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice

from google.protobuf.message import Message

from costcenter import store
from costcenter.book import Terms
from costcenter.lane import Lane, LaneLimits, Outcome
from costcenter.metrics import GROUP_OPERATIONS, GROUP_SECONDS, GROUP_WAIT_SECONDS, OPERATIONS
from costcenter.operations import Operation, Reply
from infra.database import LOOKUP_OPTIONS, Database, Session
from infra.errors import Refusal, overloaded
from infra.heartbeat import Watchdog
from infra.thread_grouping import ThreadGrouper


@dataclass(frozen=True, slots=True)
class EngineLimits(LaneLimits):
    """Bounds of the engine; the settings give their reasons."""

    group_max: int = 1_000
    queue_max: int = 20_000


@dataclass(slots=True)
class _Submission:
    """Operations that one call brings to one lane."""

    operations: Sequence[Operation]
    arrived: float


class Engine:
    """Applies operations in groups.

    Parameters: `database` tells the number of lanes and, at every moment, where the server is; each lane has a
    connection of its own and a heartbeat of the `watchdog`. `clock` replaces the database's clock in tests.
    """

    def __init__(
        self,
        database: Database,
        *,
        terms: Terms,
        limits: EngineLimits,
        watchdog: Watchdog,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._database = database
        self._terms = terms
        self._limits = limits
        self._watchdog = watchdog
        self._clock = clock
        self._lanes: list[Lane] = []
        self._queues: list[ThreadGrouper[_Submission, list[Outcome]]] = []
        self.stopping = False

    async def start(self) -> None:
        """Read the number of lanes and serve them."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(store.LANES)).fetchone()
        assert row is not None
        assert row[0] > 0, "the migrations fill the table of lanes"
        for lane_id in range(row[0]):
            session = Session(
                self._database.url, hold_seconds=self._limits.hold_seconds, options=LOOKUP_OPTIONS, name="ledger"
            )
            lane = Lane(lane_id, session, terms=self._terms, limits=self._limits, clock=self._clock)
            self._lanes.append(lane)
            self._queues.append(
                ThreadGrouper(
                    partial(_run_group, lane),
                    group_max=self._limits.group_max,
                    queue_max=self._limits.queue_max,
                    weigh=lambda submission: len(submission.operations),
                    heartbeat=self._watchdog.heartbeat(f"ledger-lane-{lane_id}"),
                    name="the ledger's queue",
                )
            )

    def prepare_stop(self) -> None:
        """Let those who wait for work of the engine end; it still takes operations."""
        self.stopping = True

    async def stop(self) -> None:
        """Apply what is queued, then disconnect."""
        await asyncio.gather(*(queue.close() for queue in self._queues))
        for lane in self._lanes:
            lane.close()

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return len(self._queues)

    def lane_of(self, brand_id: int) -> int:
        """The lane of a brand."""
        return brand_id % len(self._queues)

    @property
    def taken(self) -> int:
        """Operations taken in since the start."""
        return sum(queue.taken for queue in self._queues)

    async def apply(self, operation: Operation) -> Outcome:
        """Apply one operation. Raises RESOURCE_EXHAUSTED (OVERLOADED) at once when the queue is full."""
        queue = self._queues[self.lane_of(operation.brand_id)]
        return (await queue.submit(_Submission([operation], time.perf_counter())))[0]

    async def answer(self, operation: Operation) -> Message | Reply:
        """Apply one operation and return its reply. Raises its refusal, and what `apply` raises."""
        outcome = await self.apply(operation)
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    async def apply_all(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Apply operations as if one after another; those of different lanes run side by side.

        Raises RESOURCE_EXHAUSTED (OVERLOADED) when a queue is full; then nothing is applied.
        """
        lanes = len(self._queues)
        parts: dict[int, list[int]] = {}
        for index, operation in enumerate(operations):
            parts.setdefault(operation.brand_id % lanes, []).append(index)
        # All queues are asked before the first is entered: a batch is not refused in part.
        if any(self._queues[lane_id].full for lane_id in parts):
            raise overloaded("the ledger's queue", self._limits.queue_max)
        arrived = time.perf_counter()
        results = await asyncio.gather(
            *(
                self._queues[lane_id].submit(_Submission([operations[index] for index in indexes], arrived))
                for lane_id, indexes in parts.items()
            )
        )
        if len(results) == 1:
            return results[0]
        by_index = {
            index: outcome
            for indexes, part in zip(parts.values(), results, strict=True)
            for index, outcome in zip(indexes, part, strict=True)
        }
        return [by_index[index] for index in range(len(operations))]


def _run_group(lane: Lane, group: list[_Submission]) -> list[list[Outcome]]:
    operations = [operation for submission in group for operation in submission.operations]
    GROUP_OPERATIONS.observe(len(operations))
    started = time.perf_counter()
    for submission in group:
        GROUP_WAIT_SECONDS.observe(started - submission.arrived)
    outcomes = lane.apply(operations)
    GROUP_SECONDS.observe(time.perf_counter() - started)
    _count(operations, outcomes)
    if len(group) == len(operations):
        return [[outcome] for outcome in outcomes]
    parts = iter(outcomes)
    return [list(islice(parts, len(submission.operations))) for submission in group]


def _count(operations: list[Operation], outcomes: list[Outcome]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for operation, outcome in zip(operations, outcomes, strict=True):
        key = (type(operation).__name__, outcome.reason if isinstance(outcome, Refusal) else "OK")
        counts[key] = counts.get(key, 0) + 1
    for (kind, result), count in counts.items():
        OPERATIONS.labels(kind, result).inc(count)
