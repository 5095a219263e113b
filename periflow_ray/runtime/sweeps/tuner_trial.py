"""What a user's own ``tune.Tuner`` runs: a trial is a job, and Tune's checkpoint of it names the job's newest."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.result import RESULT_DUPLICATE

from periflow_ray.errors import NotFoundError, PeriflowRayError
from periflow_ray.jobs import JobRecord, read_record
from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.job_end import JobEnd
from periflow_ray.runtime.sweeps.trainable import TrialMovedError, TrialTrainable
from periflow_ray.runtime.sweeps.trial_job import TrialTask
from periflow_ray.spec.sweep import STEP
from periflow_ray.store.checkpoints import Manifest, find_checkpoint, latest_committed
from periflow_ray.store.checkpoints.pins import pin, unpin
from periflow_ray.sweeps.documents import LonePlace, find_lone_place, write_lone_place
from periflow_ray.sweeps.trials import make_lone_trial_job

# Keys of Tune's checkpoint of a trial.
_JOB, _CHECKPOINT = "job_id", "checkpoint"
# Of a configuration as Ray's own TorchTrainer has it in a Tuner.
_LOOP_CONFIG = "train_loop_config"


@dataclass(frozen=True, kw_only=True)
class TunerTask(TrialTask):
    """What an agent needs to make its trials' jobs.

    Args:
        plan: of any of them.
        record: of any of them.
        workspace: the archive that each command finds.
    """

    plan: JobPlan
    record: JobRecord
    device_share: float
    workspace: bytes | None = field(repr=False, default=None)


class TunerTrial(TrialTrainable):
    """Tune's pauses and copies act on the job: it goes on, or another one goes on from its checkpoint."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], task: TunerTask, metric: str, mode: str
    ) -> None:
        self._prepare(task, metric, mode, {})
        self._tuner_task = task
        self._source: Manifest | None = None
        self._told_step = 0
        self._pinned: tuple[int, str] | None = None
        self._is_saved = False

    def step(self) -> dict[str, Any]:
        """The next report that has the metric.

        Raises:
            TrialFailedError, MetricMissingError: and Tune decides whether it is tried again, from its checkpoint.
        """
        self._is_saved = False
        try:
            result = self._next_result()
            self._told_step = result.get(STEP, self._told_step)
            return result
        except TrialMovedError:
            raise
        except Exception as err:
            self._forget_trial(str(err), 0.0)
            raise

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Name the newest checkpoint of the job; Tune may pause the trial now, or copy it."""
        self._is_saved = True
        job_id = self._job.job_id if self._job is not None else self._find_job()
        newest = latest_committed(self._task.root, job_id)
        return {_JOB: job_id, _CHECKPOINT: None if newest is None else newest.checkpoint_id}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from another trial's checkpoint; the trial's own job has its own."""
        if not checkpoint or checkpoint[_JOB] == self._known_job():
            return
        self._source = self._find_source(checkpoint)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._forget_trial("Ray Tune gives its place to another trial", SAVE_TIMEOUT_S if self._is_saved else 0.0)
        self._source, self._told_step = None, 0
        return True

    def cleanup(self) -> None:
        self._forget_trial("stopped by Ray Tune", SAVE_TIMEOUT_S if self._is_saved else 0.0)
        self._close_gang()

    def _take_end(self, end: JobEnd) -> dict[str, Any]:
        result = super()._take_end(end)
        if self._last and self._last[STEP] <= self._told_step:
            # Tune knows the last report.
            return {RESULT_DUPLICATE: True, tune.result.DONE: True}
        return result

    def _known_job(self) -> int | None:
        place = find_lone_place(self._task.root, self.trial_id)
        if place is None:
            return None
        try:
            read_record(self._task.root, place.job_id)
        except NotFoundError:
            return None
        return place.job_id

    def _find_job(self) -> int:
        known = self._known_job()
        if known is not None and self._source is None:
            return known
        task, source = self._tuner_task, self._source
        job_id = make_lone_trial_job(
            task.root,
            task.plan,
            task.record,
            tune_id=self.trial_id,
            parameters=_flatten(self.config),
            device_share=task.device_share,
            start_from=None if source is None else source.checkpoint_id,
            workspace=task.workspace,
        )
        if source is not None and source.job_id is not None:
            # The retention rules of its own job would delete it.
            pin(task.root, source.job_id, source.checkpoint, job_id)
            self._pinned = source.job_id, source.checkpoint
        write_lone_place(task.root, self.trial_id, LonePlace(job_id))
        self._source = None
        return job_id

    def _find_source(self, checkpoint: Mapping[str, Any]) -> Manifest | None:
        """The checkpoint that Tune names, or the newest one of that job, if it is deleted by now."""
        if checkpoint[_CHECKPOINT] is not None:
            with contextlib.suppress(NotFoundError):
                return find_checkpoint(self._task.root, checkpoint[_CHECKPOINT])
        return latest_committed(self._task.root, checkpoint[_JOB])

    def _forget_trial(self, reason: str, save_timeout_s: float) -> None:
        job = self._job
        super()._forget_trial(reason, save_timeout_s)
        if job is not None and self._pinned is not None:
            with contextlib.suppress(OSError, PeriflowRayError):
                self._unpin(job.job_id, *self._pinned)

    def _unpin(self, job_id: int, source_job: int, checkpoint: str) -> None:
        """Once the job has its own checkpoint: one that was paused before begins with the other one's again."""
        if latest_committed(self._task.root, job_id) is not None:
            unpin(self._task.root, source_job, checkpoint, job_id)
            self._pinned = None


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters, also where they stand below Ray's own word."""
    loop_config = config.get(_LOOP_CONFIG)
    if isinstance(loop_config, Mapping):
        return {**{name: value for name, value in config.items() if name != _LOOP_CONFIG}, **loop_config}
    return dict(config)
