"""`python -m bench.alerts`: what a look at ten thousand brands costs, and how late it makes what runs beside it.

A stack without workers; the looks are made in this process, as a worker makes them, beside a task that does nothing but
wait for its turn: by how much that comes late is what a message in hand would wait. Each brand has three packages, a
balance of 300 past moments and 100 entries, most of them releases; ListBalances is asked page by page beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from pydantic import SecretStr
from redis.asyncio import Redis
from rich.table import Table

from bench.harness import console, stack, write
from infra.database import FRESH_PLAN_OPTIONS, Database
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from smsbill.client import Client
from smsgateway.alert_board import BUCKET_SECONDS, AlertBoard
from smsgateway.alerts import AlertKind, make_rule
from smsgateway.ledger_client import LedgerClient
from smsgateway.queues import Queues, open_redis
from smsgateway.store import alerts as store
from workers.accounts import Accounts
from workers.alert_watch import AlertWatch
from workers.settings import Settings

_PAGE = 1_000
# A look's duty lasts a millisecond, so that the next one is not another's.
_LOOK_SECONDS = 0.001
_FILL = (
    """
insert into costcenter.brand (brand_id, name, status, time_zone, refund_undelivered, created_at)
select b, 'Brand ' || b, 1, 'Asia/Shanghai', false, now() - interval '60 days' from generate_series(1, %(brands)s) b
""",
    """
insert into costcenter.package_queue
  (brand_id, package_id, source, source_no, granted, remaining, paid, sms_types, expires_at, created_at)
select b, p, 2, 'x', 100000, 100000 - 1000 * p, 1000 * p, '{}', now() + make_interval(days => 1 + p * 10), now()
from generate_series(1, %(brands)s) b, generate_series(1, 3) p
""",
    """
insert into costcenter.balance (brand_id, total, last_at, next_due_at, next_package_id, next_record_no)
select b, 294000, now() - interval '1 minute', now() + interval '5 days', 4, 1000
from generate_series(1, %(brands)s) b
""",
    """
insert into costcenter.balance_history (brand_id, at, total, frozen)
select b, now() - make_interval(hours => h), 294000 + h, 0
from generate_series(1, %(brands)s) b, generate_series(1, 300) h
""",
    """
insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
select b, h, now() - make_interval(hours => h), now(), case when h %% 50 = 0 then 1 else 4 end, 1 + h %% 3, 5, 'x'
from generate_series(1, %(brands)s) b, generate_series(1, 100) h
""",
)


async def fill(url: str, brands: int) -> None:
    """Brands with a past."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in _FILL:
            async with psycopg.AsyncClientCursor(connection) as cursor:
                await cursor.execute(statement.encode(), {"brands": brands})
        await connection.execute("vacuum analyze")


async def pages(client: Client, rounds: int, **fields: Any) -> list[float]:
    """Milliseconds of each page of ListBalances over all brands."""
    took = []
    for _ in range(rounds):
        request = admin_pb.ListBalancesRequest(page_size=_PAGE, **fields)
        started = time.perf_counter()
        async for _page in client.pages(client.admin.ListBalances, request):
            took.append((time.perf_counter() - started) * 1_000)
            started = time.perf_counter()
    return took


class Beside:
    """A task that waits for its turn again and again: by how much it comes late."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            self.late_ms.append((time.perf_counter() - started - 0.001) * 1_000)


class Looks:
    """Looks of one process after another, with what they cost."""

    def __init__(self, database: Database, redis: Redis, settings: Settings) -> None:
        self.database = database
        self.board = AlertBoard(redis)
        self._redis = redis
        self._settings = settings
        self._ledger = LedgerClient(settings)
        self.rows: list[dict[str, Any]] = []

    async def close(self) -> None:
        """Close the connection."""
        await self._ledger.close()

    def process(self) -> AlertWatch:
        """A watch that has seen nothing yet."""
        accounts = Accounts(
            self.database,
            self._redis,
            self._settings,
            worker="bench",
            default=None,
            connections_max=1,
            opened=lambda _: None,
            closing=_nothing,
        )
        return AlertWatch(
            database=self.database,
            queues=Queues(self._redis),
            board=self.board,
            ledger=self._ledger,
            accounts=accounts,
            identifiers=IdentifierSource(),
            worker="bench",
            settings=self._settings,
        )

    async def look(self, name: str, rounds: int = 1, watch: AlertWatch | None = None) -> None:
        """Look, each time as a new process or as the one given."""
        seconds, cpu, beside = [], [], Beside()
        task = asyncio.create_task(beside.run())
        for _ in range(rounds):
            looking = watch or self.process()
            await asyncio.sleep(0.01)
            started, used = time.perf_counter(), time.process_time()
            await looking.step()
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used)
        task.cancel()
        late = sorted(beside.late_ms)
        self.rows.append(
            {
                "look": name,
                "seconds": round(statistics.median(seconds), 2),
                "processor seconds": round(statistics.median(cpu), 2),
                "late p99, ms": round(late[int(len(late) * 0.99)], 1),
                "late at most, ms": round(late[-1], 1),
            }
        )
        console.print(self.rows[-1])


async def _nothing(_: Any) -> None:
    return None


@asynccontextmanager
async def looks(settings: Settings) -> AsyncIterator[Looks]:
    """What looks need, on connections of its own."""
    database = Database(settings.database_url, size=4, statements=4, wait_seconds=5, options=FRESH_PLAN_OPTIONS)
    await database.open()
    redis = open_redis(settings.redis_url, connections_max=4, timeout_seconds=5)
    made = Looks(database, redis, settings)
    try:
        yield made
    finally:
        await made.close()
        await redis.aclose()
        await database.close()


async def put(looking: Looks, kind: AlertKind, **figures: int) -> None:
    """A rule for all brands that is told by mail at once."""
    rule = make_rule(
        brand_id=0,
        kind=kind,
        sms_type=0,
        enabled=True,
        figures={"hold_seconds": 0, **figures},
        recipients=["bench@example.com"],
        webhooks=True,
    )
    async with looking.database.connection() as connection:
        await store.put_rule(connection, rule)


async def run_looks(looking: Looks, brands: int, rounds: int) -> None:
    """Nothing to tell, everything at once, everything over."""
    await looking.look("no rule", rounds)
    await put(looking, AlertKind.LOW_BALANCE, segments=1_000, days=1)
    await put(looking, AlertKind.EXPIRING, days=1)
    await looking.look("balances and ends, nothing to tell", rounds)
    await put(looking, AlertKind.FAILURES)
    now = time.time()
    for back in range(13):
        counts = {(brand_id, sms_type): (100, 3) for brand_id in range(1, brands + 1) for sms_type in (1, 3)}
        await looking.board.add_outcomes(counts, now=now - BUCKET_SECONDS * back)
    await looking.look("and failures of two types, first look of a process", rounds)
    watch = looking.process()
    await watch.step()
    await looking.look("and failures of two types, its next looks", rounds, watch)
    await put(looking, AlertKind.LOW_BALANCE, segments=10**6)
    await looking.look(f"{brands:,} balances are low at once")
    await looking.look("and nothing is new", rounds, watch)
    await put(looking, AlertKind.LOW_BALANCE, segments=1, days=0)
    await looking.look("and all are over at once")


async def measure(brands: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory(prefix="smsbill-bench-") as folder:
        async with stack(Path(folder), workers=0) as running:
            await fill(running.file.ledger_database_url, brands)
            client = running.client()
            listings = {
                "page of 1,000": await pages(client, rounds),
                "page of those below 1,000": await pages(client, rounds, available_below=1_000),
            }
            settings = Settings(
                _env_file=None,
                database_url=running.file.database_url,
                redis_url=running.file.redis_url,
                costcenter_target=running.file.costcenter_target,
                service_token=SecretStr(running.service_token),
                smtp_host="127.0.0.1",
                alert_seconds=_LOOK_SECONDS,
            )
            async with looks(settings) as looking:
                await run_looks(looking, brands, rounds)
            await client.close()
    return {"brands": brands, "pages": {name: _spread(took) for name, took in listings.items()}, "looks": looking.rows}


def _spread(took: Sequence[float]) -> dict[str, float]:
    return {
        "median, ms": round(statistics.median(took), 1),
        "least, ms": round(min(took), 1),
        "most, ms": round(max(took), 1),
    }


def show(result: dict[str, Any]) -> None:
    """The figures as tables."""
    listings = Table("ListBalances", *next(iter(result["pages"].values())))
    for name, spread in result["pages"].items():
        listings.add_row(name, *(f"{value:,}" for value in spread.values()))
    console.print(listings)
    table = Table(*result["looks"][0])
    for row in result["looks"]:
        table.add_row(*(f"{value:,}" if not isinstance(value, str) else value for value in row.values()))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.alerts", description=__doc__)
    parser.add_argument("--brands", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.brands, arguments.rounds))
    show(result)
    write("alerts", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
