"""The ledger's things, as they are within one transaction."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from costcenter.lines import Line

# Sorts behind every expiry that a package can have.
NEVER = datetime.max.replace(tzinfo=UTC)


class BrandStatus(enum.IntEnum):
    """The numbers of `costcenter.v1.BrandStatus`."""

    ACTIVE = 1
    SUSPENDED = 2
    CLOSED = 3


class PackageSource(enum.IntEnum):
    """The numbers of `costcenter.v1.PackageSource`."""

    ORDER = 1
    GRANT = 2
    REFUND = 3


class OrderStatus(enum.IntEnum):
    """created → paid | cancelled; cancelled → paid when the money comes after all."""

    CREATED = 1
    CANCELLED = 2
    PAID = 3


class PaymentStatus(enum.IntEnum):
    """The numbers of `costcenter.v1.PaymentStatus`."""

    PAID = 1
    SENT = 2
    PARTLY_REFUNDED = 3
    REFUNDED = 4


class RefundCause(enum.IntEnum):
    """The numbers of `costcenter.v1.RefundCause`."""

    SEND_FAILED = 1
    UNDELIVERED = 2


class ReceiptState(enum.IntEnum):
    """The numbers of `costcenter.v1.ReceiptState`."""

    DELIVERED = 1
    UNDELIVERED = 2
    EXPIRED = 3
    PENDING = 4


class EntryKind(enum.IntEnum):
    """What a record of the journal says of one package; `segments` is always positive.

    Freezes, payments and refunds are records of their own; all else that changes a balance is an entry.
    """

    GRANT = 1  # granted and remaining rise: a purchase, an operator's grant, a refund package
    CLAW_BACK = 2  # granted and remaining fall: an operator's claw back or return
    EXPIRE = 3  # remaining falls: what was not held at the package's end
    RELEASE = 4  # held falls: given back on request
    TIME_OUT = 5  # held falls: given back at the freeze's end
    EXPIRE_BACK = 6  # remaining falls: what came back to a package after its end


@dataclass(slots=True)
class Brand:
    """A brand with its balance."""

    brand_id: int
    name: str
    status: int
    time_zone: str
    refund_undelivered: bool
    total: int = 0
    frozen: int = 0
    # No record of the brand is younger; the brand's clock never runs behind it.
    last_at: datetime | None = None
    # Nothing of the brand becomes due before it; None: nothing will.
    next_due_at: datetime | None = None
    next_package_id: int = 1
    next_record_no: int = 1


@dataclass(slots=True)
class Package:
    """Segments that a brand owns."""

    brand_id: int
    package_id: int
    source: int
    source_no: str
    granted: int
    remaining: int
    held: int
    paid: int
    refunded: int
    expired: int
    sms_types: tuple[int, ...]  # empty: all
    expires_at: datetime | None
    created_at: datetime
    # The expired package whose refunds it holds.
    origin_package_id: int | None = None

    @property
    def available(self) -> int:
        """Segments neither held nor gone, whether or not their time has come."""
        return self.remaining - self.held

    def is_expired(self, at: datetime) -> bool:
        """Whether it is not spendable any more at a moment: intervals are half-open."""
        return self.expires_at is not None and self.expires_at <= at

    def pays(self, sms_type: int) -> bool:
        """Whether it may pay a type."""
        return not self.sms_types or sms_type in self.sms_types

    def is_refund_of(self, origin: Package) -> bool:
        """Whether it holds the refunds of an expired package of the same brand."""
        return self.origin_package_id == origin.package_id

    @property
    def burn_down_key(self) -> tuple[datetime, int]:
        """Soonest expiry first, none last; then the oldest."""
        return (self.expires_at or NEVER, self.package_id)

    def check(self) -> None:
        """Assert what must hold of every package at any time."""
        assert 0 <= self.held <= self.remaining, self
        assert self.granted == self.remaining + self.paid - self.refunded + self.expired, self


@dataclass(slots=True)
class Freeze:
    """Segments held for messages to come."""

    brand_id: int
    order_no: str
    request_id: str
    sms_type: int
    segments: int
    lines: list[Line]
    created_at: datetime
    expires_at: datetime
    record_no: int
    paid: int = 0
    released: int = 0
    timed_out: int = 0

    @property
    def open(self) -> int:
        """Segments still held."""
        return self.segments - self.paid - self.released - self.timed_out

    @property
    def open_end(self) -> int:
        """Where the open segments end, counted along the lines."""
        return self.paid + self.open


@dataclass(slots=True)
class Payment:
    """Segments charged."""

    brand_id: int
    payment_no: str
    order_no: str
    request_id: str
    sms_type: int
    segments: int
    lines: list[Line]
    status: int
    created_at: datetime
    record_no: int
    refunded: int = 0


@dataclass(slots=True)
class Refund:
    """Segments of one message that went back."""

    brand_id: int
    payment_no: str
    message_id: str
    segments: int
    # Out of the payment's lines, last first; and where each part went: a package, or None: booked as expired.
    lines: list[Line]
    targets: list[int | None]
    cause: int
    created_at: datetime
    record_no: int


@dataclass(slots=True)
class Receipt:
    """The delivery receipt of one message."""

    brand_id: int
    payment_no: str
    message_id: str
    segments: int
    state: int
    carrier_code: str
    reported_at: datetime | None
    recorded_at: datetime
    # Segments that were refunded although the message was delivered: the house's loss.
    house_loss: int = 0


@dataclass(slots=True)
class Entry:
    """A record of the journal."""

    brand_id: int
    record_no: int
    at: datetime
    booked_at: datetime
    kind: int
    package_id: int
    segments: int
    reference: str  # number of what caused it: an order, an adjustment, a freeze, a payment; empty: time


@dataclass(slots=True)
class PackageOrder:
    """A package that was ordered."""

    brand_id: int
    package_order_no: str
    offer_id: str
    segments: int
    price: Decimal
    currency: str
    validity_days: int | None
    validity_months: int | None
    sms_types: tuple[int, ...]
    status: int
    created_at: datetime
    pay_before: datetime
    paid_at: datetime | None = None
    payment_reference: str | None = None
    package_id: int | None = None


@dataclass(slots=True)
class PackageOffer:
    """A package for sale."""

    offer_id: str
    name: str
    segments: int
    price: Decimal
    currency: str
    validity_days: int | None
    validity_months: int | None
    sms_types: tuple[int, ...]
    active: bool


@dataclass(slots=True)
class ReleaseRequest:
    """A request to give segments of a freeze back; `segments` 0: all that is open when it is applied."""

    brand_id: int
    release_no: str
    order_no: str
    segments: int
    created_at: datetime
    applied_at: datetime | None = None
    released: int = 0


@dataclass(slots=True)
class Adjustment:
    """What an operator changed."""

    brand_id: int
    adjustment_no: str
    kind: int  # EntryKind.GRANT or EntryKind.CLAW_BACK
    package_id: int
    segments: int
    author: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret."""

    token_id: str
    name: str
    roles: list[int]
    all_brands: bool
    brand_ids: list[int]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(slots=True)
class Changes:
    """What a group of operations writes."""

    brands: dict[int, Brand] = field(default_factory=dict)
    new_brands: set[int] = field(default_factory=set)
    put_brands: set[int] = field(default_factory=set)
    packages: dict[tuple[int, int], Package] = field(default_factory=dict)
    new_packages: set[tuple[int, int]] = field(default_factory=set)
    # Those that were there before; a new one's number is not known to anybody who could change it.
    freezes: dict[str, Freeze] = field(default_factory=dict)
    # Those of them that were written while the group was still being decided.
    freezes_sent: dict[str, Freeze] = field(default_factory=dict)
    new_freezes: list[Freeze] = field(default_factory=list)
    payments: dict[str, Payment] = field(default_factory=dict)
    new_payments: list[Payment] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    receipts: dict[tuple[str, str], Receipt] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    # (brand_id, moment): total and frozen from then on.
    points: dict[tuple[int, datetime], tuple[int, int]] = field(default_factory=dict)
    orders: dict[str, PackageOrder] = field(default_factory=dict)
    new_orders: set[str] = field(default_factory=set)
    releases: dict[str, ReleaseRequest] = field(default_factory=dict)
    new_releases: set[str] = field(default_factory=set)
    adjustments: list[Adjustment] = field(default_factory=list)
