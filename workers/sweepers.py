"""Looking for what made no progress. Every change is conditional; duties only spare several workers the same look."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog
from redis.exceptions import RedisError

from infra.crash_points import reach
from infra.database import Database
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.abandoned import AbandonedCalls
from smsgateway.queues import Queue, QueueItem, Queues
from smsgateway.schema import DispatchState, Mode, OutboxKind
from smsgateway.store import outbox, parked, pulling, replies, rule_checks
from smsgateway.store import sweeping as store
from smsgateway.store.outbox import OutboxRow
from smsgateway.store.sending import FailedMessage
from smsgateway.store.sweeping import Cursor, ExpiredMessage, Stalled, Undecided
from workers.metrics import (
    CARRIER_REFUNDED,
    MODE_NAMES,
    PARKED,
    QUEUE_DEPTH,
    QUEUE_OLDEST_SECONDS,
    RESULTS,
    SWEEPS,
    SWEPT,
    TYPE_NAMES,
)
from workers.outbox_relay import OutboxRelay
from workers.outcomes import OUTCOMES
from workers.receipt_consumer import ReceiptConsumer
from workers.settings import Settings
from workers.settlement import Settlement

log = structlog.get_logger(__name__)

NO_OUTCOME = "OUTCOME_UNKNOWN"
PART_FAILED = "PART_FAILED"
NO_RECEIPT = "NO_RECEIPT"


class Sweepers:
    """The sweepers of the gateway's records. Each method is one bounded turn; True asks for another at once.

    Parameters: `call_seconds` tells the longest time that a carrier call may take now; `pulled` the accounts whose
    receipts the workers pull.
    """

    def __init__(
        self,
        *,
        database: Database,
        queues: Queues,
        settlement: Settlement,
        relay: OutboxRelay,
        receipts: ReceiptConsumer,
        abandoned: AbandonedCalls,
        worker: str,
        call_seconds: Callable[[], float],
        pulled: Callable[[], Collection[str]],
        settings: Settings,
    ) -> None:
        self._database = database
        self._queues = queues
        self._settlement = settlement
        self._relay = relay
        self._receipts = receipts
        self._abandoned = abandoned
        self._worker = worker
        self._pulled = pulled
        self._settings = settings
        self._call_seconds = call_seconds
        self._cursors: dict[DispatchState, Cursor | None] = {}
        self._rebuilding_until = 0.0

    # Calls without an answer.

    async def overdue(self) -> bool:
        """Calls that must have ended long ago have an unknown outcome: their worker is dead or cut off."""
        return await self._swept("overdue", self._overdue)

    async def _overdue(self) -> int:
        settings = self._settings
        seconds = settings.submit_start_seconds + self._call_seconds() + settings.submit_margin_seconds
        async with self._database.connection() as connection:
            rows = await store.set_overdue_unknown(connection, older_than_seconds=seconds, limit=settings.sweep_page)
        if rows:
            reach("worker.sweep.overdue")
        for row in rows:
            RESULTS.labels(TYPE_NAMES[row.sms_type], "unknown").inc(row.messages)
            log.warning("call without an answer", dispatch_id=row.dispatch_id, request_id=row.request_id)
        return len(rows)

    async def undecided(self) -> bool:
        """What nobody has decided for so long: unknown outcomes have failed, of partial ones as many as were told.

        Where receipts are pulled, the carrier is asked once more before (`smsgateway.store.sweeping.take_undecided`).
        """
        return await self._swept("undecided", self._undecided)

    async def _undecided(self) -> int:
        count = 0
        settings = self._settings
        wait_seconds = settings.receipt_pull_wait_hours * 3_600 if settings.receipt_pull else 0.0
        for state, fail, code, detail in (
            (DispatchState.UNKNOWN, store.fail_undecided, NO_OUTCOME, "nobody told whether the carrier took it"),
            (DispatchState.PARTIAL, store.fail_without_receipt, PART_FAILED, "the carrier failed a part of its call"),
        ):
            async with self._database.connection() as connection:
                # What was pulled and nobody has looked at yet may decide them.
                unread = wait_seconds > 0 and await pulling.has_unread(connection)
                items = await store.take_undecided(
                    connection,
                    state,
                    older_than_seconds=self._outcome_seconds + (wait_seconds if unread else 0.0),
                    pull_wait_seconds=0.0 if unread else wait_seconds,
                    pulled=self._pulled(),
                    limit=settings.sweep_page,
                )
                failed = await fail(connection, items, code=code, detail=detail) if items else []
                payments: dict[tuple[int, str], str | None] = {
                    (item.brand_id, item.dispatch_id): item.payment_no for item in items
                }
                rows = await self._settlement.owe_back(connection, payments, failed)
            if rows:
                reach("worker.sweep.undecided")
            self._relay.offer(rows)
            self._count_failed(items, failed, code)
            count += len(items)
        return count

    def _count_failed(self, items: Sequence[Undecided], failed: Sequence[FailedMessage], code: str) -> None:
        if not items:
            return
        log.warning("undecided dispatches ended", dispatches=len(items), messages_failed=len(failed), code=code)
        undecided = {(item.brand_id, item.dispatch_id): item for item in items}
        for message in failed:
            item = undecided[message.brand_id, message.dispatch_id]
            RESULTS.labels(TYPE_NAMES[item.sms_type], "failed").inc()
            OUTCOMES.note(message.brand_id, item.sms_type, final=1, failed=1)
            CARRIER_REFUNDED.labels(item.account, "undecided").inc(message.segments)

    async def expire(self) -> bool:
        """Messages whose receipt did not come in time."""
        return await self._swept("expire", self._expire)

    async def _expire(self) -> int:
        async with self._database.connection() as connection:
            messages = await store.expire_messages(
                connection,
                older_than_seconds=self._outcome_seconds,
                limit=self._settings.sweep_page,
                code=NO_RECEIPT,
                detail="no final receipt came in time",
            )
            rows = [self._expiry(message) for message in messages]
            await outbox.insert(connection, rows, hold_seconds=self._settings.outbox_hold_seconds)
        if rows:
            reach("worker.sweep.expired")
        self._relay.offer(rows)
        for message in messages:
            RESULTS.labels(TYPE_NAMES[message.sms_type], "expired").inc()
            OUTCOMES.note(message.brand_id, message.sms_type, final=1, failed=1)
        return len(messages)

    def _expiry(self, message: ExpiredMessage) -> OutboxRow:
        outbox_id = self._settlement.new_id(message.brand_id)
        request = cost_center_pb2.SmsReceiptStatusCallBackRequest(
            brand_id=message.brand_id,
            request_id=outbox_id,
            payment_no=message.payment_no,
            message_id=message.message_id,
            segments=message.segments,
            state=cost_center_pb2.RECEIPT_STATE_EXPIRED,
            carrier_code=NO_RECEIPT,
        )
        return OutboxRow(message.brand_id, outbox_id, OutboxKind.RECEIPT, request.SerializeToString())

    # Queues that lack something.

    async def requeue(self) -> bool:
        """Queue again what should be queued and Redis does not have."""
        lost = not await self._queues.mark_alive()
        if lost:
            log.warning("Redis is new or has lost its data; queues are rebuilt from the records")
            self._rebuilding_until = time.monotonic() + self._settings.rebuild_seconds
        elif not await self._on_duty("requeue", self._settings.sweep_seconds):
            return False
        settings = self._settings
        rebuilding = time.monotonic() < self._rebuilding_until
        age = min(settings.stalled_after_loss_seconds, settings.stalled_seconds) if rebuilding else (
            settings.stalled_seconds
        )  # fmt: skip
        # What is freed becomes queued and is looked at right after.
        freed = await self._pages(DispatchState.CLAIMED, age, self._free)
        queued = await self._pages(DispatchState.QUEUED, age, self._push_missing)
        self._report("requeue", freed + queued)
        return False

    async def _pages(
        self, state: DispatchState, age: float, handle: Callable[[Sequence[Stalled]], Awaitable[int]]
    ) -> int:
        """Look at all pages of a state, or as many as a pass may; the next pass goes on there."""
        count = 0
        after = self._cursors.get(state)
        for _ in range(self._settings.sweep_pages_max):
            async with self._database.connection() as connection:
                items = await store.stalled(
                    connection, state, older_than_seconds=age, after=after, limit=self._settings.sweep_page
                )
            if items:
                count += await handle(items)
            if len(items) < self._settings.sweep_page:
                after = None
                break
            after = items[-1].cursor
        self._cursors[state] = after
        return count

    async def _free(self, items: Sequence[Stalled]) -> int:
        """Claims of leases that are over."""
        queues = [Queue(item.brand_id, item.sms_type, item.mode) for item in items]
        distinct = list(dict.fromkeys(queues))
        epochs = dict(zip(distinct, await self._queues.epochs(distinct), strict=True))
        stale = [item for item, queue in zip(items, queues, strict=True) if epochs[queue] != item.epoch]
        if not stale:
            return 0
        async with self._database.connection() as connection:
            freed = await store.free(connection, stale)
        if freed:
            reach("worker.sweep.freed")
            log.info("claims of gone workers freed", dispatches=len(freed))
        return len(freed)

    async def _push_missing(self, items: Sequence[Stalled]) -> int:
        asked = [(_queue_item(item), item.stream_entry) for item in items]
        present = await self._queues.present(asked)
        missing = [item for item, there in zip(items, present, strict=True) if not there]
        if not missing:
            return 0
        async with self._database.connection() as connection:
            taken = await store.take_stalled(connection, missing)
        return await self._push([_queue_item(item) for item in missing if (item.brand_id, item.dispatch_id) in taken])

    async def _push(self, items: Sequence[QueueItem]) -> int:
        if not items:
            return 0
        reach("worker.sweep.taken")
        entries = await self._queues.push(items)
        reach("worker.sweep.pushed")
        # Should this fail they are queued once more by the next pass, and sent once.
        async with self._database.connection() as connection:
            await store.set_entries(
                connection, [(item.brand_id, item.id, entry) for item, entry in zip(items, entries, strict=True)]
            )
        log.info("queued again", dispatches=len(items))
        return len(items)

    async def delayed(self) -> bool:
        """What was put back for a while that is over."""
        return await self._swept("delayed", self._delayed, seconds=min(1.0, self._settings.sweep_seconds))

    async def _delayed(self) -> int:
        async with self._database.connection() as connection:
            items = await store.delayed(connection, limit=self._settings.sweep_page)
        return await self._push([_queue_item(item) for item in items])

    async def receipts(self) -> bool:
        """Receipts that are due to be looked at again."""
        return await self._swept("receipts", lambda: self._receipts.requeue_due(self._settings.sweep_page))

    async def accepting(self) -> bool:
        """What a gateway left half accepted."""
        limit = self._settings.sweep_page
        messages = await self._swept("accepting_messages", lambda: self._abandoned.finish_messages(limit))
        batches = await self._swept("accepting_batches", lambda: self._abandoned.undo_batches(limit))
        return messages or batches

    # Old records.

    async def clean_up(self) -> bool:
        """Idempotency keys, routes and what numbers got, past their time."""
        return await self._swept("clean_up", self._clean_up)

    async def _clean_up(self) -> int:
        settings = self._settings
        async with self._database.connection() as connection:
            keys = await store.delete_keys(connection, days=settings.key_days, limit=settings.cleanup_limit)
        async with self._database.connection() as connection:
            routes = await store.delete_routes(connection, days=settings.route_days, limit=settings.cleanup_limit)
        async with self._database.connection() as connection:
            numbers = await rule_checks.delete_expired(connection, limit=settings.cleanup_limit)
        async with self._database.connection() as connection:
            references = await replies.delete_references(
                connection, days=settings.route_days, limit=settings.cleanup_limit
            )
        return keys + routes + numbers + references

    # What operators see.

    async def measure(self) -> None:
        """Depth and age of the queues by type and mode, and what is parked; one worker at a time tells them."""
        on_duty = await self._on_duty("measure", self._settings.depth_seconds)
        entries: defaultdict[tuple[int, int], int] = defaultdict(int)
        oldest: defaultdict[tuple[int, int], float] = defaultdict(float)
        if on_duty:
            queues = await self._queues.walk(limit=self._settings.walk_limit)
            for depth in await self._queues.depths(queues, now_ms=time.time_ns() // 1_000_000):
                key = (depth.queue.sms_type, depth.queue.mode)
                entries[key] += depth.entries
                oldest[key] = max(oldest[key], depth.oldest_seconds)
        if not on_duty:
            # Who was on duty before must not go on to tell what it saw then; and nothing told is no zero.
            for gauge in (QUEUE_DEPTH, QUEUE_OLDEST_SECONDS, PARKED):
                gauge.clear()
            return
        for sms_type, type_name in TYPE_NAMES.items():
            for mode, mode_name in MODE_NAMES.items():
                key = (sms_type, int(mode))
                QUEUE_DEPTH.labels(type_name, mode_name).set(entries[key])
                QUEUE_OLDEST_SECONDS.labels(type_name, mode_name).set(oldest[key])
        await self._relay.count_parked()
        await self._receipts.count_parked()
        async with self._database.connection() as connection:
            PARKED.labels("dispatches").set(await parked.count_dispatches(connection))
            PARKED.labels("webhooks").set(await parked.count_webhook_events(connection))

    async def _swept(self, sweeper: str, sweep: Callable[[], Awaitable[int]], seconds: float | None = None) -> bool:
        if not await self._on_duty(sweeper, self._settings.sweep_seconds if seconds is None else seconds):
            return False
        more = False
        # The duty lasts for some pages, so that a worker that has it gets through a crowd.
        for _ in range(self._settings.sweep_pages_max):
            count = await sweep()
            self._report(sweeper, count)
            more = count >= self._settings.sweep_page
            if not more:
                break
        return more

    async def _on_duty(self, sweeper: str, seconds: float) -> bool:
        """Whether this worker sweeps now. Without Redis everyone does: a duty only spares work."""
        try:
            # A bit less than the time between two turns, so that who had it may have it again.
            return await self._queues.take_duty(sweeper, self._worker, ttl_ms=max(1, int(seconds * 900)))
        except (RedisError, OSError, TimeoutError):
            return True

    def _report(self, sweeper: str, count: int) -> None:
        SWEEPS.labels(sweeper, "found" if count else "nothing").inc()
        SWEPT.labels(sweeper).inc(count)

    @property
    def _outcome_seconds(self) -> float:
        return self._settings.outcome_hours * 3_600


def _queue_item(item: Stalled) -> QueueItem:
    return QueueItem(item.brand_id, item.sms_type, Mode(item.mode), item.dispatch_id)
