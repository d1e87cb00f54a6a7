"""Aim: whatever happens in whatever order, a breaker lets through no more than it may, and never stays shut.

Method: Hypothesis draws rules and a history of callers that come, succeed, fail, give up and are late."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from workers.breaker import Breaker, Permit, Rules, State

RULES = st.builds(
    Rules,
    in_a_row=st.integers(1, 5),
    share=st.floats(0.1, 1.0),
    calls_min=st.integers(1, 10),
    window_seconds=st.floats(0.5, 20),
    rest_seconds=st.floats(0.5, 10),
    rest_seconds_max=st.floats(0.5, 30),
    trials=st.integers(1, 4),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "good", "bad", "not made", "trip"]),
        st.floats(0, 15, allow_nan=False),
        st.integers(0, 20),
    ),
    max_size=80,
)


@dataclass
class History:
    """What the callers know."""

    now: float = 1_000.0
    under_way: list[Permit] = field(default_factory=list)
    tripped_until: float = 0.0


@given(rules=RULES, steps=STEPS, chance=st.floats(0, 1))
def test_any_history(rules: Rules, steps: list[tuple[str, float, int]], chance: float) -> None:
    """Open it lets nobody in before its time; half-open no more than its trials; and then it can be closed."""
    breaker, history = Breaker(rules, chance=lambda: chance), History()
    for what, seconds, which in steps:
        history.now += seconds
        if what == "enter":
            enter(breaker, rules, history)
        elif what == "trip":
            breaker.trip(history.now, seconds)
            history.tripped_until = max(history.tripped_until, history.now + seconds)
            assert breaker.state is State.OPEN
        elif history.under_way:
            permit = history.under_way.pop(which % len(history.under_way))
            good = {"good": True, "bad": False, "not made": None}[what]
            before = breaker.state
            breaker.leave(permit, history.now, good=good)
            # Good news open nothing, no news change nothing.
            assert good is False or breaker.state in (before, State.CLOSED)
            assert good is not None or breaker.state is before
        assert_bounds(breaker, rules, history)
    recovers(breaker, rules, history)


def enter(breaker: Breaker, rules: Rules, history: History) -> None:
    wait, before = breaker.wait_seconds(history.now), breaker.state
    permit = breaker.enter(history.now)
    # Whoever is told to come now gets in, and nobody else.
    assert (permit is not None) == (wait == 0)
    if before is State.OPEN and permit is not None:
        assert history.now >= history.tripped_until
    if permit is None:
        return
    history.under_way.append(permit)
    if breaker.state is State.HALF_OPEN:
        assert sum(other == permit for other in history.under_way) <= rules.trials


def assert_bounds(breaker: Breaker, rules: Rules, history: History) -> None:
    longest = max(rules.rest_seconds_max, history.tripped_until - history.now, 0.2)
    assert breaker.wait_seconds(history.now) <= longest + 1e-6
    # What it remembers does not grow with what it has seen.
    assert len(breaker._counts) <= 11


def recovers(breaker: Breaker, rules: Rules, history: History) -> None:
    """All calls that are under way end unmade; then rests pass, calls are good, and it is closed."""
    for unmade in history.under_way:
        breaker.leave(unmade, history.now, good=None)
    for _ in range(rules.trials + 1):
        history.now += breaker.wait_seconds(history.now) + 1e-6
        permit = breaker.enter(history.now)
        assert permit is not None
        breaker.leave(permit, history.now, good=True)
    assert breaker.state is State.CLOSED
