"""What pages show of packages, batches and series of balances, made ready for them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from protos.costcenter.v1 import cost_center_pb2
from smsgateway.console.forecast import Stock
from smsgateway.schema import DispatchState

CHART_DAYS: Final = (1, 7, 30, 90, 365)
"""Spans of the chart that can be chosen; the first of a week is what most ask for."""
CHART_DAYS_DEFAULT: Final = 30
# So many points that a curve on a wide screen has one for some pixels.
_POINTS: Final = 180
_STEPS: Final = tuple(
    timedelta(minutes=minutes) for minutes in (1, 5, 10, 15, 30, 60, 120, 240, 480, 720, 1_440, 2_880)
)


_PLACES: Final[Mapping[DispatchState, str]] = {
    DispatchState.ACCEPTING: "waiting",
    DispatchState.QUEUED: "waiting",
    DispatchState.CLAIMED: "in_flight",
    DispatchState.SUBMITTING: "in_flight",
    DispatchState.UNKNOWN: "in_flight",
    DispatchState.PAUSED: "paused",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A package as a bar: parts of what was granted, in percent; they make up 100 with what is left out."""

    package_id: int
    source: int
    source_no: str
    granted: int
    available: int
    held: int
    paid: int
    expired: int
    sms_types: tuple[int, ...]
    expires_at: datetime | None
    created_at: datetime
    is_next: bool
    days_left: float | None

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """(word, percent of what was granted) of each part that is not empty, in the order of the bar."""
        whole = max(1, self.granted)
        figures = (("paid", self.paid), ("expired", self.expired), ("held", self.held), ("available", self.available))
        return tuple((word, 100 * figure / whole) for word, figure in figures if figure > 0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch or campaign is; figures are messages."""

    accepted: int
    waiting: int = 0
    paused: int = 0
    in_flight: int = 0

    @property
    def done(self) -> int:
        """Messages that are with the carrier, or will not go there."""
        return max(0, self.accepted - self.waiting - self.paused - self.in_flight)

    @property
    def percent(self) -> float:
        """How much of it is done."""
        return 100 * self.done / self.accepted if self.accepted else 100.0

    @property
    def is_done(self) -> bool:
        """Whether nothing of it waits or is under way."""
        return self.done == self.accepted


def bars(packages: Iterable[cost_center_pb2.Package], now: datetime) -> list[Bar]:
    """Packages of a burn-down queue, in their order, as bars; the first that can be spent is the next to pay."""
    found: list[Bar] = []
    for package in packages:
        expires_at = package.expires_at.ToDatetime(UTC) if package.HasField("expires_at") else None
        available = package.remaining - package.held
        spendable = available > 0 and (expires_at is None or expires_at > now)
        found.append(
            Bar(
                package_id=package.package_id,
                source=package.source,
                source_no=package.source_no,
                granted=package.granted,
                available=available,
                held=package.held,
                paid=package.paid - package.refunded,
                expired=package.expired,
                sms_types=tuple(package.sms_types),
                expires_at=expires_at,
                created_at=package.created_at.ToDatetime(UTC),
                is_next=spendable and not any(bar.is_next for bar in found),
                days_left=None if expires_at is None else (expires_at - now) / timedelta(days=1),
            )
        )
    return found


def stocks(packages: Iterable[cost_center_pb2.Package]) -> list[Stock]:
    """What of packages can be spent, and until when."""
    return [
        Stock(
            package.remaining - package.held,
            package.expires_at.ToDatetime(UTC) if package.HasField("expires_at") else None,
        )
        for package in packages
    ]


def progress(accepted: int, dispatched: Mapping[int, int]) -> Progress:
    """How far a batch is, by the messages of its dispatches in each state: those that have none any more are done."""
    found: Counter[str] = Counter()
    for state, messages in dispatched.items():
        found[_PLACES.get(DispatchState(state), "")] += messages
    return Progress(accepted, found["waiting"], found["paused"], found["in_flight"])


def clipped(points: Sequence[tuple[datetime, int]], until: datetime) -> list[tuple[datetime, int]]:
    """A curve of straight lines up to a moment, cut there."""
    kept: list[tuple[datetime, int]] = []
    for at, left in points:
        if at > until:
            if kept:
                before, had = kept[-1]
                share = (until - before) / (at - before)
                kept.append((until, round(had + (left - had) * share)))
            break
        kept.append((at, left))
    return kept


def chart_step(days: int) -> timedelta:
    """Distance of two points of a chart over so many days: a round one that makes about 180 of them."""
    wanted = timedelta(days=days) / _POINTS
    return next((step for step in _STEPS if step >= wanted), _STEPS[-1])


def series(
    points: Iterable[tuple[datetime, int, int]], future: Sequence[tuple[datetime, int]] = ()
) -> list[list[object]]:
    """What uPlot draws: moments in seconds, what is available, what is frozen, and the forecast of what is available.

    Parameters: `points` (moment, total, frozen), ascending; `future` (moment, available) from now on.
    """
    known = list(points)
    moments: list[object] = [at.timestamp() for at, _, _ in known]
    available: list[object] = [total - frozen for _, total, frozen in known]
    frozen: list[object] = [frozen for _, _, frozen in known]
    coming: list[object] = [None] * len(known)
    last = moments[-1] if moments else None
    for at, left in future:
        stamp = at.timestamp()
        # uPlot wants each moment once and ascending; what falls away at a moment stands just behind it.
        if isinstance(last, float) and stamp <= last:
            stamp = last + 0.001
        moments.append(stamp)
        available.append(None)
        frozen.append(None)
        coming.append(left)
        last = stamp
    return [moments, available, frozen, coming]
