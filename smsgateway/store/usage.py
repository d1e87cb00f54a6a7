"""SQL of usage: folding what was counted, counting recipients, reading, making anew from the records, comparing.

Changes are taken by deleting them in the transaction that adds them up, so each is added once, whoever is killed and
however many fold at once. There is no mark that a late transaction could be behind of: what commits late is simply
there later. Readers add what is not folded yet, and what is still on its way, so figures are those of this moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from infra import arrays
from infra.database import Connection, Database, pages, scanning
from infra.differences import Difference
from infra.identifiers import time_prefix
from smsgateway.schema import DispatchState, MessageState
from smsgateway.store.counting import GIVEN_BACK
from smsgateway.usage import FIGURES, Figures, Key, Query, Usage

# A message's id is made by a gateway's clock and its `created_at` by the database's; so far apart they may be.
CLOCKS_APART = timedelta(hours=1)

_STATES = {
    "delivered": MessageState.DELIVERED,
    "undelivered": MessageState.UNDELIVERED,
    "expired": MessageState.EXPIRED,
    "failed": MessageState.FAILED,
    "cancelled": MessageState.CANCELLED,
}
# The counters of `usage_hour`, in its order.
_COUNTERS = tuple(name for name in FIGURES if name not in ("waiting", "unknown"))
_KEY = "brand_id, hour, sms_type, account"


def _sum_of_changes(name: str) -> str:
    what = "segments" if name.endswith("segments") else "messages"
    counted = name.removesuffix("_segments")
    if counted in _STATES:
        condition = f"state = {_STATES[counted]:d}"
    else:
        condition = "refunded" if counted == "refunded" else "counted"
    return f"coalesce(sum({what}) filter (where {condition}), 0)::bigint as {name}"


_SUMS_OF_CHANGES = ", ".join(_sum_of_changes(name) for name in _COUNTERS)
_NAMES = ", ".join(_COUNTERS)
_ADDED = ", ".join(f"{name} = usage_hour.{name} + excluded.{name}" for name in _COUNTERS)

# Rows are taken in the order of their key by everybody, so that two sweepers never wait for each other in a circle.
_FOLD = f"""
with taken as (
  delete from smsgateway.usage_change as c
  using (
    select brand_id, change_id from smsgateway.usage_change
    limit %(limit)s
    for update skip locked
  ) as chosen
  where c.brand_id = chosen.brand_id and c.change_id = chosen.change_id
  returning c.*
), summed as materialized (
  select {_KEY}, {_SUMS_OF_CHANGES} from taken group by {_KEY}
), folded as (
  insert into smsgateway.usage_hour ({_KEY}, {_NAMES})
  select {_KEY}, {_NAMES} from summed
  order by {_KEY}
  on conflict ({_KEY}) do update set {_ADDED}
), days as (
  insert into smsgateway.usage_day (brand_id, day, sms_type, changes, due_at)
  select distinct brand_id, date_trunc('day', moment, %(zone)s), 0, 1, now() + make_interval(secs => %(wait)s)
  from summed
  -- Of a zone that is not whole hours from UTC an hour may be of two days.
  cross join lateral (values (hour), (hour + interval '59 minutes')) as edge (moment)
  where messages > 0
  order by 1, 2
  on conflict (brand_id, day, sms_type) do update set changes = usage_day.changes + 1
)
select count(*) from taken
"""

# Who takes a day has it for a while; when it dies the day is due again.
_TAKE_DAYS = """
update smsgateway.usage_day as d
set due_at = now() + make_interval(secs => %s)
from (
  select brand_id, day from smsgateway.usage_day
  where due_at <= now() and changes <> counted_changes and sms_type = 0
  order by due_at
  limit %s
  for update skip locked
) as due
where d.brand_id = due.brand_id and d.day = due.day and d.sms_type = 0
returning d.brand_id, d.day, d.changes
"""

_COUNT_DAYS = f"""
select asked.place, counted.sms_type, counted.recipients
from unnest(%s::bigint[], %s::text[], %s::text[], %s::timestamptz[], %s::timestamptz[])
     with ordinality as asked (brand_id, first_id, last_id, day, next_day, place)
cross join lateral (
  select coalesce(sms_type, 0) as sms_type, count(distinct mobile) as recipients
  from smsgateway.message
  where message.brand_id = asked.brand_id
    and message.message_id >= asked.first_id and message.message_id < asked.last_id
    and created_at >= asked.day and created_at < asked.next_day and state <> {MessageState.QUEUED:d}
  group by grouping sets ((), (sms_type))
) as counted
"""

_KEEP_DAYS = """
insert into smsgateway.usage_day (brand_id, day, sms_type, recipients, counted_at, counted_changes, due_at)
select asked.brand_id, asked.day, asked.sms_type, asked.recipients, now(), 0, now()
from unnest(%(brands)s::bigint[], %(days)s::timestamptz[], %(types)s::smallint[], %(recipients)s::bigint[])
     as asked (brand_id, day, sms_type, recipients)
order by asked.brand_id, asked.day, asked.sms_type
on conflict (brand_id, day, sms_type) do update
set recipients = excluded.recipients, counted_at = excluded.counted_at,
    due_at = now() + make_interval(secs => %(wait)s)
"""

# By what was known before the count: what was folded meanwhile has the day counted again.
_NOTE_COUNTS = """
update smsgateway.usage_day as d
set counted_changes = asked.changes
from unnest(%s::bigint[], %s::timestamptz[], %s::bigint[]) as asked (brand_id, day, changes)
where d.brand_id = asked.brand_id and d.day = asked.day and d.sms_type = 0
"""

# What has not left its queue is told from what is on its way, which is little. A part of a chunk was made later than
# its messages: they were accepted with their batch.
_ON_THE_WAY = f"""
select d.brand_id, date_trunc('hour', coalesce(b.accepted_at, d.created_at), 'UTC') as hour, d.sms_type,
       case when d.state in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) then coalesce(d.account, '')
            else '' end as account,
       d.messages::bigint as messages, d.segments::bigint as segments,
       case when d.state = {DispatchState.UNKNOWN:d} then 0 else d.messages end::bigint as waiting,
       case when d.state = {DispatchState.UNKNOWN:d} then d.messages else 0 end::bigint as unknown,
       {", ".join(f"0::bigint as {name}" for name in _COUNTERS if name not in ("messages", "segments"))}
from {{asked}}
join smsgateway.dispatch as d on d.brand_id = asked.brand_id
left join smsgateway.batch as b on b.brand_id = d.brand_id and b.batch_id = d.batch_id
where d.state not in ({DispatchState.ACCEPTING:d}, {DispatchState.PARTIAL:d})
"""

_WITHOUT_WAY = ", ".join(f"0::bigint as {name}" if name in ("waiting", "unknown") else name for name in FIGURES)
_IN_RANGE = "hour >= %(start)s and hour < %(end)s"
_SUMMED = ", ".join(f"sum({name})::bigint as {name}" for name in FIGURES)

_READ = f"""
with asked as materialized (
  select brand_id from unnest(%(brands)s::bigint[]) as each (brand_id)
), figures as (
  select {_KEY}, {_WITHOUT_WAY}
  from asked
  cross join lateral (
    select * from smsgateway.usage_hour where usage_hour.brand_id = asked.brand_id and {_IN_RANGE}
  ) as kept (asked_brand, {", ".join(["hour", "sms_type", "account", *_COUNTERS])})
  union all
  select {_KEY}, {_WITHOUT_WAY}
  from (
    select changed.brand_id, hour, sms_type, account, {_SUMS_OF_CHANGES}
    from asked
    join smsgateway.usage_change as changed on changed.brand_id = asked.brand_id
    where {_IN_RANGE}
    group by changed.brand_id, hour, sms_type, account
  ) as waiting_changes
  union all
  select {_KEY}, {", ".join(FIGURES)}
  from ({_ON_THE_WAY.format(asked="asked")}) as moving
  where {_IN_RANGE}
), grouped as (
  select case when %(by_brand)s then brand_id else 0 end as brand_id,
         date_trunc(%(unit)s, hour, %(zone)s) as start,
         case when %(by_type)s then sms_type else 0 end::int as sms_type,
         case when %(by_account)s then account else '' end collate "C" as account,
         {_SUMMED}
  from figures
  where (cardinality(%(types)s::smallint[]) = 0 or sms_type = any(%(types)s::smallint[]))
    and (cardinality(%(accounts)s::text[]) = 0 or account = any(%(accounts)s::text[]))
  group by 1, 2, 3, 4
)
select brand_id, start, sms_type, account, {", ".join(FIGURES)}
from grouped
where (brand_id, start, sms_type, account)
      > (%(after_brand)s::bigint, %(after_start)s::timestamptz, %(after_type)s::int, %(after_account)s::text)
order by brand_id, start, sms_type, account
limit %(limit)s
"""

_RECIPIENTS = """
select d.brand_id, d.day, d.sms_type, d.recipients, d.counted_at
from unnest(%s::bigint[], %s::timestamptz[], %s::smallint[]) as asked (brand_id, day, sms_type)
join smsgateway.usage_day as d
  on d.brand_id = asked.brand_id and d.day = asked.day and d.sms_type = asked.sms_type
where d.recipients is not null
"""


# An index is walked from brand to brand, however many rows each has.
def _next_brand(table: str) -> str:
    return f"""
    (select {table}.brand_id from smsgateway.{table} where {table}.brand_id > known.brand_id
     order by {table}.brand_id limit 1)
"""


def _brands(*tables: str) -> str:
    after = "least(" + ", ".join(_next_brand(table) for table in tables) + ")"
    return f"""
with recursive known (brand_id, place) as (
  select %(after)s::bigint, 0
  union all
  select {after}, known.place + 1
  from known
  where known.brand_id is not null and known.place < %(limit)s
)
select brand_id from known where brand_id is not null and place > 0 order by brand_id
"""


_BRANDS = _brands("usage_hour", "usage_change", "dispatch")
_RECORDED_BRANDS = _brands("message", "usage_hour", "usage_change")


# Made anew from the records.


def _sum_of_records(name: str) -> str:
    what = "segments" if name.endswith("segments") else "1"
    counted = name.removesuffix("_segments")
    if counted in _STATES:
        return f"coalesce(sum({what}) filter (where state = {_STATES[counted]:d}), 0)::bigint as {name}"
    if counted == "refunded":
        back = "refunded" if what == "segments" else "1"
        return (
            f"coalesce(sum(case when {GIVEN_BACK} then {what} when refunded is not null then {back} else 0 end), 0)"
            f"::bigint as {name}"
        )
    return f"coalesce(sum({what}), 0)::bigint as {name}"


_OF_RECORDS = f"""
select brand_id, date_trunc('hour', created_at, 'UTC') as hour, sms_type, coalesce(account, '') collate "C" as account,
       {", ".join(_sum_of_records(name) for name in _COUNTERS)}
from smsgateway.message as m
where state <> {MessageState.QUEUED:d} and brand_id between %(first)s and %(last)s
group by 1, 2, 3, 4
"""

_OF_KEPT = f"""
select {_KEY}, {", ".join(f"sum({name})::bigint as {name}" for name in _COUNTERS)}
from (
  select {_KEY}, {_NAMES} from smsgateway.usage_hour where brand_id between %(first)s and %(last)s
  union all
  select {_KEY}, {_SUMS_OF_CHANGES} from smsgateway.usage_change where brand_id between %(first)s and %(last)s
  group by {_KEY}
) as kept
group by {_KEY}
"""

_CLEAR = tuple(
    f"delete from smsgateway.{table} where brand_id between %(first)s and %(last)s"
    for table in ("usage_change", "usage_hour", "usage_day")
)

_FILL_HOURS = f"insert into smsgateway.usage_hour ({_KEY}, {_NAMES}) {_OF_RECORDS}"

_RECIPIENTS_OF_RECORDS = f"""
select brand_id, date_trunc('day', created_at, %(zone)s) as day, coalesce(sms_type, 0) as sms_type,
       count(distinct mobile) as recipients
from smsgateway.message
where state <> {MessageState.QUEUED:d} and brand_id between %(first)s and %(last)s
group by grouping sets ((1, 2), (1, 2, smsgateway.message.sms_type))
"""

_FILL_DAYS = f"""
insert into smsgateway.usage_day (brand_id, day, sms_type, recipients, counted_at, due_at)
select brand_id, day, sms_type, recipients, now(), now() from ({_RECIPIENTS_OF_RECORDS}) as counted
"""

_DIFFERENT_HOURS = f"""
select coalesce(recorded.brand_id, kept.brand_id), coalesce(recorded.hour, kept.hour),
       coalesce(recorded.sms_type, kept.sms_type), coalesce(recorded.account, kept.account),
       array[{", ".join(f"coalesce(recorded.{name}, 0)" for name in _COUNTERS)}],
       array[{", ".join(f"coalesce(kept.{name}, 0)" for name in _COUNTERS)}]
from ({_OF_RECORDS}) as recorded
full join ({_OF_KEPT}) as kept
  on kept.brand_id = recorded.brand_id and kept.hour = recorded.hour and kept.sms_type = recorded.sms_type
     and kept.account = recorded.account
where ({", ".join(f"coalesce(recorded.{name}, 0)" for name in _COUNTERS)})
      is distinct from ({", ".join(f"coalesce(kept.{name}, 0)" for name in _COUNTERS)})
order by 1, 2, 3, 4
limit %(limit)s
"""

# Days to which messages came that no count knows yet are left out.
_DIFFERENT_DAYS = f"""
select coalesce(recorded.brand_id, kept.brand_id), coalesce(recorded.day, kept.day),
       coalesce(recorded.sms_type, kept.sms_type), coalesce(recorded.recipients, 0), coalesce(kept.recipients, 0)
from ({_RECIPIENTS_OF_RECORDS}) as recorded
full join (
  select * from smsgateway.usage_day where brand_id between %(first)s and %(last)s
) as kept on kept.brand_id = recorded.brand_id and kept.day = recorded.day and kept.sms_type = recorded.sms_type
where coalesce(recorded.recipients, 0) <> coalesce(kept.recipients, 0)
  and not exists (
    select 1 from smsgateway.usage_day as stale
    where stale.brand_id = coalesce(recorded.brand_id, kept.brand_id) and stale.day = coalesce(recorded.day, kept.day)
      and stale.sms_type = 0 and stale.changes <> stale.counted_changes
  )
  and not exists (
    select 1 from smsgateway.usage_change as waiting
    where waiting.brand_id = coalesce(recorded.brand_id, kept.brand_id)
      and date_trunc('day', waiting.hour, %(zone)s) = coalesce(recorded.day, kept.day)
  )
order by 1, 2, 3
limit %(limit)s
"""


@dataclass(frozen=True, slots=True)
class DueDay:
    """A day to which messages came since its recipients were counted; `changes` as of now."""

    brand_id: int
    day: datetime
    changes: int


async def fold(connection: Connection, *, zone: str, limit: int, count_wait_seconds: float) -> int:
    """Fold at most `limit` changes into the hours that they belong to; return how many.

    0 as well while somebody makes the figures anew: nobody waits for that.
    """
    try:
        await connection.execute("lock table smsgateway.usage_hour in row exclusive mode nowait")
    except psycopg.errors.LockNotAvailable:
        await connection.rollback()
        return 0
    cursor = await connection.execute(_FOLD, {"limit": limit, "zone": zone, "wait": count_wait_seconds})
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def take_days(connection: Connection, *, hold_seconds: float, limit: int) -> list[DueDay]:
    """Take days whose recipients are to be counted, for `hold_seconds`; two processes take different ones."""
    cursor = await connection.execute(_TAKE_DAYS, (hold_seconds, limit))
    return [DueDay(*row) for row in await cursor.fetchall()]


async def count_days(connection: Connection, days: Sequence[tuple[DueDay, datetime]]) -> list[dict[int, int]]:
    """For each day, given with the first moment of the next: different numbers of the brand's messages that have left
    their queues, by type, 0: of all.
    """
    cursor = await connection.execute(
        _COUNT_DAYS,
        (
            arrays.integers([day.brand_id for day, _ in days]),
            arrays.texts([_prefix(day.day - CLOCKS_APART) for day, _ in days]),
            arrays.texts([_prefix(end + CLOCKS_APART) for _, end in days]),
            arrays.moments([day.day for day, _ in days]),
            arrays.moments([end for _, end in days]),
        ),
    )
    found: list[dict[int, int]] = [{} for _ in days]
    for place, sms_type, recipients in await cursor.fetchall():
        found[place - 1][sms_type] = recipients
    return found


async def keep_days(
    connection: Connection, days: Sequence[DueDay], recipients: Sequence[dict[int, int]], *, wait_seconds: float
) -> None:
    """Record what was counted; it is counted again after `wait_seconds` at the earliest, if messages come."""
    rows = [
        (day.brand_id, day.day, sms_type, count)
        for day, counts in zip(days, recipients, strict=True)
        for sms_type, count in counts.items()
    ]
    await connection.execute(
        _KEEP_DAYS,
        {
            "brands": arrays.integers([row[0] for row in rows]),
            "days": arrays.moments([row[1] for row in rows]),
            "types": arrays.integers([row[2] for row in rows]),
            "recipients": arrays.integers([row[3] for row in rows]),
            "wait": wait_seconds,
        },
    )
    await connection.execute(
        _NOTE_COUNTS,
        (
            arrays.integers([day.brand_id for day in days]),
            arrays.moments([day.day for day in days]),
            arrays.integers([day.changes for day in days]),
        ),
    )


async def read(connection: Connection, query: Query, *, after: Key | None, limit: int) -> list[Usage]:
    """Figures in the order of their keys. `after` is the key of the last one before."""
    brand_id, first, sms_type, account = (-1, "-infinity", 0, "") if after is None else after
    cursor = await connection.execute(
        _READ,
        {
            "brands": arrays.integers(query.brand_ids),
            "start": query.start,
            "end": query.end,
            "unit": query.unit.word,
            "zone": query.zone,
            "types": arrays.integers(query.sms_types),
            "accounts": arrays.texts(query.accounts),
            "by_brand": query.by_brand,
            "by_type": query.by_type,
            "by_account": query.by_account,
            "after_brand": brand_id,
            "after_start": first,
            "after_type": sms_type,
            "after_account": account,
            "limit": limit,
        },
    )
    return [
        Usage(brand_id, start, sms_type, account, Figures(*figures))
        for brand_id, start, sms_type, account, *figures in await cursor.fetchall()
    ]


async def recipients(
    connection: Connection, days: Sequence[tuple[int, datetime, int]]
) -> dict[tuple[int, datetime, int], tuple[int, datetime]]:
    """Of days (brand, first moment, type): how many different numbers, counted when."""
    cursor = await connection.execute(
        _RECIPIENTS,
        (
            arrays.integers([day[0] for day in days]),
            arrays.moments([day[1] for day in days]),
            arrays.integers([day[2] for day in days]),
        ),
    )
    return {(row[0], row[1], row[2]): (row[3], row[4]) for row in await cursor.fetchall()}


async def brands(connection: Connection, *, after: int, limit: int) -> list[int]:
    """Brands with figures, in order."""
    cursor = await connection.execute(_BRANDS, {"after": after, "limit": limit})
    return [row[0] for row in await cursor.fetchall()]


async def recorded_brands(connection: Connection, *, after: int, limit: int) -> list[int]:
    """Brands with records or figures, in order."""
    cursor = await connection.execute(_RECORDED_BRANDS, {"after": after, "limit": limit})
    return [row[0] for row in await cursor.fetchall()]


async def rebuild(database: Database, first: int, last: int, *, zone: str) -> None:
    """Make the figures of brands `first` to `last` anew from their records, as one moment knows them: all or nothing.

    Messages go on meanwhile; what they change is folded after it.
    """
    bounds = {"first": first, "last": last, "zone": zone}
    async with database.connection() as connection:
        await connection.execute("set transaction isolation level repeatable read")
        # Before the snapshot is taken: what others folded until now is in it, and they fold no more until the end.
        await connection.execute("lock table smsgateway.usage_hour, smsgateway.usage_day in share row exclusive mode")
        for statement in _CLEAR:
            await connection.execute(statement.encode(), bounds)
        async with scanning(connection):
            await connection.execute(_FILL_HOURS, bounds)
            await connection.execute(_FILL_DAYS, bounds)


async def differences(
    connection: Connection, first: int, last: int, *, zone: str, limit: int
) -> AsyncIterator[Difference]:
    """Where the figures of brands `first` to `last` are not what their records say, at most `limit` of each kind.

    The connection is in a snapshot: figures, what waits to be folded and records are of one moment.
    """
    bounds = {"first": first, "last": last, "zone": zone, "limit": limit}
    async with scanning(connection):
        async for rows in pages(connection, _DIFFERENT_HOURS, bounds, 1_000):
            for brand_id, hour, sms_type, account, recorded, kept in rows:
                subject = f"{hour:%Y-%m-%dT%H}Z type {sms_type} {account or 'no account'}"
                for name, expected, found in zip(_COUNTERS, recorded, kept, strict=True):
                    if expected != found:
                        yield Difference("usage", brand_id, subject, name, str(expected), str(found))
        async for rows in pages(connection, _DIFFERENT_DAYS, bounds, 1_000):
            for brand_id, day, sms_type, expected, found in rows:
                subject = f"day from {day:%Y-%m-%dT%H:%M}Z type {sms_type}"
                yield Difference("usage", brand_id, subject, "recipients", str(expected), str(found))


def _prefix(moment: datetime) -> str:
    return time_prefix(max(0, int(moment.timestamp() * 1_000)))
