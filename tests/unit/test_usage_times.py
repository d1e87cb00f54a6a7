"""Aim: days and units of usage are those of the time zone, also where clocks change. Method: known days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from smsgateway.usage import Figures, Unit, day_of, units_between


@pytest.mark.parametrize(
    ("zone", "moment", "first", "hours"),
    [
        ("Asia/Shanghai", "2026-03-01T20:00", "2026-03-01T16:00", 24),
        ("Asia/Shanghai", "2026-03-01T16:00", "2026-03-01T16:00", 24),
        ("Asia/Shanghai", "2026-03-01T15:59", "2026-02-28T16:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", 25),
        ("Asia/Kolkata", "2026-03-01T20:00", "2026-03-01T18:30", 24),
    ],
)
def test_a_day_has_the_hours_of_its_zone(zone: str, moment: str, first: str, hours: int) -> None:
    """It begins at midnight there and ends where the next begins."""
    start, end = day_of(datetime.fromisoformat(moment).replace(tzinfo=UTC), zone)
    assert start == datetime.fromisoformat(first).replace(tzinfo=UTC)
    assert end - start == timedelta(hours=hours)


def test_a_time_has_so_many_units_at_most() -> None:
    """Counted generously: a bound must not let more rows through."""
    start = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    assert units_between(start, start + timedelta(hours=2), Unit.HOUR) == 3
    assert units_between(start, start + timedelta(days=31), Unit.DAY) == 32
    assert units_between(start, start + timedelta(days=365), Unit.MONTH) == 14


def test_what_waits_for_a_receipt_is_the_rest() -> None:
    """Messages less those of every other state."""
    figures = Figures(messages=20, waiting=1, unknown=2, delivered=3, undelivered=4, expired=1, failed=2, cancelled=2)
    assert figures.sent == 5
