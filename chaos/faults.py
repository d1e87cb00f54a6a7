"""Faults of a running stack, drawn by a seed. Each ends by itself, and everything that it stopped goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from infra.database import TRANSIENT
from smsbill.stack import Stack

PAUSE_SECONDS = (0.3, 2.5)
# A process that stands still for less than a lease, and for longer: it must not do again what others did meanwhile.
STILL_SECONDS = (0.2, 6.0)
MOOD_SECONDS = (1.0, 5.0)
FORGERIES = 20
_HTTP_SECONDS = 5.0

# What a carrier does to us, as the simulator is told it, and what ends it.
MOODS: tuple[Mapping[str, Any], ...] = (
    {"latency_ms": 1_500},
    {"throttle_rate": 0.5},
    {"lost_rate": 0.05},
    {"timeout_rate": 0.05},
    {"garbage_rate": 0.05},
    {"receipt_loss": 0.1},
    {"receipt_double": 0.5},
    {"receipt_delay_ms_min": 0, "receipt_delay_ms_max": 6_000},
    {"receipt_states": {"UNDELIV": 0.2, "EXPIRED": 0.1}},
    # Its balance, and an interface that is closed: the account rests.
    {"error_rates": {"109": 0.3}},
    {"error_rates": {"102": 0.2}},
)
CALM: Mapping[str, Any] = {
    "latency_ms": 30, "throttle_rate": 0, "lost_rate": 0, "timeout_rate": 0, "garbage_rate": 0, "receipt_loss": 0,
    "receipt_double": 0, "receipt_delay_ms_min": 100, "receipt_delay_ms_max": 800, "receipt_states": {},
    "error_rates": {}, "timeout_hold_ms": 8_000, "receipt_tries": 40, "receipt_retry_interval_ms": 1_000,
}  # fmt: skip


class Faults:
    """Breaks a stack again and again.

    Parameters: `stack` with its own servers and the simulator; `note` is told each fault in one line.
    """

    def __init__(self, stack: Stack, randomness: random.Random, note: Callable[[str], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._stack = stack
        self._random = randomness
        self._note = note
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_HTTP_SECONDS))
        self._moods: list[asyncio.Task[None]] = []
        self._stopped: set[int] = set()
        self._kinds: list[tuple[int, str, Callable[[], Awaitable[str]]]] = [
            (6, "kill", self._kill),
            (4, "stand still", self._stand_still),
            (2, "cut connections of PostgreSQL", self._cut_connections),
            (1, "stop PostgreSQL at once", self._stop_postgres),
            (1, "kill PostgreSQL", self._kill_postgres),
            (2, "kill Redis", self._kill_redis),
            (2, "empty Redis", self._empty_redis),
            (8, "mood of the carrier", self._mood),
            (2, "forged receipts", self._forge),
        ]

    async def calm(self) -> None:
        """The carrier at its best."""
        await self._tell(CALM)

    async def run(self, seconds: float) -> None:
        """Faults one after another for so long, then calm."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))
            weights = [weight for weight, _, _ in self._kinds]
            _, name, fault = self._random.choices(self._kinds, weights)[0]
            try:
                detail = await fault()
            except (*TRANSIENT, OSError, RedisError, aiohttp.ClientError, TimeoutError, LookupError) as error:
                # Whom the fault was for is not there: an earlier one has it.
                detail = f"nobody there ({type(error).__name__})"
            else:
                self.counts[name] += 1
            self._note(f"{name}: {detail}")

    async def close(self) -> None:
        """End what still goes on, and let everything that stands still go on."""
        for task in self._moods:
            task.cancel()
        await asyncio.gather(*self._moods, return_exceptions=True)
        for pid in list(self._stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        try:
            await self.calm()
        finally:
            await self._session.close()

    def _victim(self) -> tuple[str, int]:
        """A process of ours; not the simulator, whose memory is the proof."""
        processes = [child for child in self._stack.file.children if child.name != "carrier-simulator"]
        victim = self._random.choice(processes)
        return victim.name, victim.pid

    async def _kill(self) -> str:
        name, pid = self._victim()
        os.kill(pid, signal.SIGKILL)
        return name

    async def _stand_still(self) -> str:
        name, pid = self._victim()
        seconds = self._random.uniform(*STILL_SECONDS)
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        self._moods.append(asyncio.create_task(self._go_on(pid, seconds)))
        return f"{name} for {seconds:.1f} s"

    async def _go_on(self, pid: int, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stopped.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _cut_connections(self) -> str:
        async with await psycopg.AsyncConnection.connect(
            self._stack.file.database_url, autocommit=True, connect_timeout=5
        ) as connection:
            row = await (
                await connection.execute(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                    " where application_name like 'smsbill-%' and pid <> pg_backend_pid()"
                )
            ).fetchone()
        return f"{row[0] if row else 0} of them"

    def _postmaster(self) -> int:
        path = Path(self._stack.data_dir) / "postgres/postmaster.pid"
        return int(path.read_text().split()[0])

    async def _stop_postgres(self) -> str:
        os.kill(self._postmaster(), signal.SIGQUIT)
        return "without a checkpoint"

    async def _kill_postgres(self) -> str:
        os.kill(self._postmaster(), signal.SIGKILL)
        return "its main process"

    async def _kill_redis(self) -> str:
        async with Redis.from_url(self._stack.file.redis_url) as redis:
            pid = int((await redis.info("server"))["process_id"])
        os.kill(pid, signal.SIGKILL)
        return "with what it has on disk"

    async def _empty_redis(self) -> str:
        async with Redis.from_url(self._stack.file.redis_url) as redis:
            await redis.flushall()
        return "all of it"

    async def _mood(self) -> str:
        mood = self._random.choice(MOODS)
        seconds = self._random.uniform(*MOOD_SECONDS)
        await self._tell(mood)
        self._moods.append(asyncio.create_task(self._calm_after(mood, seconds)))
        return f"{dict(mood)} for {seconds:.1f} s"

    async def _calm_after(self, mood: Mapping[str, Any], seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._tell({name: CALM[name] for name in mood})

    async def _tell(self, settings: Mapping[str, Any]) -> None:
        async with self._session.post(f"{self._stack.file.simulator_url}/simulator/settings", json=settings) as answer:
            answer.raise_for_status()

    async def _forge(self) -> str:
        """Receipts that no carrier sent, with wrong credentials: each must be refused."""
        taken = 0
        for number in range(FORGERIES):
            query = {
                "receiver": "smsbill", "pswd": "guessed", "msgid": str(number), "reportTime": "2601010000",
                "mobile": f"138{number:08d}", "status": "UNDELIV", "uid": "",
            }  # fmt: skip
            url = f"{self._stack.file.gateway_url}/callbacks/chuanglan/report"
            async with self._session.get(url, params=query) as answer:
                taken += answer.status < 400
        if taken:
            self.counts["forged receipts taken"] += taken
        return f"{taken} of {FORGERIES} taken"
