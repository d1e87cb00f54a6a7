"""Pulling receipts that the carrier could not push, and replies: one worker at a time, each page stored before the next
is asked.

The carrier deletes what it gives, so from its answer to our record what was pulled exists in this process alone. Three
things keep that moment short and sure: the turn is taken in PostgreSQL right before the pull, so a database that cannot
be written to stops it; what could not be stored is kept and stored first; and a stop waits for both.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import structlog

from infra.crash_points import reach
from infra.database import Connection, Database
from smsgateway.carriers.base import (
    Carrier,
    CarrierError,
    CarrierReceipt,
    CarrierReply,
    MalformedReceipt,
    loggable,
)
from smsgateway.receipts_intake import ReceiptIntake
from smsgateway.replies_intake import ReplyIntake
from smsgateway.store import pulling as store
from workers.metrics import PULLED, PULLS, REPLIES_PULLED, REPLY_PULLS
from workers.settings import Settings
from workers.stopping import StopSignal

log = structlog.get_logger(__name__)

# What a turn lasts beyond the call: the statements around it.
_TURN_MARGIN_SECONDS = 10.0
# Of the interval: a bit less, so that who had the turn may have it again.
_TURN_PART = 0.9
# What the name of the turn of an account's replies has behind the account's, which has no space.
REPLIES_TURN = " replies"


T = TypeVar("T", CarrierReceipt, CarrierReply)


@dataclass(frozen=True, slots=True)
class Pulled(Generic[T]):
    """What one pull brought; see `PulledReceipts`."""

    items: Sequence[T]
    malformed: Sequence[MalformedReceipt]
    more: bool


class Puller(ABC, Generic[T]):
    """Pulls what waits at one account. Derived classes say what that is.

    Parameters: `turn` the name of the turn; `what` it is for logs; `worker` the name of this process; `seconds`
    between two pulls; `pulls_max` in a row; `call_seconds` that one may take.
    """

    def __init__(
        self,
        *,
        account: str,
        turn: str,
        what: str,
        database: Database,
        worker: str,
        stop: StopSignal,
        seconds: float,
        pulls_max: int,
        call_seconds: float,
    ) -> None:
        self._account = account
        self._turn = turn
        self._what = what
        self._database = database
        self._worker = worker
        self._stop = stop
        self._pulls_max = pulls_max
        self._turn_seconds = max(call_seconds + _TURN_MARGIN_SECONDS, _TURN_PART * seconds)
        # The only copy of what was pulled and is not stored.
        self._unstored: Sequence[T] = ()
        self._asking: asyncio.Task[Pulled[T]] | None = None
        self._in_a_row = 0

    @abstractmethod
    async def _ask(self) -> Pulled[T]:
        """One page. Raises `CarrierError`."""

    @abstractmethod
    async def _take(self, item: T) -> str:
        """Store one of them durably. Raises the database's errors."""

    @abstractmethod
    def _count_pull(self, result: str) -> None:
        """Count a pull."""

    @abstractmethod
    def _count_items(self, result: str, count: int) -> None:
        """Count what a pull brought."""

    async def _emptied(self, connection: Connection, started_at: datetime) -> None:
        """A pull that started then left nothing, and what it brought is stored."""

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
                await self._emptied(connection, started_at)
            reach("worker.pull.emptied")
        self._in_a_row += 1
        if pulled.more and self._in_a_row < self._pulls_max:
            return True
        if pulled.more:
            log.warning(f"{self._what} pulled without an end, rests", account=self._account, pulls=self._in_a_row)
        self._in_a_row = 0
        return False

    async def close(self) -> None:
        """Store what an interrupted step has pulled, its answer awaited, and leave the turn to others.

        Raises the database's errors; then what was pulled is lost, which is logged.
        """
        try:
            if self._asking is not None:
                await self._answered()
            await self._store()
        except BaseException:
            if self._unstored:
                log.error(f"pulled {self._what} lost", account=self._account, ids=[*map(_id_of, self._unstored)])
            raise
        async with self._database.statement() as connection:
            await store.end_turn(connection, self._turn, self._worker)

    async def _take_turn(self) -> datetime | None:
        async with self._database.statement() as connection:
            return await store.take_turn(connection, self._turn, self._worker, seconds=self._turn_seconds)

    async def _pull(self) -> Pulled[T] | None:
        """One page, taken into our hands; None when the carrier gave none."""
        assert self._asking is None, "one pull at a time"
        # A task of its own: whoever cancels the loop must not cancel the answer that is on its way.
        self._asking = asyncio.create_task(self._ask(), name="receipt-pull-call")
        return await self._answered()

    async def _answered(self) -> Pulled[T] | None:
        assert self._asking is not None
        try:
            pulled = await asyncio.shield(self._asking)
        except CarrierError as error:
            self._asking = None
            # Without a code nothing came back that could be read: rows that the carrier has deleted may be lost.
            self._count_pull("refused" if error.code else "unanswered")
            log.warning(f"{self._what} not pulled", account=self._account, code=error.code, error=loggable(str(error)))
            return None
        self._asking = None
        self._unstored = pulled.items
        if pulled.malformed:
            self._count_items("malformed", len(pulled.malformed))
            told = sorted({str(error) for error in pulled.malformed})
            log.error(f"malformed {self._what} pulled, they are gone", account=self._account, rules=told)
        self._count_pull("found" if pulled.items or pulled.malformed else "empty")
        return pulled

    async def _store(self) -> None:
        if not self._unstored:
            return
        reach("worker.pull.answered")
        # Should the answer to storing be lost, they are stored twice, and the second counts as repeated.
        await asyncio.gather(*(self._take(item) for item in self._unstored))
        reach("worker.pull.stored")
        self._count_items("stored", len(self._unstored))
        log.info(f"{self._what} pulled", account=self._account, count=len(self._unstored))
        self._unstored = ()


class ReceiptPuller(Puller[CarrierReceipt]):
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
        super().__init__(
            account=carrier.account_id,
            turn=carrier.account_id,
            what="receipts",
            database=database,
            worker=worker,
            stop=stop,
            seconds=settings.receipt_pull_seconds,
            pulls_max=settings.receipt_pulls_max,
            call_seconds=carrier.limits.call_timeout_s,
        )
        self._carrier = carrier
        self._intake = intake
        self._count = min(settings.receipt_pull_count, carrier.limits.max_pull)

    async def _ask(self) -> Pulled[CarrierReceipt]:
        pulled = await self._carrier.pull_receipts(self._count)
        return Pulled(pulled.receipts, pulled.malformed, pulled.more)

    async def _take(self, item: CarrierReceipt) -> str:
        return await self._intake.take(item)

    def _count_pull(self, result: str) -> None:
        PULLS.labels(self._account, result).inc()

    def _count_items(self, result: str, count: int) -> None:
        PULLED.labels(self._account, result).inc(count)

    async def _emptied(self, connection: Connection, started_at: datetime) -> None:
        await store.set_emptied(connection, self._account, self._worker, started_at)


class ReplyPuller(Puller[CarrierReply]):
    """Pulls the replies of one account; parameters as of `ReceiptPuller`."""

    def __init__(
        self,
        carrier: Carrier,
        database: Database,
        intake: ReplyIntake,
        worker: str,
        stop: StopSignal,
        settings: Settings,
    ) -> None:
        assert carrier.limits.max_pull_replies > 0, "a carrier with replies to pull"
        super().__init__(
            account=carrier.account_id,
            turn=f"{carrier.account_id}{REPLIES_TURN}",
            what="replies",
            database=database,
            worker=worker,
            stop=stop,
            seconds=settings.reply_pull_seconds,
            pulls_max=settings.receipt_pulls_max,
            call_seconds=carrier.limits.call_timeout_s,
        )
        self._carrier = carrier
        self._intake = intake
        self._count = min(settings.receipt_pull_count, carrier.limits.max_pull_replies)

    async def _ask(self) -> Pulled[CarrierReply]:
        pulled = await self._carrier.pull_replies(self._count)
        return Pulled(pulled.replies, pulled.malformed, pulled.more)

    async def _take(self, item: CarrierReply) -> str:
        return await self._intake.take(item)

    def _count_pull(self, result: str) -> None:
        REPLY_PULLS.labels(self._account, result).inc()

    def _count_items(self, result: str, count: int) -> None:
        REPLIES_PULLED.labels(self._account, result).inc(count)


def _id_of(item: CarrierReceipt | CarrierReply) -> str:
    return item.call_id if isinstance(item, CarrierReceipt) else item.reply_id
