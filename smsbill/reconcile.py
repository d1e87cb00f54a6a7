"""`smsbill reconcile`: the ledger against its records, the message records against the ledger, the queues against both.

It runs while the service works. The ledger's own figures come from one snapshot and must fit exactly. The gateway's
records, the ledger's and the queues cannot be read at one moment, so what is on its way looks like a difference for a
moment: only what still differs when everything is read again counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import TypeVar

from costcenter import reconciliation as ledger
from costcenter.model import RefundCause
from costcenter.settings import Settings
from infra.database import Database
from infra.differences import Difference
from infra.identifiers import brand_of
from smsgateway import reconciliation as gateway
from smsgateway.queues import Queues, open_redis
from smsgateway.schema import MessageState

T = TypeVar("T")

# Called with what is being checked and how many things of it have been; a screen can follow it.
Progress = Callable[[str, int], None]

PASSES = 3
PAUSE_SECONDS = 2.0
PAGE_SIZE = 5_000
BRANDS_PER_STATEMENT = 200
# Younger freezes and queued records may be between two steps of a live process.
SETTLED_SECONDS = 120.0

_CHARGED_STATES = frozenset({MessageState.SENT, MessageState.DELIVERED, MessageState.UNDELIVERED, MessageState.EXPIRED})


async def run(settings: Settings, *, progress: Progress) -> list[Difference]:
    """Return every difference. Raises `StartError` when a server cannot be reached."""
    return await Reconciliation(
        settings.ledger_database_url, settings.database_url, settings.redis_url, progress=progress
    ).run()


class Reconciliation:
    """Reads both schemas and the queues. Parameters: database URLs, `redis_url` empty: the queues are not compared."""

    def __init__(self, ledger_url: str, gateway_url: str, redis_url: str, *, progress: Progress) -> None:
        self._ledger_url = ledger_url
        self._gateway_url = gateway_url
        self._redis_url = redis_url
        self._progress = progress

    async def run(self) -> list[Difference]:
        """Return every difference. Raises `StartError` when a server cannot be reached."""
        async with AsyncExitStack() as stack:
            databases = []
            for url in (self._ledger_url, self._gateway_url):
                database = Database(url, size=2, wait_seconds=30, name="reconcile")
                await database.open()
                stack.push_async_callback(database.close)
                databases.append(database)
            found = [difference async for difference in self._ledger(databases[0])]
            moving = await self._crosswise(*databases)
            for _ in range(PASSES - 1):
                if not moving:
                    break
                await asyncio.sleep(PAUSE_SECONDS)
                again = set(await self._crosswise(*databases))
                moving = [difference for difference in moving if difference in again]
            return found + moving

    async def _ledger(self, database: Database) -> AsyncIterator[Difference]:
        checked = 0
        async with database.snapshot() as connection:
            # The pages are read out first: a connection runs one statement at a time.
            pages = [page async for page in ledger.brand_pages(connection, BRANDS_PER_STATEMENT)]
            for page in pages:
                async for difference in ledger.differences(connection, page):
                    yield difference
                checked += len(page)
                self._progress("brands", checked)

    async def _crosswise(self, ledger_database: Database, gateway_database: Database) -> list[Difference]:
        found: list[Difference] = []
        async with gateway_database.snapshot() as messages, ledger_database.snapshot() as charges:
            owed = await gateway.owed(messages, PAGE_SIZE)
            moving = await gateway.in_flight(messages)
            expected_open = await gateway.expected_open(messages)
            found += [difference async for difference in gateway.sent_unpaid(messages, PAGE_SIZE)]
            compared = 0
            async for charge, paid in _merge(
                ledger.charges(charges, PAGE_SIZE), gateway.charged_messages(messages, PAGE_SIZE)
            ):
                found += compare(charge, paid, owed=owed.payments, moving=moving)
                compared += 1
                if compared % PAGE_SIZE == 0:
                    self._progress("payments", compared)
            self._progress("payments", compared)
            async for freeze in ledger.open_freezes(charges, SETTLED_SECONDS, PAGE_SIZE):
                key = (freeze.brand_id, freeze.order_no)
                expected = expected_open.get(key, 0)
                if _is_ours(freeze.brand_id, freeze.request_id) and key not in owed.freezes and expected != freeze.open:
                    found.append(
                        Difference(
                            "freeze left open",
                            freeze.brand_id,
                            freeze.order_no,
                            "open",
                            str(expected),
                            str(freeze.open),
                        )
                    )
            if self._redis_url:
                found += await self._queues(gateway_database)
        return found

    async def _queues(self, database: Database) -> list[Difference]:
        redis = open_redis(self._redis_url, connections_max=2, timeout_seconds=10, name="smsbill-reconcile")
        try:
            # Not in the snapshot of before: a queue is compared with the records of now.
            async with database.connection() as connection:
                queues = Queues(redis)
                found = [
                    difference
                    async for difference in gateway.records_without_entry(
                        connection, queues, SETTLED_SECONDS, PAGE_SIZE
                    )
                ]
                found += [
                    difference async for difference in gateway.entries_without_record(connection, redis, PAGE_SIZE)
                ]
                return found
        finally:
            await redis.aclose()


def compare(
    charge: ledger.Charge | None,
    messages: list[gateway.ChargedMessage],
    *,
    owed: frozenset[tuple[int, str]],
    moving: set[tuple[int, str]],
) -> Iterator[Difference]:
    """What differs between a payment and the messages that it paid for; either may be missing, not both."""
    if charge is None:
        first = messages[0]
        for message in messages:
            yield Difference(
                "message without payment", first.brand_id, message.message_id, "payment", first.payment_no, "none"
            )
        return
    brand_id, payment_no = charge.brand_id, charge.payment_no
    if not messages:
        # Services that send elsewhere pay without messages here; their request_ids are not ours.
        if _is_ours(brand_id, charge.request_id) and (brand_id, charge.request_id) not in moving:
            yield Difference("payment without messages", brand_id, payment_no, "messages", charge.request_id, "none")
        return
    segments = sum(message.segments for message in messages)
    if segments != charge.segments:
        yield Difference("charge", brand_id, payment_no, "segments", str(segments), str(charge.segments))
    if (brand_id, payment_no) not in owed:
        yield from _compare_refunds(charge, messages)


def _compare_refunds(charge: ledger.Charge, messages: list[gateway.ChargedMessage]) -> Iterator[Difference]:
    refunds = dict(charge.refunds)
    for message in messages:
        refunded, cause = refunds.pop(message.message_id, (0, 0))
        if message.moving:
            continue
        failed = message.state not in _CHARGED_STATES
        if failed and refunded != message.segments:
            yield _refund_difference(message, str(message.segments), refunded)
        elif not failed and refunded and cause == RefundCause.SEND_FAILED:
            yield _refund_difference(message, "0", refunded)
    for message_id, (segments, _) in refunds.items():
        yield Difference("refund", charge.brand_id, message_id, "message", "a message of the payment", str(segments))


def _refund_difference(message: gateway.ChargedMessage, expected: str, found: int) -> Difference:
    return Difference(
        "refund", message.brand_id, message.message_id, f"refunded, {_state(message)}", expected, str(found)
    )


def _state(message: gateway.ChargedMessage) -> str:
    return MessageState(message.state).name.lower()


def _is_ours(brand_id: int, request_id: str) -> bool:
    """Whether the gateway chose this request_id: an identifier of the brand, for a second freeze with a mark behind."""
    return brand_of(request_id[:32]) == brand_id


async def _merge(
    charges: AsyncIterator[list[ledger.Charge]], messages: AsyncIterator[list[gateway.ChargedMessage]]
) -> AsyncIterator[tuple[ledger.Charge | None, list[gateway.ChargedMessage]]]:
    """Join two streams in the order of (brand, payment): bounded memory however many there are."""
    left = _flat(charges)
    right = _grouped(_flat(messages))
    charge = await anext(left, None)
    group = await anext(right, None)
    while charge is not None or group is not None:
        charge_key = None if charge is None else (charge.brand_id, charge.payment_no)
        group_key = None if group is None else (group[0].brand_id, group[0].payment_no)
        if group is None or (charge_key is not None and group_key is not None and charge_key < group_key):
            yield charge, []
            charge = await anext(left, None)
        elif charge is None or charge_key is None or group_key is None or group_key < charge_key:
            yield None, group
            group = await anext(right, None)
        else:
            yield charge, group
            charge, group = await anext(left, None), await anext(right, None)


async def _flat(pages: AsyncIterator[list[T]]) -> AsyncIterator[T]:
    async for page in pages:
        for item in page:
            yield item


async def _grouped(messages: AsyncIterator[gateway.ChargedMessage]) -> AsyncIterator[list[gateway.ChargedMessage]]:
    group: list[gateway.ChargedMessage] = []
    async for message in messages:
        if group and (group[0].brand_id, group[0].payment_no) != (message.brand_id, message.payment_no):
            yield group
            group = []
        group.append(message)
    if group:
        yield group
