"""Operations of the ledger and their replies.

Each operation concerns one brand. `request_id` with `fingerprint` (a hash of the call's content) makes it idempotent;
an operation without a fingerprint is the service's own and may be applied any number of times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import ClassVar


@dataclass(slots=True)
class Needs:
    """What must be read before operations can be decided."""

    brands: set[int] = field(default_factory=set)
    orders: set[tuple[int, str]] = field(default_factory=set)
    offers: set[str] = field(default_factory=set)
    freezes: set[tuple[int, str]] = field(default_factory=set)
    payments: set[tuple[int, str]] = field(default_factory=set)
    messages: set[tuple[int, str, str]] = field(default_factory=set)
    releases: set[tuple[int, str]] = field(default_factory=set)
    packages: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True)
class Operation:
    """One change to one brand."""

    # The number of its kind in idempotency keys; 0: it has none.
    code: ClassVar[int] = 0

    brand_id: int
    request_id: str
    fingerprint: bytes

    def ask(self, needs: Needs) -> None:
        """Note what must be read before the operation can be decided."""
        needs.brands.add(self.brand_id)


@dataclass(slots=True)
class CreateOrder(Operation):
    """Order a package. `price` None: the offer's."""

    code: ClassVar[int] = 1
    offer_id: str
    price: Decimal | None
    currency: str

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.offers.add(self.offer_id)


@dataclass(slots=True)
class OrderPaid(Operation):
    """Credit an order; its key is the order's number."""

    package_order_no: str
    payment_reference: str
    amount: Decimal
    currency: str

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.orders.add((self.brand_id, self.package_order_no))


@dataclass(slots=True)
class FreezeSegments(Operation):
    """Hold segments. `time_to_live` None: the default."""

    code: ClassVar[int] = 2
    sms_type: int
    segments: int
    time_to_live: timedelta | None


@dataclass(slots=True)
class Pay(Operation):
    """Charge part of a freeze."""

    code: ClassVar[int] = 3
    order_no: str
    segments: int

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.freezes.add((self.brand_id, self.order_no))


@dataclass(slots=True)
class RequestRelease(Operation):
    """Record that segments of a freeze shall go back."""

    code: ClassVar[int] = 4
    order_no: str
    segments: int

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.freezes.add((self.brand_id, self.order_no))


@dataclass(slots=True)
class ApplyRelease(Operation):
    """Give back what a release request names."""

    release_no: str

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.releases.add((self.brand_id, self.release_no))


@dataclass(slots=True)
class Extend(Operation):
    """Move a freeze's end."""

    code: ClassVar[int] = 5
    order_no: str
    time_to_live: timedelta

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.freezes.add((self.brand_id, self.order_no))


@dataclass(slots=True)
class SendStatus(Operation):
    """Settle a payment; `failed` are (message_id, segments)."""

    code: ClassVar[int] = 6
    payment_no: str
    failed: list[tuple[str, int]]

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.payments.add((self.brand_id, self.payment_no))
        needs.messages.update((self.brand_id, self.payment_no, message_id) for message_id, _ in self.failed)


@dataclass(slots=True)
class RecordReceipt(Operation):
    """Record a delivery receipt."""

    code: ClassVar[int] = 7
    payment_no: str
    message_id: str
    segments: int
    state: int
    carrier_code: str
    reported_at: datetime | None

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.payments.add((self.brand_id, self.payment_no))
        needs.messages.add((self.brand_id, self.payment_no, self.message_id))


@dataclass(slots=True)
class Grant(Operation):
    """Grant a package without an order."""

    code: ClassVar[int] = 8
    author: str
    reason: str
    segments: int
    expires_at: datetime | None
    sms_types: tuple[int, ...]


@dataclass(slots=True)
class ClawBack(Operation):
    """Take segments out of a package; `segments` None: return the package whole."""

    code: ClassVar[int] = 8
    author: str
    reason: str
    package_id: int
    segments: int | None

    def ask(self, needs: Needs) -> None:
        needs.brands.add(self.brand_id)
        needs.packages.add((self.brand_id, self.package_id))


@dataclass(slots=True)
class PutBrand(Operation):
    """Create or change a brand; None: unchanged."""

    name: str | None
    status: int | None
    time_zone: str | None
    refund_undelivered: bool | None


@dataclass(slots=True)
class BookDue(Operation):
    """Book what has become due and do nothing else."""


@dataclass(slots=True)
class OrderReply:
    """Reply to `CreateOrder`."""

    package_order_no: str
    segments: int
    price: Decimal
    currency: str
    pay_before: datetime


@dataclass(slots=True)
class PaidReply:
    """Reply to `OrderPaid`."""

    package_id: int
    segments: int
    expires_at: datetime | None


@dataclass(slots=True)
class FreezeReply:
    """Reply to `FreezeSegments`."""

    order_no: str
    segments: int
    expires_at: datetime


@dataclass(slots=True)
class PayReply:
    """Reply to `Pay`."""

    payment_no: str
    segments: int
    open: int


@dataclass(slots=True)
class ReleaseReply:
    """Reply to `RequestRelease`."""

    release_no: str


@dataclass(slots=True)
class AppliedReply:
    """Reply to `ApplyRelease`."""

    segments: int


@dataclass(slots=True)
class ExtendReply:
    """Reply to `Extend`."""

    expires_at: datetime


@dataclass(slots=True)
class RefundReply:
    """Reply to `SendStatus` and `RecordReceipt`."""

    refunded: int


@dataclass(slots=True)
class AdjustReply:
    """Reply to `Grant` and `ClawBack`; the package's figures as they were then."""

    adjustment_no: str
    package_id: int
    source: int
    source_no: str
    granted: int
    remaining: int
    held: int
    paid: int
    refunded: int
    expired: int
    sms_types: tuple[int, ...]
    expires_at: datetime | None
    created_at: datetime


@dataclass(slots=True)
class BrandReply:
    """Reply to `PutBrand`."""

    brand_id: int
    name: str
    status: int
    time_zone: str
    refund_undelivered: bool
    created: bool


@dataclass(slots=True)
class DueReply:
    """Reply to `BookDue`."""

    packages_expired: int = 0
    freezes_ended: int = 0


Reply = (
    OrderReply
    | PaidReply
    | FreezeReply
    | PayReply
    | ReleaseReply
    | AppliedReply
    | ExtendReply
    | RefundReply
    | AdjustReply
    | BrandReply
    | DueReply
)
