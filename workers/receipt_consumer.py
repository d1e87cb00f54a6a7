"""Settling receipts: from the inbox to the cost centre and the message, many at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from infra import tracing
from infra.crash_points import reach
from infra.database import Connection, Database
from infra.errors import Refusal
from infra.grouping import Grouper, isolating
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.ledger_client import Unsettled
from smsgateway.mobile import mask_mobile
from smsgateway.queues import RECEIPTS_PER_ENTRY, Queues, ReceiptEntry, ReceiptItem
from smsgateway.schema import DispatchState, MessageState
from smsgateway.store import receipts as store
from smsgateway.store.counting import record_refunds
from smsgateway.store.receipts import Addressee, Finality, Receipt, ReceiptPutOff, Route
from smsgateway.store.sending import Acceptance
from workers.backoff import delay_seconds
from workers.loops import OUTAGES
from workers.metrics import (
    BILLED_OTHERWISE,
    CARRIER_REFUNDED,
    PARKED,
    RECEIPTS,
    REFUNDED,
    RESULTS,
    RETRIES,
    STAGE_SECONDS,
    STAGE_SIZE,
    TYPE_NAMES,
)
from workers.outcomes import OUTCOMES
from workers.settings import Settings
from workers.settlement import Settlement

log = structlog.get_logger(__name__)

_State = cost_center_pb2.ReceiptState
_FINAL: dict[int, MessageState] = {
    _State.RECEIPT_STATE_DELIVERED: MessageState.DELIVERED,
    _State.RECEIPT_STATE_UNDELIVERED: MessageState.UNDELIVERED,
    _State.RECEIPT_STATE_EXPIRED: MessageState.EXPIRED,
}
_RESULT_NAMES = {
    MessageState.DELIVERED: "delivered",
    MessageState.UNDELIVERED: "undelivered",
    MessageState.EXPIRED: "expired",
}
_DELAY_BASE_SECONDS = 1.0
_DELAY_MAX_SECONDS = 3_600.0
_DELAY_IN_OUTAGE_MAX_SECONDS = 15.0
_CODE_CHARACTERS_MAX = 64
# Entries of a stream read at once; each holds up to `RECEIPTS_PER_ENTRY` receipts.
_ENTRIES_PER_READ = 50


class ReceiptLedger(Protocol):
    """What of the cost centre receipts need (`smsgateway.ledger_client.LedgerClient`)."""

    async def batch_receipt(
        self, items: Sequence[cost_center_pb2.SmsReceiptStatusCallBackRequest]
    ) -> list[cost_center_pb2.SmsReceiptStatusCallBackResponse | Refusal]: ...


@dataclass(frozen=True, slots=True)
class _Matched:
    """A receipt with the message that it speaks of, and the payment that charged it."""

    receipt: Receipt
    addressee: Addressee
    payment_no: str


class ReceiptConsumer:
    """Reads the receipt streams and settles what they name. What cannot be settled is put off, never dropped."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        ledger: ReceiptLedger,
        settlement: Settlement,
        worker: str,
        settings: Settings,
    ) -> None:
        self._database = database
        self._queues = queues
        self._ledger = ledger
        self._settlement = settlement
        self._worker = worker
        self._settings = settings
        self._spans = tracing.active()
        self._taken_over_at = [0.0] * queues.receipt_streams
        # What was read and is not settled; a turn that failed begins with it again.
        self._in_hand: list[list[ReceiptEntry]] = [[] for _ in range(queues.receipt_streams)]
        self._settle_isolated = isolating(self._settle_all, OUTAGES)
        # What several streams bring at about the same time is settled together.
        self._grouper: Grouper[Sequence[ReceiptItem], None] = Grouper(
            self._settle_together,
            group_max=settings.receipt_read_max,
            queue_max=queues.receipt_streams * _ENTRIES_PER_READ * RECEIPTS_PER_ENTRY,
            weigh=len,
            gather_seconds=settings.receipt_gather_seconds,
            name="queue of receipts to settle",
        )

    async def step(self, number: int) -> bool:
        """One turn of one stream: read, settle, acknowledge. Waits for receipts a while; True to go on at once."""
        if not self._in_hand[number]:
            self._in_hand[number] = await self._read(number)
        entries = self._in_hand[number]
        items = [item for entry in entries for item in entry.items]
        step = self._settings.receipt_read_max
        parts = [self._grouper.submit(items[start : start + step]) for start in range(0, len(items), step)]
        for outcome in await asyncio.gather(*parts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self._in_hand[number] = []
        await self._queues.acknowledge_receipts(number, [entry.entry_id for entry in entries])
        if entries:
            reach("worker.receipt.acknowledged")
        return True

    async def _read(self, number: int) -> list[ReceiptEntry]:
        settings = self._settings
        now = time.monotonic()
        if now - self._taken_over_at[number] >= settings.receipt_takeover_seconds / 2:
            self._taken_over_at[number] = now
            entries = await self._queues.take_over_receipts(
                number,
                self._worker,
                idle_ms=int(settings.receipt_takeover_seconds * 1_000),
                count=_ENTRIES_PER_READ,
            )
            if entries:
                return entries
        return await self._queues.read_receipts(
            number,
            self._worker,
            count=_ENTRIES_PER_READ,
            wait_ms=max(1, int(settings.receipt_wait_seconds * 1_000)),
        )

    async def _settle_together(self, groups: list[Sequence[ReceiptItem]]) -> list[None]:
        # An id may be queued twice; settled together the same receipt would be reported twice in one call.
        items = list(dict.fromkeys(item for group in groups for item in group))
        if self._spans is None:
            await self.settle(items)
        else:
            attributes = {"smsbill.receipts": len(items)}
            with self._spans.continued("settle receipts", [item.trace for item in items], attributes=attributes):
                await self.settle(items)
        return [None] * len(groups)

    async def settle(self, items: Sequence[ReceiptItem]) -> None:
        """Settle receipts, or put off those that cannot be. A receipt that is gone was settled before."""
        if not items:
            return
        for item, error in zip(items, await self._settle_isolated(list(items)), strict=True):
            if isinstance(error, Exception):
                log.error("receipt not settled", inbox_id=item.inbox_id, exc_info=error)
                async with self._database.connection() as connection:
                    loaded = await store.load(connection, [item])
                    await store.put_off(connection, [self._put_off(one, repr(error), None) for one, _ in loaded])

    async def _settle_all(self, items: list[ReceiptItem]) -> list[Exception | None]:
        reach("worker.receipt.read")
        started = time.perf_counter()
        async with self._database.statement() as connection:
            loaded = await store.load(connection, items)
        matched, put_off = await self._match(loaded)
        of_parts = [item for item in matched if item.addressee.parts_open is not None]
        noted: list[_Matched] = []
        if of_parts:
            noted = await self._note_parts(of_parts)
            only_noted = {item.receipt.inbox_id for item in noted}
            matched = [item for item in matched if item.receipt.inbox_id not in only_noted]
        unsettled = [item for item in matched if _is_undecided(item.addressee)]
        if unsettled:
            await self._settle_dispatches(unsettled)
            reach("worker.receipt.decided")
        outcomes = await self._report(matched)
        settled: list[_Matched] = []
        refunds: list[tuple[int, str, int]] = []
        for item, outcome in zip(matched, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                put_off.append(self._put_off(item.receipt, f"{outcome.reason}: {outcome.message}", outcome))
            else:
                settled.append(item)
                if outcome.refunded:
                    REFUNDED.labels("receipt").inc(outcome.refunded)
                    CARRIER_REFUNDED.labels(item.receipt.account, "undelivered").inc(outcome.refunded)
                    refunds.append((item.addressee.brand_id, item.addressee.message_id, outcome.refunded))
        changed: list[tuple[int, str, int, int]] = []
        if settled or noted:
            reach("worker.receipt.reported")
            finals = [_finality(item) for item in settled if item.receipt.state in _FINAL]
            items_settled = [_item(item.receipt) for item in (*settled, *noted)]
            if refunds:
                async with self._database.connection() as connection:
                    changed = await store.settle(connection, items_settled, _first_per_message(finals))
                    await record_refunds(connection, refunds)
            else:
                async with self._database.statement() as connection:
                    changed = await store.settle(connection, items_settled, _first_per_message(finals))
            reach("worker.receipt.settled")
        if put_off:
            async with self._database.connection() as connection:
                await store.put_off(connection, put_off)
            reach("worker.receipt.put_off")
        self._count(settled, changed)
        for item in noted:
            RECEIPTS.labels(item.receipt.account, "part").inc()
        if put_off:
            log.info("receipts put off", reasons=dict(Counter(item.error for item in put_off)))
        STAGE_SECONDS.labels("receipts").observe(time.perf_counter() - started)
        STAGE_SIZE.labels("receipts").observe(len(items))
        return [None] * len(items)

    async def requeue_due(self, limit: int) -> int:
        """Queue receipts again that are due; return how many."""
        async with self._database.connection() as connection:
            items = await store.take_due(connection, hold_seconds=self._settings.receipt_requeue_seconds, limit=limit)
        if items:
            reach("worker.sweep.receipts")
        await self._queues.push_receipts(items)
        return len(items)

    async def count_parked(self) -> None:
        """Tell how many are parked."""
        async with self._database.connection() as connection:
            PARKED.labels("receipts").set(await store.count_parked(connection))

    # Whose receipt is it.

    async def _match(
        self, loaded: Sequence[tuple[Receipt, Addressee | None]]
    ) -> tuple[list[_Matched], list[ReceiptPutOff]]:
        by_reference = [receipt for receipt, addressee in loaded if not _is_theirs(receipt, addressee)]
        routes: dict[tuple[str, str], Route] = {}
        found: dict[tuple[int, str, str], Addressee] = {}
        if by_reference:
            async with self._database.connection() as connection:
                routes, found = await self._look_up(connection, by_reference)
        matched: list[_Matched] = []
        put_off: list[ReceiptPutOff] = []
        for receipt, direct in loaded:
            addressee: Addressee | None
            if direct is not None and _is_theirs(receipt, direct):
                addressee, why = _judged(direct)
            else:
                addressee, why = _addressee(receipt, routes, found)
            payment_no = None if addressee is None else addressee.payment_no or addressee.dispatch_payment_no
            if addressee is None or payment_no is None:
                put_off.append(self._put_off(receipt, why or "its message was never paid for", None))
            else:
                matched.append(_Matched(receipt, addressee, payment_no))
        return matched, put_off

    async def _look_up(
        self, connection: Connection, receipts: Sequence[Receipt]
    ) -> tuple[dict[tuple[str, str], Route], dict[tuple[int, str, str], Addressee]]:
        references = {(receipt.account, reference) for receipt in receipts for reference in _references(receipt)}
        routes = await store.find_routes(connection, sorted(references)) if references else {}
        asked = {
            (route.brand_id, route.dispatch_id, receipt.mobile)
            for receipt in receipts
            for route in _routes(receipt, routes)
        }
        return routes, await store.find_messages(connection, sorted(asked)) if asked else {}

    async def _note_parts(self, items: Sequence[_Matched]) -> list[_Matched]:
        """Record which parts of messages are delivered. Those receipts that say nothing of a message as a whole: what
        is recorded here is all that they bring.
        """
        delivered = [item for item in items if item.receipt.state == _State.RECEIPT_STATE_DELIVERED]
        closed: dict[tuple[int, str], list[str]] = {}
        if delivered:
            async with self._database.statement() as connection:
                closed = await store.close_parts(connection, [_part_of(item) for item in delivered])
            reach("worker.receipt.parts")
        return [item for item in items if not _decides(item, closed)]

    async def _settle_dispatches(self, items: Sequence[_Matched]) -> None:
        """A receipt says that the carrier took the call: record that first."""
        calls: dict[tuple[int, str], Acceptance] = {}
        for item in items:
            addressee, receipt = item.addressee, item.receipt
            assert addressee.dispatch_call_id is not None
            assert addressee.dispatch_payment_no is not None, "nothing is submitted unpaid"
            carrier_id = receipt.reference if receipt.reference != addressee.dispatch_call_id else None
            calls[addressee.brand_id, addressee.dispatch_id] = Acceptance(
                addressee.brand_id, addressee.dispatch_id, addressee.dispatch_call_id,
                addressee.dispatch_payment_no, carrier_id, "",
            )  # fmt: skip
        done = await self._settlement.accept(list(calls.values()))
        log.info("outcomes decided by receipts", dispatches=sum(done))

    # What the cost centre says.

    async def _report(
        self, matched: Sequence[_Matched]
    ) -> Sequence[cost_center_pb2.SmsReceiptStatusCallBackResponse | Refusal]:
        if not matched:
            return []
        try:
            return await self._ledger.batch_receipt([_request(item) for item in matched])
        except Refusal as refusal:
            return [refusal] * len(matched)

    # Later, perhaps.

    def _put_off(self, receipt: Receipt, why: str, refusal: Refusal | None) -> ReceiptPutOff:
        RETRIES.labels("receipt").inc()
        parked = receipt.age_seconds > self._settings.receipt_hours * 3_600
        longest = _DELAY_MAX_SECONDS
        if isinstance(refusal, Unsettled):
            # An outage says nothing about the receipt, and its end must not find it asleep.
            parked, longest = False, _DELAY_IN_OUTAGE_MAX_SECONDS
        if parked:
            log.error(
                "receipt parked",
                inbox_id=receipt.inbox_id,
                reference=receipt.reference,
                attempts=receipt.attempts + 1,
                why=why,
            )
        delay = delay_seconds(receipt.attempts + 1, base=_DELAY_BASE_SECONDS, longest=longest)
        return ReceiptPutOff(_item(receipt), None if parked else delay, why)

    def _count(self, settled: Sequence[_Matched], changed: Sequence[tuple[int, str, int, int]]) -> None:
        finals = {(brand_id, message_id) for brand_id, message_id, _, _ in changed}
        for brand_id, _, sms_type, state in changed:
            RESULTS.labels(TYPE_NAMES[sms_type], _RESULT_NAMES[MessageState(state)]).inc()
            OUTCOMES.note(brand_id, sms_type, final=1, failed=int(state != MessageState.DELIVERED))
        for item in settled:
            key = (item.addressee.brand_id, item.addressee.message_id)
            if item.receipt.state not in _FINAL:
                result = "pending"
            elif key in finals:
                finals.discard(key)
                # Only one receipt makes a message final, so each difference is told once, by whichever worker.
                _compare_segments(item)
                result = _RESULT_NAMES[_FINAL[item.receipt.state]]
            else:
                result = "repeated"
            RECEIPTS.labels(item.receipt.account, result).inc()


def _compare_segments(item: _Matched) -> None:
    """Tell when the carrier counts a message's segments otherwise than we do: one of the two bills is wrong."""
    receipt, addressee = item.receipt, item.addressee
    billed = receipt.billed_segments
    if billed is None or billed == addressee.segments:
        return
    BILLED_OTHERWISE.labels(receipt.account, "more" if billed > addressee.segments else "fewer").inc()
    log.warning(
        "carrier bills other segments",
        account=receipt.account,
        brand_id=addressee.brand_id,
        message_id=addressee.message_id,
        mobile=mask_mobile(receipt.mobile),
        ours=addressee.segments,
        theirs=billed,
    )


def _references(receipt: Receipt) -> list[str]:
    """What a receipt may be known by, the surest first: the id of our call, then the carrier's."""
    return [reference for reference in (receipt.call_id, receipt.reference) if reference]


def _routes(receipt: Receipt, routes: dict[tuple[str, str], Route]) -> list[Route]:
    known = (routes.get((receipt.account, reference)) for reference in _references(receipt))
    return [route for route in known if route is not None]


def _addressee(
    receipt: Receipt, routes: dict[tuple[str, str], Route], found: dict[tuple[int, str, str], Addressee]
) -> tuple[Addressee | None, str]:
    """The message of a receipt, or why it has none yet."""
    known = _routes(receipt, routes)
    if not known:
        return None, "no call is known by its ids"
    for route in known:
        addressee = found.get((route.brand_id, route.dispatch_id, receipt.mobile))
        if addressee is None:
            continue
        return _judged(addressee)
    return None, "its call has no such number"


def _is_theirs(receipt: Receipt, addressee: Addressee | None) -> bool:
    """Whether the message that a receipt's call id leads to was submitted to the account that reports."""
    return addressee is not None and addressee.account == receipt.account


def _judged(addressee: Addressee) -> tuple[Addressee | None, str]:
    """The message, unless its receipt comes too early to be settled."""
    if addressee.state != MessageState.QUEUED or _is_undecided(addressee):
        return addressee, ""
    return None, "its message is not sent yet"


def _is_undecided(addressee: Addressee) -> bool:
    """Whether a receipt decides what became of the call.

    The answer to a batch may still tell that a part of it failed, which a receipt cannot: it is waited for.
    """
    if addressee.state != MessageState.QUEUED:
        return False
    if addressee.dispatch_state == DispatchState.UNKNOWN:
        return True
    return addressee.dispatch_state == DispatchState.SUBMITTING and not addressee.of_batch


def _part_of(item: _Matched) -> tuple[int, str, str]:
    return item.addressee.brand_id, item.addressee.message_id, item.receipt.reference


def _decides(item: _Matched, closed: dict[tuple[int, str], list[str]]) -> bool:
    """Whether the receipt of a part is the message's, too. `closed`: the parts that are open since some were closed.

    All delivered: delivered; one that finally is not: undelivered. A message that was not taken as a whole, or not
    surely, has its outcome from elsewhere.
    """
    receipt, addressee = item.receipt, item.addressee
    still_open = closed.get((addressee.brand_id, addressee.message_id), addressee.parts_open or [])
    if addressee.state in (MessageState.QUEUED, MessageState.FAILED) or receipt.state not in _FINAL:
        return False
    if receipt.state == _State.RECEIPT_STATE_DELIVERED:
        return not still_open
    # Of one part the first final receipt stays.
    return receipt.reference in still_open


def _request(item: _Matched) -> cost_center_pb2.SmsReceiptStatusCallBackRequest:
    receipt, addressee = item.receipt, item.addressee
    request = cost_center_pb2.SmsReceiptStatusCallBackRequest(
        brand_id=addressee.brand_id,
        request_id=receipt.inbox_id,
        payment_no=item.payment_no,
        message_id=addressee.message_id,
        segments=addressee.segments,
        state=receipt.state,  # type: ignore[arg-type] # the record holds the enum's number
        carrier_code=receipt.carrier_code[:_CODE_CHARACTERS_MAX],
    )
    if receipt.reported_at is not None:
        request.reported_at.FromDatetime(receipt.reported_at)
    return request


def _finality(item: _Matched) -> Finality:
    receipt = item.receipt
    return Finality(
        item.addressee.brand_id,
        item.addressee.message_id,
        _FINAL[receipt.state],
        receipt.carrier_code,
        receipt.detail,
        receipt.reported_at,
    )


def _first_per_message(finals: Sequence[Finality]) -> list[Finality]:
    """One final state per message: a statement that joins two would pick any."""
    first: dict[tuple[int, str], Finality] = {}
    for final in finals:
        first.setdefault((final.brand_id, final.message_id), final)
    return list(first.values())


def _item(receipt: Receipt) -> ReceiptItem:
    return ReceiptItem(receipt.account, receipt.reference, receipt.inbox_id, receipt.call_id or "")
