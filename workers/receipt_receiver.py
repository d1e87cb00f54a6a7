"""Receipts and replies on the carrier's own connection: each is stored before the carrier hears that it is ours."""

from __future__ import annotations

import asyncio

import structlog

from infra.database import TRANSIENT
from infra.errors import Refusal
from smsgateway.carriers.base import CarrierReceipt, CarrierReply, ReceivingCarrier
from smsgateway.metrics import RECEIPTS_RECEIVED, REPLIES_RECEIVED
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake

log = structlog.get_logger(__name__)

RECEIVER_LOOK_SECONDS = 1.0
"""How often it is looked whether the carrier still receives; so long a receiver that failed stays unnoticed."""


class ReceiptReceiver:
    """Keeps `ReceivingCarrier.receive` running, in a task of its own: it lasts as long as the worker.

    Parameters: `kind` the name of the kind of carrier, as metrics have it.
    """

    def __init__(self, carrier: ReceivingCarrier, intake: ReceiptIntake, replies: ReplyIntake, kind: str) -> None:
        self._carrier = carrier
        self._intake = intake
        self._replies = replies
        self._replies_stored = REPLIES_RECEIVED.labels(kind, "stored")
        self._replies_unavailable = REPLIES_RECEIVED.labels(kind, "unavailable")
        self._stored = RECEIPTS_RECEIVED.labels(kind, "stored")
        self._unavailable = RECEIPTS_RECEIVED.labels(kind, "unavailable")
        self._task: asyncio.Task[None] | None = None

    async def step(self) -> None:
        """See that it runs. Raises what ended it, once; the next step starts it again.

        A carrier reconnects by itself; one whose `receive` ends all the same is started once in
        `RECEIVER_LOOK_SECONDS` at most.
        """
        task, self._task = self._task, None
        if task is None:
            task = asyncio.create_task(self._carrier.receive(self._take, self._take_reply), name="receipt-receive-call")
        elif task.done():
            if not task.cancelled():
                task.result()
            raise RuntimeError("the carrier's receive() ended by itself")
        self._task = task

    async def close(self) -> None:
        """End it. What is not stored by then is not acknowledged either, so the carrier gives it again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _take(self, receipt: CarrierReceipt) -> str:
        try:
            inbox_id = await self._intake.take(receipt)
        except (*TRANSIENT, Refusal) as error:
            self._unavailable.inc()
            log.warning("receipt not stored", account=self._carrier.account_id, error=type(error).__name__)
            raise
        self._stored.inc()
        return inbox_id

    async def _take_reply(self, reply: CarrierReply) -> str:
        try:
            reply_id = await self._replies.take(reply)
        except (*TRANSIENT, Refusal) as error:
            self._replies_unavailable.inc()
            log.warning("reply not stored", account=self._carrier.account_id, error=type(error).__name__)
            raise
        self._replies_stored.inc()
        return reply_id
