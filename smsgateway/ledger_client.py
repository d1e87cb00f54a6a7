"""The gateway's and the workers' way to the cost centre."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from infra.authorization import Principal, expand
from infra.errors import Refusal
from infra.grpc_server import bearer, open_channel
from infra.grpc_status import from_error, from_item
from protos.costcenter.v1 import (
    cost_center_admin_pb2,
    cost_center_admin_pb2_grpc,
    cost_center_jobs_pb2,
    cost_center_jobs_pb2_grpc,
    cost_center_pb2,
    cost_center_pb2_grpc,
    ledger_figures_pb2,
    ledger_figures_pb2_grpc,
)
from smsgateway.metrics import LEDGER_RETRIES
from smsgateway.settings import Settings

log = structlog.get_logger(__name__)

Asked = TypeVar("Asked")
Reply = TypeVar("Reply")
_Code = grpc.StatusCode

# An answer with one of these was judged by the cost centre: the call had no effect and never had one before.
_JUDGED = frozenset(
    {_Code.INVALID_ARGUMENT, _Code.NOT_FOUND, _Code.ALREADY_EXISTS, _Code.FAILED_PRECONDITION, _Code.OUT_OF_RANGE}
)
_JUDGED_NUMBERS = frozenset(code.value[0] for code in _JUDGED)
# Worth another attempt with the same request_id. CANCELLED is what a server that stops makes of calls under way.
_TRANSIENT = frozenset({_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED, _Code.ABORTED})


class Unsettled(Refusal):
    """UNAVAILABLE: whether the call had its effect is not known; the same call with the same request_id settles it.

    A `Refusal` that is not of this class is the cost centre's judgement: nothing was changed.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            _Code.UNAVAILABLE, "UNAVAILABLE", f"the cost centre {why}; call again with the same request_id"
        )


class LedgerClient:
    """Calls the cost centre with the service token, a deadline and bounded retries.

    Every call may raise `Unsettled`, when the cost centre could not be reached or did not answer within
    `ledger_call_seconds`, and another `Refusal` when it refused. Batch calls return one outcome per item, in order:
    the reply, or the `Refusal` or `Unsettled` of that item. They are cut into calls of `ledger_items_max` items.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metadata = bearer(settings.service_token.get_secret_value())
        self._channel = open_channel(settings, settings.costcenter_target)
        self._ledger = cost_center_pb2_grpc.CostCenterStub(self._channel)
        self._admin = cost_center_admin_pb2_grpc.CostCenterAdminStub(self._channel)
        self._jobs = cost_center_jobs_pb2_grpc.CostCenterJobsStub(self._channel)
        self._figures = ledger_figures_pb2_grpc.LedgerFiguresStub(self._channel)
        # The annotations of the health package know the synchronous stub only.
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls under way end as `Unsettled`."""
        await self._channel.close()

    async def freeze(self, request: cost_center_pb2.SmsSendPrePayRequest) -> cost_center_pb2.SmsSendPrePayResponse:
        """SmsSendPrePay."""
        return await self._call("SmsSendPrePay", self._ledger.SmsSendPrePay, request)

    async def release(
        self, request: cost_center_pb2.SmsReleaseFreezeNumRequest
    ) -> cost_center_pb2.SmsReleaseFreezeNumResponse:
        """SmsReleaseFreezeNum."""
        return await self._call("SmsReleaseFreezeNum", self._ledger.SmsReleaseFreezeNum, request)

    async def batch_freeze(
        self, items: Sequence[cost_center_pb2.SmsSendPrePayRequest]
    ) -> list[cost_center_pb2.SmsSendPrePayResponse | Refusal]:
        """BatchSmsSendPrePay."""
        return await self._batch(
            "BatchSmsSendPrePay", self._ledger.BatchSmsSendPrePay, cost_center_pb2.BatchSmsSendPrePayRequest, items
        )

    async def batch_pay(
        self, items: Sequence[cost_center_pb2.SmsSendPayRequest]
    ) -> list[cost_center_pb2.SmsSendPayResponse | Refusal]:
        """BatchSmsSendPay."""
        return await self._batch(
            "BatchSmsSendPay", self._ledger.BatchSmsSendPay, cost_center_pb2.BatchSmsSendPayRequest, items
        )

    async def batch_status(
        self, items: Sequence[cost_center_pb2.SmsSendStatusCallBackRequest]
    ) -> list[cost_center_pb2.SmsSendStatusCallBackResponse | Refusal]:
        """BatchSmsSendStatusCallBack."""
        return await self._batch(
            "BatchSmsSendStatusCallBack",
            self._ledger.BatchSmsSendStatusCallBack,
            cost_center_pb2.BatchSmsSendStatusCallBackRequest,
            items,
        )

    async def batch_receipt(
        self, items: Sequence[cost_center_pb2.SmsReceiptStatusCallBackRequest]
    ) -> list[cost_center_pb2.SmsReceiptStatusCallBackResponse | Refusal]:
        """BatchSmsReceiptStatusCallBack."""
        return await self._batch(
            "BatchSmsReceiptStatusCallBack",
            self._ledger.BatchSmsReceiptStatusCallBack,
            cost_center_pb2.BatchSmsReceiptStatusCallBackRequest,
            items,
        )

    async def check_token(self, secret_sha256: bytes) -> Principal | None:
        """CheckToken: the principal of a secret's hash; None for a token that is unknown, revoked or ended."""
        request = cost_center_admin_pb2.CheckTokenRequest(secret_sha256=secret_sha256)
        try:
            reply: cost_center_admin_pb2.CheckTokenResponse = await self._call(
                "CheckToken", self._admin.CheckToken, request
            )
        except Refusal as refusal:
            if refusal.code is _Code.NOT_FOUND:
                return None
            raise
        token = reply.token
        brand_ids = None if token.all_brands else frozenset(token.brand_ids)
        return Principal(token.token_id, expand(token.roles), brand_ids, token.name)

    async def apply_releases(
        self, *, limit: int = 0, wait_seconds: float = 0
    ) -> cost_center_jobs_pb2.ApplyReleasesResponse:
        """ApplyReleases: at most `limit` requests (0: the server's default), waiting for one at most so long."""
        request = cost_center_jobs_pb2.ApplyReleasesRequest(limit=limit)
        if wait_seconds > 0:
            wait = Duration()
            wait.FromNanoseconds(int(wait_seconds * 1e9))
            request.wait.CopyFrom(wait)
        return await self._call("ApplyReleases", self._jobs.ApplyReleases, request, extra_seconds=wait_seconds)

    async def list_balances(self, *, page_size: int, page_token: str) -> cost_center_admin_pb2.ListBalancesResponse:
        """ListBalances: a page of all brands."""
        request = cost_center_admin_pb2.ListBalancesRequest(page_size=page_size, page_token=page_token)
        return await self._call("ListBalances", self._admin.ListBalances, request)

    async def book_due(self, *, brand_limit: int = 0) -> cost_center_jobs_pb2.BookDueResponse:
        """BookDue: at most `brand_limit` brands (0: the server's default)."""
        return await self._call(
            "BookDue", self._jobs.BookDue, cost_center_jobs_pb2.BookDueRequest(brand_limit=brand_limit)
        )

    async def clean_up(self, *, limit: int = 0) -> cost_center_jobs_pb2.CleanUpResponse:
        """CleanUp: at most `limit` rows of each kind (0: the server's default)."""
        return await self._call("CleanUp", self._jobs.CleanUp, cost_center_jobs_pb2.CleanUpRequest(limit=limit))

    async def figures(self, *, brands_max: int) -> ledger_figures_pb2.GetLedgerFiguresResponse:
        """GetLedgerFigures: sums of the ledger, and the balances of so many brands."""
        request = ledger_figures_pb2.GetLedgerFiguresRequest(brands_max=brands_max)
        return await self._call("GetLedgerFigures", self._figures.GetLedgerFigures, request)

    async def reachable(self, timeout_seconds: float = 2) -> bool:
        """Tell whether the cost centre says in time that it serves."""
        try:
            reply = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def _batch(self, method: str, stub: Any, make_request: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        step = self._settings.ledger_items_max
        parts = [items[start : start + step] for start in range(0, len(items), step)]
        replies = await asyncio.gather(
            *(self._call(method, stub, make_request(items=part)) for part in parts), return_exceptions=True
        )
        outcomes: list[Any] = []
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, Refusal):
                # One part of several failed; what the others did must still reach the caller.
                outcomes.extend([reply] * len(part))
            elif isinstance(reply, BaseException):
                raise reply
            elif len(reply.results) != len(part):
                outcomes.extend([Unsettled("answered another number of items")] * len(part))
            else:
                outcomes.extend(_outcomes(reply.results))
        return outcomes

    async def _call(
        self,
        method: str,
        stub: grpc.aio.UnaryUnaryMultiCallable[Asked, Reply],
        request: Asked,
        *,
        extra_seconds: float = 0,
    ) -> Reply:
        settings = self._settings
        deadline = time.monotonic() + settings.ledger_call_seconds + extra_seconds
        attempt_seconds = settings.ledger_attempt_seconds + extra_seconds
        attempts = 0
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(settings.ledger_attempts) | stop_after_delay(settings.ledger_call_seconds),
                wait=wait_random_exponential(
                    multiplier=settings.ledger_backoff_seconds, max=settings.ledger_backoff_seconds_max
                ),
                retry=retry_if_exception(_is_transient),
                reraise=True,
            ):
                with attempt:
                    attempts += 1
                    if attempts > 1:
                        LEDGER_RETRIES.labels(method).inc()
                    left = max(0.001, min(attempt_seconds, deadline - time.monotonic()))
                    return await stub(request, metadata=self._metadata, timeout=left)
        except grpc.aio.AioRpcError as error:
            raise self._refusal(method, error, attempts) from None
        except grpc.aio.UsageError:
            raise Unsettled("is not called any more, because this process stops") from None
        raise AssertionError("a retry ends with a reply or an error")

    def _refusal(self, method: str, error: grpc.aio.AioRpcError, attempts: int) -> Refusal:
        code = error.code()
        if code in _JUDGED:
            return from_error(error)
        if code is _Code.RESOURCE_EXHAUSTED and attempts == 1:
            # Turned away at the door; after an attempt without an answer that would say nothing of the first one.
            return from_error(error)
        log.warning("cost centre call failed", method=method, code=code.name, attempts=attempts)
        if code in {_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED}:
            log.error("the cost centre refuses SMSBILL_SERVICE_TOKEN", method=method, code=code.name)
            return Unsettled("does not know this service's token")
        return Unsettled("cannot be reached" if code in _TRANSIENT else "failed")


def is_outage(refusal: Refusal) -> bool:
    """Whether the cost centre did not judge the call: worth the same call again, however long it takes."""
    return isinstance(refusal, Unsettled) or refusal.code in {_Code.RESOURCE_EXHAUSTED, _Code.UNAVAILABLE}


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in _TRANSIENT


def _outcomes(results: Iterable[Any]) -> list[Any]:
    outcomes: list[Any] = []
    for result in results:
        if result.WhichOneof("outcome") == "ok":
            outcomes.append(result.ok)
            continue
        refusal = result.refusal
        if refusal.code in _JUDGED_NUMBERS:
            outcomes.append(from_item(refusal.code, refusal.reason, refusal.message, dict(refusal.metadata)))
        else:
            outcomes.append(Unsettled("failed"))
    return outcomes
