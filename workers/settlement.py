"""Recording outcomes, many at a time: messages, dispatches and what is owed to the cost centre in one transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from infra.database import Connection, Database
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.schema import OutboxKind
from smsgateway.settling import release_owed
from smsgateway.store import outbox, sending
from smsgateway.store.outbox import OutboxRow
from smsgateway.store.sending import Acceptance, FailedMessage, Failure, Key, Settled
from workers.outbox_relay import OutboxRelay


class Settlement:
    """Records what became of dispatches. A second record of the same outcome, or a late one, changes nothing."""

    def __init__(
        self, database: Database, relay: OutboxRelay, identifiers: IdentifierSource, *, hold_seconds: float
    ) -> None:
        self._database = database
        self._relay = relay
        self._identifiers = identifiers
        self._hold_seconds = hold_seconds

    async def accept(self, items: Sequence[Acceptance]) -> list[bool]:
        """Record what the carrier took; per item whether this call did it."""
        whole = [item for item in items if not item.failed_count]
        partly = [item for item in items if item.failed_count]
        done: set[Key] = set()
        rows: list[OutboxRow] = []
        if whole:
            owed = [self._sent(item) for item in whole]
            async with self._database.statement() as connection:
                done = await sending.accept(connection, whole, owed, hold_seconds=self._hold_seconds)
            rows = [row for item, row in zip(whole, owed, strict=True) if (item.brand_id, item.dispatch_id) in done]
        if partly:
            async with self._database.connection() as connection:
                settled = await sending.accept_partly(connection, partly)
                owed = [self._sent(item) for item in partly if (item.brand_id, item.dispatch_id) in settled]
                await outbox.insert(connection, owed, hold_seconds=self._hold_seconds)
            done |= settled
            rows += owed
        self._relay.offer(rows)
        return [(item.brand_id, item.dispatch_id) in done for item in items]

    async def fail(self, items: Sequence[Failure]) -> list[bool]:
        """Record what is not sent, and owe back what was paid for it; per item whether this call did it."""
        async with self._database.connection() as connection:
            settled, failed = await sending.fail(connection, items)
            payments = {(row.brand_id, row.dispatch_id): row.payment_no for row in settled}
            rows = await self.owe_back(connection, payments, failed)
            await self._owe_releases(connection, items, settled, failed)
        self._relay.offer(rows)
        done = {(row.brand_id, row.dispatch_id) for row in settled}
        return [(item.brand_id, item.dispatch_id) in done for item in items]

    async def _owe_releases(
        self,
        connection: Connection,
        items: Sequence[Failure],
        settled: Sequence[Settled],
        failed: Sequence[FailedMessage],
    ) -> None:
        """Owe the freezes back what was never paid for."""
        released = {(item.brand_id, item.dispatch_id) for item in items if item.release}
        if not released:
            return
        segments: defaultdict[Key, int] = defaultdict(int)
        for message in failed:
            segments[message.brand_id, message.dispatch_id] += message.segments
        owed = []
        for row in settled:
            key = (row.brand_id, row.dispatch_id)
            if key in released and row.payment_no is None and segments[key]:
                owed.append(release_owed(self._identifiers, row.brand_id, row.order_no, segments[key]))
        await outbox.insert(connection, owed, hold_seconds=0)

    async def owe_back(
        self, connection: Connection, payments: dict[tuple[int, str], str | None], failed: Iterable[FailedMessage]
    ) -> list[OutboxRow]:
        """Owe back the segments of messages that were not sent, by their dispatches' payments; to be offered to the
        relay after the transaction.
        """
        by_dispatch: dict[tuple[int, str], list[FailedMessage]] = {}
        for message in failed:
            by_dispatch.setdefault((message.brand_id, message.dispatch_id), []).append(message)
        rows = []
        for key, messages in by_dispatch.items():
            payment_no = payments.get(key)
            if payment_no is not None:
                rows.append(self.send_status(key[0], payment_no, messages))
        await outbox.insert(connection, rows, hold_seconds=self._hold_seconds)
        return rows

    def send_status(self, brand_id: int, payment_no: str, failed: Iterable[FailedMessage]) -> OutboxRow:
        """The send status of a payment, naming the messages that were not sent."""
        outbox_id = self.new_id(brand_id)
        request = cost_center_pb2.SmsSendStatusCallBackRequest(
            brand_id=brand_id,
            request_id=outbox_id,
            payment_no=payment_no,
            failed=[
                cost_center_pb2.FailedMessage(message_id=message.message_id, segments=message.segments)
                for message in failed
            ],
        )
        return OutboxRow(brand_id, outbox_id, OutboxKind.SEND_STATUS, request.SerializeToString())

    def _sent(self, item: Acceptance) -> OutboxRow:
        return self.send_status(item.brand_id, item.payment_no, ())

    def new_id(self, brand_id: int) -> str:
        """A new identifier of a brand."""
        return self._identifiers.new(brand_id, time.time_ns() // 1_000_000)
