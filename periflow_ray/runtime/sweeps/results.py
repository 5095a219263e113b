"""What a sweep found, as Ray Tune's ``ResultGrid``: from the journal and the trials' own jobs."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from periflow_ray.errors import JobFailedError, PeriflowRayError
from periflow_ray.jobs.metrics import iterate_metrics
from periflow_ray.runtime.ray_private import TrialResults, make_result_grid
from periflow_ray.runtime.ray_train.workers import as_ray_checkpoint
from periflow_ray.spec.sweep import STEP, SweepSpec
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import read_sweep
from periflow_ray.sweeps.journal import Trial, read_trials

if TYPE_CHECKING:
    from ray.tune import ResultGrid

_NUM_READERS = 16


def read_results(root: StorageRoot, sweep_id: int) -> ResultGrid:
    """Every trial that has begun, by number, with its metrics, its newest checkpoint and the error that it failed with.

    ``result.config`` has its parameters, ``result.metrics["job_id"]`` the number of its job.
    """
    spec = read_sweep(root, sweep_id)
    known = sorted(read_trials(root, sweep_id).items())
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        trials = list(readers.map(lambda item: _read_trial(root, spec, item[1]), known))
    return make_result_grid(
        trials, root.path_of(job_key(sweep_id)), open_arrow_filesystem(root), spec.metric, spec.mode
    )


def _read_trial(root: StorageRoot, spec: SweepSpec, trial: Trial) -> TrialResults:
    job_id = trial.job_ids[-1]
    newest = None
    # A document that cannot be read must not take the results of the others with it.
    with contextlib.suppress(OSError, PeriflowRayError):
        newest = latest_committed(root, job_id)
    checkpoint = None if newest is None else as_ray_checkpoint(root, job_id, newest.checkpoint)
    error = JobFailedError(trial.why or "the trial failed") if trial.status == "failed" else None
    return TrialResults(
        trial_id=f"trial-{trial.number}",
        job_id=job_id,
        config=trial.parameters,
        reports=_read_reports(root, spec, trial),
        path=root.path_of(job_key(job_id)),
        error=error,
        has_ended=trial.is_final,
        checkpoint=checkpoint,
    )


def _read_reports(root: StorageRoot, spec: SweepSpec, trial: Trial) -> list[dict[str, Any]]:
    """The journal has each step once; the jobs have the other metrics of the step, as they were reported last."""
    values_by_step: dict[int, dict[str, Any]] = {}
    for job_id in trial.job_ids:
        with contextlib.suppress(OSError, PeriflowRayError):
            for metric in iterate_metrics(root, job_id):
                values_by_step.setdefault(metric.step, {}).update(metric.values)
    return [
        {
            **values_by_step.get(step, {}),
            spec.metric: value,
            STEP: step,
            "training_iteration": number,
        }
        for number, (step, value) in enumerate(trial.reports, start=1)
    ]
