"""Faults of a running stack, drawn by a seed. Each ends by itself, and everything that it stopped goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos import disk
from chaos.network import COSTCENTER, GATEWAY, Network
from chaos.proxy import Proxy
from infra.database import TRANSIENT
from smsbill.stack import Stack

PAUSE_SECONDS = (0.3, 2.5)
# A process that stands still for less than a lease, and for longer: it must not do again what others did meanwhile.
STILL_SECONDS = (0.2, 6.0)
MOOD_SECONDS = (1.0, 5.0)
FORGERIES = 20
SUPERUSER = "postgres"
DISK_POLL_SECONDS = 0.1
# A fault is ended again and again for so long: whom it meets may be away by then.
END_SECONDS = 30.0
END_POLL_SECONDS = 0.2
# Of faults that find nobody, or somebody who is busy with an earlier one.
NOBODY = (*TRANSIENT, psutil.Error, RedisError, aiohttp.ClientError, TimeoutError, LookupError, ValueError)
# On each way; an exchange takes both.
DELAY_SECONDS = (0.02, 0.3)
NETWORK_SECONDS = (0.5, 6.0)
# Whom a fault of the network meets: one way of one process, all that a process talks to, or all that talk to a part.
SCOPES = ("way", "caller", "called")
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

    Parameters: `stack` with its own servers and the simulator; `network` the proxies between its parts; `note` is told
    each fault in one line; `only` the kinds that are wanted, all where it is empty. Raises `ValueError` for a kind that
    there is not.
    """

    def __init__(
        self,
        stack: Stack,
        network: Network,
        randomness: random.Random,
        note: Callable[[str], None],
        only: Collection[str] = (),
    ) -> None:
        self.counts: Counter[str] = Counter()
        # Forged receipts that were taken; none may be.
        self.forged = 0
        self._stack = stack
        self._network = network
        self._random = randomness
        # Of the fault under way: what it draws by the state of things must not change the faults that follow.
        self._draws = randomness
        self._note = note
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_HTTP_SECONDS))
        self._ending: set[asyncio.Task[None]] = set()
        disks = (("PostgreSQL", self._fill_disk_of_postgres), ("Redis", self._fill_disk_of_redis))
        kinds: list[tuple[int, str, Callable[[], Awaitable[str]]]] = [
            (6, "kill", self._kill),
            (4, "stand still", self._stand_still),
            (2, "slow network", self._slow),
            (2, "cut", self._cut),
            (3, "reset", self._reset),
            (3, "black hole", self._black_hole),
            (3, "lost answers", self._lose_answers),
            (2, "refused connections", self._refuse),
            (2, "forgotten connections", self._forget),
            (2, "cut connections of PostgreSQL", self._cut_connections),
            (1, "stop PostgreSQL at once", self._stop_postgres),
            (1, "kill PostgreSQL", self._kill_postgres),
            (2, "kill Redis", self._kill_redis),
            (2, "empty Redis", self._empty_redis),
            (1, "memory of Redis full", self._fill_redis),
            (1, "PostgreSQL read-only", self._make_read_only),
            *((2, f"disk of {server} full", fill) for server, fill in disks if disk.POSSIBLE),
            (8, "mood of the carrier", self._mood),
            (2, "forged receipts", self._forge),
        ]
        if unknown := set(only) - {name for _, name, _ in kinds}:
            raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(k[1] for k in kinds)}")
        self._kinds = [kind for kind in kinds if not only or kind[1] in only]

    async def calm(self) -> None:
        """The carrier at its best."""
        await self._tell(CALM)

    async def run(self, over: asyncio.Event) -> None:
        """Faults one after another until it is over."""
        weights = [weight for weight, _, _ in self._kinds]
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), self._random.uniform(*PAUSE_SECONDS))
            if over.is_set():
                return
            _, name, fault = self._random.choices(self._kinds, weights)[0]
            self._draws = random.Random(self._random.getrandbits(64))
            try:
                detail = await fault()
            except NOBODY as error:
                # Whom the fault was for is not there: an earlier one has it.
                detail = f"nobody there ({type(error).__name__})"
            else:
                self.counts[name] += 1
            self._note(f"{name}: {detail}")

    async def close(self) -> None:
        """End what still goes on, and let everything that stands still go on."""
        ending = list(self._ending)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        try:
            for proxy in self._network.proxies():
                await _heal(proxy)
            await self.calm()
        finally:
            await self._session.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with something beside the faults that follow; `close` cancels it and waits for its end."""
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _afterwards(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        """End a fault after so long, or when `close` comes first."""

        async def end() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                await self._surely(act)

        self._spawn(end())

    async def _surely(self, act: Callable[[], Awaitable[None]]) -> None:
        end = time.monotonic() + END_SECONDS
        while True:
            try:
                return await act()
            except (*NOBODY, psycopg.Error) as error:
                # Another fault may still be in the way, such as a disk that takes nothing.
                if time.monotonic() > end:
                    self._note(f"a fault could not be ended: {error}")
                    raise
                await asyncio.sleep(END_POLL_SECONDS)

    def _victim(self) -> tuple[str, int]:
        """A process of ours; not the simulator, whose memory is the proof."""
        processes = [child for child in self._stack.file.children if child.name != "carrier-simulator"]
        victim = self._draws.choice(processes)
        return victim.name, victim.pid

    async def _kill(self) -> str:
        name, pid = self._victim()
        os.kill(pid, signal.SIGKILL)
        return name

    async def _stand_still(self) -> str:
        name, pid = self._victim()
        seconds = self._draws.uniform(*STILL_SECONDS)
        os.kill(pid, signal.SIGSTOP)

        async def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self._afterwards(seconds, go_on)
        return f"{name} for {seconds:.1f} s"

    # The network.

    def _ways(self) -> tuple[str, list[Proxy]]:
        """Whom a fault meets, and the ways there."""
        scope = self._draws.choice(SCOPES)
        caller, called = self._draws.choice(self._network.ways)
        if scope == "way":
            return f"{caller} → {called}", self._network.proxies(caller=caller, called=called)
        if scope == "caller":
            return f"{caller} → all", self._network.proxies(caller=caller)
        service = next((each for each in (COSTCENTER, GATEWAY) if called.startswith(each)), called)
        return f"all → {service}", [proxy for proxy in self._network.proxies() if proxy.called.startswith(service)]

    async def _slow(self) -> str:
        whom, proxies = self._ways()
        delay, seconds = self._draws.uniform(*DELAY_SECONDS), self._draws.uniform(*NETWORK_SECONDS)
        for proxy in proxies:
            proxy.delay_seconds = delay

        async def end() -> None:
            for proxy in proxies:
                proxy.delay_seconds = 0.0

        self._afterwards(seconds, end)
        return f"{whom} by {delay * 1_000:.0f} ms for {seconds:.1f} s"

    async def _cut(self) -> str:
        whom, proxies = self._ways()
        return f"{whom}, {sum(proxy.cut() for proxy in proxies)} connections"

    async def _reset(self) -> str:
        whom, proxies = self._ways()
        return f"{whom}, {sum(proxy.reset() for proxy in proxies)} connections"

    async def _black_hole(self) -> str:
        whom, proxies = self._ways()
        seconds, torn = self._draws.uniform(*NETWORK_SECONDS), self._draws.random() < 0.5
        count = sum(proxy.hold() for proxy in proxies)

        async def end() -> None:
            for proxy in proxies:
                if torn:
                    proxy.reset()
                proxy.release()

        self._afterwards(seconds, end)
        return f"{whom}, {count} connections for {seconds:.1f} s, then {'reset' if torn else 'goes on'}"

    async def _lose_answers(self) -> str:
        whom, proxies = self._ways()
        seconds = self._draws.uniform(*NETWORK_SECONDS)
        count = sum(proxy.mute() for proxy in proxies)

        async def end() -> None:
            for proxy in proxies:
                proxy.unmute()

        self._afterwards(seconds, end)
        return f"{whom}, {count} connections for {seconds:.1f} s, then reset"

    async def _refuse(self) -> str:
        whom, proxies = self._ways()
        seconds = self._draws.uniform(*NETWORK_SECONDS)
        for proxy in proxies:
            proxy.refuse()
            proxy.reset()

        async def end() -> None:
            for proxy in proxies:
                await proxy.accept()

        self._afterwards(seconds, end)
        return f"{whom} for {seconds:.1f} s"

    async def _forget(self) -> str:
        """Of gRPC alone: to the others a proxy that keeps a connection alive tells nothing of a firewall."""
        ways = [way for way in self._network.ways if way[1].startswith((COSTCENTER, GATEWAY))]
        caller, called = self._draws.choice(ways)
        count = sum(proxy.forget() for proxy in self._network.proxies(caller=caller, called=called))
        return f"{caller} → {called}, {count} connections, for good"

    # The servers.

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

    async def _fill_redis(self) -> str:
        seconds = self._draws.uniform(*NETWORK_SECONDS)
        await self._limit_redis("1")
        self._afterwards(seconds, lambda: self._limit_redis("0"))
        return f"for {seconds:.1f} s"

    async def _limit_redis(self, size: str) -> None:
        async with Redis.from_url(self._stack.file.redis_url) as redis:
            await redis.config_set("maxmemory", size)

    async def _fill_disk_of_redis(self) -> str:
        seconds = self._draws.uniform(*NETWORK_SECONDS)
        async with Redis.from_url(self._stack.file.redis_url) as redis:
            pid = int((await redis.info("server"))["process_id"])
        await disk.limit_files(pid, disk.FULL)

        async def end() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                await disk.limit_files(pid, disk.ROOMY)

        self._afterwards(seconds, end)
        return f"for {seconds:.1f} s"

    async def _fill_disk_of_postgres(self) -> str:
        """Nothing can be written, which PostgreSQL neither survives nor can start with; or tables do not grow."""
        seconds, all_of_it = self._draws.uniform(*NETWORK_SECONDS), self._draws.random() < 0.5
        pid, limit = self._postmaster(), disk.FULL if all_of_it else disk.FULL_FOR_TABLES
        await disk.limit_files(pid, limit)
        self._spawn(self._keep_full(pid, limit, seconds))
        return f"{'all of it' if all_of_it else 'no room for tables'} for {seconds:.1f} s"

    async def _keep_full(self, limited: int, limit: int, seconds: float) -> None:
        """A server that is started again meanwhile finds the disk as it was."""
        end = time.monotonic() + seconds
        gone = (OSError, LookupError, ValueError, psutil.Error)
        try:
            while time.monotonic() < end:
                with contextlib.suppress(*gone):
                    pid = self._postmaster()
                    if pid != limited:
                        await disk.limit_files(pid, limit)
                        limited = pid
                await asyncio.sleep(DISK_POLL_SECONDS)
        finally:
            with contextlib.suppress(*gone):
                await disk.limit_files(self._postmaster(), disk.ROOMY)

    async def _make_read_only(self) -> str:
        """As hosted servers are made before their disk is full."""
        seconds = self._draws.uniform(*NETWORK_SECONDS)
        await self._set_read_only("on")
        self._afterwards(seconds, lambda: self._set_read_only("off"))
        return f"for {seconds:.1f} s"

    async def _set_read_only(self, value: str) -> None:
        async with await psycopg.AsyncConnection.connect(
            self._stack.file.database_url, user=SUPERUSER, autocommit=True, connect_timeout=5
        ) as connection:
            await connection.execute(f"alter system set default_transaction_read_only = {value}".encode())
            await connection.execute("select pg_reload_conf()")

    # The carrier.

    async def _mood(self) -> str:
        mood = self._draws.choice(MOODS)
        seconds = self._draws.uniform(*MOOD_SECONDS)
        await self._tell(mood)
        self._afterwards(seconds, lambda: self._tell({name: CALM[name] for name in mood}))
        return f"{dict(mood)} for {seconds:.1f} s"

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
        self.forged += taken
        return f"{taken} of {FORGERIES} taken"


async def _heal(proxy: Proxy) -> None:
    """End every fault of a way. Where a part of an answer is lost, so is the connection."""
    proxy.delay_seconds = 0.0
    proxy.unmute()
    proxy.release()
    await proxy.accept()
