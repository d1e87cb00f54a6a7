"""Aim: a message takes the account that the rules mean, in the order that they mean. Method: rules and messages."""

from __future__ import annotations

from collections import Counter

from smsgateway.routing import Plan, Routing, Rule

BRAND, OTHER = 7, 8
CODE, MARKETING = 1, 3
MOBILE = "+8613800138000"


def rule(account: str, brand: int = 0, kind: int = 0, prefix: str = "", priority: int = 0, weight: int = 1) -> Rule:
    return Rule(brand, kind, prefix, account, priority, weight)


def order(routing: Routing, brand: int = BRAND, kind: int = CODE, mobile: str = MOBILE) -> tuple[str, ...]:
    return routing.plan(brand, kind, mobile).order("seed")


def test_without_rules_the_default_is_taken() -> None:
    """And without a default there is no way."""
    assert order(Routing(default="env")) == ("env",)
    assert order(Routing()) == ()
    assert not Routing(default="env").has_rules


def test_where_no_rule_fits_the_default_is_taken() -> None:
    """A rule for others changes nothing."""
    routing = Routing([rule("a", brand=OTHER), rule("b", prefix="+1")], default="env")
    assert order(routing) == ("env",)
    assert order(routing, brand=OTHER) == ("a",)
    assert order(routing, mobile="+14155550100") == ("b",)


def test_the_more_specific_rule_goes_first() -> None:
    """The brand's before all brands', then the type's, then the longer prefix; priority decides only among equals."""
    rules = [
        rule("all", priority=0),
        rule("long", prefix="+86138", priority=1),
        rule("type", kind=CODE, priority=2),
        rule("brand", brand=BRAND, priority=3),
        rule("brand-prefix", brand=BRAND, prefix="+86", priority=4),
        rule("brand-type", brand=BRAND, kind=CODE, priority=5),
    ]
    assert order(Routing(reversed(rules))) == ("brand-type", "brand-prefix", "brand", "type", "long", "all")
    assert order(Routing(rules), kind=MARKETING) == ("brand-prefix", "brand", "long", "all")
    assert order(Routing(rules), brand=OTHER, kind=MARKETING, mobile="+4917") == ("all",)


def test_smaller_priorities_go_first_and_a_weight_of_zero_last() -> None:
    """Whatever the seed."""
    rules = [rule("later", priority=2, weight=100), rule("zero", weight=0), rule("one"), rule("two")]
    plan = Routing(rules).plan(BRAND, CODE, MOBILE)
    for seed in map(str, range(50)):
        first, second, third, fourth = plan.order(seed)
        assert {first, second} == {"one", "two"}
        assert (third, fourth) == ("zero", "later")


def test_weights_share_the_first_place_and_a_seed_keeps_its_draw() -> None:
    """Three to one, within what chance leaves of 4,000 draws; the same seed draws the same."""
    plan = Plan(((("a", 3), ("b", 1)),))
    draws = [plan.order(f"dispatch-{number}") for number in range(4_000)]
    assert draws == [plan.order(f"dispatch-{number}") for number in range(4_000)]
    assert 2_850 < Counter(order[0] for order in draws)["a"] < 3_150


def test_an_account_counts_where_it_comes_first() -> None:
    """Named by three rules it is tried once."""
    rules = [rule("a", brand=BRAND), rule("a"), rule("b", prefix="+86"), rule("a", prefix="+8613", priority=9)]
    assert order(Routing(rules)) == ("a", "b")


def test_numbers_that_go_different_ways_are_parted() -> None:
    """Those with equal plans stay together, whatever rules led there; each number is in one part, in its order."""
    routing = Routing([rule("a", prefix="+86138"), rule("a", prefix="+86139"), rule("b", prefix="+1")], default="env")
    mobiles = ["+8613800138000", "+14155550100", "+8613900138000", "+4915112345678", "+14155550101"]
    parts = {plan.accounts: numbers for plan, numbers in routing.parts(BRAND, CODE, mobiles)}
    assert parts == {
        ("a",): ["+8613800138000", "+8613900138000"],
        ("b",): ["+14155550100", "+14155550101"],
        ("env",): ["+4915112345678"],
    }


def test_numbers_are_looked_at_only_where_rules_name_them() -> None:
    """For another brand and type one part is enough."""
    routing = Routing([rule("a", brand=BRAND, kind=CODE, prefix="+86"), rule("b")])
    assert routing.depends_on_numbers(BRAND, CODE)
    assert not routing.depends_on_numbers(BRAND, MARKETING)
    assert not routing.depends_on_numbers(OTHER, CODE)
    assert len(routing.parts(OTHER, CODE, ["+8613800138000", "+14155550100"])) == 1


def test_the_accounts_of_a_brand_and_type_are_all_that_its_messages_may_take() -> None:
    """The default among them unless a rule fits every number."""
    routing = Routing([rule("a", prefix="+86"), rule("b", brand=BRAND)], default="env")
    assert routing.accounts(BRAND, CODE) == {"a", "b"}
    assert routing.accounts(OTHER, CODE) == {"a", "env"}
