"""What Ray Tune runs in a sweep: an agent that is kept from one trial to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune

from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S
from periflow_ray.runtime.sweeps.trial_job import SweepTask
from periflow_ray.runtime.sweeps.trial_runner import MetricMissingError, TrialMovedError, TrialRunner
from periflow_ray.store.patience import Patience
from periflow_ray.sweeps.documents import read_place

# Keys of a result beside the metrics: how the trial's job ended; that it has come to where it is to end; why the next
# call will raise, and that it is because the script does not report the metric.
ENDED, IS_THERE, FAILS, LACKS_METRIC = "periflow_ended", "periflow_is_there", "periflow_fails", "periflow_lacks_metric"


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """Runs one trial after the other; each is a job of its own, and starts when Tune asks for its first result."""

    def setup(self, config: dict[str, Any], task: SweepTask, metric: str, mode: str, stop: Mapping[str, float]) -> None:
        self._task = task
        self._metric = metric
        self._mode = mode
        self._stop_at = stop
        self._runner = TrialRunner(task, metric, mode)
        self._trial_id = ""
        self._error: Exception | None = None

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
        self._runner.close()

    def end_trial(self, trial_id: str, reason: str, save_timeout_s: float) -> None:
        """End the processes of a trial of which no more results are wanted; 0 saves nothing."""
        if trial_id != self._trial_id:
            # It was paused meanwhile, and this agent has another one.
            return
        if save_timeout_s > 0:
            self._runner.wait_for_last_step()
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
        runner = self._runner
        try:
            return self._next_result()
        except TrialMovedError:
            raise
        except Exception as err:
            self._error = err
            runner.stop(str(err))
            return {**(runner.last or runner.worst), FAILS: str(err), LACKS_METRIC: isinstance(err, MetricMissingError)}

    def _next_result(self) -> dict[str, Any]:
        runner = self._runner
        if runner.job_id is None:
            self._trial_id = self.trial_id
            root, sweep_id = self._task.root, self._task.sweep_id
            runner.begin(Patience(print).insist(lambda: read_place(root, sweep_id, self.trial_id)).job_id)
        result = runner.next_result()
        if result.end is not None:
            return {**(result.values or runner.worst), ENDED: result.end.status, tune.result.DONE: True}
        is_there = self._is_there(result.values)
        return {**result.values, IS_THERE: is_there, tune.result.DONE: is_there}

    def _is_there(self, values: Mapping[str, Any]) -> bool:
        """Whether a value has come to where the trial ends."""
        for name, limit in self._stop_at.items():
            value = values.get(name)
            if value is not None and (
                value <= limit if name == self._metric and self._mode == "min" else value >= limit
            ):
                return True
        return False

    def _forget_trial(self, reason: str, save_timeout_s: float) -> None:
        self._runner.end(reason, save_timeout_s)
        self._error = None
