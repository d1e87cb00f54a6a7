"""Servers with the ledger's messages and interceptor that unary calls are measured against.

Run as `python -m bench.yardsticks noop <address> <token>`, which does nothing, or `… transaction <address> <token>
<database URL>`, which books each call in a transaction of its own under the brand's row lock, one statement after
another, as a plain service would. It keeps the same records (repeated calls, balance and its history, package, freeze,
payment, journal) and knows no rule beside the balance. Both print their port.
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
create table yardstick.request (brand_id bigint, request_id text, reply bytea not null,
    primary key (brand_id, request_id));
create table yardstick.balance (brand_id bigint primary key, total bigint not null, frozen bigint not null,
    check (frozen between 0 and total)) with (fillfactor = 50);
create table yardstick.history (brand_id bigint, at timestamptz default clock_timestamp(), total bigint, frozen bigint,
    primary key (brand_id, at));
create table yardstick.package (brand_id bigint primary key, remaining bigint not null check (remaining >= 0))
    with (fillfactor = 50);
create table yardstick.freeze (brand_id bigint, order_no text, segments bigint not null,
    open bigint not null check (open >= 0), created_at timestamptz not null default clock_timestamp(),
    primary key (brand_id, order_no));
create table yardstick.payment (brand_id bigint, payment_no text, order_no text not null, segments bigint not null,
    created_at timestamptz not null default clock_timestamp(), primary key (brand_id, payment_no));
create table yardstick.entry (brand_id bigint, at timestamptz default clock_timestamp(), kind smallint not null,
    segments bigint not null, reference text not null, primary key (brand_id, reference, kind));
insert into yardstick.balance select i, {SEGMENTS}, 0 from generate_series(1, {BRANDS}) i;
insert into yardstick.package select i, {SEGMENTS} from generate_series(1, {BRANDS}) i
"""
_KEY = "select reply from yardstick.request where brand_id = %s and request_id = %s"
_LOCK = "select total - frozen from yardstick.balance where brand_id = %s for update"
_BALANCE = (
    "update yardstick.balance set total = total - %s, frozen = frozen + %s where brand_id = %s returning total, frozen"
)
_HISTORY = "insert into yardstick.history (brand_id, total, frozen) values (%s, %s, %s)"
_PACKAGE = "update yardstick.package set remaining = remaining - %s where brand_id = %s"
_FREEZE = "insert into yardstick.freeze (brand_id, order_no, segments, open) values (%s, %s, %s, %s)"
_SETTLE = "update yardstick.freeze set open = open - %s where brand_id = %s and order_no = %s and open >= %s"
_PAY = "insert into yardstick.payment (brand_id, payment_no, order_no, segments) values (%s, %s, %s, %s)"
_ENTRY = "insert into yardstick.entry (brand_id, kind, segments, reference) values (%s, %s, %s, %s)"
_REMEMBER = "insert into yardstick.request (brand_id, request_id, reply) values (%s, %s, %s)"


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
            found = await (await connection.execute(_KEY, (brand_id, request.request_id))).fetchone()
            if found:
                return pb.SmsSendPrePayResponse.FromString(found[0])
            free = await (await connection.execute(_LOCK, (brand_id,))).fetchone()
            if free is None or free[0] < segments:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no balance")
            await connection.execute(_PACKAGE, (segments, brand_id))
            await connection.execute(_FREEZE, (brand_id, number, segments, segments))
            reply = pb.SmsSendPrePayResponse(order_no=number, segments=segments)
            reply.expires_at.seconds = 1_795_319_129
            await self._book(connection, request, 0, segments, 1, number, reply)
        return reply

    async def SmsSendPay(self, request: pb.SmsSendPayRequest, context: Any) -> pb.SmsSendPayResponse:  # noqa: N802
        number, segments, brand_id = secrets.token_hex(16), request.segments, request.brand_id
        key = f"{request.request_id}-pay"
        async with self._pool.connection() as connection:
            found = await (await connection.execute(_KEY, (brand_id, key))).fetchone()
            if found:
                return pb.SmsSendPayResponse.FromString(found[0])
            await connection.execute(_LOCK, (brand_id,))
            settled = await connection.execute(_SETTLE, (segments, brand_id, request.order_no, segments))
            if not settled.rowcount:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nothing is frozen")
            await connection.execute(_PAY, (brand_id, number, request.order_no, segments))
            reply = pb.SmsSendPayResponse(payment_no=number, segments=segments, open=0)
            await self._book(connection, request, segments, -segments, 2, number, reply, key)
        return reply

    @staticmethod
    async def _book(
        connection: Any, request: Any, paid: int, frozen: int, kind: int, number: str, reply: Any, key: str = ""
    ) -> None:
        """What every call leaves: the balance and its history, the journal, and the reply for a repeated call."""
        brand_id = request.brand_id
        row = await (await connection.execute(_BALANCE, (paid, frozen, brand_id))).fetchone()
        await connection.execute(_HISTORY, (brand_id, *row))
        await connection.execute(_ENTRY, (brand_id, kind, request.segments, number))
        await connection.execute(_REMEMBER, (brand_id, key or request.request_id, reply.SerializeToString()))


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
