"""The rules of the ledger: what may be frozen, which package pays, where a refund goes. No I/O.

A `Book` holds the state of the brands that a group of operations concerns and applies the operations one after
another. Each either changes the state and replies, or raises a `Refusal` and changes nothing. What it changed is in
`changes`, to be written as a whole.
"""

from __future__ import annotations

import calendar
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc

from costcenter.lines import Line, cut, cut_back
from costcenter.model import (
    Adjustment,
    Brand,
    BrandStatus,
    Changes,
    Entry,
    EntryKind,
    Freeze,
    OrderStatus,
    Package,
    PackageOffer,
    PackageOrder,
    PackageSource,
    Payment,
    PaymentStatus,
    Receipt,
    ReceiptState,
    Refund,
    RefundCause,
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
from infra.errors import Refusal, failed_precondition, idempotency_conflict, invalid, not_found
from infra.identifiers import IdentifierSource


@dataclass(frozen=True, slots=True)
class Terms:
    """The figures that the rules are set by."""

    time_to_live_default: timedelta = timedelta(hours=24)
    time_to_live_max: timedelta = timedelta(days=7)
    # How many of the brand's days after its package's end a refund can still be spent; zero: not at all.
    refund_grace_days: int = 30
    pay_within: timedelta = timedelta(minutes=15)
    time_zone_default: str = "Asia/Shanghai"


_FINAL_FAILURES = (ReceiptState.UNDELIVERED, ReceiptState.EXPIRED)


class Book:
    """The working state of one transaction.

    Parameters: `now` the database's clock, read after the transaction's locks; `terms` the settings; `due` what earlier
    transactions of the same group have booked.
    """

    def __init__(
        self,
        now: datetime,
        terms: Terms,
        identifiers: IdentifierSource,
        *,
        due: dict[int, DueReply] | None = None,
    ) -> None:
        self.now = now
        self.terms = terms
        self.changes = Changes()
        self._identifiers = identifiers
        self._brands: dict[int, Brand] = {}
        self._packages: dict[int, dict[int, Package]] = {}
        self._queues: dict[int, list[Package]] = {}
        self._freezes: dict[str, Freeze] = {}
        self._payments: dict[str, Payment] = {}
        self._refunds: dict[tuple[str, str], Refund] = {}
        self._receipts: dict[tuple[str, str], Receipt] = {}
        self._orders: dict[str, PackageOrder] = {}
        self._offers: dict[str, PackageOffer] = {}
        self._releases: dict[str, ReleaseRequest] = {}
        self._due = {} if due is None else due
        self._milliseconds = int(now.timestamp() * 1000)

    # What was read.

    def add_brand(self, brand: Brand, packages: dict[int, Package] | None = None) -> None:
        """Take a brand in, before what belongs to it; `packages` by their numbers, in burn-down order."""
        self._brands[brand.brand_id] = brand
        self._packages[brand.brand_id] = {} if packages is None else packages
        self._queues[brand.brand_id] = [] if packages is None else [*packages.values()]

    def add_packages(self, packages: Iterable[Package]) -> None:
        """Take packages in; one that is here already stays as it is here. `sort_queues` must follow."""
        for package in packages:
            known = self._packages[package.brand_id]
            if package.package_id not in known:
                known[package.package_id] = package
                self._queues[package.brand_id].append(package)

    def sort_queues(self) -> None:
        """Bring the queues into burn-down order once all packages are in."""
        for queue in self._queues.values():
            queue.sort(key=lambda package: package.burn_down_key)

    def add_freezes(self, freezes: Iterable[Freeze]) -> None:
        """Take freezes in; one that is here already stays as it is here."""
        for freeze in freezes:
            self._freezes.setdefault(freeze.order_no, freeze)

    def add_payments(self, payments: Iterable[Payment]) -> None:
        """Take payments in."""
        for payment in payments:
            self._payments[payment.payment_no] = payment

    def add_refunds(self, refunds: Iterable[Refund]) -> None:
        """Take refunds in."""
        for refund in refunds:
            self._refunds[refund.payment_no, refund.message_id] = refund

    def add_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Take receipts in."""
        for receipt in receipts:
            self._receipts[receipt.payment_no, receipt.message_id] = receipt

    def add_orders(self, orders: Iterable[PackageOrder]) -> None:
        """Take package orders in."""
        for order in orders:
            self._orders[order.package_order_no] = order

    def add_offers(self, offers: Iterable[PackageOffer]) -> None:
        """Take offers in."""
        for offer in offers:
            self._offers[offer.offer_id] = offer

    def add_releases(self, releases: Iterable[ReleaseRequest]) -> None:
        """Take release requests in."""
        for release in releases:
            self._releases[release.release_no] = release

    # What is due first.

    def brands_with_due(self) -> list[int]:
        """Brands for which something may have become due."""
        return [
            brand.brand_id
            for brand in self._brands.values()
            if brand.next_due_at is not None and brand.next_due_at <= self.time_of(brand)
        ]

    def time_of(self, brand: Brand) -> datetime:
        """The moment for a brand: the clock, but never behind the brand's last record."""
        last_at = brand.last_at
        return self.now if last_at is None or last_at <= self.now else last_at

    def ended_packages(self, brand_id: int) -> int:
        """How many of a brand's packages have ended and are not booked yet."""
        moment = self.time_of(self._brands[brand_id])
        return sum(package.available > 0 and package.is_expired(moment) for package in self._queues[brand_id])

    def book_due(self, brand_id: int, until: datetime, next_freeze_end: datetime | None) -> None:
        """Book, in the order of time, every package's end and every freeze's end up to and with `until`.

        All packages with something remaining and all open freezes that end by then are in the book. `next_freeze_end`
        is the soonest end of an open freeze that is not.
        """
        brand = self._brands[brand_id]
        packages = self._queues[brand_id]
        # What ends at one moment is booked in the order in which it began, whoever found it.
        events: list[tuple[datetime, int, int, Package | Freeze]] = [
            (package.expires_at, 0, package.package_id, package)
            for package in packages
            if package.expires_at is not None and package.expires_at <= until and package.remaining
        ]
        freezes = [freeze for freeze in self._freezes.values() if freeze.brand_id == brand_id and freeze.open]
        events += [(freeze.expires_at, 1, freeze.record_no, freeze) for freeze in freezes if freeze.expires_at <= until]
        events.sort(key=lambda event: event[:3])
        reply = self._due.setdefault(brand_id, DueReply())
        for at, _, _, due in events:
            # A moment before the last record can only be one whose segments were given back since, and those are
            # booked when they come back; the order of the records stays the order of time.
            moment = at if brand.last_at is None else max(at, brand.last_at)
            if isinstance(due, Package):
                if due.available:
                    self._expire(brand, due, due.available, moment, EntryKind.EXPIRE, "")
                    self._mark(brand, moment)
                    reply.packages_expired += 1
            else:
                self._end_freeze(brand, due, moment)
                reply.freezes_ended += 1
        ends = [freeze.expires_at for freeze in freezes if freeze.open]
        ends += [package.expires_at for package in packages if package.expires_at is not None and package.available]
        if next_freeze_end is not None:
            ends.append(next_freeze_end)
        brand.next_due_at = min(ends, default=None)
        self.changes.brands[brand_id] = brand

    def _end_freeze(self, brand: Brand, freeze: Freeze, at: datetime) -> None:
        lines = cut_back(freeze.lines, freeze.open_end, freeze.open)
        freeze.timed_out += freeze.open
        self.changes.freezes[freeze.order_no] = freeze
        self._give_back(brand, lines, at, EntryKind.TIME_OUT, freeze.order_no)
        self._mark(brand, at)

    # Operations.

    def apply(self, operation: Operation) -> Reply:
        """Apply one operation. Raises `Refusal` and changes nothing when the rules do not allow it."""
        if isinstance(operation, PutBrand):
            return self._put_brand(operation)
        brand = self._brands.get(operation.brand_id)
        if brand is None:
            raise not_found("BRAND_NOT_FOUND", f"there is no brand {operation.brand_id}")
        return _RULES[type(operation)](self, operation, brand, self.time_of(brand))

    def _freeze(self, operation: FreezeSegments, brand: Brand, now: datetime) -> FreezeReply:
        _require_active(brand)
        time_to_live = operation.time_to_live or self.terms.time_to_live_default
        if time_to_live > self.terms.time_to_live_max:
            raise _too_long(self.terms.time_to_live_max)
        lines: list[Line] = []
        missing = operation.segments
        for package in self._queues[brand.brand_id]:
            taken = min(package.remaining - package.held, missing)
            if taken and package.pays(operation.sms_type) and not package.is_expired(now):
                lines.append((package.package_id, taken))
                missing -= taken
                if not missing:
                    break
        if missing:
            raise failed_precondition(
                "INSUFFICIENT_BALANCE",
                f"{operation.segments} segments asked, {operation.segments - missing} available",
                requested=operation.segments,
                available=operation.segments - missing,
            )
        freeze = Freeze(
            brand.brand_id,
            self._number(brand),
            operation.request_id,
            operation.sms_type,
            operation.segments,
            lines,
            created_at=now,
            expires_at=now + time_to_live,
            record_no=_next_record(brand),
        )
        packages = self._packages[brand.brand_id]
        for package_id, segments in lines:
            package = packages[package_id]
            package.held += segments
            self._touch(package)
        brand.frozen += operation.segments
        self.changes.new_freezes.append(freeze)
        _becomes_due(brand, freeze.expires_at)
        self._mark(brand, now)
        return FreezeReply(freeze.order_no, freeze.segments, freeze.expires_at)

    def _pay(self, operation: Pay, brand: Brand, now: datetime) -> PayReply:
        freeze = self._freeze_of(brand, operation.order_no)
        if freeze.expires_at <= now:
            raise _freeze_expired(freeze)
        if operation.segments > freeze.open:
            raise failed_precondition(
                "FREEZE_INSUFFICIENT",
                f"{operation.segments} segments asked, {freeze.open} open in the freeze",
                requested=operation.segments,
                open=freeze.open,
            )
        lines = cut(freeze.lines, freeze.paid, operation.segments)
        payment = Payment(
            brand.brand_id,
            self._number(brand),
            freeze.order_no,
            operation.request_id,
            freeze.sms_type,
            operation.segments,
            lines,
            status=PaymentStatus.PAID,
            created_at=now,
            record_no=_next_record(brand),
        )
        packages = self._packages[brand.brand_id]
        for package_id, segments in lines:
            package = packages[package_id]
            package.held -= segments
            package.remaining -= segments
            package.paid += segments
            self._touch(package)
        freeze.paid += operation.segments
        brand.frozen -= operation.segments
        brand.total -= operation.segments
        self.changes.freezes[freeze.order_no] = freeze
        self.changes.new_payments.append(payment)
        self._mark(brand, now)
        return PayReply(payment.payment_no, payment.segments, freeze.open)

    def _request_release(self, operation: RequestRelease, brand: Brand, now: datetime) -> ReleaseReply:
        freeze = self._freeze_of(brand, operation.order_no)
        release = ReleaseRequest(
            brand_id=brand.brand_id,
            release_no=self._number(brand),
            order_no=freeze.order_no,
            segments=operation.segments,
            created_at=now,
        )
        self._releases[release.release_no] = release
        self.changes.releases[release.release_no] = release
        self.changes.new_releases.add(release.release_no)
        return ReleaseReply(release.release_no)

    def _apply_release(self, operation: ApplyRelease, brand: Brand, now: datetime) -> AppliedReply:
        release = self._releases.get(operation.release_no)
        if release is None or release.applied_at is not None:
            return AppliedReply(0)
        freeze = self._freeze_of(brand, release.order_no)
        segments = min(release.segments or freeze.open, freeze.open)
        if segments:
            lines = cut_back(freeze.lines, freeze.open_end, segments)
            freeze.released += segments
            self.changes.freezes[freeze.order_no] = freeze
            self._give_back(brand, lines, now, EntryKind.RELEASE, freeze.order_no)
            self._mark(brand, now)
        release.applied_at = now
        release.released = segments
        self.changes.releases[release.release_no] = release
        return AppliedReply(segments)

    def _extend(self, operation: Extend, brand: Brand, now: datetime) -> ExtendReply:
        freeze = self._freeze_of(brand, operation.order_no)
        if freeze.expires_at <= now:
            raise _freeze_expired(freeze)
        if not freeze.open:
            raise failed_precondition("FREEZE_SETTLED", "nothing of the freeze is open any more")
        end = now + operation.time_to_live
        if end > freeze.created_at + self.terms.time_to_live_max:
            raise _too_long(self.terms.time_to_live_max)
        freeze.expires_at = max(freeze.expires_at, end)
        self.changes.freezes[freeze.order_no] = freeze
        return ExtendReply(freeze.expires_at)

    def _send_status(self, operation: SendStatus, brand: Brand, now: datetime) -> RefundReply:
        payment = self._payment_of(brand, operation.payment_no)
        fresh = {
            message_id: segments
            for message_id, segments in operation.failed
            if (payment.payment_no, message_id) not in self._refunds
        }
        refunded = sum(fresh.values())
        _require_refundable(payment, refunded)
        for message_id, segments in fresh.items():
            self._refund(brand, payment, message_id, segments, RefundCause.SEND_FAILED, now)
            receipt = self._receipts.get((payment.payment_no, message_id))
            if receipt is not None and receipt.state == ReceiptState.DELIVERED:
                receipt.house_loss = segments
                self.changes.receipts[payment.payment_no, message_id] = receipt
        if payment.status == PaymentStatus.PAID:
            payment.status = PaymentStatus.SENT
        self.changes.payments[payment.payment_no] = payment
        return RefundReply(refunded)

    def _receipt(self, operation: RecordReceipt, brand: Brand, now: datetime) -> RefundReply:
        payment = self._payment_of(brand, operation.payment_no)
        key = (payment.payment_no, operation.message_id)
        before, refund = self._receipts.get(key), self._refunds.get(key)
        refunds = (
            operation.state in _FINAL_FAILURES
            and brand.refund_undelivered
            and refund is None
            # The first final receipt decides: what was delivered stays so, and a setting that changes later reaches
            # back to nothing.
            and (before is None or before.state == ReceiptState.PENDING)
        )
        if refunds:
            _require_refundable(payment, operation.segments)
            self._refund(brand, payment, operation.message_id, operation.segments, RefundCause.UNDELIVERED, now)
        if before is None or _supersedes(operation.state, before.state):
            receipt = Receipt(
                brand_id=brand.brand_id,
                payment_no=payment.payment_no,
                message_id=operation.message_id,
                segments=operation.segments,
                state=operation.state,
                carrier_code=operation.carrier_code,
                reported_at=operation.reported_at,
                recorded_at=now,
                house_loss=refund.segments if refund and operation.state == ReceiptState.DELIVERED else 0,
            )
            self._receipts[key] = receipt
            self.changes.receipts[key] = receipt
        return RefundReply(operation.segments if refunds else 0)

    def _create_order(self, operation: CreateOrder, brand: Brand, now: datetime) -> OrderReply:
        if brand.status == BrandStatus.CLOSED:
            raise _brand_closed(brand)
        offer = self._offers.get(operation.offer_id)
        if offer is None:
            raise not_found("OFFER_NOT_FOUND", f"there is no offer {operation.offer_id}")
        if not offer.active:
            raise failed_precondition("OFFER_INACTIVE", f"the offer {offer.offer_id} cannot be ordered")
        order = PackageOrder(
            brand_id=brand.brand_id,
            package_order_no=self._number(brand),
            offer_id=offer.offer_id,
            segments=offer.segments,
            price=offer.price if operation.price is None else operation.price,
            currency=operation.currency or offer.currency,
            validity_days=offer.validity_days,
            validity_months=offer.validity_months,
            sms_types=offer.sms_types,
            status=OrderStatus.CREATED,
            created_at=now,
            pay_before=now + self.terms.pay_within,
        )
        self._orders[order.package_order_no] = order
        self.changes.orders[order.package_order_no] = order
        self.changes.new_orders.add(order.package_order_no)
        return OrderReply(order.package_order_no, order.segments, order.price, order.currency, order.pay_before)

    def _order_paid(self, operation: OrderPaid, brand: Brand, now: datetime) -> PaidReply:
        order = self._orders.get(operation.package_order_no)
        if order is None or order.brand_id != brand.brand_id:
            raise not_found("PACKAGE_ORDER_NOT_FOUND", f"there is no order {operation.package_order_no} of this brand")
        if (order.price, order.currency) != (operation.amount, operation.currency):
            raise failed_precondition(
                "AMOUNT_MISMATCH",
                f"the order costs {order.price} {order.currency}",
                price=order.price,
                currency=order.currency,
            )
        if order.status == OrderStatus.PAID:
            if order.payment_reference != operation.payment_reference:
                raise idempotency_conflict(order.package_order_no)
            assert order.package_id is not None
            package = self._packages[brand.brand_id][order.package_id]
            return PaidReply(package.package_id, order.segments, package.expires_at)
        # A brand that was closed and an order that was cancelled meanwhile are credited all the same: the money came.
        expires_at = validity_end(now, order.validity_days, order.validity_months, brand.time_zone)
        package = self._new_package(
            brand,
            now,
            source=PackageSource.ORDER,
            source_no=order.package_order_no,
            segments=order.segments,
            sms_types=order.sms_types,
            expires_at=expires_at,
        )
        order.status = OrderStatus.PAID
        order.paid_at = now
        order.payment_reference = operation.payment_reference
        order.package_id = package.package_id
        self.changes.orders[order.package_order_no] = order
        return PaidReply(package.package_id, order.segments, package.expires_at)

    def _grant(self, operation: Grant, brand: Brand, now: datetime) -> AdjustReply:
        if brand.status == BrandStatus.CLOSED:
            raise _brand_closed(brand)
        if operation.expires_at is not None and operation.expires_at <= now:
            raise invalid(grant__expires_at="must be in the future")
        adjustment_no = self._number(brand)
        package = self._new_package(
            brand,
            now,
            source=PackageSource.GRANT,
            source_no=adjustment_no,
            segments=operation.segments,
            sms_types=operation.sms_types,
            expires_at=operation.expires_at,
        )
        return self._adjusted(operation, EntryKind.GRANT, adjustment_no, package, operation.segments, now)

    def _claw_back(self, operation: ClawBack, brand: Brand, now: datetime) -> AdjustReply:
        package = self._packages[brand.brand_id].get(operation.package_id)
        if package is None:
            raise not_found("PACKAGE_NOT_FOUND", f"there is no package {operation.package_id} of this brand")
        if package.is_expired(now):
            raise failed_precondition(
                "PACKAGE_EXPIRED", "the package's time has ended; nothing of it can be taken back"
            )
        segments = operation.segments
        if segments is None:
            if package.held or package.paid > package.refunded:
                raise failed_precondition("PACKAGE_IN_USE", "part of the package is held or was paid away")
            segments = package.remaining
        if segments > package.available or not segments:
            raise failed_precondition(
                "INSUFFICIENT_BALANCE",
                f"{segments} segments asked, {package.available} available in the package",
                requested=segments,
                available=package.available,
            )
        adjustment_no = self._number(brand)
        package.granted -= segments
        package.remaining -= segments
        self._touch(package)
        brand.total -= segments
        self._enter(brand, now, EntryKind.CLAW_BACK, package, segments, adjustment_no)
        self._mark(brand, now)
        return self._adjusted(operation, EntryKind.CLAW_BACK, adjustment_no, package, segments, now)

    def _put_brand(self, operation: PutBrand) -> BrandReply:
        brand = self._brands.get(operation.brand_id)
        created = brand is None
        if brand is None:
            if operation.name is None:
                raise invalid(name="is required for a new brand")
            brand = Brand(operation.brand_id, operation.name, BrandStatus.ACTIVE, self.terms.time_zone_default, False)
        elif brand.status == BrandStatus.CLOSED:
            raise _brand_closed(brand)
        changed = replace(
            brand,
            name=brand.name if operation.name is None else operation.name,
            status=brand.status if operation.status is None else operation.status,
            time_zone=brand.time_zone if operation.time_zone is None else operation.time_zone,
            refund_undelivered=(
                brand.refund_undelivered if operation.refund_undelivered is None else operation.refund_undelivered
            ),
        )
        self._brands[changed.brand_id] = changed
        self._queues.setdefault(changed.brand_id, [])
        self._packages.setdefault(changed.brand_id, {})
        self.changes.brands[changed.brand_id] = changed
        self.changes.put_brands.add(changed.brand_id)
        if created:
            self.changes.new_brands.add(changed.brand_id)
        return BrandReply(
            changed.brand_id, changed.name, changed.status, changed.time_zone, changed.refund_undelivered, created
        )

    def _book_due(self, _operation: BookDue, brand: Brand, _now: datetime) -> DueReply:
        # What is due is booked before any operation; this one only gives it the occasion.
        return self._due.pop(brand.brand_id, DueReply())

    # What operations share.

    def _refund(
        self, brand: Brand, payment: Payment, message_id: str, segments: int, cause: int, now: datetime
    ) -> None:
        lines = cut_back(payment.lines, payment.segments - payment.refunded, segments)
        targets: list[int | None] = []
        record_no = _next_record(brand)
        packages = self._packages[brand.brand_id]
        for package_id, part in lines:
            package = packages[package_id]
            if not package.is_expired(now):
                package.remaining += part
                package.refunded += part
                brand.total += part
                self._touch(package)
                _becomes_due(brand, package.expires_at)
                targets.append(package_id)
            else:
                targets.append(self._refund_to_expired(brand, package, part, now, payment.payment_no))
        payment.refunded += segments
        payment.status = (
            PaymentStatus.REFUNDED if payment.refunded == payment.segments else PaymentStatus.PARTLY_REFUNDED
        )
        refund = Refund(brand.brand_id, payment.payment_no, message_id, segments, lines, targets, cause, now, record_no)
        self._refunds[payment.payment_no, message_id] = refund
        self.changes.refunds.append(refund)
        self.changes.payments[payment.payment_no] = payment
        self._mark(brand, now)

    def _refund_to_expired(
        self, brand: Brand, origin: Package, segments: int, now: datetime, payment_no: str
    ) -> int | None:
        """Book what comes back to a package after its end: into the package of its refunds, or as expired (None)."""
        assert origin.expires_at is not None
        package = next((package for package in self._queues[brand.brand_id] if package.is_refund_of(origin)), None)
        if package is None:
            end = validity_end(origin.expires_at, self.terms.refund_grace_days, None, brand.time_zone)
        else:
            # The first refund has settled it: a time zone that changed since, or a setting, moves no end.
            end = package.expires_at
        assert end is not None
        # The refunds of a refund package get no package again: else failing on purpose would prolong it for ever.
        if origin.source == PackageSource.REFUND or end <= now:
            origin.remaining += segments
            origin.refunded += segments
            brand.total += segments
            self._expire(brand, origin, segments, now, EntryKind.EXPIRE_BACK, payment_no)
            return None
        if package is None:
            package = self._new_package(
                brand,
                now,
                source=PackageSource.REFUND,
                source_no=payment_no,
                segments=segments,
                sms_types=origin.sms_types,
                expires_at=end,
                origin_package_id=origin.package_id,
            )
        else:
            package.granted += segments
            package.remaining += segments
            brand.total += segments
            self._touch(package)
            self._enter(brand, now, EntryKind.GRANT, package, segments, payment_no)
            _becomes_due(brand, package.expires_at)
        return package.package_id

    def _give_back(self, brand: Brand, lines: Iterable[Line], at: datetime, kind: EntryKind, order_no: str) -> None:
        """Let go what a freeze held; what belongs to a package that ended meanwhile expires at once."""
        packages = self._packages[brand.brand_id]
        for package_id, segments in lines:
            package = packages[package_id]
            package.held -= segments
            brand.frozen -= segments
            self._enter(brand, at, kind, package, segments, order_no)
            if package.is_expired(at):
                self._expire(brand, package, segments, at, EntryKind.EXPIRE_BACK, order_no)
            else:
                _becomes_due(brand, package.expires_at)
            self._touch(package)

    def _expire(
        self, brand: Brand, package: Package, segments: int, at: datetime, kind: EntryKind, reference: str
    ) -> None:
        package.remaining -= segments
        package.expired += segments
        brand.total -= segments
        self._enter(brand, at, kind, package, segments, reference)
        self._touch(package)

    def _new_package(
        self,
        brand: Brand,
        now: datetime,
        *,
        source: PackageSource,
        source_no: str,
        segments: int,
        sms_types: tuple[int, ...],
        expires_at: datetime | None,
        origin_package_id: int | None = None,
    ) -> Package:
        package = Package(
            brand_id=brand.brand_id,
            package_id=brand.next_package_id,
            source=source,
            source_no=source_no,
            granted=segments,
            remaining=segments,
            held=0,
            paid=0,
            refunded=0,
            expired=0,
            sms_types=sms_types,
            expires_at=expires_at,
            created_at=now,
            origin_package_id=origin_package_id,
        )
        brand.next_package_id += 1
        brand.total += segments
        self._packages[brand.brand_id][package.package_id] = package
        insort(self._queues[brand.brand_id], package, key=lambda other: other.burn_down_key)
        self._touch(package)
        self.changes.new_packages.add((brand.brand_id, package.package_id))
        self._enter(brand, now, EntryKind.GRANT, package, segments, source_no)
        _becomes_due(brand, expires_at)
        self._mark(brand, now)
        return package

    def _adjusted(
        self,
        operation: Grant | ClawBack,
        kind: EntryKind,
        adjustment_no: str,
        package: Package,
        segments: int,
        at: datetime,
    ) -> AdjustReply:
        self.changes.adjustments.append(
            Adjustment(
                brand_id=package.brand_id,
                adjustment_no=adjustment_no,
                kind=kind,
                package_id=package.package_id,
                segments=segments,
                author=operation.author,
                reason=operation.reason,
                created_at=at,
            )
        )
        return AdjustReply(
            adjustment_no,
            package.package_id,
            package.source,
            package.source_no,
            package.granted,
            package.remaining,
            package.held,
            package.paid,
            package.refunded,
            package.expired,
            package.sms_types,
            package.expires_at,
            package.created_at,
        )

    def _enter(
        self, brand: Brand, at: datetime, kind: EntryKind, package: Package, segments: int, reference: str
    ) -> None:
        self.changes.entries.append(
            Entry(
                brand_id=brand.brand_id,
                record_no=_next_record(brand),
                at=at,
                # A clock that was set back says a time before the record's own.
                booked_at=self.now if at <= self.now else at,
                kind=kind,
                package_id=package.package_id,
                segments=segments,
                reference=reference,
            )
        )

    def _touch(self, package: Package) -> None:
        self.changes.packages[package.brand_id, package.package_id] = package

    def _mark(self, brand: Brand, at: datetime) -> None:
        """Note the balance from `at` on; the last of a moment counts."""
        assert brand.last_at is None or at >= brand.last_at, "records follow time"
        assert 0 <= brand.frozen <= brand.total, brand
        brand.last_at = at
        self.changes.brands[brand.brand_id] = brand
        self.changes.points[brand.brand_id, at] = (brand.total, brand.frozen)

    def _freeze_of(self, brand: Brand, order_no: str) -> Freeze:
        freeze = self._freezes.get(order_no)
        if freeze is None or freeze.brand_id != brand.brand_id:
            raise not_found("FREEZE_NOT_FOUND", f"there is no freeze {order_no} of this brand")
        return freeze

    def _payment_of(self, brand: Brand, payment_no: str) -> Payment:
        payment = self._payments.get(payment_no)
        if payment is None or payment.brand_id != brand.brand_id:
            raise not_found("PAYMENT_NOT_FOUND", f"there is no payment {payment_no} of this brand")
        return payment

    def _number(self, brand: Brand) -> str:
        now = self.time_of(brand)
        milliseconds = self._milliseconds if now is self.now else int(now.timestamp() * 1000)
        return self._identifiers.new(brand.brand_id, milliseconds)

    # What readers ask.

    def brand(self, brand_id: int) -> Brand | None:
        """A brand as it is now, or None."""
        return self._brands.get(brand_id)

    def queue(self, brand_id: int) -> list[Package]:
        """A brand's packages in burn-down order."""
        return self._queues[brand_id]

    def brands_with_queues(self) -> Iterator[tuple[Brand, list[Package]]]:
        """Every brand with its packages in burn-down order."""
        for brand_id, brand in self._brands.items():
            yield brand, self._queues[brand_id]

    def freeze(self, order_no: str) -> Freeze | None:
        """A freeze as it is now, or None."""
        return self._freezes.get(order_no)

    def available(self, brand_id: int, sms_type: int | None = None) -> int:
        """Segments that may be frozen now, for a type or for any."""
        now = self.time_of(self._brands[brand_id])
        return sum(
            package.available
            for package in self._queues[brand_id]
            if not package.is_expired(now) and (sms_type is None or package.pays(sms_type))
        )

    def check(self) -> None:
        """Assert the invariants of everything that changed."""
        for package in self.changes.packages.values():
            package.check()
        for freeze in (self.changes.freezes_sent | self.changes.freezes).values():
            assert freeze.open >= 0, freeze
        for payment in self.changes.payments.values():
            assert 0 <= payment.refunded <= payment.segments, payment


_RULES: dict[type[Operation], Callable[[Book, Any, Brand, datetime], Reply]] = {
    FreezeSegments: Book._freeze,
    Pay: Book._pay,
    SendStatus: Book._send_status,
    RecordReceipt: Book._receipt,
    RequestRelease: Book._request_release,
    ApplyRelease: Book._apply_release,
    Extend: Book._extend,
    CreateOrder: Book._create_order,
    OrderPaid: Book._order_paid,
    Grant: Book._grant,
    ClawBack: Book._claw_back,
    BookDue: Book._book_due,
}


def validity_end(now: datetime, days: int | None, months: int | None, time_zone: str) -> datetime | None:
    """When a package bought now ends: the same time of day so many calendar days or months later, in the brand's zone.

    A day that the last month lacks becomes its last day. Neither days nor months: None, it never ends.
    """
    if days is None and months is None:
        return None
    local = now.astimezone(ZoneInfo(time_zone))
    if months is not None:
        index = local.year * 12 + local.month - 1 + months
        year, month = index // 12, index % 12 + 1
        local = local.replace(year=year, month=month, day=min(local.day, calendar.monthrange(year, month)[1]))
    else:
        assert days is not None
        local += timedelta(days=days)
    return local.astimezone(UTC)


def _next_record(brand: Brand) -> int:
    record_no = brand.next_record_no
    brand.next_record_no += 1
    return record_no


def _becomes_due(brand: Brand, at: datetime | None) -> None:
    if at is not None and (brand.next_due_at is None or at < brand.next_due_at):
        brand.next_due_at = at


def _supersedes(state: int, before: int) -> bool:
    """Whether a receipt replaces the one before: a final one a pending one, and delivered everything."""
    if before == ReceiptState.DELIVERED:
        return False
    return state == ReceiptState.DELIVERED or (before == ReceiptState.PENDING and state != ReceiptState.PENDING)


def _require_active(brand: Brand) -> None:
    if brand.status == BrandStatus.CLOSED:
        raise _brand_closed(brand)
    if brand.status == BrandStatus.SUSPENDED:
        raise failed_precondition("BRAND_SUSPENDED", f"brand {brand.brand_id} is suspended; nothing new is frozen")


def _brand_closed(brand: Brand) -> Refusal:
    return failed_precondition("BRAND_CLOSED", f"brand {brand.brand_id} is closed")


def _freeze_expired(freeze: Freeze) -> Refusal:
    return failed_precondition(
        "FREEZE_EXPIRED",
        "the freeze's time to live has ended; freeze again",
        expires_at=freeze.expires_at.isoformat(),
    )


def _too_long(longest: timedelta) -> Refusal:
    seconds = int(longest.total_seconds())
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "TIME_TO_LIVE_TOO_LONG",
        f"time_to_live: a freeze lasts at most {seconds} seconds from its creation",
        metadata={"seconds_max": str(seconds)},
        fields={"time_to_live": f"at most {seconds} seconds from the freeze's creation"},
    )


def _require_refundable(payment: Payment, segments: int) -> None:
    left = payment.segments - payment.refunded
    if segments > left:
        raise failed_precondition(
            "REFUND_EXCEEDS_PAYMENT",
            f"{segments} segments asked, {left} of the payment not refunded yet",
            requested=segments,
            refundable=left,
        )
