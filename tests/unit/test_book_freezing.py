"""Freezing, paying, releasing and extending, on the rules alone. `Ledger` checks the invariants after every step."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from ledger_book import (
    BRAND,
    DAY,
    HOUR,
    MARKETING,
    MINUTE,
    NOTIFICATION,
    SECOND,
    TICK,
    VERIFICATION,
    Ledger,
)

from costcenter.book import Terms
from costcenter.model import BrandStatus, PaymentStatus
from costcenter.operations import AdjustReply, FreezeReply, FreezeSegments, Grant, Pay, PayReply
from infra.errors import Refusal

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT


# Burn-down order and types.


def test_the_soonest_expiry_pays_first_and_never_last() -> None:
    """Order of expiry decides, not order of purchase; a package without an end comes last."""
    ledger = Ledger()
    never, late, soon = ledger.grant(10), ledger.grant(10, 30 * DAY), ledger.grant(10, DAY)
    order = ledger.freeze(25)
    assert ledger.frozen(order).lines == [(soon, 10), (late, 10), (never, 5)]


def test_of_equal_expiry_the_oldest_pays_first() -> None:
    """Same end, or none: the package bought first."""
    ledger = Ledger()
    end = ledger.now + DAY
    unending = [ledger.grant(5), ledger.grant(5)]
    ending = [ledger.grant(5, end), ledger.grant(5, end)]
    order = ledger.freeze(18)
    assert ledger.frozen(order).lines == [(ending[0], 5), (ending[1], 5), (unending[0], 5), (unending[1], 3)]


def test_a_package_bought_later_with_a_sooner_end_goes_before() -> None:
    """The place in the queue is found anew with every purchase, also within one transaction."""
    ledger = Ledger()
    late = ledger.grant(10, 20 * DAY)
    ledger.freeze(4)
    soon = ledger.grant(3, DAY)
    assert ledger.frozen(ledger.freeze(5)).lines == [(soon, 3), (late, 2)]
    granted, frozen = ledger.group(
        Grant(BRAND, "grant", b"", "author", "reason", 3, ledger.now + HOUR, ()),
        FreezeSegments(BRAND, "freeze", b"", MARKETING, 4, None),
    )
    assert isinstance(granted, AdjustReply)
    assert isinstance(frozen, FreezeReply)
    assert ledger.frozen(frozen.order_no).lines == [(granted.package_id, 3), (late, 1)]


def test_a_freeze_skips_what_is_held_and_what_is_spent() -> None:
    """Only what is neither held nor gone can be taken, and a package that gives nothing has no line."""
    ledger = Ledger()
    first, second, third = ledger.grant(5, DAY), ledger.grant(5, 2 * DAY), ledger.grant(5, 3 * DAY)
    ledger.charge(5)
    ledger.freeze(3)
    assert (ledger.package(first).remaining, ledger.package(second).held) == (0, 3)
    assert ledger.frozen(ledger.freeze(4)).lines == [(second, 2), (third, 2)]


def test_a_package_pays_only_its_types() -> None:
    """A package limited to types is passed over by the others, wherever it stands in the queue."""
    ledger = Ledger()
    codes = ledger.grant(10, DAY, (VERIFICATION,))
    both = ledger.grant(10, 2 * DAY, (NOTIFICATION, VERIFICATION))
    any_type = ledger.grant(10, 3 * DAY)
    assert [ledger.available(t) for t in (VERIFICATION, NOTIFICATION, MARKETING, None)] == [30, 20, 10, 30]
    assert ledger.frozen(ledger.freeze(4, MARKETING)).lines == [(any_type, 4)]
    assert ledger.frozen(ledger.freeze(12, NOTIFICATION)).lines == [(both, 10), (any_type, 2)]
    assert ledger.frozen(ledger.freeze(14, VERIFICATION)).lines == [(codes, 10), (any_type, 4)]


def test_packages_of_other_types_are_no_balance() -> None:
    """A refusal counts what the type could have had, not the brand's whole balance."""
    ledger = Ledger()
    ledger.grant(100, None, (VERIFICATION,))
    ledger.grant(3)
    refusal = ledger.refused(lambda: ledger.freeze(4, MARKETING), "INSUFFICIENT_BALANCE")
    assert refusal.metadata == {"requested": "4", "available": "3"}


# All or nothing.


def test_all_segments_or_none() -> None:
    """One segment too few refuses the whole freeze; exactly enough succeeds and leaves nothing available."""
    ledger = Ledger()
    ledger.grant(6, DAY)
    ledger.grant(4)
    refusal = ledger.refused(lambda: ledger.freeze(11), "INSUFFICIENT_BALANCE")
    assert refusal.metadata == {"requested": "11", "available": "10"}
    ledger.freeze(10)
    assert ledger.figures() == (10, 10, 0)
    ledger.refused(lambda: ledger.freeze(1), "INSUFFICIENT_BALANCE")


def test_freezes_of_one_group_see_each_other() -> None:
    """60, 60 and 30 on 100 in one transaction: yes, no, yes, as if one after another."""
    ledger = Ledger()
    ledger.grant(100)
    outcomes = ledger.group(*[FreezeSegments(BRAND, f"r{n}", b"", MARKETING, n, None) for n in (60, 61, 30)])
    assert [isinstance(outcome, FreezeReply) for outcome in outcomes] == [True, False, True]
    assert ledger.figures() == (100, 90, 10)


def test_brands_do_not_share() -> None:
    """A brand freezes and pays its own packages only, also in one group, and knows nobody else's numbers."""
    ledger = Ledger()
    ledger.put_brand(8, name="Other")
    ledger.grant(10)
    ledger.grant(20, brand_id=8)
    order = ledger.freeze(10)
    ledger.refused(lambda: ledger.freeze(1), "INSUFFICIENT_BALANCE")
    ledger.refused(lambda: ledger.pay(order, 1, brand_id=8), "FREEZE_NOT_FOUND", NOT_FOUND)
    outcomes = ledger.group(
        FreezeSegments(8, "a", b"", MARKETING, 20, None), Pay(8, "b", b"", order, 1), Pay(BRAND, "c", b"", order, 1)
    )
    assert isinstance(outcomes[0], FreezeReply)
    assert isinstance(outcomes[1], Refusal)
    assert outcomes[1].reason == "FREEZE_NOT_FOUND"
    assert isinstance(outcomes[2], PayReply)


# Half-open intervals and time to live.


def test_a_package_can_be_frozen_until_just_before_its_end() -> None:
    """At `expires_at` itself it is over, swept or not."""
    ledger = Ledger()
    ledger.grant(10, HOUR)
    ledger.advance(HOUR - TICK)
    ledger.freeze(1)
    assert ledger.figures() == (10, 1, 9)
    ledger.advance(TICK)
    assert ledger.available() == 0
    ledger.refused(lambda: ledger.freeze(1), "INSUFFICIENT_BALANCE")


def test_the_time_to_live_is_a_day_unless_the_call_says() -> None:
    """24 hours by default, to the microsecond what the call asks otherwise."""
    ledger = Ledger()
    ledger.grant(10)
    assert ledger.frozen(ledger.freeze(1)).expires_at == ledger.now + timedelta(hours=24)
    assert ledger.frozen(ledger.freeze(1, ttl=TICK)).expires_at == ledger.now + TICK
    assert ledger.frozen(ledger.freeze(1, ttl=7 * DAY)).expires_at == ledger.now + 7 * DAY


def test_a_time_to_live_of_more_than_seven_days_is_refused() -> None:
    """The bound is inclusive, and the refusal names the field."""
    ledger = Ledger()
    ledger.grant(10)
    refusal = ledger.refused(lambda: ledger.freeze(1, ttl=7 * DAY + TICK), "TIME_TO_LIVE_TOO_LONG", INVALID)
    assert "time_to_live" in refusal.fields
    assert refusal.metadata == {"seconds_max": str(7 * 86_400)}


def test_the_terms_set_the_times_to_live() -> None:
    """Default and longest time to live are settings."""
    ledger = Ledger(terms=Terms(time_to_live_default=HOUR, time_to_live_max=2 * HOUR))
    ledger.grant(10)
    order = ledger.freeze(1)
    assert ledger.frozen(order).expires_at == ledger.now + HOUR
    ledger.refused(lambda: ledger.freeze(1, ttl=3 * HOUR), "TIME_TO_LIVE_TOO_LONG", INVALID)
    ledger.refused(lambda: ledger.extend(order, 2 * HOUR + TICK), "TIME_TO_LIVE_TOO_LONG", INVALID)


def test_a_freeze_that_nobody_settles_ends_by_itself() -> None:
    """At its end, not before, all that is open goes back and can be frozen again."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(10, ttl=HOUR)
    ledger.pay(order, 4)
    ledger.advance(HOUR - TICK)
    ledger.refused(lambda: ledger.freeze(1), "INSUFFICIENT_BALANCE")
    ledger.advance(TICK)
    assert ledger.figures() == (6, 0, 6)
    ledger.freeze(6)
    assert (ledger.frozen(order).timed_out, ledger.frozen(order).open) == (6, 0)


def test_what_is_held_stays_payable_after_the_package_ended() -> None:
    """A package's end takes what is not held; the freeze goes on paying with the rest."""
    ledger = Ledger()
    package = ledger.grant(10, HOUR)
    order = ledger.freeze(6)
    ledger.advance(HOUR)
    assert ledger.figures() == (6, 6, 0)
    ledger.pay(order, 6)
    assert (ledger.package(package).paid, ledger.package(package).expired) == (6, 4)


# Pay.


def test_a_freeze_is_paid_whole() -> None:
    """Total and frozen fall, the package has it as paid, nothing is open."""
    ledger = Ledger()
    package = ledger.grant(10)
    order = ledger.freeze(4)
    assert ledger.figures() == (10, 4, 6)
    payment = ledger.payment(ledger.pay(order, 4))
    assert (payment.order_no, payment.segments, payment.lines) == (order, 4, [(package, 4)])
    assert payment.status == PaymentStatus.PAID
    assert ledger.figures() == (6, 0, 6)
    ledger.refused(lambda: ledger.pay(order, 1), "FREEZE_INSUFFICIENT")


def test_parts_are_paid_from_the_lines_in_order() -> None:
    """Each part goes on where the one before stopped, across the borders of lines."""
    ledger = Ledger()
    a, b, c = ledger.grant(3, DAY), ledger.grant(4, 2 * DAY), ledger.grant(2, 3 * DAY)
    order = ledger.freeze(9)
    parts = [ledger.payment(ledger.pay(order, n)).lines for n in (2, 3, 1, 3)]
    assert parts == [[(a, 2)], [(a, 1), (b, 2)], [(b, 1)], [(b, 1), (c, 2)]]


def test_the_reply_tells_what_is_still_open() -> None:
    """`open` counts down, releases included."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(10)
    assert ledger.apply(Pay(BRAND, "a", b"", order, 3), PayReply).open == 7
    ledger.release(order, 2)
    assert ledger.apply(Pay(BRAND, "b", b"", order, 5), PayReply).open == 0


def test_more_than_is_open_is_refused_whole() -> None:
    """Nothing is paid of a payment that asks for one too many, and the refusal has the figures."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(5)
    ledger.pay(order, 2)
    refusal = ledger.refused(lambda: ledger.pay(order, 4), "FREEZE_INSUFFICIENT")
    assert refusal.metadata == {"requested": "4", "open": "3"}
    ledger.release(order, 1)
    ledger.refused(lambda: ledger.pay(order, 3), "FREEZE_INSUFFICIENT")
    ledger.pay(order, 2)


def test_a_freeze_cannot_be_paid_at_its_end() -> None:
    """Payable until just before `expires_at`; from then on FREEZE_EXPIRED, also when all was settled before."""
    ledger = Ledger()
    ledger.grant(10)
    order, settled = ledger.freeze(5, ttl=HOUR), ledger.freeze(2, ttl=HOUR)
    ledger.pay(settled, 2)
    end = ledger.frozen(order).expires_at
    ledger.advance(HOUR - TICK)
    ledger.pay(order, 1)
    ledger.advance(TICK)
    refusal = ledger.refused(lambda: ledger.pay(order, 1), "FREEZE_EXPIRED")
    assert refusal.metadata == {"expires_at": end.isoformat()}
    ledger.refused(lambda: ledger.pay(settled, 1), "FREEZE_EXPIRED")
    assert ledger.figures() == (7, 0, 7)


def test_an_unknown_freeze_is_not_found() -> None:
    """Pay, release and extend name what is missing."""
    ledger = Ledger()
    ledger.refused(lambda: ledger.pay("nowhere", 1), "FREEZE_NOT_FOUND", NOT_FOUND)
    ledger.refused(lambda: ledger.request_release("nowhere"), "FREEZE_NOT_FOUND", NOT_FOUND)
    ledger.refused(lambda: ledger.extend("nowhere", HOUR), "FREEZE_NOT_FOUND", NOT_FOUND)


def test_an_unknown_brand_is_not_found() -> None:
    """No brand, no state: nothing is made on the way."""
    ledger = Ledger()
    ledger.refused(lambda: ledger.freeze(1, brand_id=99), "BRAND_NOT_FOUND", NOT_FOUND)
    assert set(ledger.tables.brands) == {BRAND}


# Release.


def test_a_release_gives_back_the_last_line_first() -> None:
    """What is given back comes from the end, so payments go on in order."""
    ledger = Ledger()
    a, b, c = ledger.grant(3, DAY), ledger.grant(4, 2 * DAY), ledger.grant(2, 3 * DAY)
    order = ledger.freeze(9)
    assert ledger.release(order, 3) == 3
    assert [ledger.package(p).held for p in (a, b, c)] == [3, 3, 0]
    assert ledger.release(order, 4) == 4
    assert [ledger.package(p).held for p in (a, b, c)] == [2, 0, 0]
    assert ledger.payment(ledger.pay(order, 2)).lines == [(a, 2)]


def test_a_release_of_zero_gives_back_all_that_is_open_when_applied() -> None:
    """What was paid between request and application stays paid."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(8)
    release = ledger.request_release(order)
    ledger.pay(order, 3)
    assert ledger.apply_release(release) == 5
    assert ledger.figures() == (7, 0, 7)
    assert ledger.frozen(order).released == 5


def test_a_release_leaves_alone_what_is_not_open_any_more() -> None:
    """Asked for more than is open by then, it gives back what is open."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(8)
    release = ledger.request_release(order, 6)
    ledger.pay(order, 5)
    assert ledger.apply_release(release) == 3


def test_the_request_alone_gives_nothing_back() -> None:
    """It is a durable record; the consumer applies it, once, however often it comes by."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(8)
    release = ledger.request_release(order, 2)
    assert ledger.figures() == (10, 8, 2)
    assert ledger.tables.releases[BRAND, release].applied_at is None
    ledger.advance(SECOND)
    assert ledger.apply_release(release) == 2
    assert ledger.apply_release(release) == 0
    stored = ledger.tables.releases[BRAND, release]
    assert (stored.released, stored.applied_at) == (2, ledger.now)
    assert ledger.figures() == (10, 6, 4)


def test_two_requests_are_two_releases() -> None:
    """Each request gives back its own part, the last one what is left."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(8)
    first, second, third = (ledger.request_release(order, 3) for _ in range(3))
    assert [ledger.apply_release(release) for release in (second, third, first)] == [3, 3, 2]


def test_a_release_after_the_freeze_ended_gives_back_nothing() -> None:
    """Time-out came first: each segment has one outcome. The request is done with all the same."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(8, ttl=HOUR)
    release = ledger.request_release(order)
    ledger.advance(HOUR)
    assert ledger.apply_release(release) == 0
    assert (ledger.frozen(order).released, ledger.frozen(order).timed_out) == (0, 8)
    assert ledger.tables.releases[BRAND, release].applied_at == ledger.now


def test_what_is_released_to_an_expired_package_expires_at_once() -> None:
    """It was only held; its package's time is over. Lines of other packages are spendable again."""
    ledger = Ledger()
    ended, going = ledger.grant(5, HOUR), ledger.grant(5)
    order = ledger.freeze(8)
    ledger.advance(HOUR)
    assert ledger.release(order, 5) == 5
    assert (ledger.package(ended).expired, ledger.package(ended).held) == (2, 3)
    assert ledger.package(going).available == 5
    assert ledger.figures() == (8, 3, 5)


def test_what_times_out_into_an_expired_package_expires_at_once() -> None:
    """The same at the freeze's own end, also when both ends are one moment."""
    ledger = Ledger()
    package, twin = ledger.grant(5, HOUR), ledger.grant(5, 2 * HOUR)
    ledger.freeze(8, ttl=2 * HOUR)
    ledger.advance(2 * HOUR)
    assert ledger.figures() == (0, 0, 0)
    ledger.book_due()
    assert [ledger.package(p).expired for p in (package, twin)] == [5, 5]


# Extend.


def test_an_extension_counts_from_now_and_never_shortens() -> None:
    """A shorter time to live than is left changes nothing."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(5, ttl=HOUR)
    ledger.advance(30 * MINUTE)
    assert ledger.extend(order, 10 * MINUTE) == ledger.now + 30 * MINUTE
    assert ledger.extend(order, HOUR) == ledger.now + HOUR
    ledger.advance(45 * MINUTE)
    ledger.pay(order, 5)


def test_an_extension_moves_the_end_for_good() -> None:
    """The old end passes without effect, the new one ends the freeze."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(5, ttl=HOUR)
    ledger.extend(order, 3 * HOUR)
    ledger.advance(2 * HOUR)
    assert ledger.figures() == (10, 5, 5)
    assert ledger.book_due().freezes_ended == 0
    ledger.advance(HOUR)
    assert ledger.figures() == (10, 0, 10)


def test_an_extension_ends_seven_days_after_the_creation_at_most() -> None:
    """The bound counts from the freeze's creation, not from now, and is inclusive."""
    ledger = Ledger()
    ledger.grant(10)
    order = ledger.freeze(5)
    created = ledger.now
    ledger.advance(10 * HOUR)
    ledger.refused(lambda: ledger.extend(order, 7 * DAY - 10 * HOUR + TICK), "TIME_TO_LIVE_TOO_LONG", INVALID)
    assert ledger.extend(order, 7 * DAY - 10 * HOUR) == created + 7 * DAY


def test_an_ended_or_settled_freeze_is_not_extended() -> None:
    """What is over stays over."""
    ledger = Ledger()
    ledger.grant(10)
    settled, ended = ledger.freeze(2), ledger.freeze(3, ttl=HOUR)
    ledger.pay(settled, 1)
    ledger.release(settled)
    ledger.refused(lambda: ledger.extend(settled, HOUR), "FREEZE_SETTLED")
    ledger.advance(HOUR)
    ledger.refused(lambda: ledger.extend(ended, HOUR), "FREEZE_EXPIRED")


# Suspended and closed brands.


@pytest.mark.parametrize(
    ("status", "reason"), [(BrandStatus.SUSPENDED, "BRAND_SUSPENDED"), (BrandStatus.CLOSED, "BRAND_CLOSED")]
)
def test_a_brand_that_may_not_send_settles_what_it_began(status: BrandStatus, reason: str) -> None:
    """No new freezes, whatever the balance; open ones are paid, released and refunded as ever."""
    ledger = Ledger(refund_undelivered=True)
    ledger.grant(10)
    order = ledger.freeze(8)
    ledger.put_brand(status=status)
    ledger.refused(lambda: ledger.freeze(1), reason)
    payment = ledger.pay(order, 5)
    assert ledger.extend(order, 2 * DAY) == ledger.now + 2 * DAY
    assert ledger.release(order, 2) == 2
    assert ledger.status(payment, ("m1", 1)) == 1
    assert ledger.receipt(payment, "m2", 1, "undelivered") == 1
    ledger.advance(2 * DAY)
    assert ledger.figures() == (7, 0, 7)


def test_a_suspended_brand_may_buy_and_be_active_again() -> None:
    """Suspension stops new freezes, nothing else, and ends."""
    ledger = Ledger()
    ledger.offer()
    ledger.put_brand(status=BrandStatus.SUSPENDED)
    ledger.order_paid(ledger.order().package_order_no)
    ledger.refused(lambda: ledger.freeze(1), "BRAND_SUSPENDED")
    ledger.put_brand(status=BrandStatus.ACTIVE)
    ledger.freeze(1_000)
