"""Figures as people read them. Units are those of the SI and the same in every language."""

from __future__ import annotations

from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3_600
_DAY: Final = 86_400


def duration(seconds: float | None) -> str:
    """A span of time in its two largest units: 0.42 s, 12 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{max(0.0, seconds):.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def days(value: float | None) -> str:
    """Days left, coarse as a forecast is: 0.4, 3.5, 12, 400."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def percent(share: float | None) -> str:
    """A share of 1 in percent, to a tenth; what is not quite all is not called all."""
    if share is None:
        return "–"
    shown = f"{100 * share:.1f}"
    if shown == "100.0" and share < 1:
        return "99.9 %"
    return f"{shown.removesuffix('.0')} %"


def rate(per_second: float | None) -> str:
    """Messages a second: two places below ten, none above a hundred."""
    if per_second is None:
        return "–"
    if per_second < 10:
        return f"{per_second:.2f}".rstrip("0").rstrip(".") or "0"
    return f"{per_second:,.1f}" if per_second < 100 else f"{per_second:,.0f}"
