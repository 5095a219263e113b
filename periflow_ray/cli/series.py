"""A job's metrics as series: one per name and rank, steps rising."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from periflow_ray.jobs.metrics import Metric


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    step: int
    time_unix_s: float
    value: Any


class Points(Sequence[Point]):
    """Many points in little memory; a slice of them is a tuple."""

    def __init__(self) -> None:
        self._steps = array("q")
        self._times = array("d")
        self._values: list[Any] = []

    def add(self, point: Point) -> None:
        """Add a point; those of its step and later ones go if its step is lower than the last one."""
        if self._steps and point.step < self._steps[-1]:
            start = bisect_left(self._steps, point.step)
            del self._steps[start:], self._times[start:], self._values[start:]
        self._steps.append(point.step)
        self._times.append(point.time_unix_s)
        self._values.append(point.value)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Point: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...

    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        if isinstance(index, slice):
            return tuple(map(Point, self._steps[index], self._times[index], self._values[index]))
        return Point(self._steps[index], self._times[index], self._values[index])


@dataclass(frozen=True)
class Series:
    """The values of one metric on one rank, oldest first."""

    name: str
    rank: int
    points: Sequence[Point]

    def numbers(self) -> list[tuple[int, float]]:
        """(step, value) of the values that can be drawn: finite numbers."""
        return [
            (point.step, float(point.value))
            for point in self.points
            if isinstance(point.value, (int, float))
            and not isinstance(point.value, bool)
            and math.isfinite(point.value)
        ]


def build_series(metrics: Iterable[Metric]) -> list[Series]:
    """One series per name, in the order in which they first appeared, and rank.

    Where a rank's step goes back, the job was restarted from a checkpoint: what it had reported from that step on is
    replaced by what came after.
    """
    points_by_rank: dict[str, dict[int, Points]] = {}
    for metric in metrics:
        for name, value in metric.values.items():
            points = points_by_rank.setdefault(name, {}).setdefault(metric.rank, Points())
            points.add(Point(metric.step, metric.time_unix_s, value))
    return [
        Series(name, rank, points)
        for name, of_name in points_by_rank.items()
        for rank, points in sorted(of_name.items())
    ]


def thin_numbers(numbers: Sequence[tuple[int, float]], max_num_points: int) -> list[tuple[int, float]]:
    """At most about ``max_num_points`` points that keep every stretch's lowest and highest value."""
    if len(numbers) <= max_num_points:
        return list(numbers)
    stretch = -(-2 * len(numbers) // max_num_points)
    kept = []
    for start in range(0, len(numbers), stretch):
        part = list(enumerate(numbers[start : start + stretch]))
        extremes = {min(part, key=lambda item: item[1][1]), max(part, key=lambda item: item[1][1])}
        kept += [number for _, number in sorted(extremes)]
    return kept
