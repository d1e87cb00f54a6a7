"""Aim: what fails is left alone soon, tried again carefully, and used again when it works. Method: the breaker is pure
logic, so a test is its clock and its callers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from workers.breaker import Breaker, Permit, Rules, State

RULES = Rules(
    in_a_row=3, share=0.5, calls_min=8, window_seconds=10, rest_seconds=4, rest_seconds_max=20, trials=2
)  # fmt: skip


def breaker(**changes: Any) -> Breaker:
    """One whose rests have their full length."""
    return Breaker(replace(RULES, **changes), chance=lambda: 1.0)


def state(one: Breaker) -> State:
    """The state, which a checker of types believes to be able to change."""
    return one.state


def call(one: Breaker, now: float, *, good: bool) -> None:
    permit = one.enter(now)
    assert permit is not None
    one.leave(permit, now, good=good)


def opened(one: Breaker, now: float = 0.0) -> None:
    for _ in range(3):
        call(one, now, good=False)
    assert state(one) is State.OPEN


def test_failures_in_a_row_open_it() -> None:
    """The third in a row does; a good call between, or a pause of more than a window, begins a new row."""
    one = breaker()
    for good in (False, False, True, False, False):
        call(one, 0, good=good)
    assert state(one) is State.CLOSED
    call(one, 10.5, good=False)
    call(one, 11, good=False)
    assert state(one) is State.CLOSED
    call(one, 11, good=False)
    assert state(one) is State.OPEN
    assert (one.enter(11), one.wait_seconds(11)) == (None, 4)


def test_a_share_of_failures_opens_it() -> None:
    """Half of at least eight calls of a window; never three in a row."""
    one = breaker()
    for number in range(7):
        call(one, 0, good=number % 2 == 0)
    assert state(one) is State.CLOSED
    call(one, 0, good=False)
    assert state(one) is State.OPEN


def test_what_is_past_the_window_does_not_count() -> None:
    """The same failures, spread over more than a window, are too few."""
    one = breaker()
    for number in range(40):
        call(one, number * 3, good=number % 2 == 0)
    assert state(one) is State.CLOSED


def test_it_closes_after_good_trials() -> None:
    """After its rest two calls are tried at once, a third waits; both good, and all may call."""
    one = breaker()
    opened(one)
    assert one.enter(3.9) is None
    first, second, third = (one.enter(4) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is None
    assert one.wait_seconds(4) > 0
    one.leave(first, 5, good=True)
    assert (state(one), one.enter(5)) == (State.HALF_OPEN, None)
    one.leave(second, 5, good=True)
    assert state(one) is State.CLOSED
    assert all(one.enter(5) for _ in range(10))


def test_a_bad_trial_opens_it_again_for_longer() -> None:
    """Rests double to their bound, and begin anew once it has been closed."""
    one, now, rests = breaker(), 0.0, []
    opened(one)
    for _ in range(5):
        rests.append(one.wait_seconds(now))
        now += rests[-1]
        call(one, now, good=False)
    assert rests == [4, 8, 16, 20, 20]
    now += 20
    for _ in range(2):
        call(one, now, good=True)
    opened(one, now)
    assert one.wait_seconds(now) == 4


def test_a_trial_that_was_not_made_makes_room() -> None:
    """Who has leave and finds its message gone gives it back, and decides nothing."""
    one = breaker(trials=1)
    opened(one)
    permit = one.enter(4)
    assert permit is not None
    one.leave(permit, 4, good=None)
    assert state(one) is State.HALF_OPEN
    call(one, 4, good=True)
    assert state(one) is State.CLOSED


@pytest.mark.parametrize("good", [True, False])
def test_late_calls_decide_nothing(good: bool) -> None:
    """A call from before the rest neither closes it nor opens it again, nor takes a trial's place."""
    one = breaker()
    late = [permit for _ in range(5) if (permit := one.enter(0))]
    opened(one)
    one.leave(late.pop(), 1, good=good)
    trials = [one.enter(4), one.enter(4)]
    for permit in late:
        one.leave(permit, 4, good=good)
    assert (state(one), one.enter(4)) == (State.HALF_OPEN, None)
    for trial in trials:
        assert trial is not None
        one.leave(trial, 4, good=True)
    assert state(one) is State.CLOSED


def test_a_trip_lasts_as_long_as_it_says() -> None:
    """Also one that comes while it is open or tried; a shorter one shortens nothing."""
    one = breaker()
    one.trip(0, 60)
    one.trip(1, 2)
    assert one.enter(59) is None
    permit = one.enter(60)
    assert permit is not None
    one.trip(61, 30)
    one.leave(permit, 62, good=True)
    assert one.wait_seconds(62) == 29


def test_permits_tell_spells_apart() -> None:
    """Two of one spell are the same leave; those of another are not."""
    one = breaker()
    before = one.enter(0)
    assert before == one.enter(0) == Permit(before.spell if before else -1)
    opened(one)
    assert one.enter(4) != before
