"""What the message records say, for comparing with the ledger; and the records against the queues."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from infra import arrays
from infra.database import Connection
from infra.differences import Difference
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.queues import QueueItem, Queues, queue_of
from smsgateway.schema import DispatchState, MessageState, OutboxKind

# Every message that was charged, in the order of the ledger's payments. While a message has a dispatch, its payment is
# noted there.
CHARGED_MESSAGES = """
declare charged_messages cursor for
select m.brand_id, coalesce(m.payment_no, d.payment_no) as payment_no, m.message_id, m.segments, m.state,
    d.dispatch_id is not null
from smsgateway.message m
left join smsgateway.dispatch d on d.brand_id = m.brand_id and d.dispatch_id = m.dispatch_id
where coalesce(m.payment_no, d.payment_no) is not null
order by m.brand_id, payment_no, m.message_id
"""

# What dispatches that nobody has paid for yet hold of each freeze.
EXPECTED_OPEN = """
select brand_id, order_no, sum(segments)::bigint from smsgateway.dispatch
where payment_no is null and order_no is not null group by brand_id, order_no
"""

# What the carrier took without anybody having paid.
UNPAID = f"""
select brand_id, message_id from smsgateway.message
where payment_no is null and state in ({MessageState.SENT:d}, {MessageState.DELIVERED:d}, {MessageState.UNDELIVERED:d},
  {MessageState.EXPIRED:d}) and (brand_id, message_id) > (%s, %s)
order by brand_id, message_id limit %s
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


async def charged_messages(connection: Connection, page_size: int) -> AsyncIterator[list[ChargedMessage]]:
    """Every charged message in the order of brand and payment, a page at a time; the connection is in a snapshot."""
    await connection.execute(CHARGED_MESSAGES)
    while True:
        # PostgreSQL takes no parameter here; the number is ours.
        rows = await (await connection.execute(f"fetch {page_size:d} from charged_messages")).fetchall()
        if not rows:
            break
        yield [ChargedMessage(*row) for row in rows]
    await connection.execute("close charged_messages")


async def sent_unpaid(connection: Connection, page_size: int) -> AsyncIterator[Difference]:
    """Messages that were sent and have no payment."""
    after: tuple[int, str] = (0, "")
    while True:
        rows = await (await connection.execute(UNPAID, (*after, page_size))).fetchall()
        for brand_id, message_id in rows:
            yield Difference("message without payment", brand_id, message_id, "payment", "a payment", "none")
        if len(rows) < page_size:
            return
        after = (rows[-1][0], rows[-1][1])


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
            ids = {str(fields["i"]): str(entry) for entry, fields in entries if fields}
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
