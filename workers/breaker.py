"""When to stop calling what fails, and when to try again: a circuit breaker. Pure logic, the clock is passed in.

Closed: calls are made. After too many failures it opens: no call is made for a rest with jitter, longer from one
opening to the next (https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker). Then it is half-open: a
few calls are tried; if all of them are good it closes, and the first that is not opens it again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from workers.backoff import delay_seconds

# Parts of the window in which calls are counted together: enough to slide, few enough to sum up for each failure.
_PARTS = 10
# Until a trial has ended there is nothing to wait for by time; it lasts as long as a call.
_ASK_AGAIN_SECONDS = 0.2


class State(Enum):
    """Whether calls are made."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Rules:
    """When a breaker opens and how it closes.

    Attributes:
        in_a_row: failures one after another that open it; a pause of a window begins a new row.
        share: share of failures among the calls of a window that opens it, from 0 to 1.
        calls_min: calls of a window before their share counts.
        window_seconds: how far back calls count.
        rest_seconds: the first rest, at most; it doubles from one opening to the next.
        rest_seconds_max: the longest rest.
        trials: good calls that close it again, and calls tried at once while it is half-open.
    """

    in_a_row: int
    share: float
    calls_min: int
    window_seconds: float
    rest_seconds: float
    rest_seconds_max: float
    trials: int


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call. It counts in the spell in which it was given, and in no other."""

    spell: int


class Breaker:
    """A circuit breaker. Moments are seconds of any clock that never goes back.

    Parameters: `chance` draws the jitter, from 0 to 1.
    """

    def __init__(self, rules: Rules, *, chance: Callable[[], float] = random.random) -> None:
        assert rules.in_a_row > 0
        assert rules.calls_min > 0
        assert rules.trials > 0
        self._rules = rules
        self._chance = chance
        self._state = State.CLOSED
        # Each change of state begins one: calls begun before say nothing about what came after.
        self._spell = 0
        self._until = 0.0
        self._openings = 0
        self._under_trial = self._good_trials = 0
        self._row = 0
        self._failed_at = 0.0
        # (part of time, calls, failures), oldest first.
        self._counts: deque[list[int]] = deque()

    @property
    def state(self) -> State:
        """The state; an open one whose rest is over becomes half-open with the next `enter`."""
        return self._state

    def wait_seconds(self, now: float) -> float:
        """How long to wait before `enter` is worth a try; 0: now."""
        if self._state is State.OPEN:
            return max(0.0, self._until - now)
        return 0.0 if self._state is State.CLOSED or self._trials_left else _ASK_AGAIN_SECONDS

    def enter(self, now: float) -> Permit | None:
        """Leave to make a call, to be answered by one `leave`; None when none is to be made now."""
        if self._state is State.OPEN:
            if now < self._until:
                return None
            self._begin(State.HALF_OPEN)
        if self._state is State.HALF_OPEN:
            if not self._trials_left:
                return None
            self._under_trial += 1
        return Permit(self._spell)

    def leave(self, permit: Permit, now: float, *, good: bool | None) -> None:
        """A call has ended: well, badly, or (None) was not made."""
        if permit.spell != self._spell:
            return
        if self._state is State.HALF_OPEN:
            self._under_trial -= 1
        if good is None:
            return
        if self._state is State.HALF_OPEN:
            self._judge_trial(now, good)
        else:
            self._count(now, good)

    def trip(self, now: float, seconds: float) -> None:
        """Make no call for so long, whatever was counted."""
        if self._state is not State.OPEN:
            self._begin(State.OPEN)
        self._until = max(self._until, now + seconds)

    @property
    def _trials_left(self) -> bool:
        return self._under_trial + self._good_trials < self._rules.trials

    def _judge_trial(self, now: float, good: bool) -> None:
        if not good:
            self._open(now)
            return
        self._good_trials += 1
        if self._good_trials >= self._rules.trials:
            self._openings = 0
            self._begin(State.CLOSED)

    def _count(self, now: float, good: bool) -> None:
        rules = self._rules
        part = int(now * _PARTS / rules.window_seconds)
        while self._counts and self._counts[0][0] <= part - _PARTS:
            self._counts.popleft()
        if not self._counts or self._counts[-1][0] != part:
            self._counts.append([part, 0, 0])
        self._counts[-1][1] += 1
        if good:
            self._row = 0
            return
        self._counts[-1][2] += 1
        self._row = 1 if now - self._failed_at > rules.window_seconds else self._row + 1
        self._failed_at = now
        calls = sum(count[1] for count in self._counts)
        failures = sum(count[2] for count in self._counts)
        if self._row >= rules.in_a_row or (calls >= rules.calls_min and failures >= rules.share * calls):
            self._open(now)

    def _open(self, now: float) -> None:
        self._openings += 1
        rules = self._rules
        rest = delay_seconds(
            self._openings, base=rules.rest_seconds, longest=rules.rest_seconds_max, chance=self._chance
        )
        self._begin(State.OPEN)
        self._until = now + rest

    def _begin(self, state: State) -> None:
        self._state = state
        self._spell += 1
        self._under_trial = self._good_trials = self._row = 0
        self._counts.clear()
