"""Which carrier accounts a message may take, and in which order. Pure logic, no I/O.

A rule names an account for a brand (0: all), a type (0: any) and a prefix of numbers ('': any). Of the rules that fit
a message

* the more specific go first: a brand's before those of all, then a type's before those of any, then the longer prefix;
* then the smaller priority (as MX records have it, RFC 5321);
* among equals the weights draw by lot (as SRV records have it, RFC 2782); a weight of 0 comes after all others.

What comes after the first is the order to fall back in; an account that several rules name counts where it comes first.
Where no rule fits, the default account is taken: the one that the environment sets up, as `SMSBILL_CARRIER_ACCOUNT`
calls it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PREFIX_DIGITS_MAX = 15
"""Digits of a number in E.164 at most, so of a prefix."""
# Plans are made anew beyond these; rules for 10,000 brands and prefixes are more than anybody keeps.
_PLANS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        brand_id: the brand that it is for; 0: all.
        sms_type: the type that it is for; 0: any.
        prefix: how numbers in E.164 begin (`+8613`); empty: any.
        account_id: the account that it leads to.
        priority: smaller goes first.
        weight: share among rules of the same priority; 0: only after all others.
    """

    brand_id: int
    sms_type: int
    prefix: str
    account_id: str
    priority: int
    weight: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where messages of one brand, type and prefix may go: tiers, tried one after another. An account stands in one
    tier only. Numbers with equal plans may go in one call.

    Attributes:
        tiers: accounts with their weights, sorted, that weights choose among.
    """

    tiers: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def accounts(self) -> tuple[str, ...]:
        """All of them, tier by tier."""
        return tuple(account_id for tier in self.tiers for account_id, _ in tier)

    def order(self, seed: str) -> tuple[str, ...]:
        """The accounts in the order in which they are tried. The same seed gives the same order, everywhere."""
        return tuple(
            account_id
            for number, tier in enumerate(self.tiers)
            for account_id in (_drawn(tier, f"{seed}/{number}") if len(tier) > 1 else (tier[0][0],))
        )


class Routing:
    """All rules.

    Parameters: `default` the account where no rule fits; None: then there is no way.
    """

    def __init__(self, rules: Iterable[Rule] = (), *, default: str | None = None) -> None:
        self._default = Plan(()) if default is None else Plan((((default, 1),),))
        self._by_kind: defaultdict[tuple[int, int], dict[str, list[Rule]]] = defaultdict(dict)
        for rule in rules:
            self._by_kind[rule.brand_id, rule.sms_type].setdefault(rule.prefix, []).append(rule)
        self._plans: dict[tuple[int, int, tuple[str, ...]], Plan] = {}

    @property
    def has_rules(self) -> bool:
        """Whether there is any; without one everything takes the default account."""
        return bool(self._by_kind)

    def plan(self, brand_id: int, sms_type: int, mobile: str) -> Plan:
        """Where a message to a number in E.164 may go; without tiers: nowhere."""
        if not self._by_kind:
            return self._default
        # Which rules fit is told by the prefixes that do; so numbers that are alike share a plan that is made once.
        fitting = [
            (kind, prefix)
            for kind in _kinds(brand_id, sms_type)
            if (by_prefix := self._by_kind.get(kind))
            for prefix in _prefixes(mobile, by_prefix)
        ]
        key = (brand_id, sms_type, tuple(f"{kind}{prefix}" for kind, prefix in fitting))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._made([self._by_kind[kind][prefix] for kind, prefix in fitting])
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def depends_on_numbers(self, brand_id: int, sms_type: int) -> bool:
        """Whether messages of a brand and type may have different plans."""
        return any(any(self._by_kind.get(kind, ())) for kind in _kinds(brand_id, sms_type))

    def parts(self, brand_id: int, sms_type: int, mobiles: Sequence[str]) -> list[tuple[Plan, list[str]]]:
        """Numbers in E.164 by their plans, each part in the order given; one part where all have the same."""
        if not self.depends_on_numbers(brand_id, sms_type):
            return [(self.plan(brand_id, sms_type, mobiles[0]), list(mobiles))]
        parts: dict[Plan, list[str]] = {}
        for mobile in mobiles:
            parts.setdefault(self.plan(brand_id, sms_type, mobile), []).append(mobile)
        return list(parts.items())

    def accounts(self, brand_id: int, sms_type: int) -> set[str]:
        """Every account that messages of a brand and type may take."""
        named = {
            rule.account_id
            for kind in _kinds(brand_id, sms_type)
            for rules in self._by_kind.get(kind, {}).values()
            for rule in rules
        }
        anywhere = any("" in self._by_kind.get(kind, {}) for kind in _kinds(brand_id, sms_type))
        return named if anywhere else named | set(self._default.accounts)

    def _made(self, groups: Sequence[Sequence[Rule]]) -> Plan:
        tiers: list[tuple[tuple[str, int], ...]] = []
        seen: set[str] = set()
        for rules in groups:
            for priority in sorted({rule.priority for rule in rules}):
                weights: dict[str, int] = {}
                for rule in rules:
                    if rule.priority == priority and rule.account_id not in seen:
                        weights[rule.account_id] = weights.get(rule.account_id, 0) + rule.weight
                if weights:
                    tiers.append(tuple(sorted(weights.items())))
                    seen.update(weights)
        return Plan(tuple(tiers)) if tiers else self._default


def _kinds(brand_id: int, sms_type: int) -> tuple[tuple[int, int], ...]:
    """Whose rules fit, the most specific first."""
    return ((brand_id, sms_type), (brand_id, 0), (0, sms_type), (0, 0))


def _prefixes(mobile: str, known: dict[str, list[Rule]]) -> list[str]:
    """The prefixes of a number that have rules, the longest first."""
    if len(known) == 1 and "" in known:
        return [""]
    return [mobile[:size] for size in range(min(len(mobile), PREFIX_DIGITS_MAX + 1), -1, -1) if mobile[:size] in known]


def _drawn(tier: Sequence[tuple[str, int]], seed: str) -> list[str]:
    """Accounts drawn one after another, each by its share of the weights that are left.

    A draw for each account by an exponential clock: the order of u ** (1 / weight), largest first, is that of drawing
    by shares without putting back (Efraimidis and Spirakis, 2006).
    """

    def key(entry: tuple[str, int]) -> tuple[int, float, str]:
        account_id, weight = entry
        digest = hashlib.blake2b(f"{seed}/{account_id}".encode(), digest_size=8).digest()
        # Between 0 and 1, neither included.
        chance = (int.from_bytes(digest, "big") + 0.5) / 2.0**64
        if weight <= 0:
            return (1, chance, account_id)
        return (0, -(chance ** (1.0 / weight)), account_id)

    return [account_id for account_id, _ in sorted(tier, key=key)]
