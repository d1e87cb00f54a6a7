"""The ledger in plain Python, to check the service against: lists, dictionaries, linear scans, one caller, no I/O.

It follows the rules as they are written down (docs/ledger.md), shares no code with the service, and books everything at
the moment when it happens: nobody sweeps here. A request is the fields of the RPC's message as plain values (moments as
datetime, durations as timedelta, money as text, nested messages as dictionaries), and so is a reply, money as Decimal.
Numbers (order_no, payment_no, …) are the oracle's own unless `numbers` makes them, so a test maps them.

    oracle = Oracle(datetime(2026, 1, 1, tzinfo=UTC))
    oracle.call("PutBrand", brand_id=1, name="Brand")
    oracle.call("SmsSendPrePay", brand_id=1, request_id="a", sms_type=1, segments=5)  # Refused: INSUFFICIENT_BALANCE

It can be copied with `copy.deepcopy`, to try a call in several orders.
"""

from __future__ import annotations

import calendar
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

Request = dict[str, Any]
Reply = dict[str, Any]

TYPES = (1, 2, 3)
_ZONES = available_timezones()
SEGMENTS_MAX = 1_000_000_000
FAILED_MAX = 10_000
BATCH_MAX = 5_000
POINTS_MAX = 10_000

# The wire's numbers.
ACTIVE, SUSPENDED, CLOSED = 1, 2, 3
FROM_ORDER, FROM_GRANT, FROM_REFUND = 1, 2, 3
PAID, SENT, PARTLY_REFUNDED, REFUNDED = 1, 2, 3, 4
SEND_FAILED, NOT_DELIVERED = 1, 2
DELIVERED, UNDELIVERED, EXPIRED, PENDING = 1, 2, 3, 4

# Kinds of records in statements, and by how much a segment of each changes the total and what is frozen.
PURCHASE, GRANT, REFUND_PACKAGE, CLAW_BACK = 1, 2, 3, 4
FREEZE, PAYMENT, REFUND, RELEASE, TIME_OUT, EXPIRE, EXPIRE_BACK = 5, 6, 7, 8, 9, 10, 11
EFFECTS = {
    **dict.fromkeys((PURCHASE, GRANT, REFUND_PACKAGE, REFUND), (1, 0)),
    **dict.fromkeys((CLAW_BACK, EXPIRE, EXPIRE_BACK), (-1, 0)),
    **dict.fromkeys((RELEASE, TIME_OUT), (0, -1)),
    FREEZE: (0, 1),
    PAYMENT: (-1, -1),
}
# The sums of a statement, and the kinds that each adds up. What makes a refund package is in the refund already.
SUMS = {
    "purchases": {PURCHASE},
    "grants": {GRANT},
    "refunds": {REFUND},
    "payments": {PAYMENT},
    "expiries": {EXPIRE, EXPIRE_BACK},
    "claw_backs": {CLAW_BACK},
    "freezes": {FREEZE},
    "releases": {RELEASE},
    "time_outs": {TIME_OUT},
}
PERIOD_MAX = timedelta(days=366)

STATUS_OF = {
    "BAD_REQUEST": "INVALID_ARGUMENT",
    "TIME_TO_LIVE_TOO_LONG": "INVALID_ARGUMENT",
    "BRAND_NOT_FOUND": "NOT_FOUND",
    "OFFER_NOT_FOUND": "NOT_FOUND",
    "PACKAGE_ORDER_NOT_FOUND": "NOT_FOUND",
    "PACKAGE_NOT_FOUND": "NOT_FOUND",
    "FREEZE_NOT_FOUND": "NOT_FOUND",
    "PAYMENT_NOT_FOUND": "NOT_FOUND",
    "IDEMPOTENCY_CONFLICT": "ALREADY_EXISTS",
    "INSUFFICIENT_BALANCE": "FAILED_PRECONDITION",
    "BRAND_SUSPENDED": "FAILED_PRECONDITION",
    "BRAND_CLOSED": "FAILED_PRECONDITION",
    "OFFER_INACTIVE": "FAILED_PRECONDITION",
    "AMOUNT_MISMATCH": "FAILED_PRECONDITION",
    "FREEZE_EXPIRED": "FAILED_PRECONDITION",
    "FREEZE_INSUFFICIENT": "FAILED_PRECONDITION",
    "FREEZE_SETTLED": "FAILED_PRECONDITION",
    "REFUND_EXCEEDS_PAYMENT": "FAILED_PRECONDITION",
    "PACKAGE_EXPIRED": "FAILED_PRECONDITION",
    "PACKAGE_IN_USE": "FAILED_PRECONDITION",
}

# What a batch call is a batch of.
BATCHES = {
    "BatchSmsSendPrePay": "SmsSendPrePay",
    "BatchSmsSendPay": "SmsSendPay",
    "BatchSmsSendStatusCallBack": "SmsSendStatusCallBack",
    "BatchSmsReceiptStatusCallBack": "SmsReceiptStatusCallBack",
}


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error
    """A call that was refused; `figures` are the metadata that the documentation promises for the reason."""

    def __init__(self, reason: str, **figures: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = STATUS_OF[reason]
        self.figures = {name: str(value) for name, value in figures.items()}

    def __reduce__(self) -> tuple[Callable[..., Refused], tuple[str, dict[str, str]]]:
        return _refused, (self.reason, self.figures)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refused) and (self.reason, self.figures) == (other.reason, other.figures)

    __hash__ = Exception.__hash__


def _refused(reason: str, figures: dict[str, str]) -> Refused:
    return Refused(reason, **figures)


@dataclass(frozen=True)
class Terms:
    """The figures that the rules are set by."""

    time_to_live: timedelta = timedelta(days=1)
    time_to_live_max: timedelta = timedelta(days=7)
    pay_within: timedelta = timedelta(minutes=15)
    refund_grace_days: int = 30
    keys_kept: timedelta = timedelta(days=30)
    time_zone: str = "Asia/Shanghai"


@dataclass
class Package:
    """Segments that a brand owns."""

    package_id: int
    source: int
    source_no: str
    sms_types: list[int]
    expires_at: datetime | None
    created_at: datetime
    origin: int | None = None
    granted: int = 0
    remaining: int = 0
    held: int = 0
    paid: int = 0
    refunded: int = 0
    expired: int = 0

    def is_over(self, at: datetime) -> bool:
        """Whether its end has come: at `expires_at` it is over."""
        return self.expires_at is not None and at >= self.expires_at

    def pays(self, sms_type: int) -> bool:
        """Whether it may pay a type; no types named: all."""
        return not self.sms_types or sms_type in self.sms_types


@dataclass
class FreezeLine:
    """What a freeze took out of one package, and what became of it."""

    package_id: int
    segments: int
    paid: int = 0
    released: int = 0
    timed_out: int = 0

    @property
    def open(self) -> int:
        """Segments still held."""
        return self.segments - self.paid - self.released - self.timed_out


@dataclass
class Freeze:
    """Segments held for messages to come."""

    order_no: str
    request_id: str
    sms_type: int
    lines: list[FreezeLine]
    created_at: datetime
    expires_at: datetime

    @property
    def open(self) -> int:
        """Segments still held."""
        return sum(line.open for line in self.lines)


@dataclass
class PaymentLine:
    """What a payment took out of one package, and how much of it went back."""

    package_id: int
    segments: int
    refunded: int = 0


@dataclass
class Refund:
    """Segments of one message that went back; `lines` are (package, segments), what expired at once left out."""

    message_id: str
    segments: int
    lines: list[tuple[int, int]]
    expired: int
    cause: int
    created_at: datetime


@dataclass
class Payment:
    """Segments charged."""

    payment_no: str
    request_id: str
    order_no: str
    sms_type: int
    lines: list[PaymentLine]
    created_at: datetime
    status: int = PAID
    refunds: list[Refund] = field(default_factory=list)

    @property
    def segments(self) -> int:
        """Segments charged."""
        return sum(line.segments for line in self.lines)

    @property
    def refunded(self) -> int:
        """Segments that went back."""
        return sum(line.refunded for line in self.lines)

    def refund_of(self, message_id: str) -> Refund | None:
        """The refund of a message."""
        return next((refund for refund in self.refunds if refund.message_id == message_id), None)


@dataclass
class Receipt:
    """What was said last of a message; `house_loss`: segments that were refunded although it was delivered."""

    state: int
    segments: int
    house_loss: int = 0


@dataclass
class Order:
    """A package that was ordered."""

    package_order_no: str
    offer: Reply
    price: Decimal
    currency: str
    pay_before: datetime
    is_cancelled: bool = False
    payment_reference: str = ""
    package: Package | None = None


@dataclass
class Release:
    """A request to give segments of a freeze back; 0: all that is open by then."""

    release_no: str
    order_no: str
    segments: int
    released: int | None = None  # None: not applied yet


@dataclass
class Point:
    """A brand's balance from a moment on."""

    at: datetime
    total: int = 0
    frozen: int = 0
    available: dict[int, int] = field(default_factory=lambda: dict.fromkeys((0, *TYPES), 0))  # 0: for some type


@dataclass
class Brand:
    """A brand and all that is its own."""

    brand_id: int
    name: str
    status: int
    time_zone: str
    refund_undelivered: bool
    created_at: datetime
    packages: list[Package] = field(default_factory=list)
    freezes: dict[str, Freeze] = field(default_factory=dict)
    payments: dict[str, Payment] = field(default_factory=dict)
    receipts: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    # (kind, package, segments) of all that ever happened to a package, oldest first.
    records: list[tuple[str, int, int]] = field(default_factory=list)
    # All that changed the balance, as a statement tells it, in the order in which it happened.
    journal: list[Reply] = field(default_factory=list)
    # What ended since the last operation on the brand: what a sweep still has to write down.
    packages_to_book: set[int] = field(default_factory=set)
    freezes_to_book: set[str] = field(default_factory=set)

    def package(self, package_id: int) -> Package:
        """A package by its number."""
        return self.packages[package_id - 1]

    def in_burn_down_order(self) -> list[Package]:
        """Soonest end first, those without one last; then the oldest."""
        never = datetime.max.replace(tzinfo=UTC)
        return sorted(self.packages, key=lambda package: (package.expires_at or never, package.package_id))

    def available(self, at: datetime, sms_type: int = 0) -> int:
        """Segments that may be frozen for a type, or (0) for some type."""
        return sum(
            package.remaining - package.held
            for package in self.packages
            if not package.is_over(at) and (sms_type == 0 or package.pays(sms_type))
        )

    def record(self, kind: str, package: Package, segments: int) -> None:
        """Note what happened to a package, once its figures say so too."""
        if segments:
            self.records.append((kind, package.package_id, segments))

    def note(
        self, at: datetime, kind: int, number: str, lines: list[tuple[int, int]], moved: int = 0, **more: object
    ) -> None:
        """Note what changed the balance, as a statement tells it; `lines` are (package, segments).

        Of a refund `moved` went to a package of its own, whose grant changes the total.
        """
        lines = [line for line in lines if line[1]]
        if not lines:
            return
        segments = sum(count for _, count in lines)
        total, frozen = EFFECTS[kind]
        self.journal.append(
            {
                "record_no": len(self.journal) + 1,
                "at": at,
                "kind": kind,
                "number": number,
                "segments": segments,
                "lines": [{"package_id": package_id, "segments": count} for package_id, count in lines],
                "total_change": total * (segments - moved),
                "frozen_change": frozen * segments,
                **more,
            }
        )

    def mark(self, at: datetime) -> None:
        """Note the balance that holds from a moment on."""
        point = Point(
            at,
            sum(package.remaining for package in self.packages),
            sum(package.held for package in self.packages),
            {sms_type: self.available(at, sms_type) for sms_type in (0, *TYPES)},
        )
        if self.points and self.points[-1].at == at:
            self.points.pop()
        self.points.append(point)

    def balance_at(self, at: datetime) -> Point:
        """The balance at a moment that has come."""
        return next((point for point in reversed(self.points) if point.at <= at), Point(at))


@dataclass
class _Kept:
    content: Request
    reply: Reply
    kept_at: datetime


class Oracle:
    """The ledger. `now` is its clock: it stands still until `pass_to`.

    Parameters: `terms` are the service's settings; `numbers(kind, brand_id)` makes the numbers of what is new, where
    kind is one of package_order_no, order_no, payment_no, release_no, adjustment_no.
    """

    def __init__(
        self, now: datetime, terms: Terms | None = None, numbers: Callable[[str, int], str] | None = None
    ) -> None:
        self.now = now
        self.terms = terms or Terms()
        self.brands: dict[int, Brand] = {}
        self.offers: dict[str, Reply] = {}
        self._numbers = numbers
        self._count = 0
        # (brand_id, operation, request_id): kept for 30 days, or longer when nobody cleans up.
        self._keys: dict[tuple[int, str, str], _Kept] = {}
        # (brand_id, request_id) of payments: for ever.
        self._payment_keys: dict[tuple[int, str], _Kept] = {}

    # The three ways in.

    def call(self, method: str, /, **request: Any) -> Reply:
        """Answer a call. Raises `Refused`."""
        if method in BATCHES:
            return self._batch(BATCHES[method], request)
        if method not in _METHODS:
            raise LookupError(method)
        reply: Reply = _METHODS[method](self, _plain(request))
        return reply

    def outcome(self, method: str, /, **request: Any) -> Reply | Refused:
        """Answer a call with its reply or its refusal."""
        try:
            return self.call(method, **request)
        except Refused as refused:
            return refused

    def pass_to(self, moment: datetime) -> None:
        """Let time pass. What ends on the way ends at its own moment, packages before freezes."""
        if moment < self.now:
            raise ValueError("time does not go back")
        for brand in self.brands.values():
            self._let_end(brand, moment)
        self.now = moment

    def ends(self) -> list[datetime]:
        """The moments to come at which something ends by itself, soonest first."""
        moments = {package.expires_at for brand in self.brands.values() for package in brand.packages}
        moments |= {freeze.expires_at for brand in self.brands.values() for freeze in brand.freezes.values()}
        moments |= {order.pay_before for brand in self.brands.values() for order in brand.orders.values()}
        moments |= {kept.kept_at + self.terms.keys_kept for kept in self._keys.values()}
        moments |= {
            self.grace_end(brand, package)
            for brand in self.brands.values()
            for package in brand.packages
            if package.source != FROM_REFUND
        }
        return sorted(moment for moment in moments if moment is not None and moment > self.now)

    # Brands and offers.

    def _put_brand(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        status, zone, name = request.get("status", 0), request.get("time_zone"), request.get("name")
        _require(status in {0, ACTIVE, SUSPENDED, CLOSED})
        _require(zone is None or zone in _ZONES)
        _require(name is None or _is_text(name, 100))
        brand = self.brands.get(brand_id)
        if brand is None:
            _require(name is not None)
            brand = self.brands[brand_id] = Brand(brand_id, "", ACTIVE, self.terms.time_zone, False, self.now)
        elif brand.status == CLOSED:
            raise Refused("BRAND_CLOSED")
        self._touch(brand)
        brand.name = brand.name if name is None else name.strip()
        brand.status = status or brand.status
        brand.time_zone = zone or brand.time_zone
        if request.get("refund_undelivered") is not None:
            brand.refund_undelivered = request["refund_undelivered"]
        return {"brand": _brand_reply(brand)}

    def _get_brand(self, request: Request) -> Reply:
        return {"brand": _brand_reply(self._brand(_brand_id(request)))}

    def _put_offer(self, request: Request) -> Reply:
        offer = request["offer"]
        days, months = offer.get("validity_days"), offer.get("validity_months")
        _require(days is None or 1 <= days <= 36_500)
        _require(months is None or 1 <= months <= 1_200)
        _require(set(offer.get("sms_types", ())) <= set(TYPES))
        self.offers[_identifier(offer, "offer_id")] = {
            "offer_id": offer["offer_id"],
            "name": _text(offer, "name", 100),
            "segments": _segments(offer),
            "price": _money(offer, "price"),
            "currency": _currency(offer),
            "validity_days": days,
            "validity_months": months,
            "sms_types": sorted(set(offer.get("sms_types", ()))),
            "active": bool(offer.get("active")),
        }
        return {"offer": dict(self.offers[offer["offer_id"]])}

    # Buying.

    def _create_order(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        _identifier(request, "request_id")
        offer_id = _identifier(request, "offer_id")
        price = _money(request, "price") if request.get("price") else None
        currency = _currency(request) if request.get("currency") else ""

        def decide() -> Reply:
            brand = self._brand(brand_id)
            if brand.status == CLOSED:
                raise Refused("BRAND_CLOSED")
            offer = self.offers.get(offer_id)
            if offer is None:
                raise Refused("OFFER_NOT_FOUND")
            if not offer["active"]:
                raise Refused("OFFER_INACTIVE")
            order = Order(
                self._number("package_order_no", brand_id),
                offer=dict(offer),
                price=offer["price"] if price is None else price,
                currency=currency or offer["currency"],
                pay_before=self.now + self.terms.pay_within,
            )
            brand.orders[order.package_order_no] = order
            return {
                "package_order_no": order.package_order_no,
                "segments": offer["segments"],
                "price": order.price,
                "currency": order.currency,
                "pay_before": order.pay_before,
            }

        return self._once("CreatePackageOrder", request, decide)

    def _order_paid(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        order_no = _identifier(request, "package_order_no")
        reference = _identifier(request, "payment_reference")
        amount, currency = _money(request, "amount"), _currency(request)
        brand = self._touch(self._brand(brand_id))
        order = brand.orders.get(order_no)
        if order is None:
            raise Refused("PACKAGE_ORDER_NOT_FOUND")
        if (amount, currency) != (order.price, order.currency):
            raise Refused("AMOUNT_MISMATCH", price=_decimal_text(order.price), currency=order.currency)
        if order.package is not None and order.payment_reference != reference:
            raise Refused("IDEMPOTENCY_CONFLICT")
        if order.package is None:
            order.payment_reference = reference
            order.package = self._new_package(
                brand,
                FROM_ORDER,
                order_no,
                order.offer["segments"],
                self._validity_end(brand, order.offer),
                order.offer["sms_types"],
            )
        return {
            "package_id": order.package.package_id,
            "segments": order.offer["segments"],
            "expires_at": order.package.expires_at,
        }

    def _adjust(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        _identifier(request, "request_id")
        _text(request, "author", 100)
        _text(request, "reason", 500)
        grant, claw_back = request.get("grant"), request.get("claw_back")
        return_package = request.get("return_package")
        if grant is not None:
            _segments(grant)
            _require(set(grant.get("sms_types", ())) <= set(TYPES))
        elif claw_back is not None:
            _require(claw_back.get("package_id", 0) >= 1)
            _segments(claw_back)
        else:
            _require(return_package is not None and return_package.get("package_id", 0) >= 1)

        def decide() -> Reply:
            brand = self._brand(brand_id)
            number = self._number("adjustment_no", brand_id)
            if grant is not None:
                package = self._grant(brand, grant, number)
            elif claw_back is not None:
                package = self._claw_back(brand, claw_back["package_id"], claw_back["segments"], number)
            else:
                assert return_package is not None
                package = self._return(brand, return_package["package_id"], number)
            return {"adjustment_no": number, "package": _package_reply(package)}

        return self._once("AdjustPackage", request, decide)

    def _grant(self, brand: Brand, grant: Request, number: str) -> Package:
        if brand.status == CLOSED:
            raise Refused("BRAND_CLOSED")
        end = grant.get("expires_at")
        _require(end is None or end > self.now)
        return self._new_package(
            brand, FROM_GRANT, number, grant["segments"], end, sorted(set(grant.get("sms_types", ())))
        )

    def _claw_back(self, brand: Brand, package_id: int, segments: int, number: str) -> Package:
        package = self._package_to_adjust(brand, package_id)
        available = package.remaining - package.held
        if segments > available:
            raise Refused("INSUFFICIENT_BALANCE", requested=segments, available=available)
        package.granted -= segments
        package.remaining -= segments
        brand.record("claw back", package, segments)
        brand.note(self.now, CLAW_BACK, number, [(package_id, segments)])
        brand.mark(self.now)
        return package

    def _return(self, brand: Brand, package_id: int, number: str) -> Package:
        package = self._package_to_adjust(brand, package_id)
        if package.held or package.paid > package.refunded:
            raise Refused("PACKAGE_IN_USE")
        if not package.remaining:
            raise Refused("INSUFFICIENT_BALANCE", requested=0, available=0)
        return self._claw_back(brand, package_id, package.remaining, number)

    def _package_to_adjust(self, brand: Brand, package_id: int) -> Package:
        if not 1 <= package_id <= len(brand.packages):
            raise Refused("PACKAGE_NOT_FOUND")
        package = brand.package(package_id)
        if package.is_over(self.now):
            raise Refused("PACKAGE_EXPIRED")
        return package

    # Freezing, paying, releasing.

    def _freeze(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        request_id = _identifier(request, "request_id")
        sms_type, wanted = request.get("sms_type", 0), _segments(request)
        _require(sms_type in TYPES)
        if request.get("time_to_live") is not None:
            _duration(request)
        time_to_live = request.get("time_to_live") or self.terms.time_to_live

        def decide() -> Reply:
            brand = self._brand(brand_id)
            if brand.status == SUSPENDED:
                raise Refused("BRAND_SUSPENDED")
            if brand.status == CLOSED:
                raise Refused("BRAND_CLOSED")
            if time_to_live > self.terms.time_to_live_max:
                raise self._too_long()
            available = brand.available(self.now, sms_type)
            if wanted > available:
                raise Refused("INSUFFICIENT_BALANCE", requested=wanted, available=available)
            lines, missing = [], wanted
            for package in brand.in_burn_down_order():
                if package.is_over(self.now) or not package.pays(sms_type):
                    continue
                taken = min(missing, package.remaining - package.held)
                if taken:
                    package.held += taken
                    missing -= taken
                    lines.append(FreezeLine(package.package_id, taken))
                    brand.record("freeze", package, taken)
            assert missing == 0
            order_no, end = self._number("order_no", brand_id), self.now + time_to_live
            brand.freezes[order_no] = Freeze(order_no, request_id, sms_type, lines, self.now, end)
            parts = [(line.package_id, line.segments) for line in lines]
            brand.note(self.now, FREEZE, order_no, parts, request_id=request_id, sms_type=sms_type)
            brand.mark(self.now)
            return {"order_no": order_no, "segments": wanted, "expires_at": end}

        return self._once("SmsSendPrePay", request, decide)

    def _pay(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        request_id, order_no = _identifier(request, "request_id"), _identifier(request, "order_no")
        wanted = _segments(request)

        def decide() -> Reply:
            brand, freeze = self._freeze_of(brand_id, order_no)
            if self.now >= freeze.expires_at:
                raise Refused("FREEZE_EXPIRED", expires_at=freeze.expires_at.isoformat())
            if wanted > freeze.open:
                raise Refused("FREEZE_INSUFFICIENT", requested=wanted, open=freeze.open)
            lines, missing = [], wanted
            for line in freeze.lines:
                taken = min(missing, line.open)
                if taken:
                    line.paid += taken
                    missing -= taken
                    package = brand.package(line.package_id)
                    package.held -= taken
                    package.remaining -= taken
                    package.paid += taken
                    lines.append(PaymentLine(line.package_id, taken))
                    brand.record("pay", package, taken)
            payment_no = self._number("payment_no", brand_id)
            brand.payments[payment_no] = Payment(payment_no, request_id, order_no, freeze.sms_type, lines, self.now)
            parts = [(line.package_id, line.segments) for line in lines]
            brand.note(self.now, PAYMENT, payment_no, parts, request_id=request_id, sms_type=freeze.sms_type)
            brand.mark(self.now)
            return {"payment_no": payment_no, "segments": wanted, "open": freeze.open}

        return self._once("SmsSendPay", request, decide)

    def _request_release(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        _identifier(request, "request_id")
        order_no, wanted = _identifier(request, "order_no"), request.get("segments", 0)
        _require(0 <= wanted <= SEGMENTS_MAX)

        def decide() -> Reply:
            brand, _ = self._freeze_of(brand_id, order_no)
            release = Release(self._number("release_no", brand_id), order_no, wanted)
            brand.releases[release.release_no] = release
            return {"release_no": release.release_no}

        return self._once("SmsReleaseFreezeNum", request, decide)

    def _apply_releases(self, request: Request) -> Reply:
        limit = request.get("limit", 0)
        _require(0 <= limit <= 5_000)
        waiting = [
            (brand, release)
            for brand in self.brands.values()
            for release in brand.releases.values()
            if release.released is None
        ]
        applied = waiting[: limit or 1_000]
        for brand, release in applied:
            self._touch(brand)
            freeze = brand.freezes[release.order_no]
            release.released = missing = min(release.segments or freeze.open, freeze.open)
            for line in reversed(freeze.lines):
                taken = min(missing, line.open)
                line.released += taken
                missing -= taken
                self._let_go(brand, brand.package(line.package_id), taken, "release", self.now, freeze.order_no)
            brand.mark(self.now)
        return {
            "applied": len(applied),
            "put_back": 0,
            "segments": sum(release.released or 0 for _, release in applied),
        }

    def _extend(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        _identifier(request, "request_id")
        order_no, time_to_live = _identifier(request, "order_no"), _duration(request)

        def decide() -> Reply:
            _, freeze = self._freeze_of(brand_id, order_no)
            if self.now >= freeze.expires_at:
                raise Refused("FREEZE_EXPIRED", expires_at=freeze.expires_at.isoformat())
            if not freeze.open:
                raise Refused("FREEZE_SETTLED")
            if self.now + time_to_live > freeze.created_at + self.terms.time_to_live_max:
                raise self._too_long()
            freeze.expires_at = max(freeze.expires_at, self.now + time_to_live)
            return {"expires_at": freeze.expires_at}

        return self._once("ExtendFreeze", request, decide)

    # What became of the messages.

    def _send_status(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        _identifier(request, "request_id")
        payment_no, failed = _identifier(request, "payment_no"), request.get("failed", [])
        _require(len(failed) <= FAILED_MAX)
        names = [_identifier(message, "message_id") for message in failed]
        _require(len(set(names)) == len(names))
        for message in failed:
            _segments(message)

        def decide() -> Reply:
            brand, payment = self._payment_of(brand_id, payment_no)
            new = [message for message in failed if payment.refund_of(message["message_id"]) is None]
            refunded = sum(message["segments"] for message in new)
            self._require_refundable(payment, refunded)
            for message in new:
                self._refund(brand, payment, message["message_id"], message["segments"], SEND_FAILED)
            if payment.status == PAID:
                payment.status = SENT
            return {"refunded": refunded}

        return self._once("SmsSendStatusCallBack", request, decide)

    def _record_receipt(self, request: Request) -> Reply:
        brand_id = _brand_id(request)
        _identifier(request, "request_id")
        payment_no, message_id = _identifier(request, "payment_no"), _identifier(request, "message_id")
        segments, state, code = _segments(request), request.get("state", 0), request.get("carrier_code", "")
        _require(state in {DELIVERED, UNDELIVERED, EXPIRED, PENDING})
        _require(len(code) <= 64 and "\0" not in code)

        def decide() -> Reply:
            brand, payment = self._payment_of(brand_id, payment_no)
            before = brand.receipts.get((payment_no, message_id))
            refund = payment.refund_of(message_id)
            refunded = 0
            # Only the first final receipt refunds, so one that comes twice does not after a change of the setting.
            is_first = before is None or before.state == PENDING
            if state in {UNDELIVERED, EXPIRED} and is_first and brand.refund_undelivered and refund is None:
                self._require_refundable(payment, segments)
                self._refund(brand, payment, message_id, segments, NOT_DELIVERED)
                refunded = segments
            if before is None or (is_first and state != PENDING) or (state == DELIVERED != before.state):
                loss = refund.segments if state == DELIVERED and refund is not None else 0
                brand.receipts[payment_no, message_id] = Receipt(state, segments, loss)
            return {"refunded": refunded}

        return self._once("SmsReceiptStatusCallBack", request, decide)

    def _require_refundable(self, payment: Payment, segments: int) -> None:
        refundable = payment.segments - payment.refunded
        if segments > refundable:
            raise Refused("REFUND_EXCEEDS_PAYMENT", requested=segments, refundable=refundable)

    def _refund(self, brand: Brand, payment: Payment, message_id: str, segments: int, cause: int) -> None:
        refund = Refund(message_id, segments, [], 0, cause, self.now)
        parts = self._parts_to_refund(payment, segments)
        moved = sum(taken for package_id, taken in parts if self._is_moved(brand, brand.package(package_id)))
        brand.note(self.now, REFUND, payment.payment_no, parts, moved, message_id=message_id)
        missing = segments
        for line in reversed(payment.lines):
            taken = min(missing, line.segments - line.refunded)
            if taken:
                line.refunded += taken
                missing -= taken
                target = self._refund_to(brand, brand.package(line.package_id), taken, payment.payment_no)
                if target is None:
                    refund.expired += taken
                else:
                    refund.lines.append((target.package_id, taken))
        assert missing == 0
        payment.refunds.append(refund)
        receipt = brand.receipts.get((payment.payment_no, message_id))
        if receipt is not None and receipt.state == DELIVERED:
            receipt.house_loss = segments
        payment.status = REFUNDED if payment.refunded == payment.segments else PARTLY_REFUNDED
        brand.mark(self.now)

    def _refund_to(self, brand: Brand, package: Package, segments: int, payment_no: str) -> Package | None:
        """Bring segments back to the package that paid; the package that they are in now, None: expired at once."""
        if not package.is_over(self.now):
            package.remaining += segments
            package.refunded += segments
            brand.record("refund", package, segments)
            return package
        own, end = self._refund_package(brand, package)
        if self._is_moved(brand, package):
            if own is None:
                return self._new_package(
                    brand, FROM_REFUND, payment_no, segments, end, package.sms_types, origin=package.package_id
                )
            own.granted += segments
            own.remaining += segments
            brand.record("grant", own, segments)
            brand.note(self.now, REFUND_PACKAGE, payment_no, [(own.package_id, segments)])
            return own
        package.refunded += segments
        package.expired += segments
        brand.record("refund", package, segments)
        brand.record("expire", package, segments)
        brand.note(self.now, EXPIRE_BACK, payment_no, [(package.package_id, segments)])
        return None

    @staticmethod
    def _parts_to_refund(payment: Payment, segments: int) -> list[tuple[int, int]]:
        """(package, segments) of the lines that a refund takes, from the back."""
        parts, missing = [], segments
        for line in reversed(payment.lines):
            taken = min(missing, line.segments - line.refunded)
            missing -= taken
            parts.append((line.package_id, taken))
        return parts

    def _refund_package(self, brand: Brand, package: Package) -> tuple[Package | None, datetime | None]:
        """The package of its own that refunds to an ended one go to, if there is one yet, and its end."""
        own = next((other for other in brand.packages if other.origin == package.package_id), None)
        return own, self.grace_end(brand, package) if own is None else own.expires_at

    def _is_moved(self, brand: Brand, package: Package) -> bool:
        """Whether refunds to a package go to one of their own now."""
        _, end = self._refund_package(brand, package)
        # What was paid out of a refund package has had its second chance.
        return package.is_over(self.now) and package.source != FROM_REFUND and end is not None and self.now < end

    def grace_end(self, brand: Brand, package: Package) -> datetime | None:
        """When refunds to an ended package cannot be spent any more; None: it never ends."""
        if package.expires_at is None:
            return None
        local = package.expires_at.astimezone(ZoneInfo(brand.time_zone))
        return (local + timedelta(days=self.terms.refund_grace_days)).astimezone(UTC)

    # The workers' calls.

    def _book_due(self, request: Request) -> Reply:
        limit = request.get("brand_limit", 0)
        _require(0 <= limit <= 10_000)
        due = [brand for brand in self.brands.values() if brand.packages_to_book or brand.freezes_to_book]
        due = due[: limit or 1_000]
        reply = {
            "brands": len(due),
            "packages_expired": sum(len(brand.packages_to_book) for brand in due),
            "freezes_ended": sum(len(brand.freezes_to_book) for brand in due),
            "more": len(due) == (limit or 1_000),
        }
        for brand in due:
            self._touch(brand)
        return reply

    def _clean_up(self, request: Request) -> Reply:
        limit = request.get("limit", 0)
        _require(0 <= limit <= 100_000)
        unpaid = [
            order
            for brand in self.brands.values()
            for order in brand.orders.values()
            if order.package is None and not order.is_cancelled and self.now >= order.pay_before
        ][: limit or 10_000]
        for order in unpaid:
            # Nobody but this count can tell: when the money comes after all, the package is credited.
            order.is_cancelled = True
        old = [key for key, kept in self._keys.items() if self.now >= kept.kept_at + self.terms.keys_kept]
        old = old[: limit or 10_000]
        for key in old:
            del self._keys[key]
        return {"orders_cancelled": len(unpaid), "keys_deleted": len(old)}

    # Reading.

    def _get_balance(self, request: Request) -> Reply:
        brand = self._brand(_brand_id(request))
        at = min(request.get("as_of") or self.now, self.now)
        point = brand.balance_at(at)
        return {
            "brand_id": brand.brand_id,
            "total": point.total,
            "frozen": point.frozen,
            "available": point.available[0],
            # The service may leave them out for a moment before the brand's last record.
            "available_by_type": [{"sms_type": each, "available": point.available[each]} for each in TYPES],
            "as_of": at,
        }

    def _get_balance_history(self, request: Request) -> Reply:
        brand_id, start, step = _brand_id(request), request.get("from"), request.get("step") or timedelta()
        _require(start is not None and step >= timedelta(seconds=1))
        assert isinstance(start, datetime)
        end = request.get("to")
        _require(end is None or (end - start) / step <= POINTS_MAX)
        brand = self._brand(brand_id)
        end = min(end or self.now, self.now)
        _require((end - start) / step <= POINTS_MAX)
        points, at = [], start
        while at < end:
            point = brand.balance_at(at)
            points.append({"at": at, "total": point.total, "frozen": point.frozen})
            at += step
        return {"points": points}

    def _list_packages(self, request: Request) -> Reply:
        """The first page, as if it took all."""
        brand = self._brand(_brand_id(request))
        if request.get("include_spent"):
            packages = brand.packages
        else:
            packages = [package for package in brand.in_burn_down_order() if package.remaining]
        return {"packages": [_package_reply(package) for package in packages]}

    def _get_freeze(self, request: Request) -> Reply:
        order_no = request.get("order_no", "")
        for brand in self.brands.values():
            if order_no in brand.freezes:
                return {"freeze": _freeze_reply(brand, brand.freezes[order_no])}
        raise Refused("FREEZE_NOT_FOUND")

    def _list_freezes(self, request: Request) -> Reply:
        """The first page, as if it took all; newest first."""
        brand = self._brand(_brand_id(request))
        freezes = [freeze for freeze in brand.freezes.values() if freeze.open or not request.get("open_only")]
        return {"freezes": [_freeze_reply(brand, freeze) for freeze in reversed(freezes)]}

    def _get_payment(self, request: Request) -> Reply:
        payment_no = request.get("payment_no", "")
        for brand in self.brands.values():
            if payment_no in brand.payments:
                payment = brand.payments[payment_no]
                refunds = [_refund_reply(refund) for refund in payment.refunds]
                return {"payment": _payment_reply(brand, payment), "refunds": refunds}
        raise Refused("PAYMENT_NOT_FOUND")

    def _list_payments(self, request: Request) -> Reply:
        """The first page, as if it took all; newest first."""
        order_no = _identifier(request, "order_no") if request.get("order_no") else ""
        brand = self._brand(_brand_id(request))
        payments = [payment for payment in brand.payments.values() if order_no in {"", payment.order_no}]
        return {"payments": [_payment_reply(brand, payment) for payment in reversed(payments)]}

    def _get_statement(self, request: Request) -> Reply:
        """All of a statement, as if its first page took all."""
        brand_id, month = _brand_id(request), request.get("month", "")
        start, end = request.get("from"), request.get("to")
        if month:
            _require(start is None and end is None)
        else:
            _require(start is not None and (end is None or timedelta() < end - start <= PERIOD_MAX))
        brand = self._brand(brand_id)
        if month:
            start, end = _month(month, brand.time_zone)
        assert start is not None
        _require(start < self.now and (end is not None or self.now - start <= PERIOD_MAX))
        border = min(end or self.now, self.now)
        opening, closing = self._balance_before(brand, start), self._balance_before(brand, border)
        lines, total, frozen = [], opening["total"], opening["frozen"]
        for line in brand.journal:
            if start <= line["at"] < border:
                total, frozen = total + line["total_change"], frozen + line["frozen_change"]
                lines.append({**line, "total": total, "frozen": frozen})
        statement = {
            "brand_id": brand_id,
            "time_zone": brand.time_zone,
            "from": start,
            "to": border,
            "closed": end is None or end <= self.now,
            "opening": opening,
            "closing": closing,
            **{name: sum(line["segments"] for line in lines if line["kind"] in kinds) for name, kinds in SUMS.items()},
            "records": len(lines),
        }
        return {"statement": statement, "lines": [] if request.get("summary_only") else lines}

    def _balance_before(self, brand: Brand, border: datetime) -> Reply:
        point = next((point for point in reversed(brand.points) if point.at < border), Point(border))
        return {"total": point.total, "frozen": point.frozen, "available": point.total - point.frozen}

    # What the operations share.

    def _batch(self, method: str, request: Request) -> Reply:
        items = request.get("items", [])
        _require(len(items) <= BATCH_MAX)
        results: list[Reply] = []
        for item in items:
            outcome = self.outcome(method, **item)
            results.append({"refusal": outcome} if isinstance(outcome, Refused) else {"ok": outcome})
        return {"results": results}

    def _once(self, operation: str, request: Request, decide: Callable[[], Reply]) -> Reply:
        """The first reply again for the same key and content; refusals are not kept."""
        brand_id, request_id = request["brand_id"], request["request_id"]
        self._touch(self._brand(brand_id))
        is_payment = operation == "SmsSendPay"
        kept = (
            self._payment_keys.get((brand_id, request_id))
            if is_payment
            else self._keys.get((brand_id, operation, request_id))
        )
        if kept is not None:
            if kept.content != request:
                raise Refused("IDEMPOTENCY_CONFLICT", request_id=request_id)
            return kept.reply
        kept = _Kept(request, decide(), self.now)
        if is_payment:
            self._payment_keys[brand_id, request_id] = kept
        else:
            self._keys[brand_id, operation, request_id] = kept
        return kept.reply

    def _touch(self, brand: Brand) -> Brand:
        """An operation on a brand: what had ended before is written down with it."""
        brand.packages_to_book.clear()
        brand.freezes_to_book.clear()
        return brand

    def _let_end(self, brand: Brand, moment: datetime) -> None:
        while True:
            ends: list[tuple[datetime, int, Any]] = [
                (package.expires_at, 0, package)
                for package in brand.packages
                if package.expires_at is not None and package.expires_at <= moment and package.remaining > package.held
            ]
            ends += [
                (freeze.expires_at, 1, freeze)
                for freeze in brand.freezes.values()
                if freeze.expires_at <= moment and freeze.open
            ]
            if not ends:
                return
            at, _, ended = min(ends, key=lambda end: end[:2])
            if isinstance(ended, Package):
                self._expire(brand, ended)
                brand.packages_to_book.add(ended.package_id)
            else:
                self._time_out(brand, ended)
                brand.freezes_to_book.add(ended.order_no)
            brand.mark(at)

    def _expire(self, brand: Brand, package: Package) -> None:
        lost = package.remaining - package.held
        package.remaining -= lost
        package.expired += lost
        brand.record("expire", package, lost)
        assert package.expires_at is not None
        brand.note(package.expires_at, EXPIRE, "", [(package.package_id, lost)])

    def _time_out(self, brand: Brand, freeze: Freeze) -> None:
        for line in freeze.lines:
            given_back = line.open
            line.timed_out += given_back
            self._let_go(
                brand, brand.package(line.package_id), given_back, "time out", freeze.expires_at, freeze.order_no
            )

    def _let_go(self, brand: Brand, package: Package, segments: int, kind: str, at: datetime, order_no: str) -> None:
        """Give held segments back to their package; to one that has ended they are lost."""
        package.held -= segments
        brand.record(kind, package, segments)
        brand.note(at, RELEASE if kind == "release" else TIME_OUT, order_no, [(package.package_id, segments)])
        if package.is_over(at):
            package.remaining -= segments
            package.expired += segments
            brand.record("expire", package, segments)
            brand.note(at, EXPIRE_BACK, order_no, [(package.package_id, segments)])

    def _new_package(
        self,
        brand: Brand,
        source: int,
        source_no: str,
        segments: int,
        end: datetime | None,
        sms_types: Iterable[int],
        origin: int | None = None,
    ) -> Package:
        number = len(brand.packages) + 1
        package = Package(number, source, source_no, list(sms_types), end, self.now, origin)
        package.granted = package.remaining = segments
        brand.packages.append(package)
        brand.record("grant", package, segments)
        kind = {FROM_ORDER: PURCHASE, FROM_GRANT: GRANT, FROM_REFUND: REFUND_PACKAGE}[source]
        brand.note(self.now, kind, source_no, [(number, segments)])
        brand.mark(self.now)
        return package

    def _validity_end(self, brand: Brand, offer: Reply) -> datetime | None:
        """So many calendar days or months from now on the brand's own clock and calendar."""
        local = self.now.astimezone(ZoneInfo(brand.time_zone))
        if offer["validity_days"] is not None:
            return (local + timedelta(days=offer["validity_days"])).astimezone(UTC)
        if offer["validity_months"] is not None:
            years, month = divmod(local.month - 1 + offer["validity_months"], 12)
            year = local.year + years
            day = min(local.day, calendar.monthrange(year, month + 1)[1])
            return local.replace(year=year, month=month + 1, day=day).astimezone(UTC)
        return None

    def _too_long(self) -> Refused:
        seconds = int(self.terms.time_to_live_max.total_seconds())
        return Refused("TIME_TO_LIVE_TOO_LONG", seconds_max=seconds)

    def _number(self, kind: str, brand_id: int) -> str:
        if self._numbers is not None:
            return self._numbers(kind, brand_id)
        self._count += 1
        return f"{kind}-{self._count}"

    def _brand(self, brand_id: int) -> Brand:
        if brand_id not in self.brands:
            raise Refused("BRAND_NOT_FOUND")
        return self.brands[brand_id]

    def _freeze_of(self, brand_id: int, order_no: str) -> tuple[Brand, Freeze]:
        brand = self._brand(brand_id)
        if order_no not in brand.freezes:
            raise Refused("FREEZE_NOT_FOUND")
        return brand, brand.freezes[order_no]

    def _payment_of(self, brand_id: int, payment_no: str) -> tuple[Brand, Payment]:
        brand = self._brand(brand_id)
        if payment_no not in brand.payments:
            raise Refused("PAYMENT_NOT_FOUND")
        return brand, brand.payments[payment_no]

    # What must hold at any time.

    def check(self) -> None:
        """Assert the invariants of docs/ledger.md, the figures recomputed from the records. Raises AssertionError."""
        for brand in self.brands.values():
            self._check_packages(brand)
            self._check_freezes(brand)
            self._check_payments(brand)
            total = sum(package.remaining for package in brand.packages)
            frozen = sum(package.held for package in brand.packages)
            now = brand.balance_at(self.now)
            assert (now.total, now.frozen) == (total, frozen), brand
            assert now.total - now.frozen == now.available[0] == brand.available(self.now), brand
            for sms_type in TYPES:
                assert now.available[sms_type] == brand.available(self.now, sms_type), brand
            assert frozen == sum(freeze.open for freeze in brand.freezes.values()), brand

    def _check_packages(self, brand: Brand) -> None:
        replayed = {package.package_id: dict.fromkeys(_FIGURES, 0) for package in brand.packages}
        for kind, package_id, segments in brand.records:
            for figure, sign in _EFFECTS[kind].items():
                replayed[package_id][figure] += sign * segments
        for package in brand.packages:
            assert replayed[package.package_id] == {name: getattr(package, name) for name in _FIGURES}, package
            assert 0 <= package.held <= package.remaining, package
            assert package.granted == package.remaining + package.paid - package.refunded + package.expired, package
            assert 0 <= package.refunded <= package.paid, package
            if package.is_over(self.now):
                assert package.remaining == package.held, package

    def _check_freezes(self, brand: Brand) -> None:
        paid: dict[tuple[str, int], int] = {}
        for payment in brand.payments.values():
            for line in payment.lines:
                key = (payment.order_no, line.package_id)
                paid[key] = paid.get(key, 0) + line.segments
        held = dict.fromkeys(range(1, len(brand.packages) + 1), 0)
        for freeze in brand.freezes.values():
            for freeze_line in freeze.lines:
                held[freeze_line.package_id] += freeze_line.open
                assert freeze_line.open >= 0, freeze
                assert freeze_line.paid == paid.get((freeze.order_no, freeze_line.package_id), 0), freeze
                end = brand.package(freeze_line.package_id).expires_at
                assert end is None or freeze.created_at < end, freeze
            assert freeze.open == 0 or self.now < freeze.expires_at, freeze
            assert freeze.created_at < freeze.expires_at <= freeze.created_at + self.terms.time_to_live_max, freeze
        assert held == {package.package_id: package.held for package in brand.packages}, brand

    def _check_payments(self, brand: Brand) -> None:
        for payment in brand.payments.values():
            assert payment.refunded == sum(refund.segments for refund in payment.refunds) <= payment.segments, payment
            assert len({refund.message_id for refund in payment.refunds}) == len(payment.refunds), payment
            for refund in payment.refunds:
                assert refund.segments == refund.expired + sum(segments for _, segments in refund.lines), payment
                for package_id, _ in refund.lines:
                    end = brand.package(package_id).expires_at
                    assert end is None or refund.created_at < end, payment
            # From the back: a line has something left only where those after it have nothing refunded.
            for earlier, later in itertools.pairwise(payment.lines):
                assert earlier.refunded == 0 or later.refunded == later.segments, payment


_FIGURES = ("granted", "remaining", "held", "paid", "refunded", "expired")
# What each kind of record does to its package's figures.
_EFFECTS = {
    "grant": {"granted": 1, "remaining": 1},
    "claw back": {"granted": -1, "remaining": -1},
    "freeze": {"held": 1},
    "release": {"held": -1},
    "time out": {"held": -1},
    "pay": {"held": -1, "remaining": -1, "paid": 1},
    "refund": {"remaining": 1, "refunded": 1},
    "expire": {"remaining": -1, "expired": 1},
}

_METHODS: dict[str, Callable[[Oracle, Request], Reply]] = {
    "PutBrand": Oracle._put_brand,
    "GetBrand": Oracle._get_brand,
    "PutPackageOffer": Oracle._put_offer,
    "CreatePackageOrder": Oracle._create_order,
    "PackagePaidCallBack": Oracle._order_paid,
    "AdjustPackage": Oracle._adjust,
    "SmsSendPrePay": Oracle._freeze,
    "SmsSendPay": Oracle._pay,
    "SmsReleaseFreezeNum": Oracle._request_release,
    "ExtendFreeze": Oracle._extend,
    "SmsSendStatusCallBack": Oracle._send_status,
    "SmsReceiptStatusCallBack": Oracle._record_receipt,
    "ApplyReleases": Oracle._apply_releases,
    "BookDue": Oracle._book_due,
    "CleanUp": Oracle._clean_up,
    "GetBalance": Oracle._get_balance,
    "GetBalanceHistory": Oracle._get_balance_history,
    "ListPackages": Oracle._list_packages,
    "GetFreeze": Oracle._get_freeze,
    "ListFreezes": Oracle._list_freezes,
    "GetPayment": Oracle._get_payment,
    "ListPayments": Oracle._list_payments,
    "GetStatement": Oracle._get_statement,
}


# Replies.


def _brand_reply(brand: Brand) -> Reply:
    return {
        "brand_id": brand.brand_id,
        "name": brand.name,
        "status": brand.status,
        "time_zone": brand.time_zone,
        "refund_undelivered": brand.refund_undelivered,
        "created_at": brand.created_at,
    }


def _package_reply(package: Package) -> Reply:
    return {
        "package_id": package.package_id,
        "source": package.source,
        "source_no": package.source_no,
        **{name: getattr(package, name) for name in _FIGURES},
        "sms_types": list(package.sms_types),
        "expires_at": package.expires_at,
        "created_at": package.created_at,
    }


def _freeze_reply(brand: Brand, freeze: Freeze) -> Reply:
    names = ("segments", "paid", "released", "timed_out", "open")
    return {
        "order_no": freeze.order_no,
        "brand_id": brand.brand_id,
        "sms_type": freeze.sms_type,
        **{name: sum(getattr(line, name) for line in freeze.lines) for name in names},
        "lines": [
            {"package_id": line.package_id, **{name: getattr(line, name) for name in names}} for line in freeze.lines
        ],
        "created_at": freeze.created_at,
        "expires_at": freeze.expires_at,
        "request_id": freeze.request_id,
    }


def _payment_reply(brand: Brand, payment: Payment) -> Reply:
    return {
        "payment_no": payment.payment_no,
        "brand_id": brand.brand_id,
        "order_no": payment.order_no,
        "sms_type": payment.sms_type,
        "segments": payment.segments,
        "refunded": payment.refunded,
        "lines": [{"package_id": line.package_id, "segments": line.segments} for line in payment.lines],
        "status": payment.status,
        "created_at": payment.created_at,
        "request_id": payment.request_id,
    }


def _refund_reply(refund: Refund) -> Reply:
    return {
        "message_id": refund.message_id,
        "segments": refund.segments,
        "lines": [{"package_id": package_id, "segments": segments} for package_id, segments in refund.lines],
        "expired": refund.expired,
        "cause": refund.cause,
        "created_at": refund.created_at,
    }


# Rules of the fields.

# Fields that tell whether they were given, even as 0 or empty.
_OPTIONAL = {"name", "time_zone", "refund_undelivered", "validity_days", "validity_months"}


def _plain(fields: Request) -> Request:
    """The fields without those that hold their default, which the wire does not tell from fields not given."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return _plain(value)
        return [plain(part) for part in value] if isinstance(value, list | tuple) else value

    return {
        name: plain(value)
        for name, value in fields.items()
        if value is not None and (value not in (0, "", [], ()) or name in _OPTIONAL)
    }


def _month(text: str, time_zone: str) -> tuple[datetime, datetime]:
    """A month of a time zone."""
    _require(re.fullmatch(r"[0-9]{4}-[0-9]{2}", text) is not None)
    year, month = int(text[:4]), int(text[5:])
    _require(1 <= month <= 12 and 1 < year < 9_999)
    zone = ZoneInfo(time_zone)
    start = datetime(year, month, 1, tzinfo=zone)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=zone)
    return start.astimezone(UTC), end.astimezone(UTC)


def _require(rule: bool) -> None:
    if not rule:
        raise Refused("BAD_REQUEST")


def _brand_id(request: Request) -> int:
    brand_id: int = request.get("brand_id", 0)
    _require(brand_id >= 1)
    return brand_id


def _identifier(request: Request, name: str) -> str:
    value: str = request.get(name, "")
    _require(1 <= len(value) <= 64 and value.isprintable())
    return value


def _is_text(value: str, length_max: int) -> bool:
    return 1 <= len(value.strip()) <= length_max and "\0" not in value


def _text(request: Request, name: str, length_max: int) -> str:
    value: str = request.get(name, "")
    _require(_is_text(value, length_max))
    return value.strip()


def _segments(request: Request) -> int:
    segments: int = request.get("segments", 0)
    _require(1 <= segments <= SEGMENTS_MAX)
    return segments


def _duration(request: Request) -> timedelta:
    value = request.get("time_to_live") or timedelta()
    assert isinstance(value, timedelta)
    _require(timedelta() < value)
    return value


def _money(request: Request, name: str) -> Decimal:
    value = request.get(name, "")
    _require(re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,4})?", value) is not None)
    return Decimal(value)


def _currency(request: Request) -> str:
    value: str = request.get("currency", "")
    _require(re.fullmatch(r"[A-Z]{3}", value) is not None)
    return value


def _decimal_text(value: Decimal) -> str:
    """At least two places, no zeros beyond."""
    places = max(2, -int(value.normalize().as_tuple().exponent))
    return f"{value:.{places}f}"
