"""SQL of parked work: dispatches, calls that are owed and receipts that have failed too often and wait for an operator.

A parked dispatch is QUEUED and not before infinity, so that nobody claims or queues it; a call or receipt has no moment
at which it is due. Every change is conditional on that: what is not parked any more is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from infra import arrays
from infra.database import Connection
from smsgateway.schema import DispatchState, OutboxKind
from smsgateway.store import sending, webhooks
from smsgateway.store.outbox import OutboxRow
from smsgateway.store.sending import FailedMessage, Failure, Settled

_IS_PARKED = f"d.not_before = 'infinity' and d.state = {DispatchState.QUEUED:d}"

# The moment stands twice: alone it bounds the scan of the index, with the id it tells where the page begins.
_PAGE = """
{moment} < now() - make_interval(secs => %(age)s) and {moment} >= %(after_at)s::timestamptz
and ({moment}, {id}) > (%(after_at)s::timestamptz, %(after_id)s)
order by {moment}, {id}
limit %(limit)s
"""

_LIST_DISPATCHES = f"""
select d.brand_id, d.dispatch_id, case when d.batch_id is null then 'single' else 'batch' end, d.request_id, '', '',
       d.messages, d.segments, d.failures::int, coalesce(d.last_error, ''), d.created_at
from smsgateway.dispatch as d
where {_IS_PARKED} and (%(brand)s = 0 or d.brand_id = %(brand)s) and
{_PAGE.format(moment="d.created_at", id="d.dispatch_id")}
"""

_SUBJECTS = " ".join(f"when {kind:d} then '{kind.name.lower()}'" for kind in OutboxKind)
_LIST_OUTBOX = f"""
select o.brand_id, o.outbox_id, case o.kind {_SUBJECTS} else '' end, o.outbox_id, '', '', 0, 0, o.attempts,
       coalesce(o.last_error, ''), o.created_at
from smsgateway.outbox as o
where o.next_at is null and (%(brand)s = 0 or o.brand_id = %(brand)s) and
{_PAGE.format(moment="o.created_at", id="o.outbox_id")}
"""

_LIST_RECEIPTS = f"""
select 0, r.inbox_id, r.carrier_code, '', r.account, r.reference, 1, 0, r.attempts, coalesce(r.last_error, ''),
       r.received_at
from smsgateway.receipt_inbox as r
where r.next_at is null and
{_PAGE.format(moment="r.received_at", id="r.inbox_id")}
"""

_COUNT_DISPATCHES = f"select count(*) from (select 1 from smsgateway.dispatch as d where {_IS_PARKED} limit 10000) as p"

_OF_KEYS = "unnest(%s::bigint[], %s::text[]) as asked (brand_id, id)"

# The sweeper of what was put off queues it again.
# Where the event that it tells of is the subject.
_LIST_WEBHOOK_EVENTS = f"""
select e.brand_id, e.event_id, e.webhook_id, e.subject_id, '', '', 1, 0, e.attempts, coalesce(e.last_error, ''),
       e.created_at
from smsgateway.webhook_event as e
where e.parked_at is not null and (%(brand)s = 0 or e.brand_id = %(brand)s) and
{_PAGE.format(moment="e.created_at", id="e.event_id")}
"""

_COUNT_WEBHOOK_EVENTS = (
    "select count(*) from (select 1 from smsgateway.webhook_event where parked_at is not null limit 10000) as parked"
)

# Young again, or the next failure would park it for its age; and so behind what has waited meanwhile.
_RETRY_WEBHOOK_EVENTS = f"""
update smsgateway.webhook_event as e
set parked_at = null, attempts = 0, created_at = now()
from {_OF_KEYS}
where e.brand_id = asked.brand_id and e.event_id = asked.id and e.parked_at is not null
returning e.event_id, e.brand_id, e.webhook_id
"""

_DROP_WEBHOOK_EVENTS = f"""
delete from smsgateway.webhook_event as e
using {_OF_KEYS}
where e.brand_id = asked.brand_id and e.event_id = asked.id and e.parked_at is not null
returning e.event_id
"""

_RETRY_DISPATCHES = f"""
update smsgateway.dispatch as d
set not_before = now(), failures = 0, changed_at = now(),
    state = case when d.paused then {DispatchState.PAUSED:d} else d.state end
from {_OF_KEYS}
where d.brand_id = asked.brand_id and d.dispatch_id = asked.id and {_IS_PARKED}
returning d.dispatch_id
"""

_RETRY_OUTBOX = f"""
update smsgateway.outbox as o
set next_at = now(), attempts = 0
from {_OF_KEYS}
where o.brand_id = asked.brand_id and o.outbox_id = asked.id and o.next_at is null
returning o.outbox_id
"""

_RETRY_RECEIPTS = """
update smsgateway.receipt_inbox as r
set next_at = now(), attempts = 0
where r.inbox_id = any(%s::text[]) and r.next_at is null
returning r.inbox_id
"""

_FIND_DISPATCHES = f"""
select d.brand_id, d.dispatch_id, d.batch_id is not null, d.segments, d.epoch, d.order_no, d.payment_no
from {_OF_KEYS}
join smsgateway.dispatch as d on d.brand_id = asked.brand_id and d.dispatch_id = asked.id
where {_IS_PARKED}
"""

# By epoch and freeze: one that was retried and parked again meanwhile may have been paid for in between.
_DROP_DISPATCHES = f"""
delete from smsgateway.dispatch as d
using unnest(%s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::text[])
      as asked (brand_id, dispatch_id, epoch, order_no, payment_no)
where d.brand_id = asked.brand_id and d.dispatch_id = asked.dispatch_id and {_IS_PARKED}
  and d.epoch = asked.epoch and d.order_no = asked.order_no
returning d.brand_id, d.dispatch_id, d.batch_id is not null, d.order_no, asked.payment_no, d.account, d.call_id,
          d.submitting_at
"""

_FIND_OUTBOX = f"""
select o.brand_id, o.outbox_id, o.kind, o.payload, o.attempts
from {_OF_KEYS}
join smsgateway.outbox as o on o.brand_id = asked.brand_id and o.outbox_id = asked.id
where o.next_at is null
"""

_DROP_OUTBOX = f"""
delete from smsgateway.outbox as o
using {_OF_KEYS}
where o.brand_id = asked.brand_id and o.outbox_id = asked.id and o.next_at is null
returning o.outbox_id
"""

_DROP_RECEIPTS = """
delete from smsgateway.receipt_inbox as r
where r.inbox_id = any(%s::text[]) and r.next_at is null
returning r.inbox_id
"""

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A row of a list; what does not apply to its kind is empty or 0. `subject`: what it is of its kind."""

    brand_id: int
    parked_id: str
    subject: str
    request_id: str
    account: str
    reference: str
    messages: int
    segments: int
    tries: int
    error: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ParkedDispatch:
    """A parked dispatch with what it may have cost."""

    brand_id: int
    dispatch_id: str
    of_batch: bool
    segments: int
    epoch: int
    order_no: str
    payment_no: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows: of a brand (0: of all), older than so many seconds, after a moment and an id, so many at most."""

    brand_id: int
    age_seconds: float
    after_at: datetime
    after_id: str
    limit: int


async def list_dispatches(connection: Connection, page: Page) -> list[ParkedRow]:
    """Parked dispatches, oldest first."""
    return await _list(connection, _LIST_DISPATCHES, page)


async def list_outbox(connection: Connection, page: Page) -> list[ParkedRow]:
    """Parked calls to the cost centre, oldest first."""
    return await _list(connection, _LIST_OUTBOX, page)


async def list_receipts(connection: Connection, page: Page) -> list[ParkedRow]:
    """Parked receipts, oldest first; they have no brand."""
    return await _list(connection, _LIST_RECEIPTS, page)


async def list_webhook_events(connection: Connection, page: Page) -> list[ParkedRow]:
    """Parked events of webhooks, oldest first."""
    return await _list(connection, _LIST_WEBHOOK_EVENTS, page)


async def count_webhook_events(connection: Connection) -> int:
    """Events of webhooks that wait for an operator, counted up to 10,000."""
    row = await (await connection.execute(_COUNT_WEBHOOK_EVENTS)).fetchone()
    assert row is not None
    return int(row[0])


async def retry_webhook_events(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Have events told soon, with no attempts; the ids of those that were parked."""
    rows = await (await connection.execute(_RETRY_WEBHOOK_EVENTS, _columns(keys))).fetchall()
    await webhooks.hurry(connection, sorted({(row[1], row[2]) for row in rows}))
    return {row[0] for row in rows}


async def drop_webhook_events(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Forget events; the ids of those that were parked."""
    return await _ids(connection, _DROP_WEBHOOK_EVENTS, keys)


async def count_dispatches(connection: Connection) -> int:
    """Dispatches that wait for an operator, counted up to 10,000."""
    row = await (await connection.execute(_COUNT_DISPATCHES)).fetchone()
    assert row is not None
    return int(row[0])


async def retry_dispatches(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Have dispatches queued again with no failures; the ids of those that were parked."""
    return await _ids(connection, _RETRY_DISPATCHES, keys)


async def retry_outbox(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Have calls due with no failures; the ids of those that were parked."""
    return await _ids(connection, _RETRY_OUTBOX, keys)


async def retry_receipts(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Have receipts due with no failures; the ids of those that were parked."""
    cursor = await connection.execute(_RETRY_RECEIPTS, (arrays.texts(ids),))
    return {row[0] for row in await cursor.fetchall()}


async def find_dispatches(connection: Connection, keys: Sequence[Key]) -> list[ParkedDispatch]:
    """Those of some dispatches that are parked."""
    cursor = await connection.execute(_FIND_DISPATCHES, _columns(keys))
    return [ParkedDispatch(*row) for row in await cursor.fetchall()]


async def drop_dispatches(
    connection: Connection, items: Sequence[ParkedDispatch], *, code: str, detail: str
) -> tuple[list[Settled], list[FailedMessage]]:
    """Record parked dispatches as failed, with the payments that the items name. Those dropped here, with their
    messages; one that is not parked any more, or was tried again meanwhile, is left alone.
    """
    cursor = await connection.execute(
        _DROP_DISPATCHES,
        (
            arrays.integers([item.brand_id for item in items]),
            arrays.texts([item.dispatch_id for item in items]),
            arrays.integers([item.epoch for item in items]),
            arrays.texts([item.order_no for item in items]),
            arrays.texts([item.payment_no for item in items]),
        ),
    )
    settled = [Settled(*row) for row in await cursor.fetchall()]
    failed: list[FailedMessage] = []
    for of_batch in (False, True):
        rows = [row for row in settled if row.of_batch is of_batch]
        if rows:
            reasons = [Failure(row.brand_id, row.dispatch_id, None, None, code, detail) for row in rows]
            failed += await sending.set_failed(connection, rows, reasons, of_batch=of_batch)
    return settled, failed


async def find_outbox(connection: Connection, keys: Sequence[Key]) -> list[OutboxRow]:
    """Those of some calls that are parked."""
    cursor = await connection.execute(_FIND_OUTBOX, _columns(keys))
    return [
        OutboxRow(brand_id, outbox_id, OutboxKind(kind), bytes(payload), attempts)
        for brand_id, outbox_id, kind, payload, attempts in await cursor.fetchall()
    ]


async def drop_outbox(connection: Connection, keys: Sequence[Key]) -> set[str]:
    """Forget calls; the ids of those that were parked."""
    return await _ids(connection, _DROP_OUTBOX, keys)


async def drop_receipts(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Forget receipts; the ids of those that were parked."""
    cursor = await connection.execute(_DROP_RECEIPTS, (arrays.texts(ids),))
    return {row[0] for row in await cursor.fetchall()}


async def _list(connection: Connection, statement: str, page: Page) -> list[ParkedRow]:
    cursor = await connection.execute(
        statement,
        {
            "brand": page.brand_id,
            "age": page.age_seconds,
            "after_at": page.after_at,
            "after_id": page.after_id,
            "limit": page.limit,
        },
    )
    return [ParkedRow(*row) for row in await cursor.fetchall()]


async def _ids(connection: Connection, statement: str, keys: Sequence[Key]) -> set[str]:
    cursor = await connection.execute(statement, _columns(keys))
    return {row[0] for row in await cursor.fetchall()}


def _columns(keys: Sequence[Key]) -> tuple[str, str]:
    return arrays.integers([key[0] for key in keys]), arrays.texts([key[1] for key in keys])
