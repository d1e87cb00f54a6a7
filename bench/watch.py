"""What a running stack costs and how far it is: memory and processor time of its processes, counters, queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from smsbill.stack import Stack

POSTGRES, REDIS, SIMULATOR = "postgres", "redis", "carrier-simulator"
# What waits somewhere, each counted up to a bound by its index, so that asking costs little.
_WAITING = {
    "dispatches": "select count(*) from smsgateway.dispatch",
    "outbox": "select count(*) from smsgateway.outbox",
    "receipt inbox": "select count(*) from smsgateway.receipt_inbox",
}
_CONNECTIONS = "select count(*) from pg_stat_activity where backend_type = 'client backend'"


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the stack: megabytes of memory, pages that it shares with others counted in part; processor
    seconds since its start; open file handles, sockets among them.
    """

    name: str
    megabytes: float
    seconds: float
    handles: int


class Watch:
    """Looks at a running stack. Made by `watching`."""

    def __init__(self, running: Stack, session: aiohttp.ClientSession, redis: Redis, postmaster: int) -> None:
        self._running = running
        self._session = session
        self._redis = redis
        self._postmaster = postmaster
        self._redis_pid = 0

    async def processes(self) -> dict[str, Process]:
        """Every process of ours and the servers', PostgreSQL's as one, by name."""
        if not self._redis_pid:
            self._redis_pid = (await self._redis.info("server"))["process_id"]
        postmaster = psutil.Process(self._postmaster)
        members = {child.name: [psutil.Process(child.pid)] for child in self._running.file.children}
        members |= {REDIS: [psutil.Process(self._redis_pid)], POSTGRES: [postmaster, *postmaster.children()]}
        return {name: await asyncio.to_thread(_measured, name, some) for name, some in members.items()}

    async def redis_megabytes(self) -> float:
        """What Redis itself says that its data takes."""
        return float((await self._redis.info("memory"))["used_memory"]) / 1e6

    async def counters(self) -> Counter[str]:
        """Sums of all workers: messages by what became of them, `sent`, `delivered`, …"""
        result: Counter[str] = Counter()
        for name, url in self._running.file.metrics_urls.items():
            if not name.startswith("worker"):
                continue
            async with self._session.get(url) as answer:
                text = await answer.text()
            for family in text_string_to_metric_families(text):
                if family.name != "smsbill_messages_settled":
                    continue
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        result[sample.labels["result"]] += int(sample.value)
        return result

    async def waiting(self) -> dict[str, int]:
        """What waits: rows on their way, and entries of all queues in Redis."""
        url = self._running.file.database_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            result = {}
            for name, statement in _WAITING.items():
                row = await (await connection.execute(statement)).fetchone()
                assert row is not None
                result[name] = int(row[0])
        receipts = [await self._redis.xlen(f"receipts:{{{number}}}") for number in range(4)]
        return {**result, "receipt streams": sum(receipts)}

    async def connections(self) -> int:
        """How many PostgreSQL has with its clients, this one among them."""
        url = self._running.file.database_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            row = await (await connection.execute(_CONNECTIONS)).fetchone()
        assert row is not None
        return int(row[0])

    async def simulator(self, **settings: Any) -> None:
        """Change how the carrier behaves."""
        url = f"{self._running.file.simulator_url}/simulator/settings"
        async with self._session.post(url, json=settings) as answer:
            answer.raise_for_status()

    async def taken_on(self, after: int = 0, limit: int = 10_000) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What the carrier took on after the entry with this number, a page of it; and its totals."""
        query = f"after={after}&limit={limit}"
        async with self._session.get(f"{self._running.file.simulator_url}/simulator/record?{query}") as answer:
            page = await answer.json()
        return page["entries"], page["totals"]

    async def has_taken_on(self, after: int) -> bool:
        """Whether the carrier took on anything after the entry with this number."""
        entries, _ = await self.taken_on(after, 1)
        return bool(entries)


@asynccontextmanager
async def watching(running: Stack) -> AsyncIterator[Watch]:
    """A look at a stack that runs."""
    async with (
        await psycopg.AsyncConnection.connect(running.file.database_url) as connection,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
    ):
        postmaster = psutil.Process(connection.info.backend_pid).ppid()
        redis = Redis.from_url(running.file.redis_url, decode_responses=True)
        try:
            yield Watch(running, session, redis, postmaster)
        finally:
            await redis.aclose()


def _measured(name: str, processes: Iterable[psutil.Process]) -> Process:
    memory = seconds = 0.0
    handles = 0
    for process in processes:
        try:
            full, times, opened = process.memory_full_info(), process.cpu_times(), process.num_fds()
        except psutil.NoSuchProcess:
            continue
        # Linux alone tells a process's part of what it shares.
        memory += getattr(full, "pss", full.uss)
        seconds += times.user + times.system
        handles += opened
    return Process(name, memory / 1e6, seconds, handles)


async def until(reached: Callable[[], Awaitable[bool]], *, seconds_max: float, poll_seconds: float = 0.1) -> None:
    """Ask again and again; other processes send no events. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds_max):
        while True:
            if await reached():
                return
            await asyncio.sleep(poll_seconds)


def used(before: Mapping[str, Process], after: Mapping[str, Process], seconds: float) -> dict[str, float]:
    """Percent of a processor that each process took between two looks, `seconds` apart."""
    return {name: 100 * (after[name].seconds - before[name].seconds) / seconds for name in after if name in before}


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of sorted values does not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))]
