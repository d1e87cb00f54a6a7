"""The real cost centre in this process for tests, with what an operator does: brands, segments, tokens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from costcenter.process import CostCenterProcess
from costcenter.settings import Settings
from infra.authorization import Role
from infra.grpc_server import bearer
from protos.costcenter.v1 import (
    cost_center_admin_pb2,
    cost_center_admin_pb2_grpc,
    cost_center_pb2,
    cost_center_pb2_grpc,
)

BOOTSTRAP_SECRET, SERVICE_SECRET = "bootstrap", "service"
SECONDS = 20


@dataclass
class Ledger:
    """A running cost centre and an admin's view of it."""

    process: CostCenterProcess
    ledger: cost_center_pb2_grpc.CostCenterAsyncStub
    admin: cost_center_admin_pb2_grpc.CostCenterAdminAsyncStub
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def target(self) -> str:
        """Where clients find it."""
        return f"127.0.0.1:{self.process.port}"

    async def create_brand(self, brand_id: int, segments: int = 0, **settings: Any) -> None:
        """A brand with segments that every type may use and that never expire."""
        request = cost_center_admin_pb2.PutBrandRequest(brand_id=brand_id, name=f"brand {brand_id}", **settings)
        await self.admin.PutBrand(request, metadata=_ADMIN, timeout=SECONDS)
        if segments:
            await self.grant(brand_id, segments)

    async def grant(self, brand_id: int, segments: int) -> None:
        """More segments."""
        request = cost_center_admin_pb2.AdjustPackageRequest(
            brand_id=brand_id,
            request_id=f"grant-{next(self._numbers)}",
            author="test",
            reason="test",
            grant=cost_center_admin_pb2.GrantAdjustment(segments=segments),
        )
        await self.admin.AdjustPackage(request, metadata=_ADMIN, timeout=SECONDS)

    async def create_token(self, roles: Iterable[Role], brand_ids: Iterable[int] | None = None) -> str:
        """A token's secret; without brands it holds for all."""
        request = cost_center_admin_pb2.CreateTokenRequest(
            name="test",
            roles=[cost_center_admin_pb2.Role.ValueType(role) for role in roles],
            all_brands=brand_ids is None,
            brand_ids=brand_ids or (),
        )
        reply = await self.admin.CreateToken(request, metadata=_ADMIN, timeout=SECONDS)
        return reply.secret

    async def balance(self, brand_id: int) -> tuple[int, int]:
        """Total and frozen segments of a brand."""
        request = cost_center_pb2.GetBalanceRequest(brand_id=brand_id)
        reply = await self.ledger.GetBalance(request, metadata=_ADMIN, timeout=SECONDS)
        return reply.total, reply.frozen

    async def freeze(self, order_no: str) -> cost_center_pb2.Freeze:
        """A freeze by its number."""
        request = cost_center_pb2.GetFreezeRequest(order_no=order_no)
        return (await self.ledger.GetFreeze(request, metadata=_ADMIN, timeout=SECONDS)).freeze


@asynccontextmanager
async def running_ledger(database_server: str, **changes: Any) -> AsyncIterator[Ledger]:
    """A cost centre on free ports."""
    values: dict[str, Any] = {
        "_env_file": None,
        "database_url": database_server,
        "costcenter_address": "127.0.0.1:0",
        "costcenter_http_address": "127.0.0.1:0",
        "bootstrap_token": BOOTSTRAP_SECRET,
        "service_token": SERVICE_SECRET,
        "drain_seconds": 5,
        **changes,
    }
    process = CostCenterProcess(Settings(**values))
    await process.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{process.port}") as channel:
            yield Ledger(
                process,
                cost_center_pb2_grpc.CostCenterStub(channel),
                cost_center_admin_pb2_grpc.CostCenterAdminStub(channel),
            )
    finally:
        await asyncio.wait_for(process.stop(), SECONDS)


_ADMIN = bearer(BOOTSTRAP_SECRET)
