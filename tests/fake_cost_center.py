"""A cost centre of a few lines, behind a real gRPC channel, for tests of what the gateway does when it misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from infra.authorization import Role, secret_hash
from infra.errors import Refusal
from infra.grpc_status import to_trailers
from protos.costcenter.v1 import (
    cost_center_admin_pb2,
    cost_center_admin_pb2_grpc,
    cost_center_pb2,
    cost_center_pb2_grpc,
    types_pb2,
)

SERVICE_SECRET = "service"


_Ledger: Any = cost_center_pb2_grpc.CostCenterServicer
_Admin: Any = cost_center_admin_pb2_grpc.CostCenterAdminServicer


class FakeCostCenter(_Ledger, _Admin):  # type: ignore[misc] # the RPCs that are not here are UNIMPLEMENTED
    """Freezes by request_id against one balance per brand, knows tokens, and fails as told.

    `down`: calls get UNAVAILABLE and do nothing. `losing_replies`: calls do their work and get UNAVAILABLE all the
    same. `gate`: freezes wait for it after `arrived` has been set.
    """

    def __init__(self, balances: dict[int, int]) -> None:
        self.balances = balances
        self.freezes: dict[tuple[int, str], cost_center_pb2.SmsSendPrePayResponse] = {}
        self.tokens: dict[bytes, cost_center_admin_pb2.Token] = {}
        self.down = False
        self.losing_replies = False
        self.calls = 0
        self.group_sizes: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.before_freeze: Callable[[cost_center_pb2.SmsSendPrePayRequest], Refusal | None] = lambda _: None
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        cost_center_pb2_grpc.add_CostCenterServicer_to_server(self, self._server)
        cost_center_admin_pb2_grpc.add_CostCenterAdminServicer_to_server(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.add_token(SERVICE_SECRET, [Role.BILLER])

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def add_token(self, secret: str, roles: Iterable[Role], brand_ids: Iterable[int] | None = None) -> None:
        self.tokens[secret_hash(secret)] = cost_center_admin_pb2.Token(
            token_id=secret,
            name=secret,
            roles=[cost_center_admin_pb2.Role.ValueType(role) for role in roles],
            all_brands=brand_ids is None,
            brand_ids=brand_ids or (),
        )

    @property
    def frozen(self) -> int:
        """Segments of all freezes."""
        return sum(freeze.segments for freeze in self.freezes.values())

    async def SmsSendPrePay(self, request: cost_center_pb2.SmsSendPrePayRequest, context: Any) -> Any:
        await self._enter(context)
        result = self._freeze(request)
        await self._leave(context)
        if isinstance(result, Refusal):
            await context.abort(result.code, result.message, to_trailers(result, "costcenter"))
        return result

    async def BatchSmsSendPrePay(self, request: cost_center_pb2.BatchSmsSendPrePayRequest, context: Any) -> Any:
        await self._enter(context)
        self.group_sizes.append(len(request.items))
        results = []
        for item in request.items:
            result = self._freeze(item)
            if isinstance(result, Refusal):
                refusal = types_pb2.Refusal(
                    code=result.code.value[0], reason=result.reason, message=result.message, metadata=result.metadata
                )
                results.append(cost_center_pb2.BatchSmsSendPrePayResponse.Result(refusal=refusal))
            else:
                results.append(cost_center_pb2.BatchSmsSendPrePayResponse.Result(ok=result))
        await self._leave(context)
        return cost_center_pb2.BatchSmsSendPrePayResponse(results=results)

    async def CheckToken(self, request: cost_center_admin_pb2.CheckTokenRequest, context: Any) -> Any:
        token = self.tokens.get(request.secret_sha256)
        if token is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such token")
        return cost_center_admin_pb2.CheckTokenResponse(token=token)

    def _freeze(self, request: cost_center_pb2.SmsSendPrePayRequest) -> cost_center_pb2.SmsSendPrePayResponse | Refusal:
        key = (request.brand_id, request.request_id)
        if key in self.freezes:
            return self.freezes[key]
        refusal = self.before_freeze(request)
        if refusal is not None:
            return refusal
        available = self.balances.get(request.brand_id)
        if available is None:
            return Refusal(grpc.StatusCode.NOT_FOUND, "BRAND_NOT_FOUND", "there is no such brand")
        if available < request.segments:
            return Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                "INSUFFICIENT_BALANCE",
                "not enough",
                metadata={"available": str(available), "requested": str(request.segments)},
            )
        self.balances[request.brand_id] = available - request.segments
        reply = cost_center_pb2.SmsSendPrePayResponse(order_no=f"order-{request.request_id}", segments=request.segments)
        self.freezes[key] = reply
        return reply

    async def _enter(self, context: Any) -> None:
        self.calls += 1
        self.arrived.set()
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        await self.gate.wait()

    async def _leave(self, context: Any) -> None:
        if self.losing_replies:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost")
