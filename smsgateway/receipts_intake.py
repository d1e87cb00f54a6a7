"""Taking in receipts: stored in groups before the carrier hears that they are ours, then queued in larger ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from infra import tracing
from infra.crash_points import reach
from infra.database import Database
from infra.grouping import Grouper
from infra.heartbeat import Watchdog
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.carriers.base import CarrierReceipt, ReceiptState
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.metrics import GROUP_SIZE, GROUP_WAIT_SECONDS, GROUP_WAITING
from smsgateway.queues import ReceiptItem
from smsgateway.settings import Settings
from smsgateway.settling import now_ms
from smsgateway.store.inbox import NewReceipt, insert_receipts

log = structlog.get_logger(__name__)

_GROUP = "receipts"
_NO_BRAND = 0
_STATES: Mapping[ReceiptState, int] = {
    ReceiptState.DELIVERED: cost_center_pb2.RECEIPT_STATE_DELIVERED,
    ReceiptState.FAILED: cost_center_pb2.RECEIPT_STATE_UNDELIVERED,
    ReceiptState.PENDING: cost_center_pb2.RECEIPT_STATE_PENDING,
}
# The carrier's word for a message whose validity ran out before the phone could be reached.
_EXPIRED_CODE = "EXPIRED"


@dataclass(frozen=True, slots=True)
class _Taken:
    receipt: NewReceipt
    trace: str = ""
    at: float = field(default_factory=time.monotonic)


class ReceiptIntake:
    """Stores receipts and queues them."""

    def __init__(
        self,
        database: Database,
        queue: DispatchQueue,
        identifiers: IdentifierSource,
        settings: Settings,
        watchdog: Watchdog,
    ) -> None:
        self._database = database
        self._queue = queue
        self._identifiers = identifiers
        self._requeue_seconds = settings.receipt_requeue_seconds
        self._spans = tracing.active()
        self._grouper: Grouper[_Taken, NewReceipt] = Grouper(
            self._store,
            group_max=settings.receipt_group_max,
            queue_max=settings.receipt_queue_max,
            in_flight_max=settings.receipt_groups_in_flight,
            name="queue of receipts",
            heartbeat=watchdog.heartbeat("receipt-groups"),
        )
        self._pushes: Grouper[ReceiptItem, bool] = Grouper(
            self._push,
            group_max=settings.receipt_group_max,
            queue_max=settings.receipt_queue_max,
            gather_seconds=settings.receipt_gather_seconds,
            name="queue of receipts to queue",
            heartbeat=watchdog.heartbeat("receipt-pushes"),
        )
        GROUP_WAITING.labels(_GROUP).set_function(lambda: self._grouper.waiting)

    async def take(self, receipt: CarrierReceipt) -> str:
        """Store a receipt durably; return its id. It is queued soon after.

        Redis may be down, or this process gone before that: a sweeper queues what is stored. Raises the database's
        errors and RESOURCE_EXHAUSTED (OVERLOADED) when `receipt_queue_max` receipts wait; then the carrier is to send
        it again.
        """
        trace = "" if self._spans is None else self._spans.parent
        row = await self._grouper.submit(_Taken(self._row(receipt), trace))
        return row.inbox_id

    async def close(self) -> None:
        """Store and queue what waits, and nothing new."""
        await self._grouper.close()
        await self._pushes.close()

    def _row(self, receipt: CarrierReceipt) -> NewReceipt:
        expired = receipt.state is ReceiptState.FAILED and receipt.code.upper() == _EXPIRED_CODE
        return NewReceipt(
            account=receipt.account_id,
            reference=receipt.carrier_message_id or receipt.call_id,
            inbox_id=self._identifiers.new(_NO_BRAND, now_ms()),
            call_id=receipt.call_id or None,
            mobile=receipt.mobile,
            state=cost_center_pb2.RECEIPT_STATE_EXPIRED if expired else _STATES[receipt.state],
            carrier_code=receipt.code,
            detail=receipt.description or None,
            billed_segments=receipt.segments,
            reported_at=receipt.reported_at,
        )

    async def _store(self, taken: list[_Taken]) -> Sequence[NewReceipt]:
        GROUP_SIZE.labels(_GROUP).observe(len(taken))
        GROUP_WAIT_SECONDS.labels(_GROUP).observe(time.monotonic() - taken[0].at)
        rows = [item.receipt for item in taken]
        reach("gateway.receipt.storing")
        async with self._database.statement() as connection:
            await insert_receipts(connection, rows, requeue_seconds=self._requeue_seconds)
        reach("gateway.receipt.stored")
        for item in taken:
            if self._pushes.full:
                # Redis is slower than the carriers: a sweeper queues the rest.
                break
            row = item.receipt
            self._pushes.submit_nowait(
                ReceiptItem(row.account, row.reference, row.inbox_id, row.call_id or "", item.trace)
            )
        log.info("receipts stored", receipts=len(rows))
        return rows

    async def _push(self, items: list[ReceiptItem]) -> Sequence[bool]:
        pushed = await self._queue.push_receipts(items)
        reach("gateway.receipt.pushed")
        return [pushed] * len(items)
