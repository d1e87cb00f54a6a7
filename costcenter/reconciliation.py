"""Recompute every package, freeze, payment and balance from the records, and list what differs.

The records are what was granted, frozen, paid, refunded, released and booked as expired; the figures are the columns
that operations keep up. PostgreSQL does the sums, a bounded number of brands at a time, in one read-only snapshot, so
it runs while the service works and sees no half of anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from infra.database import Connection
from infra.differences import Difference

BRANDS = "select brand_id from costcenter.brand where brand_id > %s order by brand_id limit %s"

# Each statement takes brands and returns (check, brand_id, subject, figure, expected, found) of what differs.

# What every record says of each package, against the package's figures.
PACKAGES = """
with packages as (
    select * from costcenter.package_queue where brand_id = any(%(brands)s)
),
entries as (
    select brand_id, package_id,
        sum(segments) filter (where kind = 1) as granted,
        sum(segments) filter (where kind = 2) as clawed_back,
        sum(segments) filter (where kind in (3, 6)) as expired
    from costcenter.entry where brand_id = any(%(brands)s) group by brand_id, package_id
),
paid as (
    select y.brand_id, l.package_id, sum(l.segments) as segments
    from costcenter.payment y, unnest(y.line_packages, y.line_segments) as l(package_id, segments)
    where y.brand_id = any(%(brands)s) group by y.brand_id, l.package_id
),
refunded as (
    select r.brand_id, l.package_id, sum(l.segments) as segments
    from costcenter.refund r,
        unnest(r.line_packages, r.line_segments, r.line_targets) as l(package_id, segments, target)
    -- What went to a package of its own is that package's grant.
    where r.brand_id = any(%(brands)s) and coalesce(l.target, l.package_id) = l.package_id
    group by r.brand_id, l.package_id
),
held as (
    select f.brand_id, l.package_id,
        sum(greatest(0, least(l.upto, f.segments - f.released - f.timed_out) - greatest(l.upto - l.segments, f.paid)))
            as segments
    from costcenter.freeze f
    cross join lateral (
        select u.package_id, u.segments, sum(u.segments) over (order by u.place) as upto
        from unnest(f.line_packages, f.line_segments) with ordinality as u(package_id, segments, place)
    ) l
    where f.brand_id = any(%(brands)s) and f.paid + f.released + f.timed_out < f.segments
    group by f.brand_id, l.package_id
),
figures as (
    select p.brand_id, p.package_id, p.granted, p.remaining, p.held, p.paid, p.refunded, p.expired,
        coalesce(e.granted, 0) - coalesce(e.clawed_back, 0) as granted_expected,
        coalesce(y.segments, 0) as paid_expected,
        coalesce(r.segments, 0) as refunded_expected,
        coalesce(e.expired, 0) as expired_expected,
        coalesce(h.segments, 0) as held_expected
    from packages p
    left join entries e using (brand_id, package_id)
    left join paid y using (brand_id, package_id)
    left join refunded r using (brand_id, package_id)
    left join held h using (brand_id, package_id)
)
select 'package', brand_id, package_id::text, v.figure, v.expected::text, v.found::text
from figures cross join lateral (values
    ('granted', granted_expected, granted),
    ('paid', paid_expected, paid),
    ('refunded', refunded_expected, refunded),
    ('expired', expired_expected, expired),
    ('held', held_expected, held),
    ('remaining', granted_expected - paid_expected + refunded_expected - expired_expected, remaining)
) as v(figure, expected, found)
where v.expected <> v.found
union all
-- Records of packages that are not there.
select 'record without package', brand_id, package_id::text, 'package', 'a package', 'none'
from (
    select brand_id, package_id from entries union select brand_id, package_id from paid
    union select brand_id, package_id from held
) named
where not exists (
    select from packages p where p.brand_id = named.brand_id and p.package_id = named.package_id
)
"""

# Payments, releases and ends, against each freeze's figures; and its lines against its segments.
FREEZES = """
with paid as (
    select brand_id, order_no, sum(segments) as segments from costcenter.payment
    where brand_id = any(%(brands)s) group by brand_id, order_no
),
given_back as (
    select brand_id, reference as order_no,
        sum(segments) filter (where kind = 4) as released, sum(segments) filter (where kind = 5) as timed_out
    from costcenter.entry where brand_id = any(%(brands)s) and kind in (4, 5) group by brand_id, reference
),
requested as (
    select brand_id, order_no, sum(released) as released from costcenter.release_request
    where brand_id = any(%(brands)s) group by brand_id, order_no
)
select 'freeze', f.brand_id, f.order_no, v.figure, v.expected::text, v.found::text
from costcenter.freeze f
left join paid using (brand_id, order_no)
left join given_back g using (brand_id, order_no)
left join requested q using (brand_id, order_no)
cross join lateral (values
    ('paid', coalesce(paid.segments, 0), f.paid),
    ('released', coalesce(g.released, 0), f.released),
    ('released on request', coalesce(q.released, 0), f.released),
    ('timed_out', coalesce(g.timed_out, 0), f.timed_out),
    ('lines', f.segments, (select sum(s) from unnest(f.line_segments) s))
) as v(figure, expected, found)
where f.brand_id = any(%(brands)s) and v.expected <> v.found
union all
select 'payment without freeze', paid.brand_id, paid.order_no, 'freeze', 'a freeze', 'none'
from paid left join costcenter.freeze f using (brand_id, order_no) where f.order_no is null
"""

# Refunds, lines and keys, against each payment's figures.
PAYMENTS = """
with refunded as (
    select r.brand_id, r.payment_no, sum(r.segments) as segments,
        sum((select sum(s) from unnest(r.line_segments) s)) as lines
    from costcenter.refund r where r.brand_id = any(%(brands)s) group by r.brand_id, r.payment_no
)
select 'payment', y.brand_id, y.payment_no, v.figure, v.expected::text, v.found::text
from costcenter.payment y
left join refunded r using (brand_id, payment_no)
cross join lateral (values
    ('refunded', coalesce(r.segments, 0), y.refunded),
    ('lines of refunds', coalesce(r.segments, 0), coalesce(r.lines, 0)),
    ('lines', y.segments, (select sum(s) from unnest(y.line_segments) s))
) as v(figure, expected, found)
where y.brand_id = any(%(brands)s) and v.expected <> v.found
union all
select 'payment without key', y.brand_id, y.payment_no, 'payment_key', 'a key', 'none'
from costcenter.payment y left join costcenter.payment_key k using (brand_id, request_id)
where y.brand_id = any(%(brands)s) and k.request_id is null
union all
select 'refund without payment', r.brand_id, r.payment_no, 'payment', 'a payment', 'none'
from refunded r left join costcenter.payment y using (brand_id, payment_no) where y.payment_no is null
"""

# The sums over packages, and the last point of the history, against each balance.
BALANCES = """
with sums as (
    select brand_id, sum(remaining) as total, sum(held) as frozen from costcenter.package_queue
    where brand_id = any(%(brands)s) group by brand_id
)
select 'balance', l.brand_id, l.brand_id::text, v.figure, v.expected::text, v.found::text
from costcenter.balance l
left join sums s using (brand_id)
left join lateral (
    select h.total, h.frozen from costcenter.balance_history h
    where h.brand_id = l.brand_id order by h.at desc limit 1
) h on true
cross join lateral (values
    ('total', coalesce(s.total, 0), l.total),
    ('frozen', coalesce(s.frozen, 0), l.frozen),
    ('total in the history', coalesce(h.total, 0), l.total),
    ('frozen in the history', coalesce(h.frozen, 0), l.frozen)
) as v(figure, expected, found)
where l.brand_id = any(%(brands)s) and v.expected <> v.found
"""

# Every paid order has its package, credited as ordered.
ORDERS = """
select 'order', o.brand_id, o.package_order_no, 'credited', o.segments::text, coalesce(e.segments, 0)::text
from costcenter.package_order o
left join costcenter.entry e
  on e.brand_id = o.brand_id and e.package_id = o.package_id and e.kind = 1 and e.reference = o.package_order_no
where o.brand_id = any(%(brands)s) and o.status = 3 and e.segments is distinct from o.segments
"""

CHECKS = (PACKAGES, FREEZES, PAYMENTS, BALANCES, ORDERS)

# What the ledger says of payments, for comparing with what was paid for.
CHARGES = """
select y.brand_id, y.payment_no, y.request_id, y.segments,
    array(select r.message_id from costcenter.refund r
          where r.brand_id = y.brand_id and r.payment_no = y.payment_no order by r.message_id),
    array(select r.segments from costcenter.refund r
          where r.brand_id = y.brand_id and r.payment_no = y.payment_no order by r.message_id),
    array(select r.cause from costcenter.refund r
          where r.brand_id = y.brand_id and r.payment_no = y.payment_no order by r.message_id)
from costcenter.payment y
where (y.brand_id, y.payment_no) > (%s, %s)
order by y.brand_id, y.payment_no limit %s
"""

OPEN_FREEZES = """
select f.brand_id, f.order_no, f.request_id, f.segments - f.paid - f.released - f.timed_out
from costcenter.freeze f
where f.paid + f.released + f.timed_out < f.segments
  and f.expires_at > clock_timestamp() and f.created_at < clock_timestamp() - make_interval(secs => %s)
  and not exists (
    select from costcenter.release_request r
    where r.brand_id = f.brand_id and r.order_no = f.order_no and r.applied_at is null
  )
  and (f.brand_id, f.order_no) > (%s, %s)
order by f.brand_id, f.order_no limit %s
"""


@dataclass(frozen=True, slots=True)
class Charge:
    """A payment with its refunds."""

    brand_id: int
    payment_no: str
    request_id: str
    segments: int
    refunds: dict[str, tuple[int, int]]  # message_id: (segments, cause)


@dataclass(frozen=True, slots=True)
class OpenFreeze:
    """A freeze that still holds something."""

    brand_id: int
    order_no: str
    request_id: str
    open: int


async def brand_pages(connection: Connection, page_size: int) -> AsyncIterator[list[int]]:
    """All brands, a page at a time."""
    after = 0
    while True:
        rows = await (await connection.execute(BRANDS, (after, page_size))).fetchall()
        if not rows:
            return
        yield [row[0] for row in rows]
        after = rows[-1][0]


async def differences(connection: Connection, brands: Sequence[int]) -> AsyncIterator[Difference]:
    """What differs for some brands; the connection is in a snapshot."""
    for check in CHECKS:
        cursor = await connection.execute(check, {"brands": list(brands)})
        async for row in cursor:
            yield Difference(*row)


async def charges(connection: Connection, page_size: int) -> AsyncIterator[list[Charge]]:
    """All payments in the order of brand and number, a page at a time."""
    after: tuple[int, str] = (0, "")
    while True:
        rows = await (await connection.execute(CHARGES, (*after, page_size))).fetchall()
        if not rows:
            return
        yield [
            Charge(row[0], row[1], row[2], row[3], dict(zip(row[4], zip(row[5], row[6], strict=True), strict=True)))
            for row in rows
        ]
        after = (rows[-1][0], rows[-1][1])


async def open_freezes(connection: Connection, older_than_seconds: float, page_size: int) -> AsyncIterator[OpenFreeze]:
    """Freezes that hold something and that nobody has asked to release."""
    after: tuple[int, str] = (0, "")
    while True:
        rows = await (await connection.execute(OPEN_FREEZES, (older_than_seconds, *after, page_size))).fetchall()
        for row in rows:
            yield OpenFreeze(*row)
        if len(rows) < page_size:
            return
        after = (rows[-1][0], rows[-1][1])
