"""`smsbill doctor --after-restore`: PostgreSQL is back at an earlier moment, Redis and the carrier have gone on.

What the restored records do not know is told and, with `repair`, settled, so that nothing is sent twice:

* a dispatch that had not been submitted at the moment is held (`smsgateway.store.restoring`). The carrier's record, and
  the receipts that came since, say which the carrier has: those are paid for and recorded as sent. With the whole
  record of the carrier the others are queued again; without it nobody knows, so that their outcome becomes unknown,
  which a receipt or time decides. A chunk whose numbers the carrier took under another call is not sent either: it may
  have been halved since.
* calls whose messages are lost are told by brand with the segments that the carrier took, for a human to settle; their
  references are filed as routes, so that they are told once.
* entries of Redis without records are removed, records without entries are queued, receipts of lost messages parked.

No worker may run meanwhile. Every step is conditional, so an interrupted repair is begun again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr
from redis.asyncio import Redis

from costcenter.process import CostCenterProcess
from infra.database import FRESH_PLAN_OPTIONS, Database
from infra.errors import Refusal
from infra.heartbeat import Heartbeat
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from smsbill import carrier_record
from smsbill.failure import CommandError
from smsbill.findings import GOOD, NOTE, PROBLEM, Finding
from smsbill.settings import StackSettings
from smsgateway import reconciliation
from smsgateway.carriers.registry import carrier_kind
from smsgateway.dispatch_queue import DispatchQueue
from smsgateway.ledger_client import LedgerClient
from smsgateway.queues import QueueItem, Queues, open_redis, queue_of
from smsgateway.references import call_id_of, dispatch_of
from smsgateway.schema import DispatchState, Mode
from smsgateway.settling import MessageSettler
from smsgateway.store import accepting, receipts, restoring, sending, sweeping
from smsgateway.store.restoring import InboxReceipt, Key, Take, Unsettled
from smsgateway.store.sending import Acceptance
from workers.outbox_relay import OutboxRelay
from workers.sender import freeze_id_of
from workers.settlement import Settlement

T = TypeVar("T")

PAGE_SIZE = 1_000
# A younger record may be between the gateway's commit and its push.
PUSHED_SECONDS = 10.0
# Brands that are told one by one.
BRANDS_MAX = 100
# Rounds in which half accepted messages are finished; what is left then has no answer of the cost centre.
_FINISH_ROUNDS_MAX = 10_000
_LOST = "its message was lost in a restore"


@dataclass(slots=True)
class Taken:
    """A call that the carrier took: numbers with their segments, by its record and by receipts."""

    call_id: str
    carrier_id: str = ""
    recorded: dict[str, int] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, int]:
        """Every number that is known of; empty when only the call is."""
        return {**self.reported, **self.recorded}


@dataclass(frozen=True, slots=True)
class Observation:
    """One sign that the carrier took a message. `mobile` is empty where only the call is known."""

    key: Key
    call_id: str
    carrier_id: str = ""
    mobile: str = ""
    segments: int = 1
    recorded: bool = False


@dataclass(slots=True)
class Evidence:
    """What the carrier took of dispatches without an outcome, and of calls that no record knows. `nameless`: numbers
    that it took without being told a call id.
    """

    taken: dict[Key, Taken] = field(default_factory=dict)
    lost: dict[Key, Taken] = field(default_factory=dict)
    nameless: set[str] = field(default_factory=set)

    def lost_numbers(self) -> set[tuple[int, str]]:
        """Brands and numbers of the lost calls."""
        return {(key[0], mobile) for key, taken in self.lost.items() for mobile in taken.numbers}


@dataclass(slots=True)
class Judgement:
    """What becomes of the dispatches: the carrier has them, may have them, or has them not."""

    taken: list[tuple[Unsettled, Taken]] = field(default_factory=list)
    unsure: list[Unsettled] = field(default_factory=list)
    free: list[Unsettled] = field(default_factory=list)


def note(calls: dict[Key, Taken], seen: Observation) -> None:
    """Add an observation to the calls."""
    taken = calls.setdefault(seen.key, Taken(seen.call_id))
    # Of several calls of a dispatch the last one is it: those before it were surely not accepted.
    taken.call_id = max(taken.call_id, seen.call_id, key=lambda call_id: (len(call_id), call_id))
    taken.carrier_id = seen.carrier_id or taken.carrier_id
    if seen.mobile:
        (taken.recorded if seen.recorded else taken.reported)[seen.mobile] = seen.segments


def judge(
    dispatches: Iterable[Unsettled],
    evidence: Evidence,
    chunks: dict[Key, set[str]],
    *,
    moment: str,
    has_record: bool,
) -> Judgement:
    """Judge dispatches by the evidence.

    Parameters: `chunks` the numbers of those that are held, batch or single; `moment` of the restore; `has_record`
    whether the evidence is all that the carrier took.
    """
    judgement = Judgement()
    lost = evidence.lost_numbers()
    for dispatch in dispatches:
        taken = evidence.taken.get(dispatch.key)
        if taken is not None and dispatch.state != DispatchState.PARTIAL:
            judgement.taken.append((dispatch, taken))
        elif dispatch.is_held(moment):
            numbers = chunks.get(dispatch.key, set())
            # A single message is called under its own id or not at all; a chunk may have been halved.
            by_another = dispatch.mode == Mode.BATCH and any((dispatch.brand_id, number) in lost for number in numbers)
            if has_record and not by_another and not numbers & evidence.nameless:
                judgement.free.append(dispatch)
            else:
                judgement.unsure.append(dispatch)
    return judgement


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command was asked: the carrier's `record`; `restored_to` the moment of a restore that was not made by
    `smsbill restore`; `repair` to settle what is found; `service_token` for the ledger's calls of a repair.
    """

    record: Path | None = None
    restored_to: datetime | None = None
    repair: bool = False
    service_token: str = ""


class AfterRestore:
    """Looks at everything once. Parameters: `settings` with the servers' URLs; `pushed_seconds` as PUSHED_SECONDS."""

    def __init__(self, settings: StackSettings, wish: Wish, *, pushed_seconds: float = PUSHED_SECONDS) -> None:
        self._settings = settings
        self._wish = wish
        self._pushed_seconds = pushed_seconds
        simulated = carrier_kind(settings.carrier).describe(settings) is None
        self._account = "simulator" if simulated else settings.carrier_account
        self._database = Database(
            settings.database_url,
            size=2,
            statements=1,
            wait_seconds=settings.database_wait_seconds,
            options=FRESH_PLAN_OPTIONS,
            name="doctor",
        )
        self._redis: Redis = open_redis(settings.redis_url, connections_max=4, timeout_seconds=5, name="smsbill-doctor")
        self._queues = Queues(self._redis, receipt_streams=settings.receipt_streams)

    async def findings(self) -> list[Finding]:
        """Look, repair if that is wished, and tell. Raises `StartError`, `CommandError` and Redis' errors."""
        async with AsyncExitStack() as stack:
            await self._database.open()
            stack.push_async_callback(self._database.close)
            stack.push_async_callback(self._redis.aclose)
            async with self._database.connection() as connection:
                workers = await restoring.workers(connection)
            if workers:
                advice = (
                    "stop every worker, and all that start one, and look again; what they send now may be sent twice"
                )
                return [Finding("workers", PROBLEM, f"{workers} connections of workers", advice)]
            return [finding async for finding in self._findings()]

    async def _findings(self) -> AsyncIterator[Finding]:
        until = await self._moment()
        moment = "" if until is None else _text(until)
        if until is None:
            detail = "no restore holds messages"
            yield Finding("restore", NOTE, detail, "after one that `smsbill restore` did not make, say --restored-to")
        else:
            yield Finding("restore", NOTE, f"to {moment}")
        async with self._ledger() as ledger:
            if self._wish.repair and until is not None:
                await self._hold(moment, until, ledger)
            dispatches = await self._unsettled(until)
            evidence, orphans, stale = await self._evidence(dispatches)
            judgement = await self._judged(dispatches, evidence, moment)
            refused: list[tuple[Unsettled, str]] = []
            if self._wish.repair:
                refused = await self._settle(judgement, moment, ledger)
        for finding in self._told(judgement, refused):
            yield finding
        yield await self._receipts_found(orphans)
        for finding in self._lost_told(evidence.lost):
            yield finding
        if self._wish.repair:
            await self._file(evidence.lost)
        yield await self._stale_receipts(stale)
        yield await self._strange_entries()
        yield await self._missing_entries()
        if until is not None:
            yield await self._awaiting(until)

    # What was held at which moment.

    async def _moment(self) -> datetime | None:
        if self._wish.restored_to is not None:
            return self._wish.restored_to.astimezone(UTC)
        async with self._database.connection() as connection:
            moments = await restoring.held_by(connection)
        return datetime.fromisoformat(moments[0]) if moments else None

    async def _hold(self, moment: str, until: datetime, ledger: LedgerClient | None) -> None:
        async with self._database.connection() as connection:
            await restoring.hold(connection, moment, until=until)
        await self._finish_accepting(ledger)

    async def _finish_accepting(self, ledger: LedgerClient | None) -> None:
        """Single messages that a gateway left half accepted: frozen and queued, which leaves them held, or refused."""
        assert ledger is not None
        queue = DispatchQueue(self._database, self._queues, self._settings, Heartbeat(self._settings.watchdog_seconds))
        settler = MessageSettler(self._database, ledger, queue, IdentifierSource())
        try:
            for _ in range(_FINISH_ROUNDS_MAX):
                async with self._database.connection() as connection:
                    items = await accepting.abandoned_messages(connection, older_than_seconds=0, limit=PAGE_SIZE)
                if not items:
                    return
                outcomes = await settler.settle(items)
                if all(isinstance(outcome, Refusal) and outcome.reason == "UNAVAILABLE" for outcome in outcomes):
                    raise CommandError("the cost centre does not answer; look at its database and repair again")
        finally:
            await queue.close()

    # What the carrier has.

    async def _unsettled(self, until: datetime | None) -> dict[Key, Unsettled]:
        if until is None:
            return {}
        async with self._database.connection() as connection:
            pages = restoring.unsettled(connection, until=until, page_size=PAGE_SIZE)
            return {dispatch.key: dispatch async for page in pages for dispatch in page}

    async def _evidence(
        self, dispatches: dict[Key, Unsettled]
    ) -> tuple[Evidence, list[InboxReceipt], list[tuple[int, str]]]:
        """The evidence, receipts of lost messages, and entries (stream, entry) whose receipts are not in the inbox."""
        evidence = Evidence()
        waiting: list[Observation] = []

        async def add(seen: Observation, *, now: bool = False) -> None:
            waiting.append(seen)
            if len(waiting) >= PAGE_SIZE:
                await self._sort(waiting, dispatches, evidence)
                waiting.clear()

        for row in carrier_record.read(self._wish.record) if self._wish.record else ():
            place = dispatch_of(row.call_id)
            if place is not None:
                await add(Observation(place, row.call_id, row.carrier_id, row.mobile, row.segments, recorded=True))
            elif not row.call_id:
                evidence.nameless.add(row.mobile)
        inbox: list[InboxReceipt] = []
        async with self._database.connection() as connection:
            async for page in restoring.inbox(connection, page_size=PAGE_SIZE):
                for receipt in page:
                    place = dispatch_of(receipt.call_id)
                    if place is None:
                        continue
                    carrier_id = receipt.reference if receipt.reference != receipt.call_id else ""
                    segments = receipt.billed_segments or 1
                    await add(Observation(place, receipt.call_id, carrier_id, receipt.mobile, segments))
                    inbox.append(receipt)
        stale = []
        async for number, entry, call_ids in self._streamed():
            stale.append((number, entry))
            for call_id in call_ids:
                place = dispatch_of(call_id)
                if place is not None:
                    await add(Observation(place, call_id))
        await self._sort(waiting, dispatches, evidence)
        orphans = [each for each in inbox if not each.parked and dispatch_of(each.call_id) in evidence.lost]
        return evidence, orphans, stale

    async def _sort(
        self, observations: Sequence[Observation], dispatches: dict[Key, Unsettled], evidence: Evidence
    ) -> None:
        strange = {(*seen.key, seen.call_id) for seen in observations if seen.key not in dispatches}
        lost: set[tuple[int, str, str]] = set()
        if strange:
            async with self._database.connection() as connection:
                lost = await restoring.unknown_calls(connection, self._account, sorted(strange))
        for seen in observations:
            if seen.key in dispatches:
                note(evidence.taken, seen)
            elif (*seen.key, seen.call_id) in lost:
                note(evidence.lost, seen)

    async def _streamed(self) -> AsyncIterator[tuple[int, str, list[str]]]:
        """Entries of the receipt streams of which no receipt is in the inbox, with the call ids that they name."""
        for number in range(self._queues.receipt_streams):
            after = "-"
            while entries := await self._queues.look_at_receipts(number, after=after, count=PAGE_SIZE // 10):
                after = entries[-1].entry_id
                async with self._database.statement() as connection:
                    loaded = await receipts.load(connection, [item for entry in entries for item in entry.items])
                known = {receipt.inbox_id for receipt, _ in loaded}
                for entry in entries:
                    if not any(item.inbox_id in known for item in entry.items):
                        yield number, entry.entry_id, [item.call_id for item in entry.items]

    async def _judged(self, dispatches: dict[Key, Unsettled], evidence: Evidence, moment: str) -> Judgement:
        held = [dispatch for dispatch in dispatches.values() if dispatch.is_held(moment)]
        chunks: dict[Key, set[str]] = {}
        for page in _paged(held):
            async with self._database.connection() as connection:
                chunks |= await restoring.mobiles(connection, [dispatch.key for dispatch in page])
        return judge(dispatches.values(), evidence, chunks, moment=moment, has_record=self._wish.record is not None)

    # Settling the dispatches.

    async def _settle(
        self, judgement: Judgement, moment: str, ledger: LedgerClient | None
    ) -> list[tuple[Unsettled, str]]:
        """Settle them; those that could not be, with the reason."""
        refused: list[tuple[Unsettled, str]] = []
        calls = {dispatch.key: taken.call_id for dispatch, taken in judgement.taken}
        parked = [dispatch for dispatch, _ in judgement.taken if dispatch.state == DispatchState.QUEUED]
        paid: dict[Key, Take] = {}
        for page in _paged([*parked, *judgement.unsure]):
            assert ledger is not None
            found, unpaid = await self._paid(page, calls, ledger)
            paid |= found
            refused += unpaid
            if found:
                async with self._database.connection() as connection:
                    await restoring.take(connection, list(found.values()))
        await self._accept(judgement.taken, paid)
        for page in _paged(judgement.free):
            async with self._database.connection() as connection:
                items = await restoring.release(connection, moment, [dispatch.key for dispatch in page])
            await self._push(items)
        return refused

    async def _paid(
        self, dispatches: Sequence[Unsettled], calls: dict[Key, str], ledger: LedgerClient
    ) -> tuple[dict[Key, Take], list[tuple[Unsettled, str]]]:
        """Pay for held dispatches as a worker would, and for those that cannot be paid the reason."""
        orders = {dispatch.key: dispatch.order_no or "" for dispatch in dispatches}
        paid, ended, refused = await self._pay(dispatches, orders, ledger)
        if ended:
            frozen = await self._frozen(ended, orders, ledger)
            anew = {
                each.key: reply.order_no
                for each, reply in zip(ended, frozen, strict=True)
                if not isinstance(reply, Refusal)
            }
            refused += [
                (each, reply.reason) for each, reply in zip(ended, frozen, strict=True) if isinstance(reply, Refusal)
            ]
            async with self._database.connection() as connection:
                await restoring.set_orders(connection, anew)
            orders |= anew
            more, again, unpaid = await self._pay([each for each in ended if each.key in anew], orders, ledger)
            paid |= more
            refused += unpaid + [(each, "FREEZE_EXPIRED") for each in again]
        takes = {
            dispatch.key: Take(
                *dispatch.key,
                orders[dispatch.key],
                paid[dispatch.key],
                self._account,
                calls.get(dispatch.key) or call_id_of(dispatch.dispatch_id, dispatch.attempts),
            )
            for dispatch in dispatches
            if dispatch.key in paid
        }
        return takes, refused

    @staticmethod
    async def _pay(
        dispatches: Sequence[Unsettled], orders: dict[Key, str], ledger: LedgerClient
    ) -> tuple[dict[Key, str], list[Unsettled], list[tuple[Unsettled, str]]]:
        """Payment numbers, those whose freeze has ended, and those refused. A payment that exists is found again."""
        replies = await ledger.batch_pay(
            [
                cost_center_pb2.SmsSendPayRequest(
                    brand_id=each.brand_id,
                    request_id=each.dispatch_id,
                    order_no=orders[each.key],
                    segments=each.segments,
                )
                for each in dispatches
            ]
        )
        paid: dict[Key, str] = {}
        ended: list[Unsettled] = []
        refused: list[tuple[Unsettled, str]] = []
        for each, reply in zip(dispatches, replies, strict=True):
            if not isinstance(reply, Refusal):
                paid[each.key] = reply.payment_no
            elif reply.reason == "FREEZE_EXPIRED":
                ended.append(each)
            else:
                refused.append((each, reply.reason))
        return paid, ended, refused

    @staticmethod
    async def _frozen(
        dispatches: Sequence[Unsettled], orders: dict[Key, str], ledger: LedgerClient
    ) -> list[cost_center_pb2.SmsSendPrePayResponse | Refusal]:
        """Freeze anew for dispatches whose freeze has ended."""
        return await ledger.batch_freeze(
            [
                cost_center_pb2.SmsSendPrePayRequest(
                    brand_id=each.brand_id,
                    request_id=freeze_id_of(each.dispatch_id, orders[each.key]),
                    sms_type=each.sms_type,  # type: ignore[arg-type] # the record holds the enum's number
                    segments=each.segments,
                )
                for each in dispatches
            ]
        )

    async def _accept(self, taken: Sequence[tuple[Unsettled, Taken]], paid: dict[Key, Take]) -> None:
        """Record as sent what the carrier took; what it took in part is decided by its receipts."""
        acceptances = []
        for dispatch, found in taken:
            take = paid.get(dispatch.key)
            call_id, payment_no = (take.call_id, take.payment_no) if take else (dispatch.call_id, dispatch.payment_no)
            if take is None and dispatch.state not in (DispatchState.SUBMITTING, DispatchState.UNKNOWN):
                continue
            assert call_id is not None, "nothing is submitted without a call id"
            assert payment_no is not None, "nothing is submitted unpaid"
            missing = dispatch.messages - len(found.numbers) if found.recorded else 0
            acceptances.append(
                Acceptance(*dispatch.key, call_id, payment_no, found.carrier_id or None, "", max(0, missing))
            )
        settlement = Settlement(self._database, _NoRelay(), IdentifierSource(), hold_seconds=0)
        for page in _paged(acceptances):
            await settlement.accept(page)

    async def _push(self, items: Sequence[QueueItem]) -> None:
        if not items:
            return
        entries = await self._queues.push(items)
        async with self._database.connection() as connection:
            await sweeping.set_entries(
                connection, [(item.brand_id, item.id, entry) for item, entry in zip(items, entries, strict=True)]
            )

    def _told(self, judgement: Judgement, refused: Sequence[tuple[Unsettled, str]]) -> Iterator[Finding]:
        left = {dispatch.key for dispatch, _ in refused}
        told = [
            (
                "taken since",
                sum(dispatch.key not in left for dispatch, _ in judgement.taken),
                "the carrier took what the records have as not sent",
                "--repair pays for it and records it as sent",
                "paid and recorded as sent",
            ),
            (
                "perhaps taken",
                sum(dispatch.key not in left for dispatch in judgement.unsure),
                "not submitted at the moment; nobody knows whether the carrier took it since",
                "give the carrier's whole record (--carrier-record); else --repair: not sent, receipts or time decide",
                "not to be sent; receipts or time decide",
            ),
            (
                "not taken",
                len(judgement.free),
                "not submitted at the moment, and the carrier has it not",
                "--repair queues it again",
                "queued again",
            ),
        ]
        for what, count, found, advice, done in told:
            yield self._counted(what, count, "messages or chunks", found, advice, done)
        if refused:
            reasons = ", ".join(sorted({reason for _, reason in refused}))
            detail = f"{len(refused):,} messages or chunks stay held: the cost centre refuses their payment ({reasons})"
            yield Finding(
                "not paid", PROBLEM, detail, "settle that with the brand and repair again, or drop them (parked)"
            )

    def _counted(self, what: str, count: int, things: str, found: str, advice: str, done: str) -> Finding:
        if not count:
            return Finding(what, GOOD, "none")
        if self._wish.repair:
            return Finding(what, GOOD, f"{count:,} {things}: {done}")
        return Finding(what, PROBLEM, f"{count:,} {things}: {found}", advice)

    # Lost messages.

    async def _receipts_found(self, orphans: Sequence[InboxReceipt]) -> Finding:
        if self._wish.repair:
            for page in _paged(orphans):
                async with self._database.connection() as connection:
                    await restoring.file_receipts(connection, page, why=_LOST)
        return self._counted(
            "receipts of lost messages",
            len(orphans),
            "receipts",
            "their messages are in no record",
            "--repair parks them, instead of trying for days",
            "parked (`smsbill parked list --kind receipt`)",
        )

    def _lost_told(self, lost: dict[Key, Taken]) -> Iterator[Finding]:
        if not lost:
            yield Finding("lost messages", GOOD, "none that the carrier tells of")
            return
        by_brand: dict[int, list[Taken]] = {}
        for (brand_id, _), taken in lost.items():
            by_brand.setdefault(brand_id, []).append(taken)
        advice = "the brand has not paid for them: adjust its package (AdjustPackage) if it shall; ask it what it sent"
        for brand_id in sorted(by_brand)[:BRANDS_MAX]:
            calls = by_brand[brand_id]
            messages = sum(max(1, len(taken.numbers)) for taken in calls)
            segments = sum(sum(taken.numbers.values()) or 1 for taken in calls)
            filed = "; told once, they are filed now" if self._wish.repair else ""
            detail = f"the carrier took {segments:,} segments in {messages:,} messages that no record knows{filed}"
            yield Finding(f"lost messages of brand {brand_id}", PROBLEM, detail, advice)
        if len(by_brand) > BRANDS_MAX:
            yield Finding("lost messages", PROBLEM, f"of {len(by_brand) - BRANDS_MAX:,} brands more", advice)

    async def _file(self, lost: dict[Key, Taken]) -> None:
        routes = [
            (self._account, reference, *key)
            for key, taken in lost.items()
            for reference in {taken.call_id, taken.carrier_id} - {""}
        ]
        for page in _paged(routes):
            async with self._database.connection() as connection:
                await sending.insert_routes(connection, page)

    # Redis.

    async def _stale_receipts(self, stale: Sequence[tuple[int, str]]) -> Finding:
        if self._wish.repair:
            for number in range(self._queues.receipt_streams):
                for page in _paged([entry for stream, entry in stale if stream == number]):
                    await self._queues.acknowledge_receipts(number, page)
        return self._counted(
            "receipts in Redis",
            len(stale),
            "entries",
            "name receipts that no record has",
            "--repair removes them; what they tell of calls is used",
            "removed",
        )

    async def _strange_entries(self) -> Finding:
        entries = []
        brands = set()
        async with self._database.connection() as connection:
            async for found in reconciliation.entries_without_record(connection, self._redis, PAGE_SIZE):
                key, _, entry = found.subject.rpartition(" ")
                queue = queue_of(key)
                assert queue is not None
                entries.append((queue, entry))
                brands.add(found.brand_id)
        if self._wish.repair:
            for page in _paged(entries):
                await self._queues.acknowledge(page)
        named = ", ".join(str(brand_id) for brand_id in sorted(brands)[:BRANDS_MAX])
        return self._counted(
            "queue entries",
            len(entries),
            f"entries of brands {named}",
            "their messages are lost; what was not sent has to be sent again by its caller",
            "--repair removes them",
            "removed; what was not sent has to be sent again by its caller",
        )

    async def _missing_entries(self) -> Finding:
        count = 0
        after = None
        while True:
            async with self._database.connection() as connection:
                page = await sweeping.stalled(
                    connection,
                    DispatchState.QUEUED,
                    older_than_seconds=self._pushed_seconds,
                    after=after,
                    limit=PAGE_SIZE,
                )
            items = [QueueItem(each.brand_id, each.sms_type, Mode(each.mode), each.dispatch_id) for each in page]
            present = await self._queues.present(
                [(item, each.stream_entry) for item, each in zip(items, page, strict=True)]
            )
            missing = [item for item, there in zip(items, present, strict=True) if not there]
            count += len(missing)
            if self._wish.repair:
                await self._push(missing)
            if len(page) < PAGE_SIZE:
                break
            after = page[-1].cursor
        return self._counted(
            "records in no queue",
            count,
            "messages or chunks",
            "queued by their record and in no queue",
            "--repair queues them; so would a worker's sweeper",
            "queued",
        )

    async def _awaiting(self, until: datetime) -> Finding:
        async with self._database.connection() as connection:
            count = await restoring.awaiting_receipts(connection, until=until)
        if not count:
            return Finding("receipts to come", GOOD, "none")
        detail = f"{count:,} messages sent before the moment have no receipt; the restore may have undone some"
        return Finding(
            "receipts to come", NOTE, detail, "ask the carrier for its receipts again; else they expire in time"
        )

    # The cost centre.

    @asynccontextmanager
    async def _ledger(self) -> AsyncIterator[LedgerClient | None]:
        """For a repair: a cost centre of our own on this machine, so that no service has to run."""
        if not self._wish.repair:
            yield None
            return
        private = self._settings.model_copy(
            update={
                "costcenter_address": "127.0.0.1:0",
                "costcenter_http_address": "127.0.0.1:0",
                "service_token": SecretStr(self._wish.service_token),
                "bootstrap_token": SecretStr(""),
                "grpc_tls_certificate": None,
                "grpc_tls_key": None,
                "grpc_tls_ca": None,
            }
        )
        process = CostCenterProcess(private)
        await process.start()
        try:
            client = LedgerClient(private.model_copy(update={"costcenter_target": f"127.0.0.1:{process.port}"}))
            try:
                yield client
            finally:
                await client.close()
        finally:
            await process.stop()


def _paged(items: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), PAGE_SIZE):
        yield list(items[start : start + PAGE_SIZE])


class _NoRelay(OutboxRelay):
    """What is owed stays in the outbox: the workers deliver it once they run."""

    def __init__(self) -> None:
        pass

    def offer(self, rows: Sequence[object]) -> None:
        """Nothing is sent from here."""


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
