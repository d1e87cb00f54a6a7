"""`python -m bench.reconcile`: how long `smsbill reconcile` takes on a large ledger, how fast the past answers on it.

The stack runs on a ledger that `bench.ledger_data` has made. Reconciling is the command itself, a process of its own,
once while nothing else happens and once while brands freeze and pay. Its memory is what it holds itself and what the
connections of PostgreSQL that work for it hold beside the buffers that they share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
import uvloop
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from bench.harness import console, stack, write
from bench.ledger_data import BEGIN_US, DAYS, Shape, fill
from bench.load import Target, unary_pairs
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsbill.client import Client
from smsbill.stack import Stack

SAMPLE_SECONDS = 0.2
RECONCILE_SECONDS_MAX = 900
CALLERS = 32
QUERIES = 300
MONTH = "2026-01"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One run of the command: its time, the most memory of it and of its connections, and what it found."""

    seconds: float
    command_megabytes: float
    connections_megabytes: float
    differences: int


async def reconcile(folder: Path, server_pid: int) -> Reconciled:
    """Run the command on the data folder of a stack and watch its memory."""
    before = {process.pid for process in psutil.Process(server_pid).children()}
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "smsbill", "reconcile", "--json",
        env={**os.environ, "SMSBILL_DATA_DIR": str(folder / "data")}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    watch = asyncio.create_task(_most_memory(process.pid, server_pid, before))
    try:
        out, _ = await asyncio.wait_for(process.communicate(), RECONCILE_SECONDS_MAX)
    finally:
        watch.cancel()
        if process.returncode is None:
            process.kill()
    seconds = time.perf_counter() - started
    own, connections = await watch
    return Reconciled(seconds, own, connections, len(json.loads(out)["differences"]))


async def _most_memory(pid: int, server_pid: int, before: set[int]) -> tuple[float, float]:
    """Until it is cancelled: the most that the process held, and the most that the connections made since held."""
    own = connections = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            with contextlib.suppress(psutil.Error):
                own = max(own, psutil.Process(pid).memory_info().rss / 1e6)
                new = [each for each in psutil.Process(server_pid).children() if each.pid not in before]
                connections = max(connections, sum(_unshared(each) for each in new) / 1e6)
            await asyncio.sleep(SAMPLE_SECONDS)
    return own, connections


def _unshared(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().uss)
    return 0


async def latencies(count: int, call: Callable[[random.Random], Awaitable[object]]) -> tuple[float, float]:
    """(median, 99th percentile) in milliseconds of calls one after the other."""
    randomness = random.Random(1)
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        await call(randomness)
        taken.append((time.perf_counter() - started) * 1_000)
    return statistics.median(taken), statistics.quantiles(taken, n=100)[-1]


async def past(client: Client, brands: int) -> dict[str, tuple[float, float]]:
    """What questions about the past cost, of brands and moments by chance."""

    def moment(randomness: random.Random, days: float = DAYS) -> datetime:
        return datetime.fromtimestamp(BEGIN_US / 1e6, UTC) + timedelta(days=randomness.uniform(0, days))

    def stamp(at: datetime) -> Timestamp:
        result = Timestamp()
        result.FromDatetime(at)
        return result

    async def balance(randomness: random.Random) -> object:
        request = pb.GetBalanceRequest(brand_id=randomness.randint(1, brands), as_of=stamp(moment(randomness)))
        return await client.call(client.ledger.GetBalance, request)

    async def history(randomness: random.Random) -> object:
        at = moment(randomness, DAYS - 1)
        request = pb.GetBalanceHistoryRequest(
            brand_id=randomness.randint(1, brands), to=stamp(at + timedelta(days=1)), step=Duration(seconds=3_600)
        )
        getattr(request, "from").CopyFrom(stamp(at))
        return await client.call(client.ledger.GetBalanceHistory, request)

    async def statement(randomness: random.Random) -> object:
        request = pb.GetStatementRequest(brand_id=randomness.randint(1, brands), month=MONTH, summary_only=True)
        return await client.call(client.ledger.GetStatement, request)

    async def now(randomness: random.Random) -> object:
        return await client.call(client.ledger.GetBalance, pb.GetBalanceRequest(brand_id=randomness.randint(1, brands)))

    return {
        "GetBalance now": await latencies(QUERIES, now),
        "GetBalance as of a moment": await latencies(QUERIES, balance),
        "GetBalanceHistory of a day by the hour": await latencies(QUERIES, history),
        "GetStatement of a month, sums": await latencies(QUERIES // 10, statement),
    }


async def filled(running: Stack, shape: Shape) -> None:
    """Fill the ledger unless an earlier run on the folder has."""
    url = running.file.ledger_database_url
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await (await connection.execute("select exists (select from costcenter.payment)")).fetchone()
    if found and found[0]:
        console.print("the folder has its payments")
        return
    started = time.perf_counter()
    await fill(url, shape, console.print)
    console.print(f"filled in {time.perf_counter() - started:,.0f} s")


@asynccontextmanager
async def _folder(given: Path | None) -> AsyncIterator[Path]:
    if given is not None:
        yield given
    else:
        with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as made:
            yield Path(made)


async def measure(shape: Shape, given: Path | None, rounds: int) -> dict[str, Any]:
    """All figures."""
    async with _folder(given) as folder:
        # Twice: what the services have planned on empty tables says nothing of full ones.
        async with stack(folder) as running:
            await filled(running, shape)
        async with stack(folder) as running:
            server = int((folder / "data/postgres/postmaster.pid").read_text().split()[0])
            client = running.client()
            try:
                questions = await past(client, shape.brands)
            finally:
                await client.close()
            console.print("reconcile")
            idle = [await reconcile(folder, server) for _ in range(rounds)]
            console.print("reconcile beside live operations")
            load = asyncio.create_task(
                unary_pairs(
                    Target(running.file.costcenter_target, running.service_token),
                    seconds=max(each.seconds for each in idle), callers=CALLERS, brands=range(1, shape.brands + 1),
                )
            )  # fmt: skip
            beside = await reconcile(folder, server)
            rate = await load
    return {
        "brands": shape.brands,
        "payments": shape.units * shape.brands,
        "milliseconds": questions,
        "reconcile": [as_dict(each) for each in idle],
        "beside": {**as_dict(beside), "calls_per_second": rate.per_second},
    }


def as_dict(run: Reconciled) -> dict[str, float]:
    """As JSON takes it."""
    return {
        "seconds": round(run.seconds, 1),
        "command_megabytes": round(run.command_megabytes, 1),
        "connections_megabytes": round(run.connections_megabytes, 1),
        "differences": run.differences,
    }


def show(result: dict[str, Any]) -> None:
    """The figures as tables."""
    table = Table("question", "median, ms", "p99, ms")
    for name, (median, p99) in result["milliseconds"].items():
        table.add_row(name, f"{median:.1f}", f"{p99:.1f}")
    console.print(table)
    table = Table("reconcile", "seconds", "command, MB", "its connections, MB", "differences")
    for name, run in (*(("idle", each) for each in result["reconcile"]), ("beside calls", result["beside"])):
        table.add_row(
            name, *(str(run[key]) for key in ("seconds", "command_megabytes", "connections_megabytes", "differences"))
        )
    console.print(table)
    console.print(f"{result['payments']:,} payments; calls/s beside: {result['beside']['calls_per_second']:,.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.reconcile", description=__doc__)
    parser.add_argument("--payments", type=int, default=1_000_000)
    parser.add_argument("--brands", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of the command while nothing else happens")
    parser.add_argument("--folder", type=Path, help="data folder to fill once and keep; not given: a temporary one")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    shape = Shape(brands=arguments.brands, payments=arguments.payments)
    result = uvloop.run(measure(shape, arguments.folder, arguments.rounds))
    show(result)
    write("reconcile", result)
    return 1 if any(run["differences"] for run in (*result["reconcile"], result["beside"])) else 0


if __name__ == "__main__":
    sys.exit(main())
