"""Recompute every figure of the ledger from its records, and list what differs.

The records are what was granted, frozen, paid, refunded, released and booked as expired; the figures are the columns
that operations keep up, the history of balances and the keys of calls. PostgreSQL does the sums (`store_checks`), a
range of brands at a time, in one read-only snapshot, so it runs while the service works and sees no half of anything.

For comparing with the gateway's message records, payments are told in sums over buckets: all payments of a brand whose
numbers begin alike, that is, of a span of time. Only where the sums differ are they told one by one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from costcenter import store_checks
from costcenter.model import RefundCause
from infra import arrays
from infra.database import Connection, pages, scanning
from infra.differences import Difference

# Characters of an identifier that its bucket is: about nine hours. What is on its way keeps the last bucket of a brand
# from fitting, so a bucket must not hold too much; and each is a group of its own, so there must not be too many.
BUCKET = 5

_BRAND_MAX = 2**63 - 1

BRANDS = """
select b.brand_id, coalesce(l.next_record_no, 1) - 1
from costcenter.brand b left join costcenter.balance l using (brand_id)
where b.brand_id > %s order by b.brand_id limit %s
"""

# Whether a request_id is one that the gateway made (`infra.identifiers`): it carries the brand. Services that send
# elsewhere pay without messages here.
_OURS = """
select b.brand_id, string_agg(
    substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((b.brand_id >> (5 * place)) & 31)::int, 1), '' order by place desc
) as part
from costcenter.brand b cross join generate_series(0, 12) place group by b.brand_id
"""

# The sums: segments weighed by a hash of what they belong to, in two halves, so that whatever two records differ in
# shows, but for a chance of one to 2^62.
BUCKETS = f"""
with ours as materialized ({_OURS}),
sums as materialized (
    select brand_id, bucket, sum(segments * (hash & 2147483647)) as paid_low,
        sum(segments * ((hash >> 32) & 2147483647)) as paid_high, 0 as failed_low, 0 as failed_high
    from (
        select y.brand_id, left(y.payment_no, {BUCKET}) as bucket, y.segments,
            hashtextextended(y.payment_no, 0) as hash
        from costcenter.payment y join ours o using (brand_id) where substr(y.request_id, 11, 13) = o.part
    ) payments
    group by brand_id, bucket
    union all
    select brand_id, bucket, 0, 0, sum(segments * (hash & 2147483647)), sum(segments * ((hash >> 32) & 2147483647))
    from (
        select brand_id, left(payment_no, {BUCKET}) as bucket, segments, hashtextextended(message_id, 0) as hash
        from costcenter.refund where cause = {RefundCause.SEND_FAILED:d}
    ) refunds
    group by brand_id, bucket
)
select brand_id, bucket, sum(paid_low)::text, sum(paid_high)::text, sum(failed_low)::text, sum(failed_high)::text
from sums group by brand_id, bucket order by brand_id, bucket
"""

# Refunds of messages that receipts reported; whether they were, only their messages can tell.
UNDELIVERED = f"""
select brand_id, payment_no, message_id from costcenter.refund where cause = {RefundCause.UNDELIVERED:d}
"""

# What the ledger says of the payments of some buckets.
CHARGES = """
select y.brand_id, y.payment_no, y.request_id, y.segments,
    array(select r.message_id from costcenter.refund r
          where r.brand_id = y.brand_id and r.payment_no = y.payment_no order by r.message_id),
    array(select r.segments from costcenter.refund r
          where r.brand_id = y.brand_id and r.payment_no = y.payment_no order by r.message_id),
    array(select r.cause from costcenter.refund r
          where r.brand_id = y.brand_id and r.payment_no = y.payment_no order by r.message_id)
from unnest(%s::bigint[], %s::text[]) as k(brand_id, bucket)
cross join lateral (
    select * from costcenter.payment y
    where y.brand_id = k.brand_id and y.payment_no >= k.bucket and y.payment_no < k.bucket || '~' offset 0
) y
order by y.brand_id, y.payment_no
"""

OPEN_FREEZES = """
select f.brand_id, f.order_no, f.request_id, f.segments - f.paid - f.released - f.timed_out
from costcenter.freeze f
where f.is_open
  and f.expires_at > clock_timestamp() and f.created_at < clock_timestamp() - make_interval(secs => %s)
  and not exists (
    select from costcenter.release_request r
    where r.brand_id = f.brand_id and r.order_no = f.order_no and r.applied_at is null
  )
  and (f.brand_id, f.order_no) > (%s, %s)
order by f.brand_id, f.order_no limit %s
"""

Bucket = tuple[int, str]  # brand_id, the beginning of its payments' numbers


@dataclass(frozen=True, slots=True)
class Part:
    """A range of brands, both ends included, with how many brands and records it holds."""

    first: int
    last: int
    brands: int
    records: int


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


async def parts(connection: Connection, count: int, records_max: int, page_size: int) -> list[Part]:
    """Divide all brands into parts of about the same number of records: `count`, or a multiple of it so that none has
    many more than `records_max`. A brand is not divided. Every number belongs to a part, also of a brand that lacks.
    """
    brands: list[tuple[int, int]] = []
    after = 0
    while rows := await (await connection.execute(BRANDS, (after, page_size))).fetchall():
        brands += [(row[0], row[1]) for row in rows]
        after = rows[-1][0]
    total = sum(records for _, records in brands)
    # A multiple, so that all who work on parts end together.
    wanted = count * max(1, -(-total // (count * records_max)))
    ends: list[int] = []
    passed = 0
    for brand_id, records in brands[:-1]:
        passed += records
        if passed * wanted >= total * (len(ends) + 1) and len(ends) < wanted - 1:
            ends.append(brand_id)
    found = []
    first = 0
    for last in [*ends, _BRAND_MAX]:
        of_part = [records for brand_id, records in brands if first <= brand_id <= last]
        found.append(Part(first, last, len(of_part), sum(of_part)))
        first = last + 1
    return found


async def brand_pages(connection: Connection, page_size: int) -> AsyncIterator[list[int]]:
    """All brands, a page at a time."""
    after = 0
    while rows := await (await connection.execute(BRANDS, (after, page_size))).fetchall():
        yield [row[0] for row in rows]
        after = rows[-1][0]


async def differences(connection: Connection, brands: Sequence[int]) -> AsyncIterator[Difference]:
    """What differs for brands that follow on one another; the connection is in a snapshot."""
    async for difference in check(connection, min(brands), max(brands)):
        yield difference


async def check(connection: Connection, first: int, last: int) -> AsyncIterator[Difference]:
    """What differs for a range of brands, both ends included; the connection is in a snapshot."""
    span = {"first": first, "last": last}
    async with scanning(connection):
        named = set()
        for statement in store_checks.FIGURES:
            async for row in await connection.execute(statement, span):
                difference = Difference(*row)
                named.add(difference.brand_id)
                yield difference
        odd = [row[0] for row in await (await connection.execute(store_checks.REPLAY, span)).fetchall()]
        for brand_id in sorted(odd):
            async for row in await connection.execute(store_checks.RECORDS, {"first": brand_id, "last": brand_id}):
                named.add(brand_id)
                yield Difference(*row)
            if brand_id not in named:
                # It cannot be, but what does not fit is not kept quiet for not having a name.
                yield Difference("history", brand_id, "records", "replay", "the history", "another")


async def buckets(connection: Connection, page_size: int) -> AsyncIterator[list[tuple[Bucket, tuple[str, ...]]]]:
    """The sums of every bucket that has payments of messages, in order, a page at a time."""
    # There are few buckets for so many payments, which PostgreSQL cannot know: sorting all payments would take longest.
    async with scanning(connection, work_mem="'48MB'", enable_sort="off", enable_incremental_sort="off"):
        async for rows in pages(connection, BUCKETS, (), page_size):
            yield [((row[0], row[1]), tuple(row[2:])) for row in rows]


async def undelivered(connection: Connection, page_size: int) -> AsyncIterator[list[tuple[int, str, str]]]:
    """(brand_id, payment_no, message_id) of refunds that receipts have caused, a page at a time."""
    async for rows in pages(connection, UNDELIVERED, (), page_size):
        yield [(row[0], row[1], row[2]) for row in rows]


async def charges(connection: Connection, wanted: Sequence[Bucket], page_size: int) -> AsyncIterator[list[Charge]]:
    """The payments of some buckets in the order of brand and number, a page at a time."""
    named = (arrays.integers([brand_id for brand_id, _ in wanted]), arrays.texts([bucket for _, bucket in wanted]))
    async for rows in pages(connection, CHARGES, named, page_size):
        yield [
            Charge(row[0], row[1], row[2], row[3], dict(zip(row[4], zip(row[5], row[6], strict=True), strict=True)))
            for row in rows
        ]


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
