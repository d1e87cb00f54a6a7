"""`python -m bench.flat`: what the payments on disk cost: the same calls on an empty ledger and on a full one, in turn.

Two stacks run side by side, of which one at a time is called. The full one's ledger is made by `bench.ledger_data`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from rich.table import Table

from bench import harness
from bench.figures import Figure
from bench.harness import CALLERS, console, stack, write
from bench.ledger_data import Shape
from bench.load import Target, batch_pairs, unary_pairs
from bench.reconcile import filled, latencies
from protos.costcenter.v1 import cost_center_pb2 as pb
from smsbill.stack import Stack

BATCHES, BATCH_SIZE, BATCH_CALLERS = 12, 1_000, 4
QUERIES = 300
BRANDS = 1_000
COUNT = "select count(*) from costcenter.payment"


async def one_round(running: Stack, seconds: float) -> dict[str, float]:
    """What is compared, once."""
    target = Target(running.file.costcenter_target, running.service_token)
    brands = range(1, BRANDS + 1)
    one = await unary_pairs(target, seconds=seconds, callers=CALLERS, brands=brands[:1])
    many = await unary_pairs(target, seconds=seconds, callers=CALLERS, brands=brands)
    batch_one = await batch_pairs(target, batches=BATCHES, size=BATCH_SIZE, callers=BATCH_CALLERS, brands=brands[:1])
    batch_many = await batch_pairs(target, batches=BATCHES, size=BATCH_SIZE, callers=BATCH_CALLERS, brands=brands)
    client = running.client()

    async def balance(randomness: random.Random) -> object:
        request = pb.GetBalanceRequest(brand_id=randomness.randint(1, BRANDS))
        return await client.call(client.ledger.GetBalance, request)

    try:
        median, p99 = await latencies(QUERIES, balance)
    finally:
        await client.close()
    return {
        "unary freeze and pay, one brand, calls/s": one.per_second,
        "unary freeze and pay, 1,000 brands, calls/s": many.per_second,
        "batches of 1,000, one brand, pairs/s": batch_one,
        "batches of 1,000, 1,000 brands, pairs/s": batch_many,
        "GetBalance, median ms": median,
        "GetBalance, p99 ms": p99,
    }


async def measure(shape: Shape, given: Path | None, rounds: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    runs: list[dict[str, dict[str, float]]] = []
    async with AsyncExitStack() as exits:
        folders = [Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="smsbill-bench-"))) for _ in range(2)]
        full_folder = given or folders[1]
        # Twice: what the services have planned on empty tables says nothing of full ones.
        async with stack(full_folder) as running:
            await filled(running, shape)
            await harness.fill(running, range(1, BRANDS + 1))
        empty = await exits.enter_async_context(stack(folders[0]))
        await harness.fill(empty, range(1, BRANDS + 1))
        full = await exits.enter_async_context(stack(full_folder))
        async with await psycopg.AsyncConnection.connect(full.file.ledger_database_url) as connection:
            row = await (await connection.execute(COUNT)).fetchone()
        # What the first calls read and plan is no round's.
        for running in (empty, full):
            await one_round(running, 1.0)
        for number in range(1, rounds + 1):
            order = (("empty", empty), ("full", full)) if number % 2 else (("full", full), ("empty", empty))
            runs.append({name: await one_round(running, seconds) for name, running in order})
            console.print(f"round {number} of {rounds}", runs[-1])
    return {
        "payments": row[0] if row else 0,
        "rounds": runs,
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goal 5."""
    runs = result["rounds"]

    def ratio(name: str) -> list[float]:
        return [run["full"][name] / run["empty"][name] for run in runs]

    calls = [name for name in runs[0]["empty"] if not name.endswith("ms")]
    title = f"with {round(result['payments'], -3):,} payments / empty"
    return [
        *(Figure(5, f"{name.rsplit(',', 1)[0]}, {title}", "", ratio(name), aim=0.8) for name in calls),
        # A tenth is what two empty ledgers differ by.
        Figure(5, f"GetBalance, time, {title}", "", ratio("GetBalance, median ms"), aim=1.1, at_most=True),
    ]


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    rounds = result["rounds"]
    table = Table("figure", "empty, median", "full, median", "full / empty, median", "least", "greatest")
    for name in rounds[0]["empty"]:
        ratios = [run["full"][name] / run["empty"][name] for run in rounds]
        medians = [statistics.median(run[which][name] for run in rounds) for which in ("empty", "full")]
        table.add_row(
            name,
            *(f"{value:,.1f}" for value in medians),
            *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
        )
    console.print(table)
    console.print(f"about {result['payments']:,} payments on disk")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.flat", description=__doc__)
    parser.add_argument("--payments", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="data folder to fill once and keep; not given: a temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each unary figure")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    shape = Shape(brands=BRANDS, payments=arguments.payments)
    result = uvloop.run(measure(shape, arguments.folder, arguments.rounds, arguments.seconds))
    show(result)
    write("flat", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
