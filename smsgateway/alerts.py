"""Alerts to people: the rules there are, when what a rule watches for holds, and when that is told. No I/O.

An alert is told once when it opens and once when it is over. What keeps it from being told again and again: what a
rule watches for must hold for the rule's hold time before the alert opens, and must be over for as long before it
recovers; and balances, shares and ages must get clearly better than the rule's figure before they count as well.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

HOUSE: Final = 0
"""The brand of rules that hold for every brand without one of its own, and of what concerns no brand."""
RECIPIENTS_MAX: Final = 20
RECIPIENT_CHARACTERS_MAX: Final = 254
# An address as mail servers take it nearly everywhere; it ends in a header, so nothing else gets in.
_RECIPIENT: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
# A figure must be better than the rule's by one part of so many before an open alert can recover.
_MARGIN_PARTS = 10
_DAY = timedelta(days=1)
_RATE_DAYS = 7.0


class AlertKind(enum.IntEnum):
    """What a rule watches for; the numbers of `smsgateway.v1.AlertKind`."""

    LOW_BALANCE = 1
    EXPIRING = 2
    FAILURES = 3
    CARRIER_DOWN = 4
    CARRIER_LOW = 5
    QUEUE_AGE = 6
    PARKED = 7


OF_THE_HOUSE: Final = frozenset({AlertKind.CARRIER_DOWN, AlertKind.CARRIER_LOW, AlertKind.PARKED})
"""Kinds that concern no brand: only the house has rules for them."""
BY_TYPE: Final = frozenset({AlertKind.FAILURES, AlertKind.QUEUE_AGE})
"""Kinds that are watched type by type: a rule may be for one type."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A figure of a rule: what it is when nobody says, and what it may be."""

    default: int
    lowest: int
    highest: int


_HOLD_MAX = 86_400
FIGURES: Final[Mapping[AlertKind, Mapping[str, Bounds]]] = {
    # 0 leaves one of the two out. Days alone are quiet about brands that do not send.
    AlertKind.LOW_BALANCE: {
        "segments": Bounds(0, 0, 10**12),
        "days": Bounds(3, 0, 365),
        "hold_seconds": Bounds(0, 0, _HOLD_MAX),
    },
    # A refund may bring a package back for a moment.
    AlertKind.EXPIRING: {
        "segments": Bounds(1, 1, 10**12),
        "days": Bounds(7, 1, 365),
        "hold_seconds": Bounds(60, 0, _HOLD_MAX),
    },
    AlertKind.FAILURES: {
        "percent": Bounds(20, 1, 100),
        "count": Bounds(50, 1, 10**6),
        "minutes": Bounds(15, 5, 60),
        "hold_seconds": Bounds(60, 0, _HOLD_MAX),
    },
    # A breaker that opens and closes again at once is no outage.
    AlertKind.CARRIER_DOWN: {"hold_seconds": Bounds(60, 0, _HOLD_MAX)},
    AlertKind.CARRIER_LOW: {"hold_seconds": Bounds(0, 0, _HOLD_MAX)},
    AlertKind.QUEUE_AGE: {"minutes": Bounds(10, 1, 10_080), "hold_seconds": Bounds(60, 0, _HOLD_MAX)},
    AlertKind.PARKED: {"count": Bounds(1, 1, 10**4), "hold_seconds": Bounds(60, 0, _HOLD_MAX)},
}
"""The figures that each kind of rule has."""


class BadRule(ValueError):  # noqa: N818 - named for what it says
    """Fields of a rule break theirs: `violations` names each with what it must be."""

    def __init__(self, violations: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name} {rule}" for name, rule in violations.items()))
        self.violations = dict(violations)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule. Figures that its kind does not have are 0; `sms_type` 0: any; `count` the fewest that matter."""

    brand_id: int
    kind: AlertKind
    sms_type: int = 0
    enabled: bool = True
    segments: int = 0
    days: int = 0
    percent: int = 0
    count: int = 0
    minutes: int = 0
    hold_seconds: int = 0
    recipients: tuple[str, ...] = ()
    webhooks: bool = True

    @property
    def hold(self) -> timedelta:
        """How long a change must last before it is told."""
        return timedelta(seconds=self.hold_seconds)


def make_rule(
    *,
    brand_id: int,
    kind: int,
    sms_type: int,
    enabled: bool,
    figures: Mapping[str, int],
    recipients: Iterable[str],
    webhooks: bool,
) -> Rule:
    """A rule as somebody asked for it; figures that are not given are the kind's defaults. Raises `BadRule`."""
    violations: dict[str, str] = {}
    if brand_id < 0:
        violations["brand_id"] = "must be a brand, or 0 for all"
    if not is_kind(kind):
        raise BadRule(violations | {"kind": "must be a known kind"})
    known = AlertKind(kind)
    if known in OF_THE_HOUSE and brand_id != HOUSE:
        violations["brand_id"] = f"must be 0: {known.name} concerns no brand"
    if sms_type not in {0, 1, 2, 3} or (sms_type and known not in BY_TYPE):
        violations["sms_type"] = "must be a known type, and is for FAILURES and QUEUE_AGE only"
    values = {name: bounds.default for name, bounds in FIGURES[known].items()}
    for name, value in figures.items():
        bounds = FIGURES[known].get(name)
        if bounds is None:
            violations[name] = f"is no figure of {known.name}"
        elif not bounds.lowest <= value <= bounds.highest:
            violations[name] = f"must be {bounds.lowest} to {bounds.highest}"
        else:
            values[name] = value
    if known is AlertKind.LOW_BALANCE and not values["segments"] and not values["days"]:
        violations["days"] = "must be at least 1, or segments must"
    addresses = tuple(dict.fromkeys(each.strip() for each in recipients))
    if len(addresses) > RECIPIENTS_MAX:
        violations["recipients"] = f"must be at most {RECIPIENTS_MAX}"
    elif not all(is_recipient(each) for each in addresses):
        violations["recipients"] = "must be addresses such as ops@example.com"
    if violations:
        raise BadRule(violations)
    return Rule(brand_id, known, sms_type, enabled, recipients=addresses, webhooks=webhooks, **values)


def is_kind(number: int) -> bool:
    """Whether a number is a kind's."""
    return number in AlertKind.__members__.values()


def is_recipient(address: str) -> bool:
    """Whether mail can be sent there, as far as it tells by itself."""
    return len(address) <= RECIPIENT_CHARACTERS_MAX and _RECIPIENT.fullmatch(address) is not None


class RuleBook:
    """All rules, asked for what holds for a brand: its own before the house's, one for the type before one for any."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = {(rule.brand_id, rule.kind, rule.sms_type): rule for rule in rules}
        self._kinds = {rule.kind for rule in self._rules.values() if rule.enabled}

    def watches(self, *kinds: AlertKind) -> bool:
        """Whether any rule of these kinds is enabled."""
        return not self._kinds.isdisjoint(kinds)

    def find(self, brand_id: int, kind: AlertKind, sms_type: int = 0) -> Rule | None:
        """The rule that holds; None: there is none, or it is disabled."""
        for owner in (brand_id, HOUSE):
            for of_type in (sms_type, 0):
                rule = self._rules.get((owner, kind, of_type))
                if rule is not None:
                    return rule if rule.enabled else None
        return None


class Verdict(enum.Enum):
    """What an observation says: NEITHER opens no alert and lets none recover."""

    BAD = "bad"
    NEITHER = "neither"
    GOOD = "good"


Figures = Mapping[str, int | float | str | None]


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of one thing that a rule watches. `subject` tells several of a brand and kind apart."""

    brand_id: int
    kind: AlertKind
    subject: str
    verdict: Verdict
    rule: Rule
    figures: Figures = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What it is about."""
        return self.brand_id, self.kind, self.subject


Key = tuple[int, AlertKind, str]


def _lower_is_worse(value: float, limit: float) -> Verdict:
    if value < limit:
        return Verdict.BAD
    return Verdict.GOOD if value * _MARGIN_PARTS >= limit * (_MARGIN_PARTS + 1) else Verdict.NEITHER


def _higher_is_worse(value: float, limit: float) -> Verdict:
    if value >= limit:
        return Verdict.BAD
    return Verdict.GOOD if value * _MARGIN_PARTS <= limit * (_MARGIN_PARTS - 1) else Verdict.NEITHER


def _worst(*verdicts: Verdict) -> Verdict:
    return next(each for each in (Verdict.BAD, Verdict.NEITHER, Verdict.GOOD) if each in verdicts)


def days_left(available: int, paid: int, age: timedelta) -> float:
    """How long segments last at the rate of the last seven days, or of the brand's life if that is shorter.

    Args:
        available: segments that can be spent.
        paid: segments paid in the last seven days, less refunds.
        age: of the brand; less than a day counts as one, for an hour says nothing of a day.
    """
    if paid <= 0:
        return math.inf
    return available * min(max(age / _DAY, 1.0), _RATE_DAYS) / paid


def low_balance(rule: Rule, *, brand_id: int, available: int, paid: int, age: timedelta) -> Observation:
    """Whether a brand runs dry. Parameters as those of `days_left`."""
    left = days_left(available, paid, age)
    verdicts = []
    if rule.segments:
        verdicts.append(_lower_is_worse(available, rule.segments))
    if rule.days:
        # A drained brand that has not sent for a week has not got better.
        nothing = available == 0 and math.isinf(left)
        verdicts.append(Verdict.NEITHER if nothing else _lower_is_worse(left, rule.days))
    figures: Figures = {
        "available": available,
        "paid_last_7_days": paid,
        "days_left": None if math.isinf(left) else round(left, 1),
        "limit_segments": rule.segments,
        "limit_days": rule.days,
    }
    return Observation(brand_id, rule.kind, "", _worst(*verdicts), rule, figures)


def expiring(rule: Rule, *, brand_id: int, expires_at: datetime, segments: int, now: datetime) -> Observation:
    """Whether a package is about to end with something left. Each end is an alert of its own."""
    bad = now < expires_at <= now + rule.days * _DAY and segments >= rule.segments
    subject = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    figures: Figures = {"expires_at": subject, "segments": segments, "limit_days": rule.days}
    return Observation(brand_id, rule.kind, subject, Verdict.BAD if bad else Verdict.GOOD, rule, figures)


def failures(rule: Rule, *, brand_id: int, final: int, failed: int, subject: str) -> Observation:
    """Whether too large a share of the messages that became final in the rule's window failed."""
    percent = 100 * failed / final if final else 0.0
    if final >= rule.count:
        verdict = _higher_is_worse(percent, rule.percent)
    else:
        # Too few to judge by.
        verdict = Verdict.NEITHER if failed else Verdict.GOOD
    figures: Figures = {
        "failed": failed,
        "final": final,
        "percent": round(percent, 1),
        "minutes": rule.minutes,
        "limit_percent": rule.percent,
    }
    return Observation(brand_id, rule.kind, subject, verdict, rule, figures)


def queue_age(rule: Rule, *, brand_id: int, oldest_seconds: float, subject: str) -> Observation:
    """Whether messages wait for too long."""
    verdict = _higher_is_worse(oldest_seconds, rule.minutes * 60)
    figures: Figures = {"oldest_seconds": round(oldest_seconds), "limit_minutes": rule.minutes}
    return Observation(brand_id, rule.kind, subject, verdict, rule, figures)


def carrier_down(rule: Rule, *, account: str, states: Mapping[str, str], works: str) -> Observation:
    """Whether workers do not call an account: it is stopped, or calls fail. `states` by worker; `works` is good."""
    others = sorted({state for state in states.values() if state != works})
    figures: Figures = {"state": ", ".join(others) or works, "workers": sum(s != works for s in states.values())}
    verdict = Verdict.BAD if others else Verdict.GOOD
    return Observation(HOUSE, rule.kind, account, verdict, rule, figures)


def carrier_low(rule: Rule, *, account: str, low: bool, balance: int | None, alert: int) -> Observation:
    """Whether an account at a carrier is nearly empty, by the account's own alert."""
    verdict = Verdict.BAD if low else Verdict.GOOD
    return Observation(HOUSE, rule.kind, account, verdict, rule, {"balance": balance, "limit_segments": alert})


def parked(rule: Rule, *, what: str, count: int) -> Observation:
    """Whether work waits for an operator."""
    verdict = Verdict.BAD if count >= rule.count else Verdict.GOOD
    return Observation(HOUSE, rule.kind, what, verdict, rule, {"count": count, "limit_count": rule.count})


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is not over. `opened_at` None: it may become one, nobody was told; `good_since`: it may be over.

    `recipients` and (`webhooks`) webhooks heard that it opened.
    """

    brand_id: int
    alert_id: str
    kind: AlertKind
    subject: str
    since: datetime
    opened_at: datetime | None
    good_since: datetime | None
    recipients: tuple[str, ...] = ()
    webhooks: bool = True

    @property
    def key(self) -> Key:
        """What it is about."""
        return self.brand_id, self.kind, self.subject


class Move(enum.Enum):
    """What an observation changes."""

    NOTHING = "nothing"
    BEGIN = "begin"  # what is watched for holds; not told yet
    OPEN_NEW = "open new"  # it is told at once
    OPEN = "open"  # it has held for long enough: told
    DROP = "drop"  # it held for too short a time
    EASE = "ease"  # it seems to be over
    WORSEN = "worsen"  # it was not over
    RECOVER = "recover"  # it is over: told


def move(alert: Alert | None, verdict: Verdict, now: datetime, hold: timedelta) -> Move:
    """What an observation changes of an alert, None: there is none."""
    bad = verdict is Verdict.BAD
    if alert is None:
        held, short = (Move.OPEN_NEW if not hold else Move.BEGIN), Move.NOTHING
    elif alert.opened_at is None:
        held, short = (Move.OPEN if now - alert.since >= hold else Move.NOTHING), Move.DROP
    else:
        return _move_of_open(alert, verdict, now, hold)
    return held if bad else short


def _move_of_open(alert: Alert, verdict: Verdict, now: datetime, hold: timedelta) -> Move:
    if verdict is not Verdict.GOOD:
        return Move.NOTHING if alert.good_since is None else Move.WORSEN
    if not hold or (alert.good_since is not None and now - alert.good_since >= hold):
        return Move.RECOVER
    return Move.EASE if alert.good_since is None else Move.NOTHING
