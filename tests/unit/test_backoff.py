"""Aim: waits double, keep their bounds, and do not fall together."""

from __future__ import annotations

import pytest

from workers.backoff import delay_seconds


@pytest.mark.parametrize(("failures", "full"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1_000, 60)])
def test_waits_double_up_to_their_bound(failures: int, full: float) -> None:
    """With the greatest chance the wait is the full one, with the least half of it, never beyond the bound."""
    assert delay_seconds(failures, base=1, longest=60, chance=lambda: 1.0) == full
    assert delay_seconds(failures, base=1, longest=60, chance=lambda: 0.0) == full / 2


def test_waits_are_spread() -> None:
    """Many that failed together try again apart."""
    waits = {round(delay_seconds(4, base=1, longest=60), 6) for _ in range(100)}
    assert len(waits) > 90
    assert all(4 <= wait <= 8 for wait in waits)
