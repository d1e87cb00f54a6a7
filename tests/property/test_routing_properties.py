"""Aim: whatever the rules, the order is right. Method: random rules against a model that sorts all that fit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from smsgateway.routing import Routing, Rule

MOBILES = ("+8613800138000", "+8613912345678", "+14155550100")
PREFIXES = ("", "+", "+8", "+86", "+86138", "+8613800138000", "+1415")
RULES = st.lists(
    st.builds(
        Rule,
        brand_id=st.sampled_from((0, 7, 8)),
        sms_type=st.sampled_from((0, 1, 3)),
        prefix=st.sampled_from(PREFIXES),
        account_id=st.sampled_from("abcd"),
        priority=st.integers(0, 2),
        weight=st.integers(0, 3),
    ),
    max_size=12,
    unique_by=lambda rule: (rule.brand_id, rule.sms_type, rule.prefix, rule.account_id),
)


def _rank(rule: Rule) -> tuple[int, int, int, int]:
    return (rule.brand_id == 0, rule.sms_type == 0, -len(rule.prefix), rule.priority)


def _fits(rule: Rule, brand: int, kind: int, mobile: str) -> bool:
    return rule.brand_id in (0, brand) and rule.sms_type in (0, kind) and mobile.startswith(rule.prefix)


@settings(deadline=None, max_examples=150)
@given(RULES, st.sampled_from((7, 9)), st.sampled_from((1, 2)), st.sampled_from(MOBILES), st.text(max_size=4))
def test_the_order_is_that_of_the_ranks(rules: list[Rule], brand: int, kind: int, mobile: str, seed: str) -> None:
    """Every account that a fitting rule names, once, by its best rank; within a rank those with a weight first."""
    fitting = sorted((rule for rule in rules if _fits(rule, brand, kind, mobile)), key=_rank)
    best: dict[str, tuple[int, int, int, int]] = {}
    weights: dict[str, int] = {}
    for rule in fitting:
        if best.setdefault(rule.account_id, _rank(rule)) == _rank(rule):
            weights[rule.account_id] = weights.get(rule.account_id, 0) + rule.weight
    routing = Routing(rules, default="env")
    order = routing.plan(brand, kind, mobile).order(seed)
    assert sorted(order) == (sorted(best) or ["env"])
    if best:
        ranked = [(best[account], weights[account] == 0) for account in order]
        assert ranked == sorted(ranked)
    assert routing.plan(brand, kind, mobile).order(seed) == order
    assert set(order) <= routing.accounts(brand, kind)


@settings(deadline=None, max_examples=100)
@given(RULES, st.lists(st.sampled_from(MOBILES), min_size=1, max_size=3, unique=True))
def test_parts_hold_each_number_once_and_agree_with_its_plan(rules: list[Rule], mobiles: list[str]) -> None:
    """However the numbers are parted, each goes where it would go alone."""
    routing = Routing(rules, default="env")
    parts = routing.parts(7, 1, mobiles)
    assert sorted(number for _, numbers in parts for number in numbers) == sorted(mobiles)
    assert len({plan for plan, _ in parts}) == len(parts)
    for plan, numbers in parts:
        assert all(routing.plan(7, 1, number) == plan for number in numbers)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), min_size=2), st.integers(0, 10**6))
def test_weights_are_shares(weights: dict[str, int], salt: int) -> None:
    """Of 2,000 messages each account gets its share of the first places, give or take five standard deviations."""
    routing = Routing([Rule(0, 0, "", account, 0, weight) for account, weight in weights.items()])
    plan = routing.plan(7, 1, MOBILES[0])
    firsts = [plan.order(f"{salt}-{number}")[0] for number in range(2_000)]
    for account, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = (2_000 * share * (1 - share)) ** 0.5
        assert abs(firsts.count(account) - 2_000 * share) < 5 * deviation + 1
