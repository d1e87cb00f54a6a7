"""What a data source asks, read and checked. No I/O.

A target is a text such as `usage.delivered:7:marketing`: what, of which brand, of which type; or its parts stand in the
target's `payload`. Times are ISO 8601, or milliseconds since 1970 as Grafana's `${__from}` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from infra.errors import invalid_fields
from smsgateway.metrics import TYPE_NAMES
from smsgateway.usage import Unit, units_between

BALANCE_FIGURES = ("total", "frozen", "available")
USAGE_FIGURES = (
    *("messages", "segments", "waiting", "unknown", "sent", "delivered", "delivered_segments", "undelivered"),
    *("undelivered_segments", "expired", "expired_segments", "failed", "failed_segments", "cancelled"),
    *("cancelled_segments", "refunded", "refunded_segments"),
)
SERIES: Mapping[str, Sequence[str]] = {"balance": BALANCE_FIGURES, "usage": USAGE_FIGURES}
TABLES = ("balances", "packages", "sales", "expiries")
ALL_BRANDS = "all"

_TYPES = {name: number for number, name in TYPE_NAMES.items()}
_TEXT_MAX = 200
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
_STEPS = (1, 5, 10, 30, 60, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400)


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is asked for: `what` a series or a table; `figure` empty: each of the series; `brand_id` 0: all of
    the token; `sms_type` 0: all; `is_table`: as a table.
    """

    name: str
    what: str
    figure: str = ""
    brand_id: int = 0
    sms_type: int = 0
    is_table: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """The time that is asked for, [`start`, `end`), and how many points of it at most."""

    start: datetime
    end: datetime
    points: int

    @property
    def step_seconds(self) -> int:
        """The distance of two points, a usual one where that is possible."""
        least = max(1, -(-int((self.end - self.start).total_seconds()) // self.points))
        return next((step for step in _STEPS if step >= least), least)

    def unit(self, units_max: int) -> Unit | None:
        """The shortest unit of which the time has no more than there may be points, nor than `units_max`; None: even
        its months are more.
        """
        most = min(self.points, units_max)
        return next((unit for unit in Unit if units_between(self.start, self.end, unit) <= most), None)


@dataclass(frozen=True, slots=True)
class Request:
    """The body of `/query`."""

    targets: Sequence[Target]
    span: Span


def query(body: Any, *, points_max: int, targets_max: int, now: datetime) -> Request:
    """The body of `/query`. Raises INVALID_ARGUMENT that names each field that breaks a rule."""
    fields = _object(body, "body")
    targets = fields.get("targets")
    if not isinstance(targets, list) or not 0 < len(targets) <= targets_max:
        raise invalid_fields({"targets": f"must be a list of 1 to {targets_max}"})
    asked = fields.get("maxDataPoints")
    points = points_max
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int | float) or not 1 <= asked < 10**9:
            raise invalid_fields({"maxDataPoints": "must be a number from 1"})
        points = min(points_max, int(asked))
    span = span_of(fields.get("range"), points=points, now=now)
    # What is hidden in a panel is not asked for.
    shown = [
        (place, target)
        for place, target in enumerate(targets)
        if not (isinstance(target, dict) and target.get("hide") is True)
    ]
    return Request([_target(target, f"targets[{place}]") for place, target in shown], span)


def annotation(body: Any, *, now: datetime) -> tuple[Target, Span]:
    """The body of `/annotations`. Raises as `query`."""
    fields = _object(body, "body")
    inner = _object(fields.get("annotation"), "annotation")
    target = target_of(inner.get("query"), "annotation.query")
    if target.what not in ("sales", "expiries"):
        raise invalid_fields({"annotation.query": "must be such as sales:7 or expiries:7"})
    return target, span_of(fields.get("range"), points=1, now=now)


def span_of(given: Any, *, points: int, now: datetime) -> Span:
    """A range as Grafana gives it; none: the last day. Raises as `query`."""
    if given is None:
        return Span(now - timedelta(days=1), now, points)
    fields = _object(given, "range")
    start, end = moment(fields.get("from"), "range.from"), moment(fields.get("to"), "range.to")
    if start >= end:
        raise invalid_fields({"range.from": "must be before range.to"})
    return Span(start, end, points)


def moment(given: Any, field: str) -> datetime:
    """A moment: ISO 8601, or milliseconds since 1970. Raises as `query`."""
    try:
        if isinstance(given, str) and given.isdecimal() and given.isascii():
            given = int(given)
        if isinstance(given, int) and not isinstance(given, bool):
            found = datetime.fromtimestamp(given / 1_000, UTC)
        else:
            found = datetime.fromisoformat(given)
            found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        if not _FIRST <= found <= _LAST:
            raise ValueError
    except (TypeError, ValueError, OverflowError, OSError):
        raise invalid_fields({field: "must be a moment from 1970 to 9999, ISO 8601 or milliseconds"}) from None
    return found


def target_of(text: Any, field: str, payload: Any = None, *, is_table: bool = False) -> Target:
    """A target by its text and payload. Raises as `query`."""
    if not isinstance(text, str) or not 0 < len(text) <= _TEXT_MAX:
        raise invalid_fields({field: "must be a text such as balance.total:7"})
    extra = _object(payload or {}, f"{field}.payload")
    named, *rest = text.strip().split(":")
    what, _, figure = named.partition(".")
    if len(rest) > 2:
        raise invalid_fields({field: "must be such as usage.delivered:7:marketing"})
    brand = rest[0] if rest else extra.get("brand_id", ALL_BRANDS)
    type_name = rest[1] if len(rest) > 1 else extra.get("sms_type", "")
    figure = figure or str(extra.get("figure", ""))
    violations = {}
    if what in SERIES:
        if figure and figure not in SERIES[what]:
            violations[field] = f"{what} has the figures {', '.join(SERIES[what])}"
    elif what not in TABLES or figure:
        violations[field] = f"must begin with one of {', '.join((*SERIES, *TABLES))}"
    brand_id = _brand(brand)
    if brand_id is None:
        violations[f"{field} brand"] = "must be a brand's number, or all"
    elif not brand_id and what not in ("usage", "balances"):
        violations[f"{field} brand"] = f"{what} is of one brand, such as {what}:7"
    sms_type = 0 if type_name in ("", ALL_BRANDS) else _TYPES.get(str(type_name), -1)
    if sms_type < 0 or (sms_type and what != "usage"):
        violations[f"{field} type"] = "must be verification, notification or marketing, of usage only"
    if violations:
        raise invalid_fields(violations)
    return Target(text, what, figure, brand_id or 0, sms_type, is_table or what in TABLES)


def _target(given: Any, field: str) -> Target:
    fields = _object(given, field)
    form = fields.get("type") or "timeserie"
    if form not in ("timeserie", "timeseries", "table"):
        raise invalid_fields({f"{field}.type": "must be timeserie or table"})
    payload = fields.get("payload") or fields.get("data")
    return target_of(fields.get("target"), f"{field}.target", payload, is_table=form == "table")


def _brand(given: Any) -> int | None:
    if given in (ALL_BRANDS, ""):
        return 0
    text = str(given)
    if not text.isdecimal() or not text.isascii() or len(text) > 19:
        return None
    brand_id = int(text)
    return brand_id if 0 < brand_id < 1 << 63 else None


def _object(given: Any, field: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise invalid_fields({field: "must be a JSON object"})
    return given
