"""A cost centre in this process for tests, called over a real channel, with a look into its tables."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import psycopg
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from costcenter.process import CostCenterProcess
from costcenter.settings import Settings
from infra.errors import Refusal
from infra.grpc_server import bearer, open_channel
from infra.grpc_status import from_error
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

ADMIN = "admin-secret"
SECONDS = 30
MARKETING, NOTIFICATION, VERIFICATION = 3, 2, 1
# Longer than the tests take, so that nothing ends under their hands.
LATER = timedelta(days=2)

_SERVICES = {
    "CostCenter": (cost_center_pb2, cost_center_pb2_grpc.CostCenterStub),
    "CostCenterAdmin": (cost_center_admin_pb2, cost_center_admin_pb2_grpc.CostCenterAdminStub),
    "CostCenterJobs": (cost_center_jobs_pb2, cost_center_jobs_pb2_grpc.CostCenterJobsStub),
    "LedgerFigures": (ledger_figures_pb2, ledger_figures_pb2_grpc.LedgerFiguresStub),
}
METHODS = {
    method.name: (service, method)
    for service, (module, _) in _SERVICES.items()
    for method in module.DESCRIPTOR.services_by_name[service].methods
}
_MODULES = (cost_center_pb2, cost_center_admin_pb2, cost_center_jobs_pb2, ledger_figures_pb2)
_numbers = itertools.count(1)


def request_of(method: str, **fields: Any) -> Any:
    """The request of a method."""
    name = METHODS[method][1].input_type.name
    module = next(module for module in _MODULES if hasattr(module, name))
    return getattr(module, name)(**fields)


def number() -> int:
    """A number that no other test of this session gets, for brands and names."""
    return next(_numbers)


def request_id() -> str:
    """A request_id of its own."""
    return f"request-{next(_numbers)}"


def moment(timestamp: Timestamp) -> datetime:
    """A timestamp of the wire."""
    return timestamp.ToDatetime(tzinfo=UTC)


def timestamp(at: datetime) -> Timestamp:
    """A moment for the wire."""
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


@dataclass
class CostCenter:
    """A running cost centre and a caller's view of it."""

    process: CostCenterProcess
    settings: Settings
    channel: grpc.aio.Channel

    def send(self, method: str, request: Message, *, token: str | None = ADMIN, timeout: float = SECONDS) -> Any:
        """Call a method with a request; the awaitable call."""
        service = METHODS[method][0]
        stub = _SERVICES[service][1](self.channel)
        return getattr(stub, method)(request, metadata=() if token is None else bearer(token), timeout=timeout)

    def call(self, method: str, *, token: str | None = ADMIN, timeout: float = SECONDS, **fields: Any) -> Any:
        """Call a method with the fields of its request; the awaitable call."""
        return self.send(method, request_of(method, **fields), token=token, timeout=timeout)

    async def refused(self, method: str, **fields: Any) -> Refusal:
        """The refusal that a call ends with."""
        return await refusal(self.call(method, **fields))

    # What tests begin with.

    async def brand(self, segments: int = 0, **fields: Any) -> int:
        """A new brand with a package that never ends."""
        brand_id = number()
        await self.call("PutBrand", brand_id=brand_id, **{"name": f"Brand {brand_id}", **fields})
        if segments:
            await self.grant(brand_id, segments)
        return brand_id

    async def grant(
        self, brand_id: int, segments: int, expires_at: datetime | None = None, sms_types: Sequence[int] = ()
    ) -> int:
        """A package granted; its number."""
        grant: dict[str, Any] = {"segments": segments, "sms_types": sms_types}
        if expires_at is not None:
            grant["expires_at"] = timestamp(expires_at)
        reply = await self.call(
            "AdjustPackage",
            brand_id=brand_id,
            request_id=request_id(),
            author="auditor",
            reason="a test",
            grant=cost_center_admin_pb2.GrantAdjustment(**grant),
        )
        package_id: int = reply.package.package_id
        return package_id

    async def freeze(self, brand_id: int, segments: int, **fields: Any) -> Any:
        """SmsSendPrePay for marketing but for `fields`."""
        values = {"request_id": request_id(), "sms_type": MARKETING, **fields}
        return await self.call("SmsSendPrePay", brand_id=brand_id, segments=segments, **values)

    async def pay(self, brand_id: int, order_no: str, segments: int, **fields: Any) -> Any:
        """SmsSendPay."""
        values = {"request_id": request_id(), **fields}
        return await self.call("SmsSendPay", brand_id=brand_id, order_no=order_no, segments=segments, **values)

    async def charge(self, brand_id: int, segments: int) -> str:
        """A freeze paid whole; the payment's number."""
        order_no = (await self.freeze(brand_id, segments)).order_no
        payment_no: str = (await self.pay(brand_id, order_no, segments)).payment_no
        return payment_no

    async def offer(self, **fields: Any) -> str:
        """An offer of 1,000 segments for 45.00 CNY but for `fields`; its id."""
        values = {
            "offer_id": f"offer-{number()}",
            "name": "Offer",
            "segments": 1_000,
            "price": "45.00",
            "currency": "CNY",
            "active": True,
            **fields,
        }
        reply = await self.call("PutPackageOffer", offer=cost_center_admin_pb2.PackageOffer(**values))
        offer_id: str = reply.offer.offer_id
        return offer_id

    async def token(self, roles: Sequence[int], brand_ids: Sequence[int] = (), **fields: Any) -> str:
        """The secret of a new token; no brands: all."""
        values = {"name": "a test's", "roles": roles, "brand_ids": brand_ids, "all_brands": not brand_ids, **fields}
        secret: str = (await self.call("CreateToken", **values)).secret
        return secret

    async def figures(self, brand_id: int, **fields: Any) -> tuple[int, int, int]:
        """(total, frozen, available)."""
        reply = await self.call("GetBalance", brand_id=brand_id, **fields)
        return reply.total, reply.frozen, reply.available

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the ledger's schema; changes are committed."""
        return await rows(self.settings.database_url, query, *parameters)


async def rows(url: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Rows of the ledger's schema; changes are committed."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("set search_path to costcenter")
        cursor = await connection.execute(query.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []


async def refusal(call: Awaitable[Any]) -> Refusal:
    """The refusal that a call ends with."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return from_error(error)
    raise AssertionError(f"not refused: {reply}")


@asynccontextmanager
async def running_cost_center(database_url: str, **changes: Any) -> AsyncIterator[CostCenter]:
    """A cost centre on a free port."""
    settings = cost_center_settings(database_url, **changes)
    process = CostCenterProcess(settings)
    await process.start()
    try:
        async with open_channel(settings, f"127.0.0.1:{process.port}") as channel:
            yield CostCenter(process, settings, channel)
    finally:
        await asyncio.wait_for(process.stop(), SECONDS)


def cost_center_settings(database_url: str, **changes: Any) -> Settings:
    """Settings on free ports, with short waits."""
    values: dict[str, Any] = {
        "_env_file": None,
        "database_url": database_url,
        "costcenter_address": "127.0.0.1:0",
        "bootstrap_token": ADMIN,
        "token_cache_seconds": 0,
        "database_wait_seconds": 2,
        "drain_seconds": 5,
        **changes,
    }
    return Settings(**values)


@asynccontextmanager
async def locked_lanes(database_url: str) -> AsyncIterator[None]:
    """Hold every lane's lock, so that no transaction of the ledger can begin."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("select lane_id from costcenter.lane order by lane_id for update")
        yield
        await connection.rollback()


async def until(condition: Any, seconds: float = SECONDS) -> Any:
    """Ask until the answer is true; bounded, for what another process or the server does."""
    async with asyncio.timeout(seconds):
        while True:
            if answer := await condition():
                return answer
            await asyncio.sleep(0.01)


async def waiting_for_a_lane(database_url: str) -> int:
    """How many transactions of the ledger wait for a lane's lock."""
    ((count,),) = await rows(
        database_url,
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        " and application_name = 'smsbill-ledger'",
    )
    waiting: int = count
    return waiting


async def outcomes_of(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """Replies and refusals of calls made at once, in their order."""

    async def outcome(call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            return from_error(error)

    return await asyncio.gather(*(outcome(call) for call in calls))
