"""`python -m bench.expiry`: many packages of many brands end at one moment; how long until all of that is booked.

Twice in one run: while nothing else happens, and while callers freeze and pay on some of the same brands. What these
do is compared with what they do before the moment and after it, on the same brands.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from rich.table import Table

from bench.figures import Figure
from bench.harness import CALLERS, console, differences, stack, write
from bench.load import Rate, Target, unary_pairs

LIVE_BRANDS = 1_000
SEGMENTS = 100_000_000
# Between two looks whether all is booked.
POLL_SECONDS = 0.25
# Until the sweep must be through.
BOOKED_SECONDS_MAX = 600
# From the end of a grant to the moment when what it gave ends, at least.
LEAD_SECONDS_MIN = 1

# Packages as an operator grants them. Whoever holds a lane's brands in memory is told by the lane's version.
_LOCK = "update costcenter.lane set version = version + 1"
_BRANDS = """
insert into costcenter.brand (brand_id, name, status, time_zone, refund_undelivered, created_at)
select i, 'Brand ' || i, 1, 'Asia/Shanghai', false, clock_timestamp() from generate_series(1, %s) i
"""
_BALANCES = "insert into costcenter.balance (brand_id) select brand_id from costcenter.brand"
# The moment is one for all; nothing of these brands is younger, and their freezes of today end tomorrow.
_GIVEN = """
create temporary table given on commit drop as
select l.brand_id, l.next_package_id + p as package_id, l.next_record_no + p as record_no,
    %(segments)s::bigint as segments,
    %(ends)s::timestamptz as expires_at, clock_timestamp() as at,
    'bench-' || lpad((l.next_package_id + p)::text, 8, '0') as number
from costcenter.balance l cross join generate_series(0, %(packages)s - 1) p
order by l.brand_id, p
"""
_GRANT = (
    "update given set at = (select max(at) from given)",
    """
insert into costcenter.adjustment (brand_id, adjustment_no, kind, package_id, segments, author, reason, created_at)
select brand_id, number, 1, package_id, segments, 'bench', 'bench', at from given
""",
    """
insert into costcenter.package_queue (brand_id, package_id, source, source_no, granted, remaining, sms_types,
    expires_at, created_at)
select brand_id, package_id, 2, number, segments, segments, '{}', expires_at, at from given
""",
    """
insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
select brand_id, record_no, at, at, 1, package_id, segments, number from given
""",
    """
update costcenter.balance l set total = total + g.segments, last_at = g.at,
    next_due_at = least(l.next_due_at, g.expires_at), next_package_id = l.next_package_id + g.packages,
    next_record_no = l.next_record_no + g.packages
from (
    select brand_id, sum(segments) as segments, max(at) as at, min(expires_at) as expires_at, count(*) as packages
    from given group by brand_id
) g
where l.brand_id = g.brand_id
""",
    """
insert into costcenter.balance_history (brand_id, at, total, frozen)
select brand_id, last_at, total, frozen from costcenter.balance
""",
)
_LEFT = "select count(*) from costcenter.balance where next_due_at <= %s"


@dataclass(frozen=True, slots=True)
class Shape:
    """How much ends at once."""

    brands: int
    packages: int

    @property
    def each(self) -> int:
        """Packages of a brand."""
        return self.packages // self.brands


async def grant(url: str, packages: int, segments: int, ends: datetime | None) -> None:
    """Give every brand packages that end at a moment, or never."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(_LOCK)
        values = {"packages": packages, "segments": segments, "ends": ends}
        async with psycopg.AsyncClientCursor(connection) as cursor:
            await cursor.execute(_GIVEN, values)
        for statement in _GRANT:
            await connection.execute(statement.encode())
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("vacuum analyze costcenter.package_queue, costcenter.entry, costcenter.balance")
        # What the filling left for the disk is not to be written while the sweep is measured.
        await connection.execute("checkpoint")


async def booked(url: str, ends: datetime) -> float:
    """Seconds from a moment until nothing is left to be booked that was due then."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await asyncio.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
        started = time.perf_counter()
        shown = 0.0
        while (elapsed := time.perf_counter() - started) < BOOKED_SECONDS_MAX:
            row = await (await connection.execute(_LEFT, (ends,))).fetchone()
            assert row is not None
            if not row[0]:
                return elapsed
            if elapsed - shown >= 5:
                shown = elapsed
                console.print(f"{elapsed:,.0f} s: {row[0]:,} brands left")
            await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError(f"the sweep was not through within {BOOKED_SECONDS_MAX} s")


async def idle(url: str, shape: Shape, fill_seconds: float) -> float:
    """The sweep while nothing else happens."""
    ends = datetime.now(UTC) + timedelta(seconds=fill_seconds)
    console.print(f"granting {shape.packages:,} packages")
    await grant(url, shape.each, 1, ends)
    _require_lead(ends)
    return await booked(url, ends)


async def beside(
    url: str, target: Target, shape: Shape, fill_seconds: float, seconds: float
) -> tuple[float, list[Rate], list[Rate]]:
    """The sweep while callers freeze and pay: its seconds, and their rates beside it, and without it."""
    brands = range(1, min(LIVE_BRANDS, shape.brands) + 1)

    async def load(for_seconds: float) -> Rate:
        return await unary_pairs(target, seconds=for_seconds, callers=CALLERS, brands=brands)

    ends = datetime.now(UTC) + timedelta(seconds=fill_seconds + 2 * seconds)
    console.print(f"granting {shape.packages:,} packages")
    await grant(url, shape.each, 1, ends)
    # The first calls of a brand after a grant read its packages.
    await load(seconds)
    before = await load(seconds)
    _require_lead(ends)
    await asyncio.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
    sweep = asyncio.create_task(booked(url, ends))
    during = []
    while not sweep.done():
        during.append(await load(2.0))
        console.print(f"beside the sweep: {during[-1].per_second:,.0f} calls/s, p99 {during[-1].p99_ms:,.0f} ms")
    after = await load(seconds)
    return await sweep, during, [before, after]


def _require_lead(ends: datetime) -> None:
    if (ends - datetime.now(UTC)).total_seconds() < LEAD_SECONDS_MIN:
        raise TimeoutError("granting took too long; give it more --fill-seconds")


async def measure(shape: Shape, rounds: int, seconds: float, fill_seconds: float, alone: bool) -> dict[str, Any]:
    """All figures."""
    runs = []
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder)) as running:
            url = running.file.ledger_database_url
            target = Target(running.file.costcenter_target, running.service_token)
            async with await psycopg.AsyncConnection.connect(url) as connection:
                await connection.execute(_BRANDS, (shape.brands,))
                await connection.execute(_BALANCES)
            await grant(url, 1, SEGMENTS, None)
            for number in range(1, rounds + 1):
                console.print(f"round {number} of {rounds}")
                figures: dict[str, float] = {}
                if alone:
                    figures["seconds, nothing else"] = round(await idle(url, shape, fill_seconds), 1)
                    console.print(figures)
                took, during, without = await beside(url, target, shape, fill_seconds, seconds)
                console.print(f"beside calls: {took:,.1f} s")
                runs.append(figures | _as_dict(took, during, without))
            found = await differences(running)
    return {
        "brands": shape.brands,
        "packages": shape.each * shape.brands,
        "rounds": runs,
        "differences": found,
    }


def _as_dict(took: float, during: list[Rate], without: list[Rate]) -> dict[str, float]:
    beside_rate = sum(rate.per_second for rate in during) / len(during)
    # The better of before and after: a ratio that flatters is none.
    best = max(rate.per_second for rate in without)
    return {
        "seconds, beside calls": round(took, 1),
        "calls/s before": round(without[0].per_second),
        "calls/s beside the sweep": round(beside_rate),
        "calls/s after": round(without[1].per_second),
        "ratio": round(beside_rate / best, 2),
        "p99 beside the sweep, ms": round(max(rate.p99_ms for rate in during), 1),
        "p99 without, ms": round(max(rate.p99_ms for rate in without), 1),
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """What it says of goal 7."""
    runs, title = result["rounds"], f"ends of {result['packages']:,} packages"
    found = []
    if "seconds, nothing else" in runs[0]:
        found.append(
            Figure(7, f"{title}, nothing else", "s", [run["seconds, nothing else"] for run in runs], 60, at_most=True)
        )
    return [
        *found,
        Figure(7, f"{title}, beside calls", "s", [run["seconds, beside calls"] for run in runs], 60, at_most=True),
        Figure(7, "calls beside it / without", "", [run["ratio"] for run in runs], aim=0.7),
    ]


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    rounds = result["rounds"]
    table = Table("figure", *(f"round {number}" for number in range(1, len(rounds) + 1)))
    for name in rounds[0]:
        table.add_row(name, *(f"{run[name]:,}" for run in rounds))
    console.print(table)
    console.print(f"{result['packages']:,} packages of {result['brands']:,} brands")
    console.print("differences in reconcile:", len(result["differences"]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.expiry", description=__doc__)
    parser.add_argument("--brands", type=int, default=10_000)
    parser.add_argument("--packages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of calls without a sweep, before and after it")
    parser.add_argument("--fill-seconds", type=float, default=60.0, help="from the grant's start to the packages' end")
    parser.add_argument("--beside-only", action="store_true", help="not while nothing else happens")
    arguments = parser.parse_args()
    shape = Shape(brands=arguments.brands, packages=arguments.packages)
    result = uvloop.run(
        measure(shape, arguments.rounds, arguments.seconds, arguments.fill_seconds, not arguments.beside_only)
    )
    show(result)
    write("expiry", result)
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
