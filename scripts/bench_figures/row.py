"""One row of the table: what was measured, against what, and whether that is good enough."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from periflow_ray.errors import PeriflowRayError

_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}
_LAYOUT = "{:<30} {:>10} {:>10} {:>7} {:<8} {:>9} {:>7} {}"
_NUM_DIGITS = 4

HEADER = _LAYOUT.format("name", "ours", "baseline", "varied", "unit", "ratio", "goal", "met|short")


class FigureError(PeriflowRayError):
    """A figure could not be measured."""


@dataclass(frozen=True)
class Goal:
    """A bound on the ratio; with a ``unit`` on our own value instead."""

    comparison: Literal["<=", ">=", "<"]
    bound: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.comparison}{self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Row:
    """A figure; ``ratio`` is ours / baseline, and need not be the ratio of the two medians (see ``row_of_pairs``).

    ``baseline_range`` is the lowest and the highest baseline of this run; None where it was measured once, or is not
    measured at all.
    """

    name: str
    ours: float
    baseline: float
    unit: str
    ratio: float
    goal: Goal
    baseline_range: tuple[float, float] | None = None

    @property
    def baseline_spread(self) -> float | None:
        """How far the baseline itself varied in this run, as a share of it: a smaller difference says nothing."""
        if self.baseline_range is None or not self.baseline:
            return None
        lowest, highest = self.baseline_range
        return (highest - lowest) / self.baseline

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached."""
        value = self.ours if self.goal.unit else self.ratio
        return bool(_COMPARISONS[self.goal.comparison](value, self.goal.bound))

    def as_line(self) -> str:
        """The row under ``HEADER``; no value contains a blank."""
        numbers = [f"{value:.{_NUM_DIGITS}g}" for value in (self.ours, self.baseline, self.ratio)]
        varied = "-" if self.baseline_spread is None else f"{self.baseline_spread:.1%}"
        verdict = "met" if self.is_met else "short"
        return _LAYOUT.format(self.name, *numbers[:2], varied, self.unit, numbers[2], str(self.goal), verdict)

    def as_json(self) -> dict[str, Any]:
        """The row as a JSON object; ``met`` is a boolean."""
        return {
            "name": self.name,
            "ours": self.ours,
            "baseline": self.baseline,
            "baseline_range": None if self.baseline_range is None else list(self.baseline_range),
            "unit": self.unit,
            "ratio": self.ratio,
            "goal": str(self.goal),
            "met": self.is_met,
        }


def row_of_pairs(name: str, ours: Sequence[float], baseline: Sequence[float], unit: str, goal: Goal) -> Row:
    """Build a row from interleaved measurements: medians, and the median of the neighbours' ratios.

    Neighbours in time share the machine's mood, so their ratios scatter less than the values do.
    """
    ratios = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
    baseline_range = (min(baseline), max(baseline)) if len(baseline) > 1 else None
    return Row(name, median(ours), median(baseline), unit, median(ratios), goal, baseline_range)
