"""What a user's own ``tune.Tuner`` runs: a trial is a job, and Tune's checkpoint of it names the job's newest."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.result import RESULT_DUPLICATE

from periflow_ray.errors import NotFoundError, PeriflowRayError
from periflow_ray.jobs import JobRecord, claim_job_id
from periflow_ray.jobs.stop_times import SAVE_TIMEOUT_S
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.sweeps.trial_job import TrialTask
from periflow_ray.runtime.sweeps.trial_runner import TrialMovedError, TrialRunner
from periflow_ray.spec.sweep import STEP
from periflow_ray.store.checkpoints import (
    Manifest,
    find_checkpoint,
    latest_committed,
    parse_checkpoint_id,
    read_manifest,
)
from periflow_ray.store.checkpoints.pins import pin, unpin
from periflow_ray.store.documents import read_document
from periflow_ray.store.keys import job_key
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


class TunerTrial(tune.Trainable):  # type: ignore[misc]
    """Tune's pauses and copies act on the job: it goes on, or another one goes on from its checkpoint."""

    def setup(self, config: dict[str, Any], task: TunerTask, metric: str, mode: str) -> None:
        self._task = task
        self._runner = TrialRunner(task, metric, mode)
        self._told_step = 0
        # Another trial's checkpoint, from which the trial is to go on.
        self._source: Manifest | None = None
        self._is_saved = False

    def step(self) -> dict[str, Any]:
        """The next report that has the metric.

        Raises:
            TrialFailedError, MetricMissingError: and Tune decides whether it is tried again, from its checkpoint.
        """
        self._is_saved = False
        runner = self._runner
        try:
            if runner.job_id is None:
                runner.begin(self._find_job() or self._make_job())
            result = runner.next_result()
        except TrialMovedError:
            raise
        except Exception as err:
            self._forget_trial(str(err), 0.0)
            raise
        if result.end is None:
            self._told_step = result.values[STEP]
            return dict(result.values)
        if result.values and result.values[STEP] <= self._told_step:
            # Tune knows the last report.
            return {RESULT_DUPLICATE: True, tune.result.DONE: True}
        return {**(result.values or runner.worst), tune.result.DONE: True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Name the newest checkpoint of the job; Tune may pause the trial now, or copy it."""
        self._is_saved = True
        job_id = self._find_job()
        newest = None if job_id is None else latest_committed(self._task.root, job_id)
        return {_JOB: job_id, _CHECKPOINT: None if newest is None else newest.checkpoint_id}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Go on from another trial's checkpoint; the trial's own job has its own, once it has begun from there."""
        if not checkpoint or checkpoint[_JOB] is None:
            return
        own = self._find_job()
        if own is not None:
            source = self._read_source(own)
            if checkpoint[_JOB] in (own, None if source is None else source[0]):
                return
        self._source = self._find_source(checkpoint)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._forget_trial("Ray Tune gives its place to another trial", SAVE_TIMEOUT_S if self._is_saved else 0.0)
        self._source, self._told_step = None, 0
        return True

    def cleanup(self) -> None:
        self._forget_trial("stopped by Ray Tune", SAVE_TIMEOUT_S if self._is_saved else 0.0)
        self._runner.close()

    def _find_job(self) -> int | None:
        """The job that the trial is, unless it is to be another one."""
        if self._source is not None:
            return None
        place = find_lone_place(self._task.root, self.trial_id)
        if place is None:
            return None
        # One that has other parameters is of a trial before it was copied, or of another search's trial of this name.
        with contextlib.suppress(NotFoundError):
            if self._read_plan(place.job_id).hparams == _flatten(self.config):
                return place.job_id
        return None

    def _read_plan(self, job_id: int) -> JobPlan:
        return read_document(self._task.root, job_key(job_id, "plan.json"), JobPlan)

    def _read_source(self, job_id: int) -> tuple[int | None, str] | None:
        """The job and the name of the checkpoint from which a job has begun, if it was another one's."""
        start_from = self._read_plan(job_id).start_from
        return None if start_from is None else parse_checkpoint_id(start_from)

    def _make_job(self) -> int:
        task, source = self._task, self._source
        job_id = claim_job_id(task.root)
        if source is not None and source.job_id is not None:
            # The retention rules of its own job would delete it, and may have done so before.
            pin(task.root, source.job_id, source.checkpoint, job_id)
            with contextlib.suppress(NotFoundError):
                source = read_manifest(task.root, source.job_id, source.checkpoint)
        make_lone_trial_job(
            task.root,
            job_id,
            task.plan,
            task.record,
            tune_id=self.trial_id,
            parameters=_flatten(self.config),
            device_share=task.device_share,
            start_from=None if source is None else source.checkpoint_id,
            workspace=task.workspace,
        )
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
        job_id = self._runner.job_id
        self._runner.end(reason, save_timeout_s)
        if job_id is None:
            return
        with contextlib.suppress(OSError, PeriflowRayError):
            source = self._read_source(job_id)
            # Once the job has its own: one that was paused before that begins with the other one's again.
            if source is not None and source[0] is not None and latest_committed(self._task.root, job_id) is not None:
                unpin(self._task.root, source[0], source[1], job_id)


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters, also where they stand below Ray's own word."""
    loop_config = config.get(_LOOP_CONFIG)
    if isinstance(loop_config, Mapping):
        return {**{name: value for name, value in config.items() if name != _LOOP_CONFIG}, **loop_config}
    return dict(config)
