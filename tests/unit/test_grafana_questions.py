"""Aim: what Grafana asks is read as it was meant, or refused with the field and the rule. Method: bodies as the data
sources send them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.errors import Refusal
from smsgateway.grafana.questions import Span, Target, query, target_of
from smsgateway.usage import Unit

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def asked(**body: Any) -> Any:
    return query(body, points_max=1_000, targets_max=3, now=NOW)


def test_a_target_is_a_text_or_a_payload() -> None:
    """Both ways mean the same; a text wins."""
    assert target_of("usage.delivered:7:marketing", "t") == Target(
        "usage.delivered:7:marketing", "usage", "delivered", 7, 3
    )
    assert target_of("usage", "t", {"brand_id": 7, "sms_type": "marketing", "figure": "delivered"}) == Target(
        "usage", "usage", "delivered", 7, 3
    )
    assert target_of("usage:8", "t", {"brand_id": 7}).brand_id == 8
    assert target_of("usage", "t").brand_id == 0
    assert target_of("packages:7", "t").is_table


@pytest.mark.parametrize(
    ("seconds", "points", "step"),
    [(60, 1_000, 1), (3_600, 1_000, 5), (86_400, 1_000, 300), (86_400 * 31, 1_000, 3_600), (10**9, 10, 10**8)],
)
def test_points_are_no_more_than_asked_for(seconds: int, points: int, step: int) -> None:
    """The step is a usual one, and a longer one where that is not enough."""
    span = Span(NOW - timedelta(seconds=seconds), NOW, points)
    assert span.step_seconds == step
    assert seconds / step <= points


@pytest.mark.parametrize(
    ("days", "points", "unit"),
    [(1, 1_000, Unit.HOUR), (40, 1_000, Unit.DAY), (1, 20, Unit.DAY), (100, 20, Unit.MONTH), (5_000, 20, None)],
)
def test_long_times_are_told_in_long_units(days: int, points: int, unit: Unit | None) -> None:
    """Hours as long as there are few enough of them, then days, then months."""
    assert Span(NOW - timedelta(days=days), NOW, points).unit(800) is unit


def test_a_range_is_in_any_form_of_grafana() -> None:
    """ISO 8601 with Z, or milliseconds as a number or a text; without one it is the last day."""
    target = [{"target": "usage"}]
    iso = asked(targets=target, range={"from": "2026-11-21T10:00:00.000Z", "to": "2026-11-21T11:00:00.000Z"})
    first = int(datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp() * 1_000)
    assert asked(targets=target, range={"from": first, "to": str(first + 3_600_000)}).span == iso.span
    assert asked(targets=target).span == Span(NOW - timedelta(days=1), NOW, 1_000)
    assert asked(targets=target, maxDataPoints=12.5).span.points == 12


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"targets": "usage"}, "targets"),
        ({"targets": [{"target": "usage"}] * 4}, "targets"),
        ({"targets": ["usage"]}, "targets[0]"),
        ({"targets": [{"target": "usage"}, {"target": None}]}, "targets[1].target"),
        ({"targets": [{"target": "usage:1:2:3"}]}, "targets[0].target"),
        ({"targets": [{"target": "usage:-1"}]}, "targets[0].target brand"),
        ({"targets": [{"target": f"usage:{1 << 63}"}]}, "targets[0].target brand"),
        ({"targets": [{"target": "usage", "payload": [1]}]}, "targets[0].target.payload"),
        ({"targets": [{"target": "usage"}], "maxDataPoints": True}, "maxDataPoints"),
        ({"targets": [{"target": "usage"}], "maxDataPoints": 0}, "maxDataPoints"),
        ({"targets": [{"target": "usage"}], "range": "now"}, "range"),
        ({"targets": [{"target": "usage"}], "range": {"from": True, "to": 1}}, "range.from"),
        ({"targets": [{"target": "usage"}], "range": {"from": 1, "to": 10**20}}, "range.to"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], field: str) -> None:
    """One field each."""
    with pytest.raises(Refusal) as caught:
        asked(**body)
    assert list(caught.value.fields) == [field]
