"""Pausing and resuming batches; campaigns, which are batches that are paused, resumed and cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from infra.crash_points import reach
from infra.database import Connection, Database
from infra.errors import Refusal, not_found, unavailable
from smsgateway.batch_accepting import Canceller, campaign_cancelled
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.settings import Settings
from smsgateway.store import pausing as store
from smsgateway.store.pausing import Progress

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.02
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Paused:
    """Messages that wait, and messages that were with the carrier at that moment."""

    waiting: int = 0
    in_flight: int = 0


class BatchPauser:
    """Pauses and resumes batches."""

    def __init__(self, database: Database, queue: DispatchQueue, settings: Settings) -> None:
        self._database = database
        self._queue = queue
        self._settings = settings

    async def pause(self, brand_id: int, batch_id: str) -> Paused:
        """Pause a batch: once this returns, no carrier call of it starts but for those marked before.

        Raises NOT_FOUND (BATCH_NOT_FOUND), and UNAVAILABLE when not all of it could be paused in time: some may be.
        """
        progress: Progress | None = None
        async for first in self._looks("paused"):
            async with self._database.connection() as connection:
                if first:
                    await self._mark(connection, brand_id, batch_id, paused=True)
                elif not await store.is_batch_paused(connection, brand_id, batch_id):
                    raise unavailable("the batch was resumed meanwhile")
                await store.pause_dispatches(connection, brand_id, batch_id)
                progress = await store.progress(connection, brand_id, batch_id, paused=True)
                reach("gateway.batch.pausing")
            if not progress.left:
                break
        assert progress is not None
        reach("gateway.batch.paused")
        return Paused(progress.paused, progress.in_flight)

    async def resume(self, brand_id: int, batch_id: str) -> int:
        """Go on with a batch; how many messages do. Raises as `pause`."""
        resumed = 0
        sms_type = 0
        async for first in self._looks("resumed"):
            async with self._database.connection() as connection:
                if first:
                    sms_type = await self._mark(connection, brand_id, batch_id, paused=False)
                elif await store.is_batch_paused(connection, brand_id, batch_id):
                    raise unavailable("the batch was paused again meanwhile")
                messages, items = await store.resume_dispatches(connection, brand_id, batch_id, sms_type)
                left = (await store.progress(connection, brand_id, batch_id, paused=False)).left
                reach("gateway.batch.resuming")
            reach("gateway.batch.resumed")
            resumed += messages
            # Without Redis, or us, a sweeper queues them.
            if items:
                await self._queue.push(items)
            if not left:
                break
        return resumed

    async def _mark(self, connection: Connection, brand_id: int, batch_id: str, *, paused: bool) -> int:
        sms_type = await store.mark_batch(connection, brand_id, batch_id, paused=paused)
        if sms_type is None:
            raise not_found("BATCH_NOT_FOUND", "there is no such batch")
        return sms_type

    async def _looks(self, what: str) -> AsyncIterator[bool]:
        """Looks at a batch's dispatches until one finds nothing left; whether it is the first."""
        deadline = asyncio.get_running_loop().time() + self._settings.pause_seconds
        yield True
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
            yield False
        raise unavailable(f"not all of the batch could be {what} yet; call again")


class CampaignKeeper:
    """Pauses, resumes and cancels campaigns: first the campaign, for batches to come, then its batches one by one."""

    def __init__(self, database: Database, pauser: BatchPauser, canceller: Canceller) -> None:
        self._database = database
        self._pauser = pauser
        self._canceller = canceller

    async def pause(self, brand_id: int, campaign_id: str) -> Paused:
        """Pause a campaign. Raises NOT_FOUND (CAMPAIGN_NOT_FOUND), FAILED_PRECONDITION (CAMPAIGN_CANCELLED)."""
        await self._mark(brand_id, campaign_id, paused=True)
        waiting = in_flight = 0
        async for batch_id in self._batches(brand_id, campaign_id):
            paused = await self._pauser.pause(brand_id, batch_id)
            waiting += paused.waiting
            in_flight += paused.in_flight
        return Paused(waiting, in_flight)

    async def resume(self, brand_id: int, campaign_id: str) -> int:
        """Go on with a campaign; how many messages do. Raises as `pause`."""
        await self._mark(brand_id, campaign_id, paused=False)
        resumed = 0
        async for batch_id in self._batches(brand_id, campaign_id):
            resumed += await self._pauser.resume(brand_id, batch_id)
        return resumed

    async def cancel(self, brand_id: int, campaign_id: str) -> tuple[int, int]:
        """Cancel a campaign; messages cancelled by this call, and those that were on their way or done.

        Raises NOT_FOUND (CAMPAIGN_NOT_FOUND).
        """
        async with self._database.connection() as connection:
            known = await store.cancel_campaign(connection, brand_id, campaign_id)
        if not known:
            raise campaign_not_found()
        cancelled = not_cancelled = 0
        async for batch_id in self._batches(brand_id, campaign_id):
            reply = await self._canceller.cancel(brand_id, batch_id)
            cancelled += reply.cancelled
            not_cancelled += reply.not_cancelled
        return cancelled, not_cancelled

    async def _mark(self, brand_id: int, campaign_id: str, *, paused: bool) -> None:
        async with self._database.connection() as connection:
            cancelled = await store.pause_campaign(connection, brand_id, campaign_id, paused=paused)
        if cancelled is None:
            raise campaign_not_found()
        if cancelled:
            raise campaign_cancelled()
        reach("gateway.campaign.marked")

    async def _batches(self, brand_id: int, campaign_id: str) -> AsyncIterator[str]:
        """All batches that had been accepted when the campaign was marked, and may be some more."""
        after = ""
        while True:
            async with self._database.connection() as connection:
                page = await store.campaign_batches(connection, brand_id, campaign_id, after=after, limit=_PAGE)
            for batch_id in page:
                yield batch_id
            if len(page) < _PAGE:
                return
            after = page[-1]


def campaign_not_found() -> Refusal:
    """NOT_FOUND for a campaign that no batch has named."""
    return not_found("CAMPAIGN_NOT_FOUND", "there is no such campaign")
