"""`smsbill reconcile`: the ledger against its records, the message records against the ledger, the queues against both.

It runs while the service works. The ledger's own figures come from one snapshot and must fit exactly. The gateway's
records, the ledger's and the queues cannot be read at one moment, so what is on its way looks like a difference for a
moment: only what still differs when it is read again counts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from costcenter import reconciliation as ledger
from costcenter.model import RefundCause
from costcenter.settings import Settings
from infra.database import Connection, Database
from infra.differences import Difference
from infra.identifiers import brand_of
from smsgateway import reconciliation as gateway
from smsgateway.queues import Queues, open_redis
from smsgateway.schema import MessageState

T = TypeVar("T")

# Called with what is being checked, how many things of it have been, and of how many (0: nobody knows); a screen can
# follow it.
Progress = Callable[[str, int, int], None]

PASSES = 3
PAUSE_SECONDS = 2.0
PAGE_SIZE = 5_000
# Connections that check the ledger side by side: one for each processor of a small machine.
CHECKERS = 2
# A part's records are sorted, joined and summed at once, in temporary files of some hundred bytes a record; more parts
# read the tables more often.
RECORDS_PER_PART = 12_000_000
# Buckets that are compared one by one in one go; the gateway reads all messages of their brands for that.
BUCKETS_PER_STATEMENT = 500
# What is told at most: whoever has more needs no list.
DIFFERENCES_MAX = 10_000
# Younger freezes and queued records may be between two steps of a live process.
SETTLED_SECONDS = 120.0

_CHARGED_STATES = frozenset({MessageState.SENT, MessageState.DELIVERED, MessageState.UNDELIVERED, MessageState.EXPIRED})


async def run(settings: Settings, *, progress: Progress) -> list[Difference]:
    """Return every difference. Raises `StartError` when a server cannot be reached."""
    return await Reconciliation(
        settings.ledger_database_url, settings.database_url, settings.redis_url, progress=progress
    ).run()


@dataclass(slots=True)
class _Suspects:
    """Where the gateway's records and the ledger's do not fit at first sight."""

    # Buckets of payments, and brands with messages that were sent without a payment.
    buckets: list[ledger.Bucket] = field(default_factory=list)
    unpaid: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Findings:
    """What was found: the differences, and the suspects that they were found at."""

    differences: list[Difference] = field(default_factory=list)
    suspects: _Suspects = field(default_factory=_Suspects)


class Reconciliation:
    """Reads both schemas and the queues. Parameters: database URLs, `redis_url` empty: the queues are not compared."""

    def __init__(self, ledger_url: str, gateway_url: str, redis_url: str, *, progress: Progress) -> None:
        self._ledger_url = ledger_url
        self._gateway_url = gateway_url
        self._redis_url = redis_url
        self._progress = progress

    async def run(self) -> list[Difference]:
        """Return every difference, at most `DIFFERENCES_MAX` and one that says so.

        Raises `StartError` when a server cannot be reached.
        """
        async with AsyncExitStack() as stack:
            databases = []
            for url in (self._ledger_url, self._gateway_url):
                database = Database(url, size=CHECKERS, wait_seconds=30, name="reconcile")
                await database.open()
                stack.push_async_callback(database.close)
                databases.append(database)
            found = await self._ledger(databases[0])
            moving = await self._crosswise(databases[0], databases[1], None)
            for _ in range(PASSES - 1):
                if not moving.differences:
                    break
                await asyncio.sleep(PAUSE_SECONDS)
                again = await self._crosswise(databases[0], databases[1], moving.suspects)
                still = set(again.differences)
                moving = _Findings([each for each in moving.differences if each in still], again.suspects)
            return _bounded(found + moving.differences)

    async def _ledger(self, database: Database) -> list[Difference]:
        """The ledger's own figures: parts of the brands side by side, all of one moment."""
        found: list[Difference] = []
        async with database.snapshots(CHECKERS) as connections:
            parts = await ledger.parts(connections[0], CHECKERS, RECORDS_PER_PART, PAGE_SIZE)
            total = sum(part.records for part in parts)
            waiting = deque(parts)
            checked = 0
            self._progress("records", 0, total)

            async def work(connection: Connection) -> None:
                nonlocal checked
                while waiting:
                    part = waiting.popleft()
                    async for difference in ledger.check(connection, part.first, part.last):
                        if len(found) <= DIFFERENCES_MAX:
                            found.append(difference)
                    checked += part.records
                    self._progress("records", checked, total)

            async with asyncio.TaskGroup() as group:
                for connection in connections:
                    group.create_task(work(connection))
        return sorted(found, key=lambda difference: difference.brand_id)

    async def _crosswise(
        self, ledger_database: Database, gateway_database: Database, suspects: _Suspects | None
    ) -> _Findings:
        """What differs between the gateway's records, the ledger's and the queues; of suspects, or of all there is."""
        findings = _Findings()
        async with gateway_database.snapshot() as messages, ledger_database.snapshot() as charges:
            # Both moments are now, and not when each is first asked something that takes long.
            await messages.execute("select 1")
            await charges.execute("select 1")
            owed = await gateway.owed(messages, PAGE_SIZE)
            moving = await gateway.in_flight(messages)
            expected_open = await gateway.expected_open(messages)
            if suspects is None:
                suspects = await self._suspects(messages, charges)
            for brand_id in suspects.unpaid:
                unpaid = [difference async for difference in gateway.sent_unpaid(messages, brand_id, PAGE_SIZE)]
                if unpaid:
                    findings.suspects.unpaid.append(brand_id)
                    findings.differences += unpaid
            await self._compare(messages, charges, suspects.buckets, findings, owed.payments, moving)
            async for freeze in ledger.open_freezes(charges, SETTLED_SECONDS, PAGE_SIZE):
                key = (freeze.brand_id, freeze.order_no)
                expected = expected_open.get(key, 0)
                if _is_ours(freeze.brand_id, freeze.request_id) and key not in owed.freezes and expected != freeze.open:
                    findings.differences.append(
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
                findings.differences += await self._queues(gateway_database)
        return findings

    async def _suspects(self, messages: Connection, charges: Connection) -> _Suspects:
        """Buckets whose sums differ, or that hold a refund of a message that is not there."""
        suspects = _Suspects()
        told, found = _BucketReader(charges), _MessageReader(messages, suspects)
        left, right = await asyncio.gather(told.next(), found.next())
        compared = 0
        while left is not None or right is not None:
            if right is None or (left is not None and left[0] < right[0]):
                assert left is not None
                suspects.buckets.append(left[0])
                left = await told.next()
            elif left is None or right[0] < left[0]:
                suspects.buckets.append(right[0])
                right = await found.next()
            else:
                if left[1] != right[1]:
                    suspects.buckets.append(left[0])
                left, right = await told.next(), await found.next()
            compared += 1
            if compared % PAGE_SIZE == 0:
                self._progress("spans of payments", compared, 0)
        self._progress("spans of payments", compared, 0)
        strange: set[ledger.Bucket] = set()
        async for refunds in ledger.undelivered(charges, PAGE_SIZE):
            strange |= {
                (brand_id, payment_no[: ledger.BUCKET])
                for brand_id, payment_no in await gateway.strangers(messages, refunds)
            }
        suspects.buckets = sorted(strange | set(suspects.buckets))
        return suspects

    async def _compare(
        self,
        messages: Connection,
        charges: Connection,
        buckets: list[ledger.Bucket],
        findings: _Findings,
        owed: frozenset[tuple[int, str]],
        moving: set[tuple[int, str]],
    ) -> None:
        """Compare suspected buckets payment by payment."""
        compared = 0
        for start in range(0, len(buckets), BUCKETS_PER_STATEMENT):
            some = buckets[start : start + BUCKETS_PER_STATEMENT]
            differing: set[ledger.Bucket] = set()
            async for charge, paid in _merge(
                ledger.charges(charges, some, PAGE_SIZE),
                gateway.charged_messages(messages, some, ledger.BUCKET, PAGE_SIZE),
            ):
                brand_id, payment_no = (
                    (charge.brand_id, charge.payment_no) if charge else (paid[0].brand_id, paid[0].payment_no)
                )
                for difference in compare(charge, paid, owed=owed, moving=moving):
                    differing.add((brand_id, payment_no[: ledger.BUCKET]))
                    if len(findings.differences) <= DIFFERENCES_MAX:
                        findings.differences.append(difference)
                compared += 1
                if compared % PAGE_SIZE == 0:
                    self._progress("payments one by one", compared, 0)
            findings.suspects.buckets += sorted(differing)

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


class _BucketReader:
    """The ledger's buckets, one after another."""

    def __init__(self, connection: Connection) -> None:
        self._buckets = _flat(ledger.buckets(connection, PAGE_SIZE))

    async def next(self) -> tuple[ledger.Bucket, tuple[str, ...]] | None:
        """The next one with its sums; None: there is none."""
        return await anext(self._buckets, None)


class _MessageReader:
    """The gateway's buckets, one after another; what was sent without a payment is noted with the suspects."""

    def __init__(self, connection: Connection, suspects: _Suspects) -> None:
        self._buckets = _flat(gateway.buckets(connection, ledger.BUCKET, PAGE_SIZE))
        self._suspects = suspects

    async def next(self) -> tuple[ledger.Bucket, tuple[str, ...]] | None:
        """The next one with its sums; None: there is none."""
        async for brand_id, bucket, sums, unpaid in self._buckets:
            if bucket is not None:
                return (brand_id, bucket), sums
            if unpaid:
                self._suspects.unpaid.append(brand_id)
        return None


def _bounded(found: list[Difference]) -> list[Difference]:
    if len(found) <= DIFFERENCES_MAX:
        return found
    more = Difference("more differences", 0, "all", "differences", str(DIFFERENCES_MAX), "more")
    return [*found[:DIFFERENCES_MAX], more]


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
