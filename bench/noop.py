"""A server with the ledger's messages and interceptor that does nothing: the yardstick of unary calls.

Run as `python -m bench.noop <address> <token>`; it prints its port.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
import uvloop

from costcenter.service import PERMISSIONS, SERVICE
from infra.authorization import Authenticator, Principal, Role, expand, secret_hash
from infra.grpc_server import GrpcServer
from infra.settings import BaseSettings
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1 import cost_center_pb2_grpc as rpc

NUMBER = "01M7Y3B2QD0000000000001XV4TYVD4J"


class NoopService(rpc.CostCenterServicer):
    """Replies of the real size, made of nothing."""

    async def SmsSendPrePay(self, request: pb.SmsSendPrePayRequest, context: Any) -> pb.SmsSendPrePayResponse:  # noqa: N802
        reply = pb.SmsSendPrePayResponse(order_no=NUMBER, segments=request.segments)
        reply.expires_at.seconds = 1_795_319_129
        return reply

    async def SmsSendPay(self, request: pb.SmsSendPayRequest, context: Any) -> pb.SmsSendPayResponse:  # noqa: N802
        return pb.SmsSendPayResponse(payment_no=NUMBER, segments=request.segments, open=0)


async def main() -> None:
    address, token = sys.argv[1:]
    principal = Principal("noop", expand([Role.ADMIN]), None)

    async def find(digest: bytes) -> Principal | None:
        return principal if digest == secret_hash(token) else None

    def register(server: grpc.aio.Server) -> None:
        # The other methods are never called here.
        rpc.add_CostCenterServicer_to_server(NoopService(), server)  # type: ignore[abstract]

    server = GrpcServer(
        BaseSettings.load(),
        address,
        authenticator=Authenticator(find, keep_seconds=60),
        permissions=PERMISSIONS,
        domain="costcenter",
        services=[SERVICE],
        register=register,
    )
    await server.start()
    print(server.port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop()


if __name__ == "__main__":
    uvloop.run(main())
