"""SQL of statements: a brand's records of a period, in sums and page by page.

The records of a brand are in four tables and share one ascending number, and their moments never go back along it.
Refunds and entries have an index by moment. Freezes and payments need none: their numbers begin with the millisecond
in which they were made, so a period is a range of the primary key, a little wider than the period for how the
millisecond was rounded; the exact moment is compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from costcenter.model import EntryKind
from costcenter.statement import Period, Place, Record, StatementKind, Sums, kind_of_entry
from infra.database import Connection
from infra.identifiers import time_prefix

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

# Sorts behind everything that begins with the same millisecond.
_BEHIND = "~"

# A transaction reads its clock when the lane is its own. So whoever has held the lane as well, and reads the clock
# then, has seen the end of every transaction with an earlier moment.
SETTLED_CLOCK = """
select clock_timestamp() + make_interval(secs => %s)
from (
    select lane_id from costcenter.lane
    where lane_id = %s %% (select count(*) from costcenter.lane)
    for share
) l
"""

_FREEZES = """costcenter.freeze f
where f.brand_id = %(brand)s and f.order_no >= %(first)s and f.order_no < %(last)s
  and f.created_at >= %(start)s and f.created_at < %(end)s"""
_PAYMENTS = """costcenter.payment y
where y.brand_id = %(brand)s and y.payment_no >= %(first)s and y.payment_no < %(last)s
  and y.created_at >= %(start)s and y.created_at < %(end)s"""
_REFUNDS = """costcenter.refund r
where r.brand_id = %(brand)s and r.created_at >= %(start)s and r.created_at < %(end)s"""
_ENTRIES = """costcenter.entry e
where e.brand_id = %(brand)s and e.at >= %(start)s and e.at < %(end)s"""

# (kind, count, segments) of freezes, payments and refunds.
RECORD_SUMS = f"""
select {StatementKind.FREEZE:d}, count(*), coalesce(sum(f.segments), 0)::bigint from {_FREEZES}
union all
select {StatementKind.PAYMENT:d}, count(*), coalesce(sum(y.segments), 0)::bigint from {_PAYMENTS}
union all
select {StatementKind.REFUND:d}, count(*), coalesce(sum(r.segments), 0)::bigint from {_REFUNDS}
"""

# (kind of entry, source of its package, count, segments). What a package was granted says its source; of other entries
# only their kind counts, so they are not looked up.
ENTRY_SUMS = f"""
select e.kind, 0, count(*), sum(e.segments)::bigint from {_ENTRIES} and e.kind <> {EntryKind.GRANT:d} group by e.kind
union all
select {EntryKind.GRANT:d}, p.source, sum(g.count)::bigint, sum(g.segments)::bigint
from (
    select e.package_id, count(*), sum(e.segments) as segments
    from {_ENTRIES} and e.kind = {EntryKind.GRANT:d} group by e.package_id
) g
join costcenter.package_queue p on p.brand_id = %(brand)s and p.package_id = g.package_id
group by p.source
"""

# One page of all records behind a place. Freezes and payments lie in the order of their milliseconds, so the first
# ones by number are the first ones by record once the last millisecond among them is whole.
RECORDS_PAGE = f"""
with freezes as (
    select f.record_no, f.created_at as at, f.order_no as number, f.request_id, f.sms_type, f.segments,
        f.line_packages, f.line_segments
    from {_FREEZES} and (f.created_at, f.record_no) > (%(start)s, %(after)s)
      and f.order_no < coalesce((
        select left(f.order_no, 10) || '{_BEHIND}' from {_FREEZES}
          and (f.created_at, f.record_no) > (%(start)s, %(after)s)
        order by f.order_no offset %(limit)s - 1 limit 1
      ), %(last)s)
),
payments as (
    select y.record_no, y.created_at as at, y.payment_no as number, y.request_id, y.sms_type, y.segments,
        y.line_packages, y.line_segments
    from {_PAYMENTS} and (y.created_at, y.record_no) > (%(start)s, %(after)s)
      and y.payment_no < coalesce((
        select left(y.payment_no, 10) || '{_BEHIND}' from {_PAYMENTS}
          and (y.created_at, y.record_no) > (%(start)s, %(after)s)
        order by y.payment_no offset %(limit)s - 1 limit 1
      ), %(last)s)
),
refunds as (
    select r.record_no, r.created_at as at, r.payment_no as number, r.message_id, r.segments,
        r.line_packages, r.line_segments, r.line_targets
    from {_REFUNDS} and (r.created_at, r.record_no) > (%(start)s, %(after)s)
    order by r.created_at, r.record_no limit %(limit)s
),
entries as (
    select e.record_no, e.at, e.reference as number, e.kind, e.package_id, e.segments
    from {_ENTRIES} and (e.at, e.record_no) > (%(start)s, %(after)s)
    order by e.at, e.record_no limit %(limit)s
)
select record_no, at, {StatementKind.FREEZE:d} as kind, 0 as entry_kind, number, request_id, '' as message_id,
    sms_type, segments, line_packages, line_segments, '{{}}'::bigint[] as line_targets, 0 as source
from freezes
union all
select record_no, at, {StatementKind.PAYMENT:d}, 0, number, request_id, '', sms_type, segments,
    line_packages, line_segments, '{{}}', 0
from payments
union all
select record_no, at, {StatementKind.REFUND:d}, 0, number, '', message_id, 0, segments,
    line_packages, line_segments, line_targets, 0
from refunds
union all
select e.record_no, e.at, 0, e.kind, e.number, '', '', 0, e.segments,
    array[e.package_id], array[e.segments], '{{}}', p.source
from entries e
join costcenter.package_queue p on p.brand_id = %(brand)s and p.package_id = e.package_id
order by record_no limit %(limit)s
"""


async def settled_clock(connection: Connection, brand_id: int, offset_seconds: float) -> datetime:
    """The clock, once every transaction of the brand's lane with an earlier moment has ended."""
    row = await (await connection.execute(SETTLED_CLOCK, (offset_seconds, brand_id))).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


async def sums(connection: Connection, brand_id: int, period: Period) -> Sums:
    """What is recorded of a period, by kind."""
    parameters = _range(brand_id, period)
    found = Sums()
    for kind, count, segments in await (await connection.execute(RECORD_SUMS, parameters)).fetchall():
        found.add(StatementKind(kind), count, segments)
    for kind, source, count, segments in await (await connection.execute(ENTRY_SUMS, parameters)).fetchall():
        found.add(kind_of_entry(kind, source), count, segments)
    return found


async def records(connection: Connection, brand_id: int, place: Place, limit: int) -> list[Record]:
    """The first records behind a place that happened before its end, in their order."""
    parameters = {**_range(brand_id, Period(place.at, place.end)), "after": place.record_no, "limit": limit}
    cursor = await connection.execute(RECORDS_PAGE, parameters)
    return [_record(row) for row in await cursor.fetchall()]


def _record(row: Sequence[Any]) -> Record:
    record_no, at, kind, entry_kind, number, request_id, message_id, sms_type, segments, *arrays, source = row
    packages, counts, targets = arrays
    return Record(
        record_no=record_no,
        at=at,
        kind=kind_of_entry(entry_kind, source) if entry_kind else StatementKind(kind),
        number=number,
        request_id=request_id,
        message_id=message_id,
        sms_type=sms_type,
        segments=segments,
        # Only refunds have targets.
        moved=sum(
            count
            for package_id, count, target in zip(packages, counts, targets, strict=False)
            if target not in {None, package_id}
        ),
        lines=list(zip(packages, counts, strict=True)),
    )


def _range(brand_id: int, period: Period) -> dict[str, object]:
    return {
        "brand": brand_id,
        "start": period.start,
        "end": period.end,
        "first": time_prefix(max(0, _milliseconds(period.start) - 1)),
        "last": time_prefix(max(0, _milliseconds(period.end) + 1)),
    }


def _milliseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MILLISECOND
