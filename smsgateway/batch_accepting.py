"""Accepting batches, whole or not at all, and cancelling them and single messages."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

import grpc
import structlog

from infra import tracing
from infra.crash_points import reach
from infra.database import Connection, Database
from infra.errors import Refusal, failed_precondition, idempotency_conflict, not_found, overloaded, unavailable
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from protos.smsgateway.v1 import sms_gateway_pb2
from smsgateway.accepting import blocked_refusal
from smsgateway.carriers.accounts import ChunkSizes
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.ledger_client import LedgerClient, Unsettled, is_outage
from smsgateway.metrics import RULE_REFUSALS, TYPE_NAMES
from smsgateway.mobile import DOMESTIC_PREFIX, mask_mobile
from smsgateway.queues import QueueItem
from smsgateway.schema import MessageState, Mode
from smsgateway.settings import Settings
from smsgateway.settling import freeze_request, now_ms, owed_back, release_owed
from smsgateway.store import accepting as store
from smsgateway.store import listing, outbox, pausing, rule_checks
from smsgateway.store.accepting import (
    Abandoned,
    Accepted,
    BatchMessage,
    BatchRows,
    CancelledMessage,
    Key,
    NewBatch,
    NewChunk,
)
from smsgateway.store.rule_checks import Ask
from smsgateway.terms import NO_TERMS, Night, Terms
from smsgateway.variables import pack_names
from smsgateway.zones import country_code

log = structlog.get_logger(__name__)

_DOUBTFUL_PER_CALL = 500
# Numbers in one statement that looks suppressions up and counts.
_JUDGED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that a caller asks for, read whole and validated.

    `mobiles` are in E.164, none twice, at `places` in the stream; `text` the final one, or with its variables in place;
    `segments` those of each; `variables` the names of the text's variables, none: all get the text as it is; `values`
    what fills them for each recipient, as stored; `bad` what was refused of the recipients, the first `bad_max` of
    them; `bad_by_reason` all of them, where the caller wants to know (`tells_all_bad`); `broken_rules` how many for
    which of the sender's rules; `fingerprint` what tells this content from another under the same request_id; `terms`
    what the sender's rules ask of it.
    """

    brand_id: int
    request_id: str
    sms_type: int
    text: str
    variables: tuple[str, ...]
    campaign_id: str
    mobiles: Sequence[str]
    segments: Sequence[int]
    values: Sequence[str]
    bad: Sequence[sms_gateway_pb2.BadRecipient]
    bad_by_reason: Mapping[str, Sequence[int]]
    bad_count: int
    fingerprint: bytes
    places: Sequence[int] = ()
    bad_max: int = 0
    tells_all_bad: bool = False
    broken_rules: Mapping[str, int] = field(default_factory=dict)
    terms: Terms = NO_TERMS

    def by_due(self) -> dict[tuple[datetime | None, Night | None], Sequence[int]]:
        """The places in `mobiles` by the moment before which they must not be sent to (None: at once) and the night
        after it.
        """
        terms = self.terms
        if terms.quiet is None:
            return {(terms.due_at, None): range(len(self.mobiles))}
        due: dict[str, tuple[datetime | None, Night | None]] = {}
        found: dict[tuple[datetime | None, Night | None], list[int]] = {}
        for index, mobile in enumerate(self.mobiles):
            code = "86" if mobile.startswith(DOMESTIC_PREFIX) else country_code(mobile)
            if code not in due:
                due[code] = terms.due_of(mobile), terms.night_of(mobile)
            found.setdefault(due[code], []).append(index)
        return dict(found)

    def without(self, refused: Mapping[int, str]) -> Batch:
        """The batch without some of its numbers, given by index with the reason. Raises INVALID_ARGUMENT
        (NO_VALID_RECIPIENT) when none is left.
        """
        kept = [index for index in range(len(self.mobiles)) if index not in refused]
        bad = [
            *self.bad,
            *(
                sms_gateway_pb2.BadRecipient(
                    index=self.places[index], mobile=mask_mobile(self.mobiles[index]), reason=reason
                )
                for index, reason in refused.items()
            ),
        ]
        bad.sort(key=lambda each: each.index)
        if not kept:
            raise no_valid_recipient(self.bad_count + len(refused))
        return replace(
            self,
            mobiles=[self.mobiles[index] for index in kept],
            segments=[self.segments[index] for index in kept],
            values=[self.values[index] for index in kept] if self.variables else self.values,
            places=[self.places[index] for index in kept],
            bad=bad[: self.bad_max],
            bad_by_reason=self._all_bad(refused) if self.tells_all_bad else self.bad_by_reason,
            bad_count=self.bad_count + len(refused),
        )

    def _all_bad(self, refused: Mapping[int, str]) -> dict[str, list[int]]:
        found = {reason: list(places) for reason, places in self.bad_by_reason.items()}
        for index, reason in refused.items():
            found.setdefault(reason, []).append(self.places[index])
        return {reason: sorted(places) for reason, places in found.items()}


def no_valid_recipient(bad_count: int) -> Refusal:
    """INVALID_ARGUMENT (NO_VALID_RECIPIENT)."""
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "NO_VALID_RECIPIENT",
        "the batch has no recipient that can be sent to",
        metadata={"bad_recipients": str(bad_count)},
    )


class BatchAcceptor:
    """Accepts batches.

    Parameters: `chunk_sizes` how many messages a chunk of a brand and type has.
    """

    def __init__(
        self,
        database: Database,
        ledger: LedgerClient,
        queue: DispatchQueue,
        identifiers: IdentifierSource,
        chunk_sizes: Callable[[int, int], ChunkSizes],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._queue = queue
        self._spans = tracing.active()
        self._identifiers = identifiers
        self._chunk_sizes = chunk_sizes

    async def send(self, batch: Batch) -> tuple[sms_gateway_pb2.SendBatchSmsResponse, bool]:
        """Accept a batch; return the reply and whether it was given before.

        Raises as `SingleAcceptor.send`, and INVALID_ARGUMENT (NO_VALID_RECIPIENT) when suppressions or frequencies
        refuse every number. A caller who is gone before the end may leave a freeze; after
        `accepting_seconds` it is undone, unless the caller comes again with the same request_id.
        """
        new_id = self._identifiers.new(batch.brand_id, now_ms())
        key = Key(batch.brand_id, Mode.BATCH, batch.request_id, new_id, batch.fingerprint)
        if batch.terms.refusal is not None:
            return await self._replied(batch, key, batch.terms.refusal), True
        reach("gateway.batch.recording")
        async with self._database.connection() as connection:
            if await store.insert_keys(connection, [key]):
                _count_broken(batch.sms_type, batch.broken_rules)
                batch = await self._judged(connection, batch, new_id)
                record = _record(batch, new_id)
                if batch.campaign_id:
                    await self._join_campaign(connection, batch)
                await store.insert_batch(connection, record)
                found = None
            else:
                found = (await store.find_keys(connection, [key])).get((key.brand_id, key.request_id))
                if found is None:
                    raise unavailable("the first call of this request_id has just ended; call again")
        reach("gateway.batch.recorded")
        if found is not None:
            if found.fingerprint != batch.fingerprint:
                raise idempotency_conflict(batch.request_id)
            if found.reply is not None:
                return sms_gateway_pb2.SendBatchSmsResponse.FromString(found.reply), True
            key = replace(key, target_id=found.target_id)
            batch = await self._under_way(batch, found.target_id)
            record = _record(batch, found.target_id)
        return await self._settle(batch, key, record), found is not None

    async def is_known(self, brand_id: int, request_id: str) -> bool:
        """Whether a batch with this request_id was accepted, or is being."""
        async with self._database.connection() as connection:
            return bool(await store.find_keys(connection, [Key(brand_id, Mode.BATCH, request_id, "", b"")]))

    async def _replied(self, batch: Batch, key: Key, refusal: Refusal) -> sms_gateway_pb2.SendBatchSmsResponse:
        """The reply that the same call got before its text broke a rule; else the refusal is raised."""
        async with self._database.connection() as connection:
            found = (await store.find_keys(connection, [key])).get((key.brand_id, key.request_id))
        if found is None or found.fingerprint != key.fingerprint or found.reply is None:
            _count_broken(batch.sms_type, batch.broken_rules)
            raise refusal
        return sms_gateway_pb2.SendBatchSmsResponse.FromString(found.reply)

    async def _judged(self, connection: Connection, batch: Batch, batch_id: str) -> Batch:
        """The batch without the numbers that suppressions or frequencies stop; those that are left are counted."""
        terms = batch.terms
        if not terms.are_judged_by_records:
            return batch
        # Numbers in order: everybody locks what is counted in the same one.
        order = sorted(range(len(batch.mobiles)), key=batch.mobiles.__getitem__)
        refused: dict[int, str] = {}
        for start in range(0, len(order), _JUDGED_AT_ONCE):
            page = order[start : start + _JUDGED_AT_ONCE]
            asks = [
                Ask(
                    batch.brand_id,
                    batch.sms_type,
                    terms.subject,
                    batch.mobiles[index],
                    batch_id,
                    terms.suppressed,
                    terms.limits,
                )
                for index in page
            ]
            blocked = await rule_checks.check(connection, asks)
            refused |= {page[place]: blocked_refusal(why, terms.limits).reason for place, why in blocked.items()}
        _count_broken(batch.sms_type, Counter(refused.values()))
        reach("gateway.batch.judged")
        return batch.without(refused) if refused else batch

    async def _under_way(self, batch: Batch, batch_id: str) -> Batch:
        """The batch as another call of the same request_id has recorded it. Raises UNAVAILABLE when the rules have made
        another of it meanwhile: then what was recorded is undone soon.
        """
        async with self._database.connection() as connection:
            recorded = await store.lock_accepting_batch(connection, batch.brand_id, batch_id)
            if recorded is not None:
                batch = await self._judged(connection, batch, batch_id)
                record = _record(batch, batch_id)
                if recorded == (record.text, record.accepted, record.segments, record.held):
                    return batch
            elif not (batch.terms.are_judged_by_records or batch.broken_rules):
                return batch
            raise unavailable("the first call of this request_id has not ended; call again with the same request_id")

    async def _settle(self, batch: Batch, key: Key, record: NewBatch) -> sms_gateway_pb2.SendBatchSmsResponse:
        try:
            frozen = await self._ledger.freeze(
                freeze_request(
                    Abandoned(
                        record.brand_id,
                        record.batch_id,
                        record.request_id,
                        record.sms_type,
                        record.segments,
                        record.held,
                    )
                )
            )
        except Unsettled:
            raise
        except Refusal as refusal:
            reach("gateway.batch.forgetting")
            return await self._forget(key, refusal)
        reach("gateway.batch.frozen")
        reply = sms_gateway_pb2.SendBatchSmsResponse(
            batch_id=record.batch_id,
            order_no=frozen.order_no,
            accepted=record.accepted,
            segments=record.segments,
            bad_recipients=batch.bad,
            bad_recipient_count=batch.bad_count,
            bad_by_reason=[
                sms_gateway_pb2.BadRecipients(reason=reason, indexes=indexes)
                for reason, indexes in batch.bad_by_reason.items()
            ],
        )
        accepted = Accepted(
            key.brand_id, Mode.BATCH, key.request_id, key.target_id, frozen.order_no, reply.SerializeToString()
        )
        async with self._database.connection() as connection:
            # Locked first: whoever undoes abandoned batches waits, and then finds it accepted.
            created_at = await store.accept_batch(connection, accepted)
            if created_at is None:
                return await self._accepted_elsewhere(connection, key, frozen.order_no)
            paused = False
            if batch.campaign_id:
                state = await pausing.campaign_state(connection, key.brand_id, batch.campaign_id)
                if state is not None and state.cancelled:
                    return await self._cancelled_meanwhile(connection, key, frozen.order_no)
                paused = state is not None and state.paused
            rows = BatchRows(record, frozen.order_no, created_at)
            chunks: list[NewChunk] = []
            async with store.copying_messages(connection, personalised=bool(batch.variables)) as copy:
                for chunk, messages in self._chunks(batch):
                    chunks.append(chunk)
                    await copy.write(rows.text(chunk.dispatch_id, messages))
                    # A hundred chunks in a row would hold up every other call.
                    await asyncio.sleep(0)
            await store.insert_chunks(
                connection,
                record,
                frozen.order_no,
                chunks,
                paused=paused,
                valid_from=batch.terms.valid_from,
                valid_ms=batch.terms.valid_ms,
            )
            if paused:
                await pausing.mark_batch(connection, key.brand_id, key.target_id, paused=True)
            reach("gateway.batch.storing")
        reach("gateway.batch.queued")
        trace = "" if self._spans is None else self._spans.parent
        await self._queue.push(
            [
                QueueItem(batch.brand_id, batch.sms_type, Mode.BATCH, chunk.dispatch_id, trace)
                for chunk in chunks
                # What is held is pushed by a sweeper when it is due, what is paused when it is resumed.
                if chunk.due_at is None and not paused
            ]
        )
        reach("gateway.batch.pushed")
        return reply

    def _chunks(self, batch: Batch) -> Iterator[tuple[NewChunk, list[BatchMessage]]]:
        """Chunks of at most one call each, whose messages are all due at the same moment."""
        sizes = self._chunk_sizes(batch.brand_id, batch.sms_type)
        at_ms, step = now_ms(), sizes.personalised if batch.variables else sizes.plain
        new, brand_id = self._identifiers.new, batch.brand_id
        for (due_at, night), indexes in batch.by_due().items():
            for start in range(0, len(indexes), step):
                chosen = indexes[start : start + step]
                messages = [
                    # Without variables there are no values, and none are written.
                    (
                        new(brand_id, at_ms),
                        batch.mobiles[index],
                        batch.segments[index],
                        batch.values[index] if batch.variables else "",
                    )
                    for index in chosen
                ]
                segments = sum(message[2] for message in messages)
                yield NewChunk(new(brand_id, at_ms), len(messages), segments, due_at, night), messages

    async def _join_campaign(self, connection: Connection, batch: Batch) -> None:
        await pausing.open_campaign(connection, batch.brand_id, batch.campaign_id)
        state = await pausing.campaign_state(connection, batch.brand_id, batch.campaign_id)
        if state is not None and state.cancelled:
            raise campaign_cancelled()

    async def _cancelled_meanwhile(
        self, connection: Connection, key: Key, order_no: str
    ) -> sms_gateway_pb2.SendBatchSmsResponse:
        """Its campaign was cancelled while the batch was being accepted: forget it and give the freeze back."""
        await connection.rollback()
        if await store.delete_accepting_batches(connection, [key]):
            await outbox.insert(connection, [release_owed(self._identifiers, key.brand_id, order_no)], hold_seconds=0)
        # Must be committed although the call fails.
        await connection.commit()
        raise campaign_cancelled()

    async def _forget(self, key: Key, refusal: Refusal) -> sms_gateway_pb2.SendBatchSmsResponse:
        """Forget a refused batch, unless another call of the same request_id got it accepted meanwhile."""
        async with self._database.connection() as connection:
            await store.delete_accepting_batches(connection, [key])
            found = (await store.find_keys(connection, [key])).get((key.brand_id, key.request_id))
        if found is None or found.target_id != key.target_id or found.reply is None:
            raise refusal
        return sms_gateway_pb2.SendBatchSmsResponse.FromString(found.reply)

    async def _accepted_elsewhere(
        self, connection: Connection, key: Key, order_no: str
    ) -> sms_gateway_pb2.SendBatchSmsResponse:
        """Another call of the same request_id has accepted the batch, or it was undone as abandoned."""
        found = (await store.find_keys(connection, [key])).get((key.brand_id, key.request_id))
        if found is not None and found.target_id == key.target_id and found.reply is not None:
            return sms_gateway_pb2.SendBatchSmsResponse.FromString(found.reply)
        await outbox.insert(connection, [release_owed(self._identifiers, key.brand_id, order_no)], hold_seconds=0)
        # The release must be committed although the call fails.
        await connection.commit()
        raise unavailable("the batch took too long and was undone; call again with the same request_id")


def _count_broken(sms_type: int, broken: Mapping[str, int]) -> None:
    for reason, messages in broken.items():
        RULE_REFUSALS.labels(TYPE_NAMES[sms_type], reason).inc(messages)


def _record(batch: Batch, batch_id: str) -> NewBatch:
    return NewBatch(
        batch.brand_id,
        batch_id,
        batch.request_id,
        batch.sms_type,
        batch.text,
        len(batch.mobiles),
        sum(batch.segments),
        any(due_at is not None for due_at, _ in batch.by_due()),
        batch.terms.subject if batch.terms.limits else None,
        pack_names(batch.variables),
        batch.campaign_id or None,
    )


class BatchPlace:
    """One of the `batches_max` places, with the recipients that its batch holds in memory."""

    def __init__(self, places: BatchPlaces) -> None:
        self._places = places
        self._recipients = 0

    def __enter__(self) -> Self:
        self._places.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._places.leave(self._recipients)

    def hold(self, recipients: int) -> None:
        """Count more recipients. Raises RESOURCE_EXHAUSTED (OVERLOADED) when all batches hold too many."""
        self._places.hold(recipients)
        self._recipients += recipients


class BatchPlaces:
    """How many batches, and how many recipients of them all, are under way."""

    def __init__(self, settings: Settings) -> None:
        self._batches_max = settings.batches_max
        self._recipients_max = settings.batch_recipients_in_hand_max
        self._batches = 0
        self._recipients = 0

    def place(self) -> BatchPlace:
        """A place to enter (a context manager), which raises RESOURCE_EXHAUSTED (OVERLOADED) when none is free."""
        return BatchPlace(self)

    def enter(self) -> None:
        """Count a batch."""
        if self._batches >= self._batches_max:
            raise overloaded("the room for batches", self._batches_max)
        self._batches += 1

    def leave(self, recipients: int) -> None:
        """Count a batch off, with the recipients that it held."""
        self._batches -= 1
        self._recipients -= recipients

    def hold(self, recipients: int) -> None:
        """Count recipients."""
        if self._recipients + recipients > self._recipients_max:
            raise overloaded("the room for recipients of batches", self._recipients_max)
        self._recipients += recipients


def campaign_cancelled() -> Refusal:
    """FAILED_PRECONDITION for what a cancelled campaign does not take."""
    return failed_precondition("CAMPAIGN_CANCELLED", "the campaign was cancelled; send under another campaign_id")


class Canceller:
    """Cancels batches and single messages."""

    def __init__(self, database: Database, ledger: LedgerClient, identifiers: IdentifierSource) -> None:
        self._database = database
        self._ledger = ledger
        self._identifiers = identifiers

    async def cancel(self, brand_id: int, batch_id: str) -> sms_gateway_pb2.CancelBatchResponse:
        """Cancel what is still queued or paused of a batch and owe its segments back.

        Raises NOT_FOUND (BATCH_NOT_FOUND). While the cost centre is away, a paused chunk that may have been paid for
        stays paused; call again.
        """
        await self._settle_doubt(brand_id, batch_id)
        async with self._database.connection() as connection:
            messages_in_all = await store.mark_batch_cancelled(connection, brand_id, batch_id)
            if messages_in_all is None:
                raise not_found("BATCH_NOT_FOUND", "there is no such batch")
            dispatches = await store.cancel_dispatches(connection, brand_id, batch_id)
            messages: list[CancelledMessage] = []
            if dispatches:
                messages = await store.cancel_messages(connection, brand_id, dispatches)
                await outbox.insert(
                    connection, owed_back(self._identifiers, brand_id, dispatches, messages), hold_seconds=0
                )
            cancelled_in_all = await store.count_cancelled(connection, brand_id, batch_id)
            reach("gateway.batch.cancelling")
        reach("gateway.batch.cancelled")
        return sms_gateway_pb2.CancelBatchResponse(
            cancelled=len(messages), not_cancelled=messages_in_all - cancelled_in_all
        )

    async def cancel_message(self, brand_id: int, message_id: str) -> bool:
        """Cancel a single message and owe its segments back, unless a worker has it; whether it is cancelled now.

        Raises NOT_FOUND (MESSAGE_NOT_FOUND) and FAILED_PRECONDITION (MESSAGE_OF_BATCH).
        """
        async with self._database.connection() as connection:
            dispatches, messages = await store.cancel_single(connection, brand_id, message_id)
            if dispatches:
                owed = owed_back(self._identifiers, brand_id, dispatches, messages)
                await outbox.insert(connection, owed, hold_seconds=0)
                reach("gateway.single.cancelling")
                return True
            message = await listing.find_message(connection, brand_id, message_id)
        if message is None:
            raise not_found("MESSAGE_NOT_FOUND", "there is no such message")
        if message.batch_id:
            raise failed_precondition("MESSAGE_OF_BATCH", f"it is one of batch {message.batch_id}; cancel that")
        return message.state == MessageState.CANCELLED

    async def _settle_doubt(self, brand_id: int, batch_id: str) -> None:
        """Find out of paused chunks whether they were paid for: the same payment asked for once more settles it."""
        last: list[pausing.Doubtful] = []
        while True:
            async with self._database.connection() as connection:
                items = await pausing.doubtful(connection, brand_id, batch_id, limit=_DOUBTFUL_PER_CALL)
            if not items or items == last:
                return
            last = items
            requests = [
                cost_center_pb2.SmsSendPayRequest(
                    brand_id=brand_id, request_id=item.dispatch_id, order_no=item.order_no, segments=item.segments
                )
                for item in items
            ]
            settled: list[tuple[pausing.Doubtful, str | None]] = []
            for item, outcome in zip(items, await self._ledger.batch_pay(requests), strict=True):
                if not isinstance(outcome, Refusal):
                    settled.append((item, outcome.payment_no))
                elif not is_outage(outcome) and outcome.reason != "IDEMPOTENCY_CONFLICT":
                    settled.append((item, None))
            if not settled:
                return
            async with self._database.connection() as connection:
                await pausing.settle_doubt(connection, brand_id, settled)
            reach("gateway.batch.doubt_settled")
