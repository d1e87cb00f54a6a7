"""Send statuses, receipts and refunds, on the rules alone. `Ledger` checks the invariants after every step."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from ledger_book import DAY, HOUR, MARKETING, SECOND, TICK, VERIFICATION, Ledger

from costcenter.book import Terms
from costcenter.model import EntryKind, PackageSource, PaymentStatus, ReceiptState, RefundCause

NOT_FOUND = grpc.StatusCode.NOT_FOUND


# Send status.


def test_a_status_without_failures_settles_the_payment() -> None:
    """Everything was sent: nothing goes back."""
    ledger = Ledger()
    ledger.grant(10)
    payment = ledger.charge(4)
    assert ledger.status(payment) == 0
    assert ledger.payment(payment).status == PaymentStatus.SENT
    assert ledger.figures() == (6, 0, 6)


def test_failed_messages_go_back_to_their_packages_in_reverse() -> None:
    """The last line of the payment is refunded first; each refund goes on where the one before stopped."""
    ledger = Ledger()
    a, b, c = ledger.grant(3, DAY), ledger.grant(4, 2 * DAY), ledger.grant(5, 3 * DAY)
    payment = ledger.charge(10)
    assert ledger.status(payment, ("m1", 2), ("m2", 3)) == 5
    assert ledger.refund(payment, "m1").lines == [(c, 2)]
    assert ledger.refund(payment, "m2").lines == [(c, 1), (b, 2)]
    assert ledger.payment(payment).status == PaymentStatus.PARTLY_REFUNDED
    assert ledger.status(payment, ("m3", 5)) == 5
    assert ledger.refund(payment, "m3").lines == [(b, 2), (a, 3)]
    assert ledger.payment(payment).status == PaymentStatus.REFUNDED
    assert ledger.figures() == (12, 0, 12)
    assert [ledger.package(p).remaining for p in (a, b, c)] == [3, 4, 5]


def test_a_message_is_refunded_once_however_often_it_is_named() -> None:
    """Another call, another number of segments, a year later: what was refunded stays refunded once."""
    ledger = Ledger()
    ledger.grant(10)
    payment = ledger.charge(8)
    assert ledger.status(payment, ("m1", 2)) == 2
    assert ledger.status(payment, ("m1", 2)) == 0
    ledger.advance(timedelta(days=400))
    assert ledger.status(payment, ("m1", 5), ("m2", 1)) == 1
    assert ledger.refund(payment, "m1").segments == 2
    assert ledger.figures() == (5, 0, 5)


def test_the_same_message_of_two_payments_is_refunded_for_each() -> None:
    """Once per message of a payment: a message that was paid twice and failed twice gets both back."""
    ledger = Ledger()
    ledger.grant(10)
    first, second = ledger.charge(2), ledger.charge(2)
    assert ledger.status(first, ("m1", 2)) == 2
    assert ledger.status(second, ("m1", 2)) == 2
    assert ledger.figures() == (10, 0, 10)


def test_more_than_was_paid_is_not_refunded() -> None:
    """A status that names too much is refused whole; what is named again does not count."""
    ledger = Ledger()
    ledger.grant(10)
    payment = ledger.charge(4)
    refusal = ledger.refused(lambda: ledger.status(payment, ("m1", 2), ("m2", 3)), "REFUND_EXCEEDS_PAYMENT")
    assert refusal.metadata == {"requested": "5", "refundable": "4"}
    ledger.status(payment, ("m1", 3))
    assert ledger.status(payment, ("m1", 3), ("m2", 1)) == 1
    ledger.refused(lambda: ledger.status(payment, ("m3", 1)), "REFUND_EXCEEDS_PAYMENT")
    assert ledger.status(payment, ("m1", 3)) == 0


def test_a_late_status_finds_the_refunds_of_an_earlier_one() -> None:
    """A status without failures after one with failures, and a cumulative one, change nothing that was decided."""
    ledger = Ledger()
    ledger.grant(10)
    payment = ledger.charge(4)
    ledger.status(payment, ("m1", 1))
    assert ledger.status(payment) == 0
    assert ledger.payment(payment).status == PaymentStatus.PARTLY_REFUNDED
    assert ledger.status(payment, ("m1", 1), ("m2", 3)) == 3
    assert ledger.status(payment) == 0
    assert ledger.payment(payment).status == PaymentStatus.REFUNDED


def test_an_unknown_payment_is_not_found() -> None:
    """Also another brand's."""
    ledger = Ledger()
    ledger.refused(lambda: ledger.status("nowhere"), "PAYMENT_NOT_FOUND", NOT_FOUND)
    ledger.refused(lambda: ledger.receipt("nowhere", "m", 1, "delivered"), "PAYMENT_NOT_FOUND", NOT_FOUND)


def test_a_refund_can_be_frozen_at_once_and_expires_with_its_package() -> None:
    """What comes back in time is as good as new, until the package's own end."""
    ledger = Ledger()
    package = ledger.grant(5, DAY)
    payment = ledger.charge(5)
    ledger.advance(HOUR)
    ledger.status(payment, ("m1", 3))
    assert ledger.available() == 3
    ledger.freeze(1, ttl=HOUR)
    ledger.advance(DAY)
    assert ledger.figures() == (0, 0, 0)
    ledger.book_due()
    assert (ledger.package(package).expired, ledger.package(package).refunded) == (3, 3)


# Refunds to a package that has expired.


def _failed_after_the_end(ledger: Ledger) -> tuple[int, str]:
    """A package of 10 for marketing, all paid, an hour past its end; the payment."""
    package = ledger.grant(10, DAY, (MARKETING,))
    payment = ledger.charge(10)
    ledger.advance(DAY + HOUR)
    return package, payment


def test_a_refund_to_an_expired_package_becomes_a_package_of_its_own() -> None:
    """It pays the same types and ends 30 days after the original's end, not after the refund."""
    ledger = Ledger()
    origin, payment = _failed_after_the_end(ledger)
    assert ledger.status(payment, ("m1", 4)) == 4
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    assert (refunds.source, refunds.source_no, refunds.granted) == (PackageSource.REFUND, payment, 4)
    assert refunds.sms_types == (MARKETING,)
    assert refunds.expires_at == ledger.now - HOUR + 30 * DAY
    assert ledger.refund(payment, "m1").targets == [refunds.package_id]
    assert ledger.package(origin).remaining == 0
    assert (ledger.available(MARKETING), ledger.available(VERIFICATION)) == (4, 0)


def test_a_refund_at_exactly_the_end_finds_the_package_expired() -> None:
    """Half-open: just before it goes back, at the end it does not."""
    ledger = Ledger()
    origin = ledger.grant(10, DAY)
    payment = ledger.charge(10)
    ledger.advance(DAY - TICK)
    ledger.status(payment, ("m1", 4))
    assert ledger.refund(payment, "m1").targets == [origin]
    ledger.advance(TICK)
    ledger.status(payment, ("m2", 1))
    assert ledger.refund(payment, "m2").targets != [origin]
    assert ledger.package(origin).expired == 4


def test_later_refunds_of_the_grace_join_the_same_package() -> None:
    """One package takes the refunds of an expired one, its end unmoved, whichever payments they come from."""
    ledger = Ledger()
    origin = ledger.grant(10, DAY)
    first, second = ledger.charge(5), ledger.charge(5)
    ledger.advance(DAY)
    ledger.status(first, ("m1", 2))
    before = ledger.refund_package(origin)
    assert before is not None
    end = before.expires_at
    ledger.advance(29 * DAY)
    ledger.status(second, ("m1", 3), ("m2", 1))
    after = ledger.refund_package(origin)
    assert after is not None
    assert (after.package_id, after.granted, after.remaining, after.expires_at) == (before.package_id, 6, 6, end)


@pytest.mark.parametrize(("before", "after"), [("UTC", "Europe/Berlin"), ("Europe/Berlin", "UTC")])
def test_the_first_refund_settles_the_end_of_the_grace(before: str, after: str) -> None:
    """A time zone that changes later moves it neither forward nor back, though its days would end at another hour."""
    start = datetime(2024, 3, 1, 12, tzinfo=UTC)  # Berlin's clocks change before the grace ends
    ledger = Ledger(now=start, time_zone=before)
    origin = ledger.grant(10, start + DAY)
    payment = ledger.charge(10)
    ledger.advance(2 * DAY)
    ledger.status(payment, ("m1", 4))
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    assert refunds.expires_at is not None
    end = refunds.expires_at
    ledger.put_brand(time_zone=after)
    ledger.advance(end - TICK - ledger.now)
    ledger.status(payment, ("m2", 1))
    assert ledger.refund(payment, "m2").targets == [refunds.package_id]
    assert ledger.available() == 5
    ledger.advance(TICK)
    ledger.status(payment, ("m3", 2))
    assert ledger.refund(payment, "m3").targets == [None]
    assert ledger.figures() == (0, 0, 0)


def test_a_refund_joins_its_package_though_that_was_spent() -> None:
    """A refund package with nothing left is still the one."""
    ledger = Ledger()
    origin, payment = _failed_after_the_end(ledger)
    ledger.status(payment, ("m1", 4))
    ledger.charge(4)
    ledger.advance(SECOND)
    ledger.status(payment, ("m2", 2))
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    assert (refunds.granted, refunds.paid, refunds.remaining) == (6, 4, 2)
    assert ledger.available() == 2


def test_after_the_grace_a_refund_is_booked_as_expired() -> None:
    """From 30 days after the end on, exactly, refunded and lost are booked at once on the original package."""
    ledger = Ledger()
    origin = ledger.grant(10, DAY)
    payment = ledger.charge(10)
    ledger.advance(31 * DAY - TICK)
    ledger.status(payment, ("m1", 2))
    assert ledger.available() == 2
    ledger.advance(TICK)
    assert ledger.figures() == (0, 0, 0)
    assert ledger.status(payment, ("m2", 3)) == 3
    assert ledger.refund(payment, "m2").targets == [None]
    assert (ledger.package(origin).refunded, ledger.package(origin).expired) == (3, 3)
    assert ledger.figures() == (0, 0, 0)
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    assert (refunds.granted, refunds.expired) == (2, 2)


def test_without_grace_a_refund_to_an_expired_package_expires_at_once() -> None:
    """Grace 0: no refund packages at all."""
    ledger = Ledger(terms=Terms(refund_grace_days=0))
    origin, payment = _failed_after_the_end(ledger)
    assert ledger.status(payment, ("m1", 4)) == 4
    assert ledger.refund_package(origin) is None
    assert ledger.refund(payment, "m1").targets == [None]
    assert ledger.package(origin).expired == 4


def test_refunds_of_a_refund_package_never_prolong() -> None:
    """What was paid out of a refund package and fails after its end is lost: failing on purpose wins no time."""
    ledger = Ledger()
    origin, payment = _failed_after_the_end(ledger)
    ledger.status(payment, ("m1", 4))
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    again = ledger.charge(4)
    in_time, late = again, again
    ledger.advance(28 * DAY)
    assert ledger.status(in_time, ("m1", 1)) == 1
    assert ledger.package(refunds.package_id).remaining == 1
    ledger.advance(10 * DAY)
    assert ledger.status(late, ("m2", 3)) == 3
    assert ledger.refund_package(refunds.package_id) is None
    assert ledger.package(refunds.package_id).expired == 4
    assert ledger.figures() == (0, 0, 0)


def test_one_refund_can_go_to_a_living_and_to_an_expired_package() -> None:
    """Each line has its own fate: last line first, back into the living, into a refund package for the ended."""
    ledger = Ledger()
    ended, living = ledger.grant(5, DAY), ledger.grant(5)
    payment = ledger.charge(10)
    ledger.advance(2 * DAY)
    assert ledger.status(payment, ("m1", 7)) == 7
    refunds = ledger.refund_package(ended)
    assert refunds is not None
    refund = ledger.refund(payment, "m1")
    assert (refund.lines, refund.targets) == ([(living, 5), (ended, 2)], [living, refunds.package_id])
    assert (ledger.package(living).remaining, refunds.remaining) == (5, 2)


def test_the_grace_counts_days_of_the_brands_calendar() -> None:
    """30 days later by the brand's clock: a change to summer time in between takes an hour off."""
    start = datetime(2024, 3, 1, 12, tzinfo=UTC)
    ledger = Ledger(now=start, time_zone="Europe/Berlin")
    origin = ledger.grant(10, start + DAY)  # 2 March 13:00 in Berlin
    payment = ledger.charge(10)
    ledger.advance(2 * DAY)
    ledger.status(payment, ("m1", 4))
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    assert refunds.expires_at == datetime(2024, 4, 1, 11, tzinfo=UTC)  # 1 April 13:00 in Berlin


# Receipts.


@pytest.mark.parametrize(
    ("state", "setting", "refunded"),
    [
        ("delivered", True, 0),
        ("pending", True, 0),
        ("undelivered", True, 2),
        ("expired", True, 2),
        ("undelivered", False, 0),
        ("expired", False, 0),
    ],
)
def test_a_final_failure_refunds_where_the_brand_wants_it(state: str, setting: bool, refunded: int) -> None:
    """Only final failures, and only with the setting on; every receipt is recorded."""
    ledger = Ledger(refund_undelivered=setting)
    ledger.grant(10)
    payment = ledger.charge(6)
    ledger.status(payment)
    assert ledger.receipt(payment, "m1", 2, state, "WORD") == refunded
    receipt = ledger.recorded_receipt(payment, "m1")
    assert (receipt.segments, receipt.carrier_code, receipt.house_loss) == (2, "WORD", 0)
    assert ledger.figures() == (4 + refunded, 0, 4 + refunded)
    if refunded:
        assert ledger.refund(payment, "m1").cause == RefundCause.UNDELIVERED
    else:
        assert not ledger.tables.refunds


def test_a_receipt_refunds_once() -> None:
    """Doubled, repeated with another final state, or with other segments: one refund."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    payment = ledger.charge(6)
    assert [ledger.receipt(payment, "m1", n, state) for n, state in ((2, "undelivered"), (2, "undelivered"))] == [2, 0]
    assert ledger.receipt(payment, "m1", 1, "expired") == 0
    assert ledger.recorded_receipt(payment, "m1").state == ReceiptState.UNDELIVERED
    assert ledger.figures() == (6, 0, 6)


def test_a_pending_receipt_gives_way_to_a_final_one_only() -> None:
    """The record follows the message: pending, then final; another pending one changes nothing, early or late."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    payment = ledger.charge(6)
    ledger.receipt(payment, "m1", 1, "pending", "ACCEPTD")
    ledger.receipt(payment, "m1", 2, "pending", "ENROUTE")
    pending = ledger.recorded_receipt(payment, "m1")
    assert (pending.segments, pending.carrier_code) == (1, "ACCEPTD")
    assert ledger.receipt(payment, "m1", 1, "undelivered") == 1
    ledger.receipt(payment, "m1", 1, "pending")
    assert ledger.recorded_receipt(payment, "m1").state == ReceiptState.UNDELIVERED


def test_a_delivery_after_a_refund_is_the_houses_loss() -> None:
    """The brand is not charged again; the loss is on record."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    payment = ledger.charge(6)
    ledger.receipt(payment, "m1", 2, "undelivered")
    assert ledger.receipt(payment, "m1", 2, "delivered", "DELIVRD") == 0
    receipt = ledger.recorded_receipt(payment, "m1")
    assert (receipt.state, receipt.house_loss, receipt.carrier_code) == (ReceiptState.DELIVERED, 2, "DELIVRD")
    assert ledger.figures() == (6, 0, 6)
    ledger.receipt(payment, "m1", 1, "delivered", "AGAIN")
    assert ledger.recorded_receipt(payment, "m1") == receipt


def test_a_doubled_receipt_does_not_refund_after_a_change_of_the_setting() -> None:
    """The first final receipt has decided; the same news once more decides nothing."""
    ledger = Ledger(refund_undelivered=False)
    ledger.grant(10)
    payment = ledger.charge(6)
    ledger.receipt(payment, "m1", 2, "undelivered")
    ledger.put_brand(refund_undelivered=True)
    assert ledger.receipt(payment, "m1", 2, "undelivered") == 0
    assert ledger.figures() == (4, 0, 4)


def test_what_was_delivered_is_not_refunded_by_a_later_receipt() -> None:
    """A carrier that changes its mind does not undo a delivery."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    payment = ledger.charge(6)
    ledger.receipt(payment, "m1", 2, "delivered")
    assert ledger.receipt(payment, "m1", 2, "undelivered") == 0
    assert ledger.recorded_receipt(payment, "m1").state == ReceiptState.DELIVERED
    assert ledger.figures() == (4, 0, 4)


def test_a_receipt_cannot_refund_more_than_was_paid() -> None:
    """Refused whole, and not recorded either: it is about something else than this payment."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    payment = ledger.charge(3)
    ledger.status(payment, ("m1", 2))
    ledger.refused(lambda: ledger.receipt(payment, "m2", 2, "undelivered"), "REFUND_EXCEEDS_PAYMENT")
    assert ledger.receipt(payment, "m2", 1, "undelivered") == 1


@pytest.mark.parametrize("setting", [True, False])
@pytest.mark.parametrize("receipt", ["delivered", "undelivered", "expired", "pending"])
def test_status_and_receipt_may_come_in_either_order(setting: bool, receipt: str) -> None:
    """A failed status and a receipt of the same message: same balance, same loss, whichever comes first or twice."""
    ends = []
    for order in itertools.permutations(["status", "receipt", "status again", "receipt again"]):
        ledger = Ledger(refund_undelivered=setting)
        ledger.grant(10)
        payment = ledger.charge(6)
        for step in order:
            if step.startswith("status"):
                ledger.status(payment, ("m1", 2))
            else:
                ledger.receipt(payment, "m1", 2, receipt)
        recorded = ledger.recorded_receipt(payment, "m1")
        ends.append((ledger.figures(), ledger.payment(payment).refunded, recorded.state, recorded.house_loss))
    loss = 2 if receipt == "delivered" else 0
    assert set(ends) == {((6, 0, 6), 2, recorded.state, loss)}


def test_a_receipt_before_the_status_keeps_the_refunds_mark() -> None:
    """A clean status after a refund by receipt leaves the payment partly refunded, not merely sent."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    payment = ledger.charge(6)
    ledger.receipt(payment, "m1", 2, "undelivered")
    assert ledger.status(payment) == 0
    assert ledger.payment(payment).status == PaymentStatus.PARTLY_REFUNDED


def test_a_receipts_refund_to_an_expired_package_follows_the_same_rule() -> None:
    """Refund package in the grace, expired after it, as for a failed status."""
    ledger = Ledger(refund_undelivered=True)
    origin, payment = _failed_after_the_end(ledger)
    assert ledger.receipt(payment, "m1", 2, "expired") == 2
    refunds = ledger.refund_package(origin)
    assert refunds is not None
    assert refunds.remaining == 2
    ledger.advance(30 * DAY)
    assert ledger.receipt(payment, "m2", 1, "undelivered") == 1
    assert ledger.package(origin).expired == 1
    kinds = [EntryKind(entry.kind) for entry in ledger.tables.entries]
    assert kinds.count(EntryKind.EXPIRE_BACK) == 1
