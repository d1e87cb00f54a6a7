"""SQL of the ledger's figures for metrics: one look at each balance, and index look-ups. None reads records."""

from __future__ import annotations

from dataclasses import dataclass

from costcenter.model import BrandStatus
from infra.database import Connection

# A brand that never had a package is new, not drained.
TOTALS = f"""
select coalesce(sum(l.total), 0)::bigint, coalesce(sum(l.frozen), 0)::bigint,
    count(*) filter (where b.status = {BrandStatus.ACTIVE:d}),
    count(*) filter (where b.status = {BrandStatus.SUSPENDED:d}),
    count(*) filter (where b.status = {BrandStatus.CLOSED:d}),
    count(*) filter (where b.status = {BrandStatus.ACTIVE:d} and l.total <= l.frozen and l.next_package_id > 1)
from costcenter.balance l
join costcenter.brand b on b.brand_id = l.brand_id
"""

# The number of a brand's records tells how much it is used, without a look at them.
TOP_BRANDS = f"""
select l.brand_id, l.total, l.frozen
from costcenter.balance l
join costcenter.brand b on b.brand_id = l.brand_id
where b.status = {BrandStatus.ACTIVE:d}
order by l.next_record_no desc, l.brand_id
limit %s
"""

# A crowd of requests is counted up to a bound: beyond it the figure says enough.
WAITING = """
select
    (select count(*) from (select 1 from costcenter.release_request where next_at is not null limit 10000) r),
    coalesce((
        select extract(epoch from clock_timestamp() - min(r.created_at)) from (
            select created_at from costcenter.release_request where next_at is not null order by next_at limit 10000
        ) r
    ), 0)::float8,
    coalesce(extract(epoch from clock_timestamp() + make_interval(secs => %s) - (
        select min(next_due_at) from costcenter.balance where next_due_at is not null
    )), 0)::float8
"""


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Sums over all brands."""

    total: int
    frozen: int
    active: int
    suspended: int
    closed: int
    drained: int


async def totals(connection: Connection) -> LedgerTotals:
    """The sums."""
    row = await (await connection.execute(TOTALS)).fetchone()
    assert row is not None
    return LedgerTotals(*row)


async def top_brands(connection: Connection, limit: int) -> list[tuple[int, int, int]]:
    """(brand_id, total, frozen) of the active brands with the most records."""
    return [(row[0], row[1], row[2]) for row in await (await connection.execute(TOP_BRANDS, (limit,))).fetchall()]


async def waiting(connection: Connection, offset_seconds: float) -> tuple[int, float, float]:
    """Release requests that wait, the age of the oldest in seconds, and by how many seconds the sweep is late."""
    row = await (await connection.execute(WAITING, (offset_seconds,))).fetchone()
    assert row is not None
    return row[0], max(0.0, row[1]), max(0.0, row[2])
