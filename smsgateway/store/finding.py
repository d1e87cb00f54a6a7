"""SQL of finding one thing and telling all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from infra.database import Connection
from smsgateway.store.listing import SEEN

_RECORD = f"""
select message.message_id, coalesce(message.batch_id, ''), message.dispatch_id, message.request_id, message.sms_type,
       message.mobile, message.segments, ({SEEN}) as seen, coalesce(message.order_no, dispatch.order_no, ''),
       coalesce(message.payment_no, dispatch.payment_no, ''), coalesce(message.account, dispatch.account, ''),
       coalesce(message.call_id, dispatch.call_id, ''),
       coalesce(message.carrier_message_id, dispatch.carrier_message_id, ''), coalesce(message.result_code, ''),
       coalesce(message.result_detail, ''), message.created_at,
       coalesce(message.submitted_at, dispatch.submitting_at), message.sent_at, message.finished_at,
       coalesce(dispatch.stream_entry, ''), dispatch.due_at, coalesce(dispatch.paused, false),
       coalesce(dispatch.not_before = 'infinity', false), coalesce(dispatch.last_error, ''),
       coalesce(dispatch.attempts, 0)::int
from smsgateway.message
left join smsgateway.dispatch
  on dispatch.brand_id = message.brand_id and dispatch.dispatch_id = message.dispatch_id
where message.brand_id = %(brand)s and message.message_id = %(message)s
"""

_OF_DISPATCH = """
select message_id from smsgateway.message
where brand_id = %(brand)s and message_id = %(dispatch)s
union all
(
  select message_id from smsgateway.message
  where brand_id = %(brand)s and dispatch_id = %(dispatch)s and batch_id is not null
  order by message_id
  limit %(limit)s
)
limit %(limit)s
"""

# A receipt's route is found by account and reference, and so is what somebody looks for by the carrier's id alone: in
# each account that has routes, which are few, going from one to the next by the index.
_BY_REFERENCE = """
with recursive account as (
  (select account from smsgateway.route order by account limit 1)
  union all
  select following.account
  from account
  cross join lateral (
    select account from smsgateway.route where route.account > account.account order by account limit 1
  ) as following
)
select route.brand_id, route.dispatch_id, route.account
from (select account from account limit %(accounts)s) as account
join smsgateway.route on route.account = account.account and route.reference = %(reference)s
"""

_CARRIED = """
select message_id from smsgateway.message
where brand_id = %(brand)s and message_id = %(dispatch)s
union all
(
  select message_id from smsgateway.message
  where brand_id = %(brand)s and dispatch_id = %(dispatch)s and batch_id is not null
    and %(reference)s = any(string_to_array(carrier_message_id, ' '))
  order by message_id
  limit %(limit)s
)
limit %(limit)s
"""

_EXISTING = """
select 'message', message_id from smsgateway.message where brand_id = %(brand)s and message_id = %(id)s
union all
select 'batch', batch_id from smsgateway.batch
where brand_id = %(brand)s and batch_id = %(id)s and accepted_at is not null
"""

ACCOUNTS_MAX = 1_000
"""Carrier accounts that a reference is looked for in."""


@dataclass(frozen=True, slots=True)
class Record:
    """All that the gateway knows of a message, its dispatch included; what is not known is empty or None."""

    message_id: str
    batch_id: str
    dispatch_id: str
    request_id: str
    sms_type: int
    mobile: str
    segments: int
    state: int
    order_no: str
    payment_no: str
    account: str
    call_id: str
    carrier_message_id: str
    result_code: str
    result_detail: str
    created_at: datetime
    submitted_at: datetime | None
    sent_at: datetime | None
    finished_at: datetime | None
    stream_entry: str
    due_at: datetime | None
    paused: bool
    parked: bool
    last_error: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Routed:
    """A carrier's reference led here."""

    brand_id: int
    dispatch_id: str
    account: str


async def record(connection: Connection, brand_id: int, message_id: str) -> Record | None:
    """A message with its dispatch, or None."""
    cursor = await connection.execute(_RECORD, {"brand": brand_id, "message": message_id})
    row = await cursor.fetchone()
    return None if row is None else Record(*row)


async def kinds_of(connection: Connection, brand_id: int, identifier: str) -> list[str]:
    """What an identifier names in the gateway: message, batch, or nothing."""
    cursor = await connection.execute(_EXISTING, {"brand": brand_id, "id": identifier})
    return [row[0] for row in await cursor.fetchall()]


async def messages_of_dispatch(connection: Connection, brand_id: int, dispatch_id: str, *, limit: int) -> list[str]:
    """Ids of the first messages of a dispatch: of a single one its own."""
    cursor = await connection.execute(_OF_DISPATCH, {"brand": brand_id, "dispatch": dispatch_id, "limit": limit})
    return [row[0] for row in await cursor.fetchall()]


async def routes(connection: Connection, reference: str) -> list[Routed]:
    """Where a carrier's id of a message leads to, in every account, as long as routes are kept."""
    cursor = await connection.execute(_BY_REFERENCE, {"reference": reference, "accounts": ACCOUNTS_MAX})
    return [Routed(*row) for row in await cursor.fetchall()]


async def carried(connection: Connection, routed: Routed, reference: str, *, limit: int) -> list[str]:
    """Ids of the messages of a route that the carrier calls so."""
    cursor = await connection.execute(
        _CARRIED,
        {"brand": routed.brand_id, "dispatch": routed.dispatch_id, "reference": reference, "limit": limit},
    )
    return [row[0] for row in await cursor.fetchall()]
