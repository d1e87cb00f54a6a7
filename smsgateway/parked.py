"""What an operator does with parked work: look at it, have it tried again, drop it without harm to the bill.

What is dropped ends as it would have ended otherwise: messages as failed, with what they froze released or what they
were charged refunded through the outbox. What cannot be dropped so stays parked, with the reason.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from infra.crash_points import reach
from infra.database import Connection, Database
from infra.errors import Refusal
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from smsgateway import outbox_calls
from smsgateway.ledger_client import is_outage
from smsgateway.outbox_calls import StatusLedger
from smsgateway.schema import OutboxKind
from smsgateway.settling import owed_back
from smsgateway.store import outbox
from smsgateway.store import parked as store
from smsgateway.store.accepting import CancelledDispatch, CancelledMessage
from smsgateway.store.counting import record_refunds
from smsgateway.store.outbox import OutboxRow
from smsgateway.store.parked import Key, Page, ParkedDispatch, ParkedRow

DROPPED_CODE = "DROPPED"

_State = cost_center_pb2.ReceiptState
# Receipts of these states can make the cost centre refund, by the brand's setting.
_REFUNDING = frozenset({_State.RECEIPT_STATE_UNDELIVERED, _State.RECEIPT_STATE_EXPIRED})
# The cost centre has charged nothing that could be owed back.
_NOTHING_CHARGED = frozenset({"PAYMENT_NOT_FOUND", "BRAND_NOT_FOUND"})


class ParkedKind(enum.IntEnum):
    """The numbers of `smsgateway.v1.ParkedKind`."""

    DISPATCH = 1
    OUTBOX = 2
    RECEIPT = 3
    WEBHOOK = 4


class ParkedLedger(StatusLedger, Protocol):
    """What of the cost centre is called (`smsgateway.ledger_client.LedgerClient`)."""

    async def batch_pay(
        self, items: Sequence[cost_center_pb2.SmsSendPayRequest]
    ) -> list[cost_center_pb2.SmsSendPayResponse | Refusal]: ...


@dataclass(slots=True)
class Dropped:
    """What became of a wish to drop: the ids that are gone, and why others that are parked had to stay."""

    ids: set[str] = field(default_factory=set)
    kept: dict[str, str] = field(default_factory=dict)


class ParkedWork:
    """Lists, retries and drops parked work. Each change is conditional on its being parked, so it may be repeated."""

    def __init__(self, database: Database, ledger: ParkedLedger, identifiers: IdentifierSource) -> None:
        self._database = database
        self._ledger = ledger
        self._identifiers = identifiers

    async def page(self, kind: ParkedKind, page: Page) -> list[ParkedRow]:
        """A page of what is parked, oldest first."""
        async with self._database.connection() as connection:
            return await _LISTS[kind](connection, page)

    async def retry(self, kind: ParkedKind, keys: Sequence[Key]) -> set[str]:
        """Have work tried again soon, with its tries counted anew; the ids of what was parked."""
        reach("gateway.parked.retrying")
        async with self._database.connection() as connection:
            if kind is ParkedKind.DISPATCH:
                retried = await store.retry_dispatches(connection, keys)
            elif kind is ParkedKind.OUTBOX:
                retried = await store.retry_outbox(connection, keys)
            elif kind is ParkedKind.WEBHOOK:
                retried = await store.retry_webhook_events(connection, keys)
            else:
                retried = await store.retry_receipts(connection, [key[1] for key in keys])
        reach("gateway.parked.retried")
        return retried

    async def drop(self, kind: ParkedKind, keys: Sequence[Key], *, detail: str) -> Dropped:
        """Drop work; `detail` becomes the result of its messages. Raises the database's errors."""
        if kind is ParkedKind.DISPATCH:
            return await self._drop_dispatches(keys, detail)
        if kind is ParkedKind.OUTBOX:
            return await self._drop_outbox(keys)
        async with self._database.connection() as connection:
            if kind is ParkedKind.WEBHOOK:
                # The receiver never hears of it; records and bill know all the same.
                return Dropped(await store.drop_webhook_events(connection, keys))
            # It speaks of no message that is known, or that message expires without it.
            return Dropped(await store.drop_receipts(connection, [key[1] for key in keys]))

    # Messages and chunks.

    async def _drop_dispatches(self, keys: Sequence[Key], detail: str) -> Dropped:
        async with self._database.connection() as connection:
            found = await store.find_dispatches(connection, keys)
        dropped = Dropped()
        # Nobody has tried to pay under epoch 0: what is frozen is released. Else a payment may exist.
        doubtful = [item for item in found if item.payment_no is None and item.epoch != 0]
        certain = [item for item in found if item.payment_no is not None or item.epoch == 0]
        paid, uncharged = await self._settle_payments(doubtful, dropped)
        reach("gateway.parked.dropping")
        async with self._database.connection() as connection:
            settled, failed = await store.drop_dispatches(
                connection, [*certain, *paid, *uncharged], code=DROPPED_CODE, detail=detail
            )
            dropped.ids = {row.dispatch_id for row in settled}
            owing = [item for item in (*certain, *paid) if item.dispatch_id in dropped.ids]
            messages = [CancelledMessage(row.dispatch_id, row.message_id, row.segments) for row in failed]
            await outbox.insert(connection, self._owed(owing, messages), hold_seconds=0)
        reach("gateway.parked.dropped")
        return dropped

    async def _settle_payments(
        self, items: Sequence[ParkedDispatch], dropped: Dropped
    ) -> tuple[list[ParkedDispatch], list[ParkedDispatch]]:
        """Those that are paid for, and those for which nothing was or will be charged; the others are kept.

        A worker may have paid without hearing of it, or may yet: the same payment asked for once more settles which,
        for ever, and is refunded like any other.
        """
        if not items:
            return [], []
        requests = [
            cost_center_pb2.SmsSendPayRequest(
                brand_id=item.brand_id, request_id=item.dispatch_id, order_no=item.order_no, segments=item.segments
            )
            for item in items
        ]
        paid: list[ParkedDispatch] = []
        uncharged: list[ParkedDispatch] = []
        for item, outcome in zip(items, await self._ledger.batch_pay(requests), strict=True):
            if not isinstance(outcome, Refusal):
                paid.append(replace(item, payment_no=outcome.payment_no))
            elif is_outage(outcome) or outcome.reason == "IDEMPOTENCY_CONFLICT":
                dropped.kept[item.dispatch_id] = _reason(outcome)
            else:
                uncharged.append(item)
        return paid, uncharged

    def _owed(self, items: Sequence[ParkedDispatch], messages: Sequence[CancelledMessage]) -> list[OutboxRow]:
        by_brand: defaultdict[int, list[CancelledDispatch]] = defaultdict(list)
        for item in items:
            by_brand[item.brand_id].append(
                CancelledDispatch(item.dispatch_id, item.segments, item.order_no, item.payment_no)
            )
        rows: list[OutboxRow] = []
        for brand_id, dispatches in by_brand.items():
            rows += owed_back(self._identifiers, brand_id, dispatches, messages)
        return rows

    # Calls that are owed.

    async def _drop_outbox(self, keys: Sequence[Key]) -> Dropped:
        async with self._database.connection() as connection:
            found = await store.find_outbox(connection, keys)
        dropped = Dropped()
        droppable: list[Key] = []
        refunds: list[tuple[int, str, int]] = []
        for kind in OutboxKind:
            rows = [row for row in found if row.kind is kind]
            if not rows:
                continue
            # Called once more: what succeeds now is settled, and what does not tells whether anything hangs on it.
            for row, outcome in zip(rows, await outbox_calls.call(self._ledger, kind, rows), strict=True):
                why = _needed(row, outcome)
                if why:
                    dropped.kept[row.outbox_id] = why
                else:
                    droppable.append((row.brand_id, row.outbox_id))
                    refunds += outbox_calls.refunds_of(row, outcome)
        async with self._database.connection() as connection:
            dropped.ids = await store.drop_outbox(connection, droppable)
            if refunds:
                await record_refunds(connection, refunds)
        return dropped


_LISTS: dict[ParkedKind, Callable[[Connection, Page], Awaitable[list[ParkedRow]]]] = {
    ParkedKind.DISPATCH: store.list_dispatches,
    ParkedKind.OUTBOX: store.list_outbox,
    ParkedKind.RECEIPT: store.list_receipts,
    ParkedKind.WEBHOOK: store.list_webhook_events,
}


def _needed(row: OutboxRow, outcome: Any) -> str:
    """Why the bill may need a call that had this outcome; empty when it does not."""
    if isinstance(outcome, DecodeError):
        return "it cannot be read, so nobody knows what it owes"
    if not isinstance(outcome, Refusal):
        return ""
    if is_outage(outcome):
        return _reason(outcome)
    # A freeze that is not released ends by itself and gives everything back.
    if row.kind is OutboxKind.RELEASE or outcome.reason in _NOTHING_CHARGED:
        return ""
    request = outbox_calls.REQUESTS[row.kind].FromString(row.payload)
    refunds = bool(request.failed) if row.kind is OutboxKind.SEND_STATUS else request.state in _REFUNDING
    return f"it may owe a refund; {_reason(outcome)}" if refunds else ""


def _reason(refusal: Refusal) -> str:
    return f"{refusal.reason}: {refusal.message}"
