"""The gRPC service CostCenter: translates calls into operations and queries, nothing more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from costcenter import validation
from costcenter.engine import Engine
from costcenter.operations import Operation, PaidReply
from costcenter.queries import Queries
from costcenter.translation import (
    freeze_key,
    freeze_message,
    freeze_place,
    package_message,
    paid_reply,
    payment_message,
    refund_message,
    statement_page,
    statement_place,
    timestamp,
)
from infra import paging
from infra.authorization import Principal, Role, current_principal
from infra.errors import Refusal, invalid, invalid_fields, not_found
from infra.identifiers import brand_of
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1 import cost_center_pb2_grpc as rpc
from protos.costcenter.v1 import types_pb2

SERVICE = "costcenter.v1.CostCenter"
POINTS_MAX = 10_000

_VIEW = frozenset({Role.VIEWER})
_BILL = frozenset({Role.BILLER})
_FINANCE = frozenset({Role.FINANCE})

PERMISSIONS = {
    f"/{SERVICE}/{method}": roles
    for roles, methods in {
        _FINANCE: ("CreatePackageOrder", "PackagePaidCallBack", "GetStatement"),
        _BILL: (
            "SmsSendPrePay",
            "SmsSendPay",
            "SmsReleaseFreezeNum",
            "ExtendFreeze",
            "SmsSendStatusCallBack",
            "SmsReceiptStatusCallBack",
            "BatchSmsSendPrePay",
            "BatchSmsSendPay",
            "BatchSmsSendStatusCallBack",
            "BatchSmsReceiptStatusCallBack",
        ),
        _VIEW: (
            "GetBalance",
            "GetBalanceHistory",
            "ListPackages",
            "GetFreeze",
            "ListFreezes",
            "GetPayment",
            "ListPayments",
        ),
    }.items()
    for method in methods
}

Context = grpc.aio.ServicerContext[Any, Any]
Reply = TypeVar("Reply", bound=Message)
Item = TypeVar("Item", bound=Message)


class CostCenterService(rpc.CostCenterServicer):
    """Handlers. A refusal is raised; the server's interceptor turns it into a status."""

    def __init__(self, engine: Engine, queries: Queries, *, batch_max: int) -> None:
        self._engine = engine
        self._queries = queries
        self._batch_max = batch_max

    async def _apply(self, operation: Operation, _reply: type[Reply]) -> Reply:
        current_principal().require_brand(operation.brand_id)
        return cast(Reply, await self._engine.answer(operation))

    async def _apply_items(
        self, items: Sequence[Item], parse: Callable[[Item], Operation], result: Callable[..., Message]
    ) -> list[Any]:
        """Apply a batch: items that are wrong by themselves are refused alone, the others go in as they came."""
        if len(items) > self._batch_max:
            raise invalid(items=f"must be at most {self._batch_max}")
        principal = current_principal()
        results: list[Message | None] = [None] * len(items)
        operations: list[Operation] = []
        places: list[int] = []
        for place, item in enumerate(items):
            try:
                operation = parse(item)
                principal.require_brand(operation.brand_id)
            except Refusal as refusal:
                results[place] = result(refusal=_refusal(refusal))
            else:
                operations.append(operation)
                places.append(place)
        for place, outcome in zip(places, await self._engine.apply_all(operations), strict=True):
            results[place] = result(refusal=_refusal(outcome)) if isinstance(outcome, Refusal) else result(ok=outcome)
        return results

    async def CreatePackageOrder(
        self, request: pb.CreatePackageOrderRequest, context: Context
    ) -> pb.CreatePackageOrderResponse:
        return await self._apply(validation.create_order(request), pb.CreatePackageOrderResponse)

    async def PackagePaidCallBack(
        self, request: pb.PackagePaidCallBackRequest, context: Context
    ) -> pb.PackagePaidCallBackResponse:
        operation = validation.order_paid(request)
        current_principal().require_brand(operation.brand_id)
        return paid_reply(cast(PaidReply, await self._engine.answer(operation)))

    async def SmsSendPrePay(self, request: pb.SmsSendPrePayRequest, context: Context) -> pb.SmsSendPrePayResponse:
        return await self._apply(validation.freeze(request), pb.SmsSendPrePayResponse)

    async def SmsSendPay(self, request: pb.SmsSendPayRequest, context: Context) -> pb.SmsSendPayResponse:
        return await self._apply(validation.pay(request), pb.SmsSendPayResponse)

    async def SmsReleaseFreezeNum(
        self, request: pb.SmsReleaseFreezeNumRequest, context: Context
    ) -> pb.SmsReleaseFreezeNumResponse:
        return await self._apply(validation.release(request), pb.SmsReleaseFreezeNumResponse)

    async def ExtendFreeze(self, request: pb.ExtendFreezeRequest, context: Context) -> pb.ExtendFreezeResponse:
        return await self._apply(validation.extend(request), pb.ExtendFreezeResponse)

    async def SmsSendStatusCallBack(
        self, request: pb.SmsSendStatusCallBackRequest, context: Context
    ) -> pb.SmsSendStatusCallBackResponse:
        return await self._apply(validation.send_status(request), pb.SmsSendStatusCallBackResponse)

    async def SmsReceiptStatusCallBack(
        self, request: pb.SmsReceiptStatusCallBackRequest, context: Context
    ) -> pb.SmsReceiptStatusCallBackResponse:
        return await self._apply(validation.receipt(request), pb.SmsReceiptStatusCallBackResponse)

    async def BatchSmsSendPrePay(
        self, request: pb.BatchSmsSendPrePayRequest, context: Context
    ) -> pb.BatchSmsSendPrePayResponse:
        results = await self._apply_items(request.items, validation.freeze, pb.BatchSmsSendPrePayResponse.Result)
        return pb.BatchSmsSendPrePayResponse(results=results)

    async def BatchSmsSendPay(self, request: pb.BatchSmsSendPayRequest, context: Context) -> pb.BatchSmsSendPayResponse:
        results = await self._apply_items(request.items, validation.pay, pb.BatchSmsSendPayResponse.Result)
        return pb.BatchSmsSendPayResponse(results=results)

    async def BatchSmsSendStatusCallBack(
        self, request: pb.BatchSmsSendStatusCallBackRequest, context: Context
    ) -> pb.BatchSmsSendStatusCallBackResponse:
        results = await self._apply_items(
            request.items, validation.send_status, pb.BatchSmsSendStatusCallBackResponse.Result
        )
        return pb.BatchSmsSendStatusCallBackResponse(results=results)

    async def BatchSmsReceiptStatusCallBack(
        self, request: pb.BatchSmsReceiptStatusCallBackRequest, context: Context
    ) -> pb.BatchSmsReceiptStatusCallBackResponse:
        results = await self._apply_items(
            request.items, validation.receipt, pb.BatchSmsReceiptStatusCallBackResponse.Result
        )
        return pb.BatchSmsReceiptStatusCallBackResponse(results=results)

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.GetBalanceResponse:
        brand_id = _readable(request.brand_id)
        as_of = validation.moment("as_of", request.as_of) if request.HasField("as_of") else None
        balance = await self._queries.balance(brand_id, as_of)
        return pb.GetBalanceResponse(
            brand_id=brand_id,
            total=balance.total,
            frozen=balance.frozen,
            available=balance.available,
            available_by_type=[
                pb.TypeBalance(sms_type=cast(types_pb2.SmsType.ValueType, sms_type), available=available)
                for sms_type, available in (balance.available_by_type or {}).items()
            ],
            as_of=timestamp(balance.as_of),
        )

    async def GetBalanceHistory(
        self, request: pb.GetBalanceHistoryRequest, context: Context
    ) -> pb.GetBalanceHistoryResponse:
        brand_id = _readable(request.brand_id)
        if not request.HasField("from"):
            raise invalid_fields({"from": "is required"})
        # `from` is a word of Python's.
        start = validation.moment("from", getattr(request, "from"))
        end = validation.moment("to", request.to) if request.HasField("to") else None
        step = validation.duration("step", request.step)
        if step < timedelta(seconds=1):
            raise invalid(step="must be at least 1 second")
        if end is not None and (end - start) / step > POINTS_MAX:
            raise invalid(step=f"must make at most {POINTS_MAX} points")
        points = await self._queries.balance_history(brand_id, start, end, step, POINTS_MAX)
        return pb.GetBalanceHistoryResponse(
            points=[
                pb.GetBalanceHistoryResponse.Point(at=timestamp(at), total=total, frozen=frozen)
                for at, total, frozen in points
            ]
        )

    async def ListPackages(self, request: pb.ListPackagesRequest, context: Context) -> pb.ListPackagesResponse:
        brand_id = _readable(request.brand_id)
        limit = paging.page_size(request.page_size)
        if request.include_spent:
            after = paging.decode_number(request.page_token)
            packages, following = await self._queries.all_packages(brand_id, after=after, limit=limit)
        else:
            place = paging.decode_numbers(request.page_token, 2)
            packages, following = await self._queries.packages(brand_id, after=place, limit=limit)
        return pb.ListPackagesResponse(
            packages=[package_message(package) for package in packages], next_page_token=paging.next_token(following)
        )

    async def GetFreeze(self, request: pb.GetFreezeRequest, context: Context) -> pb.GetFreezeResponse:
        brand_id = brand_of(request.order_no)
        if brand_id is None:
            raise not_found("FREEZE_NOT_FOUND", "there is no such freeze")
        current_principal().require_brand(brand_id)
        return pb.GetFreezeResponse(freeze=freeze_message(await self._queries.freeze(brand_id, request.order_no)))

    async def ListFreezes(self, request: pb.ListFreezesRequest, context: Context) -> pb.ListFreezesResponse:
        brand_id = _readable(request.brand_id)
        limit = paging.page_size(request.page_size)
        if request.open_only:
            after = freeze_place(request.page_token)
            freezes, place = await self._queries.open_freezes(brand_id, after=after, limit=limit)
            following = freeze_key(place)
        else:
            before = paging.decode_token(request.page_token)
            freezes, following = await self._queries.freezes(brand_id, before=before, limit=limit)
        return pb.ListFreezesResponse(
            freezes=[freeze_message(freeze) for freeze in freezes], next_page_token=paging.next_token(following)
        )

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Context) -> pb.GetPaymentResponse:
        brand_id = brand_of(request.payment_no)
        if brand_id is None:
            raise not_found("PAYMENT_NOT_FOUND", "there is no such payment")
        current_principal().require_brand(brand_id)
        payment, refunds = await self._queries.payment(brand_id, request.payment_no)
        return pb.GetPaymentResponse(
            payment=payment_message(payment), refunds=[refund_message(refund) for refund in refunds]
        )

    async def ListPayments(self, request: pb.ListPaymentsRequest, context: Context) -> pb.ListPaymentsResponse:
        brand_id = _readable(request.brand_id)
        order_no = validation.identifier("order_no", request.order_no) if request.order_no else ""
        payments, following = await self._queries.payments(
            brand_id,
            order_no=order_no,
            before=paging.decode_token(request.page_token),
            limit=paging.page_size(request.page_size),
        )
        return pb.ListPaymentsResponse(
            payments=[payment_message(payment) for payment in payments], next_page_token=paging.next_token(following)
        )

    async def GetStatement(self, request: pb.GetStatementRequest, context: Context) -> pb.GetStatementResponse:
        brand_id = _readable(request.brand_id)
        month, start, end = validation.period(request)
        limit = 0 if request.summary_only else paging.page_size(request.page_size)
        numbers = paging.decode_numbers(request.page_token, 5)
        if numbers:
            place = statement_place(numbers)
            lines, following = await self._queries.statement_lines(brand_id, place, limit)
            return statement_page(None, lines, following)
        statement, lines, following = await self._queries.statement(
            brand_id, month=month, start=start, end=end, limit=limit
        )
        return statement_page(statement, lines, following)


def _readable(brand_id: int) -> int:
    principal: Principal = current_principal()
    principal.require_brand(validation.brand_id(brand_id))
    return brand_id


def _refusal(refusal: Refusal) -> types_pb2.Refusal:
    return types_pb2.Refusal(
        code=refusal.code.value[0], reason=refusal.reason, message=refusal.message, metadata=refusal.metadata
    )
