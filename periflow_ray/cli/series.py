"""A job's metrics as series: one per name and rank, steps rising."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from periflow_ray.jobs.metrics import Metric


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    step: int
    time_unix_s: float
    value: Any


@dataclass(frozen=True)
class Series:
    """The values of one metric on one rank, oldest first."""

    name: str
    rank: int
    points: tuple[Point, ...]

    def numbers(self) -> list[tuple[int, float]]:
        """(step, value) of the values that can be drawn: finite numbers."""
        return [
            (point.step, float(point.value))
            for point in self.points
            if isinstance(point.value, (int, float))
            and not isinstance(point.value, bool)
            and math.isfinite(point.value)
        ]


def build_series(metrics: Sequence[Metric], names: Sequence[str]) -> list[Series]:
    """One series per name, in the order given, and rank.

    Where a rank's step goes back, the job was restarted from a checkpoint: what it had reported from that step on is
    replaced by what came after.
    """
    series = []
    for name in names:
        points_by_rank: dict[int, list[Point]] = {}
        for metric in metrics:
            if name not in metric.values:
                continue
            points = points_by_rank.setdefault(metric.rank, [])
            if points and metric.step < points[-1].step:
                points[:] = [point for point in points if point.step < metric.step]
            points.append(Point(metric.step, metric.time_unix_s, metric.values[name]))
        series += [Series(name, rank, tuple(points)) for rank, points in sorted(points_by_rank.items())]
    return series


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
