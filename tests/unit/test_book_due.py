"""Due first: what became due is booked in its order and at its time, so late sweeps change no answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from ledger_book import BRAND, DAY, HOUR, MARKETING, MINUTE, SECOND, START, TICK, VERIFICATION, Ledger

from costcenter.model import EntryKind
from costcenter.operations import DueReply


def _entries(ledger: Ledger) -> list[tuple[EntryKind, int, int, timedelta]]:
    """(kind, package, segments, time since the start) of all but grants, in the order of their records."""
    return [
        (EntryKind(entry.kind), entry.package_id, entry.segments, entry.at - START)
        for entry in sorted(ledger.tables.entries, key=lambda entry: entry.record_no)
        if entry.kind != EntryKind.GRANT
    ]


def test_ends_are_booked_in_the_order_of_time() -> None:
    """A day's worth of ends found at once is booked as if each had been seen when it came."""
    ledger = Ledger()
    early, late = ledger.grant(10, 2 * HOUR), ledger.grant(10, 4 * HOUR)
    ledger.freeze(4, ttl=HOUR)  # ends before its package: goes back, then expires with it
    ledger.freeze(9, ttl=3 * HOUR)  # 6 of early, 3 of late; ends after early did
    ledger.advance(DAY)
    reply = ledger.book_due()
    assert (reply.packages_expired, reply.freezes_ended) == (2, 2)
    assert _entries(ledger) == [
        (EntryKind.TIME_OUT, early, 4, HOUR),
        (EntryKind.EXPIRE, early, 4, 2 * HOUR),
        (EntryKind.TIME_OUT, late, 3, 3 * HOUR),
        (EntryKind.TIME_OUT, early, 6, 3 * HOUR),
        (EntryKind.EXPIRE_BACK, early, 6, 3 * HOUR),
        (EntryKind.EXPIRE, late, 10, 4 * HOUR),
    ]


def test_late_bookings_say_when_it_happened_and_when_it_was_booked() -> None:
    """`at` is the end, `booked_at` the moment of the transaction; the history follows `at`."""
    ledger = Ledger()
    ledger.grant(10, HOUR)
    ledger.advance(DAY)
    ledger.book_due()
    (entry,) = (entry for entry in ledger.tables.entries if entry.kind == EntryKind.EXPIRE)
    assert (entry.at, entry.booked_at) == (START + HOUR, START + DAY)
    assert ledger.tables.points[BRAND, START + HOUR] == (0, 0)


def test_nothing_due_costs_nothing_and_says_so() -> None:
    """The stored lower bound keeps brands without ends out of it, and is never later than the soonest end."""
    ledger = Ledger()
    assert ledger.brand.next_due_at is None
    ledger.grant(10)
    assert ledger.brand.next_due_at is None
    ledger.grant(10, 3 * HOUR)
    assert ledger.brand.next_due_at == START + 3 * HOUR
    ledger.freeze(2, ttl=HOUR)
    assert ledger.brand.next_due_at == START + HOUR
    assert ledger.book_due() == DueReply(0, 0)
    ledger.advance(HOUR)
    ledger.book_due()
    assert ledger.brand.next_due_at == START + 3 * HOUR
    ledger.advance(2 * HOUR)
    ledger.book_due()
    assert ledger.brand.next_due_at is None


@pytest.mark.parametrize("back", ["release", "refund", "time-out"])
def test_what_comes_back_is_due_again(back: str) -> None:
    """A package that was held or paid whole has nothing due; what comes back must expire with it all the same."""
    ledger = Ledger()
    package = ledger.grant(10, 2 * HOUR)
    order = ledger.freeze(10, ttl=HOUR if back == "time-out" else 3 * HOUR)
    payment = ledger.pay(order, 10) if back == "refund" else ""
    _find_the_bound_anew(ledger)
    if back == "release":
        ledger.release(order)
    elif back == "refund":
        ledger.status(payment, ("m1", 10))
    ledger.advance(HOUR)
    ledger.book_due()
    assert ledger.figures() == (10, 0, 10)
    ledger.advance(HOUR)
    assert ledger.figures() == (0, 0, 0)
    ledger.book_due()
    assert ledger.package(package).expired == 10


def _find_the_bound_anew(ledger: Ledger) -> None:
    """Let something become due, so that the stored bound follows from what is there now."""
    ledger.grant(1, SECOND)
    ledger.advance(MINUTE)
    assert ledger.book_due().packages_expired == 1


def test_a_refund_package_expires_too() -> None:
    """Created or topped up, its end is noted."""
    ledger = Ledger()
    origin = ledger.grant(10, HOUR)
    payment = ledger.charge(10)
    ledger.advance(HOUR)
    ledger.status(payment, ("m1", 2))
    ledger.charge(2)
    _find_the_bound_anew(ledger)
    ledger.status(payment, ("m2", 3))
    ledger.advance(30 * DAY)
    assert ledger.figures() == (0, 0, 0)
    ledger.book_due()
    package = ledger.refund_package(origin)
    assert package is not None
    assert (package.granted, package.paid, package.expired) == (5, 2, 3)


def test_an_operation_sees_what_was_due_before_it() -> None:
    """A freeze that ended gives its segments to the next freeze in the same transaction, unswept."""
    ledger = Ledger()
    ledger.grant(10)
    ledger.freeze(10, ttl=HOUR)
    ledger.advance(HOUR)
    ledger.freeze(10)


def test_the_clock_never_runs_behind_the_last_record() -> None:
    """A clock that was set back: the brand's time stands still, records stay in order, nothing ends twice or anew."""
    ledger = Ledger()
    ledger.grant(10, 2 * HOUR)
    order = ledger.freeze(4, ttl=HOUR)
    ledger.advance(90 * MINUTE)
    ledger.pay(ledger.freeze(3), 3)  # books the first freeze's end
    last = ledger.brand.last_at
    ledger.advance(-DAY)
    late = ledger.grant(1, last + HOUR) if last else 0
    assert ledger.package(late).created_at == last
    ledger.refused(lambda: ledger.pay(order, 1), "FREEZE_EXPIRED")
    second = ledger.freeze(2)
    assert ledger.frozen(second).created_at == last
    assert ledger.release(second, 1) == 1
    assert ledger.figures() == (8, 1, 7)


def test_numbers_follow_time_though_the_clock_is_set_back() -> None:
    """Numbers sort by time: those made while the brand's time stands still do not sort before older ones."""
    ledger = Ledger()
    ledger.grant(10)
    first = ledger.freeze(1)
    ledger.advance(-DAY)
    assert ledger.freeze(1) > first


def test_a_moment_can_hold_many_records() -> None:
    """Records of one moment share one point of the history, the last."""
    ledger = Ledger()
    ledger.grant(10)
    ledger.pay(ledger.freeze(4), 3)
    assert list(ledger.tables.points.values()) == [(7, 1)]


# The same story, swept after every step or never.

Step = Callable[[Ledger, dict[str, Any]], Any]


def _story() -> list[tuple[timedelta, Step]]:
    """Steps with the time that passes before each; they remember numbers by name and return what they were told."""

    def remember(name: str, call: Callable[[Ledger, dict[str, Any]], Any]) -> Step:
        def step(ledger: Ledger, names: dict[str, Any]) -> Any:
            names[name] = call(ledger, names)
            return names[name]

        return step

    return [
        (SECOND, remember("p1", lambda b, n: b.grant(20, 5 * HOUR))),
        (SECOND, remember("p2", lambda b, n: b.grant(20, 10 * HOUR, (MARKETING, VERIFICATION)))),
        (SECOND, remember("f1", lambda b, n: b.freeze(15, ttl=2 * HOUR))),
        (SECOND, remember("f2", lambda b, n: b.freeze(12, ttl=8 * HOUR))),
        (SECOND, remember("y1", lambda b, n: b.pay(n["f1"], 6))),
        (HOUR, lambda b, n: b.extend(n["f1"], 90 * MINUTE)),
        (90 * MINUTE, lambda b, n: b.available()),
        (TICK, remember("f3", lambda b, n: b.freeze(5, VERIFICATION, 30 * MINUTE))),
        (3 * HOUR, remember("f4", lambda b, n: b.freeze(4))),
        (SECOND, lambda b, n: b.release(n["f2"], 6)),
        (SECOND, lambda b, n: b.status(n["y1"], ("m1", 2))),
        (SECOND, remember("y2", lambda b, n: b.pay(n["f2"], 3))),
        (3 * HOUR, lambda b, n: b.receipt(n["y2"], "m2", 1, "undelivered")),
        (SECOND, remember("y3", lambda b, n: b.pay(n["f4"], 4))),
        (2 * HOUR, lambda b, n: b.status(n["y3"], ("m3", 4))),
        (SECOND, remember("f5", lambda b, n: b.freeze(3))),
        (31 * DAY, lambda b, n: b.status(n["y1"], ("m4", 1))),
        (SECOND, lambda b, n: b.available()),
    ]


@pytest.mark.parametrize("every", [None, 37 * MINUTE, TICK])
def test_late_sweeps_change_no_answer(every: timedelta | None) -> None:
    """The same operations with sweeps before each and in between, or with none: same replies, figures and records."""
    runs = []
    for sweeps in (False, True):
        ledger = Ledger(sweeps=sweeps, refund_undelivered=True)
        names: dict[str, Any] = {}
        answers = []
        for wait, step in _story():
            due = ledger.now + wait
            if sweeps and every == TICK:
                # At the very moment of each end, and just before it.
                while (moment := ledger.brand.next_due_at) is not None and moment <= due:
                    ledger.now = max(ledger.now, moment - TICK)
                    ledger.book_due()
                    ledger.now = max(ledger.now, moment)
                    ledger.book_due()
            elif sweeps and every is not None:
                while ledger.now + every < due and due - ledger.now < DAY:
                    ledger.advance(every)
                    ledger.book_due()
            ledger.now = due
            answers.append((step(ledger, names), ledger.figures()))
        ledger.book_due()
        records = [(e.record_no, e.at, e.kind, e.package_id, e.segments, e.reference) for e in ledger.tables.entries]
        tables = ledger.tables
        runs.append((answers, records, tables.packages, tables.freezes, tables.payments, tables.refunds, tables.points))
    assert runs[0] == runs[1]


def test_sweeping_by_part_ends_the_same() -> None:
    """More ended freezes than one transaction books: parts up to a moment leave the rest due at once."""
    ledger = Ledger()
    package = ledger.grant(10, 150 * MINUTE)
    for hours in (1, 1, 2, 3):
        ledger.freeze(2, ttl=hours * HOUR)
    ledger.advance(DAY)
    for part in (HOUR, 2 * HOUR):
        book = ledger.load([])
        brand = ledger.brand
        book.add_brand(brand)
        book.add_packages(p for p in ledger.tables.packages.values() if p.remaining)
        book.sort_queues()
        ended = [f for f in ledger.tables.freezes.values() if f.open and f.expires_at <= START + part]
        book.add_freezes(ended)
        book.book_due(BRAND, START + part, START + part)
        assert brand.next_due_at == START + part
        ledger.tables.write(book.changes)
        ledger.check()
    reply = ledger.book_due()
    assert (reply.packages_expired, reply.freezes_ended) == (1, 1)
    assert ledger.package(package).expired == 10
    assert ledger.brand.next_due_at is None
