"""The SDK session of a function job's rank, in the same process: records go to the monitor directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from periflow_ray.errors import PeriFlowError
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.function_jobs.rank import FunctionRank
from periflow_ray.sdk.channel import Hello, MetricRecord


class FunctionChannel:
    """Sends a rank's records to the monitor; see ``sdk.channel.Channel``."""

    def __init__(self, rank: FunctionRank) -> None:
        self._rank = rank
        self._total_train_steps: int | None = None
        self._sent: Any = None
        self._last_step = -1

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        self._total_train_steps = hello.total_train_steps
        self._rank.signals.connect(on_announced_step, read_step)

    def send(self, step: int, records: list[MetricRecord]) -> None:
        if step == self._last_step and not records:
            return
        if self._sent is not None:
            # One batch on its way at a time, so that a slow monitor is not flooded.
            ray.wait([self._sent])
        self._last_step = step
        rank = self._rank
        metrics = [Metric(r.step, rank.rank, rank.local_rank, r.time_unix_s, r.values) for r in records]
        self._sent = rank.monitor.record.remote(
            {rank.rank: step}, self._total_train_steps, metrics, rank.node_rank, False, rank.attempt
        )

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        if self._sent is not None:
            # The manifest has the metrics that the monitor knows when the snapshot is taken.
            ray.get(self._sent)
        try:
            self._rank.save_checkpoint(step, replace_waiting)
        except OSError as err:
            raise PeriFlowError(f"the checkpoint of step {step} could not be saved: {err}") from err

    def close(self) -> None:
        if self._sent is not None:
            ray.wait([self._sent])
