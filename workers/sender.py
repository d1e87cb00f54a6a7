"""One dispatch from its queue to its outcome: claim → pay → choose the account → mark → call the carrier → record.

Many are under way at once, each a task of its own; every step that touches the database or the cost centre is done for
all that wait for it in one group. What can go wrong and what then holds is in `smsgateway.store.sending`; in short: a
call starts only after its mark, each mark has a call id of its own, and whoever lost its claim meanwhile stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

import structlog

from infra import tracing
from infra.crash_points import reach
from infra.database import Database
from infra.errors import Refusal
from infra.grouping import Grouper, isolating
from infra.heartbeat import Watchdog
from infra.identifiers import IdentifierSource
from protos.costcenter.v1 import cost_center_pb2
from smsgateway.carriers.base import (
    BatchCall,
    CallOutcome,
    Carrier,
    CarrierLimits,
    PersonalisedCall,
    SingleCall,
    Verdict,
)
from smsgateway.ledger_client import is_outage
from smsgateway.queues import Queue
from smsgateway.references import call_id_of
from smsgateway.routing import Routing
from smsgateway.schema import Mode
from smsgateway.store import sending
from smsgateway.store.sending import (
    Acceptance,
    Claimed,
    ClaimRequest,
    Failure,
    Mark,
    PutBack,
    Unmark,
    Unmarked,
)
from smsgateway.variables import parse, unpack_values
from workers.accounts import Account, Accounts
from workers.backoff import delay_seconds
from workers.breaker import Permit
from workers.limits import LimitClosed
from workers.loops import OUTAGES
from workers.metrics import (
    CARRIER_CALLS,
    CARRIER_MESSAGES,
    CARRIER_REFUNDED,
    CARRIER_SECONDS,
    MODE_NAMES,
    QUEUE_SECONDS,
    RESULTS,
    RETRIES,
    STAGE_SECONDS,
    STAGE_SIZE,
    TYPE_NAMES,
)
from workers.outcomes import OUTCOMES
from workers.settings import Settings
from workers.settlement import Settlement
from workers.stopping import Stopping, StopSignal
from workers.turns import SlotsClosed

if TYPE_CHECKING:
    from infra.spans import Spans

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Refusals of a payment after which nothing was and will be charged: the messages fail.
_UNCHARGED = frozenset(
    {
        "INSUFFICIENT_BALANCE",
        "BRAND_SUSPENDED",
        "BRAND_CLOSED",
        "BRAND_NOT_FOUND",
        "FREEZE_NOT_FOUND",
        "FREEZE_EXPIRED",
        "FREEZE_INSUFFICIENT",
    }
)
_FREEZES_ANEW_MAX = 3
# How long a waiter sleeps at most before it looks again whether an account may be called.
_LOOK_SECONDS = 1.0
_NO_WAY = "NO_ROUTE"
_CLAIM_TO_MARK_TRIES_MAX = 3
# Parts of a divided chunk in hand at once; most chunks have two.
_PARTS_AT_ONCE = 64
# With fewer numbers in a call the single interface does as well.
_PERSONALISED_MIN = 2


class PayLedger(Protocol):
    """What of the cost centre a sender calls (`smsgateway.ledger_client.LedgerClient`)."""

    async def batch_pay(
        self, items: Sequence[cost_center_pb2.SmsSendPayRequest]
    ) -> list[cost_center_pb2.SmsSendPayResponse | Refusal]: ...

    async def batch_freeze(
        self, items: Sequence[cost_center_pb2.SmsSendPrePayRequest]
    ) -> list[cost_center_pb2.SmsSendPrePayResponse | Refusal]: ...


class _Lost(Exception):  # noqa: N818 - says what happened
    """The dispatch is somebody else's by now, or settled."""


class _Ended(Exception):  # noqa: N818 - says what happened
    """The dispatch was settled before a call."""


class _Later(Exception):  # noqa: N818 - says what happens
    """The dispatch waits in its queue, not in our hands."""

    def __init__(self, seconds: float, *, wayless: bool = False) -> None:
        super().__init__()
        self.seconds = seconds
        self.wayless = wayless


class _Apart(Exception):  # noqa: N818 - says what happens
    """A chunk cannot go in one call: its numbers have different ways, or there are too many, or values of some cannot
    go with the others'. `parts` the places of each part's messages.
    """

    def __init__(self, parts: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.parts = parts


class Hand(Protocol):
    """Whoever counts what is in hand (`workers.lane.Lane`)."""

    def put_aside(self, queue: Queue, *, others_may_pass: bool) -> bool:
        """An entry waits for its account and counts no more as in hand; False when too many do."""

    def take_up(self, queue: Queue) -> None:
        """An entry that was put aside goes on."""


class _Place:
    """The place of an entry in its queue and in hand. All parts of a chunk share it: it is aside while one waits."""

    def __init__(self, queue: Queue, hand: Hand | None) -> None:
        self.queue = queue
        self._hand = hand
        self._waiting = 0

    def put_aside(self, *, others_may_pass: bool) -> bool:
        if self._hand is None:
            return True
        if not self._waiting and not self._hand.put_aside(self.queue, others_may_pass=others_may_pass):
            return False
        self._waiting += 1
        return True

    def take_up(self) -> None:
        if self._hand is None:
            return
        self._waiting -= 1
        if not self._waiting:
            self._hand.take_up(self.queue)


@dataclass(slots=True)
class _Progress:
    """How far a dispatch in hand is. `tried`: a payment may exist; `valid_until`: not to be sent from this moment of
    the monotonic clock on, None: for ever; `routing` that its `order` of accounts comes from; `refused` accounts that
    did not accept it in this round, `asked` the longest wait that they asked for.
    """

    claimed: Claimed
    payment_no: str | None
    attempts: int
    tried: bool
    valid_until: float | None = None
    pauses: int = field(default=0)
    routing: Routing | None = field(default=None)
    order: Sequence[str] = field(default=())
    refused: set[str] = field(default_factory=set)
    asked: float = field(default=0.0)

    @property
    def is_over(self) -> bool:
        """Whether it must not be sent any more."""
        return self.valid_until is not None and time.monotonic() >= self.valid_until

    @property
    def call_id(self) -> str:
        """The id of the call that comes next: one for each mark."""
        return call_id_of(self.claimed.dispatch_id, self.attempts)


@dataclass(slots=True)
class _Leave:
    """Leave to make one call of an account: what is held for as long as it lasts, and what it takes of rates."""

    account: Account
    permit: Permit
    held: ExitStack
    tokens: ExitStack

    def end(self, outcome: CallOutcome | None) -> None:
        """What became of the call; None: it was not made."""
        self.account.gate.leave(self.permit, outcome)
        self.held.close()
        if outcome is None:
            self.tokens.close()


def freeze_id_of(dispatch_id: str, order_no: str) -> str:
    """The request_id of the freeze that replaces an expired one; at most 64 characters.

    It names the freeze replaced by its time and its random end, so that a second replacement is another one.
    """
    return f"{dispatch_id}-refreeze-{order_no[:10]}{order_no[-9:]}"[:64]


class Sender:
    """Sends the dispatches of one type and mode."""

    def __init__(
        self,
        *,
        sms_type: int,
        mode: Mode,
        database: Database,
        ledger: PayLedger,
        accounts: Accounts,
        settlement: Settlement,
        identifiers: IdentifierSource,
        stop: StopSignal,
        settings: Settings,
        watchdog: Watchdog,
    ) -> None:
        self._sms_type = sms_type
        self._mode = mode
        self._database = database
        self._ledger = ledger
        self._accounts = accounts
        self._settlement = settlement
        self._identifiers = identifiers
        self._stop = stop
        self._settings = settings
        self.hand: Hand | None = None
        self._spans = tracing.active()
        self._labels = (TYPE_NAMES[sms_type], MODE_NAMES[mode])
        self._queue_seconds = QUEUE_SECONDS.labels(*self._labels)
        single = mode is Mode.SINGLE
        # Statements about chunks touch their messages, so fewer of them go together.
        largest = max((each.carrier.limits.max_batch for each in accounts.all), default=settings.batch_chunk_messages)
        chunk_messages = min(settings.batch_chunk_messages, largest)
        chunks = min(settings.stage_group_max, max(1, settings.stage_messages_max // chunk_messages))
        settled_max = settings.stage_group_max if single else chunks

        def group(
            stage: str, run: Callable[[list[T]], Awaitable[Sequence[R | Exception]]], size: int, in_flight: int = 1
        ) -> Grouper[T, R]:
            return Grouper(
                _observed(stage, isolating(run, OUTAGES)),
                group_max=size,
                queue_max=settings.stage_queue_max,
                in_flight_max=in_flight,
                gather_seconds=settings.stage_gather_seconds,
                name=f"queue of dispatches to {stage}",
                heartbeat=watchdog.heartbeat("-".join((stage.replace(" ", "-"), *self._labels))),
            )

        size = settings.stage_group_max
        self._claims: Grouper[ClaimRequest, Claimed | None] = group("claim", self._claim_all, settled_max)
        self._payments: Grouper[cost_center_pb2.SmsSendPayRequest, cost_center_pb2.SmsSendPayResponse] = group(
            "pay", self._pay_all, size, settings.pay_in_flight_max
        )
        self._freezes: Grouper[cost_center_pb2.SmsSendPrePayRequest, cost_center_pb2.SmsSendPrePayResponse] = group(
            "freeze", self._freeze_all, size
        )
        self._orders: Grouper[tuple[int, str, int, str], bool] = group("order", self._order_all, size)
        self._marks: Grouper[Mark, bool] = group("mark", self._mark_all, size)
        self._unmarks: Grouper[Unmark, Unmarked | None] = group("unmark", self._unmark_all, size)
        self._put_backs: Grouper[PutBack, bool] = group("put back", self._put_back_all, size)
        self._acceptances: Grouper[Acceptance, bool] = group("settle", settlement.accept, settled_max)
        self._failures: Grouper[Failure, bool] = group("fail", settlement.fail, settled_max)
        self._unknowns: Grouper[tuple[int, str, str], bool] = group("unknown", self._unknown_all, size)

    def close_slots(self) -> None:
        """Start no call any more."""
        self._accounts.halt()

    async def send(self, queue: Queue, epoch: int, dispatch_id: str) -> bool:
        """Take a dispatch to its end. Returns whether its entry is done with; False leaves it to the queue's next
        reader. Raises nothing but cancellation; cancelled in a call, the outcome of the call is unknown.
        """
        request = ClaimRequest(queue.brand_id, dispatch_id, epoch)
        try:
            claimed = await self._claimed(request)
        except Stopping:
            return False
        except Exception:
            log.exception("dispatch not claimed", dispatch_id=dispatch_id)
            return False
        if claimed is None:
            return True
        reach("worker.dispatch.claimed")
        self._queue_seconds.observe(max(0.0, time.time() - claimed.created_at.timestamp()))
        return await self._finish(_Place(queue, self.hand), claimed)

    async def _finish(self, place: _Place, claimed: Claimed) -> bool:
        """Take a claimed dispatch to its end, or give it back."""
        structlog.contextvars.bind_contextvars(request_id=claimed.request_id, dispatch_id=claimed.dispatch_id)
        progress = _Progress(
            claimed,
            claimed.payment_no,
            claimed.attempts,
            claimed.tried or claimed.payment_no is not None or claimed.attempts > 0,
            None if claimed.valid_seconds is None else time.monotonic() + claimed.valid_seconds,
        )
        try:
            await self._carry(place, progress)
        except (_Lost, _Ended):
            return True
        except (Stopping, SlotsClosed):
            await self._give_back(progress, 0)
            return False
        except _Later as later:
            return await self._give_back(progress, later.seconds, wayless=later.wayless)
        except Exception as error:
            return await self._put_off(progress, error)
        return True

    async def _carry(self, place: _Place, progress: _Progress) -> None:
        assert len(progress.claimed.mobiles) == progress.claimed.messages, "a dispatch has the messages that it counts"
        try:
            if progress.is_over and not progress.tried:
                await self._fail_out_of_time(progress)
            if progress.claimed.night_seconds:
                # Its number sleeps by now: a backlog has brought it here.
                raise _Later(progress.claimed.night_seconds)
            # Before anything is paid: who has no way can be cancelled. Parts of one way are paid as a whole: a thousand
            # parts are not a thousand payments.
            await self._find_way(place, progress)
            # What may have been paid for is asked for its payment first, so that it is refunded and not released.
            await self._pay(progress)
            reach("worker.dispatch.paid")
            while True:
                leave = await self._admitted(place, progress)
                outcome = None
                try:
                    if progress.is_over:
                        await self._fail_out_of_time(progress)
                    call_id, outcome = await self._submit(progress, leave.account)
                finally:
                    leave.end(outcome)
                if outcome is not None and await self._settle(place, progress, call_id, outcome, leave.account):
                    return
        except _Apart as apart:
            await self._divide(place, progress, None, apart.parts)

    # Choose the account.

    async def _find_way(self, place: _Place, progress: _Progress) -> None:
        """Wait until there is an account that may be called, one that rests included."""
        if not self._usable(progress):
            await self._wait_for_way(place, progress)

    async def _wait_for_way(self, place: _Place, progress: _Progress) -> None:
        """Wait for a usable account. Raises `_Later` when it takes long, and fails the dispatch after the time that an
        outcome has, or when it is over. Returns without one where it must be asked for its payment before it may fail.
        """
        settings, claimed = self._settings, progress.claimed
        asked = progress.payment_no is not None or not progress.tried
        if claimed.retrying_seconds >= settings.outcome_hours * 3_600:
            if not asked:
                return
            await self._fail_not_accepted(progress, _NO_WAY, "no carrier account could be called")
        until = time.monotonic() + settings.carrier_retry_seconds
        with self._aside(place, progress):
            while not self._usable(progress):
                if progress.is_over:
                    if not asked:
                        return
                    await self._fail_out_of_time(progress)
                if time.monotonic() >= until:
                    raise _Later(settings.hold_seconds, wayless=True)
                await self._stop.sleep(min(_LOOK_SECONDS, settings.routing_poll_seconds))

    def _usable(self, progress: _Progress) -> list[Account]:
        """The accounts that the dispatch may take, in order, whether they rest or not. Raises `_Apart` for a chunk
        whose numbers have different ways.
        """
        routing, claimed = self._accounts.routing, progress.claimed
        if progress.routing is not routing:
            # Rules may have changed since.
            parts = routing.parts(claimed.brand_id, claimed.sms_type, claimed.mobiles)
            if len(parts) > 1:
                place_of = {mobile: place for place, mobile in enumerate(claimed.mobiles)}
                raise _Apart([[place_of[mobile] for mobile in mobiles] for _, mobiles in parts])
            progress.routing, progress.order = routing, parts[0][0].order(claimed.dispatch_id)
        return self._accounts.usable(progress.order)[: self._settings.failover_accounts_max]

    def _check_size(self, progress: _Progress, account: Account) -> None:
        """Raise `_Apart` for a chunk that is more than one call of an account, or of a limit of the brand, may hold."""
        claimed = progress.claimed
        if claimed.messages == 1:
            return
        bursts = [limit.burst for limit in self._accounts.limits_of(claimed.brand_id, claimed.sms_type)]
        if account.rate is not None:
            bursts.append(account.rate.burst)
        most = min(bursts, default=claimed.messages)
        parts = [
            part[at : at + most]
            for part in parts_for(claimed, account.carrier.limits)
            for at in range(0, len(part), most)
        ]
        if len(parts) > 1:
            raise _Apart(parts)

    async def _admitted(self, place: _Place, progress: _Progress) -> _Leave:
        """Leave to call the first account that may be called. While all rest the dispatch waits, claimed and paid, for
        as long as what is refused for now is tried again; then it fails.
        """
        settings, since = self._settings, time.monotonic()
        while True:
            self._stop.check()
            if progress.is_over:
                await self._fail_out_of_time(progress)
            accounts = self._usable(progress)
            if not accounts:
                await self._wait_for_way(place, progress)
                continue
            left = [account for account in accounts if account.account_id not in progress.refused]
            if not left:
                # All were tried: the first again, and this time for as long as it takes.
                progress.refused.clear()
                left = accounts[:1]
            awake = [account for account in left if account.gate.wait_seconds() <= 0]
            if not awake:
                stopped = any(account.gate.is_stopped for account in accounts)
                patience = settings.outcome_hours * 3_600 if stopped else settings.carrier_retry_seconds
                if time.monotonic() >= since + patience:
                    await self._fail_not_accepted(progress, "", "the carrier could not be called")
                wait = min(account.gate.wait_seconds() for account in left)
                with self._aside(place, progress):
                    await self._stop.sleep(min(wait, _LOOK_SECONDS))
                continue
            account = awake[0]
            self._check_size(progress, account)
            leave = await self._entered(place, progress, account, others=len(awake) > 1)
            if leave is not None:
                return leave
            if len(awake) > 1 and account.gate.wait_seconds() <= 0 and account.is_usable:
                # Its limits or slots are taken for too long; it comes again when the others have been tried.
                progress.refused.add(account.account_id)
                RETRIES.labels("busy").inc()

    async def _entered(self, place: _Place, progress: _Progress, account: Account, *, others: bool) -> _Leave | None:
        """All that one call of an account needs: what the brand's limits give, a slot, what the account's limits give,
        and its gate's leave. None when it may not be called after all, or, where there are others, not soon enough.
        """
        claimed, settings = progress.claimed, self._settings
        messages, sms_type = claimed.messages, self._sms_type
        slots = account.slots(sms_type, self._mode)
        wait = partial(self._wait, place, progress)
        with ExitStack() as held, ExitStack() as tokens:
            account.busy += 1
            held.callback(account.end_call)
            try:
                patience = max(settings.carrier_retry_seconds, settings.hold_seconds)
                # A brand's own limit is no reason to take another account.
                for limit in self._accounts.limits_of(claimed.brand_id, sms_type):
                    if not limit.try_acquire(messages):
                        await wait(partial(limit.acquire, messages, sms_type), patience)
                    tokens.callback(limit.give_back, messages)
                until = time.monotonic() + (settings.failover_wait_seconds if others else patience)
                if not slots.try_acquire():
                    await wait(partial(slots.acquire, place.queue), until - time.monotonic())
                held.callback(slots.release)
                rate, calls = account.rate, account.calls
                if rate is not None and messages > rate.burst:
                    # Its limit is another since it was looked at.
                    return None
                if rate is not None:
                    if not rate.try_acquire(messages):
                        await wait(partial(rate.acquire, messages, sms_type), until - time.monotonic())
                    tokens.callback(rate.give_back, messages)
                if calls is not None:
                    if not calls.try_acquire():
                        await wait(partial(calls.acquire, sms_type), until - time.monotonic())
                    held.callback(calls.release)
            except TimeoutError:
                if not others:
                    raise _Later(settings.hold_seconds) from None
                return None
            except (LimitClosed, SlotsClosed):
                # The account is another by now, or the worker stops.
                self._stop.check()
                return None
            permit = account.gate.enter() if account.is_usable else None
            if permit is None:
                return None
            return _Leave(account, permit, held.pop_all(), tokens.pop_all())

    async def _wait(
        self, place: _Place, progress: _Progress, what: Callable[[], Awaitable[None]], seconds: float
    ) -> None:
        """Wait for what others have to give. Raises `TimeoutError`."""
        with self._aside(place, progress):
            async with asyncio.timeout(max(0.0, seconds)):
                await what()

    @contextmanager
    def _aside(self, place: _Place, progress: _Progress) -> Iterator[None]:
        """Within the block the entry does not count as in hand, so that those who need not wait for the same go on.

        Raises `_Later` when too many are aside.
        """
        if self._accounts.is_alone:
            yield
            return
        claimed = progress.claimed
        others_may_pass = self._accounts.routing.depends_on_numbers(claimed.brand_id, claimed.sms_type)
        if not place.put_aside(others_may_pass=others_may_pass):
            RETRIES.labels("crowded").inc()
            raise _Later(self._settings.hold_seconds)
        try:
            yield
        finally:
            place.take_up()

    # Claim.

    async def _claimed(self, request: ClaimRequest) -> Claimed | None:
        async def claim(again: bool) -> Claimed | None:
            return await self._claims.submit(replace(request, again=again or request.again))

        # After a lost answer our own claim may stand there, and nobody else works on it.
        return await self._insist("claim", claim, patient=False)

    async def _claim_all(self, requests: list[ClaimRequest]) -> list[Claimed | None]:
        async with self._database.statement() as connection:
            claimed = await sending.claim(connection, requests, self._mode)
        # An id that came twice is one dispatch: its first asker has it.
        return [claimed.pop((request.brand_id, request.dispatch_id), None) for request in requests]

    # Pay.

    async def _pay(self, progress: _Progress) -> None:
        failures = freezes = 0
        while progress.payment_no is None:
            claimed = progress.claimed
            request = cost_center_pb2.SmsSendPayRequest(
                brand_id=claimed.brand_id,
                request_id=claimed.dispatch_id,
                order_no=claimed.order_no,
                segments=claimed.segments,
            )
            self._stop.check()
            progress.tried = True
            try:
                progress.payment_no = (await self._payments.submit(request)).payment_no
            except Refusal as refusal:
                if is_outage(refusal):
                    failures += 1
                    await self._back_off("pay", failures, refusal)
                elif refusal.reason == "FREEZE_EXPIRED" and freezes < _FREEZES_ANEW_MAX:
                    freezes += 1
                    await self._freeze_anew(progress)
                elif refusal.reason in _UNCHARGED:
                    await self._fail_uncharged(progress, refusal)
                else:
                    raise

    async def _freeze_anew(self, progress: _Progress) -> None:
        """Freeze once more, and record it before it is paid from: whoever pays again must name the same freeze."""
        claimed = progress.claimed
        request = cost_center_pb2.SmsSendPrePayRequest(
            brand_id=claimed.brand_id,
            request_id=freeze_id_of(claimed.dispatch_id, claimed.order_no),
            sms_type=claimed.sms_type,  # type: ignore[arg-type] # the record holds the enum's number
            segments=claimed.segments,
        )
        failures = 0
        while True:
            self._stop.check()
            try:
                order_no = (await self._freezes.submit(request)).order_no
                break
            except Refusal as refusal:
                if is_outage(refusal):
                    failures += 1
                    await self._back_off("pay", failures, refusal)
                elif refusal.reason in _UNCHARGED:
                    await self._fail_uncharged(progress, refusal)
                else:
                    raise
        reach("worker.dispatch.refrozen")
        order = (claimed.brand_id, claimed.dispatch_id, claimed.epoch, order_no)
        if not await self._insist("order", lambda _: self._orders.submit(order), patient=False):
            raise _Lost
        reach("worker.dispatch.reordered")
        log.info("freeze had expired, frozen once more", order_no=order_no)
        progress.claimed = replace(claimed, order_no=order_no)

    async def _fail_uncharged(self, progress: _Progress, refusal: Refusal) -> None:
        claimed = progress.claimed
        log.info("not sent, not charged", reason=refusal.reason)
        await self._fail(
            Failure(claimed.brand_id, claimed.dispatch_id, None, claimed.epoch, refusal.reason, refusal.message[:200]),
            claimed.messages,
        )
        raise _Ended

    async def _pay_all(
        self, requests: list[cost_center_pb2.SmsSendPayRequest]
    ) -> list[cost_center_pb2.SmsSendPayResponse | Refusal]:
        return await self._ledger.batch_pay(requests)

    async def _freeze_all(
        self, requests: list[cost_center_pb2.SmsSendPrePayRequest]
    ) -> list[cost_center_pb2.SmsSendPrePayResponse | Refusal]:
        return await self._ledger.batch_freeze(requests)

    async def _order_all(self, orders: list[tuple[int, str, int, str]]) -> list[bool]:
        async with self._database.connection() as connection:
            ours = await sending.set_orders(connection, orders)
        return [(order[0], order[1]) in ours for order in orders]

    # Mark and call.

    async def _submit(self, progress: _Progress, account: Account) -> tuple[str, CallOutcome | None]:
        """Mark and call. Without an outcome the call was not started and the dispatch is claimed again."""
        started = time.monotonic()
        call_id = await self._mark(progress, account)
        if time.monotonic() - started > self._settings.submit_start_seconds:
            # Whoever looks for overdue calls may have given this one up.
            RETRIES.labels("late").inc()
            log.warning("call not started: too long after its mark", call_id=call_id)
            if not await self._unmark(progress, call_id):
                raise _Lost
            return call_id, None
        reach("worker.dispatch.marked")
        called = time.perf_counter()
        if self._spans is None:
            outcome = await self._call(account, progress.claimed, call_id)
        else:
            outcome = await self._call_traced(self._spans, account, progress.claimed, call_id)
        reach("worker.dispatch.answered")
        CARRIER_SECONDS.labels(account.account_id, self._labels[1]).observe(time.perf_counter() - called)
        CARRIER_CALLS.labels(account.account_id, self._labels[1], outcome.verdict.value).inc()
        CARRIER_MESSAGES.labels(account.account_id, outcome.verdict.value).inc(progress.claimed.messages)
        return call_id, outcome

    async def _call(self, account: Account, claimed: Claimed, call_id: str) -> CallOutcome:
        carrier = account.carrier
        try:
            if self._mode is Mode.SINGLE:
                return await carrier.send_single(SingleCall(call_id, claimed.mobiles[0], claimed.text))
            if claimed.variables:
                return await _call_personalised(carrier, claimed, call_id)
            return await carrier.send_batch(BatchCall(call_id, claimed.mobiles, claimed.text))
        except Exception:
            # A carrier does not raise; should one do, the call may have been made.
            log.exception("carrier adapter failed", call_id=call_id)
            return CallOutcome(Verdict.UNKNOWN, detail="error of the carrier's adapter")

    async def _call_traced(self, spans: Spans, account: Account, claimed: Claimed, call_id: str) -> CallOutcome:
        attributes: dict[str, str | int] = {
            "smsbill.account": account.account_id,
            "smsbill.carrier": account.kind,
            "smsbill.messages": claimed.messages,
            "smsbill.segments": claimed.segments,
            "smsbill.call_id": call_id,
        }
        with spans.span("carrier call", kind=spans.CLIENT, attributes=attributes):
            outcome = await self._call(account, claimed, call_id)
            spans.note(verdict=outcome.verdict.value, code=outcome.code)
        return outcome

    async def _mark(self, progress: _Progress, account: Account) -> str:
        """Mark a dispatch as being submitted; return the id of its call. Raises `_Lost` when it is not ours."""
        claimed = progress.claimed
        failures = tries = 0
        while True:
            call_id = progress.call_id
            assert progress.payment_no is not None, "nothing is submitted unpaid"
            mark = Mark(
                claimed.brand_id,
                claimed.dispatch_id,
                claimed.epoch,
                progress.payment_no,
                account.account_id,
                call_id,
            )
            try:
                marked = await self._marks.submit(mark)
            except OUTAGES as error:
                failures += 1
                # The mark may stand there all the same. We know that its call was not made; nobody else can.
                await self._unmark(progress, call_id)
                await self._back_off("database", failures, error)
                continue
            if marked:
                return call_id
            # Freed by a sweeper that took us for dead, or another worker's.
            tries += 1
            request = ClaimRequest(claimed.brand_id, claimed.dispatch_id, claimed.epoch)
            if tries > _CLAIM_TO_MARK_TRIES_MAX or await self._claimed(request) is None:
                raise _Lost

    async def _unmark(self, progress: _Progress, call_id: str) -> bool:
        """Take back a mark of ours whose call was not made; False when there is none."""
        claimed = progress.claimed
        item = Unmark(claimed.brand_id, claimed.dispatch_id, call_id, claimed.epoch, judged=False)
        unmarked = await self._insist("unmark", lambda _: self._unmarks.submit(item), patient=True)
        if unmarked is None:
            return False
        progress.attempts = unmarked.attempts
        return True

    async def _mark_all(self, marks: list[Mark]) -> list[bool]:
        async with self._database.statement() as connection:
            marked = await sending.mark(connection, marks)
        return _first_only(marked, [(item.brand_id, item.dispatch_id) for item in marks])

    async def _unmark_all(self, items: list[Unmark]) -> list[Unmarked | None]:
        async with self._database.connection() as connection:
            unmarked = await sending.unmark(connection, items)
        return [unmarked.get((item.brand_id, item.dispatch_id)) for item in items]

    # Settle.

    async def _settle(
        self, place: _Place, progress: _Progress, call_id: str, outcome: CallOutcome, account: Account
    ) -> bool:
        """Record what became of a call; False when it is to be made again."""
        verdict = outcome.verdict
        claimed = progress.claimed
        if outcome.part_ids and verdict is not Verdict.ACCEPTED:
            await self._record_parts(claimed, outcome, account)
        if verdict is Verdict.ACCEPTED:
            await self._accept(progress, call_id, outcome)
        elif verdict is Verdict.UNKNOWN:
            await self._set_unknown(claimed, call_id, outcome)
        elif verdict is Verdict.BAD_NUMBER and claimed.messages > 1:
            await self._divide(place, progress, call_id, _halves(claimed.messages))
        elif verdict in (Verdict.REFUSED, Verdict.BAD_NUMBER):
            log.info("refused by the carrier", code=outcome.code, messages=claimed.messages)
            if await self._fail(_failure(claimed, call_id, outcome), claimed.messages):
                CARRIER_REFUNDED.labels(account.account_id, "refused").inc(claimed.segments)
        else:
            await self._again(progress, call_id, outcome, account)
            return False
        return True

    async def _accept(self, progress: _Progress, call_id: str, outcome: CallOutcome) -> None:
        claimed = progress.claimed
        assert progress.payment_no is not None, "nothing is submitted unpaid"
        item = Acceptance(
            claimed.brand_id,
            claimed.dispatch_id,
            call_id,
            progress.payment_no,
            " ".join(filter(None, outcome.part_ids)) or outcome.carrier_message_id,
            outcome.code,
            min(outcome.failed_count, claimed.messages),
            outcome.part_ids,
        )
        if item.failed_count:
            log.warning("accepted in part, which part is not told", failed_count=item.failed_count)
        ours = await self._insist("settle", lambda _: self._acceptances.submit(item), patient=True)
        reach("worker.dispatch.settled")
        if ours:
            RESULTS.labels(self._labels[0], "sent").inc(claimed.messages)

    async def _record_parts(self, claimed: Claimed, outcome: CallOutcome, account: Account) -> None:
        """Parts of a message were taken: known before it is recorded that it as a whole was not, or perhaps not."""

        async def record(_again: bool) -> None:
            async with self._database.connection() as connection:
                await sending.record_parts(
                    connection, claimed.brand_id, claimed.dispatch_id, account.account_id, outcome.part_ids
                )

        await self._insist("parts", record, patient=True)
        reach("worker.dispatch.parts")

    async def _fail(self, item: Failure, messages: int) -> bool:
        """Record a failure; whether this call did it."""
        ours = await self._insist("fail", lambda _: self._failures.submit(item), patient=True)
        reach("worker.dispatch.failed")
        if ours:
            RESULTS.labels(self._labels[0], "failed").inc(messages)
            OUTCOMES.note(item.brand_id, self._sms_type, final=messages, failed=messages)
        return ours

    async def _set_unknown(self, claimed: Claimed, call_id: str, outcome: CallOutcome) -> None:
        call = (claimed.brand_id, claimed.dispatch_id, call_id)
        if await self._insist("unknown", lambda _: self._unknowns.submit(call), patient=True):
            reach("worker.dispatch.unknown")
            RESULTS.labels(self._labels[0], "unknown").inc(claimed.messages)
            log.warning("outcome unknown", call_id=call_id, code=outcome.code, detail=outcome.detail)

    async def _again(self, progress: _Progress, call_id: str, outcome: CallOutcome, account: Account) -> None:
        """Claim again what the carrier surely did not accept, for another account where there is one; else wait, or
        fail it when it took too long.
        """
        claimed, settings = progress.claimed, self._settings
        item = Unmark(claimed.brand_id, claimed.dispatch_id, call_id, None, judged=True)
        unmarked = await self._insist("unmark", lambda _: self._unmarks.submit(item), patient=True)
        if unmarked is None:
            raise _Lost
        reach("worker.dispatch.taken_back")
        progress.attempts = unmarked.attempts
        stopped = outcome.verdict is Verdict.STOP_ACCOUNT
        progress.refused.add(account.account_id)
        progress.asked = max(progress.asked, outcome.retry_after_s or 0.0)
        if self._has_another(progress):
            RETRIES.labels("failover").inc()
            log.info("not accepted, another account is tried", account=account.account_id, code=outcome.code)
            return
        asked, progress.asked = progress.asked, 0.0
        # The next round begins with the first account again.
        progress.refused.clear()
        # A stopped account and closed hours are not the message's fault; it has as long as an outcome may take.
        patience = settings.carrier_retry_seconds
        if stopped or asked > settings.hold_seconds:
            patience = settings.outcome_hours * 3_600
        if unmarked.retrying_seconds >= patience:
            await self._fail_not_accepted(progress, outcome.code, outcome.detail)
        RETRIES.labels("stopped" if stopped else "carrier").inc()
        if stopped:
            # The account rests (`AccountGate.leave`).
            return
        progress.pauses += 1
        wait = delay_seconds(progress.pauses, base=settings.retry_base_seconds, longest=settings.retry_max_seconds)
        wait = max(wait, asked)
        log.info("not accepted for now", code=outcome.code, attempts=unmarked.attempts, wait_seconds=round(wait, 3))
        if wait > settings.hold_seconds:
            raise _Later(wait)
        await self._stop.sleep(wait)

    def _has_another(self, progress: _Progress) -> bool:
        """Whether an account that has not refused the dispatch in this round may be called at once."""
        order = self._accounts.usable(progress.order)[: self._settings.failover_accounts_max]
        return any(each.account_id not in progress.refused and each.gate.wait_seconds() <= 0 for each in order)

    async def _fail_not_accepted(self, progress: _Progress, code: str, detail: str) -> NoReturn:
        """Fail what is claimed and surely was not accepted for too long; what was paid is refunded, else released."""
        claimed = progress.claimed
        log.warning("not accepted for too long", code=code, detail=detail, attempts=progress.attempts)
        failure = Failure(
            claimed.brand_id,
            claimed.dispatch_id,
            None,
            claimed.epoch,
            code or "NOT_ACCEPTED",
            detail,
            progress.payment_no,
            release=not progress.tried,
        )
        await self._fail(failure, claimed.messages)
        raise _Ended

    async def _fail_out_of_time(self, progress: _Progress) -> NoReturn:
        """Fail what is claimed and was not sent within its validity; what was paid is refunded, else released."""
        claimed = progress.claimed
        reach("worker.dispatch.over")
        log.info("not sent within its validity", messages=claimed.messages)
        failure = Failure(
            claimed.brand_id,
            claimed.dispatch_id,
            None,
            claimed.epoch,
            "VALIDITY_EXPIRED",
            "not sent within its validity",
            progress.payment_no,
            release=not progress.tried,
        )
        await self._fail(failure, claimed.messages)
        raise _Ended

    async def _divide(
        self, place: _Place, progress: _Progress, call_id: str | None, parts: Sequence[Sequence[int]]
    ) -> None:
        """Replace a chunk by several of the same payment and take them all to their end.

        Parameters: `parts` the places of each part's messages among those of the chunk.
        """
        claimed = progress.claimed
        now_ms = time.time_ns() // 1_000_000
        ids = [self._identifiers.new(claimed.brand_id, now_ms) for _ in parts]
        part_of = [""] * claimed.messages
        for part_id, places in zip(ids, parts, strict=True):
            for each in places:
                part_of[each] = part_id

        async def divide(_again: bool) -> None:
            async with self._database.connection() as connection:
                await sending.divide(
                    connection,
                    claimed.brand_id,
                    claimed.dispatch_id,
                    part_of,
                    call_id=call_id,
                    epoch=claimed.epoch,
                    payment_no=progress.payment_no,
                )

        await self._insist("divide", divide, patient=True)
        if call_id is None:
            reach("worker.dispatch.split")
        else:
            reach("worker.dispatch.halved")
        log.info("chunk divided", messages=claimed.messages, parts=len(ids), first=ids[0])
        # One of a thousand parts need not wait for another, but not all have to be in hand at once either.
        left = iter(ids)

        async def send_next() -> None:
            for part_id in left:
                await self._send_part(place, claimed, part_id)

        await asyncio.gather(*(send_next() for _ in range(min(len(ids), _PARTS_AT_ONCE))))

    async def _send_part(self, place: _Place, parent: Claimed, dispatch_id: str) -> None:
        # Whether the parts exist is asked of the record: the answer to dividing may have been lost.
        request = ClaimRequest(parent.brand_id, dispatch_id, parent.epoch, again=True)
        try:
            part = await self._claimed(request)
        except Stopping:
            # A sweeper finds it: claimed under an epoch that is over.
            return
        if part is not None:
            await self._finish(place, part)

    async def _unknown_all(self, calls: list[tuple[int, str, str]]) -> list[bool]:
        async with self._database.connection() as connection:
            unknown = await sending.set_unknown(connection, calls)
        return [(call[0], call[1]) in unknown for call in calls]

    # Giving back.

    async def _give_back(
        self, progress: _Progress, seconds: float | None, error: Exception | None = None, *, wayless: bool = False
    ) -> bool:
        """Put a claimed dispatch back to its queue, without `seconds` parked; whether its entry is done with, because
        a sweeper or an operator will make one. `error` of ours counts as a failure.
        """
        claimed = progress.claimed
        item = PutBack(
            claimed.brand_id,
            claimed.dispatch_id,
            claimed.epoch,
            progress.tried,
            progress.payment_no,
            seconds,
            0 if error is None else 1,
            None if error is None else _described(error),
            wayless,
        )
        try:
            await self._insist("put back", lambda _: self._put_backs.submit(item), patient=True)
            reach("worker.dispatch.put_back")
        except Exception:
            log.exception("dispatch not given back")
            return False
        return seconds is None or seconds > 0

    async def _put_off(self, progress: _Progress, error: Exception) -> bool:
        """Put off a dispatch that met an error of ours; after some tries park it."""
        settings = self._settings
        failures = progress.claimed.failures + 1
        parked = failures >= settings.dispatch_tries_max
        RETRIES.labels("error").inc()
        log.exception("dispatch failed, parked" if parked else "dispatch failed, tried again later", tries=failures)
        seconds = delay_seconds(failures, base=settings.retry_base_seconds, longest=settings.dispatch_rest_seconds)
        return await self._give_back(progress, None if parked else seconds, error)

    async def _put_back_all(self, items: list[PutBack]) -> list[bool]:
        async with self._database.connection() as connection:
            ours = await sending.put_back(connection, items)
        return [(item.brand_id, item.dispatch_id) in ours for item in items]

    # Patience.

    async def _insist(self, what: str, step: Callable[[bool], Awaitable[R]], *, patient: bool) -> R:
        """Do a step until the database answers. `step` is told whether it was tried before.

        `patient`: go on when the worker stops, until its drain time is over: what was submitted must be recorded.
        """
        failures = 0
        while True:
            if not patient:
                self._stop.check()
            try:
                return await step(failures > 0)
            except OUTAGES as error:
                failures += 1
                RETRIES.labels("database").inc()
                wait = delay_seconds(failures, base=0.1, longest=self._settings.loop_retry_seconds_max)
                log.warning("step failed, tried again", step=what, failures=failures, error=type(error).__name__)
                if patient:
                    await asyncio.sleep(wait)
                else:
                    await self._stop.sleep(wait)

    async def _back_off(self, what: str, failures: int, error: Exception) -> None:
        RETRIES.labels(what).inc()
        wait = delay_seconds(failures, base=0.1, longest=self._settings.loop_retry_seconds_max)
        log.warning("step failed, tried again", step=what, failures=failures, error=type(error).__name__)
        await self._stop.sleep(wait)


async def _call_personalised(carrier: Carrier, claimed: Claimed, call_id: str) -> CallOutcome:
    text = parse(claimed.text, claimed.variables)
    values = tuple(unpack_values(each) for each in claimed.values)
    if claimed.messages == 1:
        return await carrier.send_single(SingleCall(call_id, claimed.mobiles[0], text.render(values[0])))
    return await carrier.send_personalised(PersonalisedCall(call_id, text, claimed.mobiles, values))


def parts_for(claimed: Claimed, limits: CarrierLimits) -> list[Sequence[int]]:
    """How a chunk is divided so that each part is one call of the carrier's: the places of each part's messages.

    One part: the chunk goes as it is. A text with variables needs the carrier's call for them; whoever's values cannot
    go that way goes alone, by the single interface.
    """
    count = claimed.messages
    if count == 1:
        return [range(1)]
    if not claimed.variables:
        return [range(at, min(at + limits.max_batch, count)) for at in range(0, count, limits.max_batch)]
    if limits.max_personalised < _PERSONALISED_MIN:
        return [range(place, place + 1) for place in range(count)]
    without = frozenset(limits.personalised_without)
    alone = [place for place, values in enumerate(claimed.values) if not without.isdisjoint(values)]
    barred = set(alone)
    together = [place for place in range(count) if place not in barred]
    step = limits.max_personalised
    parts: list[Sequence[int]] = [together[start : start + step] for start in range(0, len(together), step)]
    return parts + [[place] for place in alone]


def _halves(count: int) -> list[Sequence[int]]:
    return [range(count // 2), range(count // 2, count)]


def _observed(
    stage: str, run: Callable[[list[T]], Awaitable[Sequence[R | Exception]]]
) -> Callable[[list[T]], Awaitable[Sequence[R | Exception]]]:
    seconds, sizes = STAGE_SECONDS.labels(stage), STAGE_SIZE.labels(stage)

    async def observed(items: list[T]) -> Sequence[R | Exception]:
        started = time.perf_counter()
        try:
            return await run(items)
        finally:
            seconds.observe(time.perf_counter() - started)
            sizes.observe(len(items))

    return observed


def _first_only(found: set[tuple[int, str]], asked: Sequence[tuple[int, str]]) -> list[bool]:
    """Whether each key was found; one that was asked for twice belongs to its first asker."""
    results = []
    for key in asked:
        results.append(key in found)
        found.discard(key)
    return results


def _described(error: Exception) -> str:
    """What an operator is told. Other texts than ours may hold a number or a text of a customer; the log has them."""
    return f"{error.reason}: {error.message}"[:500] if isinstance(error, Refusal) else type(error).__name__


def _failure(claimed: Claimed, call_id: str, outcome: CallOutcome) -> Failure:
    return Failure(
        claimed.brand_id,
        claimed.dispatch_id,
        call_id,
        None,
        outcome.code or outcome.verdict.name,
        outcome.detail,
    )
