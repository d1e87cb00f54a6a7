"""The set of a file's numbers says the same as a set of Python's."""

from __future__ import annotations

import random

import pytest

from smsbill import seen_numbers
from smsbill.failure import CommandError
from smsbill.seen_numbers import SeenNumbers


def test_it_is_a_set() -> None:
    """With many that are near each other, many far apart, and each asked for again, past several growths."""
    chosen = random.Random(7)
    mobiles = [f"+86138{number:08d}" for number in range(60_000)]
    mobiles += [f"+{chosen.randint(10_000_000, 999_999_999_999_999)}" for _ in range(60_000)]
    mobiles += chosen.sample(mobiles, 20_000)
    seen, known = SeenNumbers(), set[str]()
    for mobile in mobiles:
        assert seen.add(mobile) is (mobile not in known)
        known.add(mobile)
    assert len(seen) == len(known)


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound it says what to do."""
    monkeypatch.setattr(seen_numbers, "SLOTS_MAX", 1 << 16)
    seen = SeenNumbers()
    for number in range(3 << 14):
        seen.add(f"+86139{number:08d}")
    with pytest.raises(CommandError, match="split it"):
        seen.add("+8613800138000")
