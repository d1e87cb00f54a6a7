"""Freezing what is recorded as being accepted, and recording what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from google.protobuf.duration_pb2 import Duration

from infra.crash_points import reach
from infra.database import Connection, Database
from infra.errors import Refusal, unavailable
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.ledger_client import LedgerClient, Unsettled
from smsgateway.queues import QueueItem
from smsgateway.schema import Mode, OutboxKind
from smsgateway.store import accepting as store
from smsgateway.store import outbox
from smsgateway.store.accepting import Abandoned, Accepted, CancelledDispatch, CancelledMessage, Key
from smsgateway.store.outbox import OutboxRow

log = structlog.get_logger(__name__)

_HELD_TIME_TO_LIVE = Duration(seconds=7 * 86_400)

Outcome = sms_gateway_pb2.SendSmsResponse | Refusal


def now_ms() -> int:
    """Milliseconds since 1970, for identifiers."""
    return time.time_ns() // 1_000_000


def freeze_request(item: Abandoned) -> cost_center_pb2.SmsSendPrePayRequest:
    """The freeze of a message or a batch; its request_id is the message's or batch's id. What is held until later is
    frozen for as long as a freeze may last; whoever asks again must ask for the same.
    """
    return cost_center_pb2.SmsSendPrePayRequest(
        brand_id=item.brand_id,
        request_id=item.target_id,
        sms_type=item.sms_type,  # type: ignore[arg-type] # the record holds the enum's number
        segments=item.segments,
        time_to_live=_HELD_TIME_TO_LIVE if item.held else None,
    )


def release_owed(identifiers: IdentifierSource, brand_id: int, order_no: str, segments: int = 0) -> OutboxRow:
    """The release of segments of a freeze, all that is open without a figure."""
    outbox_id = identifiers.new(brand_id, now_ms())
    request = cost_center_pb2.SmsReleaseFreezeNumRequest(
        brand_id=brand_id, request_id=outbox_id, order_no=order_no, segments=segments
    )
    return OutboxRow(brand_id, outbox_id, OutboxKind.RELEASE, request.SerializeToString())


def owed_back(
    identifiers: IdentifierSource,
    brand_id: int,
    dispatches: Sequence[CancelledDispatch],
    messages: Sequence[CancelledMessage],
) -> list[OutboxRow]:
    """What a brand gets back for dispatches that are not sent: a release per freeze for what is not paid, a refund per
    payment for what is.
    """
    unpaid: dict[str, int] = {}
    payments: dict[str, str] = {}
    for dispatch in dispatches:
        if dispatch.payment_no is None:
            unpaid[dispatch.order_no] = unpaid.get(dispatch.order_no, 0) + dispatch.segments
        else:
            payments[dispatch.dispatch_id] = dispatch.payment_no
    owed = [release_owed(identifiers, brand_id, order_no, segments) for order_no, segments in unpaid.items()]
    failed: dict[str, list[cost_center_pb2.FailedMessage]] = {}
    for message in messages:
        payment_no = payments.get(message.dispatch_id)
        if payment_no is not None:
            failed.setdefault(payment_no, []).append(
                cost_center_pb2.FailedMessage(message_id=message.message_id, segments=message.segments)
            )
    for payment_no, failed_messages in failed.items():
        outbox_id = identifiers.new(brand_id, now_ms())
        request = cost_center_pb2.SmsSendStatusCallBackRequest(
            brand_id=brand_id, request_id=outbox_id, payment_no=payment_no, failed=failed_messages
        )
        owed.append(OutboxRow(brand_id, outbox_id, OutboxKind.SEND_STATUS, request.SerializeToString()))
    return owed


class MessageSettler:
    """Takes single messages that are recorded as being accepted to their end: queued, or refused and forgotten."""

    def __init__(
        self, database: Database, ledger: LedgerClient, queue: DispatchQueue, identifiers: IdentifierSource
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._queue = queue
        self._identifiers = identifiers

    async def settle(self, items: Sequence[Abandoned]) -> list[Outcome]:
        """Freeze, record and queue; return a reply or a refusal per message, in order.

        May be called for a message any number of times and from any process: the freeze has the message's id for its
        request_id, and every step is conditional. A message for which the cost centre gave no answer stays as it is
        (`Unsettled`). Raises the database's errors; then nothing is known of any of them.
        """
        replies = await self._ledger.batch_freeze([freeze_request(item) for item in items])
        reach("gateway.single.frozen")
        outcomes: list[Outcome] = []
        frozen: list[Accepted] = []
        refused: list[Key] = []
        for item, reply in zip(items, replies, strict=True):
            if isinstance(reply, Refusal):
                outcomes.append(reply)
                if not isinstance(reply, Unsettled):
                    refused.append(_key(item))
                continue
            response = sms_gateway_pb2.SendSmsResponse(
                message_id=item.target_id, order_no=reply.order_no, segments=item.segments
            )
            outcomes.append(response)
            frozen.append(
                Accepted(
                    item.brand_id,
                    Mode.SINGLE,
                    item.request_id,
                    item.target_id,
                    reply.order_no,
                    response.SerializeToString(),
                )
            )
        if not frozen and not refused:
            return outcomes
        queued: set[str] = set()
        if frozen:
            async with self._database.statement() as connection:
                queued = await store.queue_messages(connection, frozen)
            reach("gateway.single.queued")
        corrected: dict[str, Outcome] = {}
        lost = [call for call in frozen if call.target_id not in queued]
        if lost or refused:
            async with self._database.connection() as connection:
                gone = await store.delete_accepting_messages(connection, refused) if refused else set()
                corrected = await self._settle_lost(
                    connection, lost, [key for key in refused if key.target_id not in gone]
                )
            reach("gateway.single.forgotten")
        await self._queue.push(
            [
                QueueItem(item.brand_id, item.sms_type, Mode.SINGLE, item.target_id, item.trace)
                for item in items
                # What is held is pushed by a sweeper when it is due.
                if item.target_id in queued and not item.held
            ]
        )
        reach("gateway.single.pushed")
        return [corrected.get(item.target_id, outcome) for item, outcome in zip(items, outcomes, strict=True)]

    async def _settle_lost(
        self, connection: Connection, frozen: Sequence[Accepted], refused: Sequence[Key]
    ) -> dict[str, Outcome]:
        """What somebody else has settled meanwhile: their outcome counts. What they refused and we froze goes back."""
        if not frozen and not refused:
            return {}
        keys = [*refused, *(_key_of_call(call) for call in frozen)]
        known = await store.find_keys(connection, keys)
        outcomes: dict[str, Outcome] = {}
        for key in keys:
            found = known.get((key.brand_id, key.request_id))
            if found is not None and found.target_id == key.target_id and found.reply is not None:
                outcomes[key.target_id] = sms_gateway_pb2.SendSmsResponse.FromString(found.reply)
        stranded = [call for call in frozen if call.target_id not in outcomes]
        if stranded:
            log.warning("freezes of messages that were refused meanwhile go back", messages=len(stranded))
            owed = [release_owed(self._identifiers, call.brand_id, call.order_no) for call in stranded]
            await outbox.insert(connection, owed, hold_seconds=0)
        for call in stranded:
            outcomes[call.target_id] = unavailable(
                "the message was refused to another call of the same request_id meanwhile; call again"
            )
        return outcomes


def _key(item: Abandoned) -> Key:
    return Key(item.brand_id, Mode.SINGLE, item.request_id, item.target_id, b"")


def _key_of_call(call: Accepted) -> Key:
    return Key(call.brand_id, call.operation, call.request_id, call.target_id, b"")
