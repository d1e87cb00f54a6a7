"""What the bench of recovery makes of the moments at which the carrier took messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.price import VARIANTS, WHOLE, saved
from bench.recovery import recovery
from scripts.mutations import Mutation

ROOT = Path(__file__).resolve().parents[2]
FAULT_AT = 1_000.0
WHOLE_RATE = 50


def moments(low: dict[int, int]) -> list[float]:
    """Messages in each second from 4 before the fault to 20 after it; others than the whole rate in some of them."""
    found = []
    for second in range(-4, 20):
        count = low.get(second, WHOLE_RATE)
        found += [FAULT_AT + second + each / (count + 1) for each in range(count)]
    return found


def test_a_rate_that_falls_again_is_back_and_not_yet_whole() -> None:
    """Both moments are told, in seconds after the fault, and what was not taken."""
    found = recovery(moments({**dict.fromkeys(range(6), 5), 10: 20}), FAULT_AT, WHOLE_RATE, 20)
    assert (found["back_seconds"], found["whole_seconds"], found["missing_share"]) == (6, 11, 0.3)


def test_a_fault_that_nobody_notices_takes_no_time() -> None:
    """Aim: a second that is short and made up for in the next two is no fault; nine tenths count as whole."""
    found = recovery(moments({3: 40, 4: 60, 9: 45, 10: 45, 11: 45}), FAULT_AT, WHOLE_RATE, 20)
    assert (found["back_seconds"], found["whole_seconds"]) == (0, 0)


def test_a_rate_that_never_comes_back_has_no_time() -> None:
    """It is told apart from one that took long."""
    found = recovery(moments(dict.fromkeys(range(20), 44)), FAULT_AT, WHOLE_RATE, 20)
    assert (found["back_seconds"], found["whole_seconds"]) == (None, None)


def test_prices_are_shares_of_the_rate_without_and_of_the_time_with() -> None:
    """Aim: a price of rate is told of the copy's rate, a price of time of the whole tree's time, round by round, and
    the copies can be made of the code as it is.
    """
    found = saved({WHOLE: [90, 80], "without mark": [100, 100]}, {WHOLE: [4, 5], "without mark": [3, 5]})
    assert found == {"without mark": {"rate": pytest.approx([0.1, 0.2]), "time": pytest.approx([0.25, 0])}}
    assert [problem for name, edits in VARIANTS.items() for problem in Mutation(name, "", edits).problems(ROOT)] == []
