"""One thing by its number: a message with its life, a freeze, a payment; and the search that leads there."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.authorization import Role
from infra.errors import Refusal, invalid_fields, not_found
from infra.identifiers import brand_of
from protos.costcenter.v1 import cost_center_admin_pb2 as admin_pb
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.smsgateway.v1 import sms_gateway_pb2 as gateway_pb
from smsgateway.console.asked import Asked, asked, brand_number
from smsgateway.console.desk import Desk, both, page_token
from smsgateway.console.timeline import Life, Step, timeline
from smsgateway.store import finding as store
from smsgateway.store.finding import Record

T = TypeVar("T")

# Messages named on the page of a payment, and found by a search; the rest is on the page of their batch.
_MESSAGES_SHOWN: Final = 50
_REFUNDS_SHOWN: Final = 100
_PAYMENTS_SHOWN: Final = 50
# What was not sent is refunded soon after its end.
_SETTLES: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Told:
    """All that is known of a message."""

    message: gateway_pb.Message
    record: Record
    life: Life
    steps: Sequence[Step]

    @property
    def moves(self) -> bool:
        """Whether there may be more to tell soon."""
        finished_at = self.life.finished_at
        return not self.life.is_final or (finished_at is not None and datetime.now(UTC) - finished_at < _SETTLES)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: `kind` a word, `path` its page."""

    kind: str
    name: str
    path: str
    brand_id: int


def routes(desk: Desk) -> list[Route]:
    """The routes."""
    pages, search = _RecordPages(desk), _Search(desk)
    return [
        Route("/messages/{message_id}", pages.message),
        Route("/messages/{message_id}/live", pages.message_live),
        Route("/freezes/{order_no}", pages.freeze),
        Route("/payments/{payment_no}", pages.payment),
        Route("/search", search.page),
    ]


class _RecordPages:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._console = desk.console

    async def message(self, request: Request) -> Response:
        """A message's life."""
        return self._desk.page(request, "message.html", told=await self._told(request))

    async def message_live(self, request: Request) -> Response:
        """The part of it that moves."""
        return self._desk.page(request, "message_live.html", told=await self._told(request))

    async def freeze(self, request: Request) -> Response:
        """A freeze with its lines and payments."""
        order_no = request.path_params["order_no"]
        costcenter = self._console.costcenter(request)
        reply = await costcenter.GetFreeze(pb.GetFreezeRequest(order_no=order_no))
        freeze = reply.freeze
        payments, kinds = await both(
            costcenter.ListPayments(
                pb.ListPaymentsRequest(
                    brand_id=freeze.brand_id,
                    order_no=order_no,
                    page_size=_PAYMENTS_SHOWN,
                    page_token=page_token(request),
                )
            ),
            self._kinds(freeze.brand_id, freeze.request_id),
        )
        return self._desk.page(
            request,
            "freeze.html",
            freeze=freeze,
            kinds=kinds,
            payments=payments.payments,
            next_url=self._desk.next_url(request, payments.next_page_token),
            first_url=self._desk.first_url(request),
        )

    async def payment(self, request: Request) -> Response:
        """A payment with its lines, refunds and messages."""
        reply = await self._console.costcenter(request).GetPayment(
            pb.GetPaymentRequest(payment_no=request.path_params["payment_no"])
        )
        payment = reply.payment
        async with self._desk.reads.connection() as connection:
            messages = await store.messages_of_dispatch(
                connection, payment.brand_id, payment.request_id, limit=_MESSAGES_SHOWN + 1
            )
        return self._desk.page(
            request,
            "payment.html",
            payment=payment,
            refunds=reply.refunds[:_REFUNDS_SHOWN],
            refund_count=len(reply.refunds),
            messages=messages[:_MESSAGES_SHOWN],
            more_messages=len(messages) > _MESSAGES_SHOWN,
        )

    async def _told(self, request: Request) -> Told:
        message_id = request.path_params["message_id"]
        missing = not_found("MESSAGE_NOT_FOUND", "there is no such message")
        brand_id = brand_of(message_id)
        if not brand_id:
            raise missing
        self._desk.view(request, brand_id)

        async def look() -> Told:
            reply, record = await both(
                self._console.gateway(request).GetMessage(gateway_pb.GetMessageRequest(message_id=message_id)),
                self._record(brand_id, message_id),
            )
            if record is None:
                raise missing
            life = await self._life(request, record)
            return Told(reply.message, record, life, timeline(life))

        return await self._desk.shared(("message", message_id), look)

    async def _record(self, brand_id: int, message_id: str) -> Record | None:
        async with self._desk.reads.connection() as connection:
            return await store.record(connection, brand_id, message_id)

    async def _life(self, request: Request, record: Record) -> Life:
        costcenter = self._console.costcenter(request)

        freeze, payment = await both(
            _perhaps(record.order_no, lambda: costcenter.GetFreeze(pb.GetFreezeRequest(order_no=record.order_no))),
            _perhaps(
                record.payment_no, lambda: costcenter.GetPayment(pb.GetPaymentRequest(payment_no=record.payment_no))
            ),
        )
        refund = None
        if payment is not None:
            refund = next((each for each in payment.refunds if each.message_id == record.message_id), None)
        return Life(
            message_id=record.message_id,
            state=record.state,
            accepted_at=record.created_at,
            batch_id=record.batch_id,
            request_id=record.request_id,
            dispatch_id=record.dispatch_id,
            order_no=record.order_no,
            frozen_at=None if freeze is None else freeze.freeze.created_at.ToDatetime(UTC),
            stream_entry=record.stream_entry,
            due_at=record.due_at,
            paused=record.paused,
            parked=record.parked,
            payment_no=record.payment_no,
            paid_at=None if payment is None else payment.payment.created_at.ToDatetime(UTC),
            account=record.account,
            call_id=record.call_id,
            submitted_at=record.submitted_at,
            sent_at=record.sent_at,
            carrier_message_id=record.carrier_message_id,
            result_code=record.result_code,
            result_detail=record.result_detail,
            finished_at=record.finished_at,
            refunded=0 if refund is None else refund.segments,
            refunded_at=None if refund is None else refund.created_at.ToDatetime(UTC),
        )

    async def _kinds(self, brand_id: int, identifier: str) -> list[str]:
        async with self._desk.reads.connection() as connection:
            return await store.kinds_of(connection, brand_id, identifier)


class _Search:
    """By what something is called: exactly, and only what the user may see."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._console = desk.console

    async def page(self, request: Request) -> Response:
        """What was found; a single thing is gone to at once."""
        self._console.require(request, Role.VIEWER)
        wanted = asked(request.query_params.get("q", ""))
        brand_text = request.query_params.get("brand", "").strip()
        brand_id = brand_number(brand_text)
        if brand_text and brand_id is None:
            raise invalid_fields({"brand": "must be a brand's number"})
        found: list[Found] = []
        if wanted.text:
            found = await self._found(request, wanted, brand_id)
        if len(found) == 1:
            return self._console.redirect(found[0].path)
        return self._desk.page(request, "search.html", wanted=wanted, brand=brand_text, found=found)

    async def _found(self, request: Request, wanted: Asked, brand_id: int | None) -> list[Found]:
        if wanted.identifier is not None:
            owner, identifier = wanted.identifier
            allowed = self._console.principal(request).brand_ids
            may_see = allowed is None or owner in allowed
            found = await self._named(request, owner, identifier) if may_see else []
            # A carrier's id may look like one of ours.
            found = found or await self._carried(request, wanted.reference)
            if not found:
                self._desk.view(request, owner)
            return found
        if wanted.dispatch is not None:
            owner, dispatch_id = wanted.dispatch
            self._desk.view(request, owner)
            return await self._dispatched(owner, dispatch_id)
        if wanted.mobile and brand_id is not None:
            self._desk.view(request, brand_id)
            reply = await self._console.gateway(request).ListMessages(
                gateway_pb.ListMessagesRequest(brand_id=brand_id, mobile=wanted.mobile, page_size=_MESSAGES_SHOWN)
            )
            numbers = [_message(brand_id, message.message_id) for message in reply.messages]
            return numbers + await self._carried(request, wanted.reference)
        carried = await self._carried(request, wanted.reference)
        return carried + await self._brand(request, wanted.brand_id)

    async def _named(self, request: Request, brand_id: int, identifier: str) -> list[Found]:
        costcenter = self._console.costcenter(request)
        kinds, freeze, payment = await both(
            self._kinds(brand_id, identifier),
            _unless_missing(costcenter.GetFreeze(pb.GetFreezeRequest(order_no=identifier))),
            _unless_missing(costcenter.GetPayment(pb.GetPaymentRequest(payment_no=identifier))),
        )
        found = [_found_of(kind, brand_id, identifier) for kind in kinds]
        if freeze is not None:
            found.append(Found("freeze", identifier, f"/freezes/{identifier}", brand_id))
        if payment is not None:
            found.append(Found("payment", identifier, f"/payments/{identifier}", brand_id))
        return found or await self._dispatched(brand_id, identifier)

    async def _kinds(self, brand_id: int, identifier: str) -> list[str]:
        async with self._desk.reads.connection() as connection:
            return await store.kinds_of(connection, brand_id, identifier)

    async def _dispatched(self, brand_id: int, dispatch_id: str) -> list[Found]:
        """The messages of a single message's or a chunk's call."""
        async with self._desk.reads.connection() as connection:
            messages = await store.messages_of_dispatch(connection, brand_id, dispatch_id, limit=_MESSAGES_SHOWN)
        return [_message(brand_id, message_id) for message_id in messages]

    async def _carried(self, request: Request, reference: str) -> list[Found]:
        """The messages that a carrier calls so, of brands that the user may see."""
        allowed = self._console.principal(request).brand_ids
        found: list[Found] = []
        async with self._desk.reads.connection() as connection:
            for routed in await store.routes(connection, reference):
                if allowed is not None and routed.brand_id not in allowed:
                    continue
                messages = await store.carried(connection, routed, reference, limit=_MESSAGES_SHOWN)
                found += [_message(routed.brand_id, message_id) for message_id in messages]
        return found[:_MESSAGES_SHOWN]

    async def _brand(self, request: Request, brand_id: int | None) -> list[Found]:
        allowed = self._console.principal(request).brand_ids
        if brand_id is None or (allowed is not None and brand_id not in allowed):
            return []
        call = self._console.admin(request).GetBrand(admin_pb.GetBrandRequest(brand_id=brand_id))
        reply = await _unless_missing(call)
        return [] if reply is None else [Found("brand", reply.brand.name, f"/brands/{brand_id}", brand_id)]


def _message(brand_id: int, message_id: str) -> Found:
    return Found("message", message_id, f"/messages/{message_id}", brand_id)


def _found_of(kind: str, brand_id: int, identifier: str) -> Found:
    if kind == "batch":
        return Found("batch", identifier, f"/batches/{identifier}", brand_id)
    return _message(brand_id, identifier)


async def _unless_missing(call: Awaitable[T]) -> T | None:
    """The answer; None where there is no such thing."""
    try:
        return await call
    except Refusal as refusal:
        if refusal.code is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def _perhaps(number: str, call: Any) -> Any:
    """The answer about a number, if there is one and the cost centre knows it."""
    return None if not number else await _unless_missing(call())
