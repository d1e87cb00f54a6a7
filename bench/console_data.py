"""A large gateway made by set-based SQL: what ten thousand brands leave behind, as far as the console's pages look.

One brand has a tenth of the messages, all others the same number each: a tenth of them single ones, the rest in batches
of a hundred. Of the large brand's batches, of up to 100,000 messages, the last is paused half way. The ledger has a
freeze, a payment and a point of history for each single message, and a freeze for each batch; it is made to be looked
at, not to be reconciled. Rows come in the order of time over all brands, so that a brand's rows lie scattered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.ledger_data import FUNCTIONS

DAYS = 30
LARGE = 1
BATCH, LARGE_BATCH, CHUNK = 100, 100_000, 1_000
_ROWS_PER_STATEMENT = 1_000_000

_TABLES = (
    "smsgateway.message",
    "smsgateway.request_key",
    "smsgateway.batch",
    "costcenter.freeze",
    "costcenter.payment",
    "costcenter.balance_history",
)

# Made anew at the end, which takes a fraction of keeping them up row by row. Workers run beside it: what their sweepers
# walk by stays, and is all but empty.
_INDEXES = """
select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
where indrelid = any(%s::regclass[]) and not indisprimary and not indisunique
  and indexrelid <> 'smsgateway.message_sent'::regclass
"""

_BRANDS = """
create table bench.brand as
select i::bigint as brand_id, '000' || right(bench.prefix(i), 10) as part from generate_series(1, %(brands)s) i;
insert into costcenter.brand (brand_id, name, status, time_zone, refund_undelivered, created_at)
select brand_id, (array['Nord', 'Ost', 'Süd', 'West'])[1 + brand_id %% 4] || ' ' || brand_id, 1, 'Asia/Shanghai',
    false, bench.moment(%(begin)s)
from bench.brand;
insert into costcenter.package_queue (brand_id, package_id, source, source_no, granted, remaining, held, paid, refunded,
    expired, sms_types, expires_at, created_at)
select brand_id, p, 2, bench.prefix(%(begin)s / 1000) || part || lpad(p::text, 8, '0') || 'E', 1000 * p, 500 * p, p,
    500 * p, 0, 0, '{}', case when p < 4 then bench.moment(%(end)s) + p * interval '10 days' end,
    bench.moment(%(begin)s + p)
from bench.brand cross join generate_series(1, 4) p;
insert into costcenter.balance (brand_id, total, frozen, last_at, next_due_at, next_package_id, next_record_no)
select brand_id, 5000, 10, bench.moment(%(begin)s + 10), bench.moment(%(end)s) + interval '10 days', 5, 1000000000
from bench.brand;
insert into costcenter.entry (brand_id, record_no, at, booked_at, kind, package_id, segments, reference)
select brand_id, p, bench.moment(%(begin)s + p), bench.moment(%(begin)s + p), 1, p, 1000 * p, 'bench'
from bench.brand cross join generate_series(1, 4) p;
"""

# Units of all brands but the large one, in the order of time: u.i of a brand, its moment.
_UNITS = """
select b.brand_id, b.part, u.i, %(begin)s + u.i * %(step)s + b.brand_id as us
from generate_series(%(first)s::bigint, %(last)s::bigint) u(i) cross join bench.brand b
where b.brand_id > 1
order by u.i, b.brand_id
"""
_SINGLE_ID = "bench.prefix(us / 1000) || part || lpad(i::text, 8, '0') || 'A'"
_BATCH_ID = "bench.prefix(us / 1000) || part || lpad(i::text, 8, '0') || 'B'"
_ORDER_NO = "bench.prefix(us / 1000) || part || lpad(i::text, 8, '0') || 'C'"
_PAYMENT_NO = "bench.prefix(us / 1000 + 20) || part || lpad(i::text, 8, '0') || 'D'"

_MESSAGE = """
insert into smsgateway.message (brand_id, message_id, batch_id, dispatch_id, request_id, sms_type, mobile, text,
    segments, state, order_no, payment_no, account, call_id, carrier_message_id, result_code, created_at, submitted_at,
    sent_at, finished_at)
"""
_SINGLES = (
    f"""
{_MESSAGE}
select brand_id, {_SINGLE_ID}, null, {_SINGLE_ID}, 'request-' || i, 1 + i %% 2,
    '+86139' || lpad(((i * 7919 + brand_id) %% 100000000)::text, 8, '0'), '【bench】code 123456', 1,
    case when i %% 50 = 0 then 8 when i %% 99 = 0 then 10 else 7 end, {_ORDER_NO}, {_PAYMENT_NO}, 'chuanglan',
    {_SINGLE_ID}, us::text || brand_id, 'DELIVRD', bench.moment(us), bench.moment(us + 30000), bench.moment(us + 80000),
    bench.moment(us + 2000000 + i %% 1000 * 1000)
from ({_UNITS}) u
""",
    f"""
insert into smsgateway.request_key (brand_id, operation, request_id, fingerprint, target_id, reply, created_at)
select brand_id, 1, 'request-' || i, '\\x00', {_SINGLE_ID}, '\\x00', bench.moment(us)
from ({_UNITS}) u
""",
    f"""
insert into costcenter.freeze (brand_id, order_no, request_id, sms_type, segments, paid, line_packages, line_segments,
    created_at, expires_at, record_no)
select brand_id, {_ORDER_NO}, {_SINGLE_ID}, 1 + i %% 2, 1, 1, '{{1}}', '{{1}}', bench.moment(us),
    bench.moment(us) + interval '1 day', 10 + 2 * i
from ({_UNITS}) u
""",
    f"""
insert into costcenter.payment (brand_id, payment_no, order_no, request_id, sms_type, segments, line_packages,
    line_segments, status, created_at, record_no)
select brand_id, {_PAYMENT_NO}, {_ORDER_NO}, {_SINGLE_ID}, 1 + i %% 2, 1, '{{1}}', '{{1}}', 2,
    bench.moment(us + 20000), 11 + 2 * i
from ({_UNITS}) u
""",
    f"""
insert into costcenter.balance_history (brand_id, at, total, frozen)
select brand_id, bench.moment(us), 100000 - i, 10 from ({_UNITS}) u
""",
)

# Batches of a hundred, one chunk each; of the large brand, batches of so many chunks.
_BATCHES = (
    f"""
insert into smsgateway.batch (brand_id, batch_id, request_id, sms_type, text, accepted, segments, order_no, created_at,
    accepted_at, campaign_id)
select brand_id, {_BATCH_ID}, 'batch-' || i, 3, '【bench】sale 拒收请回复R', %(size)s, %(size)s, {_ORDER_NO},
    bench.moment(us), bench.moment(us), case when i %% 3 = 0 then 'campaign-' || i / 30 end
from ({{units}}) u
""",
    f"""
{_MESSAGE}
select brand_id, bench.prefix(us / 1000) || part || lpad((i * %(size)s + n)::text, 8, '0') || 'M', {_BATCH_ID},
    bench.prefix(us / 1000) || part || lpad((i * 1000 + n / {CHUNK})::text, 8, '0') || 'K', 'batch-' || i, 3,
    '+86138' || lpad(((i * %(size)s + n) %% 100000000)::text, 8, '0'), null, 1,
    case when %(open)s and i = %(last)s and n >= %(size)s / 2 then 2 when n %% 40 = 0 then 8 else 7 end, {_ORDER_NO},
    {_PAYMENT_NO}, 'chuanglan', {_BATCH_ID}, us::text || n, 'DELIVRD', bench.moment(us), bench.moment(us + 30000),
    bench.moment(us + 80000), bench.moment(us + 3000000)
from ({{units}}) u cross join generate_series(0, %(size)s - 1) n
""",
    f"""
insert into costcenter.freeze (brand_id, order_no, request_id, sms_type, segments, paid, line_packages, line_segments,
    created_at, expires_at, record_no)
select brand_id, {_ORDER_NO}, {_BATCH_ID}, 3, %(size)s,
    case when %(open)s and i = %(last)s then %(size)s / 2 else %(size)s end,
    '{{{{4}}}}', array[%(size)s], bench.moment(us), bench.moment(us) + interval '7 days', 500000000 + 2 * i
from ({{units}}) u
""",
)
_LARGE_UNITS = """
select b.brand_id, b.part, u.i, %(begin)s + u.i * %(step)s as us
from generate_series(%(first)s::bigint, %(last)s::bigint) u(i) cross join bench.brand b where b.brand_id = 1
"""
_PAUSED = f"""
insert into smsgateway.dispatch (brand_id, dispatch_id, mode, sms_type, batch_id, messages, segments, request_id, state,
    order_no, created_at, changed_at, paused)
select m.brand_id, m.dispatch_id, 2, 3, m.batch_id, count(*), count(*), 'bench', 7, min(m.order_no), now(), now(), true
from smsgateway.message m where m.brand_id = {LARGE} and m.state = 2 and m.batch_id is not null
group by m.brand_id, m.dispatch_id, m.batch_id;
update smsgateway.batch set paused_at = now() where (brand_id, batch_id) in (
    select brand_id, batch_id from smsgateway.dispatch where state = 7);
insert into smsgateway.campaign (brand_id, campaign_id, created_at)
select brand_id, campaign_id, min(created_at) from smsgateway.batch where campaign_id is not null
group by brand_id, campaign_id;
drop schema bench cascade
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """How much to make: `messages` in all, over `brands`."""

    brands: int
    messages: int

    @property
    def large_batches(self) -> int:
        """Batches of the large brand."""
        return max(1, self.messages // 10 // LARGE_BATCH)

    @property
    def large_size(self) -> int:
        """Messages of each."""
        return min(LARGE_BATCH, self.messages // 10)

    @property
    def singles(self) -> int:
        """Single messages of each other brand."""
        return self.messages // 10 // (self.brands - 1)

    @property
    def batches(self) -> int:
        """Batches of each other brand."""
        return self.messages * 8 // 10 // (self.brands - 1) // BATCH


async def fill(url: str, shape: Shape, end_us: int, progress: Callable[[str], None]) -> None:
    """Fill a migrated, empty database with what happened until a moment (microseconds since 1970)."""
    begin = end_us - DAYS * 86_400_000_000
    options = "-c synchronous_commit=off -c jit=off -c work_mem=128MB -c maintenance_work_mem=512MB -c TimeZone=UTC"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, options=options) as connection:
        for table in _TABLES:
            await connection.execute(f"alter table {table} set unlogged".encode())
        indexes = await (await connection.execute(_INDEXES, (list(_TABLES),))).fetchall()
        for name, _ in indexes:
            await connection.execute(f"drop index {name}".encode())
        await connection.execute(FUNCTIONS)
        values: dict[str, Any] = {"begin": begin, "end": end_us, "brands": shape.brands}
        await _run(connection, _BRANDS, values)
        per_statement = max(1, _ROWS_PER_STATEMENT // shape.brands)
        values["step"] = (end_us - begin) // (shape.singles + 1)
        for first in range(1, shape.singles + 1, per_statement):
            last = min(first + per_statement - 1, shape.singles)
            for statement in _SINGLES:
                await _run(connection, statement, {**values, "first": first, "last": last})
            progress(f"{last} of {shape.singles} single messages of each brand")
        values |= {"size": BATCH, "open": False, "step": (end_us - begin) // (shape.batches + 1)}
        for at in range(1, shape.batches + 1):
            for statement in _BATCHES:
                await _run(connection, statement.replace("{units}", _UNITS), {**values, "first": at, "last": at})
            progress(f"{at} of {shape.batches} batches of each brand")
        values |= {"size": shape.large_size, "open": True, "first": 1, "last": shape.large_batches}
        values["step"] = (end_us - begin) // (shape.large_batches + 1)
        for statement in _BATCHES:
            await _run(connection, statement.replace("{units}", _LARGE_UNITS), values)
        for name, definition in indexes:
            progress(f"index {name}")
            await connection.execute(definition.encode())
        await _run(connection, _PAUSED, values)
        progress("vacuum")
        await connection.execute("vacuum analyze")


async def _run(connection: psycopg.AsyncConnection[Any], statements: str, values: dict[str, Any]) -> None:
    text = statements.replace("%%", "\0")
    for name, value in values.items():
        told = str(value).lower()
        text = text.replace(f"%({name})s", told if isinstance(value, bool) or abs(value) < 2**31 else f"{told}::bigint")
    await connection.execute(text.replace("\0", "%").replace("{{", "{").replace("}}", "}").encode())
