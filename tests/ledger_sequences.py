"""Sequences of calls of the ledger: written at random, as text that can be kept, and made shorter.

A call has its own moment and names what it refers to by the call that made it (`order-7` is the freeze of call 7), so
a sequence goes on to mean the same when calls are left out of it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger_oracle import CLOSED, FROM_REFUND, SUSPENDED, TYPES, Brand, Freeze, Oracle, Payment, Refused, Request, Terms

MICROSECOND = timedelta(microseconds=1)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)

# Ends of months and changes of the clocks in Europe and America lie ahead of them.
_STARTS = (
    datetime(2026, 1, 30, 16, 30, tzinfo=UTC),
    datetime(2026, 3, 7, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 3, 28, 1, 30, tzinfo=UTC),
    datetime(2026, 10, 24, 0, 30, tzinfo=UTC),
)
_ZONES = ("Asia/Shanghai", "Europe/Berlin", "America/New_York", "UTC")
_TYPES_OF_PACKAGES: tuple[list[int], ...] = ([], [], [], [1], [3], [2, 3], [1, 2, 3])
_FIRST, _SECOND, _NOBODY = 1, 2, 3
_MESSAGES = ("m1", "m2", "m3", "m4")
_OFFERS: tuple[Request, ...] = (
    {"offer_id": "day", "segments": 6, "validity_days": 1},
    {"offer_id": "month", "segments": 9, "validity_months": 1, "sms_types": [2, 3]},
    {"offer_id": "ever", "segments": 3},
    {"offer_id": "gone", "segments": 3, "inactive": True},
)

_CANDIDATES = 8
# What starting and ending a sequence costs, in calls.
_CALLS_TO_COMPARE_ALL = 12

_MOMENTS = {"expires_at", "as_of", "from", "to"}
_DURATIONS = {"time_to_live", "step"}


@dataclass(frozen=True)
class Variant:
    """Settings of the service that a sequence is for."""

    name: str
    terms: Terms
    changes: dict[str, Any]


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("usual", Terms(), {}),
        # Batches and what is due are spread over several transactions.
        Variant(
            "small groups, no grace",
            Terms(refund_grace_days=0),
            {"refund_grace_days": 0, "ledger_group_max": 2, "ledger_ended_freezes_max": 1},
        ),
    )
}


@dataclass(frozen=True)
class Call:
    """A call at a moment. `number` names what it makes."""

    number: int
    at: datetime
    method: str
    request: Request

    def __str__(self) -> str:
        return f"{self.number:>3} {self.at:%d %b %H:%M:%S.%f}  {self.method}({_short(self.request)})"


@dataclass(frozen=True)
class Sequence:
    """Calls in the order of time."""

    variant: str
    start: datetime
    calls: tuple[Call, ...]

    def __str__(self) -> str:
        lines = [f"settings: {self.variant}; from {self.start.isoformat()}"]
        return "\n".join([*lines, *map(str, self.calls)])

    def to_text(self) -> str:
        """One line of JSON for the whole and one for each call."""
        lines: list[Any] = [{"variant": self.variant, "start": self.start}]
        lines += [
            {"number": call.number, "at": call.at, "method": call.method, "request": call.request}
            for call in self.calls
        ]
        return "\n".join(json.dumps(line, default=_to_json, ensure_ascii=False) for line in lines)

    @classmethod
    def from_text(cls, text: str) -> Sequence:
        """What `to_text` made."""
        head, *lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        calls = [
            Call(line["number"], datetime.fromisoformat(line["at"]), line["method"], _from_json(line["request"]))
            for line in lines
        ]
        return cls(head["variant"], datetime.fromisoformat(head["start"]), tuple(calls))


class Numbers:
    """Names what the oracle makes by the call that makes it, so that the names outlast other calls."""

    def __init__(self) -> None:
        self._call = self._made = 0

    def begin(self, call: Call) -> None:
        """What is made from now on is this call's."""
        self._call, self._made = call.number, 0

    def __call__(self, kind: str, brand_id: int) -> str:
        self._made += 1
        suffix = f".{self._made}" if self._made > 1 else ""
        return f"{kind.removesuffix('_no')}-{self._call}{suffix}"


def openings() -> list[Request]:
    """PutPackageOffer for each offer that sequences order from."""
    return [
        {
            "offer": {
                "name": offer["offer_id"],
                "price": "45.00",
                "currency": "CNY",
                "active": not offer.get("inactive"),
                **{name: value for name, value in offer.items() if name != "inactive"},
            }
        }
        for offer in _OFFERS
    ]


def write(seed: int) -> Sequence:
    """The sequence of a seed: of some that are written at random the one in which most happens for its length.

    Playing one takes a hundred times longer than writing it.
    """
    choice = random.Random(seed)
    authors = [Author(choice.randrange(2**32)) for _ in range(_CANDIDATES)]
    sequences = [author.write() for author in authors]
    scores = [
        sum(map(_weight, author.happened)) / (len(sequence.calls) + _CALLS_TO_COMPARE_ALL)
        for author, sequence in zip(authors, sequences, strict=True)
    ]
    return sequences[scores.index(max(scores))]


def _weight(happened: tuple[Any, ...]) -> int:
    # It takes a long way to make a package of refunds, spend it and get a refund of that.
    return 4 if any(is_refund for _, is_refund, _ in happened[1]) else 1


class Author:
    """Writes a sequence at random. It plays the oracle along, so that it knows what the next call can be about."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        variant = self.random.choice(["usual", "usual", "small groups, no grace"])
        start = self.random.choice(_STARTS)
        self.numbers = Numbers()
        self.oracle = Oracle(start, VARIANTS[variant].terms, self.numbers)
        for opening in openings():
            self.oracle.call("PutPackageOffer", **opening)
        self.sequence = Sequence(variant, start, ())
        self.calls: list[Call] = []
        self.keyed: list[tuple[str, Request]] = []
        # Sequences that do much of one thing and nothing of another reach further than those that do a bit of all.
        self.weights = {method: weight * self.random.choice([0, 0.3, 1, 1, 3]) for method, weight in _WEIGHTS.items()}
        self.sweeps_after_waits = self.random.random() < 0.25
        self.waiting = self.random.choice([0.1, 0.2, 0.4])
        self.happened: set[Any] = set()

    def write(self) -> Sequence:
        """The sequence."""
        self._begin()
        methods, weights = list(self.weights), list(self.weights.values())
        for _ in range(self.random.choice([8, 15, 25, 40])):
            if self.random.random() < self.waiting:
                self._wait()
            method = self.random.choices(methods, weights)[0]
            getattr(self, f"_{method}")()
        if self.random.random() < 0.3:
            # Everything that can end ends, unseen and then swept.
            self._pass_to(self.oracle.now + 200 * DAY)
            self._sweep()
        return replace(self.sequence, calls=tuple(self.calls))

    def _begin(self) -> None:
        for brand_id in (_FIRST, _SECOND):
            self._add(
                "PutBrand",
                brand_id=brand_id,
                name=f"Brand {brand_id}",
                time_zone=self.random.choice(_ZONES),
                refund_undelivered=self.random.random() < 0.5,
            )
        for brand_id in (_FIRST, _FIRST, _FIRST, _SECOND)[: self.random.choice([1, 2, 3, 4])]:
            self._grant(brand_id)

    # Adding calls.

    def _add(self, method: str, **request: Any) -> None:
        call = Call(len(self.calls) + 1, self.oracle.now, method, request)
        self.calls.append(call)
        self.numbers.begin(call)
        for item in request.get("items", [request]):
            self.happened.add((method, frozenset(), self._situation(item)))
        with self._noting(method):
            outcome = self.oracle.outcome(method, **request)
        for result in [outcome] if isinstance(outcome, Refused) else outcome.get("results", ()):
            refused = result if isinstance(result, Refused) else result.get("refusal")
            if refused is not None and refused.reason != "BAD_REQUEST":
                self.happened.add((method, frozenset(), refused.reason))

    def _situation(self, request: Request) -> Any:
        """What a call comes upon that no package tells."""
        brand = self.oracle.brands.get(request.get("brand_id", 0))
        if brand is None:
            return None
        payment = brand.payments.get(request.get("payment_no", ""))
        message_id = request.get("message_id", "")
        receipt = brand.receipts.get((request.get("payment_no", ""), message_id))
        order = brand.orders.get(request.get("package_order_no", ""))
        return (
            brand.status,
            payment and payment.status,
            payment and message_id and (payment.refund_of(message_id) is not None, brand.refund_undelivered),
            receipt and receipt.state,
            request.get("state"),
            order and (order.package is not None, order.is_cancelled, self.oracle.now >= order.pay_before),
        )

    def _pass_to(self, moment: datetime) -> None:
        with self._noting("time"):
            self.oracle.pass_to(moment)

    @contextmanager
    def _noting(self, cause: str) -> Iterator[None]:
        """Note what happens to which packages, and whether it happens at an end or next to one."""
        before = {brand.brand_id: len(brand.records) for brand in self.oracle.brands.values()}
        yield
        now = self.oracle.now
        for brand in self.oracle.brands.values():
            records = brand.records[before.get(brand.brand_id, 0) :]
            if not records:
                continue
            packages = {package_id: brand.package(package_id) for _, package_id, _ in records}
            effects = frozenset(
                (kind, packages[package_id].source == FROM_REFUND, packages[package_id].is_over(now))
                for kind, package_id, _ in records
            )
            self.happened.add((cause, effects, min(3, len(packages))))
            ends = [package.expires_at for package in brand.packages]
            ends += [freeze.expires_at for freeze in brand.freezes.values()]
            near = {now - end for end in ends if end is not None and abs(now - end) <= MICROSECOND}
            self.happened |= {(cause, effects, distance) for distance in near}

    def _add_keyed(self, method: str, **request: Any) -> None:
        request = {"request_id": self._key(), **request}
        self.keyed.append((method, request))
        self._add(method, **request)

    def _key(self, item: int = 0) -> str:
        return f"k{len(self.calls) + 1}" + (f".{item}" if item else "")

    # Choices.

    def _one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def _chance(self, percent: float = 4) -> bool:
        return self.random.random() * 100 < percent

    def _brand_id(self) -> int:
        if self._chance(2):
            return self.random.choice([_NOBODY, 0])
        return _SECOND if self._chance(25) else _FIRST

    def _brand(self, brand_id: int) -> Brand:
        """The brand, or another when there is none of this number."""
        return self.oracle.brands.get(brand_id) or self.oracle.brands[_FIRST]

    def _amount(self, whole: int) -> int:
        """Segments, about what there is."""
        if self._chance(2):
            wrong: int = self._one_of(0, -1, 1_000_000_001, 1_000_000_000)
            return wrong
        if self._chance(12):
            return whole + 1
        part = self.random.choice([1, 2, whole, whole, whole // 2, whole - 1])
        return max(1, min(part, whole))

    def _recent(self, things: Iterable[Any]) -> Any:
        """One of the things, rather one of the last; None when there are none."""
        listed = list(things)
        if not listed:
            return None
        return self.random.choice(listed[-3:] if self._chance(70) else listed)

    def _freeze_to_use(self) -> tuple[int, Freeze | None]:
        """A freeze, rather one that is open, and its brand, rarely another."""
        found = [
            (brand.brand_id, freeze)
            for brand in self.oracle.brands.values()
            for freeze in brand.freezes.values()
            if freeze.open
        ]
        if not found or self._chance(15):
            found = [
                (brand.brand_id, freeze) for brand in self.oracle.brands.values() for freeze in brand.freezes.values()
            ]
        brand_id, freeze = self._recent(found) or (self._brand_id(), None)
        return self._brand_id() if self._chance(3) else brand_id, freeze

    def _payment_to_settle(self) -> tuple[int, Payment | None]:
        """A payment and its brand, rarely another."""
        found = [
            (brand.brand_id, payment) for brand in self.oracle.brands.values() for payment in brand.payments.values()
        ]
        brand_id, payment = self._recent(found) or (self._brand_id(), None)
        return self._brand_id() if self._chance(3) else brand_id, payment

    def _types(self) -> list[int]:
        return list(self._one_of(*_TYPES_OF_PACKAGES))

    def _end_to_meet(self) -> datetime:
        """A moment to come, rather one at which something else ends."""
        ends = self.oracle.ends()
        if ends and not self._chance(50):
            end: datetime = self._one_of(*ends[:4]) + self._one_of(-1, 0, 0, 1) * MICROSECOND
            return end
        later: timedelta = self._one_of(SECOND, HOUR, DAY, 2 * DAY, 6 * DAY, 20 * DAY)
        return self.oracle.now + later

    def _wait(self) -> None:
        now = self.oracle.now
        ends = self.oracle.ends()
        if ends and not self._chance(35):
            # The next end most of all: at it, just before, just behind.
            moment = ends[min(self.random.choice([0, 0, 0, 1, 2, 5]), len(ends) - 1)]
            moment += self._one_of(-1, 0, 0, 1) * MICROSECOND
        else:
            moment = now + self._one_of(MICROSECOND, SECOND, HOUR, 5 * HOUR, DAY, 3 * DAY, 8 * DAY)
        self._pass_to(max(now, moment))
        if self.sweeps_after_waits:
            self._sweep()

    # Calls.

    def _grant(self, brand_id: int | None = None) -> None:
        grant: Request = {"segments": self._one_of(1, 2, 3, 5, 8, 13, 20), "sms_types": self._types()}
        if self._chance(2):
            grant["segments"] = 0
        if not self._chance(20):
            grant["expires_at"] = self._end_to_meet() if not self._chance(5) else self.oracle.now
        self._adjust(self._brand_id() if brand_id is None else brand_id, grant=grant)

    def _adjust(self, brand_id: int, **adjustment: Request) -> None:
        self._add_keyed("AdjustPackage", brand_id=brand_id, author="auditor", reason="test", **adjustment)

    def _claw_back(self) -> None:
        brand_id = self._brand_id()
        package = self._recent(self._brand(brand_id).packages)
        available = package.remaining - package.held if package else 1
        package_id = package.package_id if package and not self._chance() else self._one_of(0, 99)
        self._adjust(brand_id, claw_back={"package_id": package_id, "segments": self._amount(available)})

    def _return(self) -> None:
        brand_id = self._brand_id()
        package = self._recent(self._brand(brand_id).packages)
        self._adjust(brand_id, return_package={"package_id": package.package_id if package else 99})

    def _order(self) -> None:
        request: Request = {"offer_id": self._one_of("day", "day", "month", "ever")}
        if self._chance(6):
            request["offer_id"] = self._one_of("gone", "none", "")
        if self._chance(10):
            request["price"] = self._one_of("9.9", "0", "-1", "1.23456")
        if self._chance(8):
            request["currency"] = self._one_of("EUR", "euro")
        self._add_keyed("CreatePackageOrder", brand_id=self._brand_id(), **request)

    def _paid(self) -> None:
        brand_id = self._brand_id()
        order = self._recent(self._brand(_SECOND if self._chance(3) else brand_id).orders.values())
        if order is None:
            self._order()
            return
        if order.package is None and order.pay_before > self.oracle.now and self._chance(25):
            self._pass_to(order.pay_before + self._one_of(-1, 0, 1) * MICROSECOND)
            if not self._chance(30):
                self._clean_up()
        price = f"{order.price:.4f}" if self._chance(30) else f"{order.price:f}"
        self._add(
            "PackagePaidCallBack",
            brand_id=brand_id,
            package_order_no=order.package_order_no if not self._chance() else "order-none",
            payment_reference="bank-1" if not self._chance(20) else self._one_of("bank-2", ""),
            amount=price if not self._chance(12) else self._one_of("44.99", "45.000", "free"),
            currency=order.currency if not self._chance() else "USD",
        )
        if self._chance(30):
            self._paid()

    def _freeze(self) -> None:
        now = self.oracle.now
        spendable = [package for package in self._brand(_FIRST).packages if package.remaining > package.held]
        spendable = [package for package in spendable if not package.is_over(now)]
        if not self._chance(90 if len(spendable) > 1 else 40 if spendable else 10):
            self._grant(_FIRST)
        self._add_keyed("SmsSendPrePay", **self._freeze_fields())

    def _freeze_fields(self) -> Request:
        brand_id = self._brand_id()
        if not self._brand(brand_id).available(self.oracle.now) and not self._chance(10):
            brand_id = _FIRST
        sms_type, available = self._type_to_freeze(self._brand(brand_id))
        # Most of what there is, so that it comes out of several packages.
        segments = self._amount(available) if self._chance(50) else max(1, available - self._one_of(0, 1, 2))
        request: Request = {"brand_id": brand_id, "sms_type": sms_type, "segments": segments}
        if self._chance(2):
            request["sms_type"] = self._one_of(0, 9)
        if self._chance(50):
            request["time_to_live"] = self._time_to_live(self.oracle.now)
        return request

    def _type_to_freeze(self, brand: Brand) -> tuple[int, int]:
        """A type, rather one that something is there for, and how much is."""
        available = {sms_type: brand.available(self.oracle.now, sms_type) for sms_type in TYPES}
        payable = [sms_type for sms_type in TYPES if available[sms_type]]
        sms_type = self.random.choice(payable if payable and not self._chance(10) else list(TYPES))
        return sms_type, available[sms_type]

    def _has_open_freeze(self) -> bool:
        return any(freeze.open for brand in self.oracle.brands.values() for freeze in brand.freezes.values())

    def _time_to_live(self, created_at: datetime) -> timedelta:
        longest = created_at + self.oracle.terms.time_to_live_max - self.oracle.now
        if self._chance(15 if created_at == self.oracle.now else 50):
            return longest + int(self._one_of(-1, 0, 1)) * MICROSECOND
        to_meet = self._end_to_meet() - self.oracle.now
        chosen: timedelta = self._one_of(to_meet, to_meet, MICROSECOND, HOUR, DAY, 3 * DAY, 6 * DAY, 7 * DAY)
        return chosen if not self._chance(2) else timedelta()

    def _pay(self) -> None:
        if not self._has_open_freeze() and not self._chance(10):
            self._freeze()
        self._add_keyed("SmsSendPay", **self._pay_fields())

    def _pay_fields(self) -> Request:
        brand_id, freeze = self._freeze_to_use()
        return {
            "brand_id": brand_id,
            "order_no": freeze.order_no if freeze and not self._chance(2) else "order-none",
            "segments": self._amount(freeze.open if freeze else 1),
        }

    def _release(self) -> None:
        if not self._has_open_freeze() and not self._chance(10):
            self._freeze()
        brand_id, freeze = self._freeze_to_use()
        segments = 0 if self._chance(30) else self._amount(freeze.open if freeze else 1)
        order_no = freeze.order_no if freeze and not self._chance(2) else "order-none"
        self._add_keyed("SmsReleaseFreezeNum", brand_id=brand_id, order_no=order_no, segments=segments)
        if self._chance(40):
            self._apply_releases()

    def _extend(self) -> None:
        if not self._has_open_freeze() and not self._chance(10):
            self._freeze()
        brand_id, freeze = self._freeze_to_use()
        time_to_live = self._time_to_live(freeze.created_at if freeze else self.oracle.now)
        order_no = freeze.order_no if freeze and not self._chance(2) else "order-none"
        self._add_keyed("ExtendFreeze", brand_id=brand_id, order_no=order_no, time_to_live=time_to_live)

    def _status(self) -> None:
        if not any(brand.payments for brand in self.oracle.brands.values()) and not self._chance(10):
            self._pay()
        self._add_keyed("SmsSendStatusCallBack", **self._status_fields())

    def _late_refund(self) -> None:
        """A status about the time when a package ends that was charged, or when refunds to it do."""
        charged = [
            (brand, payment, brand.package(line.package_id))
            for brand in self.oracle.brands.values()
            for payment in brand.payments.values()
            for line in payment.lines
            if line.refunded < line.segments
        ]
        if not charged:
            self._pay()
            return
        brand, payment, package = self.random.choice(charged)
        ends = [package.expires_at, self.oracle.grace_end(brand, package)]
        to_come = [end for end in ends if end is not None and end > self.oracle.now]
        if to_come:
            self._pass_to(self.random.choice(to_come) + self._one_of(-1, 0, 0, 1) * MICROSECOND)
        left = payment.segments - payment.refunded
        failed = [{"message_id": f"late-{len(self.calls)}", "segments": max(1, left - self._one_of(0, 1, 2))}]
        self._add_keyed("SmsSendStatusCallBack", brand_id=brand.brand_id, payment_no=payment.payment_no, failed=failed)

    def _fail_on_purpose(self) -> None:
        """All that can be spent is frozen, paid and failed at the end of a package, and so is what that gives back."""
        brand = self.oracle.brands[_FIRST]
        self._adjust(_FIRST, grant={"segments": 2, "expires_at": self.oracle.now + HOUR})
        for _ in range(2):
            sms_type, available = self._type_to_freeze(brand)
            if not available:
                return
            self._add_keyed("SmsSendPrePay", brand_id=_FIRST, sms_type=sms_type, segments=available)
            order_no = f"order-{len(self.calls)}"
            if order_no not in brand.freezes:
                return
            self._add_keyed("SmsSendPay", brand_id=_FIRST, order_no=order_no, segments=available)
            payment = list(brand.payments.values())[-1]
            packages = [brand.package(line.package_id) for line in payment.lines]
            self._pass_to(min(package.expires_at or self.oracle.now for package in packages))
            failed = [{"message_id": "all", "segments": available}]
            self._add_keyed("SmsSendStatusCallBack", brand_id=_FIRST, payment_no=payment.payment_no, failed=failed)

    def _status_fields(self) -> Request:
        brand_id, payment = self._payment_to_settle()
        left = payment.segments - payment.refunded if payment else 1
        names = self.random.sample(_MESSAGES, self.random.choice([0, 1, 1, 1, 2, 3]))
        if names and self._chance(3):
            names.append(self._one_of(names[0], ""))
        failed = [{"message_id": name, "segments": self._amount(max(1, left // len(names)))} for name in names]
        payment_no = payment.payment_no if payment and not self._chance(2) else "payment-none"
        return {"brand_id": brand_id, "payment_no": payment_no, "failed": failed}

    def _receipt(self) -> None:
        if not any(brand.payments for brand in self.oracle.brands.values()) and not self._chance(10):
            self._pay()
        self._add_keyed("SmsReceiptStatusCallBack", **self._receipt_fields())

    def _receipt_fields(self) -> Request:
        brand_id, payment = self._payment_to_settle()
        left = payment.segments - payment.refunded if payment else 1
        return {
            "brand_id": brand_id,
            "payment_no": payment.payment_no if payment and not self._chance(2) else "payment-none",
            "message_id": self._message(brand_id, payment),
            "segments": self._amount(max(1, left)),
            "state": self._one_of(1, 1, 2, 2, 3, 4) if not self._chance(2) else self._one_of(0, 7),
            "carrier_code": "MK:0001",
        }

    def _message(self, brand_id: int, payment: Payment | None) -> str:
        """A message, rather one that something was said of before."""
        known = {refund.message_id for refund in payment.refunds} if payment else set()
        receipts = self._brand(brand_id).receipts
        known |= {message_id for payment_no, message_id in receipts if payment and payment_no == payment.payment_no}
        return self.random.choice(sorted(known) if known and not self._chance(40) else _MESSAGES)

    def _batch(self) -> None:
        method, fields = self._one_of(
            ("SmsSendPrePay", self._freeze_fields),
            ("SmsSendPay", self._pay_fields),
            ("SmsSendStatusCallBack", self._status_fields),
            ("SmsReceiptStatusCallBack", self._receipt_fields),
        )
        items: list[Request] = []
        for place in range(self.random.choice([1, 2, 3, 5])):
            item = {"request_id": self._key(place), **fields()}
            if items and self._chance(15):
                # The one before once more, or its key for something else.
                item = dict(items[-1]) if self._chance(50) else {**item, "request_id": items[-1]["request_id"]}
            elif self.keyed and self._chance(5):
                item["request_id"] = self.random.choice(self.keyed)[1]["request_id"]
            items.append(item)
            self.keyed.append((method, item))
        self._add(f"Batch{method}", items=items)

    def _again(self) -> None:
        again = self._recent(self.keyed)
        if again is None:
            return
        method, request = again
        if self._chance(35):
            request = _changed(method, request)
        elif self._chance(10):
            request = {**request, "request_id": self._key()}
        self._add(method, **request)

    def _brand_change(self) -> None:
        change: Request = self._one_of(
            {"status": SUSPENDED},
            {"status": 1},
            {"status": 1},
            {"refund_undelivered": True},
            {"refund_undelivered": False},
            {"time_zone": self._one_of(*_ZONES)},
            {"time_zone": self._one_of(*_ZONES, "Nowhere/Land")},
            {"name": self._one_of("New name", " ")},
            {},
        )
        if self._chance(10):
            change = {"status": CLOSED}
        brand_id = self._brand_id()
        self._add("PutBrand", brand_id=brand_id, **change)
        if change.get("status", 1) > 1 and self._chance(50):
            self._add_keyed("SmsSendPrePay", brand_id=brand_id, sms_type=1, segments=1)

    def _sweep(self) -> None:
        for method in ("ApplyReleases", "BookDue", "CleanUp"):
            self._add(method)

    def _apply_releases(self) -> None:
        self._add("ApplyReleases")

    def _book_due(self) -> None:
        self._add("BookDue")

    def _clean_up(self) -> None:
        self._add("CleanUp")

    def _look_back(self) -> None:
        brand_id = self._brand_id()
        points = self._brand(brand_id).points
        moment = self.random.choice(points).at if points else self.oracle.now
        moment += self._one_of(-1, 0, 0, 1) * MICROSECOND
        if self._chance(70):
            self._add("GetBalance", brand_id=brand_id, as_of=moment if not self._chance() else moment + 400 * DAY)
        else:
            # The points meet the moment, the first of them before it.
            step = self._one_of(SECOND, HOUR, DAY, 9 * DAY)
            end = self._one_of(None, moment, self.oracle.now + DAY, moment + 2 * step)
            request: Request = {"from": moment - 3 * step, "step": step}
            self._add("GetBalanceHistory", brand_id=brand_id, **request, **({"to": end} if end else {}))

    def _list(self) -> None:
        brand_id, freeze = self._freeze_to_use()
        if self._chance(50):
            self._add("ListPackages", brand_id=brand_id)
        else:
            order_no = freeze.order_no if freeze and self._chance(50) else ""
            self._add("ListPayments", brand_id=brand_id, order_no=order_no)

    def _get_nothing(self) -> None:
        self._add("GetFreeze", order_no="order-none")
        self._add("GetPayment", payment_no="payment-none")


# How often each of the author's calls comes.
_WEIGHTS = {
    "freeze": 14,
    "pay": 12,
    "status": 9,
    "late_refund": 4,
    "fail_on_purpose": 1,
    "receipt": 7,
    "grant": 7,
    "batch": 7,
    "release": 6,
    "again": 6,
    "apply_releases": 5,
    "extend": 6,
    "order": 3,
    "paid": 4,
    "claw_back": 3,
    "return": 3,
    "brand_change": 3,
    "book_due": 3,
    "clean_up": 2,
    "look_back": 3,
    "list": 2,
    "get_nothing": 0.3,
}


def _changed(method: str, request: Request) -> Request:
    """The same key with other content."""
    match method:
        case "SmsSendStatusCallBack":
            return {**request, "failed": [*request["failed"], {"message_id": "m9", "segments": 1}]}
        case "SmsReceiptStatusCallBack":
            return {**request, "state": request["state"] % 4 + 1}
        case "AdjustPackage":
            return {**request, "reason": request["reason"] + "!"}
        case "CreatePackageOrder":
            return {**request, "price": "1.00"}
        case "ExtendFreeze":
            return {**request, "time_to_live": request["time_to_live"] + SECOND}
        case _:
            return {**request, "segments": request["segments"] + 1}


# Making a failing sequence shorter.


@dataclass
class Shrinker:
    """Leaves out and simplifies what is not needed for `fails` to stay true.

    Parameters: `fails` plays a sequence; `seconds` bound the work, and what was reached by then is the result.
    """

    fails: Callable[[Sequence], Awaitable[bool]]
    seconds: float
    tries: int = 0
    _deadline: float = field(default=0, init=False)

    async def shrink(self, sequence: Sequence) -> Sequence:
        """The shortest found."""
        self._deadline = time.monotonic() + self.seconds
        before = None
        while before != sequence and not self._is_late():
            before = sequence
            sequence = await self._leave_out(sequence)
            sequence = await self._simplify(sequence)
        return sequence

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    async def _try(self, sequence: Sequence) -> bool:
        if self._is_late():
            return False
        self.tries += 1
        return await self.fails(sequence)

    async def _leave_out(self, sequence: Sequence) -> Sequence:
        """Leave out runs of calls, long ones first, from the end: what comes later depends on what came before."""
        length = max(1, len(sequence.calls) // 2)
        while length:
            place = len(sequence.calls) - length
            while place >= 0:
                calls = sequence.calls[:place] + sequence.calls[place + length :]
                shorter = replace(sequence, calls=calls)
                if await self._try(shorter):
                    sequence = shorter
                place -= length
            length //= 2
        return sequence

    async def _simplify(self, sequence: Sequence) -> Sequence:
        """Simplify each call by itself."""
        for place in range(len(sequence.calls)):
            changed = True
            while changed and not self._is_late():
                changed = False
                for simpler in _simpler(sequence.calls, place):
                    candidate = replace(
                        sequence, calls=(*sequence.calls[:place], simpler, *sequence.calls[place + 1 :])
                    )
                    if await self._try(candidate):
                        sequence, changed = candidate, True
                        break
        return sequence


# Fields that a call does without.
_DISPENSABLE = {
    "PutBrand": ("time_zone", "refund_undelivered"),
    "SmsSendPrePay": ("time_to_live",),
    "CreatePackageOrder": ("price", "currency"),
    "GetBalance": ("as_of",),
    "ListPayments": ("order_no",),
}


def _simpler(calls: tuple[Call, ...], place: int) -> Iterator[Call]:
    """Forms of a call that are a little plainer, the plainest first."""
    call = calls[place]
    if place and call.at > calls[place - 1].at:
        yield replace(call, at=calls[place - 1].at)
    for name in _DISPENSABLE.get(call.method, ()):
        if name in call.request:
            yield replace(call, request={key: value for key, value in call.request.items() if key != name})
    for path in _paths(call.request):
        value = _at(call.request, path)
        if isinstance(value, list) and value:
            for index in range(len(value)):
                yield replace(call, request=_with(call.request, path, value[:index] + value[index + 1 :]))
        elif path[-1] == "segments" and value > 1:
            yield replace(call, request=_with(call.request, path, 1))
            yield replace(call, request=_with(call.request, path, value - 1))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if path:
        yield path
    for key, part in parts:
        yield from _paths(part, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    copied = value.copy()
    copied[key] = _with(value[key], tuple(rest), new)
    return copied


# Text.


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_short_value(part)}" for name, part in value.items())
    return _short_value(value)


def _short_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + _short(value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short_value, value)) + "]"
    if isinstance(value, datetime):
        return f"{value:%d %b %H:%M:%S.%f}"
    return str(value) if isinstance(value, timedelta) else repr(value)


def _to_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    assert isinstance(value, timedelta)
    return value // MICROSECOND


def _from_json(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _from_json(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    if name in _MOMENTS:
        return datetime.fromisoformat(value)
    return value * MICROSECOND if name in _DURATIONS else value
