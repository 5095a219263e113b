"""A trial as a job: made when it begins, taken up again by whoever goes on with it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from periflow_ray import jobs
from periflow_ray.jobs import JobRecord, JobState
from periflow_ray.jobs.resumes import reopen_job
from periflow_ray.plan import JobPlan
from periflow_ray.plan.trial import is_elsewhere, move_trial, plan_trial
from periflow_ray.spec.sweep_parameters import Value
from periflow_ray.store.documents import read_document, write_private_document
from periflow_ray.store.keys import WORKSPACE_FILE, job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.sweeps.documents import read_sweep


def make_trial_job(
    root: StorageRoot,
    job_id: int,
    plan: JobPlan,
    sweep: JobRecord,
    *,
    number: int,
    parameters: Mapping[str, Value],
    device_share: float,
    start_from: str | None = None,
) -> None:
    """Store the job of a trial that is about to begin, unless it is there already.

    Args:
        job_id: as it was claimed.
        plan: of the sweep's template.
        sweep: the record of the sweep itself.
        start_from: id of another trial's checkpoint to go on from.
    """
    if root.exists(job_key(job_id, "job.json")):
        return
    own_plan = plan_trial(
        plan,
        sweep=sweep.job_id,
        name=f"{plan.name or 'sweep'}-{number}",
        hparams=parameters,
        device_share=device_share,
        start_from=start_from,
    )
    _store_trial(root, job_id, own_plan, dataclasses.replace(sweep, sweep=sweep.job_id, trial=number))


def make_lone_trial_job(
    root: StorageRoot,
    job_id: int,
    plan: JobPlan,
    like: JobRecord,
    *,
    tune_id: str,
    parameters: Mapping[str, Value],
    device_share: float,
    start_from: str | None = None,
    workspace: bytes | None = None,
) -> None:
    """Store the job of a trial that no sweep of ours has, and that Ray Tune calls ``tune_id``.

    Args:
        job_id: as it was claimed.
        plan: of any such trial.
        like: the record of any such trial.
        start_from: id of another trial's checkpoint to go on from.
        workspace: the archive that its command finds.
    """
    own_plan = plan_trial(
        plan,
        sweep=None,
        name=f"{plan.name or 'trial'}-{tune_id}",
        hparams=parameters,
        device_share=device_share,
        start_from=start_from,
    )
    _store_trial(root, job_id, own_plan, like, workspace)


def _store_trial(
    root: StorageRoot, job_id: int, plan: JobPlan, like: JobRecord, workspace: bytes | None = None
) -> None:
    record = dataclasses.replace(
        like,
        job_id=job_id,
        name=plan.name,
        created_unix_s=time.time(),
        ray_submission_id=None,
        resumed_unix_s=None,
    )
    if like.sweep is not None:
        jobs.mark_trial(root, job_id)
    write_private_document(root, job_key(job_id, "plan.json"), plan)
    if workspace is not None:
        root.write_bytes(job_key(job_id, WORKSPACE_FILE), workspace)
    jobs.write_state(root, job_id, JobState("waiting"))
    # The record last: with it the job is there.
    jobs.write_record(root, record)


def take_up_trial(root: StorageRoot, job_id: int, sweep_plan: JobPlan | None = None) -> tuple[JobPlan, JobRecord]:
    """The plan and the record of a trial's job for its new driver, which is the only one from now on.

    Args:
        sweep_plan: where its sweep runs now; None for a trial that no sweep of ours has.
    """
    plan = read_document(root, job_key(job_id, "plan.json"), JobPlan)
    record = dataclasses.replace(jobs.read_record(root, job_id), resumed_unix_s=time.time())
    if record.sweep is not None and sweep_plan is not None and is_elsewhere(plan, sweep_plan):
        plan = move_trial(plan, sweep_plan, read_sweep(root, record.sweep).resources.device)
        write_private_document(root, job_key(job_id, "plan.json"), plan)
        record = dataclasses.replace(record, **plan.record_fields)
    state = jobs.read_written_state(root, job_id)
    if state.status == "waiting" and not state.attempt:
        # An agent of an earlier driver may be about to begin it, too.
        jobs.write_record(root, record)
    else:
        reopen_job(root, record, state, "the trial goes on")
    return plan, record
