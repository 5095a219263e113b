"""What Ray Tune runs: an agent that is kept from one trial to the next, and gives each report of a trial to Tune."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

from ray import tune

from periflow_ray.errors import PeriflowRayError
from periflow_ray.jobs import read_progress, read_written_state
from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S
from periflow_ray.names import suggest_names
from periflow_ray.runtime.job_end import JobEnd
from periflow_ray.runtime.sweeps.trial_job import Report, SweepTask, TrialJob
from periflow_ray.spec.sweep import STEP
from periflow_ray.store.patience import Patience
from periflow_ray.sweeps.documents import read_place

# Keys of a result beside the metrics: how the trial's job ended; that it has come to where it is to end; why the next
# call will raise, and that it is because the script does not report the metric.
ENDED, IS_THERE, FAILS, LACKS_METRIC = "periflow_ended", "periflow_is_there", "periflow_fails", "periflow_lacks_metric"
# A number in place of NaN: it loses against every other one, and can be reckoned with.
_WORST = sys.float_info.max / 1e10
_LEAST_LIKENESS = 0.88


class TrialFailedError(PeriflowRayError):
    """The job of a trial failed, after as many restarts as its template allows."""


class MetricMissingError(PeriflowRayError):
    """The script does not report the sweep's metric."""


class TrialMovedError(PeriflowRayError):
    """The machine is taken away; the trial goes on with another agent, from what it has saved."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Runs one trial after the other; each is a job of its own, and starts when Tune asks for its first result."""

    def setup(self, config: dict[str, Any], task: SweepTask, metric: str, mode: str, stop: Mapping[str, float]) -> None:
        self._task = task
        self._metric = metric
        self._mode = mode
        self._stop_at = stop
        self._job: TrialJob | None = None
        self._trial_id = ""
        self._error: Exception | None = None
        self._last: dict[str, Any] = {}
        self._names: set[str] = set()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self.trial_id == self._trial_id:
            # It goes on from another trial's checkpoint.
            self._forget_trial("another trial's checkpoint takes its place", 0.0)
        else:
            # One that still runs is paused.
            self._forget_trial("paused by the sweep", SAVE_TIMEOUT_S)
        return True

    def cleanup(self) -> None:
        self._forget_trial("paused by the sweep", SAVE_TIMEOUT_S)

    def end_trial(self, reason: str, save_timeout_s: float) -> None:
        """End the processes of the trial, of which no more results are wanted; 0 saves nothing."""
        if self._job is not None and save_timeout_s > 0:
            # Where the storage does not say, it is ended all the same.
            with contextlib.suppress(OSError, PeriflowRayError):
                total = read_progress(self._task.root, self._job.job_id).total_train_steps
                if total is not None and self._last.get(STEP, 0) >= total:
                    self._job.wait_for_end()
        self._forget_trial(reason, save_timeout_s)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """The trial's job has its own checkpoints."""

    def step(self) -> dict[str, Any]:
        """The next report that has the metric, or the last one once more when the trial's job has ended.

        An error is announced by a result, so that the sweep's driver knows that it is final.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next_result()
        except TrialMovedError:
            raise
        except Exception as err:
            self._error = err
            if self._job is not None:
                self._job.end(str(err), 0.0)
            return {**self._last_or_worst(), FAILS: str(err), LACKS_METRIC: isinstance(err, MetricMissingError)}

    def _next_result(self) -> dict[str, Any]:
        if self._job is None:
            self._trial_id = self.trial_id
            root, insist = self._task.root, Patience(print).insist
            job_id = insist(lambda: read_place(root, self._task.sweep_id, self.trial_id)).job_id
            # Of an agent before this one, after which nothing may be left to report.
            before = insist(lambda: read_progress(root, job_id))
            if self._metric in before.metrics:
                self._last = self._result_of(Report(before.step, before.metrics))
            if insist(lambda: read_written_state(root, job_id)).status == "success":
                # A driver of the sweep was killed before it took that in.
                return self._take_end(JobEnd("success"))
            self._job = TrialJob(self._task, job_id, self._metric)
            self._job.start()
        while True:
            outcome = self._job.next_outcome()
            if isinstance(outcome, JobEnd):
                return self._take_end(outcome)
            if self._has_metric(outcome):
                self._last = self._result_of(outcome)
                is_there = self._is_there(self._last)
                return {**self._last, IS_THERE: is_there, tune.result.DONE: is_there}

    def _has_metric(self, report: Report) -> bool:
        self._names |= set(report.values)
        if self._metric in report.values:
            return True
        # It may come later, with an evaluation; but not if it is only misspelt.
        if not self._last and any(is_misspelt(self._metric, name) for name in report.values):
            raise self._missing()
        return False

    def _take_end(self, end: JobEnd) -> dict[str, Any]:
        if end.status == "left":
            raise TrialMovedError("the machine is taken away; the trial goes on elsewhere")
        if end.status == "success" and not self._last:
            raise self._missing()
        if end.status == "failed":
            message = read_written_state(self._task.root, self._job.job_id).message if self._job else None
            raise TrialFailedError(message or "the trial's job failed")
        return {**self._last_or_worst(), ENDED: end.status, tune.result.DONE: True}

    def _last_or_worst(self) -> dict[str, Any]:
        return self._last or {self._metric: self._judge(math.nan), STEP: 0}

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

    def _is_there(self, result: Mapping[str, Any]) -> bool:
        """Whether a value has come to where the trial ends."""
        for name, limit in self._stop_at.items():
            value = result.get(name)
            if value is not None and (
                value <= limit if name == self._metric and self._mode == "min" else value >= limit
            ):
                return True
        return False

    def _forget_trial(self, reason: str, save_timeout_s: float) -> None:
        if self._job is not None:
            self._job.end(reason, save_timeout_s)
        self._job, self._error, self._last, self._names = None, None, {}, set()


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
