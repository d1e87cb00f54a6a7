"""The gRPC service LedgerFigures: what metrics tell of the ledger as a whole."""

from __future__ import annotations

from typing import Any

import grpc

from costcenter import store_figures
from costcenter.settings import Settings
from infra.authorization import Role, current_principal
from infra.database import Database
from infra.errors import invalid
from protos.costcenter.v1 import ledger_figures_pb2 as pb
from protos.costcenter.v1 import ledger_figures_pb2_grpc as rpc

SERVICE = "costcenter.v1.LedgerFigures"
PERMISSIONS = {f"/{SERVICE}/GetLedgerFigures": frozenset({Role.BILLER})}
BRANDS_MAX = 1_000

Context = grpc.aio.ServicerContext[Any, Any]


class LedgerFiguresService(rpc.LedgerFiguresServicer):
    """Handlers."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._offset = settings.clock_offset_seconds

    async def GetLedgerFigures(
        self, request: pb.GetLedgerFiguresRequest, context: Context
    ) -> pb.GetLedgerFiguresResponse:
        current_principal().require_all_brands()
        if not 0 <= request.brands_max <= BRANDS_MAX:
            raise invalid(brands_max=f"must be 0 to {BRANDS_MAX}")
        async with self._database.snapshot() as connection:
            totals = await store_figures.totals(connection)
            brands = await store_figures.top_brands(connection, request.brands_max) if request.brands_max else []
            releases, oldest, late = await store_figures.waiting(connection, self._offset)
        return pb.GetLedgerFiguresResponse(
            total=totals.total,
            frozen=totals.frozen,
            brands_active=totals.active,
            brands_suspended=totals.suspended,
            brands_closed=totals.closed,
            brands_drained=totals.drained,
            releases_waiting=releases,
            releases_oldest_seconds=oldest,
            due_late_seconds=late,
            brands=[
                pb.BrandFigures(brand_id=brand_id, total=total, frozen=frozen) for brand_id, total, frozen in brands
            ],
        )
