"""The calls to the cost centre that outbox rows become."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from infra.errors import Refusal
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.schema import OutboxKind
from smsgateway.store.outbox import OutboxRow

REQUESTS: dict[OutboxKind, Any] = {
    OutboxKind.SEND_STATUS: cost_center_pb2.SmsSendStatusCallBackRequest,
    OutboxKind.RECEIPT: cost_center_pb2.SmsReceiptStatusCallBackRequest,
    OutboxKind.RELEASE: cost_center_pb2.SmsReleaseFreezeNumRequest,
}
_RELEASES_AT_ONCE = 32


class StatusLedger(Protocol):
    """What of the cost centre is called (`smsgateway.ledger_client.LedgerClient`)."""

    async def batch_status(
        self, items: Sequence[cost_center_pb2.SmsSendStatusCallBackRequest]
    ) -> list[cost_center_pb2.SmsSendStatusCallBackResponse | Refusal]: ...

    async def batch_receipt(
        self, items: Sequence[cost_center_pb2.SmsReceiptStatusCallBackRequest]
    ) -> list[cost_center_pb2.SmsReceiptStatusCallBackResponse | Refusal]: ...

    async def release(
        self, request: cost_center_pb2.SmsReleaseFreezeNumRequest
    ) -> cost_center_pb2.SmsReleaseFreezeNumResponse: ...


async def call(ledger: StatusLedger, kind: OutboxKind, rows: Sequence[OutboxRow]) -> list[Any]:
    """Make the calls of rows of one kind; for each in order its reply, its `Refusal`, or the `DecodeError` of a payload
    that is no request.
    """
    outcomes: list[Any] = [None] * len(rows)
    places: list[int] = []
    requests: list[Any] = []
    for place, row in enumerate(rows):
        try:
            requests.append(REQUESTS[kind].FromString(row.payload))
            places.append(place)
        except DecodeError as error:
            outcomes[place] = error
    for place, outcome in zip(places, await _ask(ledger, kind, requests), strict=True):
        outcomes[place] = outcome
    return outcomes


def refunds_of(row: OutboxRow, reply: Any) -> list[tuple[int, str, int]]:
    """What a reply says was given back for a message that had been sent: brand, message, segments.

    What a send status gives back is of messages that failed; their records say so themselves.
    """
    refunded = getattr(reply, "refunded", 0)
    if row.kind is not OutboxKind.RECEIPT or not refunded:
        return []
    request = cost_center_pb2.SmsReceiptStatusCallBackRequest.FromString(row.payload)
    return [(row.brand_id, request.message_id, refunded)]


async def _ask(ledger: StatusLedger, kind: OutboxKind, requests: list[Any]) -> list[Any]:
    try:
        if kind is OutboxKind.SEND_STATUS:
            return list(await ledger.batch_status(requests))
        if kind is OutboxKind.RECEIPT:
            return list(await ledger.batch_receipt(requests))
    except Refusal as refusal:
        return [refusal] * len(requests)
    outcomes: list[Any] = []
    for start in range(0, len(requests), _RELEASES_AT_ONCE):
        part = requests[start : start + _RELEASES_AT_ONCE]
        answers = await asyncio.gather(*(ledger.release(request) for request in part), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Refusal):
                raise answer
        outcomes += answers
    return outcomes
