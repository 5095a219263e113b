"""Runs one trial's job after the other in an agent, and gives each report that has the metric."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from periflow_ray.errors import PeriflowRayError
from periflow_ray.jobs import read_progress, read_written_state
from periflow_ray.jobs.metrics import read_metrics
from periflow_ray.names import suggest_names
from periflow_ray.runtime.job_end import JobEnd
from periflow_ray.runtime.sweeps.gang import Gang
from periflow_ray.runtime.sweeps.trial_job import Report, TrialJob, TrialTask
from periflow_ray.spec.sweep import STEP
from periflow_ray.store.patience import Patience

# A number in place of NaN: it loses against every other one, and can be reckoned with.
_WORST = sys.float_info.max / 1e10
_LEAST_LIKENESS = 0.88
# The monitor stores it every few seconds.
_PROGRESS_TIMEOUT_S = 10.0
_PROGRESS_INTERVAL_S = 0.2


class TrialFailedError(PeriflowRayError):
    """The job of a trial failed, after as many restarts as its template allows."""


class MetricMissingError(PeriflowRayError):
    """The script does not report the sweep's metric."""


class TrialMovedError(PeriflowRayError):
    """The machine is taken away; the trial goes on with another agent, from what it has saved."""


@dataclass(frozen=True)
class TrialResult:
    """A report with the metric, or the last one once more when the job has ended.

    Args:
        values: numbers by name, and the step; empty if the job has ended without any.
        end: how the job ended, if it has.
    """

    values: Mapping[str, Any]
    end: JobEnd | None = None


class TrialRunner:
    """Holds the job of a trial, from ``begin`` to ``end``.

    Args:
        metric, mode: by which the trials are compared.
    """

    def __init__(self, task: TrialTask, metric: str, mode: str) -> None:
        self._task = task
        self._metric = metric
        self._mode = mode
        self._gang = None if task.num_nodes == 1 else Gang(task.num_nodes, task.node_resources)
        self._job: TrialJob | None = None
        self._end: JobEnd | None = None
        self.job_id: int | None = None
        """The job that has begun; None without one."""
        self.last: dict[str, Any] = {}
        """The last report that has the metric, also of an agent before this one."""
        self._names: set[str] = set()

    def begin(self, job_id: int) -> None:
        """Begin the job, or go on with it; one that has succeeded does not run again."""
        root = self._task.root
        insist = Patience(print).insist
        # After which nothing may be left to report.
        self.last = insist(lambda: self._read_last(job_id))
        self.job_id = job_id
        if insist(lambda: read_written_state(root, job_id)).status == "success":
            # Whoever began it was killed before it took that in.
            self._end = JobEnd("success")
            return
        self._job = TrialJob(self._task, job_id, self._metric, self._gang)
        self._job.start()

    def next_result(self) -> TrialResult:
        """Wait for the next report that has the metric, or for the end.

        Raises:
            TrialMovedError, TrialFailedError, MetricMissingError: it has ended so.
            Exception: the job could not be run.
        """
        if self._end is not None:
            return self._take_end(self._end)
        assert self._job is not None
        while True:
            outcome = self._job.next_outcome()
            if isinstance(outcome, JobEnd):
                return self._take_end(outcome)
            if self._has_metric(outcome):
                self.last = self._result_of(outcome)
                return TrialResult(self.last)

    def end(self, reason: str, save_timeout_s: float) -> None:
        """End the job, if one has begun, and forget it; 0 saves nothing."""
        if self._job is not None:
            self._job.end(reason, save_timeout_s)
        self._job, self._end, self.job_id, self.last, self._names = None, None, None, {}, set()

    def stop(self, reason: str) -> None:
        """End the processes of a job that has failed."""
        if self._job is not None:
            self._job.end(reason, 0.0)

    def wait_for_last_step(self) -> None:
        """Let a script that has made its last step come to its end by itself."""
        if self._job is None:
            return
        step, deadline = self.last.get(STEP, 0), time.monotonic() + _PROGRESS_TIMEOUT_S
        # Where the storage does not say, it is ended all the same.
        with contextlib.suppress(OSError, PeriflowRayError):
            # The progress, and with it the total, is stored some time after the report.
            while (progress := read_progress(self._task.root, self._job.job_id)).step < step:
                if self._job.wait_for_end(_PROGRESS_INTERVAL_S) or time.monotonic() > deadline:
                    return
            if progress.total_train_steps is not None and step >= progress.total_train_steps:
                self._job.wait_for_end()

    def close(self) -> None:
        """End what is kept from one trial to the next."""
        if self._gang is not None:
            self._gang.close()

    @property
    def worst(self) -> dict[str, Any]:
        """A result that loses against every other one."""
        return {self._metric: self._judge(math.nan), STEP: 0}

    def _read_last(self, job_id: int) -> dict[str, Any]:
        progress = read_progress(self._task.root, job_id)
        if self._metric in progress.metrics:
            return self._result_of(Report(progress.step, progress.metrics))
        if progress.step:
            for metric in reversed(read_metrics(self._task.root, job_id)):
                if self._metric in metric.values:
                    return self._result_of(Report(metric.step, metric.values))
        return {}

    def _has_metric(self, report: Report) -> bool:
        self._names |= set(report.values)
        if self._metric in report.values:
            return True
        # It may come later, with an evaluation; but not if it is only misspelt.
        if not self.last and any(is_misspelt(self._metric, name) for name in report.values):
            raise self._missing()
        return False

    def _take_end(self, end: JobEnd) -> TrialResult:
        if end.status == "left":
            raise TrialMovedError("the machine is taken away; the trial goes on elsewhere")
        if end.status == "success" and not self.last:
            raise self._missing()
        if end.status == "failed":
            message = None
            if self.job_id is not None:
                message = read_written_state(self._task.root, self.job_id).message
            raise TrialFailedError(message or "the trial's job failed")
        return TrialResult(self.last, end)

    def _missing(self) -> MetricMissingError:
        hint = suggest_names(self._metric, self._names)
        names = f"it reported {', '.join(sorted(self._names))}" if self._names else "it reported no metric at all"
        return MetricMissingError(f"the script does not report the metric '{self._metric}'; {names}.{hint}")

    def _result_of(self, report: Report) -> dict[str, Any]:
        numbers = {
            name: value
            for name, value in report.values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        return {**numbers, self._metric: self._judge(report.values[self._metric]), STEP: report.step}

    def _judge(self, value: object) -> float:
        number = as_number(value)
        return number if math.isfinite(number) else (-_WORST if self._mode == "max" else _WORST)


def as_number(value: object) -> float:
    """A reported metric; NaN if it is no number, or one beyond all bounds."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return math.nan if is_worst(number) else number


def is_worst(value: float) -> bool:
    """Whether a metric stands for NaN, or for a number beyond all bounds."""
    return abs(value) >= _WORST


def is_misspelt(wanted: str, given: str) -> bool:
    """Whether two names differ by a slip, and not as ``loss`` and ``val_loss`` or ``top1`` and ``top5`` do."""
    without_digits = [re.sub("[0-9]", "", name) for name in (wanted, given)]
    if without_digits[0] == without_digits[1]:
        return False
    return difflib.SequenceMatcher(None, wanted.lower(), given.lower()).ratio() >= _LEAST_LIKENESS
