"""The rules against a plain model of their own, on random sequences of operations.

The model knows no lines, no totals and no lower bound of what is due: a freeze is a list of single segments, each
naming its package, and time is searched for the next end anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ledger_book import BRAND, DAY, HOUR, START, Ledger, normal

from costcenter.model import ReceiptState
from costcenter.operations import (
    ApplyRelease,
    Extend,
    FreezeSegments,
    Operation,
    Pay,
    RecordReceipt,
    RequestRelease,
    SendStatus,
)
from infra.errors import Refusal

_FOREVER = START + 10_000 * DAY
_TYPES = ((), (), (1,), (2, 3))


@dataclass
class _Package:
    number: int
    end: datetime
    types: tuple[int, ...]
    free: int
    held: int = 0
    lost: int = 0
    refunds_of: int = 0


@dataclass
class _Freeze:
    begin: datetime
    end: datetime
    units: list[int]


@dataclass
class _Payment:
    units: list[int]
    refunded: set[str] = field(default_factory=set)
    delivered: set[str] = field(default_factory=set)


class Model:
    """The ledger as a child would play it, with single segments on a table."""

    def __init__(self, *, refund_undelivered: bool) -> None:
        self.refund_undelivered = refund_undelivered
        self.now = START
        self.packages: list[_Package] = []
        self.freezes: list[_Freeze] = []
        self.payments: list[_Payment] = []

    def pass_time(self, step: timedelta) -> None:
        self.now += step
        while True:
            ends = [(p.end, 0, i) for i, p in enumerate(self.packages) if p.free and p.end <= self.now]
            ends += [(f.end, 1, i) for i, f in enumerate(self.freezes) if f.units and f.end <= self.now]
            if not ends:
                return
            at, is_freeze, index = min(ends)
            if is_freeze:
                units, self.freezes[index].units = self.freezes[index].units, []
                for unit in units:
                    self._let_go(unit, at)
            else:
                package = self.packages[index]
                package.lost, package.free = package.lost + package.free, 0

    def _let_go(self, unit: int, at: datetime) -> None:
        package = self.packages[unit - 1]
        package.held -= 1
        if package.end <= at:
            package.lost += 1
        else:
            package.free += 1

    def grant(self, segments: int, hours: int | None, types: tuple[int, ...]) -> int:
        end = _FOREVER if hours is None else self.now + hours * HOUR
        self.packages.append(_Package(len(self.packages) + 1, end, types, segments))
        return len(self.packages)

    def spendable(self, sms_type: int) -> list[_Package]:
        paying = [p for p in self.packages if p.end > self.now and (not p.types or sms_type in p.types)]
        return sorted(paying, key=lambda p: (p.end, p.number))

    def freeze(self, segments: int, sms_type: int, ttl: timedelta) -> str | None:
        if sum(p.free for p in self.spendable(sms_type)) < segments:
            return "INSUFFICIENT_BALANCE"
        units = []
        for _ in range(segments):
            package = next(p for p in self.spendable(sms_type) if p.free)
            package.free, package.held = package.free - 1, package.held + 1
            units.append(package.number)
        self.freezes.append(_Freeze(self.now, self.now + ttl, units))
        return None

    def pay(self, index: int, segments: int) -> str | None:
        freeze = self.freezes[index]
        if freeze.end <= self.now:
            return "FREEZE_EXPIRED"
        if segments > len(freeze.units):
            return "FREEZE_INSUFFICIENT"
        paid, freeze.units = freeze.units[:segments], freeze.units[segments:]
        for unit in paid:
            self.packages[unit - 1].held -= 1
        self.payments.append(_Payment(paid))
        return None

    def release(self, index: int, segments: int) -> int:
        freeze = self.freezes[index]
        count = min(segments or len(freeze.units), len(freeze.units))
        for _ in range(count):
            self._let_go(freeze.units.pop(), self.now)
        return count

    def extend(self, index: int, ttl: timedelta) -> str | None:
        freeze = self.freezes[index]
        if freeze.end <= self.now:
            return "FREEZE_EXPIRED"
        if not freeze.units:
            return "FREEZE_SETTLED"
        if self.now + ttl > freeze.begin + 7 * DAY:
            return "TIME_TO_LIVE_TOO_LONG"
        freeze.end = max(freeze.end, self.now + ttl)
        return None

    def status(self, index: int, failed: dict[str, int]) -> int | str:
        payment = self.payments[index]
        fresh = {message: count for message, count in failed.items() if message not in payment.refunded}
        if sum(fresh.values()) > len(payment.units):
            return "REFUND_EXCEEDS_PAYMENT"
        for message, count in fresh.items():
            self._refund(payment, message, count)
        return sum(fresh.values())

    def receipt(self, index: int, message: str, segments: int, state: int) -> int | str:
        payment = self.payments[index]
        refunds = (
            state in {ReceiptState.UNDELIVERED, ReceiptState.EXPIRED}
            and self.refund_undelivered
            and message not in payment.refunded
            and message not in payment.delivered
        )
        if refunds and segments > len(payment.units):
            return "REFUND_EXCEEDS_PAYMENT"
        if refunds:
            self._refund(payment, message, segments)
        if state == ReceiptState.DELIVERED:
            payment.delivered.add(message)
        return segments if refunds else 0

    def _refund(self, payment: _Payment, message: str, count: int) -> None:
        payment.refunded.add(message)
        for _ in range(count):
            package = self.packages[payment.units.pop() - 1]
            if package.end > self.now:
                package.free += 1
            elif package.refunds_of or package.end + 30 * DAY <= self.now:
                package.lost += 1
            else:
                heir = next((p for p in self.packages if p.refunds_of == package.number), None)
                if heir is None:
                    number = len(self.packages) + 1
                    heir = _Package(number, package.end + 30 * DAY, package.types, 0, refunds_of=package.number)
                    self.packages.append(heir)
                heir.free += 1

    def figures(self) -> Any:
        return (
            sum(p.free + p.held for p in self.packages),
            sum(p.held for p in self.packages),
            [sum(p.free for p in self.spendable(sms_type)) for sms_type in (1, 2, 3)],
            [(p.number, p.free + p.held, p.held, p.lost) for p in self.packages],
        )


def _figures(ledger: Ledger) -> Any:
    """The same of the ledger, what is due computed but not written."""
    book = ledger.settled()
    brand = book.brand(BRAND)
    assert brand is not None
    live = {package.package_id: package for package in book.queue(BRAND)}
    packages = [live.get(package.package_id, package) for package in ledger.tables.packages.values()]
    return (
        brand.total,
        brand.frozen,
        [book.available(BRAND, sms_type) for sms_type in (1, 2, 3)],
        sorted((p.package_id, p.remaining, p.held, p.expired) for p in packages),
    )


# Times meet on purpose: whole hours make ends of packages and freezes fall together. Freezes are small against grants
# and sequences long, so that most operations find something to work on.
_hours = st.sampled_from([1, 2, 3, 5])
_pick = st.sampled_from(range(4))
_messages = st.sampled_from(["m1", "m2", "m3"])
_failed = st.dictionaries(_messages, st.sampled_from([1, 1, 2, 4]), min_size=1, max_size=2)
_grant = st.tuples(
    st.just("grant"), st.sampled_from([3, 8, 20]), st.one_of(_hours, _hours, st.none()), st.sampled_from(_TYPES)
)
_freeze = st.tuples(st.just("freeze"), st.sampled_from([2, 4, 6, 9]), st.sampled_from([1, 2, 3]), _hours)
_pay = st.tuples(st.just("pay"), _pick, st.sampled_from([1, 2, 3, 6]))
_status = st.tuples(st.just("status"), _pick, _failed)
_wait = st.tuples(st.just("wait"), st.sampled_from([HOUR / 2, HOUR, HOUR, 3 * HOUR, 16 * DAY]))
_steps = st.one_of(
    _grant,
    _freeze,
    _freeze,
    _pay,
    _pay,
    _status,
    _status,
    _wait,
    st.tuples(st.just("release"), _pick, st.sampled_from([0, 1, 3])),
    st.tuples(st.just("extend"), _pick, st.sampled_from([1, 4, 168])),
    st.tuples(st.just("receipt"), _pick, _messages, st.sampled_from([1, 2]), st.sampled_from(list(ReceiptState))),
)
_begin = st.tuples(_grant, _grant, _freeze, _pay).map(list)
_sequences = st.builds(list.__add__, _begin, st.lists(_steps, min_size=20, max_size=40))
_bounded = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    # Making a long sequence shorter takes minutes, and what is left of it is no plainer.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)


def _place(pick: int, made: list[Any]) -> int:
    """The place of one of the youngest: old ones are settled."""
    return max(0, len(made) - 1 - pick)


class Player:
    """Plays steps on a ledger and remembers the numbers of what it made."""

    def __init__(self, **options: Any) -> None:
        self.ledger = Ledger(deep=False, refund_undelivered=True, **options)
        self.freezes: list[str] = []
        self.payments: list[str] = []

    def play(self, step: tuple[Any, ...]) -> Any:
        """The answer to a step: a reply, or the reason of a refusal; None where there is nothing to do it to."""
        ledger = self.ledger
        match step:
            case ("wait", wait):
                ledger.advance(0.4 * wait)
                ledger.group()  # nothing but a sweep, where there are sweeps
                ledger.advance(wait - 0.4 * wait)
                return None
            case ("grant", segments, hours, types):
                return ledger.grant(segments, None if hours is None else hours * HOUR, types)
            case ("release", pick, segments) if self.freezes:
                return ledger.release(self._freeze(pick), segments)
        operation = self.operation(step)
        if operation is None:
            return None
        (outcome,) = ledger.group(operation)
        return self.note(outcome)

    def operation(self, step: tuple[Any, ...]) -> Operation | None:
        """The operation of a step on what is there, or None."""
        request = self.ledger.request()
        match step:
            case ("freeze", segments, sms_type, hours):
                return FreezeSegments(BRAND, request, b"", sms_type, segments, hours * HOUR)
            case ("pay", pick, segments) if self.freezes:
                return Pay(BRAND, request, b"", self._freeze(pick), segments)
            case ("extend", pick, hours) if self.freezes:
                return Extend(BRAND, request, b"", self._freeze(pick), hours * HOUR)
            case ("release", pick, segments) if self.freezes:
                return RequestRelease(BRAND, request, b"", self._freeze(pick), segments)
            case ("status", pick, failed) if self.payments:
                return SendStatus(BRAND, request, b"", self._payment(pick), list(failed.items()))
            case ("receipt", pick, message, segments, state) if self.payments:
                return RecordReceipt(BRAND, request, b"", self._payment(pick), message, segments, state, "", None)
        return None

    def _freeze(self, pick: int) -> str:
        return self.freezes[_place(pick, self.freezes)]

    def _payment(self, pick: int) -> str:
        return self.payments[_place(pick, self.payments)]

    def note(self, outcome: Any) -> Any:
        """Remember the numbers of a reply."""
        if isinstance(outcome, Refusal):
            return outcome.reason
        if hasattr(outcome, "payment_no"):
            self.payments.append(outcome.payment_no)
        elif hasattr(outcome, "order_no"):
            self.freezes.append(outcome.order_no)
        return getattr(outcome, "refunded", None)


def _play_model(model: Model, step: tuple[Any, ...]) -> Any:
    match step:
        case ("wait", wait):
            model.pass_time(wait)
        case ("grant", segments, hours, types):
            return model.grant(segments, hours, types)
        case ("freeze", segments, sms_type, hours):
            return model.freeze(segments, sms_type, hours * HOUR)
        case ("pay", pick, segments) if model.freezes:
            return model.pay(_place(pick, model.freezes), segments)
        case ("extend", pick, hours) if model.freezes:
            return model.extend(_place(pick, model.freezes), hours * HOUR)
        case ("release", pick, segments) if model.freezes:
            return model.release(_place(pick, model.freezes), segments)
        case ("status", pick, failed) if model.payments:
            return model.status(_place(pick, model.payments), failed)
        case ("receipt", pick, message, segments, state) if model.payments:
            return model.receipt(_place(pick, model.payments), message, segments, state)
    return None


@_bounded
@given(_sequences)
def test_the_rules_agree_with_the_model(steps: list[tuple[Any, ...]]) -> None:
    """Every answer and every figure of every package, after every step; `Ledger` checks the invariants besides."""
    player, model = Player(), Model(refund_undelivered=True)
    for step in steps:
        assert player.play(step) == _play_model(model, step), step
        assert _figures(player.ledger) == model.figures(), step


@_bounded
@given(_sequences)
def test_sweeps_change_nothing(steps: list[tuple[Any, ...]]) -> None:
    """Sweeps between and before all steps, or none at all: the same answers, records and history."""
    runs = []
    for sweeps in (False, True):
        player = Player(sweeps=sweeps)
        answers = [player.play(step) for step in steps]
        player.ledger.book_due()
        tables = player.ledger.tables
        for entry in tables.entries:
            entry.booked_at = entry.at
        for brand in tables.brands.values():
            brand.next_due_at = None  # a bound, no figure
        runs.append((answers, tables))
    assert runs[0] == runs[1]


@_bounded
@given(_sequences, st.integers(2, 6))
def test_a_group_equals_its_operations_one_after_another(steps: list[tuple[Any, ...]], size: int) -> None:
    """Grouped by `size` or one by one at the same moments: the same replies, refusals and records."""
    grouped, single = Player(), Player()
    for start in range(0, len(steps), size):
        group = []
        for step in steps[start : start + size]:
            if step[0] in {"wait", "grant"}:
                grouped.play(step)
                single.play(step)
                continue
            operation, twin = grouped.operation(step), single.operation(step)
            assert operation == twin
            if operation is not None:
                group.append(operation)
        together = grouped.ledger.group(*group) if group else []
        apart = [single.ledger.group(operation)[0] for operation in group]
        assert [normal(outcome) for outcome in together] == [normal(outcome) for outcome in apart]
        for player, outcomes in ((grouped, together), (single, apart)):
            for outcome in outcomes:
                player.note(outcome)
        releases = [reply.release_no for reply in apart if hasattr(reply, "release_no")]
        applied = [ApplyRelease(BRAND, "", b"", release_no) for release_no in releases]
        assert grouped.ledger.group(*applied) == [single.ledger.group(operation)[0] for operation in applied]
        assert grouped.ledger.tables == single.ledger.tables
