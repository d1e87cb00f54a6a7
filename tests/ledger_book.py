"""A ledger in memory for tests of its rules: a clock that the test moves, and every promise checked after each step.

Each transaction loads copies into a new `Book` and writes back what the book says has changed, column by column, as the
real store does. So a rule that forgets to note a change, or changes what the store does not write, fails its test.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import grpc
import pytest

from costcenter.book import Book, Terms
from costcenter.lines import overlap
from costcenter.model import (
    Adjustment,
    Brand,
    Changes,
    Entry,
    EntryKind,
    Freeze,
    Package,
    PackageOffer,
    PackageOrder,
    PackageSource,
    Payment,
    PaymentStatus,
    Receipt,
    ReceiptState,
    Refund,
    ReleaseRequest,
)
from costcenter.operations import (
    AdjustReply,
    AppliedReply,
    ApplyRelease,
    BookDue,
    BrandReply,
    ClawBack,
    CreateOrder,
    DueReply,
    Extend,
    ExtendReply,
    FreezeReply,
    FreezeSegments,
    Grant,
    Needs,
    Operation,
    OrderPaid,
    OrderReply,
    PaidReply,
    Pay,
    PayReply,
    PutBrand,
    RecordReceipt,
    RefundReply,
    ReleaseReply,
    Reply,
    RequestRelease,
    SendStatus,
)
from infra.errors import Refusal
from infra.identifiers import IdentifierSource

BRAND = 7
VERIFICATION, NOTIFICATION, MARKETING = 1, 2, 3
START = datetime(2024, 3, 1, 4, 0, tzinfo=UTC)  # noon in Shanghai
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TICK = timedelta(microseconds=1)
RECEIPTS = {
    "delivered": ReceiptState.DELIVERED,
    "undelivered": ReceiptState.UNDELIVERED,
    "expired": ReceiptState.EXPIRED,
    "pending": ReceiptState.PENDING,
}

K = TypeVar("K")
R = TypeVar("R")
V = TypeVar("V")


class CountedIdentifiers(IdentifierSource):
    """Numbers that two runs of the same operations share."""

    def __init__(self) -> None:
        super().__init__()
        self._count = itertools.count(1)

    def new(self, brand_id: int, at_ms: int) -> str:
        return f"{at_ms:013d}-{brand_id}-{next(self._count):05d}"


@dataclass
class Tables:
    """What is stored."""

    brands: dict[int, Brand] = field(default_factory=dict)
    packages: dict[tuple[int, int], Package] = field(default_factory=dict)
    freezes: dict[tuple[int, str], Freeze] = field(default_factory=dict)
    payments: dict[tuple[int, str], Payment] = field(default_factory=dict)
    refunds: dict[tuple[int, str, str], Refund] = field(default_factory=dict)
    receipts: dict[tuple[int, str, str], Receipt] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    points: dict[tuple[int, datetime], tuple[int, int]] = field(default_factory=dict)
    orders: dict[tuple[int, str], PackageOrder] = field(default_factory=dict)
    offers: dict[str, PackageOffer] = field(default_factory=dict)
    releases: dict[tuple[int, str], ReleaseRequest] = field(default_factory=dict)
    adjustments: list[Adjustment] = field(default_factory=list)

    def write(self, changes: Changes) -> None:
        """Write what changed: new rows whole, old ones in the columns that the store updates."""
        for brand_id, brand in changes.brands.items():
            stored = self.brands.get(brand_id)
            put = brand_id in changes.put_brands
            assert (stored is None) == (brand_id in changes.new_brands)
            assert stored is not None or put
            balance = ("total", "frozen", "last_at", "next_due_at", "next_package_id", "next_record_no")
            settings = ("name", "status", "time_zone", "refund_undelivered") if put else ()
            _store(self.brands, brand_id, brand, balance + settings)
        counts = ("granted", "remaining", "held", "paid", "refunded", "expired")
        for package_key, package in changes.packages.items():
            assert (package_key not in self.packages) == (package_key in changes.new_packages)
            _store(self.packages, package_key, package, counts)
        for freeze in changes.new_freezes:
            assert (freeze.brand_id, freeze.order_no) not in self.freezes
            self.freezes[freeze.brand_id, freeze.order_no] = copy.copy(freeze)
        for order_no, freeze in changes.freezes.items():
            assert (freeze.brand_id, order_no) in self.freezes
            _store(self.freezes, (freeze.brand_id, order_no), freeze, ("paid", "released", "timed_out", "expires_at"))
        for payment in changes.new_payments:
            assert (payment.brand_id, payment.payment_no) not in self.payments
            self.payments[payment.brand_id, payment.payment_no] = copy.copy(payment)
        for payment_no, payment in changes.payments.items():
            assert (payment.brand_id, payment_no) in self.payments
            _store(self.payments, (payment.brand_id, payment_no), payment, ("refunded", "status"))
        for refund in changes.refunds:
            refund_key = (refund.brand_id, refund.payment_no, refund.message_id)
            assert refund_key not in self.refunds, "a message is refunded once"
            self.refunds[refund_key] = copy.copy(refund)
        for receipt in changes.receipts.values():
            self.receipts[receipt.brand_id, receipt.payment_no, receipt.message_id] = copy.copy(receipt)
        for order in changes.orders.values():
            self.orders[order.brand_id, order.package_order_no] = copy.copy(order)
        for release in changes.releases.values():
            self.releases[release.brand_id, release.release_no] = copy.copy(release)
        self.entries += [copy.copy(entry) for entry in changes.entries]
        self.points.update(changes.points)
        self.adjustments += [copy.copy(adjustment) for adjustment in changes.adjustments]


def _store(table: dict[Any, Any], key: Any, row: Any, columns: Sequence[str]) -> None:
    """Store a row: whole when it is new, else the columns given."""
    if key not in table:
        table[key] = copy.copy(row)
    for column in columns:
        setattr(table[key], column, getattr(row, column))


def _chosen(table: dict[K, V], keys: Iterable[K]) -> list[V]:
    """Copies of the rows that there are."""
    return [copy.copy(table[key]) for key in sorted(set(keys) & set(table))]  # type: ignore[type-var]


class Ledger:
    """The ledger of a test. `sweeps`: book what is due before every step, as a zealous sweeper would."""

    def __init__(
        self,
        *,
        terms: Terms | None = None,
        now: datetime = START,
        sweeps: bool = False,
        brand: bool = True,
        deep: bool = True,
        **settings: Any,
    ) -> None:
        self.now = now
        self.terms = terms or Terms()
        self.tables = Tables()
        self.sweeps = sweeps
        self.deep = deep
        self.identifiers = CountedIdentifiers()
        self._requests = itertools.count(1)
        if brand:
            self.put_brand(name="Brand", **settings)

    # Transactions.

    def group(self, *operations: Operation) -> list[Reply | Refusal]:
        """Apply operations in one transaction; replies and refusals in their order."""
        if self.sweeps:
            known = sorted(self.tables.brands)
            self._transact([BookDue(brand_id, "", b"") for brand_id in known])
        return self._transact(list(operations))

    def apply(self, operation: Operation, reply: type[R]) -> R:
        """Apply one operation and return its reply, or raise its refusal."""
        (outcome,) = self.group(operation)
        if isinstance(outcome, Refusal):
            raise outcome
        assert isinstance(outcome, reply)
        return outcome

    def _transact(self, operations: list[Operation]) -> list[Reply | Refusal]:
        book = self.load(operations)
        self._book_due(book)
        outcomes = [self._decide(book, operation) for operation in operations]
        book.check()
        self.tables.write(book.changes)
        self.check()
        return outcomes

    def _decide(self, book: Book, operation: Operation) -> Reply | Refusal:
        before = _state(book) if self.deep else None
        try:
            return book.apply(operation)
        except Refusal as refusal:
            if self.deep:
                assert _state(book) == before, "a rejected operation leaves the state as it was"
            return refusal

    def load(self, operations: Iterable[Operation]) -> Book:
        """A book with copies of what the operations need, nothing more."""
        needs = Needs()
        for operation in operations:
            operation.ask(needs)
        tables = self.tables
        book = Book(self.now, self.terms, self.identifiers)
        for brand_id in needs.brands & set(tables.brands):
            book.add_brand(copy.copy(tables.brands[brand_id]))
        orders = _chosen(tables.orders, needs.orders)
        payments = _chosen(tables.payments, needs.payments)
        releases = _chosen(tables.releases, needs.releases)
        wanted = set(needs.packages)
        wanted |= {(order.brand_id, order.package_id) for order in orders if order.package_id is not None}
        origins = {(payment.brand_id, package_id) for payment in payments for package_id, _ in payment.lines}
        book.add_packages(
            copy.copy(package)
            for key, package in tables.packages.items()
            if package.brand_id in needs.brands
            and (
                package.remaining or key in wanted | origins or (package.brand_id, package.origin_package_id) in origins
            )
        )
        book.sort_queues()
        freezes = needs.freezes | {(release.brand_id, release.order_no) for release in releases}
        book.add_freezes(_chosen(tables.freezes, freezes))
        book.add_payments(payments)
        book.add_refunds(_chosen(tables.refunds, needs.messages))
        book.add_receipts(_chosen(tables.receipts, needs.messages))
        book.add_orders(orders)
        book.add_offers(_chosen(tables.offers, needs.offers))
        book.add_releases(releases)
        return book

    def _book_due(self, book: Book) -> None:
        for brand_id in book.brands_with_due():
            brand = book.brand(brand_id)
            assert brand is not None
            moment = book.time_of(brand)
            open_freezes = [f for f in self.tables.freezes.values() if f.brand_id == brand_id and f.open]
            book.add_freezes(copy.copy(f) for f in open_freezes if f.expires_at <= moment)
            later = [f.expires_at for f in open_freezes if f.expires_at > moment]
            book.book_due(brand_id, moment, min(later, default=None))

    # Operations, each with defaults.

    def request(self) -> str:
        return f"request-{next(self._requests)}"

    def advance(self, step: timedelta) -> None:
        self.now += step

    def put_brand(self, brand_id: int = BRAND, **fields: Any) -> BrandReply:
        given = {"name": None, "status": None, "time_zone": None, "refund_undelivered": None, **fields}
        return self.apply(PutBrand(brand_id, "", b"", **given), BrandReply)

    def grant(
        self,
        segments: int,
        expires: datetime | timedelta | None = None,
        sms_types: tuple[int, ...] = (),
        brand_id: int = BRAND,
    ) -> int:
        """Grant a package and return its number. `expires`: a moment, or a time from now."""
        at = self.now + expires if isinstance(expires, timedelta) else expires
        operation = Grant(brand_id, self.request(), b"", "author", "reason", segments, at, sms_types)
        return self.apply(operation, AdjustReply).package_id

    def claw_back(self, package_id: int, segments: int | None) -> AdjustReply:
        """Claw back segments; None: return the package."""
        operation = ClawBack(BRAND, self.request(), b"", "author", "reason", package_id, segments)
        return self.apply(operation, AdjustReply)

    def freeze(
        self, segments: int, sms_type: int = MARKETING, ttl: timedelta | None = None, brand_id: int = BRAND
    ) -> str:
        """Freeze and return the order's number."""
        operation = FreezeSegments(brand_id, self.request(), b"", sms_type, segments, ttl)
        return self.apply(operation, FreezeReply).order_no

    def pay(self, order_no: str, segments: int, brand_id: int = BRAND) -> str:
        """Pay and return the payment's number."""
        return self.apply(Pay(brand_id, self.request(), b"", order_no, segments), PayReply).payment_no

    def charge(self, segments: int, sms_type: int = MARKETING) -> str:
        """Freeze and pay the whole; the payment's number."""
        return self.pay(self.freeze(segments, sms_type), segments)

    def request_release(self, order_no: str, segments: int = 0) -> str:
        operation = RequestRelease(BRAND, self.request(), b"", order_no, segments)
        return self.apply(operation, ReleaseReply).release_no

    def apply_release(self, release_no: str) -> int:
        return self.apply(ApplyRelease(BRAND, "", b"", release_no), AppliedReply).segments

    def release(self, order_no: str, segments: int = 0) -> int:
        """Ask for a release and apply it; how many segments went back."""
        return self.apply_release(self.request_release(order_no, segments))

    def extend(self, order_no: str, ttl: timedelta) -> datetime:
        return self.apply(Extend(BRAND, self.request(), b"", order_no, ttl), ExtendReply).expires_at

    def status(self, payment_no: str, *failed: tuple[str, int]) -> int:
        """Send status; segments refunded."""
        return self.apply(SendStatus(BRAND, self.request(), b"", payment_no, list(failed)), RefundReply).refunded

    def receipt(self, payment_no: str, message_id: str, segments: int, state: str, code: str = "CODE") -> int:
        """Receipt; segments refunded."""
        operation = RecordReceipt(
            BRAND, self.request(), b"", payment_no, message_id, segments, RECEIPTS[state], code, None
        )
        return self.apply(operation, RefundReply).refunded

    def offer(self, **fields: Any) -> PackageOffer:
        """Store an offer, valid but for `fields`."""
        given: dict[str, Any] = {
            "offer_id": "offer",
            "name": "Offer",
            "segments": 1_000,
            "price": Decimal("45.00"),
            "currency": "CNY",
            "validity_days": None,
            "validity_months": None,
            "sms_types": (),
            "active": True,
        }
        offer = PackageOffer(**{**given, **fields})
        self.tables.offers[offer.offer_id] = offer
        return offer

    def order(self, offer_id: str = "offer", price: str | None = None, currency: str = "") -> OrderReply:
        amount = None if price is None else Decimal(price)
        return self.apply(CreateOrder(BRAND, self.request(), b"", offer_id, amount, currency), OrderReply)

    def order_paid(
        self,
        order_no: str,
        amount: str = "45.00",
        currency: str = "CNY",
        reference: str = "bank-1",
        brand_id: int = BRAND,
    ) -> PaidReply:
        return self.apply(OrderPaid(brand_id, "", b"", order_no, reference, Decimal(amount), currency), PaidReply)

    def book_due(self, brand_id: int = BRAND) -> DueReply:
        return self.apply(BookDue(brand_id, "", b""), DueReply)

    # What tests look at.

    def refused(self, call: Any, reason: str, code: grpc.StatusCode = grpc.StatusCode.FAILED_PRECONDITION) -> Refusal:
        """Call what must be refused, and see that it changed nothing."""
        if any(b.next_due_at is not None and b.next_due_at <= self.now for b in self.tables.brands.values()):
            for brand_id in self.tables.brands:
                self.book_due(brand_id)
        before = copy.deepcopy(self.tables)
        with pytest.raises(Refusal) as caught:
            call()
        assert (caught.value.reason, caught.value.code) == (reason, code)
        assert self.tables == before, "a rejected operation leaves the state as it was"
        return caught.value

    @property
    def brand(self) -> Brand:
        return self.tables.brands[BRAND]

    def package(self, package_id: int) -> Package:
        return self.tables.packages[BRAND, package_id]

    def frozen(self, order_no: str) -> Freeze:
        return self.tables.freezes[BRAND, order_no]

    def payment(self, payment_no: str) -> Payment:
        return self.tables.payments[BRAND, payment_no]

    def refund(self, payment_no: str, message_id: str) -> Refund:
        return self.tables.refunds[BRAND, payment_no, message_id]

    def recorded_receipt(self, payment_no: str, message_id: str) -> Receipt:
        return self.tables.receipts[BRAND, payment_no, message_id]

    def refund_package(self, origin: int) -> Package | None:
        """The package that took the refunds of an expired one."""
        found = [p for p in self.tables.packages.values() if p.origin_package_id == origin]
        assert len(found) <= 1
        return found[0] if found else None

    def settled(self) -> Book:
        """A book of the brand as a reader sees it now: with what is due booked, but not written."""
        book = self.load([BookDue(BRAND, "", b"")])
        self._book_due(book)
        return book

    def available(self, sms_type: int | None = None) -> int:
        return self.settled().available(BRAND, sms_type)

    def figures(self) -> tuple[int, int, int]:
        """(total, frozen, available) as a reader sees them now."""
        book = self.settled()
        brand = book.brand(BRAND)
        assert brand is not None
        return brand.total, brand.frozen, book.available(BRAND)

    # What must always hold.

    def check(self) -> None:
        """Assert invariants 1 to 4 and 11 of all that is stored, from the records alone."""
        for brand_id in self.tables.brands:
            _check_brand(self.tables, brand_id)


def _state(book: Book) -> Any:
    """All that a book knows, to be compared."""
    skipped = {"_identifiers", "terms"}
    return copy.deepcopy({name: value for name, value in vars(book).items() if name not in skipped})


def _check_brand(tables: Tables, brand_id: int) -> None:
    brand = tables.brands[brand_id]
    packages = {key[1]: package for key, package in tables.packages.items() if key[0] == brand_id}
    freezes = [freeze for freeze in tables.freezes.values() if freeze.brand_id == brand_id]
    payments = [payment for payment in tables.payments.values() if payment.brand_id == brand_id]
    refunds = [refund for refund in tables.refunds.values() if refund.brand_id == brand_id]
    entries = [entry for entry in tables.entries if entry.brand_id == brand_id]
    _check_packages(packages, freezes, payments, refunds, entries)
    assert brand.total == sum(package.remaining for package in packages.values())
    assert brand.frozen == sum(package.held for package in packages.values()) == sum(f.open for f in freezes)
    ends = [freeze.expires_at for freeze in freezes if freeze.open]
    ends += [package.expires_at for package in packages.values() if package.expires_at and package.available]
    assert not ends or (brand.next_due_at is not None and brand.next_due_at <= min(ends)), "nothing becomes due unseen"
    _check_freezes(packages, freezes, payments, entries)
    _check_payments(payments, refunds)
    _check_history(tables, brand, freezes, payments, refunds, entries)


def _check_packages(
    packages: dict[int, Package],
    freezes: list[Freeze],
    payments: list[Payment],
    refunds: list[Refund],
    entries: list[Entry],
) -> None:
    held: Counter[int] = Counter()
    for freeze in freezes:
        for (package_id, _), segments in zip(
            freeze.lines,
            overlap(freeze.lines, freeze.paid, freeze.segments - freeze.released - freeze.timed_out),
            strict=True,
        ):
            held[package_id] += segments
    paid: Counter[int] = Counter()
    for payment in payments:
        for package_id, segments in payment.lines:
            paid[package_id] += segments
    refunded: Counter[int] = Counter()
    for refund in refunds:
        for (package_id, segments), target in zip(refund.lines, refund.targets, strict=True):
            if target is None or target == package_id:
                refunded[package_id] += segments
            else:
                assert packages[target].origin_package_id == package_id, "units never move into another package"
    by_kind: Counter[tuple[int, int]] = Counter()
    for entry in entries:
        assert entry.segments > 0
        by_kind[entry.package_id, entry.kind] += entry.segments
    for package_id, package in packages.items():
        assert package.granted == package.remaining + package.paid - package.refunded + package.expired
        assert 0 <= package.held <= package.remaining
        assert (package.held, package.paid, package.refunded) == (
            held[package_id],
            paid[package_id],
            refunded[package_id],
        )
        granted = by_kind[package_id, EntryKind.GRANT] - by_kind[package_id, EntryKind.CLAW_BACK]
        expired = by_kind[package_id, EntryKind.EXPIRE] + by_kind[package_id, EntryKind.EXPIRE_BACK]
        assert (package.granted, package.expired) == (granted, expired), "the records give the balances"
        assert (package.source == PackageSource.REFUND) == (package.origin_package_id is not None)


def _check_freezes(
    packages: dict[int, Package], freezes: list[Freeze], payments: list[Payment], entries: list[Entry]
) -> None:
    given_back: Counter[tuple[str, int]] = Counter()
    for entry in entries:
        if entry.kind in {EntryKind.RELEASE, EntryKind.TIME_OUT}:
            given_back[entry.reference, entry.kind] += entry.segments
    paid: Counter[str] = Counter()
    for payment in payments:
        paid[payment.order_no] += payment.segments
    for freeze in freezes:
        assert freeze.segments == sum(segments for _, segments in freeze.lines)
        assert freeze.segments == freeze.paid + freeze.released + freeze.timed_out + freeze.open
        assert min(freeze.paid, freeze.released, freeze.timed_out, freeze.open) >= 0
        assert freeze.paid == paid[freeze.order_no]
        assert freeze.released == given_back[freeze.order_no, EntryKind.RELEASE]
        assert freeze.timed_out == given_back[freeze.order_no, EntryKind.TIME_OUT]
        for package_id, segments in freeze.lines:
            package = packages[package_id]
            assert segments > 0
            assert package.expires_at is None or freeze.created_at < package.expires_at, "frozen past its end"
            assert not package.sms_types or freeze.sms_type in package.sms_types


def _check_payments(payments: list[Payment], refunds: list[Refund]) -> None:
    refunded: Counter[str] = Counter()
    for refund in refunds:
        assert refund.segments == sum(segments for _, segments in refund.lines)
        refunded[refund.payment_no] += refund.segments
    for payment in payments:
        assert payment.segments == sum(segments for _, segments in payment.lines)
        assert payment.refunded == refunded[payment.payment_no] <= payment.segments
        assert (payment.status == PaymentStatus.REFUNDED) == (payment.refunded == payment.segments)
        assert (payment.status == PaymentStatus.PARTLY_REFUNDED) == (0 < payment.refunded < payment.segments)


def _check_history(
    tables: Tables,
    brand: Brand,
    freezes: list[Freeze],
    payments: list[Payment],
    refunds: list[Refund],
    entries: list[Entry],
) -> None:
    """The records in their order follow time, and replayed give the balance at every moment."""
    effect = {
        EntryKind.GRANT: (1, 0),
        EntryKind.CLAW_BACK: (-1, 0),
        EntryKind.EXPIRE: (-1, 0),
        EntryKind.RELEASE: (0, -1),
        EntryKind.TIME_OUT: (0, -1),
        EntryKind.EXPIRE_BACK: (-1, 0),
    }
    records = [(f.record_no, f.created_at, 0, f.segments) for f in freezes]
    records += [(p.record_no, p.created_at, -p.segments, -p.segments) for p in payments]
    for refund in refunds:
        # What went to a refund package is that package's grant.
        back = sum(n for (package, n), to in zip(refund.lines, refund.targets, strict=True) if to in {None, package})
        records.append((refund.record_no, refund.created_at, back, 0))
    for entry in entries:
        assert entry.at <= entry.booked_at
        total, frozen = effect[EntryKind(entry.kind)]
        records.append((entry.record_no, entry.at, total * entry.segments, frozen * entry.segments))
    records.sort()
    assert [record[0] for record in records] == list(range(1, brand.next_record_no)), "no record is lost"
    assert [r[1] for r in records] == sorted(r[1] for r in records), "the order of the records is the order of time"
    replayed: dict[datetime, tuple[int, int]] = {}
    total = frozen = 0
    for _, at, more_total, more_frozen in records:
        total, frozen = total + more_total, frozen + more_frozen
        replayed[at] = (total, frozen)
    stored = {key[1]: point for key, point in tables.points.items() if key[0] == brand.brand_id}
    assert stored == replayed, "the history is what the records say"
    assert (brand.total, brand.frozen) == (total, frozen)
    assert brand.last_at == max(replayed, default=None)


def normal(reply: Reply | Refusal) -> Any:
    """A reply or refusal, to be compared with another run's."""
    return (reply.reason, reply.metadata) if isinstance(reply, Refusal) else replace(reply)
