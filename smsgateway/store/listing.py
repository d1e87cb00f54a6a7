"""SQL of reading messages and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from infra.database import Connection
from smsgateway.schema import DispatchState, MessageState
from smsgateway.variables import final_text

# How a message that is stored as queued is seen while it has a dispatch in such a state.
SEEN_STATES: Mapping[DispatchState, MessageState] = {
    DispatchState.ACCEPTING: MessageState.ACCEPTING,
    DispatchState.QUEUED: MessageState.QUEUED,
    DispatchState.CLAIMED: MessageState.CLAIMED,
    DispatchState.SUBMITTING: MessageState.SUBMITTING,
    DispatchState.UNKNOWN: MessageState.UNKNOWN,
    DispatchState.PARTIAL: MessageState.SENT,
    DispatchState.PAUSED: MessageState.QUEUED,
}

_CASES = " ".join(f"when {state:d} then {seen:d}" for state, seen in SEEN_STATES.items())
SEEN = f"""
case when message.state <> {MessageState.QUEUED:d} then message.state
     else coalesce(case dispatch.state {_CASES} end, message.state) end
"""
"""The state of a message as callers see it, where `message` and `dispatch` are joined."""

_SELECT = f"""
select message.message_id, message.brand_id, coalesce(message.batch_id, ''), message.sms_type, message.mobile,
       coalesce(message.text, batch.text, ''), message.segments, ({SEEN}) as seen,
       coalesce(message.order_no, dispatch.order_no, ''), coalesce(message.payment_no, dispatch.payment_no, ''),
       coalesce(message.account, dispatch.account, ''),
       coalesce(message.carrier_message_id, ''), coalesce(message.result_code, ''), coalesce(message.result_detail, ''),
       message.created_at, coalesce(message.submitted_at, dispatch.submitting_at), message.sent_at,
       message.finished_at, message.request_id, batch.variables, message.variables
from smsgateway.message
left join smsgateway.dispatch
  on dispatch.brand_id = message.brand_id and dispatch.dispatch_id = message.dispatch_id
left join smsgateway.batch
  on batch.brand_id = message.brand_id and batch.batch_id = message.batch_id
where message.brand_id = %(brand)s
"""

_BATCHES = """
select batch_id, sms_type, text, accepted, segments, order_no, accepted_at, cancelled_at is not null, variables,
       coalesce(campaign_id, ''), paused_at is not null, request_id
from smsgateway.batch
where brand_id = %(brand)s and accepted_at is not null
"""


# Messages are counted per dispatch first: a hundred chunks are looked up then, not a hundred thousand messages.
def _counting(chosen: str) -> str:
    return f"""
with message as materialized (
  select brand_id, dispatch_id, state, count(*) as messages
  from smsgateway.message
  where {chosen}
  group by brand_id, dispatch_id, state
)
select ({SEEN}) as seen, sum(message.messages)::bigint
from message
left join smsgateway.dispatch
  on dispatch.brand_id = message.brand_id and dispatch.dispatch_id = message.dispatch_id
group by seen
order by seen
"""


_COUNT_BATCH = _counting("brand_id = %s and batch_id = %s and batch_id is not null")
_COUNT_CAMPAIGN = _counting(
    """brand_id = %(brand)s and batch_id is not null and batch_id in (
    select batch_id from smsgateway.batch
    where brand_id = %(brand)s and campaign_id = %(campaign)s and campaign_id is not null and accepted_at is not null
  )"""
)


_PAGE_OF_BATCH = """
select count(*), coalesce(max(message_id), '')
from (
  select message_id from smsgateway.message
  where brand_id = %s and batch_id = %s and batch_id is not null and message_id > %s
  order by message_id
  limit %s
) as page
"""

# The place within the page tells them apart in a bit each.
_ENDS = f"""
select place, message_id, mobile, state, result_code, segments, finished_at
from (
  select row_number() over (order by message_id) - 1 as place, message_id, mobile, state,
         coalesce(result_code, '') as result_code, segments, finished_at
  from smsgateway.message
  where brand_id = %s and batch_id = %s and batch_id is not null and message_id > %s and message_id <= %s
) as page
where state in ({MessageState.DELIVERED:d}, {MessageState.UNDELIVERED:d}, {MessageState.EXPIRED:d},
                {MessageState.FAILED:d}, {MessageState.CANCELLED:d})
order by place
"""


@dataclass(frozen=True, slots=True)
class SeenEnd:
    """How a message of a batch ended."""

    message_id: str
    mobile: str
    state: int
    result_code: str
    segments: int
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """A message as callers see it; what is not known is empty or None."""

    message_id: str
    brand_id: int
    batch_id: str
    sms_type: int
    mobile: str
    text: str
    segments: int
    state: int
    order_no: str
    payment_no: str
    account: str
    carrier_message_id: str
    result_code: str
    result_detail: str
    created_at: datetime
    submitted_at: datetime | None
    sent_at: datetime | None
    finished_at: datetime | None
    request_id: str


@dataclass(frozen=True, slots=True)
class SeenBatch:
    """A batch that was accepted."""

    batch_id: str
    sms_type: int
    text: str
    accepted: int
    segments: int
    order_no: str
    accepted_at: datetime
    cancelled: bool
    variables: str | None
    campaign_id: str
    paused: bool
    request_id: str


async def find_message(connection: Connection, brand_id: int, message_id: str) -> SeenMessage | None:
    """One message, or None."""
    cursor = await connection.execute(
        _SELECT + "and message.message_id = %(message)s", {"brand": brand_id, "message": message_id}
    )
    row = await cursor.fetchone()
    return None if row is None else _seen(row)


async def list_messages(
    connection: Connection,
    brand_id: int,
    *,
    batch_id: str = "",
    state: int = 0,
    mobile: str = "",
    before: str = "",
    sms_type: int = 0,
    first: str = "",
    last: str = "",
    limit: int,
) -> list[SeenMessage]:
    """A brand's messages, newest first; each filter holds unless it is empty. `before` is a message's id; `first` and
    `last` (exclusive) are beginnings of ids (`infra.identifiers.time_prefix`).
    """
    # Conditions are written only where they filter: the planner then finds the index that has the order as well.
    conditions = [
        (batch_id, "and message.batch_id = %(batch)s"),
        (mobile, "and message.mobile = %(mobile)s"),
        (before, "and message.message_id < %(before)s"),
        (state, f"and ({SEEN}) = %(state)s"),
        (sms_type, "and message.sms_type = %(type)s"),
        (first, "and message.message_id >= %(first)s"),
        (last, "and message.message_id < %(last)s"),
    ]
    query = _SELECT + "\n".join(condition for value, condition in conditions if value)
    cursor = await connection.execute(
        query + "\norder by message.message_id desc limit %(limit)s",
        {
            "brand": brand_id,
            "batch": batch_id,
            "mobile": mobile,
            "before": before,
            "state": state,
            "type": sms_type,
            "first": first,
            "last": last,
            "limit": limit,
        },
    )
    return [_seen(row) for row in await cursor.fetchall()]


async def find_batch(connection: Connection, brand_id: int, batch_id: str) -> SeenBatch | None:
    """One accepted batch, or None."""
    cursor = await connection.execute(_BATCHES + "and batch_id = %(batch)s", {"brand": brand_id, "batch": batch_id})
    row = await cursor.fetchone()
    return None if row is None else SeenBatch(*row)


async def list_batches(
    connection: Connection, brand_id: int, *, campaign_id: str = "", before: str = "", limit: int
) -> list[SeenBatch]:
    """A brand's accepted batches, newest first; each filter holds unless it is empty. `before` is a batch's id."""
    conditions = [(campaign_id, "and campaign_id = %(campaign)s"), (before, "and batch_id < %(before)s")]
    query = _BATCHES + "\n".join(condition for value, condition in conditions if value)
    cursor = await connection.execute(
        query + "\norder by batch_id desc limit %(limit)s",
        {"brand": brand_id, "campaign": campaign_id, "before": before, "limit": limit},
    )
    return [SeenBatch(*row) for row in await cursor.fetchall()]


async def count_batch(connection: Connection, brand_id: int, batch_id: str) -> list[tuple[int, int]]:
    """A batch's messages counted by the state in which they are seen, in order of the state."""
    cursor = await connection.execute(_COUNT_BATCH, (brand_id, batch_id))
    return [(int(state), int(messages)) for state, messages in await cursor.fetchall()]


async def page_of_batch(
    connection: Connection, brand_id: int, batch_id: str, *, after: str, limit: int
) -> tuple[int, str]:
    """How many messages of a batch follow an id, at most `limit`, and the id of the last of them."""
    row = await (await connection.execute(_PAGE_OF_BATCH, (brand_id, batch_id, after, limit))).fetchone()
    assert row is not None
    return int(row[0]), str(row[1])


async def ends_of(
    connection: Connection, brand_id: int, batch_id: str, *, after: str, last: str
) -> list[tuple[int, SeenEnd]]:
    """Messages of a batch between two ids that are final, each with its place among all of them."""
    cursor = await connection.execute(_ENDS, (brand_id, batch_id, after, last))
    return [(int(row[0]), SeenEnd(*row[1:])) for row in await cursor.fetchall()]


async def count_campaign(connection: Connection, brand_id: int, campaign_id: str) -> list[tuple[int, int]]:
    """A campaign's messages counted by the state in which they are seen, in order of the state."""
    cursor = await connection.execute(_COUNT_CAMPAIGN, {"brand": brand_id, "campaign": campaign_id})
    return [(int(state), int(messages)) for state, messages in await cursor.fetchall()]


def _seen(row: Sequence[Any]) -> SeenMessage:
    *columns, names, values = row
    message = SeenMessage(*columns)
    return message if values is None else replace(message, text=final_text(message.text, names, values))
