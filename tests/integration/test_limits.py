"""Aim: limits hold over all workers, let the urgent through first, and never block for ever. Method: the limits of
several workers in one process, on a real Redis; what counts is what they gave, not how fast."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from gateway_harness import SECONDS, eventually
from redis.asyncio import Redis

from smsgateway.queues import open_redis
from workers.limits import CallLimit, LimitClosed, RateLimit

VERIFICATION, MARKETING = 1, 3


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = open_redis(redis_url, connections_max=8, timeout_seconds=5)
    yield client
    await client.aclose()


def rate_limit(redis: Redis, *, rate: float, burst: int = 0, lease_seconds: float = 0.1) -> RateLimit:
    return RateLimit(redis, "test", rate=rate, burst=burst, lease_seconds=lease_seconds)


async def test_three_workers_share_a_rate(redis: Redis) -> None:
    """Never more than the time allows, a burst, and what each has leased ahead; and not much less."""
    limits = [rate_limit(redis, rate=200, burst=20) for _ in range(3)]
    given: Counter[int] = Counter()

    async def work(number: int) -> None:
        while True:
            await limits[number].acquire(1, VERIFICATION)
            given[number] += 1

    started = time.monotonic()
    tasks = [asyncio.create_task(work(number)) for number in range(3) for _ in range(10)]
    while given.total() < 200 or len(given) < len(limits):
        await asyncio.sleep(0.02)
        assert time.monotonic() - started < SECONDS
        assert given.total() <= 200 * (time.monotonic() - started) + 20 + 3 * 20
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for limit in limits:
        await limit.close()


async def test_a_large_call_is_not_starved_and_leaves_a_debt(redis: Redis) -> None:
    """It takes its tokens as soon as one is there; then nobody gets any until they are paid back."""
    limit = rate_limit(redis, rate=100, burst=20)
    started = time.monotonic()
    for _ in range(3):
        await asyncio.wait_for(limit.acquire(20, VERIFICATION), SECONDS)
    await asyncio.wait_for(limit.acquire(1, VERIFICATION), SECONDS)
    # 61 messages, of which a burst may go at once and one call more may be owed.
    assert time.monotonic() - started > (61 - 40) / 100 - 0.05
    await limit.close()


async def test_a_lease_saves_questions(redis: Redis) -> None:
    """Below the limit one question brings what is needed for a while."""
    limit = rate_limit(redis, rate=1_000, burst=500)
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] if await _asked(redis) else 0
    for _ in range(300):
        await asyncio.wait_for(limit.acquire(1, VERIFICATION), SECONDS)
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after - before <= 10
    await limit.close()


async def test_codes_go_before_marketing_and_marketing_is_not_shut_out(redis: Redis) -> None:
    """Two workers at an account's limit: the one with codes gets most, the other some."""
    codes, adverts = (rate_limit(redis, rate=200, burst=20) for _ in range(2))
    given: Counter[int] = Counter()

    async def work(limit: RateLimit, sms_type: int) -> None:
        while True:
            await limit.acquire(1, sms_type)
            given[sms_type] += 1

    tasks = [asyncio.create_task(work(codes, VERIFICATION)) for _ in range(40)]
    tasks += [asyncio.create_task(work(adverts, MARKETING)) for _ in range(40)]

    async def enough() -> bool:
        return given.total() >= 300 and given[MARKETING] > 0

    await eventually(enough)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert given[VERIFICATION] > 2 * given[MARKETING] > 0
    for limit in (codes, adverts):
        await limit.close()


async def test_limits_start_anew_when_redis_is_emptied(redis: Redis) -> None:
    """A debt is forgotten with the data; nobody waits for it."""
    limit = rate_limit(redis, rate=0.01, burst=5)
    await asyncio.wait_for(limit.acquire(5, VERIFICATION), SECONDS)
    waiting = asyncio.create_task(limit.acquire(1, VERIFICATION))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await redis.flushdb()
    await asyncio.wait_for(waiting, SECONDS)
    await limit.close()


async def test_who_waits_for_a_limit_that_is_gone_looks_anew(redis: Redis) -> None:
    """Of a rate and of calls; tokens of one who is cancelled come back."""
    rate = rate_limit(redis, rate=0.01, burst=1)
    calls = CallLimit(redis, "test", worker="w1", limit=1)
    await asyncio.wait_for(rate.acquire(1, VERIFICATION), SECONDS)
    await asyncio.wait_for(calls.acquire(VERIFICATION), SECONDS)
    waiting = [asyncio.create_task(rate.acquire(1, MARKETING)), asyncio.create_task(calls.acquire(MARKETING))]
    await asyncio.sleep(0)
    rate.halt()
    calls.halt()
    assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [LimitClosed] * 2
    with pytest.raises(LimitClosed):
        await rate.acquire(1, VERIFICATION)
    calls.release()
    await rate.close()
    await calls.close()


@pytest.mark.parametrize("limit", [1, 5])
async def test_workers_share_calls_at_once(redis: Redis, limit: int) -> None:
    """Never more than the limit under way, and each of three workers gets its turn, also where there are fewer calls
    than workers."""
    limits = [CallLimit(redis, "test", worker=f"w{number}", limit=limit) for number in range(3)]
    under_way = most = 0
    made: Counter[int] = Counter()

    async def work(number: int) -> None:
        nonlocal under_way, most
        while True:
            await limits[number].acquire(VERIFICATION)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.005)
            under_way -= 1
            made[number] += 1
            limits[number].release()

    tasks = [asyncio.create_task(work(number)) for number in range(3) for _ in range(4)]

    async def enough() -> bool:
        return len(made) == 3 and made.total() >= 60

    await eventually(enough)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= limit
    for each in limits:
        each.halt()


async def test_the_calls_of_a_dead_worker_are_given_to_others(redis: Redis) -> None:
    """Its share ends by itself; here the time is over because Redis forgot."""
    dead = CallLimit(redis, "test", worker="dead", limit=2)
    for _ in range(2):
        await asyncio.wait_for(dead.acquire(VERIFICATION), SECONDS)
    dead.halt()
    other = CallLimit(redis, "test", worker="other", limit=2)
    waiting = asyncio.create_task(other.acquire(VERIFICATION))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await redis.flushdb()
    await asyncio.wait_for(waiting, SECONDS)
    other.release()
    await other.close()


async def _asked(redis: Redis) -> bool:
    return "cmdstat_evalsha" in await redis.info("commandstats")
