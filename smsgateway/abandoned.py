"""What a gateway left half accepted when it died, or when the cost centre gave no answer. A sweeper drives this."""

from __future__ import annotations

import structlog

from infra.crash_points import reach
from infra.database import Database
from infra.errors import Refusal
from infra.identifiers import IdentifierSource
from smsgateway.ledger_client import LedgerClient, Unsettled
from smsgateway.schema import Mode
from smsgateway.settings import Settings
from smsgateway.settling import MessageSettler, freeze_request, release_owed
from smsgateway.store import accepting as store
from smsgateway.store import outbox
from smsgateway.store.accepting import Abandoned, Key

log = structlog.get_logger(__name__)


class AbandonedCalls:
    """Finishes messages and undoes batches that have been accepting for `accepting_seconds`.

    Any number of processes may do it at once, beside gateways that are merely slow: every step is conditional.
    """

    def __init__(
        self,
        database: Database,
        ledger: LedgerClient,
        settler: MessageSettler,
        identifiers: IdentifierSource,
        settings: Settings,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._settler = settler
        self._identifiers = identifiers
        self._seconds = settings.accepting_seconds

    async def finish_messages(self, limit: int) -> int:
        """Freeze and queue at most `limit` single messages, or forget those that are refused; return how many."""
        async with self._database.connection() as connection:
            items = await store.abandoned_messages(connection, older_than_seconds=self._seconds, limit=limit)
        if not items:
            return 0
        outcomes = await self._settler.settle(items)
        left = [item for item, outcome in zip(items, outcomes, strict=True) if isinstance(outcome, Unsettled)]
        if left:
            async with self._database.connection() as connection:
                await store.postpone_messages(connection, left)
        log.info("abandoned messages finished", messages=len(items) - len(left), left=len(left))
        return len(items) - len(left)

    async def undo_batches(self, limit: int) -> int:
        """Forget at most `limit` batches and owe their freezes back; return how many.

        The freeze is asked for once more under the batch's id, which finds the one that was made or makes it.
        """
        async with self._database.connection() as connection:
            items = await store.abandoned_batches(connection, older_than_seconds=self._seconds, limit=limit)
        if not items:
            return 0
        replies = await self._ledger.batch_freeze([freeze_request(item) for item in items])
        keys: list[Key] = []
        left: list[Abandoned] = []
        orders: dict[str, tuple[int, str]] = {}
        for item, reply in zip(items, replies, strict=True):
            if isinstance(reply, Unsettled):
                left.append(item)
                continue
            keys.append(Key(item.brand_id, Mode.BATCH, item.request_id, item.target_id, b""))
            if not isinstance(reply, Refusal):
                orders[item.target_id] = (item.brand_id, reply.order_no)
        reach("worker.sweep.batches")
        async with self._database.connection() as connection:
            if left:
                await store.postpone_batches(connection, left)
            gone = await store.delete_accepting_batches(connection, keys) if keys else set()
            owed = [
                release_owed(self._identifiers, brand_id, order_no)
                for batch_id, (brand_id, order_no) in orders.items()
                if batch_id in gone
            ]
            if owed:
                await outbox.insert(connection, owed, hold_seconds=0)
        reach("worker.sweep.undone")
        log.info("abandoned batches undone", batches=len(gone), left=len(left))
        return len(gone)
