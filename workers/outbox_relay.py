"""Brings what is owed to the cost centre: from memory right after the transaction that owes it, from the outbox when
that did not work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

import structlog

from infra.crash_points import reach
from infra.database import Database
from infra.errors import Refusal
from smsgateway import outbox_calls
from smsgateway.ledger_client import is_outage
from smsgateway.outbox_calls import StatusLedger
from smsgateway.schema import OutboxKind
from smsgateway.store import outbox
from smsgateway.store.counting import record_refunds
from smsgateway.store.outbox import OutboxRow, PutOff
from workers.backoff import delay_seconds
from workers.metrics import PARKED, REFUNDED, RETRIES, STAGE_SECONDS, STAGE_SIZE
from workers.settings import Settings

log = structlog.get_logger(__name__)

_NAMES = {OutboxKind.SEND_STATUS: "send_status", OutboxKind.RECEIPT: "receipt", OutboxKind.RELEASE: "release"}
_DELAY_BASE_SECONDS = 1.0
_DELAY_MAX_SECONDS = 3_600.0


class OutboxRelay:
    """Sends what is owed, in groups. The outbox row goes only after the answer, so everything is sent at least once;
    its id is the call's request_id, so it counts once.
    """

    def __init__(self, database: Database, ledger: StatusLedger, settings: Settings) -> None:
        self._database = database
        self._ledger = ledger
        self._settings = settings
        self._waiting: deque[OutboxRow] = deque()
        self._started_at = -settings.outbox_gather_seconds
        self.wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Rows in memory."""
        return len(self._waiting)

    def offer(self, rows: Sequence[OutboxRow]) -> None:
        """Send rows soon that their transaction has just written. What does not fit is read from the outbox later."""
        if rows and len(self._waiting) + len(rows) <= self._settings.outbox_waiting_max:
            self._waiting.extend(rows)
            self.wake.set()

    async def send_offered(self) -> bool:
        """Send a group of what was offered; True when more waits.

        Two groups start `outbox_gather_seconds` apart at least, unless one is full: nobody waits for a status, and a
        few large calls cost both sides less than many small ones.
        """
        left = self._started_at + self._settings.outbox_gather_seconds - time.monotonic()
        if left > 0 and len(self._waiting) < self._settings.outbox_group_max:
            await asyncio.sleep(left)
        self._started_at = time.monotonic()
        rows = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._settings.outbox_group_max))]
        if rows:
            # When it fails the rows are lost here and due in the outbox after their hold.
            await self._send(rows)
        return bool(self._waiting)

    async def send_due(self) -> bool:
        """Send a group of what is due in the outbox; True when there may be more."""
        limit = self._settings.outbox_group_max
        async with self._database.connection() as connection:
            rows = await outbox.take_due(connection, hold_seconds=self._settings.outbox_hold_seconds, limit=limit)
        if rows:
            await self._send(rows)
        return len(rows) == limit

    async def count_parked(self) -> None:
        """Tell how much is parked."""
        async with self._database.connection() as connection:
            PARKED.labels("outbox").set(await outbox.count_parked(connection))

    async def _send(self, rows: Sequence[OutboxRow]) -> None:
        started = time.perf_counter()
        done: list[tuple[int, str]] = []
        refunds: list[tuple[int, str, int]] = []
        put_off: list[PutOff] = []
        unsettled = 0
        reach("worker.outbox.calling")
        for kind in OutboxKind:
            some = [row for row in rows if row.kind is kind]
            if not some:
                continue
            for row, outcome in zip(some, await outbox_calls.call(self._ledger, kind, some), strict=True):
                if isinstance(outcome, Refusal) and is_outage(outcome):
                    # Due again after its hold; an outage is nobody's failure and parks nothing.
                    unsettled += 1
                elif isinstance(outcome, Exception):
                    put_off.append(self._put_off(row, outcome))
                else:
                    done.append((row.brand_id, row.outbox_id))
                    REFUNDED.labels(_NAMES[kind]).inc(getattr(outcome, "refunded", 0))
                    refunds += outbox_calls.refunds_of(row, outcome)
        reach("worker.outbox.called")
        if done and refunds:
            async with self._database.connection() as connection:
                await outbox.delete(connection, done)
                await record_refunds(connection, refunds)
        elif done:
            async with self._database.statement() as connection:
                await outbox.delete(connection, done)
        if done:
            reach("worker.outbox.removed")
        if put_off:
            async with self._database.connection() as connection:
                await outbox.put_off(connection, put_off)
        STAGE_SECONDS.labels("outbox").observe(time.perf_counter() - started)
        STAGE_SIZE.labels("outbox").observe(len(rows))
        if unsettled:
            RETRIES.labels("outbox").inc(unsettled)
            log.warning("cost centre away, statuses stay in the outbox", rows=unsettled)

    def _put_off(self, row: OutboxRow, error: Exception) -> PutOff:
        failures = row.attempts + 1
        parked = failures >= self._settings.outbox_tries_max
        delay = delay_seconds(failures, base=_DELAY_BASE_SECONDS, longest=_DELAY_MAX_SECONDS)
        reason = f"{error.reason}: {error.message}" if isinstance(error, Refusal) else repr(error)
        RETRIES.labels("outbox").inc()
        write = log.error if parked else log.warning
        write(
            "cost centre refused what it is owed" + (", parked" if parked else ""),
            kind=_NAMES[row.kind],
            brand_id=row.brand_id,
            outbox_id=row.outbox_id,
            failures=failures,
            error=reason,
        )
        return PutOff(row.brand_id, row.outbox_id, 1, None if parked else delay, reason)
