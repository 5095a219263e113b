"""Keeps what the ranks report: metrics and TensorBoard files of the job, and how far and how fast it is."""

from __future__ import annotations

import sys
import time
from collections import deque

from periflow_ray import jobs
from periflow_ray.errors import StorageError
from periflow_ray.jobs import JobProgress
from periflow_ray.jobs.metrics import Metric, MetricsWriter
from periflow_ray.jobs.tensorboard import TensorBoardWriter
from periflow_ray.store.root import StorageRoot

FLUSH_INTERVAL_S = 1.0
# Object stores take a request per flush; metrics a few seconds late are worth fewer of them.
REMOTE_FLUSH_INTERVAL_S = 3.0
RATE_WINDOW_S = 20.0
MIN_RATE_WINDOW_S = 1.0


class Recorder:
    """``record`` only remembers; ``flush``, from any one thread at a time, writes to the storage root."""

    def __init__(self, root: StorageRoot, job_id: int) -> None:
        self._root = root
        self._job_id = job_id
        self._metrics = MetricsWriter(root, job_id)
        self._tensorboard = TensorBoardWriter(root, job_id) if root.is_local else None
        self._unflushed: list[Metric] = []
        self._written_progress = JobProgress()
        self._rate_points: deque[tuple[float, int]] = deque()
        self.progress = JobProgress()
        self.flush_interval_s = FLUSH_INTERVAL_S if root.is_local else REMOTE_FLUSH_INTERVAL_S

    def record(self, step: int | None, total_train_steps: int | None, metrics: list[Metric]) -> None:
        """Take in metrics of any ranks, and rank 0's step and total where they are known."""
        self._unflushed += metrics
        values = dict(self.progress.metrics)
        for metric in metrics:
            if metric.rank == 0:
                values.update(metric.values)
        step = self.progress.step if step is None else step
        total = total_train_steps or self.progress.total_train_steps
        self.progress = JobProgress(step, total, self._measure_speed(step), values)

    def forget_speed(self) -> None:
        """A new attempt begins: its steps have nothing to do with the last one's."""
        self._rate_points.clear()

    def flush(self) -> None:
        """Make everything recorded so far visible to readers."""
        metrics, self._unflushed = self._unflushed, []
        self._metrics.append(metrics)
        self._metrics.flush()
        if self._tensorboard is not None:
            self._tensorboard.append(metrics)
            self._tensorboard.flush()
        progress = self.progress
        if progress != self._written_progress:
            jobs.write_progress(self._root, self._job_id, progress)
            self._written_progress = progress

    def try_flush(self) -> None:
        """As ``flush``; where the storage fails nothing is lost, the next flush has it too."""
        try:
            self.flush()
        except (OSError, StorageError) as err:
            print(f"metrics are delayed: {err}", file=sys.stderr)

    def close(self) -> None:
        """Flush and finish the files."""
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _measure_speed(self, step: int) -> float | None:
        now = time.monotonic()
        self._rate_points.append((now, step))
        while now - self._rate_points[0][0] > RATE_WINDOW_S:
            self._rate_points.popleft()
        first_s, first_step = self._rate_points[0]
        # A first batch of records that covers no time says nothing of the speed.
        if now - first_s < MIN_RATE_WINDOW_S or step <= first_step:
            return self.progress.steps_per_s
        return (step - first_step) / (now - first_s)
