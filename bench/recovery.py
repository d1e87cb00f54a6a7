"""`python -m bench.recovery`: how soon the full rate is back after a process or a server dies.

Callers send single messages at a steady rate through the whole stack, each again with the same request_id until it is
accepted, as real callers do. The carrier's own record tells when it took each; its mean rate over `STEADY` seconds is
compared with the callers'. The rate is back at the first second after which the mean has at least `FULL` of that, and
whole after the last one that has not, so a stack that comes back and falls again is not whole. The ledger is reconciled
at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import uvloop
from redis.asyncio import Redis
from rich.table import Table

from bench.harness import console, differences, fill, stack, write
from bench.watch import Watch, until, watching
from chaos.load import AGAIN
from protos.costcenter.v1 import types_pb2
from protos.smsgateway.v1 import sms_gateway_pb2 as pb
from smsbill.client import Client
from smsbill.stack import Stack

BRANDS = 100
# Share of the callers' rate that counts as the whole, and the seconds over which it is looked at: groups, beats and the
# machine's moods make single seconds uneven, with no fault as well.
FULL = 0.9
STEADY = 3
WARM_SECONDS = 5.0
PAUSE_BETWEEN_SECONDS = 5.0
# Longer than what is aimed at, so that what is missed is seen.
AFTER_SECONDS = {"worker": 20, "costcenter": 20, "gateway": 20, "PostgreSQL": 35, "Redis": 35}
GOALS = {"worker": 10, "costcenter": 10, "gateway": 10, "PostgreSQL": 30, "Redis": 30}
CALL_SECONDS = 5.0
PAUSE_SECONDS = (0.05, 0.2)
END_SECONDS = 120.0
# Calls without an answer, at most: what a caller in need gives up, a bench counts.
CALLS_MAX = 20_000
_PAGE = 10_000


class Callers:
    """Start a call every so often, whatever becomes of those before."""

    def __init__(self, client: Client, rate: float) -> None:
        self.accepted = 0
        self._client = client
        self._rate = rate
        self._run = secrets.token_hex(4)
        self._waiting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Send until cancelled. Raises `RuntimeError` when too many calls wait for an answer."""
        started, number = time.perf_counter(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, started + number / self._rate - time.perf_counter()))
            if len(self._waiting) >= CALLS_MAX:
                raise RuntimeError("too many calls without an answer")
            task = asyncio.create_task(self._send(number))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def ended(self) -> None:
        """Wait until every call has its answer."""
        async with asyncio.timeout(END_SECONDS):
            await asyncio.gather(*self._waiting)

    async def _send(self, number: int) -> None:
        request = pb.SendSmsRequest(
            brand_id=1 + number % BRANDS, request_id=f"{self._run}-{number}",
            sms_type=types_pb2.SMS_TYPE_VERIFICATION, mobile=f"+86139{number % 10**7:07d}5",
            text="【示例】验证码 482913，5 分钟内有效。",
        )  # fmt: skip
        while True:
            try:
                await self._client.gateway.SendSms(request, metadata=self._client.metadata, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    raise
                await asyncio.sleep(random.uniform(*PAUSE_SECONDS))
            else:
                self.accepted += 1
                return


async def _kill(running: Stack, prefix: str) -> None:
    os.kill(next(child.pid for child in running.file.children if child.name.startswith(prefix)), signal.SIGKILL)


async def _stop_postgres(running: Stack) -> None:
    """As after a loss of power: without a checkpoint, so that it has to recover first."""
    os.kill(int((Path(running.data_dir) / "postgres/postmaster.pid").read_text().split()[0]), signal.SIGQUIT)


async def _kill_redis(running: Stack) -> None:
    async with Redis.from_url(running.file.redis_url) as redis:
        os.kill(int((await redis.info("server"))["process_id"]), signal.SIGKILL)


FAULTS: dict[str, Callable[[Stack], Awaitable[None]]] = {
    "worker": lambda running: _kill(running, "worker"),
    "costcenter": lambda running: _kill(running, "costcenter"),
    "gateway": lambda running: _kill(running, "gateway"),
    "PostgreSQL": _stop_postgres,
    "Redis": _kill_redis,
}


async def _taken(watch: Watch, after: int) -> list[float]:
    """When the carrier took what it took after an entry, in seconds since 1970."""
    moments: list[float] = []
    while True:
        entries, _ = await watch.taken_on(after, _PAGE)
        moments += [datetime.fromisoformat(entry["time"]).timestamp() for entry in entries]
        if len(entries) < _PAGE:
            return moments
        after = entries[-1]["n"]


def recovery(moments: Sequence[float], fault_at: float, rate: float, after: int) -> dict[str, Any]:
    """What a fault cost: seconds until the callers' rate is back, and until it is whole and stays so, None when it
    never is in this time; what was taken in each second after the fault.
    """
    counts = Counter(int(moment - fault_at) for moment in moments if moment >= fault_at)
    seconds = [counts[second] for second in range(after)]
    starts = range(after - STEADY + 1)
    low = [start for start in starts if sum(seconds[start : start + STEADY]) < FULL * rate * STEADY]
    back = next((start for start in starts if start not in low), None)
    whole = low[-1] + 1 if low else 0
    return {
        "back_seconds": back,
        "whole_seconds": whole if whole in starts else None,
        "missing_share": round(max(0.0, 1 - sum(seconds) / (rate * after)), 3),
        "seconds": seconds,
    }


async def _round(running: Stack, watch: Watch, fault: str, rate: float) -> dict[str, Any]:
    """One fault while callers send."""
    _, totals = await watch.taken_on(0, 1)
    first = int(totals["messages"])
    await asyncio.sleep(PAUSE_BETWEEN_SECONDS)
    fault_at = time.time()
    await FAULTS[fault](running)
    await asyncio.sleep(AFTER_SECONDS[fault])
    found = recovery(await _taken(watch, first), fault_at, rate, AFTER_SECONDS[fault])
    console.print(f"{fault}: {found['back_seconds']}, {found['whole_seconds']} s, {found['seconds']}", highlight=False)
    return found


async def measure(faults: Sequence[str], rounds: int, rate: float) -> dict[str, Any]:
    """Each fault so many times on one stack, in turn."""
    results: dict[str, list[dict[str, Any]]] = {fault: [] for fault in faults}
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            await fill(running, range(1, BRANDS + 1))
            client = running.client()
            callers = Callers(client, rate)
            sending = asyncio.create_task(callers.run())
            try:
                await asyncio.sleep(WARM_SECONDS)
                for _ in range(rounds):
                    for fault in faults:
                        results[fault].append(await _round(running, watch, fault, rate))
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                try:
                    await callers.ended()
                finally:
                    await client.close()

            async def all_taken() -> bool:
                _, totals = await watch.taken_on(0, 1)
                return int(totals["messages"]) >= callers.accepted - _unknown(results, rate)

            await until(all_taken, seconds_max=END_SECONDS)
            processes = {name.rstrip("-0123456789") for name in (child.name for child in running.file.children)}
            found = await differences(running)
    return {
        "rate": rate, "rounds": rounds, "processors": psutil.cpu_count(), "processes": sorted(processes),
        "faults": results, "differences": found,
    }  # fmt: skip


def _unknown(results: dict[str, list[dict[str, Any]]], rate: float) -> int:
    """Marked calls that a dead worker may never have made: what a second brings, for each worker that was killed."""
    return int(rate * len(results.get("worker", ())))


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table("fault", "aim, s", "back after, s", "whole after, s", "not taken in that time")
    for fault, runs in result["faults"].items():
        table.add_row(
            fault, str(GOALS[fault]),
            *(", ".join(_told(run[name]) for run in runs) for name in ("back_seconds", "whole_seconds")),
            ", ".join(f"{run['missing_share']:.0%}" for run in runs),
        )  # fmt: skip
    console.print(table)
    console.print("differences in reconcile:", len(result["differences"]))


def _told(seconds: float | None) -> str:
    return "not in that time" if seconds is None else f"{seconds:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.recovery", description=__doc__)
    parser.add_argument("--only", metavar="FAULTS", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}; by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200, help="messages a second")
    options = parser.parse_args()
    faults = options.only.split(",")
    if unknown := set(faults) - FAULTS.keys():
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    result = uvloop.run(measure(faults, options.rounds, options.rate))
    show(result)
    write("recovery", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
