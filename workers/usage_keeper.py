"""Keeps usage figures up: folds what was counted, and counts the recipients of days."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog
from redis.exceptions import RedisError

from infra.database import Database
from smsgateway import usage
from smsgateway.queues import Queues
from smsgateway.store import usage as store
from smsgateway.store.usage import DueDay
from workers.metrics import SWEEPS, SWEPT
from workers.settings import Settings

log = structlog.get_logger(__name__)


class UsageKeeper:
    """Each method is one bounded turn; True asks for another at once. Any number of workers may do it side by side."""

    def __init__(self, database: Database, queues: Queues, worker: str, settings: Settings) -> None:
        self._database = database
        self._queues = queues
        self._worker = worker
        self._settings = settings
        self._rests_until = 0.0

    async def fold(self) -> bool:
        """Fold what messages did since into the hours that they belong to."""
        settings = self._settings
        if not await self._on_duty("usage"):
            return False
        more = True
        for _ in range(settings.sweep_pages_max):
            async with self._database.connection() as connection:
                count = await store.fold(
                    connection,
                    zone=settings.usage_time_zone,
                    limit=settings.usage_fold_page,
                    count_wait_seconds=min(settings.usage_count_seconds, settings.usage_fold_seconds),
                )
            SWEEPS.labels("usage", "found" if count else "nothing").inc()
            SWEPT.labels("usage").inc(count)
            more = count >= settings.usage_fold_page
            if not more:
                break
        return more

    async def count(self) -> bool:
        """Count the recipients of days to which messages came, and rest so long that it takes its share of time."""
        settings = self._settings
        if time.monotonic() < self._rests_until or not await self._on_duty("usage_recipients"):
            return False
        async with self._database.connection() as connection:
            days = await store.take_days(
                connection, hold_seconds=settings.usage_count_hold_seconds, limit=settings.usage_count_days
            )
        if days:
            await self._count(days)
        SWEEPS.labels("usage_recipients", "found" if days else "nothing").inc()
        SWEPT.labels("usage_recipients").inc(len(days))
        return False

    async def _count(self, days: Sequence[DueDay]) -> None:
        started = time.monotonic()
        zone = self._settings.usage_time_zone
        async with self._database.connection() as connection:
            recipients = await store.count_days(connection, [(day, usage.day_of(day.day, zone)[1]) for day in days])
        rest = (time.monotonic() - started) / self._settings.usage_count_share
        async with self._database.connection() as connection:
            await store.keep_days(
                connection, days, recipients, wait_seconds=max(self._settings.usage_count_seconds, rest)
            )
        self._rests_until = time.monotonic() + rest

    async def _on_duty(self, duty: str) -> bool:
        """Whether this worker does it now. Without Redis everyone does: a duty only spares work."""
        try:
            ttl_ms = max(1, int(self._settings.usage_fold_seconds * 900))
            return await self._queues.take_duty(duty, self._worker, ttl_ms=ttl_ms)
        except (RedisError, OSError, TimeoutError):
            return True
