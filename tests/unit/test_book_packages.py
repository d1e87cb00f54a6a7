"""Orders, validity, adjustments and brands, on the rules alone. `Ledger` checks the invariants after every step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import grpc
import pytest
from ledger_book import BRAND, DAY, HOUR, MARKETING, MINUTE, START, TICK, VERIFICATION, Ledger

from costcenter.book import Terms, validity_end
from costcenter.model import BrandStatus, EntryKind, OrderStatus, PackageSource

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
CONFLICT = grpc.StatusCode.ALREADY_EXISTS


# Orders.


def test_a_paid_order_becomes_a_package() -> None:
    """Segments, types and validity of the offer, counted from the payment."""
    ledger = Ledger()
    ledger.offer(segments=500, validity_days=10, sms_types=(VERIFICATION, MARKETING))
    order = ledger.order()
    assert (order.segments, order.price, order.currency) == (500, Decimal("45.00"), "CNY")
    assert order.pay_before == ledger.now + 15 * MINUTE
    assert ledger.figures() == (0, 0, 0)
    ledger.advance(HOUR)
    paid = ledger.order_paid(order.package_order_no)
    package = ledger.package(paid.package_id)
    assert (package.granted, package.sms_types, package.expires_at) == (500, (1, 3), ledger.now + 10 * DAY)
    assert (package.source, package.source_no) == (PackageSource.ORDER, order.package_order_no)
    assert (paid.segments, paid.expires_at) == (500, package.expires_at)


def test_an_order_is_credited_once() -> None:
    """However often the callback comes, also when the package is spent or expired meanwhile: the same answer."""
    ledger = Ledger()
    ledger.offer(segments=5, validity_days=1)
    order_no = ledger.order().package_order_no
    first = ledger.order_paid(order_no)
    ledger.charge(5)
    assert ledger.order_paid(order_no) == first
    ledger.advance(2 * DAY)
    assert ledger.order_paid(order_no) == first
    assert len(ledger.tables.packages) == 1


def test_an_order_paid_with_another_reference_conflicts() -> None:
    """Two payments of one order are two facts; the second is refused for a person to look at."""
    ledger = Ledger()
    ledger.offer()
    order_no = ledger.order().package_order_no
    ledger.order_paid(order_no, reference="bank-1")
    ledger.refused(lambda: ledger.order_paid(order_no, reference="bank-2"), "IDEMPOTENCY_CONFLICT", CONFLICT)


def test_a_cancelled_order_that_is_paid_after_all_is_credited() -> None:
    """The money came; so do the segments, once."""
    ledger = Ledger()
    ledger.offer()
    order_no = ledger.order().package_order_no
    ledger.tables.orders[BRAND, order_no].status = OrderStatus.CANCELLED
    ledger.advance(DAY)
    first = ledger.order_paid(order_no)
    assert ledger.tables.orders[BRAND, order_no].status == OrderStatus.PAID
    assert ledger.order_paid(order_no) == first
    assert ledger.figures() == (1_000, 0, 1_000)


@pytest.mark.parametrize(
    ("amount", "currency"), [("44.99", "CNY"), ("45.01", "CNY"), ("0.00", "CNY"), ("45.00", "USD")]
)
def test_a_wrong_amount_or_currency_credits_nothing(amount: str, currency: str) -> None:
    """Also not for an order that was paid: the call is wrong by itself."""
    ledger = Ledger()
    ledger.offer()
    order_no = ledger.order().package_order_no
    ledger.refused(lambda: ledger.order_paid(order_no, amount, currency), "AMOUNT_MISMATCH")
    ledger.order_paid(order_no)
    ledger.refused(lambda: ledger.order_paid(order_no, amount, currency), "AMOUNT_MISMATCH")


def test_the_amount_is_compared_as_a_number() -> None:
    """45, 45.0 and 45.0000 are the same money."""
    ledger = Ledger()
    ledger.offer()
    for amount in ("45", "45.0", "45.0000"):
        ledger.order_paid(ledger.order().package_order_no, amount)


def test_a_price_may_be_agreed_per_order() -> None:
    """What was agreed must be paid, not the offer's price, and later changes of the offer do not matter."""
    ledger = Ledger()
    ledger.offer()
    order_no = ledger.order(price="40.50", currency="USD").package_order_no
    ledger.offer(segments=1, price=Decimal("99"), active=False)
    ledger.refused(lambda: ledger.order_paid(order_no, "45.00"), "AMOUNT_MISMATCH")
    assert ledger.order_paid(order_no, "40.50", "USD").segments == 1_000


def test_orders_that_cannot_be_made() -> None:
    """No such offer, an offer that is not for sale, a closed brand, no brand."""
    ledger = Ledger()
    ledger.refused(lambda: ledger.order("nothing"), "OFFER_NOT_FOUND", NOT_FOUND)
    ledger.offer(active=False)
    ledger.refused(ledger.order, "OFFER_INACTIVE")
    ledger.offer()
    ledger.put_brand(status=BrandStatus.CLOSED)
    ledger.refused(ledger.order, "BRAND_CLOSED")


def test_an_unknown_order_is_not_found() -> None:
    """Another brand's order is none of mine."""
    ledger = Ledger()
    ledger.put_brand(8, name="Other")
    ledger.offer()
    order_no = ledger.order().package_order_no
    ledger.refused(lambda: ledger.order_paid("nowhere"), "PACKAGE_ORDER_NOT_FOUND", NOT_FOUND)
    ledger.refused(lambda: ledger.order_paid(order_no, brand_id=8), "PACKAGE_ORDER_NOT_FOUND", NOT_FOUND)


def test_an_order_of_a_brand_closed_meanwhile_is_credited() -> None:
    """Money that came is owed, even if nothing new can be frozen of it."""
    ledger = Ledger()
    ledger.offer()
    order_no = ledger.order().package_order_no
    ledger.put_brand(status=BrandStatus.CLOSED)
    ledger.order_paid(order_no)
    assert ledger.figures() == (1_000, 0, 1_000)


# Validity.


def _end(local: str, zone: str, *, days: int | None = None, months: int | None = None) -> str:
    """The end of what is bought at a local time, as a local time with its offset."""
    bought = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(zone))
    end = validity_end(bought.astimezone(UTC), days, months, zone)
    assert end is not None
    assert end.utcoffset() == timedelta(0)
    return end.astimezone(ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("local", "months", "end"),
    [
        ("2024-01-31T10:00", 1, "2024-02-29T10:00:00+08:00"),
        ("2023-01-31T10:00", 1, "2023-02-28T10:00:00+08:00"),
        ("2024-01-31T10:00", 2, "2024-03-31T10:00:00+08:00"),
        ("2024-03-31T00:00", 1, "2024-04-30T00:00:00+08:00"),
        ("2024-12-15T23:59", 1, "2025-01-15T23:59:00+08:00"),
        ("2024-02-29T12:00", 12, "2025-02-28T12:00:00+08:00"),
        ("2024-11-30T12:00", 3, "2025-02-28T12:00:00+08:00"),
        ("2024-06-30T12:00", 1_200, "2124-06-30T12:00:00+08:00"),
    ],
)
def test_months_end_on_the_same_day_or_the_months_last(local: str, months: int, end: str) -> None:
    """A day that the last month lacks becomes its last day; the time of day stays."""
    assert _end(local, "Asia/Shanghai", months=months) == end


def test_the_day_is_the_brands_not_utcs() -> None:
    """31 January 01:00 in Shanghai is 30 January in UTC: a month later is 29 February, 01:00 there."""
    assert _end("2024-01-31T01:00", "Asia/Shanghai", months=1) == "2024-02-29T01:00:00+08:00"
    # In New York 30 January 20:00 is the 31st in UTC; the month is counted from the 30th.
    assert _end("2024-03-30T21:00", "America/New_York", months=1) == "2024-04-30T21:00:00-04:00"


@pytest.mark.parametrize(
    ("local", "days", "months", "end"),
    [
        # Clocks go forward on 31 March 2024: the day has 23 hours.
        ("2024-03-30T12:00", 1, None, "2024-03-31T12:00:00+02:00"),
        ("2024-03-15T12:00", None, 1, "2024-04-15T12:00:00+02:00"),
        # 02:30 does not exist on that day; the end is the same moment that 03:30 is.
        ("2024-03-30T02:30", 1, None, "2024-03-31T03:30:00+02:00"),
        # Clocks go back on 27 October 2024: the day has 25 hours; of two 02:30 the first.
        ("2024-10-26T12:00", 1, None, "2024-10-27T12:00:00+01:00"),
        ("2024-10-26T02:30", 1, None, "2024-10-27T02:30:00+02:00"),
    ],
)
def test_days_keep_the_time_of_day_over_a_change_of_clocks(
    local: str, days: int | None, months: int | None, end: str
) -> None:
    """Calendar days and months, not multiples of 24 hours."""
    assert _end(local, "Europe/Berlin", days=days, months=months) == end


def test_no_validity_never_ends() -> None:
    """Neither days nor months: the package has no end."""
    assert validity_end(START, None, None, "Asia/Shanghai") is None
    ledger = Ledger()
    ledger.offer()
    assert ledger.order_paid(ledger.order().package_order_no).expires_at is None


def test_the_brands_time_zone_counts_at_the_payment() -> None:
    """A brand's zone is its setting, Asia/Shanghai unless it says otherwise."""
    bought = datetime(2024, 3, 15, 12, tzinfo=UTC)
    ends = []
    for zone in ("", "America/New_York", "Europe/Berlin"):
        ledger = Ledger(now=bought)
        if zone:
            ledger.put_brand(time_zone=zone)
        ledger.offer(validity_months=1)
        ends.append(ledger.order_paid(ledger.order().package_order_no).expires_at)
    assert ends == [
        datetime(2024, 4, 15, 12, tzinfo=UTC),
        datetime(2024, 4, 15, 12, tzinfo=UTC),  # New York changed on 10 March, before
        datetime(2024, 4, 15, 11, tzinfo=UTC),  # Berlin changes on 31 March
    ]


# Adjustments.


def test_a_grant_is_a_package_with_author_and_reason() -> None:
    """Who and why are recorded with the number that the package carries."""
    ledger = Ledger()
    package = ledger.package(ledger.grant(10, DAY, (MARKETING,)))
    (adjustment,) = ledger.tables.adjustments
    assert (package.source, package.source_no) == (PackageSource.GRANT, adjustment.adjustment_no)
    assert (adjustment.kind, adjustment.segments, adjustment.package_id) == (EntryKind.GRANT, 10, package.package_id)
    assert (adjustment.author, adjustment.reason, adjustment.created_at) == ("author", "reason", ledger.now)


def test_a_grant_must_end_in_the_future() -> None:
    """At the moment itself it would be over: refused, with the field."""
    ledger = Ledger()
    refusal = ledger.refused(lambda: ledger.grant(10, ledger.now), "BAD_REQUEST", INVALID)
    assert list(refusal.fields) == ["grant.expires_at"]
    ledger.grant(10, ledger.now + TICK)


def test_a_claw_back_takes_at_most_what_is_available() -> None:
    """What is held or paid stays; the author and reason are recorded."""
    ledger = Ledger()
    package = ledger.grant(10)
    ledger.charge(2)
    ledger.freeze(3)
    refusal = ledger.refused(lambda: ledger.claw_back(package, 6), "INSUFFICIENT_BALANCE")
    assert refusal.metadata == {"requested": "6", "available": "5"}
    reply = ledger.claw_back(package, 5)
    assert (reply.granted, reply.remaining, reply.held) == (5, 3, 3)
    assert ledger.figures() == (3, 3, 0)
    assert ledger.tables.adjustments[-1].kind == EntryKind.CLAW_BACK
    ledger.refused(lambda: ledger.claw_back(package, 1), "INSUFFICIENT_BALANCE")


def test_a_package_is_returned_whole_or_not() -> None:
    """Nothing of it may be held or paid away; what was paid and refunded whole is back."""
    ledger = Ledger()
    package = ledger.grant(10)
    order = ledger.freeze(4)
    ledger.refused(lambda: ledger.claw_back(package, None), "PACKAGE_IN_USE")
    payment = ledger.pay(order, 4)
    ledger.refused(lambda: ledger.claw_back(package, None), "PACKAGE_IN_USE")
    ledger.status(payment, ("m1", 3))
    ledger.refused(lambda: ledger.claw_back(package, None), "PACKAGE_IN_USE")
    ledger.status(payment, ("m2", 1))
    assert ledger.claw_back(package, None).remaining == 0
    assert ledger.figures() == (0, 0, 0)
    ledger.refused(lambda: ledger.claw_back(package, None), "INSUFFICIENT_BALANCE")


def test_an_expired_or_unknown_package_is_not_adjusted() -> None:
    """What expired is lost already; another brand's package is unknown."""
    ledger = Ledger()
    ledger.put_brand(8, name="Other")
    other = ledger.grant(5, brand_id=8) + 10
    package = ledger.grant(10, DAY)
    ledger.refused(lambda: ledger.claw_back(other, 1), "PACKAGE_NOT_FOUND", NOT_FOUND)
    ledger.advance(DAY)
    ledger.refused(lambda: ledger.claw_back(package, 1), "PACKAGE_EXPIRED")
    ledger.refused(lambda: ledger.claw_back(package, None), "PACKAGE_EXPIRED")


def test_a_spent_package_can_be_looked_up() -> None:
    """A claw back out of a package with nothing left says so instead of denying the package."""
    ledger = Ledger()
    package = ledger.grant(3)
    ledger.charge(3)
    ledger.refused(lambda: ledger.claw_back(package, 1), "INSUFFICIENT_BALANCE")


def test_a_closed_brand_is_granted_nothing() -> None:
    """But what it has can be taken back."""
    ledger = Ledger()
    package = ledger.grant(10)
    ledger.put_brand(status=BrandStatus.CLOSED)
    ledger.refused(lambda: ledger.grant(1), "BRAND_CLOSED")
    ledger.claw_back(package, None)


# Brands.


def test_a_new_brand_needs_a_name_and_gets_the_defaults() -> None:
    """Active, the settings' time zone, no refunds by receipt."""
    ledger = Ledger(brand=False, terms=Terms(time_zone_default="Europe/Berlin"))
    refusal = ledger.refused(lambda: ledger.put_brand(9), "BAD_REQUEST", INVALID)
    assert list(refusal.fields) == ["name"]
    reply = ledger.put_brand(9, name="Nine")
    assert (reply.created, reply.status, reply.time_zone) == (True, BrandStatus.ACTIVE, "Europe/Berlin")
    assert not reply.refund_undelivered


def test_a_brand_changes_in_the_fields_given() -> None:
    """The others stay, and so does the balance."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    ledger.freeze(4)
    reply = ledger.put_brand(name="New name")
    assert (reply.created, reply.name, reply.refund_undelivered) == (False, "New name", True)
    reply = ledger.put_brand(time_zone="Europe/Berlin", status=BrandStatus.SUSPENDED)
    assert (reply.name, reply.time_zone, reply.status) == ("New name", "Europe/Berlin", BrandStatus.SUSPENDED)
    assert ledger.figures() == (10, 4, 6)


def test_a_closed_brand_stays_closed() -> None:
    """Any change of it is refused."""
    ledger = Ledger()
    ledger.put_brand(status=BrandStatus.CLOSED)
    ledger.refused(lambda: ledger.put_brand(status=BrandStatus.ACTIVE), "BRAND_CLOSED")
    ledger.refused(lambda: ledger.put_brand(name="Other"), "BRAND_CLOSED")
