"""Figures with their goals, as a table, as JSON, and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of a goal.

    Parameters: `goal` its number in docs/performance.md; `values` of the rounds; `aim` what its median is to be at
    least, or at most when `at_most`; None: it only explains others.
    """

    goal: int
    name: str
    unit: str
    values: Sequence[float]
    aim: float | None = None
    at_most: bool = False

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median keeps the aim; None without one."""
        if self.aim is None:
            return None
        return self.median <= self.aim if self.at_most else self.median >= self.aim

    def share(self, value: float) -> float:
        """A value in terms of the aim: 1 keeps it just so, more is better."""
        assert self.aim is not None
        # Nothing, or less, is as good, or as bad, as a chart can show.
        value = max(value, self.aim / 100)
        return self.aim / value if self.at_most else value / self.aim

    def as_dict(self) -> dict[str, object]:
        """As JSON takes it."""
        return {
            "goal": self.goal, "name": self.name, "unit": self.unit, "values": list(self.values),
            "median": self.median, "aim": self.aim, "at_most": self.at_most, "reached": self.reached,
        }  # fmt: skip


def number(value: float) -> str:
    """Three digits that tell something."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:,.1f}" if size >= 10 else f"{value:,.2f}"


def aim(figure: Figure) -> str:
    """The aim in words."""
    if figure.aim is None:
        return ""
    return f"{'≤' if figure.at_most else '≥'} {number(figure.aim)}"


def table(figures: Sequence[Figure]) -> Table:
    """A row for each figure, goal by goal."""
    result = Table("goal", "figure", "median", "least", "greatest", "aim", "")
    before = 0
    for figure in figures:
        result.add_row(
            str(figure.goal) if figure.goal != before else "",
            f"{figure.name}, {figure.unit}" if figure.unit else figure.name,
            *(number(value) for value in (figure.median, min(figure.values), max(figure.values))),
            aim(figure),
            {True: "[green]reached", False: "[yellow]missed", None: ""}[figure.reached],
        )
        before = figure.goal
    return result


def chart(figures: Sequence[Figure], path: Path) -> None:
    """Draw what has an aim in terms of it, with the spread of the rounds, as SVG."""
    # Here, as importing it takes a second.
    from matplotlib import pyplot  # noqa: PLC0415

    shown = [figure for figure in reversed(figures) if figure.aim is not None]
    shares = [figure.share(figure.median) for figure in shown]
    spread = [[figure.share(value) for value in figure.values] for figure in shown]
    errors = [
        [share - min(values) for share, values in zip(shares, spread, strict=True)],
        [max(values) - share for share, values in zip(shares, spread, strict=True)],
    ]
    drawing, axes = pyplot.subplots(figsize=(10, 0.4 * len(shown) + 1.2), layout="constrained")
    bars = axes.barh(
        [f"{figure.goal}  {figure.name}" for figure in shown], shares, xerr=errors, capsize=3, ecolor="#555555",
        color=["#2e8b57" if figure.reached else "#d98324" for figure in shown],
    )  # fmt: skip
    axes.bar_label(bars, [f"  {number(figure.median)} {figure.unit} ({aim(figure)})" for figure in shown], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min([0.1, *shares]) / 1.5, max([2.0, *shares]) * 8)
    axes.set_xlabel("median in terms of the aim (1 = reached), least and greatest round")
    drawing.savefig(path)
    pyplot.close(drawing)
