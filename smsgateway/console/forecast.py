"""How long a balance lasts: what is spent a day, and when which package ends. Pure; moments and figures come in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

RATE_DAYS: Final = 7
"""Days whose spending makes the rate: whole weeks, since weekends differ from working days."""

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_DAY: Final = timedelta(days=1)
# Beyond it "for years" says as much, and no moment overflows.
_HORIZON: Final = timedelta(days=3_650)


@dataclass(frozen=True, slots=True)
class Stock:
    """Segments that can be spent until a moment; None: for ever."""

    segments: int
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What becomes of a balance when spending goes on at one rate.

    Attributes:
        daily: segments spent a day.
        days: how long something is left; None: beyond ten years, or for ever.
        lost: segments that end unspent by then.
        points: (moment, segments left) where the curve bends or falls, from now on.
    """

    daily: float
    days: float | None
    lost: int
    points: tuple[tuple[datetime, int], ...]


def forecast(now: datetime, stocks: Iterable[Stock], spent: int, *, over_days: float = RATE_DAYS) -> Forecast:
    """Follow a balance through its packages in burn-down order: soonest end first, those without an end last.

    What types a package may pay is left aside: the rate is that of all types together, and so is the balance.

    Parameters: `spent` segments of the last `over_days` days, refunds taken off.
    """
    daily = max(0, spent) / over_days
    left = [stock for stock in stocks if stock.segments > 0 and (stock.expires_at is None or stock.expires_at > now)]
    left.sort(key=lambda stock: stock.expires_at or _NEVER)
    moment, total, lost = now, float(sum(stock.segments for stock in left)), 0.0
    horizon = now + _HORIZON
    points = [(now, round(total))]
    for stock in left:
        end = stock.expires_at or _NEVER
        empty_at = _after(moment, stock.segments / daily, horizon) if daily else _NEVER
        if min(end, empty_at) > horizon:
            return Forecast(daily, None, round(lost), tuple(points))
        if empty_at <= end:
            used, moment = float(stock.segments), empty_at
        else:
            used = min(float(stock.segments), (end - moment) / _DAY * daily)
            moment = end
            # Just before the end, then what falls away.
            points.append((moment, round(total - used)))
        lost += stock.segments - used
        total -= stock.segments
        points.append((moment, max(0, round(total))))
    return Forecast(daily, (moment - now) / _DAY, round(lost), tuple(points))


def listed_forecast(
    now: datetime, available: int, spent: int, *, next_expiry: tuple[datetime, int] | None = None
) -> Forecast:
    """The forecast of a list, where only the next end of a package is known; what is behind it counts as lasting.

    Parameters: `next_expiry` the moment and how many segments end then at most.
    """
    stocks: Sequence[Stock] = (Stock(available, None),)
    if next_expiry is not None:
        ending = min(available, next_expiry[1])
        stocks = (Stock(ending, next_expiry[0]), Stock(available - ending, None))
    return forecast(now, stocks, spent)


def _after(moment: datetime, days: float, horizon: datetime) -> datetime:
    return moment + timedelta(days=days) if days <= (horizon - moment) / _DAY else _NEVER
