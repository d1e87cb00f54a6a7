"""What metrics tell of the whole and not of this process: asked of the database and the cost centre by one worker at a
time, now and then, so that neither the number of processes nor that of scrapes makes it dearer.
"""

from __future__ import annotations

from typing import Protocol

from redis.exceptions import RedisError

from infra.database import Database
from protos.costcenter.v1 import ledger_figures_pb2
from smsgateway.queues import Queues
from smsgateway.store import figures as store
from workers.metrics import (
    BACKLOG,
    BACKLOG_OLDEST_SECONDS,
    BRAND_SEGMENTS,
    LEDGER_BALANCE,
    LEDGER_BRANDS,
)
from workers.settings import Settings

_ALL = (BACKLOG, BACKLOG_OLDEST_SECONDS, BRAND_SEGMENTS, LEDGER_BALANCE, LEDGER_BRANDS)


class FiguresLedger(Protocol):
    """What of the cost centre figures need (`smsgateway.ledger_client.LedgerClient`)."""

    async def figures(self, *, brands_max: int) -> ledger_figures_pb2.GetLedgerFiguresResponse: ...


class Figures:
    """Sets the gauges that need a query. A worker that is not on duty tells none of them: absent is not zero."""

    def __init__(
        self, database: Database, queues: Queues, ledger: FiguresLedger, worker: str, settings: Settings
    ) -> None:
        self._database = database
        self._queues = queues
        self._ledger = ledger
        self._worker = worker
        self._seconds = settings.figures_seconds
        self._brands_max = settings.metrics_brands

    async def step(self) -> None:
        """One round. Raises the database's and the cost centre's errors; then what was told before is forgotten."""
        on_duty = False
        try:
            on_duty = await self._on_duty()
            if on_duty:
                async with self._database.connection() as connection:
                    backlogs = await store.backlogs(connection)
                ledger = await self._ledger.figures(brands_max=self._brands_max)
        except BaseException:
            _forget()
            raise
        if not on_duty:
            # Who was on duty before must not go on to tell what it saw then.
            _forget()
            return
        for backlog in backlogs:
            BACKLOG.labels(backlog.what).set(backlog.items)
            BACKLOG_OLDEST_SECONDS.labels(backlog.what).set(backlog.oldest_seconds)
        _tell(ledger)

    async def _on_duty(self) -> bool:
        try:
            # A bit less than the time between two rounds, so that who had it may have it again.
            return await self._queues.take_duty("figures", self._worker, ttl_ms=max(1, int(self._seconds * 900)))
        except (RedisError, OSError, TimeoutError):
            return True


def _tell(ledger: ledger_figures_pb2.GetLedgerFiguresResponse) -> None:
    LEDGER_BALANCE.labels("available").set(ledger.total - ledger.frozen)
    LEDGER_BALANCE.labels("frozen").set(ledger.frozen)
    for status, brands in (
        ("active", ledger.brands_active),
        ("suspended", ledger.brands_suspended),
        ("closed", ledger.brands_closed),
        ("drained", ledger.brands_drained),
    ):
        LEDGER_BRANDS.labels(status).set(brands)
    BACKLOG.labels("releases").set(ledger.releases_waiting)
    BACKLOG_OLDEST_SECONDS.labels("releases").set(ledger.releases_oldest_seconds)
    BACKLOG_OLDEST_SECONDS.labels("due").set(ledger.due_late_seconds)
    # Others may be the busiest now.
    BRAND_SEGMENTS.clear()
    for brand in ledger.brands:
        BRAND_SEGMENTS.labels(str(brand.brand_id), "available").set(brand.total - brand.frozen)
        BRAND_SEGMENTS.labels(str(brand.brand_id), "frozen").set(brand.frozen)


def _forget() -> None:
    for gauge in _ALL:
        gauge.clear()
