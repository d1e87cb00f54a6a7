"""When the relay calls the cost centre; what it sends and what becomes of refusals is in the integration tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from protos.costcenter.v1 import cost_center_pb2
from smsgateway.schema import OutboxKind
from smsgateway.store.outbox import OutboxRow
from workers.outbox_relay import OutboxRelay
from workers.settings import Settings


class _Connection:
    async def execute(self, *_: object) -> None:
        pass


class _Database:
    @asynccontextmanager
    async def statement(self) -> AsyncIterator[_Connection]:
        yield _Connection()


class _Ledger:
    """Answers, and remembers the size and the moment of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float]] = []

    async def batch_status(
        self, items: Sequence[cost_center_pb2.SmsSendStatusCallBackRequest]
    ) -> list[cost_center_pb2.SmsSendStatusCallBackResponse]:
        self.calls.append((len(items), time.monotonic()))
        return [cost_center_pb2.SmsSendStatusCallBackResponse() for _ in items]


def relay(ledger: Any, **changes: Any) -> OutboxRelay:
    """A relay between a database that takes everything and this ledger."""
    database: Any = _Database()
    return OutboxRelay(database, ledger, Settings(**changes))


def rows(count: int) -> list[OutboxRow]:
    """Statuses that are owed."""
    return [OutboxRow(1, f"o{number}", OutboxKind.SEND_STATUS, b"") for number in range(count)]


async def test_statuses_that_come_meanwhile_share_a_call() -> None:
    """A status that comes alone is sent at once; the next call starts no sooner than the setting says, with all that
    came meanwhile.
    """
    ledger = _Ledger()
    ours = relay(ledger, outbox_gather_seconds=0.1)
    ours.offer(rows(1))
    await asyncio.wait_for(ours.send_offered(), 5)
    ours.offer(rows(1))
    sending = asyncio.create_task(ours.send_offered())
    await asyncio.sleep(0)
    ours.offer(rows(2))
    await asyncio.wait_for(sending, 5)
    assert [size for size, _ in ledger.calls] == [1, 3]
    assert ledger.calls[1][1] - ledger.calls[0][1] >= 0.095


async def test_a_full_group_does_not_wait() -> None:
    """What fills a call is sent at once."""
    ledger = _Ledger()
    ours = relay(ledger, outbox_gather_seconds=5, outbox_group_max=4)
    ours.offer(rows(8))
    assert await asyncio.wait_for(ours.send_offered(), 1)
    assert not await asyncio.wait_for(ours.send_offered(), 1)
    assert [size for size, _ in ledger.calls] == [4, 4]
