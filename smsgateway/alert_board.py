"""What workers tell each other through Redis so that one of them can judge it: outcomes of messages, and carriers.

Redis may lose all of it: then shares of failures are judged by what comes after, and carriers by what is told next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

BUCKET_SECONDS = 300
"""Outcomes are counted together for so long: short beside a window, and few beside the messages."""
# The longest window, and a little more.
_KEEP_SECONDS = 3_600 + 3 * BUCKET_SECONDS
_CARRIERS = "alert:carriers"
_FIELDS_AT_ONCE = 1_000

Counts = Mapping[tuple[int, int], tuple[int, int]]
"""(messages that became final, those that failed) by (brand, type)."""


class AlertBoard:
    """What is said to Redis about alerts. Raises `redis.RedisError` (or its kin `OSError`) when it is down."""

    def __init__(self, redis: Redis | RedisCluster) -> None:
        self._redis: Any = redis

    async def add_outcomes(self, counts: Counts, *, now: float) -> None:
        """Add what became final about now (seconds since 1970)."""
        if not counts:
            return
        key = _outcomes_key(bucket_of(now))
        async with self._redis.pipeline(transaction=False) as pipe:
            for (brand_id, sms_type), (final, failed) in counts.items():
                pipe.hincrby(key, f"{brand_id}:{sms_type}:n", final)
                if failed:
                    pipe.hincrby(key, f"{brand_id}:{sms_type}:f", failed)
            pipe.expire(key, _KEEP_SECONDS)
            await pipe.execute()

    async def outcomes(self, bucket: int) -> dict[tuple[int, int], tuple[int, int]]:
        """What became final in a bucket (`bucket_of`). Read in parts, so that Redis is not held up."""
        counts: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
        cursor = 0
        while True:
            cursor, fields = await self._redis.hscan(_outcomes_key(bucket), cursor, count=_FIELDS_AT_ONCE)
            for field, value in fields.items():
                brand_id, sms_type, what = field.split(":")
                # A scan may tell a field twice; its value is whole each time.
                counts[int(brand_id), int(sms_type)][what == "f"] = int(value)
            if not cursor:
                return {key: (final, failed) for key, (final, failed) in counts.items()}

    async def tell_carriers(self, worker: str, states: Mapping[str, str], *, now: float) -> None:
        """Tell how this worker stands to its carrier accounts: states by account."""
        if states:
            told = {f"{worker}|{account}": f"{now:.3f}|{state}" for account, state in states.items()}
            await self._redis.hset(_CARRIERS, mapping=told)

    async def carriers(self, *, now: float, fresh_seconds: float) -> dict[str, dict[str, str]]:
        """The states by account and worker, of workers that told them lately; what is older is forgotten."""
        states: defaultdict[str, dict[str, str]] = defaultdict(dict)
        stale = []
        for field, value in (await self._redis.hgetall(_CARRIERS)).items():
            at, _, state = value.partition("|")
            worker, _, account = field.partition("|")
            if now - float(at) > fresh_seconds:
                stale.append(field)
            else:
                states[account][worker] = state
        if stale:
            await self._redis.hdel(_CARRIERS, *stale)
        return dict(states)


def bucket_of(now: float) -> int:
    """The bucket of a moment (seconds since 1970)."""
    return int(now // BUCKET_SECONDS)


def _outcomes_key(bucket: int) -> str:
    return f"alert:outcomes:{bucket}"
