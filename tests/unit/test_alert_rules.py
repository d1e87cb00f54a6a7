"""The rules of alerts: figures and their bounds, when each condition holds, when it is told, what people read."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsgateway import alert_texts, alerts
from smsgateway.alert_texts import LANGUAGES, Notice
from smsgateway.alerts import FIGURES, HOUSE, Alert, AlertKind, BadRule, Move, Observation, Rule, RuleBook, Verdict

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
BRAND = 7
BAD, NEITHER, GOOD = Verdict.BAD, Verdict.NEITHER, Verdict.GOOD


def rule(kind: AlertKind, *, brand_id: int = HOUSE, sms_type: int = 0, **figures: int) -> Rule:
    return alerts.make_rule(
        brand_id=brand_id, kind=kind, sms_type=sms_type, enabled=True, figures=figures, recipients=(), webhooks=True
    )


# Rules.


@pytest.mark.parametrize("kind", AlertKind)
def test_a_rule_without_figures_has_its_kinds_defaults(kind: AlertKind) -> None:
    """Every kind can be put as it is, and its defaults keep their own bounds."""
    made = rule(kind)
    for name, bounds in FIGURES[kind].items():
        assert getattr(made, name) == bounds.default
        assert bounds.lowest <= bounds.default <= bounds.highest


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": 0}, "kind"),
        ({"kind": 8}, "kind"),
        ({"brand_id": -1}, "brand_id"),
        ({"kind": AlertKind.CARRIER_DOWN, "brand_id": 1}, "brand_id"),
        ({"kind": AlertKind.PARKED, "brand_id": 1}, "brand_id"),
        ({"sms_type": 1}, "sms_type"),
        ({"kind": AlertKind.FAILURES, "sms_type": 4}, "sms_type"),
        ({"figures": {"percent": 5}}, "percent"),
        ({"figures": {"segments": -1}}, "segments"),
        ({"figures": {"days": 366}}, "days"),
        ({"figures": {"days": 0}}, "days"),
        ({"figures": {"hold_seconds": 86_401}}, "hold_seconds"),
        ({"kind": AlertKind.FAILURES, "figures": {"minutes": 4}}, "minutes"),
        ({"kind": AlertKind.FAILURES, "figures": {"percent": 101}}, "percent"),
        ({"kind": AlertKind.EXPIRING, "figures": {"segments": 0}}, "segments"),
        ({"recipients": ["ops"]}, "recipients"),
        ({"recipients": ["ops@example.com\r\nBcc: x@example.com"]}, "recipients"),
        ({"recipients": ["a b@example.com"]}, "recipients"),
        ({"recipients": ["x" * 250 + "@example.com"]}, "recipients"),
        ({"recipients": [f"a{number}@example.com" for number in range(21)]}, "recipients"),
    ],
)
def test_a_bad_rule_names_the_field(changes: dict[str, Any], field: str) -> None:
    """And nothing else than the field that is wrong."""
    values: dict[str, Any] = {
        "brand_id": HOUSE,
        "kind": AlertKind.LOW_BALANCE,
        "sms_type": 0,
        "enabled": True,
        "figures": {},
        "recipients": [],
        "webhooks": True,
    }
    with pytest.raises(BadRule) as refused:
        alerts.make_rule(**{**values, **changes})
    assert list(refused.value.violations) == [field]


def test_a_brands_own_rule_comes_first_and_one_for_the_type_before_one_for_any() -> None:
    """A disabled one of the brand's keeps it from the house's."""
    of_house = rule(AlertKind.QUEUE_AGE, minutes=10)
    of_type = rule(AlertKind.QUEUE_AGE, sms_type=1, minutes=1)
    own = rule(AlertKind.QUEUE_AGE, brand_id=BRAND, minutes=60)
    off = Rule(8, AlertKind.QUEUE_AGE, enabled=False)
    book = RuleBook([of_house, of_type, own, off])
    find = book.find
    assert [find(9, AlertKind.QUEUE_AGE, kind) for kind in (1, 2)] == [of_type, of_house]
    assert [find(BRAND, AlertKind.QUEUE_AGE, kind) for kind in (1, 2)] == [own, own]
    assert find(8, AlertKind.QUEUE_AGE, 1) is None
    assert find(9, AlertKind.FAILURES) is None
    assert (book.watches(AlertKind.QUEUE_AGE), book.watches(AlertKind.FAILURES)) == (True, False)
    assert not RuleBook([off]).watches(AlertKind.QUEUE_AGE)


# Conditions.


@pytest.mark.parametrize(
    ("available", "paid", "age", "days"),
    [
        (700, 700, 30 * DAY, 7.0),
        (100, 700, 30 * DAY, 1.0),
        (100, 0, 30 * DAY, math.inf),
        (100, -5, 30 * DAY, math.inf),
        (100, 100, 2 * DAY, 2.0),
        (100, 100, DAY / 24, 1.0),
        (0, 10, DAY, 0.0),
    ],
)
def test_days_left_follow_from_the_week_or_the_brands_shorter_life(
    available: int, paid: int, age: timedelta, days: float
) -> None:
    """At the rate of the days that there are; nothing paid: for ever."""
    assert alerts.days_left(available, paid, age) == days


@pytest.mark.parametrize(
    ("figures", "available", "paid", "verdict"),
    [
        ({"segments": 100, "days": 0}, 99, 0, BAD),
        ({"segments": 100, "days": 0}, 100, 0, NEITHER),
        ({"segments": 100, "days": 0}, 110, 0, GOOD),
        ({"days": 3}, 299, 700, BAD),
        ({"days": 3}, 300, 700, NEITHER),
        ({"days": 3}, 330, 700, GOOD),
        ({"days": 3}, 10, 0, GOOD),
        ({"days": 3}, 0, 0, NEITHER),
        ({"segments": 100, "days": 3}, 105, 0, NEITHER),
        ({"segments": 100, "days": 3}, 99, 7, BAD),
        ({"segments": 100, "days": 3}, 200, 700, BAD),
    ],
)
def test_a_low_balance(figures: dict[str, int], available: int, paid: int, verdict: Verdict) -> None:
    """Either figure opens, both must be better by a tenth to recover, and who is drained and quiet does not recover."""
    seen = alerts.low_balance(
        rule(AlertKind.LOW_BALANCE, **figures), brand_id=BRAND, available=available, paid=paid, age=30 * DAY
    )
    assert (seen.key, seen.verdict) == ((BRAND, AlertKind.LOW_BALANCE, ""), verdict)


@pytest.mark.parametrize(
    ("left", "segments", "verdict"),
    [(7 * DAY, 10, BAD), (7 * DAY + SECOND, 10, GOOD), (SECOND, 9, GOOD), (0 * DAY, 10, GOOD)],
)
def test_an_end_that_is_near(left: timedelta, segments: int, verdict: Verdict) -> None:
    """Each end is a subject of its own, so that the next package's is told as well."""
    seen = alerts.expiring(
        rule(AlertKind.EXPIRING, segments=10), brand_id=BRAND, expires_at=NOW + left, segments=segments, now=NOW
    )
    assert seen.verdict is verdict
    assert datetime.fromisoformat(seen.subject) == NOW + left


@pytest.mark.parametrize(
    ("final", "failed", "verdict"),
    [
        (100, 20, BAD),
        (100, 19, NEITHER),
        (100, 18, GOOD),
        (49, 49, NEITHER),
        (49, 0, GOOD),
        (0, 0, GOOD),
        (50, 50, BAD),
    ],
)
def test_a_spike_in_failures(final: int, failed: int, verdict: Verdict) -> None:
    """A share of enough messages; too few say nothing."""
    seen = alerts.failures(rule(AlertKind.FAILURES), brand_id=BRAND, final=final, failed=failed, subject="marketing")
    assert seen.verdict is verdict


def test_queues_carriers_and_parked_work() -> None:
    """Age with its margin; one worker that does not call an account is enough; a count."""
    old = rule(AlertKind.QUEUE_AGE, minutes=10)
    ages = [alerts.queue_age(old, brand_id=1, oldest_seconds=age, subject="x").verdict for age in (600, 599, 540)]
    assert ages == [BAD, NEITHER, GOOD]
    down = rule(AlertKind.CARRIER_DOWN)
    states = [{"a": "works", "b": "rests"}, {"a": "is stopped"}, {"a": "works"}, {}]
    seen = [alerts.carrier_down(down, account="main", states=each, works="works") for each in states]
    assert [each.verdict for each in seen] == [BAD, BAD, GOOD, GOOD]
    assert (seen[0].key, dict(seen[0].figures)) == (
        (HOUSE, AlertKind.CARRIER_DOWN, "main"),
        {"state": "rests", "workers": 1},
    )
    low = rule(AlertKind.CARRIER_LOW)
    assert alerts.carrier_low(low, account="main", low=True, balance=1, alert=5).verdict is BAD
    two = rule(AlertKind.PARKED, count=2)
    assert [alerts.parked(two, what="outbox", count=count).verdict for count in (2, 1)] == [BAD, GOOD]


# When it is told.


def _after(alert: Alert | None, move: Move, now: datetime) -> Alert | None:
    """The alert as the database has it after a move."""
    if move in {Move.BEGIN, Move.OPEN_NEW}:
        return Alert(BRAND, "a", AlertKind.PARKED, "", now, now if move is Move.OPEN_NEW else None, None)
    if move in {Move.DROP, Move.RECOVER}:
        return None
    if alert is None or move is Move.NOTHING:
        return alert
    opened = now if move is Move.OPEN else alert.opened_at
    good = now if move is Move.EASE else None
    return Alert(alert.brand_id, alert.alert_id, alert.kind, alert.subject, alert.since, opened, good)


@settings(max_examples=300, deadline=None)
@given(
    hold=st.sampled_from((0, 10, 60)),
    steps=st.lists(st.tuples(st.sampled_from(Verdict), st.integers(min_value=1, max_value=30)), max_size=60),
)
def test_notices_alternate_whatever_is_seen(hold: int, steps: list[tuple[Verdict, int]]) -> None:
    """Opened, recovered, opened …, each once, and none sooner than the hold time after the first contrary look.

    Judged by what was seen alone: an alert opens when every look of the last `hold` seconds was bad, and recovers when
    every one was good.
    """
    alert: Alert | None = None
    now, told = NOW, 0
    seen: list[tuple[datetime, Verdict]] = []
    for verdict, seconds in steps:
        now += seconds * SECOND
        seen.append((now, verdict))
        was_open = alert is not None and alert.opened_at is not None
        move = alerts.move(alert, verdict, now, hold * SECOND)
        wanted = BAD if not was_open else GOOD
        run = [at for at, _ in _tail(seen, wanted)]
        due = bool(run) and now - run[0] >= hold * SECOND
        assert (move in {Move.OPEN, Move.OPEN_NEW, Move.RECOVER}) == due, (seen, alert)
        if due:
            assert (move is Move.RECOVER) == was_open
            told += 1
        alert = _after(alert, move, now)
    assert (alert is not None and alert.opened_at is not None) == bool(told % 2)


def _tail(seen: list[tuple[datetime, Verdict]], wanted: Verdict) -> list[tuple[datetime, Verdict]]:
    """The last looks that all said the same."""
    count = 0
    while count < len(seen) and seen[-1 - count][1] is wanted:
        count += 1
    return seen[len(seen) - count :]


# What people read.

SEEN: dict[AlertKind, Observation] = {
    AlertKind.LOW_BALANCE: alerts.low_balance(
        rule(AlertKind.LOW_BALANCE, segments=500), brand_id=BRAND, available=120, paid=1_400, age=30 * DAY
    ),
    AlertKind.EXPIRING: alerts.expiring(
        rule(AlertKind.EXPIRING), brand_id=BRAND, expires_at=NOW + DAY, segments=4_000, now=NOW
    ),
    AlertKind.FAILURES: alerts.failures(
        rule(AlertKind.FAILURES), brand_id=BRAND, final=200, failed=81, subject="marketing"
    ),
    AlertKind.CARRIER_DOWN: alerts.carrier_down(
        rule(AlertKind.CARRIER_DOWN), account="main", states={"w": "is stopped"}, works="works"
    ),
    AlertKind.CARRIER_LOW: alerts.carrier_low(
        rule(AlertKind.CARRIER_LOW), account="main", low=True, balance=900, alert=1_000
    ),
    AlertKind.QUEUE_AGE: alerts.queue_age(
        rule(AlertKind.QUEUE_AGE), brand_id=BRAND, oldest_seconds=661, subject="verification"
    ),
    AlertKind.PARKED: alerts.parked(rule(AlertKind.PARKED), what="outbox", count=3),
}
FIGURES_TOLD = {
    AlertKind.LOW_BALANCE: ("120", "0.6", "500", "3"),
    AlertKind.EXPIRING: ("4,000", "2026-05-02 20:00:00 +0800"),
    AlertKind.FAILURES: ("40.5", "81", "200", "15", "20"),
    AlertKind.CARRIER_DOWN: ("main", "1"),
    AlertKind.CARRIER_LOW: ("main", "900", "1,000"),
    AlertKind.QUEUE_AGE: ("661", "10"),
    AlertKind.PARKED: ("outbox", "3"),
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", AlertKind)
def test_a_text_says_what_figures_since_when_and_what_to_do(kind: AlertKind, language: str) -> None:
    """In both languages, opened, recovered and withdrawn; nothing is left unfilled."""
    seen, zone = SEEN[kind], ZoneInfo("Asia/Shanghai")
    notice = Notice(seen.brand_id, kind, seen.subject, NOW, seen.figures)
    opened = alert_texts.tell(notice, language=language, zone=zone)
    for figure in FIGURES_TOLD[kind]:
        assert figure in opened.body, opened
    assert "2026-05-01 20:00:00 +0800" in opened.body
    assert "`smsbill" in opened.body or kind is AlertKind.CARRIER_LOW
    assert ("7" in opened.title) == (seen.brand_id == BRAND)
    over = [
        alert_texts.tell(
            Notice(seen.brand_id, kind, seen.subject, NOW, seen.figures, over_at=NOW + DAY / 24, withdrawn=withdrawn),
            language=language,
            zone=zone,
        )
        for withdrawn in (False, True)
    ]
    assert len({opened.title, over[0].title}) == 2
    assert over[0].body != over[1].body
    for text in (opened, *over):
        assert "None" not in text.body
        assert "{" not in text.title + text.body
        assert text.title.isascii() == (language == "en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_letters_of_several_notices_hold_them_all(language: str) -> None:
    """One subject line for all of them."""
    texts = [alert_texts.Text(f"title {number}", f"body {number}") for number in range(3)]
    letter = alert_texts.mail(texts, language=language)
    assert "3" in letter.title
    assert all(text.title in letter.body and text.body in letter.body for text in texts)
    alone = alert_texts.mail(texts[:1], language=language)
    assert alone.title == "[smsbill] title 0"
