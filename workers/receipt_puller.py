"""Pulling receipts that the carrier could not push: one worker at a time, each page stored before the next is asked.

The carrier deletes what it gives, so from its answer to our record the receipts exist in this process alone. Three
things keep that moment short and sure: the turn is taken in PostgreSQL right before the pull, so a database that cannot
be written to stops it; what could not be stored is kept and stored first; and a stop waits for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

import structlog

from infra.crash_points import reach
from infra.database import Database
from smsgateway.carriers.base import Carrier, CarrierError, CarrierReceipt, PulledReceipts, loggable
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.store import pulling as store
from workers.metrics import PULLED, PULLS
from workers.settings import Settings
from workers.stopping import StopSignal

log = structlog.get_logger(__name__)

# What a turn lasts beyond the call: the statements around it.
_TURN_MARGIN_SECONDS = 10.0
# Of the interval: a bit less, so that who had the turn may have it again.
_TURN_PART = 0.9


class ReceiptPuller:
    """Pulls the receipts of one account.

    Parameters: `carrier` the account, one that has receipts to pull; `worker` the name of this process.
    """

    def __init__(
        self,
        carrier: Carrier,
        database: Database,
        intake: ReceiptIntake,
        worker: str,
        stop: StopSignal,
        settings: Settings,
    ) -> None:
        assert carrier.limits.max_pull > 0, "a carrier with receipts to pull"
        self._carrier = carrier
        self._account = carrier.account_id
        self._database = database
        self._intake = intake
        self._worker = worker
        self._stop = stop
        self._count = min(settings.receipt_pull_count, carrier.limits.max_pull)
        self._pulls_max = settings.receipt_pulls_max
        self._turn_seconds = max(
            carrier.limits.call_timeout_s + _TURN_MARGIN_SECONDS, _TURN_PART * settings.receipt_pull_seconds
        )
        # The only copy of what was pulled and is not stored.
        self._unstored: Sequence[CarrierReceipt] = ()
        self._asking: asyncio.Task[PulledReceipts] | None = None
        self._in_a_row = 0

    async def step(self) -> bool:
        """Pull once, if it is this worker's turn; True when more may wait and the next pull may follow at once.

        Raises the database's errors; what was pulled by then is stored by the next step.
        """
        await self._store()
        started_at = None if self._stop.is_set else await self._take_turn()
        if started_at is None:
            self._in_a_row = 0
            return False
        reach("worker.pull.turned")
        pulled = await self._pull()
        if pulled is None:
            self._in_a_row = 0
            return False
        await self._store()
        if not pulled.more:
            async with self._database.statement() as connection:
                await store.set_emptied(connection, self._account, self._worker, started_at)
            reach("worker.pull.emptied")
        self._in_a_row += 1
        if pulled.more and self._in_a_row < self._pulls_max:
            return True
        if pulled.more:
            log.warning("receipts pulled without an end, rests", account=self._account, pulls=self._in_a_row)
        self._in_a_row = 0
        return False

    async def close(self) -> None:
        """Store what an interrupted step has pulled, its answer awaited, and leave the turn to others.

        Raises the database's errors; then receipts are lost, which is logged with the ids of their calls.
        """
        try:
            if self._asking is not None:
                await self._answered()
            await self._store()
        except BaseException:
            if self._unstored:
                log.error("pulled receipts lost", account=self._account, call_ids=[r.call_id for r in self._unstored])
            raise
        async with self._database.statement() as connection:
            await store.end_turn(connection, self._account, self._worker)

    async def _take_turn(self) -> datetime | None:
        async with self._database.statement() as connection:
            return await store.take_turn(connection, self._account, self._worker, seconds=self._turn_seconds)

    async def _pull(self) -> PulledReceipts | None:
        """One page, taken into our hands; None when the carrier gave none."""
        assert self._asking is None, "one pull at a time"
        # A task of its own: whoever cancels the loop must not cancel the answer that is on its way.
        self._asking = asyncio.create_task(self._carrier.pull_receipts(self._count), name="receipt-pull-call")
        return await self._answered()

    async def _answered(self) -> PulledReceipts | None:
        assert self._asking is not None
        try:
            pulled = await asyncio.shield(self._asking)
        except CarrierError as error:
            self._asking = None
            # Without a code nothing came back that could be read: rows that the carrier has deleted may be lost.
            PULLS.labels(self._account, "refused" if error.code else "unanswered").inc()
            log.warning("receipts not pulled", account=self._account, code=error.code, error=loggable(str(error)))
            return None
        self._asking = None
        self._unstored = pulled.receipts
        self._count_malformed(pulled)
        PULLS.labels(self._account, "found" if pulled.receipts or pulled.malformed else "empty").inc()
        return pulled

    def _count_malformed(self, pulled: PulledReceipts) -> None:
        if pulled.malformed:
            PULLED.labels(self._account, "malformed").inc(len(pulled.malformed))
            told = sorted({str(error) for error in pulled.malformed})
            log.error("malformed receipts pulled, they are gone", account=self._account, rules=told)

    async def _store(self) -> None:
        if not self._unstored:
            return
        reach("worker.pull.answered")
        # Should the answer to storing be lost, they are stored twice, and the second counts as repeated.
        await asyncio.gather(*(self._intake.take(receipt) for receipt in self._unstored))
        reach("worker.pull.stored")
        PULLED.labels(self._account, "stored").inc(len(self._unstored))
        log.info("receipts pulled", account=self._account, receipts=len(self._unstored))
        self._unstored = ()
