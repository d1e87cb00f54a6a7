"""Drives what the cost centre does on request: applying releases, booking what is due, cleaning up."""

from __future__ import annotations

from typing import Protocol

import structlog

from infra.crash_points import reach
from protos.costcenter.v1 import cost_center_jobs_pb2
from workers.metrics import REFUNDED, SWEEPS, SWEPT

log = structlog.get_logger(__name__)


class JobsLedger(Protocol):
    """What of the cost centre its jobs need (`smsgateway.ledger_client.LedgerClient`)."""

    async def apply_releases(
        self, *, limit: int = 0, wait_seconds: float = 0
    ) -> cost_center_jobs_pb2.ApplyReleasesResponse: ...

    async def book_due(self, *, brand_limit: int = 0) -> cost_center_jobs_pb2.BookDueResponse: ...

    async def clean_up(self, *, limit: int = 0) -> cost_center_jobs_pb2.CleanUpResponse: ...


class ReleaseConsumer:
    """Calls the cost centre's jobs. Each does a bounded piece of work and may be called by any number of workers."""

    def __init__(self, ledger: JobsLedger, *, wait_seconds: float, limit: int) -> None:
        self._ledger = ledger
        self._wait_seconds = wait_seconds
        self._limit = limit

    async def apply_releases(self) -> bool:
        """Apply releases that are due, waiting for one a while; True to go on at once."""
        reply = await self._ledger.apply_releases(wait_seconds=self._wait_seconds)
        if reply.applied:
            reach("worker.release.applied")
        REFUNDED.labels("release").inc(reply.segments)
        if reply.put_back:
            log.warning("releases put back", put_back=reply.put_back)
        # A reply without a wait and without work would make this a busy loop.
        return bool(reply.applied) or self._wait_seconds > 0

    async def book_due(self) -> bool:
        """Book expired packages and ended freezes that nobody touched; True when more is due."""
        reply = await self._ledger.book_due()
        SWEEPS.labels("book_due", "done").inc()
        SWEPT.labels("book_due").inc(reply.packages_expired + reply.freezes_ended)
        if reply.brands:
            log.info("due booked", brands=reply.brands, packages=reply.packages_expired, freezes=reply.freezes_ended)
        return reply.more

    async def clean_up(self) -> None:
        """Cancel orders that nobody paid, delete idempotency keys past their time."""
        reply = await self._ledger.clean_up(limit=self._limit)
        SWEEPS.labels("ledger_clean_up", "done").inc()
        SWEPT.labels("ledger_clean_up").inc(reply.orders_cancelled + reply.keys_deleted)
