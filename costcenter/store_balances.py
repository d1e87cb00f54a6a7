"""SQL of balances of many brands: a page of them with what each paid lately and what it loses next.

What a brand paid less what came back follows from its balance then and now and from what else changed the total
between: grants, claw backs and expiries, which are few and have an index of their own. So the page reads neither
payments nor refunds, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from costcenter.model import Brand, EntryKind, Package, PackageSource
from costcenter.store import BRAND_COLUMNS, LOAD_LIVE_PACKAGES, brand_from_row, package_from_row
from infra import arrays
from infra.database import Connection

# Brands are passed over here whose balance is surely no less than asked. What has become due for a brand can still
# lower or raise what is available; whoever has something due is therefore among the candidates.
BALANCES_PAGE = f"""
with scanned as materialized (
    select {BRAND_COLUMNS}, b.created_at, greatest(l.last_at, %(now)s) as now
    from costcenter.brand b join costcenter.balance l on l.brand_id = b.brand_id
    where b.brand_id > %(after)s and (%(allowed)s::bigint[] is null or b.brand_id = any(%(allowed)s::bigint[]))
    order by b.brand_id limit %(scan)s
),
page as materialized (
    select * from scanned
    where (%(status)s = 0 or status = %(status)s)
      and (%(prefix)s = '' or starts_with(lower(name), lower(%(prefix)s)))
      and (%(below)s::bigint is null or total - frozen < %(below)s::bigint or next_due_at <= now)
    order by brand_id limit %(limit)s
)
select e.scanned, e.last, k.*, k.total_then - k.total + k.changed as paid
from (select count(*) as scanned, max(brand_id) as last from scanned) e
left join lateral (
    select p.*, coalesce(h.total, 0) as total_then, coalesce(c.segments, 0)::bigint as changed, x.expires_at, x.segments
    from page p
    left join lateral (
        select h.total from costcenter.balance_history h
        where h.brand_id = p.brand_id and h.at <= p.now - %(window)s order by h.at desc limit 1
    ) h on true
    left join lateral (
        select sum(case when n.kind = {EntryKind.GRANT:d} then n.segments else -n.segments end) as segments
        from costcenter.entry n
        where n.brand_id = p.brand_id and n.at > p.now - %(window)s
          and n.kind not in ({EntryKind.RELEASE:d}, {EntryKind.TIME_OUT:d})
          and (n.kind <> {EntryKind.GRANT:d} or (
            select q.source from costcenter.package_queue q
            where q.brand_id = n.brand_id and q.package_id = n.package_id
          ) <> {PackageSource.REFUND:d})
    ) c on true
    left join lateral (
        select q.expires_at, sum(q.remaining - q.held)::bigint as segments from costcenter.package_queue q
        where q.brand_id = p.brand_id and q.is_live and q.held < q.remaining and q.expires_at > p.now
        group by q.expires_at order by q.expires_at limit 1
    ) x on true
) k on true
order by k.brand_id
"""

_BRAND_FIELDS = len(BRAND_COLUMNS.split(","))


@dataclass(slots=True)
class BrandBalance:
    """What a brand has at a moment.

    `paid`: segments paid in the window less those refunded in it, as far as recorded, which is all: what becomes due
    pays nothing. `expires_at`, `expiring`: the soonest end of a package with something available and how much that is;
    None and 0: nothing ends.
    """

    brand: Brand
    created_at: datetime
    as_of: datetime
    available: int
    paid: int
    expires_at: datetime | None
    expiring: int


@dataclass(frozen=True, slots=True)
class Scan:
    """A page of candidates, how many brands were looked at for it, and the last of those."""

    balances: list[BrandBalance]
    scanned: int
    last: int


async def balances(
    connection: Connection,
    *,
    allowed: Sequence[int] | None,
    after: int,
    status: int,
    below: int | None,
    prefix: str,
    scan: int,
    limit: int,
    now: datetime,
    window: timedelta,
) -> Scan:
    """Brands behind `after` with their balances as they are recorded, at most `limit` out of at most `scan` looked at.

    `status` 0: any; `below`: those that may have less available than so many segments; `prefix` how their names begin,
    whatever the case. Names have no index: whoever has so many brands that a walk through them takes long finds them by
    number.
    """
    parameters = {
        "allowed": None if allowed is None else list(allowed),
        "after": after,
        "status": status,
        "below": below,
        "prefix": prefix,
        "scan": scan,
        "limit": limit,
        "now": now,
        "window": window,
    }
    rows = await (await connection.execute(BALANCES_PAGE, parameters)).fetchall()
    scanned, last = rows[0][0], rows[0][1]
    return Scan([_balance(row[2:]) for row in rows if row[2] is not None], scanned, last or 0)


async def live_packages(connection: Connection, brand_ids: Sequence[int]) -> list[Package]:
    """The packages of some brands with something remaining."""
    cursor = await connection.execute(LOAD_LIVE_PACKAGES, (arrays.integers(brand_ids),))
    return [package_from_row(row) for row in await cursor.fetchall()]


def _balance(row: Sequence[Any]) -> BrandBalance:
    brand = brand_from_row(row[:_BRAND_FIELDS])
    created_at, now, _then, _changed, expires_at, expiring, paid = row[_BRAND_FIELDS:]
    return BrandBalance(brand, created_at, now, brand.total - brand.frozen, paid, expires_at, expiring or 0)
