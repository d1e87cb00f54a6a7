"""SQL of sending: claims, marks, results. Every statement is conditional on state and epoch or call id, so that whoever
comes late, a worker that was stopped for an hour included, changes nothing.

A dispatch on its way through a worker (see `smsgateway.schema.DispatchState`):

* claim: QUEUED, or CLAIMED under an older epoch → CLAIMED under ours;
* mark: CLAIMED under our epoch → SUBMITTING with a call id of its own; only then the carrier is called;
* result: SUBMITTING or UNKNOWN with that call id → gone, PARTIAL, UNKNOWN, or CLAIMED again when surely not accepted.

A dispatch that is given back is QUEUED: under epoch 0 when nobody tried to pay for it, so that it may be cancelled;
under the epoch that it had when a payment may exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra import arrays
from infra.database import Connection
from smsgateway.schema import DispatchState, MessageState, Mode, OutboxKind
from smsgateway.store.counting import FIGURES, counting
from smsgateway.store.outbox import OutboxRow
from smsgateway.store.telling import TOLD_OF_SENT, telling
from smsgateway.variables import BETWEEN_RECIPIENTS, unpack_names

# A state is written `state + 0` beside a key, as in `smsgateway.store.accepting`.

_DAY_SECONDS = 86_400

_CLAIM = f"""
with claimed as (
  update smsgateway.dispatch as d
  set state = {DispatchState.CLAIMED:d}, epoch = asked.epoch, changed_at = now(), not_before = null,
      -- An epoch other than 0 says that somebody had it who may have paid.
      tried = d.epoch <> 0
  from unnest(%s::bigint[], %s::text[], %s::bigint[], %s::boolean[]) as asked (brand_id, dispatch_id, epoch, again)
  where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
    and (
      (d.state + 0 = {DispatchState.QUEUED:d} and (d.not_before is null or d.not_before <= now()))
      or (d.state + 0 = {DispatchState.CLAIMED:d}
          and (d.epoch < asked.epoch or (asked.again and d.epoch = asked.epoch)))
    )
  returning d.brand_id, d.dispatch_id, d.batch_id, d.messages, d.segments, d.request_id, d.sms_type, d.order_no,
            d.payment_no, d.attempts, d.failures, greatest(d.created_at, d.due_at) as created_at, d.tried,
            extract(epoch from d.valid_until - now())::double precision as valid_seconds,
            -- The night comes again every day.
            case when now() >= d.night_from then
              greatest(0, extract(epoch from d.night_until - d.night_from)
                          - mod(extract(epoch from now() - d.night_from), {_DAY_SECONDS}))::double precision
            else 0 end as night_seconds,
            coalesce(extract(epoch from now() - d.retry_since), 0)::double precision as retrying
)
"""

_CLAIM_SINGLE = f"""
{_CLAIM}
select claimed.*, message.text, message.mobile, null, null
from claimed
join smsgateway.message on message.brand_id = claimed.brand_id and message.message_id = claimed.dispatch_id
"""

_CLAIM_BATCH = f"""
{_CLAIM}
select claimed.*, batch.text,
  (select string_agg(message.mobile, ',' order by message.message_id)
   from smsgateway.message
   where message.brand_id = claimed.brand_id and message.dispatch_id = claimed.dispatch_id
     and message.batch_id is not null),
  batch.variables,
  case when batch.variables is not null then
    (select string_agg(message.variables, E'\\x1e' order by message.message_id)
     from smsgateway.message
     where message.brand_id = claimed.brand_id and message.dispatch_id = claimed.dispatch_id
       and message.batch_id is not null)
  end
from claimed
join smsgateway.batch on batch.brand_id = claimed.brand_id and batch.batch_id = claimed.batch_id
"""

_SET_ORDERS = f"""
update smsgateway.dispatch as d
set order_no = asked.order_no
from unnest(%s::bigint[], %s::text[], %s::bigint[], %s::text[]) as asked (brand_id, dispatch_id, epoch, order_no)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state = {DispatchState.CLAIMED:d} and d.epoch = asked.epoch
returning d.brand_id, d.dispatch_id
"""

_MARK = f"""
update smsgateway.dispatch as d
set state = {DispatchState.SUBMITTING:d}, payment_no = asked.payment_no, account = asked.account,
    call_id = asked.call_id, submitting_at = now(), changed_at = now()
from unnest(%s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[])
     as asked (brand_id, dispatch_id, epoch, payment_no, account, call_id)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state + 0 = {DispatchState.CLAIMED:d} and d.epoch = asked.epoch
returning d.brand_id, d.dispatch_id
"""

_INSERT_ROUTES = """
insert into smsgateway.route (account, reference, brand_id, dispatch_id, created_at)
select asked.account, asked.reference, asked.brand_id, asked.dispatch_id, now()
from unnest(%s::text[], %s::text[], %s::bigint[], %s::text[]) as asked (account, reference, brand_id, dispatch_id)
on conflict (account, reference) do nothing
"""

# A part of a message that is not sent as a whole, or not known to be, has its receipts all the same.
_RECORD_PARTS = f"""
with known as (
  select m.brand_id, m.message_id
  from (values (%(brand)s::bigint, %(dispatch)s::text)) as asked (brand_id, dispatch_id)
  cross join lateral (
    select brand_id, message_id, state from smsgateway.message
    where message.brand_id = asked.brand_id and message.message_id = asked.dispatch_id
    union all
    select brand_id, message_id, state from smsgateway.message
    where message.brand_id = asked.brand_id and message.dispatch_id = asked.dispatch_id and batch_id is not null
  ) as m
  where m.state + 0 = {MessageState.QUEUED:d}
), routed as (
  insert into smsgateway.route (account, reference, brand_id, dispatch_id, created_at)
  select %(account)s, part.reference, %(brand)s, %(dispatch)s, now()
  from unnest(%(parts)s::text[]) as part (reference)
  where part.reference <> ''
  order by part.reference
  on conflict (account, reference) do nothing
)
update smsgateway.message as m
set parts_open = %(parts)s::text[]
from known
where m.brand_id = known.brand_id and m.message_id = known.message_id
"""

# Without an epoch whoever holds the dispatch now is meant: for the answer to a call, which knows its call id.
_UNMARK = f"""
update smsgateway.dispatch as d
set state = case when d.paused then {DispatchState.PAUSED:d} else {DispatchState.CLAIMED:d} end,
    attempts = least(d.attempts + 1, 32000), changed_at = now(),
    retry_since = case when asked.judged then coalesce(d.retry_since, now()) else d.retry_since end
from unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::boolean[])
     as asked (brand_id, dispatch_id, call_id, epoch, judged)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) and d.call_id = asked.call_id
  and (asked.epoch is null or d.epoch = asked.epoch)
returning d.brand_id, d.dispatch_id, d.attempts,
          coalesce(extract(epoch from now() - d.retry_since), 0)::double precision
"""

_PUT_BACK = f"""
update smsgateway.dispatch as d
set state = {DispatchState.QUEUED:d}, epoch = case when asked.tried then d.epoch else 0 end,
    payment_no = coalesce(asked.payment_no, d.payment_no), changed_at = now(),
    not_before = case when asked.delay_ms is null then 'infinity'
                      when asked.delay_ms > 0 then now() + asked.delay_ms * interval '1 ms' end,
    attempts = least(d.attempts + asked.failures, 32000), failures = least(d.failures + asked.failures, 32000),
    last_error = coalesce(asked.error, d.last_error),
    retry_since = case when asked.wayless then coalesce(d.retry_since, now()) else d.retry_since end
from unnest(%s::bigint[], %s::text[], %s::bigint[], %s::boolean[], %s::text[], %s::bigint[], %s::int[], %s::text[],
            %s::boolean[])
     as asked (brand_id, dispatch_id, epoch, tried, payment_no, delay_ms, failures, error, wayless)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state = {DispatchState.CLAIMED:d} and d.epoch = asked.epoch
returning d.brand_id, d.dispatch_id
"""

_MESSAGE_SENT = f"""
set state = {MessageState.SENT:d}, order_no = gone.order_no, payment_no = gone.payment_no, account = gone.account,
    call_id = gone.call_id, carrier_message_id = gone.carrier_message_id, result_code = gone.code,
    submitted_at = gone.submitting_at, sent_at = now(), parts_open = string_to_array(gone.parts, ' ')
from gone
where m.brand_id = gone.brand_id and m.state + 0 = {MessageState.QUEUED:d}
"""

# All that becomes of an accepted call. Who deletes the dispatch does the rest; whoever comes second does nothing.
_ACCEPT_WHOLE = f"""
with gone as (
  delete from smsgateway.dispatch as d
  using unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[])
        as asked (brand_id, dispatch_id, call_id, carrier_message_id, parts, code, outbox_id, payload)
  where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
    and d.state + 0 in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) and d.call_id = asked.call_id
  returning d.brand_id, d.dispatch_id, d.batch_id, d.order_no, d.payment_no, d.account, d.call_id, d.submitting_at,
            asked.carrier_message_id, asked.parts, asked.code, asked.outbox_id, asked.payload
), singles as (
  update smsgateway.message as m
  {_MESSAGE_SENT} and gone.batch_id is null and m.message_id = gone.dispatch_id
  returning m.brand_id, {FIGURES}
), batches as (
  update smsgateway.message as m
  {_MESSAGE_SENT} and gone.batch_id is not null and m.dispatch_id = gone.dispatch_id and m.batch_id is not null
  returning m.brand_id, {FIGURES}
), counted as ({counting("(select * from singles union all select * from batches) as sent", f"{MessageState.SENT:d}")}
), routed as (
  insert into smsgateway.route (account, reference, brand_id, dispatch_id, created_at)
  select gone.account, known.reference, gone.brand_id, gone.dispatch_id, now()
  from gone
  cross join lateral unnest(coalesce(string_to_array(gone.parts, ' '), array[gone.carrier_message_id]))
             as known (reference)
  where known.reference <> '' and gone.account is not null
  order by gone.account, known.reference
  on conflict (account, reference) do nothing
), owed as (
  insert into smsgateway.outbox (brand_id, outbox_id, kind, payload, next_at, created_at)
  select gone.brand_id, gone.outbox_id, {OutboxKind.SEND_STATUS:d}, gone.payload, now() + make_interval(secs => %s),
         now()
  from gone
), {TOLD_OF_SENT}
select brand_id, dispatch_id from gone
"""

_ACCEPT_PARTLY = f"""
update smsgateway.dispatch as d
set state = {DispatchState.PARTIAL:d}, failed_count = asked.failed_count,
    carrier_message_id = asked.carrier_message_id, changed_at = now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::int[])
     as asked (brand_id, dispatch_id, call_id, carrier_message_id, failed_count)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) and d.call_id = asked.call_id
returning d.brand_id, d.dispatch_id, d.batch_id is not null, d.order_no, d.payment_no, d.account, d.call_id,
          d.submitting_at
"""

_SET_SENT = f"""
update smsgateway.message as m
set state = {MessageState.SENT:d}, order_no = asked.order_no, payment_no = asked.payment_no, account = asked.account,
    call_id = asked.call_id, carrier_message_id = asked.carrier_message_id, result_code = asked.code,
    submitted_at = asked.submitted_at, sent_at = now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
            %s::timestamptz[])
     as asked (brand_id, dispatch_id, order_no, payment_no, account, call_id, carrier_message_id, code, submitted_at)
where m.brand_id = asked.brand_id and m.state = {MessageState.QUEUED:d} and
"""
_OF_SINGLE = "m.message_id = asked.dispatch_id"
_OF_BATCH = "m.dispatch_id = asked.dispatch_id and m.batch_id is not null"

# By call id after a call, by epoch before one, by state for those that nobody will ever know more of.
_FAIL = f"""
delete from smsgateway.dispatch as d
using unnest(%s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[])
      as asked (brand_id, dispatch_id, call_id, epoch, payment_no)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and (
    (d.state in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) and d.call_id = asked.call_id)
    or (d.state = {DispatchState.CLAIMED:d} and d.epoch = asked.epoch)
  )
returning d.brand_id, d.dispatch_id, d.batch_id is not null, d.order_no, coalesce(d.payment_no, asked.payment_no),
          d.account, d.call_id, d.submitting_at
"""

_SET_FAILED = f"""
update smsgateway.message as m
set state = {MessageState.FAILED:d}, order_no = asked.order_no, payment_no = asked.payment_no, account = asked.account,
    call_id = asked.call_id, result_code = asked.code, result_detail = asked.detail,
    submitted_at = asked.submitted_at, finished_at = now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
            %s::timestamptz[])
     as asked (brand_id, dispatch_id, order_no, payment_no, account, call_id, code, detail, submitted_at)
where m.brand_id = asked.brand_id and m.state = {MessageState.QUEUED:d} and
"""


def _failing(of: str) -> str:
    return telling(
        f"{_SET_FAILED} {of}",
        more="asked.dispatch_id, m.segments",
        returning="brand_id, dispatch_id, message_id, segments",
    )


_SET_UNKNOWN = f"""
update smsgateway.dispatch as d
set state = {DispatchState.UNKNOWN:d}, changed_at = now()
from unnest(%s::bigint[], %s::text[], %s::text[]) as asked (brand_id, dispatch_id, call_id)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state = {DispatchState.SUBMITTING:d} and d.call_id = asked.call_id
returning d.brand_id, d.dispatch_id
"""

# The parent's row goes first and decides who halves it; its messages follow in the order in which they were called.
_TAKE_PARENT = f"""
delete from smsgateway.dispatch as d
where d.brand_id = %(brand)s and d.dispatch_id = %(parent)s and d.messages > 1
  and (
    (d.state in ({DispatchState.SUBMITTING:d}, {DispatchState.UNKNOWN:d}) and d.call_id = %(call)s)
    or (d.state = {DispatchState.CLAIMED:d} and d.epoch = %(epoch)s)
  )
returning d.sms_type, d.batch_id, d.request_id, d.order_no, d.payment_no, d.retry_since, d.paused, d.due_at,
          d.valid_until, d.night_from, d.night_until
"""

_DIVIDE_MESSAGES = """
with placed as (
  select message_id, row_number() over (order by message_id) as place
  from smsgateway.message
  where brand_id = %(brand)s and dispatch_id = %(parent)s and batch_id is not null
)
update smsgateway.message as m
set dispatch_id = part.dispatch_id
from placed
join unnest(%(parts)s::text[]) with ordinality as part (dispatch_id, place) on part.place = placed.place
where m.brand_id = %(brand)s and m.message_id = placed.message_id
returning m.dispatch_id, m.segments
"""

_INSERT_PARTS = f"""
insert into smsgateway.dispatch
  (brand_id, dispatch_id, mode, sms_type, batch_id, messages, segments, request_id, state, epoch, order_no, payment_no,
   retry_since, due_at, valid_until, night_from, night_until, created_at, changed_at, paused)
select %(brand)s, part.dispatch_id, {Mode.BATCH:d}, %(type)s, %(batch)s, part.messages, part.segments, %(request)s,
       case when %(paused)s then {DispatchState.PAUSED:d} else {DispatchState.CLAIMED:d} end, %(epoch)s, %(order)s,
       %(payment)s, %(since)s, %(due)s, %(valid_until)s, %(night_from)s,
       %(night_until)s, now(), now(), %(paused)s
from unnest(%(ids)s::text[], %(messages)s::int[], %(segments)s::int[]) as part (dispatch_id, messages, segments)
"""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A dispatch to claim under an epoch. `again`: also what this epoch has claimed, for whoever is sure that nobody
    else works on it: the answer to an earlier claim was lost, or it was halved.
    """

    brand_id: int
    dispatch_id: str
    epoch: int
    again: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """A dispatch that is ours to pay and submit. `created_at`: since when it is due; `tried`: somebody may have paid
    for it before; `valid_seconds` that it may still be sent, None: for ever; `night_seconds` until it may be sent
    again.
    """

    brand_id: int
    dispatch_id: str
    epoch: int
    messages: int
    segments: int
    request_id: str
    sms_type: int
    order_no: str
    payment_no: str | None
    attempts: int
    failures: int
    created_at: datetime
    retrying_seconds: float
    text: str
    mobiles: tuple[str, ...]
    tried: bool = False
    valid_seconds: float | None = None
    night_seconds: float = 0
    variables: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  # of each message, as `smsgateway.variables` stores them


@dataclass(frozen=True, slots=True)
class Mark:
    """A dispatch that is about to be submitted."""

    brand_id: int
    dispatch_id: str
    epoch: int
    payment_no: str
    account: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Unmark:
    """A marked dispatch that the carrier surely did not accept. `judged`: it was called and said so; else it was not
    called, and only under the epoch of its marker.
    """

    brand_id: int
    dispatch_id: str
    call_id: str
    epoch: int | None
    judged: bool


@dataclass(frozen=True, slots=True)
class Unmarked:
    """A dispatch that is claimed again: its attempts so far, and for how long the carrier has not accepted it."""

    attempts: int
    retrying_seconds: float


@dataclass(frozen=True, slots=True)
class PutBack:
    """A claimed dispatch that is given back to its queue. `tried`: somebody may have paid for it; `payment_no` when
    that is known; `delay_seconds` before it is queued again, None: parked until an operator looks at it; `failures` to
    add to its attempts and failures, the last by `error`; `wayless`: there was no account to call.
    """

    brand_id: int
    dispatch_id: str
    epoch: int
    tried: bool
    payment_no: str | None
    delay_seconds: float | None = 0
    failures: int = 0
    error: str | None = None
    wayless: bool = False


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What the carrier took, with the payment that its mark names. `failed_count` of its messages failed without being
    named. `part_ids`: see `CallOutcome`.
    """

    brand_id: int
    dispatch_id: str
    call_id: str
    payment_no: str
    carrier_message_id: str | None
    code: str
    failed_count: int = 0
    part_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """What is not sent, and why. `call_id` after a call, `epoch` for a dispatch that is claimed; then also the payment,
    which no mark has recorded yet. `release`: nobody has ever paid for it, its freeze holds what it costs.
    """

    brand_id: int
    dispatch_id: str
    call_id: str | None
    epoch: int | None
    code: str
    detail: str
    payment_no: str | None = None
    release: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """A dispatch whose outcome this transaction has recorded."""

    brand_id: int
    dispatch_id: str
    of_batch: bool
    order_no: str
    payment_no: str | None
    account: str | None
    call_id: str | None
    submitting_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailedMessage:
    """A message that is not sent."""

    brand_id: int
    dispatch_id: str
    message_id: str
    segments: int


Key = tuple[int, str]


async def claim(connection: Connection, requests: Sequence[ClaimRequest], mode: Mode) -> dict[Key, Claimed]:
    """Claim dispatches of one mode; what is missing in the result is gone, cancelled, submitted or another's."""
    cursor = await connection.execute(
        _CLAIM_SINGLE if mode is Mode.SINGLE else _CLAIM_BATCH,
        (
            arrays.integers([request.brand_id for request in requests]),
            arrays.texts([request.dispatch_id for request in requests]),
            arrays.integers([request.epoch for request in requests]),
            arrays.booleans([request.again for request in requests]),
        ),
    )
    epochs = {(request.brand_id, request.dispatch_id): request.epoch for request in requests}
    claimed = {}
    for row in await cursor.fetchall():
        brand_id, dispatch_id, _batch, messages, segments, request_id, sms_type, order, payment, attempts = row[:10]
        failures, created_at, tried, valid_seconds, night_seconds, retrying_seconds, text, mobiles, names, values = row[
            10:
        ]
        claimed[brand_id, dispatch_id] = Claimed(
            brand_id=brand_id,
            dispatch_id=dispatch_id,
            epoch=epochs[brand_id, dispatch_id],
            messages=messages,
            segments=segments,
            request_id=request_id,
            sms_type=sms_type,
            order_no=order,
            payment_no=payment,
            attempts=attempts,
            failures=failures,
            created_at=created_at,
            retrying_seconds=retrying_seconds,
            text=text,
            mobiles=tuple(mobiles.split(",")) if mobiles else (),
            tried=tried,
            valid_seconds=valid_seconds,
            night_seconds=night_seconds,
            variables=unpack_names(names),
            values=tuple(values.split(BETWEEN_RECIPIENTS)) if values else (),
        )
    return claimed


async def set_orders(connection: Connection, orders: Sequence[tuple[int, str, int, str]]) -> set[Key]:
    """Record that dispatches (brand, id, epoch) are to be paid from another freeze; those that are still ours."""
    cursor = await connection.execute(
        _SET_ORDERS,
        (
            arrays.integers([order[0] for order in orders]),
            arrays.texts([order[1] for order in orders]),
            arrays.integers([order[2] for order in orders]),
            arrays.texts([order[3] for order in orders]),
        ),
    )
    return await _keys(cursor)


async def mark(connection: Connection, marks: Sequence[Mark]) -> set[Key]:
    """Mark dispatches as being submitted; those in the result may be called. One statement.

    The call id leads receipts back to the dispatch by itself (see `smsgateway.references`).
    """
    cursor = await connection.execute(
        _MARK,
        (
            arrays.integers([item.brand_id for item in marks]),
            arrays.texts([item.dispatch_id for item in marks]),
            arrays.integers([item.epoch for item in marks]),
            arrays.texts([item.payment_no for item in marks]),
            arrays.texts([item.account for item in marks]),
            arrays.texts([item.call_id for item in marks]),
        ),
    )
    return await _keys(cursor)


async def insert_routes(connection: Connection, routes: Sequence[tuple[str, str, int, str]]) -> None:
    """Record where receipts belong: account, reference, brand, dispatch. Whoever was first stays."""
    if not routes:
        return
    # In one order for everybody, so that two transactions with the same references do not wait in a circle.
    routes = sorted(routes)
    await connection.execute(
        _INSERT_ROUTES,
        (
            arrays.texts([route[0] for route in routes]),
            arrays.texts([route[1] for route in routes]),
            arrays.integers([route[2] for route in routes]),
            arrays.texts([route[3] for route in routes]),
        ),
    )


async def unmark(connection: Connection, items: Sequence[Unmark]) -> dict[Key, Unmarked]:
    """Take marks back; what is missing in the result was settled by somebody else."""
    cursor = await connection.execute(
        _UNMARK,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.texts([item.call_id for item in items]),
            arrays.integers([item.epoch for item in items]),
            arrays.booleans([item.judged for item in items]),
        ),
    )
    return {(row[0], row[1]): Unmarked(row[2], row[3]) for row in await cursor.fetchall()}


async def put_back(connection: Connection, items: Sequence[PutBack]) -> set[Key]:
    """Give claimed dispatches back to their queues; those that were ours to give."""
    cursor = await connection.execute(
        _PUT_BACK,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.integers([item.epoch for item in items]),
            arrays.booleans([item.tried for item in items]),
            arrays.texts([item.payment_no for item in items]),
            arrays.integers(
                [None if item.delay_seconds is None else round(item.delay_seconds * 1_000) for item in items]
            ),
            arrays.integers([item.failures for item in items]),
            arrays.texts([item.error for item in items]),
            arrays.booleans([item.wayless for item in items]),
        ),
    )
    return await _keys(cursor)


async def accept(
    connection: Connection, items: Sequence[Acceptance], owed: Sequence[OutboxRow], *, hold_seconds: float
) -> set[Key]:
    """Record what the carrier took as a whole: messages as sent, their dispatches gone, what is owed for each in the
    outbox (see `smsgateway.store.outbox.insert`). Those settled here. One statement.
    """
    cursor = await connection.execute(
        _ACCEPT_WHOLE,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.texts([item.call_id for item in items]),
            arrays.texts([item.carrier_message_id or None for item in items]),
            arrays.texts([" ".join(item.part_ids) if item.part_ids else None for item in items]),
            arrays.texts([item.code or None for item in items]),
            arrays.texts([row.outbox_id for row in owed]),
            arrays.binaries([row.payload for row in owed]),
            hold_seconds,
        ),
    )
    return await _keys(cursor)


async def accept_partly(connection: Connection, items: Sequence[Acceptance]) -> set[Key]:
    """Record what the carrier took in part: messages as sent, their dispatches kept as partial. Those settled here."""
    settled = await _settled(
        connection,
        _ACCEPT_PARTLY,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.texts([item.call_id for item in items]),
            arrays.texts([item.carrier_message_id for item in items]),
            arrays.integers([item.failed_count for item in items]),
        ),
    )
    by_key = {(item.brand_id, item.dispatch_id): item for item in items}
    routes = []
    for row in settled:
        carrier_message_id = by_key[row.brand_id, row.dispatch_id].carrier_message_id
        if carrier_message_id and row.account:
            routes.append((row.account, carrier_message_id, row.brand_id, row.dispatch_id))
    async with connection.pipeline():
        for of_batch in (False, True):
            some = [row for row in settled if row.of_batch is of_batch]
            if some:
                await _set_sent(connection, some, by_key, of_batch=of_batch)
        await insert_routes(connection, routes)
    return {(row.brand_id, row.dispatch_id) for row in settled}


async def _set_sent(
    connection: Connection, rows: Sequence[Settled], by_key: dict[Key, Acceptance], *, of_batch: bool
) -> None:
    answers = [by_key[row.brand_id, row.dispatch_id] for row in rows]
    await connection.execute(
        telling(_SET_SENT + (_OF_BATCH if of_batch else _OF_SINGLE), returning="message_id"),
        (
            arrays.integers([row.brand_id for row in rows]),
            arrays.texts([row.dispatch_id for row in rows]),
            arrays.texts([row.order_no for row in rows]),
            arrays.texts([row.payment_no for row in rows]),
            arrays.texts([row.account for row in rows]),
            arrays.texts([row.call_id for row in rows]),
            arrays.texts([answer.carrier_message_id for answer in answers]),
            arrays.texts([answer.code or None for answer in answers]),
            arrays.moments([row.submitting_at for row in rows]),
        ),
    )


async def fail(connection: Connection, items: Sequence[Failure]) -> tuple[list[Settled], list[FailedMessage]]:
    """Record what is not sent: messages as failed, their dispatches gone. Those settled here, with their messages."""
    settled = await _settled(
        connection,
        _FAIL,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.texts([item.call_id for item in items]),
            arrays.integers([item.epoch for item in items]),
            arrays.texts([item.payment_no for item in items]),
        ),
    )
    by_key = {(item.brand_id, item.dispatch_id): item for item in items}
    failed: list[FailedMessage] = []
    for of_batch in (False, True):
        rows = [row for row in settled if row.of_batch is of_batch]
        if rows:
            reasons = [by_key[row.brand_id, row.dispatch_id] for row in rows]
            failed += await set_failed(connection, rows, reasons, of_batch=of_batch)
    return settled, failed


async def set_failed(
    connection: Connection, rows: Sequence[Settled], reasons: Sequence[Failure], *, of_batch: bool
) -> list[FailedMessage]:
    """Record the messages of dispatches that are gone as failed, each for its own reason."""
    cursor = await connection.execute(
        _failing(_OF_BATCH if of_batch else _OF_SINGLE),
        (
            arrays.integers([row.brand_id for row in rows]),
            arrays.texts([row.dispatch_id for row in rows]),
            arrays.texts([row.order_no for row in rows]),
            arrays.texts([row.payment_no for row in rows]),
            arrays.texts([row.account for row in rows]),
            arrays.texts([row.call_id for row in rows]),
            arrays.texts([reason.code for reason in reasons]),
            arrays.texts([reason.detail or None for reason in reasons]),
            arrays.moments([row.submitting_at for row in rows]),
        ),
    )
    return [FailedMessage(*row) for row in await cursor.fetchall()]


async def record_parts(
    connection: Connection, brand_id: int, dispatch_id: str, account: str, part_ids: Sequence[str]
) -> None:
    """Record the parts that the carrier took of a message whose other parts it did not take, or nobody knows; see
    `CallOutcome.part_ids`. Comes before the outcome is recorded; one statement.
    """
    await connection.execute(
        _RECORD_PARTS,
        {"brand": brand_id, "dispatch": dispatch_id, "account": account, "parts": arrays.texts(part_ids)},
    )


async def set_unknown(connection: Connection, calls: Sequence[tuple[int, str, str]]) -> set[Key]:
    """Record that nobody knows what became of calls (brand, dispatch, call id)."""
    cursor = await connection.execute(
        _SET_UNKNOWN,
        (
            arrays.integers([call[0] for call in calls]),
            arrays.texts([call[1] for call in calls]),
            arrays.texts([call[2] for call in calls]),
        ),
    )
    return await _keys(cursor)


async def divide(
    connection: Connection,
    brand_id: int,
    parent: str,
    parts: Sequence[str],
    *,
    call_id: str | None,
    epoch: int,
    payment_no: str | None,
) -> bool:
    """Replace a chunk by several of the same payment, claimed under `epoch`, or paused where the batch is.

    Parameters: `parts` the new chunk of each of its messages, in their order (that in which they are claimed);
    `payment_no` its payment, which no mark may have recorded yet.
    False when the chunk is not ours any more, or has been divided already.
    """
    cursor = await connection.execute(
        _TAKE_PARENT, {"brand": brand_id, "parent": parent, "call": call_id, "epoch": epoch}
    )
    row = await cursor.fetchone()
    if row is None:
        return False
    sms_type, batch_id, request_id, order_no, recorded_payment, retry_since, paused, *times = row
    due_at, valid_until, night_from, night_until = times
    cursor = await connection.execute(
        _DIVIDE_MESSAGES, {"brand": brand_id, "parent": parent, "parts": arrays.texts(parts)}
    )
    counts: dict[str, int] = {}
    segments: dict[str, int] = {}
    for part, part_segments in await cursor.fetchall():
        counts[part] = counts.get(part, 0) + 1
        segments[part] = segments.get(part, 0) + part_segments
    assert sum(counts.values()) == len(parts), "each message of the chunk has its part"
    await connection.execute(
        _INSERT_PARTS,
        {
            "brand": brand_id,
            "type": sms_type,
            "batch": batch_id,
            "request": request_id,
            "epoch": epoch,
            "order": order_no,
            "payment": recorded_payment or payment_no,
            "since": retry_since,
            "due": due_at,
            "valid_until": valid_until,
            "night_from": night_from,
            "night_until": night_until,
            "paused": paused,
            "ids": arrays.texts(counts),
            "messages": arrays.integers(counts.values()),
            "segments": arrays.integers([segments[part] for part in counts]),
        },
    )
    return True


async def _settled(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> list[Settled]:
    cursor = await connection.execute(statement, parameters)
    return [Settled(*row) for row in await cursor.fetchall()]


async def _keys(cursor: Any) -> set[Key]:
    return {(row[0], row[1]) for row in await cursor.fetchall()}
