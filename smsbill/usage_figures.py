"""`smsbill usage --rebuild` and `--check`: usage figures made anew from the message records, and compared with them.

Both go on beside live traffic. A rebuild is whole for the brands of each of its steps, so one that is interrupted has
done no harm and is begun again, or goes on at the brand that it names.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from infra.database import Database
from infra.differences import Difference
from smsgateway.store import usage as store

# Called with what is done, how many brands so far and of how many.
Progress = Callable[[str, int, int], None]

DIFFERENCES_MAX = 10_000
# Brands listed in one go.
BRANDS_PER_PAGE = 10_000
# Folding waits while a step goes on, so a step is to take about so long: it has twice the brands of a shorter one, and
# half of those of a longer one. One brand is the least.
STEP_SECONDS = 2.0
BRANDS_PER_STEP_MAX = 1_000


async def rebuild(url: str, *, zone: str, from_brand: int, progress: Progress) -> int:
    """Make the figures of all brands from `from_brand` on anew; how many brands.

    Parameters: `url` of the gateway's database; `zone` the setting usage_time_zone. Raises `StartError` when the server
    cannot be reached.
    """
    async with _opened(url) as database:
        brands = await _brands(database, from_brand)
        done, size = 0, 1
        while done < len(brands):
            some = brands[done : done + size]
            progress(f"brand {some[0]}", done, len(brands))
            started = time.monotonic()
            await store.rebuild(database, some[0], some[-1], zone=zone)
            took = time.monotonic() - started
            done += len(some)
            size = min(size * 2, BRANDS_PER_STEP_MAX) if took < STEP_SECONDS else max(1, size // 2)
        progress("brands", len(brands), len(brands))
        return len(brands)


async def check(url: str, *, zone: str, progress: Progress) -> list[Difference]:
    """Where the figures are not what the records say, at most `DIFFERENCES_MAX`. Raises as `rebuild`."""
    found: list[Difference] = []
    async with _opened(url) as database:
        brands = await _brands(database, 1)
        done, size = 0, 1
        while done < len(brands) and len(found) < DIFFERENCES_MAX:
            some = brands[done : done + size]
            progress(f"brand {some[0]}", done, len(brands))
            started = time.monotonic()
            async with database.snapshot() as connection:
                different = store.differences(connection, some[0], some[-1], zone=zone, limit=DIFFERENCES_MAX)
                found += [difference async for difference in different]
            took = time.monotonic() - started
            done += len(some)
            size = min(size * 2, BRANDS_PER_STEP_MAX) if took < STEP_SECONDS else max(1, size // 2)
        progress("brands", min(done, len(brands)), len(brands))
    return found[:DIFFERENCES_MAX]


async def _brands(database: Database, first: int) -> list[int]:
    brands: list[int] = []
    after = first - 1
    while True:
        async with database.connection() as connection:
            page = await store.recorded_brands(connection, after=after, limit=BRANDS_PER_PAGE)
        brands += page
        if len(page) < BRANDS_PER_PAGE:
            return brands
        after = page[-1]


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, size=2, wait_seconds=30, name="usage")
    await database.open()
    try:
        yield database
    finally:
        await database.close()
