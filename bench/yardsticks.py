"""Servers with the ledger's messages and interceptor that unary calls are measured against.

Run as `python -m bench.yardsticks noop <address> <token>`, which does nothing, or `… transaction <address> <token>
<database URL>`, which books each call in a transaction of its own under the brand's row lock, as a plain service would;
it knows neither packages nor repeated calls, so it is faster than an honest one. Both print their port.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from contextlib import AsyncExitStack
from typing import Any

import grpc
import uvloop
from psycopg_pool import AsyncConnectionPool

from costcenter.service import PERMISSIONS, SERVICE
from infra.authorization import Authenticator, Principal, Role, expand, secret_hash
from infra.grpc_server import GrpcServer
from infra.settings import BaseSettings
from protos.costcenter.v1 import cost_center_pb2 as pb
from protos.costcenter.v1 import cost_center_pb2_grpc as rpc

NUMBER = "01M7Y3B2QD0000000000001XV4TYVD4J"
# As many as PostgreSQL can use on a machine of a few processors; more only wait for each other's locks.
CONNECTIONS = 16
BRANDS = 1_000
SEGMENTS = 10**15

_SCHEMA = f"""
create schema yardstick;
create table yardstick.balance (brand_id bigint primary key, free bigint not null check (free >= 0))
    with (fillfactor = 50);
create table yardstick.freeze (order_no text primary key, brand_id bigint not null, segments bigint not null,
    open bigint not null check (open >= 0), created_at timestamptz not null default clock_timestamp());
create table yardstick.payment (payment_no text primary key, order_no text not null, segments bigint not null,
    created_at timestamptz not null default clock_timestamp());
insert into yardstick.balance select i, {SEGMENTS} from generate_series(1, {BRANDS}) i
"""
_TAKE = "update yardstick.balance set free = free - %s where brand_id = %s and free >= %s"
_FREEZE = "insert into yardstick.freeze (order_no, brand_id, segments, open) values (%s, %s, %s, %s)"
_SETTLE = "update yardstick.freeze set open = open - %s where order_no = %s and brand_id = %s and open >= %s"
_PAY = "insert into yardstick.payment (payment_no, order_no, segments) values (%s, %s, %s)"


class NoopService(rpc.CostCenterServicer):
    """Replies of the real size, made of nothing."""

    async def SmsSendPrePay(self, request: pb.SmsSendPrePayRequest, context: Any) -> pb.SmsSendPrePayResponse:  # noqa: N802
        reply = pb.SmsSendPrePayResponse(order_no=NUMBER, segments=request.segments)
        reply.expires_at.seconds = 1_795_319_129
        return reply

    async def SmsSendPay(self, request: pb.SmsSendPayRequest, context: Any) -> pb.SmsSendPayResponse:  # noqa: N802
        return pb.SmsSendPayResponse(payment_no=NUMBER, segments=request.segments, open=0)


class TransactionService(rpc.CostCenterServicer):
    """A transaction for each call."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def SmsSendPrePay(self, request: pb.SmsSendPrePayRequest, context: Any) -> pb.SmsSendPrePayResponse:  # noqa: N802
        number, segments, brand_id = secrets.token_hex(16), request.segments, request.brand_id
        async with self._pool.connection() as connection:
            taken = await connection.execute(_TAKE, (segments, brand_id, segments))
            if not taken.rowcount:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no balance")
            await connection.execute(_FREEZE, (number, brand_id, segments, segments))
        reply = pb.SmsSendPrePayResponse(order_no=number, segments=segments)
        reply.expires_at.seconds = 1_795_319_129
        return reply

    async def SmsSendPay(self, request: pb.SmsSendPayRequest, context: Any) -> pb.SmsSendPayResponse:  # noqa: N802
        number, segments = secrets.token_hex(16), request.segments
        async with self._pool.connection() as connection:
            settled = await connection.execute(_SETTLE, (segments, request.order_no, request.brand_id, segments))
            if not settled.rowcount:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing is frozen")
            await connection.execute(_PAY, (number, request.order_no, segments))
        return pb.SmsSendPayResponse(payment_no=number, segments=segments, open=0)


async def main() -> None:
    kind, address, token, *url = sys.argv[1:]
    principal = Principal(kind, expand([Role.ADMIN]), None)

    async def find(digest: bytes) -> Principal | None:
        return principal if digest == secret_hash(token) else None

    async with AsyncExitStack() as exits:
        if kind == "noop":
            service: rpc.CostCenterServicer = NoopService()  # type: ignore[abstract]
        else:
            pool = AsyncConnectionPool(url[0], min_size=CONNECTIONS, max_size=CONNECTIONS, open=False)
            await exits.enter_async_context(pool)
            async with pool.connection() as connection:
                for statement in _SCHEMA.split(";"):
                    await connection.execute(statement.encode())
            service = TransactionService(pool)  # type: ignore[abstract]

        server = GrpcServer(
            BaseSettings.load(),
            address,
            authenticator=Authenticator(find, keep_seconds=60),
            permissions=PERMISSIONS,
            domain="costcenter",
            services=[SERVICE],
            # The other methods are never called here.
            register=lambda server: rpc.add_CostCenterServicer_to_server(service, server),
        )
        await server.start()
        print(server.port, flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        await server.stop()


if __name__ == "__main__":
    uvloop.run(main())
