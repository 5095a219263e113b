"""Metrics of all ranks: one JSON list a line with step, rank, local rank, Unix time and the user's values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from periflow_ray.finite_json import dump_json, restore_numbers
from periflow_ray.store.documents import check_format, describe_key
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.segments import SegmentWriter, iterate_lines


@dataclass(frozen=True)
class Metric:
    """One ``pf.metric`` call."""

    step: int
    rank: int
    local_rank: int
    time_unix_s: float
    values: Mapping[str, Any]


_NUM_FIELDS = len(dataclasses.fields(Metric))


class MetricsWriter:
    """Appends metrics to a job; visible after ``flush``."""

    def __init__(self, root: StorageRoot, job_id: int) -> None:
        self._segments = SegmentWriter(root, job_key(job_id, "metrics"))

    def append(self, metrics: Iterable[Metric]) -> None:
        """Add metrics."""
        for metric in metrics:
            self._segments.append(_encode(metric))

    def flush(self) -> None:
        """Make the metrics visible to readers."""
        self._segments.flush()


def iterate_metrics(root: StorageRoot, job_id: int, *, rank: int | None = 0) -> Iterator[Metric]:
    """A job's metrics in the order they arrived, few of them in memory at a time; ``rank=None`` gives all ranks.

    Steps that were repeated after a restart appear as often as they were run. A damaged line is left out.

    Raises:
        NewerFormatError: a later version wrote them, in a format that this one does not know.
    """
    prefix = job_key(job_id, "metrics")
    where = describe_key(root, prefix)
    for line in iterate_lines(root, prefix):
        metric = _parse_metric(line, where)
        if metric is not None and (rank is None or metric.rank == rank):
            yield metric


def read_metrics(root: StorageRoot, job_id: int, *, rank: int | None = 0) -> list[Metric]:
    """As ``iterate_metrics``, as a list."""
    return list(iterate_metrics(root, job_id, rank=rank))


def _encode(metric: Metric) -> bytes:
    values = dict(metric.values)
    row = [metric.step, metric.rank, metric.local_rank, round(metric.time_unix_s, 3), values]
    try:
        text = dump_json(row, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        # One value that is no JSON, and did not come through the SDK, must not take the others with it.
        row[4] = {str(name): value for name, value in values.items() if _is_json(value)}
        text = dump_json(row, separators=(",", ":"))
    return text.encode() + b"\n"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _parse_metric(line: bytes, where: str) -> Metric | None:
    """None if the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    check_format(row, where)
    if not isinstance(row, list) or len(row) < _NUM_FIELDS or not isinstance(row[_NUM_FIELDS - 1], dict):
        return None
    step, rank, local_rank, time_unix_s, values = row[:_NUM_FIELDS]
    if (
        type(step) is not int
        or not 0 <= step < 1 << 63
        or type(rank) is not int
        or type(time_unix_s) not in (int, float)
    ):
        return None
    # Most lines have none, and a job may have millions.
    has_text_numbers = b'NaN"' in line or b'Infinity"' in line
    return Metric(step, rank, local_rank, time_unix_s, restore_numbers(values) if has_text_numbers else values)
