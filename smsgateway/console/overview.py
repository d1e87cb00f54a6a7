"""What goes on everywhere, gathered once for all who look. Each part by itself: one that is down hides no other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import structlog
from redis.exceptions import RedisError

from infra.database import TRANSIENT
from infra.errors import Refusal
from smsgateway.carrier_states import AccountStates, CarrierStates
from smsgateway.console import traffic
from smsgateway.console.balances import Progress, progress
from smsgateway.console.reads import Reads
from smsgateway.console.traffic import Quality
from smsgateway.metrics import TYPE_NAMES
from smsgateway.queues import PARTITIONS, Depth, Queues
from smsgateway.schema import Mode
from smsgateway.store import outbox, parked, receipts, routing
from smsgateway.store import overview as store
from smsgateway.store.overview import RunningBatch
from smsgateway.store.routing import AccountRow

log = structlog.get_logger(__name__)

T = TypeVar("T")

RECENT_SECONDS: Final = 60.0
"""Messages a second are those accepted in the last minute, or in as much of it as `RECENT_REQUESTS` reach back."""
RECENT_REQUESTS: Final = 5_000
SAMPLE_SECONDS: Final = 600.0
"""Success and times are those of messages accepted in the last ten minutes: some out of each part of them."""
SAMPLE_PARTS: Final = 40
SAMPLE_REQUESTS: Final = 10
SAMPLE_OF_BATCH: Final = 10
# Queues looked at in each partition, so at most 2,048 of them.
_QUEUES_PER_PARTITION: Final = 8
BATCHES_SHOWN: Final = 6
PARKED_MAX: Final = 10_000
"""What is parked is counted up to so much."""

_OUTAGES = (*TRANSIENT, RedisError, TimeoutError, Refusal)


@dataclass(frozen=True, slots=True)
class TypeQueues:
    """What waits of a type: queues that have something, their entries (messages, chunks of batches), and the age of the
    oldest in seconds.
    """

    sms_type: int
    queues: int
    singles: int
    chunks: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Depths:
    """What waits, by type; `more`: there are queues that were not looked at."""

    types: Sequence[TypeQueues]
    more: bool


@dataclass(frozen=True, slots=True)
class CarrierState:
    """An account at a carrier: its row, None for the environment's, and how many workers say what of it."""

    account_id: str
    row: AccountRow | None
    states: Mapping[str, int]

    @property
    def verdict(self) -> str:
        """In a word: paused, stopped, rests, tried, works or silent (no worker says anything)."""
        if self.row is not None and self.row.paused:
            return "paused"
        for said, word in _WORDS.items():
            if self.states.get(said):
                return word
        return "silent"


# What `workers.account.AccountGate.state` says, worst first.
_WORDS: Final = {
    "is stopped": "stopped",
    "rests": "rests",
    "is tried": "tried",
    "is paused": "paused",
    "works": "works",
}


@dataclass(frozen=True, slots=True)
class Moving:
    """A batch that is not done, and how far it is."""

    batch: RunningBatch
    progress: Progress


@dataclass(frozen=True, slots=True)
class Overview:
    """What goes on; None: that part could not be read."""

    at: datetime
    per_second: float | None
    quality: Quality | None
    depths: Depths | None
    carriers: Sequence[CarrierState] | None
    parked: Mapping[str, int] | None
    moving: Sequence[Moving] | None


class Overlook:
    """Gathers the overview. A look reads a bounded number of rows and keys, however much there is."""

    def __init__(self, reads: Reads, queues: Queues, states: CarrierStates) -> None:
        self._reads = reads
        self._queues = queues
        self._states = states

    async def look(self) -> Overview:
        """One look at everything."""
        rate, quality, depths, carriers, parked_work, moving = await asyncio.gather(
            _part("rate", self._per_second()),
            _part("quality", self._quality()),
            _part("queues", self._depths()),
            _part("carriers", self._carriers()),
            _part("parked", self._parked()),
            _part("batches", self.moving(limit=BATCHES_SHOWN)),
        )
        return Overview(datetime.now(UTC), rate, quality, depths, carriers, parked_work, moving)

    async def moving(
        self, *, brand_id: int | None = None, after: tuple[int, str] = (0, ""), limit: int
    ) -> list[Moving]:
        """Batches that are not done, by brand and id, behind a place."""
        async with self._reads.connection() as connection:
            batches = await store.running_batches(connection, brand_id=brand_id, after=after, limit=limit)
            dispatched = await store.dispatched(connection, [(batch.brand_id, batch.batch_id) for batch in batches])
        return [Moving(batch, progress(batch.accepted, dispatched[batch.batch_id])) for batch in batches]

    async def _per_second(self) -> float:
        async with self._reads.connection() as connection:
            recent = await store.recent(connection, seconds=RECENT_SECONDS, limit=RECENT_REQUESTS)
        return traffic.per_second(recent, seconds=RECENT_SECONDS, limit=RECENT_REQUESTS)

    async def _quality(self) -> Quality:
        async with self._reads.connection() as connection:
            sampled = await store.sample(
                connection,
                seconds=SAMPLE_SECONDS,
                parts=SAMPLE_PARTS,
                limit=SAMPLE_REQUESTS,
                of_batch=SAMPLE_OF_BATCH,
            )
        return traffic.quality(sampled)

    async def _depths(self) -> Depths:
        found = await self._queues.walk(limit=_QUEUES_PER_PARTITION)
        depths = await self._queues.depths(found, now_ms=time.time_ns() // 1_000_000)
        full = max(Counter(queue.brand_id % PARTITIONS for queue in found).values(), default=0)
        return Depths(types_of(depths), full >= _QUEUES_PER_PARTITION)

    async def _carriers(self) -> list[CarrierState]:
        said = await self._states.read(now_ms=time.time_ns() // 1_000_000)
        async with self._reads.connection() as connection:
            rows = await routing.list_accounts(connection)
        return carriers_of(rows, said)

    async def _parked(self) -> dict[str, int]:
        async with self._reads.connection() as connection:
            return {
                "dispatch": await parked.count_dispatches(connection),
                "outbox": await outbox.count_parked(connection),
                "receipt": await receipts.count_parked(connection),
                "webhook": await parked.count_webhook_events(connection),
            }


def types_of(depths: Sequence[Depth]) -> list[TypeQueues]:
    """What waits in queues, added up by type; every type is there."""
    found = []
    for sms_type in TYPE_NAMES:
        own = [depth for depth in depths if depth.queue.sms_type == sms_type and depth.entries]
        found.append(
            TypeQueues(
                sms_type=sms_type,
                queues=len(own),
                singles=sum(depth.entries for depth in own if depth.queue.mode == Mode.SINGLE),
                chunks=sum(depth.entries for depth in own if depth.queue.mode == Mode.BATCH),
                oldest_seconds=max((depth.oldest_seconds for depth in own), default=0.0),
            )
        )
    return found


def carriers_of(rows: Sequence[AccountRow], said: Sequence[AccountStates]) -> list[CarrierState]:
    """Accounts of the table and of the environment, by name, with what workers say."""
    by_id = {row.account_id: row for row in rows}
    states = {each.account_id: each.states for each in said}
    return [
        CarrierState(account_id, by_id.get(account_id), states.get(account_id, {}))
        for account_id in sorted({*by_id, *states})
    ]


async def _part(name: str, look: Awaitable[T]) -> T | None:
    try:
        return await look
    except _OUTAGES as error:
        log.warning("part of the overview cannot be read", part=name, error=type(error).__name__)
        return None
