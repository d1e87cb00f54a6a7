"""Group commit: operations that arrive while a transaction runs form the next one.

Brands hash to lanes. A transaction serves one lane: it locks the lane's row, reads the state of the brands concerned,
decides in Python (`costcenter.book`) and writes set-based. So any number of processes decide one after another on
fresh state, and none waits for another inside a transaction while holding what that one wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice

import grpc
import psycopg
import structlog
from google.protobuf.message import Message

from costcenter import store
from costcenter.book import Book, Terms
from costcenter.metrics import GROUP_OPERATIONS, GROUP_RETRIES, GROUP_SECONDS, GROUP_WAIT_SECONDS, OPERATIONS
from costcenter.operations import DueReply, Needs, Operation, Pay, Reply
from costcenter.translation import REPLIES
from infra.database import TRANSIENT, Connection, Database
from infra.errors import Refusal, idempotency_conflict, overloaded, unavailable
from infra.grouping import Grouper
from infra.identifiers import IdentifierSource

log = structlog.get_logger(__name__)

# What an operation comes to: its reply on the wire where it has one, else the rules' reply, or a refusal.
Outcome = Message | Reply | Refusal


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of the engine; the settings give their reasons."""

    group_max: int = 1_000
    queue_max: int = 20_000
    retry_seconds: float = 5
    ended_freezes_max: int = 5_000
    clock_offset_seconds: float = 0


@dataclass(slots=True)
class _Submission:
    """Operations that one call brings to one lane."""

    operations: Sequence[Operation]
    arrived: float


class Engine:
    """Applies operations in groups.

    Parameters: `database` with at least one connection a lane; `clock` replaces the database's clock in tests.
    """

    def __init__(
        self,
        database: Database,
        *,
        terms: Terms,
        limits: EngineLimits,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._database = database
        self._terms = terms
        self._limits = limits
        self._clock = clock
        self._identifiers = IdentifierSource()
        self._lanes: list[Grouper[_Submission, list[Outcome]]] = []
        self.stopping = False

    async def start(self) -> None:
        """Read the number of lanes and serve them."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(store.LANES)).fetchone()
        assert row is not None
        assert row[0] > 0, "the migrations fill the table of lanes"
        self._lanes = [
            Grouper(
                partial(self._run_group, lane_id),
                group_max=self._limits.group_max,
                queue_max=self._limits.queue_max,
                weigh=lambda submission: len(submission.operations),
                name="the ledger's queue",
            )
            for lane_id in range(row[0])
        ]

    def prepare_stop(self) -> None:
        """Let those who wait for work of the engine end; it still takes operations."""
        self.stopping = True

    async def stop(self) -> None:
        """Apply what is queued, then stop."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))

    async def apply(self, operation: Operation) -> Outcome:
        """Apply one operation. Raises RESOURCE_EXHAUSTED (OVERLOADED) at once when the queue is full."""
        lane = self._lanes[operation.brand_id % len(self._lanes)]
        return (await lane.submit(_Submission([operation], time.perf_counter())))[0]

    async def answer(self, operation: Operation) -> Message | Reply:
        """Apply one operation and return its reply. Raises its refusal, and what `apply` raises."""
        outcome = await self.apply(operation)
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    async def apply_all(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Apply operations as if one after another; those of different lanes run side by side.

        Raises RESOURCE_EXHAUSTED (OVERLOADED) when a queue is full; then nothing is applied.
        """
        parts: dict[int, list[int]] = {}
        for index, operation in enumerate(operations):
            parts.setdefault(operation.brand_id % len(self._lanes), []).append(index)
        # All queues are asked before the first is entered: a batch is not refused in part.
        if any(self._lanes[lane_id].full for lane_id in parts):
            raise overloaded("the ledger's queue", self._limits.queue_max)
        arrived = time.perf_counter()
        results = await asyncio.gather(
            *(
                self._lanes[lane_id].submit_nowait(_Submission([operations[index] for index in indexes], arrived))
                for lane_id, indexes in parts.items()
            )
        )
        by_index = {
            index: outcome
            for indexes, part in zip(parts.values(), results, strict=True)
            for index, outcome in zip(indexes, part, strict=True)
        }
        return [by_index[index] for index in range(len(operations))]

    async def _run_group(self, lane_id: int, group: list[_Submission]) -> list[list[Outcome]]:
        operations = [operation for submission in group for operation in submission.operations]
        GROUP_OPERATIONS.observe(len(operations))
        started = time.perf_counter()
        for submission in group:
            GROUP_WAIT_SECONDS.observe(started - submission.arrived)
        try:
            outcomes = await self._settle(lane_id, operations)
        except Exception:
            # Whatever went wrong, the lane goes on and its callers get a status.
            log.exception("group failed", lane_id=lane_id, operations=len(operations))
            outcomes = [_internal() for _ in operations]
        GROUP_SECONDS.observe(time.perf_counter() - started)
        _count(operations, outcomes)
        parts = iter(outcomes)
        return [list(islice(parts, len(submission.operations))) for submission in group]

    async def _settle(self, lane_id: int, operations: list[Operation]) -> list[Outcome]:
        """Apply a group; retry what is transient, and split what the database refuses until the bad one is alone."""
        try:
            return await self._retry(lane_id, operations)
        except Exception as error:
            if len(operations) == 1:
                # The text of a database error can hold a row's values.
                log.error(
                    "operation rejected by the database",
                    operation=type(operations[0]).__name__,
                    brand_id=operations[0].brand_id,
                    error=type(error).__name__,
                    constraint=error.diag.constraint_name if isinstance(error, psycopg.Error) else None,
                    exc_info=not isinstance(error, psycopg.Error),
                )
                return [_internal()]
        middle = len(operations) // 2
        first = await self._settle(lane_id, operations[:middle])
        return first + await self._settle(lane_id, operations[middle:])

    async def _retry(self, lane_id: int, operations: list[Operation]) -> list[Outcome]:
        deadline = time.monotonic() + self._limits.retry_seconds
        pause = 0.01
        while True:
            try:
                return await self._transact(lane_id, operations)
            except TRANSIENT as error:
                # Whether a lost commit took effect, the idempotency keys tell at the next attempt.
                if time.monotonic() + pause > deadline:
                    log.warning("database unreachable", lane_id=lane_id, error=type(error).__name__)
                    refusal = unavailable("the database cannot be reached; call again with the same request_id")
                    return [refusal for _ in operations]
                GROUP_RETRIES.inc()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1)

    async def _transact(self, lane_id: int, operations: list[Operation]) -> list[Outcome]:
        due: dict[int, DueReply] = {}
        while True:
            outcomes = await self._transact_once(lane_id, operations, due)
            if outcomes is not None:
                return outcomes

    async def _transact_once(
        self, lane_id: int, operations: list[Operation], due: dict[int, DueReply]
    ) -> list[Outcome] | None:
        """One transaction; None when so much was due that it could only book part of that."""
        needs = Needs()
        keys: list[store.Key] = []
        pay_keys: list[tuple[int, str]] = []
        for operation in operations:
            needs.add(operation)
            if isinstance(operation, Pay):
                pay_keys.append((operation.brand_id, operation.request_id))
            elif operation.code:
                keys.append((operation.brand_id, operation.code, operation.request_id))
        async with self._database.connection() as connection:
            async with connection.pipeline():
                reads = store.GroupReads(connection)
                await reads.send(lane_id, self._limits.clock_offset_seconds, needs, keys, pay_keys)
                now = await reads.now()
                known = _Known(await reads.keys(), await reads.payment_keys())
                book = Book(self._clock() if self._clock else now, self._terms, self._identifiers, due=due)
                for brand in await reads.brands():
                    book.add_brand(brand)
                book.add_packages(await reads.packages())
                book.sort_queues()
                book.add_freezes(await reads.freezes())
                book.add_payments(await reads.payments())
                book.add_refunds(await reads.refunds())
                book.add_receipts(await reads.receipts())
                book.add_orders(await reads.orders())
                book.add_offers(await reads.offers())
                book.add_releases(await reads.releases())
            whole = await self._book_due(connection, book)
            outcomes = [_decide(book, operation, known) for operation in operations] if whole else None
            book.check()
            async with connection.pipeline():
                await store.write(connection, book.changes, known.new_keys, known.new_payment_keys, book.now)
                await connection.commit()
        return outcomes

    async def _book_due(self, connection: Connection, book: Book) -> bool:
        """Book what is due for the brands of the group. False: there is more than one transaction should book."""
        brands = [brand for brand in map(book.brand, book.brands_with_due()) if brand is not None]
        if not brands:
            return True
        limit = self._limits.ended_freezes_max
        moments = {brand.brand_id: book.time_of(brand) for brand in brands}
        freezes, ends = await store.load_due(connection, list(moments.items()), limit)
        book.add_freezes(freezes)
        whole = True
        for brand_id, moment in moments.items():
            ended = [freeze.expires_at for freeze in freezes if freeze.brand_id == brand_id]
            if len(ended) < limit:
                book.book_due(brand_id, moment, ends.get(brand_id))
            else:
                # There may be more that end at the last one's moment or later: they are due at once again.
                book.book_due(brand_id, max(ended), max(ended))
                whole = False
        return whole


@dataclass(slots=True)
class _Known:
    """The idempotency keys of a group: those that exist, and those that it makes."""

    keys: dict[store.Key, tuple[bytes, bytes]]
    payment_keys: dict[tuple[int, str], tuple[bytes, bytes]]
    new_keys: list[tuple[int, int, str, bytes, bytes, datetime]] = field(default_factory=list)
    new_payment_keys: list[tuple[int, str, bytes, bytes]] = field(default_factory=list)

    def find(self, operation: Operation) -> tuple[bytes, bytes] | None:
        """Fingerprint and reply of the operation's key, or None when it is new."""
        if isinstance(operation, Pay):
            return self.payment_keys.get((operation.brand_id, operation.request_id))
        return self.keys.get((operation.brand_id, operation.code, operation.request_id))

    def keep(self, operation: Operation, reply: bytes, now: datetime) -> None:
        """Note a key that the group makes, for the database and for the operations that follow."""
        brand_id, request_id, fingerprint = operation.brand_id, operation.request_id, operation.fingerprint
        if isinstance(operation, Pay):
            self.payment_keys[brand_id, request_id] = (fingerprint, reply)
            self.new_payment_keys.append((brand_id, request_id, fingerprint, reply))
        else:
            self.keys[brand_id, operation.code, request_id] = (fingerprint, reply)
            self.new_keys.append((brand_id, operation.code, request_id, fingerprint, reply, now))


def _decide(book: Book, operation: Operation, known: _Known) -> Outcome:
    if not operation.code:
        try:
            return book.apply(operation)
        except Refusal as refusal:
            return refusal
    translate, message = REPLIES[operation.code]
    found = known.find(operation)
    if found is not None:
        fingerprint, kept = found
        return (
            message.FromString(kept)
            if fingerprint == operation.fingerprint
            else idempotency_conflict(operation.request_id)
        )
    try:
        reply = translate(book.apply(operation))
    except Refusal as refusal:
        return refusal
    known.keep(operation, reply.SerializeToString(), book.now)
    return reply


def _internal() -> Refusal:
    return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "an error of the service; its log has the details")


def _count(operations: list[Operation], outcomes: list[Outcome]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for operation, outcome in zip(operations, outcomes, strict=True):
        key = (type(operation).__name__, outcome.reason if isinstance(outcome, Refusal) else "OK")
        counts[key] = counts.get(key, 0) + 1
    for (kind, result), count in counts.items():
        OPERATIONS.labels(kind, result).inc(count)
