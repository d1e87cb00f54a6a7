"""SQL of replies: each stored once, for the brand that it most likely answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.carriers.base import TIMELESS

# A reply that its carrier gives neither an id nor a time is known by its words: as the same one only for a while.
_NEW = f"""
insert into smsgateway.reply_reference as r (account, reference, created_at)
select asked.account, asked.reference, now()
from unnest(%s::text[], %s::text[]) as asked (account, reference)
on conflict (account, reference) do update
set created_at = now()
where r.reference like '{TIMELESS}%%' and r.created_at < now() - make_interval(secs => %s)
returning account, reference
"""

# One hop of an index for each brand, however many messages they have.
_BRANDS = """
with recursive brand (brand_id, place) as (
  (select brand_id, 1 from smsgateway.message order by brand_id limit 1)
  union all
  select (select m.brand_id from smsgateway.message as m where m.brand_id > brand.brand_id order by m.brand_id limit 1),
         brand.place + 1
  from brand
  where brand.brand_id is not null and brand.place < %s
)
select brand_id from brand where brand_id is not null
"""

# A look-up for each number and brand, in a brand's own index; the newest message of all brands is chosen here.
_LAST_SENT = """
select distinct on (asked.mobile, asked.account) asked.mobile, asked.account, brand.brand_id, last.message_id
from unnest(%s::text[], %s::text[]) as asked (mobile, account)
cross join unnest(%s::bigint[]) as brand (brand_id)
cross join lateral (
  select m.message_id, m.sent_at
  from smsgateway.message as m
  where m.brand_id = brand.brand_id and m.mobile = asked.mobile and m.message_id >= %s
    and m.account = asked.account and m.sent_at is not null
  order by m.message_id desc
  limit 1
) as last
order by asked.mobile, asked.account, last.sent_at desc
"""

_INSERT = """
insert into smsgateway.reply
  (brand_id, reply_id, account, reference, mobile, destination, text, part, opt_out, message_id, received_at,
   created_at)
select asked.*, now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
            %s::boolean[], %s::text[], %s::timestamptz[]) as asked
"""

_LIST = """
select brand_id, reply_id, account, reference, mobile, destination, text, part, opt_out, coalesce(message_id, ''),
       received_at, created_at
from smsgateway.reply
where brand_id = %(brand)s
"""

_DELETE_REFERENCES = """
delete from smsgateway.reply_reference as r
using (
  select account, reference from smsgateway.reply_reference
  where created_at < now() - make_interval(days => %s)
  order by created_at
  limit %s
  for update skip locked
) as old
where r.account = old.account and r.reference = old.reference
"""

Reference = tuple[str, str]


@dataclass(frozen=True, slots=True)
class NewReply:
    """A reply to be stored. `reference`: the carrier's id of it; `message_id` the message that it answers; None
    without one.
    """

    brand_id: int
    reply_id: str
    account: str
    reference: str
    mobile: str
    destination: str
    text: str
    part: str
    opt_out: bool
    message_id: str | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply as it stands in the table."""

    brand_id: int
    reply_id: str
    account: str
    reference: str
    mobile: str
    destination: str
    text: str
    part: str
    opt_out: bool
    message_id: str
    received_at: datetime
    created_at: datetime


async def take_new(connection: Connection, references: Sequence[Reference], *, repeat_seconds: float) -> set[Reference]:
    """Remember replies by account and reference; those that were not stored before. Others that store the same at this
    moment are waited for.
    """
    # In one order for everybody, so that two that store the same never wait in a circle.
    ordered = sorted(set(references))
    cursor = await connection.execute(
        _NEW,
        (arrays.texts([each[0] for each in ordered]), arrays.texts([each[1] for each in ordered]), repeat_seconds),
    )
    return {(row[0], row[1]) for row in await cursor.fetchall()}


async def brands(connection: Connection, *, limit: int) -> list[int]:
    """The brands that have messages, at most so many."""
    return [row[0] for row in await (await connection.execute(_BRANDS, (limit,))).fetchall()]


async def last_sent(
    connection: Connection, asked: Sequence[Reference], brand_ids: Sequence[int], *, since: str
) -> dict[Reference, tuple[int, str]]:
    """Of numbers and accounts, brand and id of the message that went to the number last over the account, of those with
    ids from `since` on.
    """
    cursor = await connection.execute(
        _LAST_SENT,
        (
            arrays.texts([each[0] for each in asked]),
            arrays.texts([each[1] for each in asked]),
            arrays.integers(brand_ids),
            since,
        ),
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in await cursor.fetchall()}


async def insert(connection: Connection, replies: Sequence[NewReply]) -> None:
    """Store replies."""
    await connection.execute(
        _INSERT,
        (
            arrays.integers([reply.brand_id for reply in replies]),
            arrays.texts([reply.reply_id for reply in replies]),
            arrays.texts([reply.account for reply in replies]),
            arrays.texts([reply.reference for reply in replies]),
            arrays.texts([reply.mobile for reply in replies]),
            arrays.texts([reply.destination for reply in replies]),
            arrays.texts([reply.text for reply in replies]),
            arrays.texts([reply.part for reply in replies]),
            arrays.booleans([reply.opt_out for reply in replies]),
            arrays.texts([reply.message_id for reply in replies]),
            arrays.moments([reply.received_at for reply in replies]),
        ),
    )


async def listed(
    connection: Connection, brand_id: int, *, mobile: str = "", before: str = "", limit: int
) -> list[StoredReply]:
    """A brand's replies, newest first; each filter holds unless it is empty. `before` is a reply's id."""
    conditions = [(mobile, "and mobile = %(mobile)s"), (before, "and reply_id < %(before)s")]
    query = _LIST + "\n".join(condition for value, condition in conditions if value)
    cursor = await connection.execute(
        query + "\norder by reply_id desc limit %(limit)s",
        {"brand": brand_id, "mobile": mobile, "before": before, "limit": limit},
    )
    return [StoredReply(*row) for row in await cursor.fetchall()]


async def delete_references(connection: Connection, *, days: int, limit: int) -> int:
    """Forget which replies were stored so long ago."""
    return (await connection.execute(_DELETE_REFERENCES, (days, limit))).rowcount
