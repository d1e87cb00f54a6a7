"""Lines: which segments a payment, a release and a refund take."""

from __future__ import annotations

import pytest

from costcenter.lines import Line, cut, cut_back, overlap

LINES: list[Line] = [(1, 3), (2, 4), (3, 2)]


@pytest.mark.parametrize(
    ("start", "count", "part"),
    [
        (0, 0, []),
        (0, 1, [(1, 1)]),
        (0, 3, [(1, 3)]),
        (0, 4, [(1, 3), (2, 1)]),
        (2, 2, [(1, 1), (2, 1)]),
        (3, 4, [(2, 4)]),
        (3, 5, [(2, 4), (3, 1)]),
        (8, 1, [(3, 1)]),
        (9, 0, []),
        (0, 9, LINES),
    ],
)
def test_a_cut_takes_the_lines_in_order(start: int, count: int, part: list[Line]) -> None:
    """Segments are counted from 0 along the lines; a part of a line keeps its package and none is empty."""
    assert cut(LINES, start, count) == part


@pytest.mark.parametrize(
    ("end", "count", "part"),
    [(9, 0, []), (9, 2, [(3, 2)]), (9, 3, [(3, 2), (2, 1)]), (7, 5, [(2, 4), (1, 1)]), (9, 9, LINES[::-1])],
)
def test_a_cut_from_the_back_takes_the_last_line_first(end: int, count: int, part: list[Line]) -> None:
    """Releases and refunds go from the end to the front."""
    assert cut_back(LINES, end, count) == part


@pytest.mark.parametrize(("start", "count"), [(0, 10), (9, 1), (5, 5), (-1, 1), (0, -1)])
def test_a_cut_beyond_the_lines_is_a_fault(start: int, count: int) -> None:
    """More than there is stops the transaction instead of making segments up."""
    with pytest.raises(AssertionError):
        cut(LINES, start, count)


def test_cuts_that_follow_each_other_cover_every_segment_once() -> None:
    """However lines are cut in two, the parts' segments add up line by line."""
    for middle in range(10):
        parts = cut(LINES, 0, middle) + cut(LINES, middle, 9 - middle)
        assert {p: sum(n for q, n in parts if q == p) for p in (1, 2, 3)} == dict(LINES)


def test_overlap_counts_each_line() -> None:
    """One count per line, zeros included, so that it can be zipped with the lines."""
    assert overlap(LINES, 0, 9) == [3, 4, 2]
    assert overlap(LINES, 2, 8) == [1, 4, 1]
    assert overlap(LINES, 4, 5) == [0, 1, 0]
    assert overlap(LINES, 5, 5) == [0, 0, 0]
    assert overlap([], 0, 0) == []
