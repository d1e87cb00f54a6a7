"""SQL of what follows a restore of the records to an earlier moment.

Whatever had not been submitted at that moment may have been submitted since: it is held. A held dispatch is QUEUED (or
still ACCEPTING) and parked (`not_before` is infinity), so no worker can claim it, and its `last_error` says by which
restore. Once it is known what became of it, it is

* taken: the carrier has it, or may have it → UNKNOWN under a call id and a payment, so that nobody calls again;
* released: the carrier does not have it → QUEUED as it was, or PAUSED with its batch; `last_error` says that this
  restore is done with it.

Workers do not run meanwhile, gateways may.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.queues import QueueItem
from smsgateway.schema import DispatchState, MessageState

Key = tuple[int, str]

_HELD = "held after the restore to "
_RELEASED = "not sent before the restore to "

_UNSUBMITTED = (
    f"({DispatchState.ACCEPTING:d}, {DispatchState.QUEUED:d}, {DispatchState.CLAIMED:d}, {DispatchState.PAUSED:d})"
)

# A claim is given up: a worker takes over those of older epochs whether they are parked or not. Its epoch stays, as
# somebody may have paid.
_HOLD = f"""
update smsgateway.dispatch
set state = case when state in ({DispatchState.CLAIMED:d}, {DispatchState.PAUSED:d}) then {DispatchState.QUEUED:d}
                 else state end,
    not_before = 'infinity', last_error = %(held)s
where state in {_UNSUBMITTED} and not_before is distinct from 'infinity'
  and last_error is distinct from %(released)s and (%(until)s::timestamptz is null or created_at <= %(until)s)
"""

_HELD_BY = f"""
select distinct last_error from smsgateway.dispatch
where not_before = 'infinity'::timestamp with time zone and last_error like '{_HELD}%%'
"""

_UNSETTLED = """
select brand_id, dispatch_id, mode, sms_type, state, messages, segments, order_no, payment_no, call_id, attempts,
       coalesce(not_before = 'infinity', false), coalesce(last_error, '')
from smsgateway.dispatch
where created_at <= %s and (brand_id, dispatch_id) > (%s, %s)
order by brand_id, dispatch_id
limit %s
"""

_MOBILES = """
select message.brand_id, message.dispatch_id, message.mobile
from unnest(%s::bigint[], %s::text[]) as asked (brand_id, dispatch_id)
join smsgateway.message
  on message.brand_id = asked.brand_id and message.dispatch_id = asked.dispatch_id and message.batch_id is not null
"""

# A single message's id is its dispatch's. A route is left of what was halved, and of what was filed here.
_UNKNOWN_CALLS = """
select asked.brand_id, asked.dispatch_id, asked.call_id
from unnest(%s::bigint[], %s::text[], %s::text[]) as asked (brand_id, dispatch_id, call_id)
where not exists (
    select 1 from smsgateway.message as m where m.brand_id = asked.brand_id and m.message_id = asked.dispatch_id
  )
  and not exists (
    select 1 from smsgateway.message as m
    where m.brand_id = asked.brand_id and m.dispatch_id = asked.dispatch_id and m.batch_id is not null
  )
  and not exists (
    select 1 from smsgateway.route where route.account = %s and route.reference = asked.call_id
  )
"""

_TAKE = f"""
update smsgateway.dispatch as d
set state = {DispatchState.UNKNOWN:d}, not_before = null, order_no = asked.order_no, payment_no = asked.payment_no,
    account = asked.account, call_id = asked.call_id, submitting_at = now(), changed_at = now()
from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
     as asked (brand_id, dispatch_id, order_no, payment_no, account, call_id)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state + 0 = {DispatchState.QUEUED:d}
returning d.brand_id, d.dispatch_id
"""

_SET_ORDERS = f"""
update smsgateway.dispatch as d
set order_no = asked.order_no
from unnest(%s::bigint[], %s::text[], %s::text[]) as asked (brand_id, dispatch_id, order_no)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state + 0 = {DispatchState.QUEUED:d}
"""

_RELEASE = f"""
update smsgateway.dispatch as d
set not_before = case when d.due_at > now() then d.due_at end, last_error = %s, changed_at = now(),
    state = case when d.paused then {DispatchState.PAUSED:d} else d.state end
from unnest(%s::bigint[], %s::text[]) as asked (brand_id, dispatch_id)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id
  and d.state + 0 = {DispatchState.QUEUED:d} and d.not_before = 'infinity'
returning d.brand_id, d.sms_type, d.mode, d.dispatch_id
"""

_INBOX = """
select account, reference, inbox_id, coalesce(call_id, ''), mobile, billed_segments, next_at is null
from smsgateway.receipt_inbox
where (account, reference, inbox_id) > (%s, %s, %s)
order by account, reference, inbox_id
limit %s
"""

_FILE_RECEIPTS = """
update smsgateway.receipt_inbox as r
set next_at = null, last_error = %s
from unnest(%s::text[], %s::text[], %s::text[]) as asked (account, reference, inbox_id)
where r.account = asked.account and r.reference = asked.reference and r.inbox_id = asked.inbox_id
  and r.next_at is not null
"""

_AWAITING = f"""
select count(*) from smsgateway.message where state = {MessageState.SENT:d} and sent_at <= %s
"""

_WORKERS = """
select count(*) from pg_stat_activity where datname = current_database() and application_name = 'smsbill-worker'
"""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A dispatch without an outcome. `parked`: no worker may claim it; `note` its last error, or who holds it."""

    brand_id: int
    dispatch_id: str
    mode: int
    sms_type: int
    state: int  # DispatchState
    messages: int
    segments: int
    order_no: str | None
    payment_no: str | None
    call_id: str | None
    attempts: int
    parked: bool
    note: str

    @property
    def key(self) -> Key:
        """Brand and id."""
        return self.brand_id, self.dispatch_id

    def is_held(self, moment: str) -> bool:
        """Whether a restore holds it, or the one to this moment has to: it was not submitted, nor judged since."""
        if self.state not in (
            DispatchState.ACCEPTING,
            DispatchState.QUEUED,
            DispatchState.CLAIMED,
            DispatchState.PAUSED,
        ):
            return False
        return self.note.startswith(_HELD) if self.parked else self.note != _RELEASED + moment


@dataclass(frozen=True, slots=True)
class Take:
    """A held dispatch that the carrier has, or may have: under which call, paid by what."""

    brand_id: int
    dispatch_id: str
    order_no: str
    payment_no: str
    account: str
    call_id: str


@dataclass(frozen=True, slots=True)
class InboxReceipt:
    """A receipt in the inbox. `call_id` is empty where it carries none."""

    account: str
    reference: str
    inbox_id: str
    call_id: str
    mobile: str
    billed_segments: int | None
    parked: bool


async def workers(connection: Connection) -> int:
    """Connections of workers to this database."""
    row = await (await connection.execute(_WORKERS)).fetchone()
    assert row is not None
    return int(row[0])


async def hold(connection: Connection, moment: str, *, until: datetime | None = None) -> int:
    """Hold everything that had not been submitted; how many dispatches.

    Parameters: `moment` (ISO 8601) of the restore, its name; `until` to hold only what was accepted by then, for a
    database that may have got new messages since its restore.
    """
    cursor = await connection.execute(_HOLD, {"held": _HELD + moment, "released": _RELEASED + moment, "until": until})
    return cursor.rowcount


async def held_by(connection: Connection) -> list[str]:
    """The moments of restores that hold dispatches, latest first."""
    cursor = await connection.execute(_HELD_BY)
    return sorted((str(row[0]).removeprefix(_HELD) for row in await cursor.fetchall()), reverse=True)


async def unsettled(connection: Connection, *, until: datetime, page_size: int) -> AsyncIterator[list[Unsettled]]:
    """Pages of the dispatches that were made by a moment."""
    after: Key = (0, "")
    while True:
        cursor = await connection.execute(_UNSETTLED, (until, *after, page_size))
        rows = [Unsettled(*row) for row in await cursor.fetchall()]
        if rows:
            yield rows
        if len(rows) < page_size:
            return
        after = rows[-1].key


async def mobiles(connection: Connection, keys: Sequence[Key]) -> dict[Key, set[str]]:
    """The numbers of chunks."""
    cursor = await connection.execute(_MOBILES, _keys(keys))
    found: dict[Key, set[str]] = {}
    for brand_id, dispatch_id, mobile in await cursor.fetchall():
        found.setdefault((brand_id, dispatch_id), set()).add(mobile)
    return found


async def unknown_calls(
    connection: Connection, account: str, calls: Sequence[tuple[int, str, str]]
) -> set[tuple[int, str, str]]:
    """Of calls (brand, dispatch, call id) those that no record knows."""
    cursor = await connection.execute(
        _UNKNOWN_CALLS,
        (
            arrays.integers([call[0] for call in calls]),
            arrays.texts([call[1] for call in calls]),
            arrays.texts([call[2] for call in calls]),
            account,
        ),
    )
    return {(row[0], row[1], row[2]) for row in await cursor.fetchall()}


async def take(connection: Connection, items: Sequence[Take]) -> set[Key]:
    """Held, or queued → UNKNOWN, so that it is never sent again; those that were."""
    cursor = await connection.execute(
        _TAKE,
        (
            *_keys([(item.brand_id, item.dispatch_id) for item in items]),
            arrays.texts([item.order_no for item in items]),
            arrays.texts([item.payment_no for item in items]),
            arrays.texts([item.account for item in items]),
            arrays.texts([item.call_id for item in items]),
        ),
    )
    return {(row[0], row[1]) for row in await cursor.fetchall()}


async def set_orders(connection: Connection, orders: Mapping[Key, str]) -> None:
    """Record the freezes that replace ended ones, before they are paid from: whoever pays again names the same one."""
    await connection.execute(_SET_ORDERS, (*_keys(list(orders)), arrays.texts(orders.values())))


async def release(connection: Connection, moment: str, keys: Sequence[Key]) -> list[QueueItem]:
    """Held → queued as it was; what is to be pushed."""
    cursor = await connection.execute(_RELEASE, (_RELEASED + moment, *_keys(keys)))
    return [QueueItem(*row) for row in await cursor.fetchall()]


async def inbox(connection: Connection, *, page_size: int) -> AsyncIterator[list[InboxReceipt]]:
    """Pages of the receipts in the inbox."""
    after = ("", "", "")
    while True:
        cursor = await connection.execute(_INBOX, (*after, page_size))
        rows = [InboxReceipt(*row) for row in await cursor.fetchall()]
        if rows:
            yield rows
        if len(rows) < page_size:
            return
        after = (rows[-1].account, rows[-1].reference, rows[-1].inbox_id)


async def file_receipts(connection: Connection, receipts: Sequence[InboxReceipt], *, why: str) -> int:
    """Park receipts, so that nobody waits for their messages; how many were not parked."""
    cursor = await connection.execute(
        _FILE_RECEIPTS,
        (
            why,
            arrays.texts([receipt.account for receipt in receipts]),
            arrays.texts([receipt.reference for receipt in receipts]),
            arrays.texts([receipt.inbox_id for receipt in receipts]),
        ),
    )
    return cursor.rowcount


async def awaiting_receipts(connection: Connection, *, until: datetime) -> int:
    """Messages that were sent by a moment and have no final receipt."""
    row = await (await connection.execute(_AWAITING, (until,))).fetchone()
    assert row is not None
    return int(row[0])


def _keys(keys: Sequence[Key]) -> tuple[str, str]:
    return arrays.integers([key[0] for key in keys]), arrays.texts([key[1] for key in keys])
