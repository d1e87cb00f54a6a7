"""SQL of settling receipts: from the inbox to the message that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.queues import ReceiptItem
from smsgateway.references import dispatch_of
from smsgateway.schema import MessageState
from smsgateway.store.telling import telling

# A single message's id is its dispatch's; a batch's messages name the chunk that they were sent with last.
_MESSAGE_OF_DISPATCH = """
  select * from smsgateway.message
  where message.brand_id = asked.brand_id and message.message_id = asked.dispatch_id
    and message.mobile = {mobile}
  union all
  select * from smsgateway.message
  where message.brand_id = asked.brand_id and message.dispatch_id = asked.dispatch_id
    and message.mobile = {mobile} and message.batch_id is not null
"""
_ADDRESSEE = """
m.brand_id, asked.dispatch_id, m.mobile, m.message_id, m.segments, m.state, m.payment_no, m.request_id, d.state,
d.call_id, d.payment_no, m.batch_id is not null, coalesce(m.account, d.account), m.parts_open
"""

_LOAD = f"""
select r.account, r.reference, r.inbox_id, r.call_id, r.mobile, r.state, r.carrier_code, r.detail, r.reported_at,
       r.attempts, extract(epoch from now() - r.received_at)::double precision, r.billed_segments, {_ADDRESSEE}
from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[])
     as asked (account, reference, inbox_id, brand_id, dispatch_id)
join smsgateway.receipt_inbox as r
  on r.account = asked.account and r.reference = asked.reference and r.inbox_id = asked.inbox_id
left join lateral ({_MESSAGE_OF_DISPATCH.format(mobile="r.mobile")}) as m on true
left join smsgateway.dispatch as d on d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
"""

_FIND_ROUTES = """
select route.account, route.reference, route.brand_id, route.dispatch_id
from unnest(%s::text[], %s::text[]) as asked (account, reference)
join smsgateway.route on route.account = asked.account and route.reference = asked.reference
"""

_FIND_MESSAGES = f"""
select {_ADDRESSEE}
from unnest(%s::bigint[], %s::text[], %s::text[]) as asked (brand_id, dispatch_id, mobile)
cross join lateral ({_MESSAGE_OF_DISPATCH.format(mobile="asked.mobile")}) as m
left join smsgateway.dispatch as d on d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
"""

_SETTLE = telling(
    f"""
  update smsgateway.message as m
  set state = asked.state, result_code = asked.code, result_detail = asked.detail,
      -- A carrier tells the time to the minute, which can be before the message was sent.
      finished_at = greatest(coalesce(asked.reported_at, now()), m.sent_at)
  from unnest(%s::bigint[], %s::text[], %s::smallint[], %s::text[], %s::text[], %s::timestamptz[])
       as asked (brand_id, message_id, state, code, detail, reported_at)
  where m.brand_id = asked.brand_id and m.message_id = asked.message_id and m.state + 0 = {MessageState.SENT:d}
""",
    before="""gone as (
  delete from smsgateway.receipt_inbox as r
  using unnest(%s::text[], %s::text[], %s::text[]) as asked (account, reference, inbox_id)
  where r.account = asked.account and r.reference = asked.reference and r.inbox_id = asked.inbox_id
), """,
    more="m.sms_type",
    returning="brand_id, message_id, sms_type, state",
)

# Two receipts of one message settled at the same time: the second waits for the first's row and sees what it left.
_CLOSE_PARTS = """
update smsgateway.message as m
set parts_open = array(
  select part from unnest(m.parts_open) with ordinality as open (part, number)
  where part <> all(asked.parts)
  order by number
)
from (
  select brand_id, message_id, array_agg(part) as parts
  from unnest(%s::bigint[], %s::text[], %s::text[]) as each (brand_id, message_id, part)
  group by brand_id, message_id
) as asked
where m.brand_id = asked.brand_id and m.message_id = asked.message_id and m.parts_open is not null
returning m.brand_id, m.message_id, m.parts_open
"""

_PUT_OFF = """
update smsgateway.receipt_inbox as r
set attempts = r.attempts + 1, last_error = asked.error, next_at = now() + asked.delay_ms * interval '1 ms'
from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[])
     as asked (account, reference, inbox_id, delay_ms, error)
where r.account = asked.account and r.reference = asked.reference and r.inbox_id = asked.inbox_id
"""

_TAKE_DUE = """
update smsgateway.receipt_inbox as r
set next_at = now() + make_interval(secs => %s)
from (
  select account, reference, inbox_id
  from smsgateway.receipt_inbox
  where next_at <= now()
  order by next_at
  limit %s
  for update skip locked
) as due
where r.account = due.account and r.reference = due.reference and r.inbox_id = due.inbox_id
returning r.account, r.reference, r.inbox_id, coalesce(r.call_id, '')
"""

_COUNT_PARKED = (
    "select count(*) from (select 1 from smsgateway.receipt_inbox where next_at is null limit 10000) as parked"
)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as it lies in the inbox. `state` is a number of costcenter.v1.ReceiptState; `billed_segments` what the
    carrier bills for the message, None when it did not tell.
    """

    account: str
    reference: str
    inbox_id: str
    call_id: str | None
    mobile: str
    state: int
    carrier_code: str
    detail: str | None
    reported_at: datetime | None
    attempts: int
    age_seconds: float
    billed_segments: int | None


_RECEIPT_COLUMNS = len(fields(Receipt))


@dataclass(frozen=True, slots=True)
class Route:
    """Where a reference belongs."""

    brand_id: int
    dispatch_id: str


@dataclass(frozen=True, slots=True)
class Addressee:
    """The message that a receipt speaks of, and its dispatch as far as there still is one. `account`: the carrier's
    account that it was submitted to; `parts_open`: see `smsgateway.schema.message`.
    """

    brand_id: int
    dispatch_id: str
    mobile: str
    message_id: str
    segments: int
    state: int
    payment_no: str | None
    request_id: str
    dispatch_state: int | None
    dispatch_call_id: str | None
    dispatch_payment_no: str | None
    of_batch: bool
    account: str | None
    parts_open: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Finality:
    """What a receipt makes of a message that is sent."""

    brand_id: int
    message_id: str
    state: MessageState
    code: str
    detail: str | None
    reported_at: datetime | None


@dataclass(frozen=True, slots=True)
class ReceiptPutOff:
    """A receipt that could not be settled. `delay_seconds` None: parked until an operator looks at it."""

    item: ReceiptItem
    delay_seconds: float | None
    error: str


async def load(connection: Connection, items: Sequence[ReceiptItem]) -> list[tuple[Receipt, Addressee | None]]:
    """The receipts that are still in the inbox, each with the message that its call id leads to. One statement."""
    places = [dispatch_of(item.call_id) or (None, None) for item in items]
    cursor = await connection.execute(
        _LOAD,
        (
            *_item_columns(items),
            arrays.integers([place[0] for place in places]),
            arrays.texts([place[1] for place in places]),
        ),
    )
    # The message's brand is null where there is none.
    return [
        (
            Receipt(*row[:_RECEIPT_COLUMNS]),
            None if row[_RECEIPT_COLUMNS] is None else Addressee(*row[_RECEIPT_COLUMNS:]),
        )
        for row in await cursor.fetchall()
    ]


async def find_routes(connection: Connection, references: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Route]:
    """Where references (account, our call id or the carrier's id) belong."""
    cursor = await connection.execute(
        _FIND_ROUTES,
        (arrays.texts([item[0] for item in references]), arrays.texts([item[1] for item in references])),
    )
    return {(row[0], row[1]): Route(row[2], row[3]) for row in await cursor.fetchall()}


async def find_messages(
    connection: Connection, asked: Sequence[tuple[int, str, str]]
) -> dict[tuple[int, str, str], Addressee]:
    """Messages by brand, dispatch and number."""
    cursor = await connection.execute(
        _FIND_MESSAGES,
        (
            arrays.integers([item[0] for item in asked]),
            arrays.texts([item[1] for item in asked]),
            arrays.texts([item[2] for item in asked]),
        ),
    )
    return {(row[0], row[1], row[2]): Addressee(*row) for row in await cursor.fetchall()}


async def close_parts(
    connection: Connection, parts: Sequence[tuple[int, str, str]]
) -> dict[tuple[int, str], list[str]]:
    """Record parts (brand, message, the carrier's id) as delivered; what is open then, by brand and message."""
    cursor = await connection.execute(
        _CLOSE_PARTS,
        (
            arrays.integers([part[0] for part in parts]),
            arrays.texts([part[1] for part in parts]),
            arrays.texts([part[2] for part in parts]),
        ),
    )
    return {(row[0], row[1]): row[2] for row in await cursor.fetchall()}


async def settle(
    connection: Connection, items: Sequence[ReceiptItem], finals: Sequence[Finality]
) -> list[tuple[int, str, int, int]]:
    """Forget receipts that are settled and record the final states that they bring to messages that are sent; brand,
    message, type and state of those that it changed. One statement.
    """
    cursor = await connection.execute(
        _SETTLE,
        (
            *_item_columns(items),
            arrays.integers([item.brand_id for item in finals]),
            arrays.texts([item.message_id for item in finals]),
            arrays.integers([int(item.state) for item in finals]),
            arrays.texts([item.code for item in finals]),
            arrays.texts([item.detail or None for item in finals]),
            arrays.moments([item.reported_at for item in finals]),
        ),
    )
    return [(row[0], row[1], row[2], row[3]) for row in await cursor.fetchall()]


async def put_off(connection: Connection, items: Sequence[ReceiptPutOff]) -> None:
    """Record that receipts could not be settled, and when to try again."""
    if not items:
        return
    await connection.execute(
        _PUT_OFF,
        (
            *_item_columns([item.item for item in items]),
            arrays.integers([_milliseconds(item.delay_seconds) for item in items]),
            arrays.texts([item.error[:500] for item in items]),
        ),
    )


async def take_due(connection: Connection, *, hold_seconds: float, limit: int) -> list[ReceiptItem]:
    """Take receipts that are due, for `hold_seconds`; two processes take different ones."""
    cursor = await connection.execute(_TAKE_DUE, (hold_seconds, limit))
    return [ReceiptItem(*row) for row in await cursor.fetchall()]


async def count_parked(connection: Connection) -> int:
    """Receipts that wait for an operator, counted up to 10,000."""
    row = await (await connection.execute(_COUNT_PARKED)).fetchone()
    assert row is not None
    return int(row[0])


def _item_columns(items: Sequence[ReceiptItem]) -> tuple[str, str, str]:
    return (
        arrays.texts([item.account for item in items]),
        arrays.texts([item.reference for item in items]),
        arrays.texts([item.inbox_id for item in items]),
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1_000)
