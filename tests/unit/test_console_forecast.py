"""How long a balance lasts, as a pure function of packages, rate and time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from smsgateway.console.forecast import Stock, forecast, listed_forecast

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DAY = timedelta(days=1)


def at(days: float) -> datetime:
    """A moment so many days from now."""
    return NOW + days * DAY


@pytest.mark.parametrize(
    ("stocks", "spent", "days", "lost"),
    [
        # Nothing there; nothing spent; both.
        ([], 700, 0, 0),
        ([], 0, 0, 0),
        ([Stock(1_000, None)], 0, None, 0),
        ([Stock(1_000, at(5)), Stock(10, at(9))], 0, 9, 1_010),
        # A hundred a day.
        ([Stock(1_000, None)], 700, 10, 0),
        ([Stock(1_000, at(20))], 700, 10, 0),
        ([Stock(1_000, at(10))], 700, 10, 0),
        ([Stock(1_000, at(4))], 700, 4, 600),
        # Whatever their order, what ends first pays first; what it cannot use in time is lost.
        ([Stock(500, None), Stock(1_000, at(4))], 700, 9, 600),
        ([Stock(300, at(3)), Stock(300, at(6)), Stock(300, at(30))], 700, 9, 0),
        ([Stock(300, at(2)), Stock(300, at(4)), Stock(300, at(6))], 700, 6, 300),
        # Ended, or empty, is as if it were not there.
        ([Stock(1_000, NOW), Stock(1_000, at(-1)), Stock(0, None), Stock(100, None)], 700, 1, 0),
        # More came back than was spent: nothing is spent.
        ([Stock(1_000, None)], -5, None, 0),
        # For more than ten years is for ever.
        ([Stock(10**12, None)], 7, None, 0),
        ([Stock(10, at(100_000))], 0, None, 0),
    ],
)
def test_days_left(stocks: list[Stock], spent: int, days: float | None, lost: int) -> None:
    """The days until nothing is left, and what ends unspent by then."""
    found = forecast(NOW, stocks, spent)
    assert found.days == (None if days is None else pytest.approx(days))
    assert found.lost == lost


def test_the_curve_falls_to_nothing() -> None:
    """It starts with what is there, never rises, bends where packages end, and falls at once where some is lost."""
    found = forecast(NOW, [Stock(1_000, at(4)), Stock(500, None)], 700)
    assert found.points == ((NOW, 1_500), (at(4), 1_100), (at(4), 500), (at(9), 0))


def test_a_list_knows_the_next_end_alone() -> None:
    """What ends next is used first, never more of it than is there; the rest lasts."""
    assert listed_forecast(NOW, 1_000, 700).days == pytest.approx(10)
    assert listed_forecast(NOW, 1_000, 700, next_expiry=(at(2), 600)).days == pytest.approx(6)
    assert listed_forecast(NOW, 100, 700, next_expiry=(at(2), 600)).days == pytest.approx(1)
    assert listed_forecast(NOW, 0, 700).days == 0


def test_the_largest_figures_and_the_last_moments() -> None:
    """No overflow at what the ledger's columns and the calendar can hold."""
    last = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert forecast(NOW, [Stock(2**63 - 1, last)], 1).days is None
    assert forecast(NOW, [Stock(1, last)], 2**63 - 1).days == pytest.approx(0)
