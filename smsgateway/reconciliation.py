"""What the message records say, for comparing with the ledger; and the records against the queues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from infra import arrays
from infra.database import Connection, pages, scanning
from infra.differences import Difference
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.queues import QueueItem, Queues, id_of, queue_of
from smsgateway.schema import DispatchState, MessageState, OutboxKind

_CHARGED_STATES = (MessageState.SENT, MessageState.DELIVERED, MessageState.UNDELIVERED, MessageState.EXPIRED)
_CHARGED = ", ".join(f"{state:d}" for state in _CHARGED_STATES)

# The sums of every bucket of payments (`costcenter.reconciliation`) as the messages tell them, by the same weights,
# and how many messages were sent without a payment. While a message has a dispatch, its payment is noted there.
BUCKETS = f"""
with sums as materialized (
    select brand_id, bucket, sum(segments * (hash & 2147483647)) as paid_low,
        sum(segments * ((hash >> 32) & 2147483647)) as paid_high,
        sum(segments * (failed & 2147483647)) as failed_low,
        sum(segments * ((failed >> 32) & 2147483647)) as failed_high,
        count(*) filter (where bucket is null) as unpaid
    from (
        select m.brand_id, left(coalesce(m.payment_no, d.payment_no), %(length)s) as bucket,
            m.segments::bigint as segments, hashtextextended(coalesce(m.payment_no, d.payment_no), 0) as hash,
            case when d.dispatch_id is null and m.state not in ({_CHARGED}) then hashtextextended(m.message_id, 0) end
                as failed
        from smsgateway.message m
        left join smsgateway.dispatch d on d.brand_id = m.brand_id and d.dispatch_id = m.dispatch_id
        where coalesce(m.payment_no, d.payment_no) is not null or m.state in ({_CHARGED})
    ) messages
    group by brand_id, bucket
)
select brand_id, bucket, paid_low::text, paid_high::text, coalesce(failed_low, 0)::text, coalesce(failed_high, 0)::text,
    unpaid
from sums order by brand_id, bucket
"""

# Every charged message of some buckets, in the order of the ledger's payments.
CHARGED_MESSAGES = """
select m.brand_id, coalesce(m.payment_no, d.payment_no) as payment_no, m.message_id, m.segments, m.state,
    d.dispatch_id is not null
from smsgateway.message m
left join smsgateway.dispatch d on d.brand_id = m.brand_id and d.dispatch_id = m.dispatch_id
where m.brand_id = any(%s::bigint[])
  and (m.brand_id, left(coalesce(m.payment_no, d.payment_no), %s)) in (
    select * from unnest(%s::bigint[], %s::text[])
  )
order by m.brand_id, payment_no, m.message_id
"""

# Which of some messages are no messages of their payments.
STRANGERS = """
select k.brand_id, k.payment_no
from unnest(%s::bigint[], %s::text[], %s::text[]) as k(brand_id, payment_no, message_id)
left join smsgateway.message m on m.brand_id = k.brand_id and m.message_id = k.message_id
where m.payment_no is distinct from k.payment_no
"""

# What dispatches that nobody has paid for yet hold of each freeze.
EXPECTED_OPEN = """
select brand_id, order_no, sum(segments)::bigint from smsgateway.dispatch
where payment_no is null and order_no is not null group by brand_id, order_no
"""

# What the carrier took without anybody having paid.
UNPAID = f"""
select brand_id, message_id from smsgateway.message
where brand_id = %s and payment_no is null and state in ({_CHARGED}) and message_id > %s
order by message_id limit %s
"""

IN_FLIGHT = "select brand_id, dispatch_id from smsgateway.dispatch where payment_no is null"

OWED = "select brand_id, outbox_id, kind, payload from smsgateway.outbox where (brand_id, outbox_id) > (%s, %s) \
order by brand_id, outbox_id limit %s"

QUEUED = f"""
select brand_id, dispatch_id, sms_type, mode, stream_entry from smsgateway.dispatch
where state = {DispatchState.QUEUED:d} and (not_before is null or not_before < now())
  and changed_at < now() - make_interval(secs => %s) and (brand_id, dispatch_id) > (%s, %s)
order by brand_id, dispatch_id limit %s
"""

KNOWN_DISPATCHES = """
select k.dispatch_id from unnest(%s::text[]) as k(dispatch_id)
join smsgateway.dispatch d on d.brand_id = %s and d.dispatch_id = k.dispatch_id
"""


@dataclass(frozen=True, slots=True)
class ChargedMessage:
    """A message that was charged. `moving`: it still has a dispatch, so its outcome is not known."""

    brand_id: int
    payment_no: str
    message_id: str
    segments: int
    state: int
    moving: bool


@dataclass(frozen=True, slots=True)
class Owed:
    """What is on its way to the ledger: payments whose status is, and freezes whose release is."""

    payments: frozenset[tuple[int, str]]
    freezes: frozenset[tuple[int, str]]


async def buckets(
    connection: Connection, length: int, page_size: int
) -> AsyncIterator[list[tuple[int, str | None, tuple[str, ...], int]]]:
    """(brand_id, bucket, its sums, messages sent without a payment) in order, a page at a time.

    Parameters: `length` of a bucket's name. What has no payment is a bucket None.
    """
    # There are few buckets for so many messages, which PostgreSQL cannot know: sorting all messages would take longest.
    async with scanning(connection, work_mem="'48MB'", enable_sort="off", enable_incremental_sort="off"):
        async for rows in pages(connection, BUCKETS, {"length": length}, page_size):
            yield [(row[0], row[1], tuple(row[2:6]), row[6]) for row in rows]


async def charged_messages(
    connection: Connection, wanted: Sequence[tuple[int, str]], length: int, page_size: int
) -> AsyncIterator[list[ChargedMessage]]:
    """Every charged message of some buckets in the order of brand and payment, a page at a time."""
    brand_ids = [brand_id for brand_id, _ in wanted]
    named = (arrays.integers(brand_ids), arrays.texts([bucket for _, bucket in wanted]))
    parameters = (arrays.integers(sorted(set(brand_ids))), length, *named)
    async for rows in pages(connection, CHARGED_MESSAGES, parameters, page_size):
        yield [ChargedMessage(*row) for row in rows]


async def strangers(connection: Connection, refunds: Sequence[tuple[int, str, str]]) -> set[tuple[int, str]]:
    """(brand_id, payment_no) of those refunds (brand_id, payment_no, message_id) that are of no message of theirs."""
    parameters = (
        arrays.integers([refund[0] for refund in refunds]),
        arrays.texts([refund[1] for refund in refunds]),
        arrays.texts([refund[2] for refund in refunds]),
    )
    return {(row[0], row[1]) for row in await (await connection.execute(STRANGERS, parameters)).fetchall()}


async def sent_unpaid(connection: Connection, brand_id: int, page_size: int) -> AsyncIterator[Difference]:
    """Messages of a brand that were sent and have no payment."""
    after = ""
    while True:
        rows = await (await connection.execute(UNPAID, (brand_id, after, page_size))).fetchall()
        for _, message_id in rows:
            yield Difference("message without payment", brand_id, message_id, "payment", "a payment", "none")
        if len(rows) < page_size:
            return
        after = rows[-1][1]


async def expected_open(connection: Connection) -> dict[tuple[int, str], int]:
    """Segments that each freeze should still hold for dispatches that nobody has paid for."""
    rows = await (await connection.execute(EXPECTED_OPEN)).fetchall()
    return {(row[0], row[1]): row[2] for row in rows}


async def in_flight(connection: Connection) -> set[tuple[int, str]]:
    """Dispatches that may be paid for at this moment."""
    return {(row[0], row[1]) for row in await (await connection.execute(IN_FLIGHT)).fetchall()}


async def owed(connection: Connection, page_size: int) -> Owed:
    """What the ledger has not been told yet."""
    payments: set[tuple[int, str]] = set()
    freezes: set[tuple[int, str]] = set()
    after: tuple[int, str] = (0, "")
    while True:
        rows = await (await connection.execute(OWED, (*after, page_size))).fetchall()
        for brand_id, _, kind, payload in rows:
            match kind:
                case OutboxKind.SEND_STATUS:
                    status = cost_center_pb2.SmsSendStatusCallBackRequest.FromString(payload)
                    payments.add((brand_id, status.payment_no))
                case OutboxKind.RECEIPT:
                    receipt = cost_center_pb2.SmsReceiptStatusCallBackRequest.FromString(payload)
                    payments.add((brand_id, receipt.payment_no))
                case _:
                    release = cost_center_pb2.SmsReleaseFreezeNumRequest.FromString(payload)
                    freezes.add((brand_id, release.order_no))
        if len(rows) < page_size:
            return Owed(frozenset(payments), frozenset(freezes))
        after = (rows[-1][0], rows[-1][1])


async def records_without_entry(
    connection: Connection, queues: Queues, older_than_seconds: float, page_size: int
) -> AsyncIterator[Difference]:
    """Queued records that no queue holds, though they have been queued for a while."""
    after: tuple[int, str] = (0, "")
    while True:
        rows = await (await connection.execute(QUEUED, (older_than_seconds, *after, page_size))).fetchall()
        items = [(QueueItem(row[0], row[2], row[3], row[1]), row[4]) for row in rows]
        for (item, entry), present in zip(items, await queues.present(items), strict=True):
            if not present:
                yield Difference(
                    "record without queue entry", item.brand_id, item.id, "stream entry", entry or "an entry", "none"
                )
        if len(rows) < page_size:
            return
        after = (rows[-1][0], rows[-1][1])


async def entries_without_record(connection: Connection, redis: Redis, page_size: int) -> AsyncIterator[Difference]:
    """Queue entries whose dispatch is gone; a worker would acknowledge them and do nothing."""
    async for key in redis.scan_iter(match="sms:*", count=1_000):
        queue = queue_of(key)
        if queue is None:
            continue
        after = "-"
        while True:
            entries = await redis.xrange(key, after, "+", count=page_size)
            if not entries:
                break
            ids = {id_of(cast(dict[str, str], fields)): str(entry) for entry, fields in entries if fields}
            known = await _known(connection, queue.brand_id, list(ids))
            for dispatch_id, entry in ids.items():
                if dispatch_id not in known:
                    yield Difference(
                        "queue entry without record", queue.brand_id, f"{key} {entry}", "dispatch", dispatch_id, "none"
                    )
            after = f"({entries[-1][0]!s}"


async def _known(connection: Connection, brand_id: int, ids: Sequence[str]) -> set[str]:
    rows = await (await connection.execute(KNOWN_DISPATCHES, (arrays.texts(ids), brand_id))).fetchall()
    return {row[0] for row in rows}
