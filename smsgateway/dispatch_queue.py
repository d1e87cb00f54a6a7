"""Queueing what is recorded. Redis may be down: the record is the truth, and a sweeper queues what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from redis.exceptions import RedisError

from infra import tracing
from infra.crash_points import reach
from infra.database import TRANSIENT, Database
from infra.heartbeat import Heartbeat
from smsgateway.metrics import QUEUE_FAILURES
from smsgateway.queues import QueueItem, Queues, ReceiptItem
from smsgateway.settings import Settings
from smsgateway.store import accepting as store

log = structlog.get_logger(__name__)

_NOTES_PER_TRANSACTION = 1_000


class DispatchQueue:
    """Pushes dispatches and receipts to their queues, and notes with a delay where the dispatches are queued.

    The note spares the sweeper a second queueing. Most dispatches are sent and gone before it is written, and then
    cost nothing. The loop that writes them touches `heartbeat`.
    """

    def __init__(self, database: Database, queues: Queues, settings: Settings, heartbeat: Heartbeat) -> None:
        self._database = database
        self._queues = queues
        self._settings = settings
        self._heartbeat = heartbeat
        self._spans = tracing.active()
        self._entries: list[tuple[int, str, str]] = []
        self._noting: asyncio.Task[None] | None = None

    async def push(self, items: Sequence[QueueItem]) -> bool:
        """Queue dispatches; False when Redis did not take them, which is counted and logged, never raised."""
        if not items:
            return True
        entries: list[str] = []

        async def push() -> None:
            entries[:] = await self._queues.push(items)

        if not await self._attempt("dispatches", push):
            return False
        free = self._settings.stream_entries_max - len(self._entries)
        self._entries += [
            (item.brand_id, item.id, entry) for item, entry in zip(items[:free], entries[:free], strict=True)
        ]
        if self._noting is None and self._entries:
            self._noting = asyncio.create_task(self._note_later())
        return True

    async def push_receipts(self, items: Sequence[ReceiptItem]) -> bool:
        """Queue receipts; False when Redis did not take them, which is counted and logged, never raised."""
        return await self._attempt("receipts", lambda: self._queues.push_receipts(items))

    async def close(self) -> None:
        """Write the notes that wait."""
        if self._noting is not None:
            self._noting.cancel()
            await asyncio.gather(self._noting, return_exceptions=True)
            self._noting = None
        await self._note()

    async def _attempt(self, queue: str, push: Callable[[], Awaitable[None]]) -> bool:
        if self._spans is None:
            return await self._insist(queue, push)
        with self._spans.within(f"queue {queue}", kind=self._spans.PRODUCER, attributes={"messaging.system": "redis"}):
            return await self._insist(queue, push)

    async def _insist(self, queue: str, push: Callable[[], Awaitable[None]]) -> bool:
        for attempt in range(1, self._settings.queue_push_attempts + 1):
            try:
                await push()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("queue unreachable", queue=queue, attempt=attempt, error=type(error).__name__)
            else:
                return True
        QUEUE_FAILURES.labels(queue).inc()
        return False

    async def _note_later(self) -> None:
        while self._entries:
            self._heartbeat.touch()
            await asyncio.sleep(self._settings.stream_entry_seconds)
            await self._note()
        self._heartbeat.rest()
        self._noting = None

    async def _note(self) -> None:
        entries, self._entries = self._entries, []
        for start in range(0, len(entries), _NOTES_PER_TRANSACTION):
            reach("gateway.entry.noting")
            try:
                async with self._database.connection() as connection:
                    await store.note_stream_entries(connection, entries[start : start + _NOTES_PER_TRANSACTION])
            except TRANSIENT as error:
                log.warning("stream entries not noted", error=type(error).__name__)
                return
