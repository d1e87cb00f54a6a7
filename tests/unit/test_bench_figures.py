"""What a bench says of its goals."""

from __future__ import annotations

import pytest

from bench.figures import Figure


@pytest.mark.parametrize(
    ("aim", "at_most", "reached", "share"),
    [
        (100, False, True, 1.2),
        (150, False, False, 0.8),
        (120, True, True, 1.0),
        (60, True, False, 0.5),
        (None, True, None, None),
    ],
)
def test_the_median_of_the_rounds_decides(
    aim: float | None, at_most: bool, reached: bool | None, share: float | None
) -> None:
    """An aim is kept by the median, at least or at most; its share is 1 when it is just kept."""
    figure = Figure(1, "name", "calls/s", [10, 120, 1_000], aim=aim, at_most=at_most)
    assert figure.median == 120
    assert figure.reached is reached
    if share is not None:
        assert figure.share(figure.median) == pytest.approx(share)


def test_nothing_of_what_is_to_be_small_can_be_drawn() -> None:
    """A growth of zero, or below, has a finite share."""
    assert Figure(6, "memory", "MB", [-1.0], aim=50, at_most=True).share(-1.0) == 100
    assert Figure(4, "marketing", "/s", [-1.0], aim=1).share(-1.0) == 0.01
