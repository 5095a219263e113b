"""Takes up a job that has ended: under its number, from its newest checkpoint, wherever the plan now says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.plan import JobPlan
from periflow_ray.store import jobs
from periflow_ray.store.attempts import close_attempt, read_attempts, write_attempt
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.events import EventWriter
from periflow_ray.store.jobs import JobRecord, JobState
from periflow_ray.store.requests import clear_requests
from periflow_ray.store.resumes import claim_resume
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import check_state, choose_submission_id, start_driver
from periflow_ray.submit.ray_jobs import RayJobs


def read_resumable_plan(root: StorageRoot, job_id: int) -> JobPlan:
    """The plan of a job that may be resumed.

    Raises:
        NotFoundError: there is no such job.
        UsageError: it has not ended, has succeeded, or was started from Python.
    """
    _require_resumable(job_id, check_state(root, job_id))
    try:
        content = root.read_bytes(jobs.job_key(job_id, "plan.json"))
    except NotFoundError:
        raise UsageError(
            f"job {job_id} was started from Python, not from a template: run its script "
            "again. To start from its checkpoint, see: periflow-ray checkpoint list"
        ) from None
    return JobPlan.model_validate_json(content)


def resume_job(
    root: StorageRoot,
    job_id: int,
    plan: JobPlan,
    cluster: RayJobs,
    *,
    secrets: Mapping[str, str],
    python: str = "python",
    cloud_environment_dir: Path | None = None,
) -> JobRecord:
    """Start an ended job's driver again; of several who do so at once only one succeeds.

    Args:
        plan: from ``read_resumable_plan``, moved to where it is to run now.
        secrets: values of ``plan.secret_names``.
        python, cloud_environment_dir: see ``submit_job``.
    Raises:
        NotFoundError: there is no such job.
        UsageError: it has not ended or has succeeded, or somebody else is resuming it.
        ClusterError: the cluster refused; the job is recorded as failed.
        StorageError: the job could not be stored.
    """
    # The record before the state: one who was overtaken between both finds the state of the new driver.
    record = jobs.read_record(root, job_id)
    state = check_state(root, job_id)
    _require_resumable(job_id, state)
    assert record.ray_submission_id is not None
    if not claim_resume(root, job_id, record.ray_submission_id, state.attempt):
        raise UsageError(
            f"job {job_id} is being resumed by somebody else just now. See: periflow-ray job view {job_id}"
        )
    record = dataclasses.replace(
        record,
        vm=plan.vm.name,
        accelerator=plan.vm.accelerator,
        num_devices=plan.num_devices,
        num_nodes=plan.num_nodes,
        ray_address=cluster.address,
        ray_submission_id=choose_submission_id(root, job_id),
        resumed_unix_s=time.time(),
    )
    # Nobody asked the new driver for anything yet.
    clear_requests(root, job_id)
    root.write_bytes(jobs.job_key(job_id, "plan.json"), plan.model_dump_json(indent=1).encode())
    newest = latest_committed(root, job_id)
    _close_last_attempt(root, job_id, state, 0 if newest is None else newest.step)
    where = "from its beginning" if newest is None else f"from step {newest.step}"
    EventWriter(root, job_id, "submitter").write("resumed", f"a user resumes the job {where}", state.attempt)
    # The record after the state, as it was read; a sign of life keeps readers from asking for the old driver meanwhile.
    waiting = JobState("waiting", started_unix_s=state.started_unix_s, attempt=state.attempt)
    jobs.write_state(root, job_id, dataclasses.replace(waiting, heartbeat_unix_s=time.time()))
    jobs.write_record(root, record)
    jobs.write_state(root, job_id, waiting)
    start_driver(root, plan, record, cluster, secrets, python, cloud_environment_dir)
    return record


def _close_last_attempt(root: StorageRoot, job_id: int, state: JobState, resumable_step: int) -> None:
    """Record the end of an attempt that died with its driver, before the time until now counts as the attempt's."""
    records = read_attempts(root, job_id)
    if not records or records[-1].ended_unix_s is not None:
        return
    closed = close_attempt(
        records[-1],
        ended_unix_s=state.ended_unix_s or time.time(),
        last_step=jobs.read_progress(root, job_id).step,
        resumable_step=resumable_step,
    )
    write_attempt(root, job_id, closed)


def _require_resumable(job_id: int, state: JobState) -> None:
    if not state.has_ended:
        raise UsageError(
            f"job {job_id} is {state.status}; only a job that has ended can be resumed. "
            f"Stop it first: periflow-ray job stop {job_id}"
        )
    if state.status == "success":
        raise UsageError(f"job {job_id} has succeeded; there is nothing left to resume.")
