"""Keeps what the ranks report: hands metrics to the job's sinks, and writes how far and how fast it is."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from periflow_ray import jobs
from periflow_ray.errors import StorageError
from periflow_ray.jobs import JobProgress
from periflow_ray.jobs.metrics import Metric
from periflow_ray.loops import Faults
from periflow_ray.runtime.monitor.sinks import MetricSink
from periflow_ray.store.root import StorageRoot

FLUSH_INTERVAL_S = 1.0
# Object stores take a request per flush; metrics a few seconds late are worth fewer of them.
REMOTE_FLUSH_INTERVAL_S = 3.0
RATE_WINDOW_S = 20.0
MIN_RATE_WINDOW_S = 1.0
# The driver waits for the monitor's end, but not for long.
CLOSE_TIMEOUT_S = 15.0


class Recorder:
    """``record`` only remembers; ``try_flush`` and ``close`` write, from other threads, and never raise.

    Args:
        sinks: what fails in one of them reaches neither the others nor the job.
        on_problem: gets a sentence for the user, once for each of them that fails unexpectedly.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        sinks: Sequence[MetricSink],
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._sinks = [(sink, Faults(f"the metric sink {type(sink).__name__}", on_problem)) for sink in sinks]
        self._progress_faults = Faults("writing the job's progress", on_problem)
        # Held during I/O, and therefore never taken by what members call.
        self._writing_progress = threading.Lock()
        self._written_progress = JobProgress()
        self._rate_points: deque[tuple[float, int]] = deque()
        self._first_step: int | None = None
        self.progress = JobProgress()
        self.flush_interval_s = FLUSH_INTERVAL_S if root.is_local else REMOTE_FLUSH_INTERVAL_S

    def record(self, step: int | None, total_train_steps: int | None, metrics: list[Metric]) -> None:
        """Take in metrics of any ranks, and rank 0's step and total where they are known."""
        for sink, faults in self._sinks:
            try:
                sink.record(metrics)
            except Exception as err:
                faults.take(err)
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
        self._first_step = None

    def try_flush(self) -> None:
        """Make everything recorded so far visible to readers; what the storage refuses now, it gets the next time."""
        for sink, faults in self._sinks:
            _try(sink.flush, faults)
        _try(self._write_progress, self._progress_faults)

    def close(self) -> None:
        """Flush and finish everything, within some seconds: beside each other, so that none waits for another."""
        last = [(sink.close, faults) for sink, faults in self._sinks]
        last.append((self._write_progress, self._progress_faults))
        threads = [threading.Thread(target=_try, args=action, name="recorder-close", daemon=True) for action in last]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            print(f"not all metrics could be written within {CLOSE_TIMEOUT_S:.0f} s", file=sys.stderr)

    def _write_progress(self) -> None:
        with self._writing_progress:
            progress = self.progress
            if progress != self._written_progress:
                jobs.write_progress(self._root, self._job_id, progress)
                self._written_progress = progress

    def _measure_speed(self, step: int) -> float | None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = step
        if step == self._first_step:
            # The first step, which loads and compiles, takes many times as long as those after it.
            return self.progress.steps_per_s
        self._rate_points.append((now, step))
        while now - self._rate_points[0][0] > RATE_WINDOW_S:
            self._rate_points.popleft()
        first_s, first_step = self._rate_points[0]
        # A first batch of records that covers no time says nothing of the speed.
        if now - first_s < MIN_RATE_WINDOW_S or step <= first_step:
            return self.progress.steps_per_s
        return (step - first_step) / (now - first_s)


def _try(action: Callable[[], None], faults: Faults) -> None:
    try:
        action()
    except (OSError, StorageError) as err:
        print(f"metrics are delayed: {err}", file=sys.stderr)
    except Exception as err:
        faults.take(err)
