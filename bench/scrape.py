"""`python -m bench.scrape`: what it costs to be watched.

A stack sends messages; by how much its counters and histograms have grown says how often a message is counted, and the
time that counting takes here, what that costs at most. Then it is scraped many times, and the processor time of each
process is divided by the scrapes; the figures of the ledger are asked many times with ten thousand brands and with ten
times as many. What the rate of messages is without metrics is told by `bench.price --only "without metrics"`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvloop
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from bench.harness import console, fill, stack, write
from bench.load import Target, single_messages
from bench.watch import POSTGRES, SIMULATOR, Watch, watching
from infra.grpc_server import bearer, open_channel
from protos.costcenter.v1.ledger_figures_pb2 import GetLedgerFiguresRequest
from protos.costcenter.v1.ledger_figures_pb2_grpc import LedgerFiguresStub
from smsbill.stack import Stack

_CALLERS = 32
_MESSAGES = 2_000
_SECONDS_MAX = 300.0
_CALL_SECONDS = 30.0
_COST_CENTRE = "costcenter"

# Brands and balances alone: that is all that the figures look at.
_BRANDS = """
with made as (
    insert into costcenter.brand (brand_id, name, status, time_zone, refund_undelivered, created_at)
    select n, 'b', 1, 'UTC', false, now() from generate_series(%s::bigint, %s::bigint) n returning brand_id
)
insert into costcenter.balance (brand_id, total, next_package_id, next_record_no)
select brand_id, 100, 2, 1 + brand_id %% 1000 from made
"""


async def scrapes(running: Stack, watch: Watch, count: int) -> dict[str, dict[str, float]]:
    """Of each process: processor milliseconds of a scrape, its kilobytes, and its series."""
    result: dict[str, dict[str, float]] = {}
    async with aiohttp.ClientSession() as session:
        for name, url in running.file.scrape_urls.items():
            before = (await watch.processes())[name].seconds
            text = b""
            for _ in range(count):
                async with session.get(url) as answer:
                    text = await answer.read()
            spent = (await watch.processes())[name].seconds - before
            series = sum(1 for line in text.splitlines() if not line.startswith(b"#"))
            result[name] = {"ms": 1_000 * spent / count, "kilobytes": len(text) / 1_000, "series": series}
    return result


async def counted(running: Stack) -> dict[str, float]:
    """How often anything was counted so far: `observe` calls of histograms; `inc` calls of counters, at most."""
    calls = {"observe": 0.0, "inc": 0.0}
    async with aiohttp.ClientSession() as session:
        for name, url in running.file.scrape_urls.items():
            if name == SIMULATOR:
                continue
            async with session.get(url) as answer:
                text = await answer.text()
            for family in text_string_to_metric_families(text):
                if not family.name.startswith("smsbill_") or "segments" in family.name:
                    continue
                for sample in family.samples:
                    if family.type == "histogram" and sample.name.endswith("_count"):
                        calls["observe"] += sample.value
                    elif family.type == "counter":
                        # What counts the items of a group does it in one call.
                        calls["inc"] += sample.value
    return calls


def microseconds() -> dict[str, float]:
    """What one such call takes here, labels looked up as they mostly are."""
    registry = CollectorRegistry()
    histogram = Histogram("a", "a", ["b"], registry=registry)
    counter = Counter("c", "c", ["d", "e"], registry=registry)
    rounds = 50_000
    return {
        "observe": 1e6 * min(timeit.repeat(lambda: histogram.labels("x").observe(0.1), number=rounds)) / rounds,
        "inc": 1e6 * min(timeit.repeat(lambda: counter.labels("x", "y").inc(), number=rounds)) / rounds,
    }


async def figures(running: Stack, watch: Watch, brands: int, count: int) -> dict[str, float]:
    """Milliseconds of a question for the ledger's figures with so many brands: how long it takes, and the processor
    time of the cost centre and of PostgreSQL.
    """
    async with await psycopg.AsyncConnection.connect(running.file.ledger_database_url, autocommit=True) as connection:
        row = await (await connection.execute("select coalesce(max(brand_id), 0) from costcenter.brand")).fetchone()
        assert row is not None
        if row[0] < brands:
            await connection.execute(_BRANDS, (row[0] + 1, brands))
            await connection.execute("vacuum analyze costcenter.brand, costcenter.balance")
    took = []
    async with open_channel(running.settings, running.file.costcenter_target) as channel:
        stub: Any = LedgerFiguresStub(channel)
        request = GetLedgerFiguresRequest(brands_max=running.settings.metrics_brands)
        before = await watch.processes()
        for _ in range(count):
            started = time.perf_counter()
            await stub.GetLedgerFigures(request, metadata=bearer(running.service_token), timeout=_CALL_SECONDS)
            took.append(1_000 * (time.perf_counter() - started))
        after = await watch.processes()
    spent = {name: 1_000 * (after[name].seconds - before[name].seconds) / count for name in (_COST_CENTRE, POSTGRES)}
    return {"ms": statistics.median(took), "ms_max": max(took), **spent}


async def measure(count: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running, watching(running) as watch:
            brands = range(1, 21)
            await fill(running, brands)
            before = await counted(running)
            await single_messages(
                Target(running.file.gateway_target, running.file.token), running.file.database_url,
                messages=_MESSAGES, callers=_CALLERS, brands=brands, seconds_max=_SECONDS_MAX,
            )  # fmt: skip
            after = await counted(running)
            calls = {name: (after[name] - before[name]) / _MESSAGES for name in after}
            each = microseconds()
            return {
                "counting": {
                    name: {"calls": calls[name], "us": each[name], "us_a_message": calls[name] * each[name]}
                    for name in calls
                },
                "scrapes": await scrapes(running, watch, count),
                "figures": {str(n): await figures(running, watch, n, count // 2) for n in (10_000, 100_000)},
            }


def show(result: dict[str, Any]) -> None:
    """The figures as tables."""
    table = Table("counting", "calls a message", "µs each", "µs a message")
    for name, each in result["counting"].items():
        table.add_row(name, f"{each['calls']:.1f}", f"{each['us']:.2f}", f"{each['us_a_message']:.0f}")
    console.print(table)
    table = Table("process", "processor ms a scrape", "kB", "series")
    for name, each in result["scrapes"].items():
        table.add_row(name, f"{each['ms']:.1f}", f"{each['kilobytes']:.0f}", f"{each['series']:.0f}")
    console.print(table)
    table = Table("brands", "ms (median)", "ms (most)", "processor ms, cost centre", "processor ms, PostgreSQL")
    for brands, each in result["figures"].items():
        table.add_row(
            f"{int(brands):,}", f"{each['ms']:.0f}", f"{each['ms_max']:.0f}", f"{each[_COST_CENTRE]:.1f}",
            f"{each[POSTGRES]:.1f}",
        )  # fmt: skip
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.scrape", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="scrapes of each process")
    options = parser.parse_args()
    result = uvloop.run(measure(options.count))
    show(result)
    write("scrape", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
