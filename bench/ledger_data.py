"""A large ledger made by set-based SQL: what thousands of brands leave behind, consistent to the segment.

Rows are inserted in the order of time over all brands, as they would have come, so that a brand's rows lie scattered
over the tables' files. Every brand has the same number of units. A unit is a freeze of one to three segments and its
payment, a message with its receipt, and now and then a release, the end of a freeze or a refund. What follows from the
number of a unit (sums, record numbers, moments) is computed from it, so nothing has to be summed up while filling.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

PACKAGES = 10
# Rows that one statement inserts into a table, about: its working memory and the progress that is shown.
ROWS_PER_STATEMENT = 500_000
# Before any statement of a bench is asked about: 2 January 2026 in Shanghai.
BEGIN_US = 1_767_283_200_000_000
DAYS = 60

# Of the tables that grow. They are filled without a log of their own, as nothing here must survive a crash.
TABLES = (
    "costcenter.freeze",
    "costcenter.payment",
    "costcenter.payment_key",
    "costcenter.refund",
    "costcenter.receipt",
    "costcenter.entry",
    "costcenter.release_request",
    "costcenter.balance_history",
    "smsgateway.message",
)

FUNCTIONS = """
create schema bench;
-- The alphabet of identifiers, 10 characters of milliseconds.
create function bench.prefix(ms bigint) returns text immutable parallel safe language sql return
    substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 45) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 40) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 35) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 30) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 25) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 20) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 15) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 10) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + ((ms >> 5) & 31)::int, 1)
    || substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + (ms & 31)::int, 1);
create function bench.moment(us bigint) returns timestamptz immutable parallel safe language sql return
    timestamptz '1970-01-01 00:00:00Z' + us * interval '1 microsecond';
-- Segments of all units up to and with one: a unit i has 1 + i % 3.
create function bench.paid(i bigint) returns bigint immutable parallel safe language sql return
    i + 3 * (i / 3) + case i % 3 when 0 then 0 when 1 then 1 else 3 end;
-- Segments refunded of all units up to and with one: of every 32nd all that it paid.
create function bench.refunded(i bigint) returns bigint immutable parallel safe language sql return
    i / 32 + 3 * (i / 32 / 3) + case (i / 32) % 3 when 0 then 0 when 1 then 2 else 3 end;
-- Number of the record before a unit's first.
create function bench.base(i bigint) returns bigint immutable parallel safe language sql return
    10 + 2 * (i - 1) + (i - 1) / 32 + (i + 126) / 128 + (i + 125) / 128;
"""

# A chunk of units: i, brand, moments in microseconds, segments paid, segments frozen beyond them, packages.
_UNITS = """
select u.i, b.brand_id, b.part, u.s, u.x, u.p, u.q,
    %(begin)s + u.i * %(step)s + b.brand_id as us
from (
    select i, 1 + i %% 3 as s, case when i %% 128 in (1, 2) then 5 else 0 end as x,
        1 + (i - 1) * 10 / %(units)s as p,
        -- Some are paid out of two packages.
        case when i %% 50 = 0 then 1 + ((i - 1) * 10 / %(units)s + 1) %% 10 end as q
    from generate_series(%(first)s::bigint, %(last)s::bigint) i
) u
cross join bench.brand b
order by u.i, b.brand_id
"""

_LINES = """
case when q is null or s + x = 1 then array[p] else array[p, q] end,
case when q is null or s + x = 1 then array[s + x] else array[1, s + x - 1] end
"""
_PAID_LINES = """
case when q is null or s = 1 then array[p] else array[p, q] end,
case when q is null or s = 1 then array[s] else array[1, s - 1] end
"""
# From the back; and each part went where it came from.
_REFUNDED_LINES = """
case when q is null or s = 1 then array[p] else array[q, p] end,
case when q is null or s = 1 then array[s] else array[s - 1, 1] end,
case when q is null or s = 1 then array[p] else array[q, p] end
"""
_ORDER_NO = "bench.prefix(us / 1000) || part || lpad(i::text, 8, '0') || 'A'"
_MESSAGE_ID = "bench.prefix(us / 1000) || part || lpad(i::text, 8, '0') || 'B'"
_PAYMENT_NO = "bench.prefix((us + %(step)s / 8) / 1000) || part || lpad(i::text, 8, '0') || 'C'"

_CHUNK = (
    f"""
insert into costcenter.freeze (brand_id, order_no, request_id, sms_type, segments, paid, released, timed_out,
    line_packages, line_segments, created_at, expires_at, record_no)
select brand_id, {_ORDER_NO}, {_MESSAGE_ID}, 3, s + x, s, case when i %% 128 = 1 then x else 0 end,
    case when i %% 128 = 2 then x else 0 end, {_LINES}, bench.moment(us),
    bench.moment(us + case i %% 128 when 2 then %(step)s / 2 else %(step)s end),
    bench.base(i) + 1
from ({_UNITS}) u
""",
    f"""
insert into costcenter.payment (brand_id, payment_no, order_no, request_id, sms_type, segments, refunded,
    line_packages, line_segments, status, created_at, record_no)
select brand_id, {_PAYMENT_NO}, {_ORDER_NO}, {_MESSAGE_ID}, 3, s, case when i %% 32 = 0 then s else 0 end,
    {_PAID_LINES}, case when i %% 32 = 0 then 4 else 2 end, bench.moment(us + %(step)s / 8), bench.base(i) + 2
from ({_UNITS}) u
""",
    f"""
insert into costcenter.payment_key (brand_id, request_id, fingerprint, reply)
select brand_id, {_MESSAGE_ID}, decode(lpad(to_hex(i), 32, '0'), 'hex'),
    '\\x0a20'::bytea || convert_to({_PAYMENT_NO}, 'UTF8') || decode('10' || lpad(to_hex(s), 2, '0'), 'hex')
from ({_UNITS}) u
""",
    f"""
insert into costcenter.refund (brand_id, payment_no, message_id, segments, line_packages, line_segments,
    line_targets, cause, created_at, record_no)
select brand_id, {_PAYMENT_NO}, {_MESSAGE_ID}, s, {_REFUNDED_LINES}, 1,
    bench.moment(us + %(step)s * 3 / 4), bench.base(i) + 3
from ({_UNITS}) u where i %% 32 = 0
""",
    f"""
insert into costcenter.receipt (brand_id, payment_no, message_id, segments, state, carrier_code, recorded_at)
select brand_id, {_PAYMENT_NO}, {_MESSAGE_ID}, s, 1, 'DELIVRD', bench.moment(us + %(step)s / 4)
from ({_UNITS}) u where i %% 32 <> 0
""",
    # Given back from the last line.
    f"""
insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
select brand_id, bench.base(i) + 3, bench.moment(us + %(step)s / 2), bench.moment(us + %(step)s / 2),
    case i %% 128 when 1 then 4 else 5 end, coalesce(q, p), x, {_ORDER_NO}
from ({_UNITS}) u where x > 0
""",
    f"""
insert into costcenter.release_request (brand_id, release_no, order_no, segments, released, created_at, applied_at)
select brand_id, bench.prefix((us + %(step)s / 2) / 1000) || part || lpad(i::text, 8, '0') || 'D', {_ORDER_NO}, 0, x,
    bench.moment(us + %(step)s / 2), bench.moment(us + %(step)s / 2)
from ({_UNITS}) u where i %% 128 = 1
""",
    f"""
insert into costcenter.balance_history (brand_id, at, total, frozen)
select brand_id, bench.moment(us + h.later), %(granted)s - bench.paid(i - 1) + bench.refunded(i - 1) + h.total, h.frozen
from ({_UNITS}) u
cross join lateral (values
    (true, 0, 0::bigint, s + x),
    (true, %(step)s / 8, -s, x),
    (x > 0, %(step)s / 2, -s, 0),
    (i %% 32 = 0, %(step)s * 3 / 4, 0::bigint, 0::bigint)
) as h(happens, later, total, frozen)
where h.happens
""",
    f"""
insert into smsgateway.message (brand_id, message_id, dispatch_id, request_id, sms_type, mobile, text, segments, state,
    order_no, payment_no, account, call_id, carrier_message_id, result_code, created_at, submitted_at, sent_at,
    finished_at)
select brand_id, {_MESSAGE_ID}, {_MESSAGE_ID}, 'request-' || i, 3, '+861390000' || lpad((i %% 10000)::text, 4, '0'),
    'a text of the bench', s, case when i %% 32 = 0 then 10 else 7 end, {_ORDER_NO}, {_PAYMENT_NO}, 'chuanglan',
    {_MESSAGE_ID}, i::text, 'DELIVRD', bench.moment(us), bench.moment(us + %(step)s / 8),
    case when i %% 32 <> 0 then bench.moment(us + %(step)s / 8) end, bench.moment(us + %(step)s / 4)
from ({_UNITS}) u
""",
)

# Brands with ten packages each, by turns bought and given, before the first unit.
_BEGIN = (
    "create table bench.brand as select i::bigint as brand_id,"
    " right(bench.prefix(i) || '', 10) as low from generate_series(1, %(brands)s) i",
    "alter table bench.brand add part text",
    "update bench.brand set part = '000' || low",
    """
insert into costcenter.brand (brand_id, name, status, time_zone, refund_undelivered, created_at)
select brand_id, 'Brand ' || brand_id, 1, 'Asia/Shanghai', false, bench.moment(%(begin)s - 1000000)
from bench.brand
""",
    """
insert into costcenter.package_order (brand_id, package_order_no, offer_id, segments, price, currency, sms_types,
    status, created_at, pay_before, paid_at, payment_reference, package_id)
select brand_id, bench.prefix(%(begin)s / 1000) || part || lpad(p::text, 8, '0') || 'E', 'bench', %(granted)s / 10, 1,
    'CNY', '{}', 3, bench.moment(%(begin)s + p), bench.moment(%(begin)s + 900000000), bench.moment(%(begin)s + p),
    'bank-' || p, p
from bench.brand cross join generate_series(1, 10) p where p %% 2 = 1
""",
    """
insert into costcenter.adjustment (brand_id, adjustment_no, kind, package_id, segments, author, reason, created_at)
select brand_id, bench.prefix(%(begin)s / 1000) || part || lpad(p::text, 8, '0') || 'E', 1, p, %(granted)s / 10,
    'bench', 'bench', bench.moment(%(begin)s + p)
from bench.brand cross join generate_series(1, 10) p where p %% 2 = 0
""",
    """
insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
select brand_id, p, bench.moment(%(begin)s + p), bench.moment(%(begin)s + p), 1, p, %(granted)s / 10,
    bench.prefix(%(begin)s / 1000) || part || lpad(p::text, 8, '0') || 'E'
from bench.brand cross join generate_series(1, 10) p
""",
    """
insert into costcenter.balance_history (brand_id, at, total, frozen)
select brand_id, bench.moment(%(begin)s + p), %(granted)s / 10 * p, 0
from bench.brand cross join generate_series(1, 10) p
""",
)

# All brands have paid the same out of each package, so one tells of all. The first five packages end after the last
# unit, and what is left of them expires.
_END = (
    """
create table bench.package as
select p.package_id, (
    select coalesce(sum(l.segments), 0)::bigint
    from costcenter.payment y, unnest(y.line_packages, y.line_segments) as l(package_id, segments)
    where y.brand_id = 1 and l.package_id = p.package_id
) as paid, (
    select coalesce(sum(l.segments), 0)::bigint
    from costcenter.refund r, unnest(r.line_packages, r.line_segments) as l(package_id, segments)
    where r.brand_id = 1 and l.package_id = p.package_id
) as refunded
from generate_series(1, 10) p(package_id)
""",
    """
insert into costcenter.package_queue (brand_id, package_id, source, source_no, granted, remaining, held, paid, refunded,
    expired, sms_types, expires_at, created_at)
select brand_id, k.package_id, case k.package_id %% 2 when 1 then 1 else 2 end,
    bench.prefix(%(begin)s / 1000) || part || lpad(k.package_id::text, 8, '0') || 'E', %(granted)s / 10,
    case when k.package_id > 5 then %(granted)s / 10 - k.paid + k.refunded else 0 end, 0, k.paid, k.refunded,
    case when k.package_id > 5 then 0 else %(granted)s / 10 - k.paid + k.refunded end, '{}',
    case when k.package_id <= 5 then bench.moment(%(end)s + k.package_id) end, bench.moment(%(begin)s + k.package_id)
from bench.brand cross join bench.package k
""",
    """
insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
select brand_id, bench.base(%(units)s + 1) + k.package_id, bench.moment(%(end)s + k.package_id),
    bench.moment(%(end)s + k.package_id), 3, k.package_id, %(granted)s / 10 - k.paid + k.refunded, ''
from bench.brand cross join bench.package k where k.package_id <= 5
""",
    """
insert into costcenter.balance_history (brand_id, at, total, frozen)
select brand_id, bench.moment(%(end)s + k.package_id), (
    select sum(%(granted)s / 10 - o.paid + o.refunded) from bench.package o where o.package_id > k.package_id
), 0
from bench.brand cross join bench.package k where k.package_id <= 5
""",
    """
insert into costcenter.balance (brand_id, total, frozen, last_at, next_package_id, next_record_no)
select brand_id, (select sum(%(granted)s / 10 - o.paid + o.refunded) from bench.package o where o.package_id > 5), 0,
    bench.moment(%(end)s + 5), 11, bench.base(%(units)s + 1) + 6
from bench.brand
""",
    "drop schema bench cascade",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How much to make: `payments` in all, over `brands`."""

    brands: int
    payments: int

    @property
    def units(self) -> int:
        """Units of a brand."""
        return self.payments // self.brands

    @property
    def parameters(self) -> dict[str, int]:
        """What the statements are given."""
        step = DAYS * 86_400_000_000 // self.units
        end = BEGIN_US + (self.units + 1) * step + 1_000_000
        # More than a package pays, divisible by ten.
        granted = 10 * (self.units // 2 + 100)
        return {
            "brands": self.brands,
            "units": self.units,
            "begin": BEGIN_US,
            "step": step,
            "end": end,
            "granted": granted,
        }


async def fill(url: str, shape: Shape, progress: Callable[[str], None]) -> None:
    """Fill a migrated, empty database; two connections side by side."""
    parameters = shape.parameters
    async with await _connect(url) as connection:
        for table in TABLES:
            await connection.execute(f"alter table {table} set unlogged".encode())
        await connection.execute(FUNCTIONS)
        for statement in _BEGIN:
            await _run(connection, statement, parameters)
    per_chunk = max(1, ROWS_PER_STATEMENT // shape.brands)
    chunks = [(first, min(first + per_chunk - 1, shape.units)) for first in range(1, shape.units + 1, per_chunk)]
    done = 0

    async def work() -> None:
        nonlocal done
        async with await _connect(url) as connection:
            while chunks:
                first, last = chunks.pop(0)
                for statement in _CHUNK:
                    await _run(connection, statement, {**parameters, "first": first, "last": last})
                done += (last - first + 1) * shape.brands
                progress(f"{done:,} of {shape.payments:,} payments")

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        group.create_task(work())
    async with await _connect(url) as connection:
        for statement in _END:
            await _run(connection, statement, parameters)
        progress("vacuum")
        await connection.execute("vacuum analyze")


async def _connect(url: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    return await psycopg.AsyncConnection.connect(
        url, autocommit=True, options="-c synchronous_commit=off -c jit=off -c work_mem=256MB"
    )


async def _run(connection: psycopg.AsyncConnection[tuple[Any, ...]], statement: str, values: dict[str, int]) -> None:
    # Literals: some statements define things, which takes no parameters.
    text = statement.replace("%%", "\0")
    for name, value in values.items():
        text = text.replace(f"%({name})s", str(value) if abs(value) < 2**31 else f"{value}::bigint")
    await connection.execute(text.replace("\0", "%").encode())
