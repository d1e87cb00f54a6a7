"""One lane of the ledger: its transactions, one after another, in a thread of their own.

The driver's waits are C code that lets other threads run; on an event loop each statement would cost a turn of the
loop, more than PostgreSQL takes for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import grpc
import psycopg
import structlog
from google.protobuf.message import Message

from costcenter import store, store_due
from costcenter.book import Book, Terms
from costcenter.kept import NOTHING_KEPT, Kept
from costcenter.keys import GroupKeys
from costcenter.metrics import GROUP_RETRIES, SEGMENTS
from costcenter.model import Changes, EntryKind
from costcenter.operations import BookDue, DueReply, Needs, Operation, Reply
from costcenter.translation import REPLIES
from infra.crash_points import reach
from infra.database import TRANSIENT, Session, ThreadConnection
from infra.errors import Refusal, idempotency_conflict, unavailable
from infra.identifiers import IdentifierSource

log = structlog.get_logger(__name__)

# Decisions after which the records made so far are sent: PostgreSQL writes them while more is decided.
WRITE_AHEAD = 250

# What an entry does to segments; freezes, payments and refunds are records of their own.
_FLOWS = {
    EntryKind.GRANT: SEGMENTS.labels("granted"),
    EntryKind.CLAW_BACK: SEGMENTS.labels("clawed_back"),
    EntryKind.EXPIRE: SEGMENTS.labels("expired"),
    EntryKind.RELEASE: SEGMENTS.labels("released"),
    EntryKind.TIME_OUT: SEGMENTS.labels("timed_out"),
    EntryKind.EXPIRE_BACK: SEGMENTS.labels("expired"),
}
_FROZEN, _PAID, _REFUNDED = (SEGMENTS.labels(flow) for flow in ("frozen", "paid", "refunded"))

# What an operation comes to: its reply on the wire where it has one, else the rules' reply, or a refusal.
Outcome = Message | Reply | Refusal


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of a lane; the settings give their reasons."""

    retry_seconds: float = 5
    hold_seconds: float = 5
    ended_freezes_max: int = 5_000
    ended_packages_max: int = 100
    clock_offset_seconds: float = 0
    packages_kept_max: int = 50_000
    freezes_kept_max: int = 10_000


class Lane:
    """Applies groups of operations on the lane's brands, each in one transaction. Used by one thread at a time.

    Parameters: `session` a connection of its own; `clock` replaces the database's clock in tests.
    """

    def __init__(
        self,
        lane_id: int,
        session: Session,
        *,
        terms: Terms,
        limits: LaneLimits,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._lane_id = lane_id
        self._session = session
        self._terms = terms
        self._limits = limits
        self._clock = clock
        self._identifiers = IdentifierSource()
        self._kept = Kept(limits.packages_kept_max, limits.freezes_kept_max)

    def apply(self, operations: list[Operation]) -> list[Outcome]:
        """Apply a group as if its operations came one after another; an outcome for each, whatever happens."""
        try:
            return self._settle(operations)
        except Exception:
            # Whatever went wrong, the lane goes on and its callers get a status.
            log.exception("group failed", lane_id=self._lane_id, operations=len(operations))
            return [_internal() for _ in operations]

    def close(self) -> None:
        """Disconnect."""
        self._session.close()

    def _settle(self, operations: list[Operation]) -> list[Outcome]:
        """Apply a group; retry what is transient, and split what the database refuses until the bad one is alone."""
        try:
            return self._retry(operations)
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
        first = self._settle(operations[:middle])
        return first + self._settle(operations[middle:])

    def _retry(self, operations: list[Operation]) -> list[Outcome]:
        deadline = time.monotonic() + self._limits.retry_seconds
        pause = 0.01
        while True:
            try:
                return self._transact(operations)
            except TRANSIENT as error:
                if isinstance(error, psycopg.errors.LockNotAvailable) and self._end_still():
                    # The lane is free now, however late it is. Who was ended is not met again.
                    continue
                # Whether a lost commit took effect, the idempotency keys tell at the next attempt.
                if time.monotonic() + pause > deadline:
                    log.warning("database unreachable", lane_id=self._lane_id, error=type(error).__name__)
                    refusal = unavailable("the database cannot be reached; call again with the same request_id")
                    return [refusal for _ in operations]
                GROUP_RETRIES.inc()
                time.sleep(pause)
                pause = min(pause * 2, 1)

    def _end_still(self) -> bool:
        """End the transactions of processes that stand still with a lane in hand; whether there were any.

        For who has waited in vain for a lane, so whoever was silent for half of that time is not about to give it back.
        """
        try:
            with self._session.transaction() as connection:
                ended = store.end_still(connection, self._limits.hold_seconds / 2)
                connection.commit()
        except psycopg.Error as error:
            # Another cost centre may come as a user of the database's whose sessions this one may not end.
            log.warning("a lane is held", lane_id=self._lane_id, error=type(error).__name__)
            return False
        if ended:
            log.warning("a process stood still with a lane", lane_id=self._lane_id, transactions=ended)
        return bool(ended)

    def _transact(self, operations: list[Operation]) -> list[Outcome]:
        due: dict[int, DueReply] = {}
        try:
            asked = [operation.brand_id for operation in operations if isinstance(operation, BookDue)]
            if asked:
                self._book_ended_packages(asked, due)
            ended_max: int | None = self._limits.ended_packages_max
            while True:
                try:
                    outcomes = self._transact_once(operations, due, ended_max)
                except _ManyEndedError as many:
                    self._book_ended_packages(many.brand_ids, due)
                    # What is left is the book's, however much it is.
                    ended_max = None
                    continue
                if outcomes is not None:
                    return outcomes
        except BaseException:
            # The book may have changed what is kept, and whether the transaction took effect is not known.
            self._kept.clear()
            raise

    def _book_ended_packages(self, brand_ids: list[int], due: dict[int, DueReply]) -> None:
        """Book the ends of packages in one set, in a transaction of its own."""
        with self._session.transaction() as connection:
            row = connection.execute(store.LOCK_LANE, (self._lane_id, self._limits.clock_offset_seconds)).fetchone()
            assert row is not None
            version, now = row
            booked = store_due.book_ended_packages(connection, brand_ids, self._clock() if self._clock else now)
            reach("costcenter.due.committing")
            connection.commit()
        reach("costcenter.due.committed")
        self._forget_unless_alone(version)
        self._kept.forget(booked, version)
        for brand_id, (packages, segments) in booked.items():
            due.setdefault(brand_id, DueReply()).packages_expired += packages
            _FLOWS[EntryKind.EXPIRE].inc(segments)

    def _transact_once(
        self, operations: list[Operation], due: dict[int, DueReply], ended_max: int | None
    ) -> list[Outcome] | None:
        """One transaction; None when so much was due that it could only book part of that.

        Raises `_ManyEndedError`, with nothing written, when more packages than `ended_max` have ended.
        """
        needs, keys = Needs(), GroupKeys()
        for operation in operations:
            operation.ask(needs)
            keys.ask(operation)
        with self._session.transaction() as connection, connection.pipeline():
            reads = store.GroupReads(connection)
            reads.lock(self._lane_id, self._limits.clock_offset_seconds)
            reads.send_keys(keys)
            reads.send(needs, self._kept)
            version, now = reads.version_and_now()
            if self._forget_unless_alone(version):
                reads.send(needs, self._kept)
            reads.fill_keys(keys)
            book = Book(self._clock() if self._clock else now, self._terms, self._identifiers, due=due)
            self._kept.lend(book, needs.brands, needs.freezes)
            reads.fill(book)
            if ended_max is not None:
                _require_few_ended(book, ended_max)
            whole = self._book_due(connection, book)
            writes = store.GroupWrites(connection, book.changes, keys)
            outcomes: list[Outcome] | None = None
            if whole:
                outcomes = []
                for start in range(0, len(operations), WRITE_AHEAD):
                    if start:
                        writes.send_new()
                    outcomes += [
                        _decide(book, operation, keys) for operation in operations[start : start + WRITE_AHEAD]
                    ]
            book.check()
            writes.send_rest(book.now)
            reach("costcenter.group.committing")
            connection.commit()
        reach("costcenter.group.committed")
        self._kept.keep(book, version)
        _count_segments(book.changes)
        return outcomes

    def _forget_unless_alone(self, version: int) -> bool:
        """Forget what is kept when another process was here since; whether that was so.

        Parameters: `version` of the lane with a transaction of ours.
        """
        if self._kept.version in {version - 1, NOTHING_KEPT}:
            return False
        self._kept.clear()
        return True

    def _book_due(self, connection: ThreadConnection, book: Book) -> bool:
        """Book what is due for the brands of the group. False: there is more than one transaction should book."""
        brands = [brand for brand in map(book.brand, book.brands_with_due()) if brand is not None]
        if not brands:
            return True
        limit = self._limits.ended_freezes_max
        moments = {brand.brand_id: book.time_of(brand) for brand in brands}
        freezes, ends = store.load_due(connection, list(moments.items()), limit)
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


class _ManyEndedError(Exception):
    """So many packages of some brands have ended that booking them one by one would hold up the lane."""

    def __init__(self, brand_ids: list[int]) -> None:
        super().__init__()
        self.brand_ids = brand_ids


def _count_segments(changes: Changes) -> None:
    _FROZEN.inc(sum([freeze.segments for freeze in changes.new_freezes]))
    _PAID.inc(sum([payment.segments for payment in changes.new_payments]))
    _REFUNDED.inc(sum([refund.segments for refund in changes.refunds]))
    for entry in changes.entries:
        _FLOWS[EntryKind(entry.kind)].inc(entry.segments)


def _require_few_ended(book: Book, ended_max: int) -> None:
    brand_ids = book.brands_with_due()
    if brand_ids and sum(map(book.ended_packages, brand_ids)) > ended_max:
        raise _ManyEndedError(brand_ids)


def _decide(book: Book, operation: Operation, keys: GroupKeys) -> Outcome:
    if not operation.code:
        try:
            return book.apply(operation)
        except Refusal as refusal:
            return refusal
    translate, message = REPLIES[operation.code]
    found = keys.find(operation)
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
    keys.make(operation, reply.SerializeToString(), book.now)
    return reply


def _internal() -> Refusal:
    return Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "an error of the service; its log has the details")
