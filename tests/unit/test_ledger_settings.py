"""Settings of the cost centre: what they are turned into, and what is no setting."""

from __future__ import annotations

from datetime import timedelta

import pytest

from costcenter.settings import Settings
from infra.errors import StartError


def test_the_defaults_are_the_documented_terms(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """A day and seven days to live, 30 days of grace, 15 minutes to pay, Shanghai's time."""
    monkeypatch.chdir(str(tmp_path))
    terms = Settings.load().terms()
    assert (terms.time_to_live_default, terms.time_to_live_max) == (timedelta(hours=24), timedelta(days=7))
    assert (terms.refund_grace_days, terms.pay_within) == (30, timedelta(minutes=15))
    assert terms.time_zone_default == "Asia/Shanghai"


def test_settings_reach_the_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Each figure of the rules and each bound of the engine follows its variable."""
    monkeypatch.chdir(str(tmp_path))
    for name, value in {
        "FREEZE_TIME_TO_LIVE_SECONDS": "60",
        "FREEZE_TIME_TO_LIVE_SECONDS_MAX": "120",
        "REFUND_GRACE_DAYS": "0",
        "ORDER_PAY_WITHIN_SECONDS": "30",
        "BRAND_TIME_ZONE": "UTC",
        "LEDGER_GROUP_MAX": "7",
        "LEDGER_QUEUE_MAX": "8",
        "LEDGER_RETRY_SECONDS": "9",
        "LEDGER_ENDED_FREEZES_MAX": "10",
        "CLOCK_OFFSET_SECONDS": "11",
    }.items():
        monkeypatch.setenv(f"SMSBILL_{name}", value)
    settings = Settings.load()
    terms, limits = settings.terms(), settings.engine_limits()
    assert (terms.time_to_live_default.seconds, terms.time_to_live_max.seconds) == (60, 120)
    assert (terms.refund_grace_days, terms.pay_within.seconds, terms.time_zone_default) == (0, 30, "UTC")
    assert (limits.group_max, limits.queue_max, limits.retry_seconds) == (7, 8, 9)
    assert (limits.ended_freezes_max, limits.clock_offset_seconds) == (10, 11)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("FREEZE_TIME_TO_LIVE_SECONDS", "0", "FREEZE_TIME_TO_LIVE_SECONDS"),
        ("FREEZE_TIME_TO_LIVE_SECONDS", str(8 * 86_400), "FREEZE_TIME_TO_LIVE_SECONDS_MAX"),
        ("FREEZE_TIME_TO_LIVE_SECONDS_MAX", "3600", "FREEZE_TIME_TO_LIVE_SECONDS_MAX"),
        ("REFUND_GRACE_DAYS", "-1", "REFUND_GRACE_DAYS"),
        ("BRAND_TIME_ZONE", "Mars/Olympus", "BRAND_TIME_ZONE"),
        ("LEDGER_QUEUE_MAX", "many", "LEDGER_QUEUE_MAX"),
    ],
)
def test_what_cannot_be_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, name: str, value: str, named: str
) -> None:
    """One line with the variable, also where two settings contradict each other."""
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv(f"SMSBILL_{name}", value)
    with pytest.raises(StartError) as caught:
        Settings.load()
    assert str(caught.value).startswith(f"setting SMSBILL_{named}: ")
