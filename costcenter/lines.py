"""Lines: segments out of packages, in order.

A freeze's lines are laid end to end and its segments counted from 0. Payments take from the front and releases from the
back, so what became of each segment follows from three totals alone:

    0 ………… paid ………… paid + open ………… segments − released ………… segments
    | paid      | open                | timed out                  | released |

A payment's lines are read the same way: refunds take from its back.
"""

from __future__ import annotations

from collections.abc import Sequence

Line = tuple[int, int]  # (package_id, segments)


def cut(lines: Sequence[Line], start: int, count: int) -> list[Line]:
    """The part of the lines that covers `count` segments from `start`, in order; no line of it is empty."""
    assert start >= 0
    assert count >= 0
    end = start + count
    if len(lines) == 1:
        # Nearly all are so, and everything that is charged comes through here.
        assert end <= lines[0][1], "the lines are shorter than what is cut from them"
        return [(lines[0][0], count)] if count else []
    part: list[Line] = []
    offset = 0
    for package_id, segments in lines:
        low, high = max(offset, start), min(offset + segments, end)
        if low < high:
            part.append((package_id, high - low))
        offset += segments
        if offset >= end:
            break
    assert sum(segments for _, segments in part) == count, "the lines are shorter than what is cut from them"
    return part


def cut_back(lines: Sequence[Line], end: int, count: int) -> list[Line]:
    """The part that covers the `count` segments before `end`, last line first."""
    return cut(lines, end - count, count)[::-1]


def overlap(lines: Sequence[Line], start: int, end: int) -> list[int]:
    """How many segments of each line lie in [start, end)."""
    counts = []
    offset = 0
    for _, segments in lines:
        counts.append(max(0, min(offset + segments, end) - max(offset, start)))
        offset += segments
    return counts
