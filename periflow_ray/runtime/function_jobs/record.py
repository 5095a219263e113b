"""What the storage root says of a function job before it runs: a new one, or an ended one that goes on."""

from __future__ import annotations

import dataclasses
import time

from periflow_ray import jobs
from periflow_ray.errors import UsageError
from periflow_ray.jobs import JobRecord, JobState
from periflow_ray.jobs.liveness import find_end
from periflow_ray.jobs.resumes import (
    claim_resume,
    describe_overtaken,
    reopen_job,
    replace_unreadable_state,
    require_resumable,
)
from periflow_ray.jobs.user import user_name
from periflow_ray.store.root import StorageRoot


def record_new_job(
    root: StorageRoot, *, name: str | None, experiment: str | None, accelerator: str, num_devices: int
) -> JobRecord:
    """Store a job that is about to start."""
    record = JobRecord(
        job_id=jobs.claim_job_id(root),
        name=name,
        experiment=experiment,
        vm="-",
        accelerator=accelerator,
        num_devices=num_devices,
        num_nodes=1,
        dataset=None,
        created_by=user_name(),
        created_unix_s=time.time(),
    )
    jobs.write_state(root, record.job_id, JobState("waiting"))
    jobs.write_record(root, record)
    return record


def record_num_nodes(root: StorageRoot, job_id: int, num_nodes: int) -> None:
    """Store on how many nodes a job's ranks are, which is not known before Ray has placed them."""
    record = jobs.read_record(root, job_id)
    if record.num_nodes != num_nodes:
        jobs.write_record(root, dataclasses.replace(record, num_nodes=num_nodes))


def read_resumable_job(root: StorageRoot, job_id: int) -> tuple[JobRecord, JobState]:
    """An ended function job that can go on.

    Waits for a sign of life where its process has not said that it ended.

    Raises:
        NotFoundError: there is no such job.
        UsageError: it was submitted from a template, runs, or has succeeded.
    """
    record = jobs.read_record(root, job_id)
    if record.ray_submission_id is not None:
        raise UsageError(
            f"resume={job_id}: job {job_id} was submitted from a template. "
            f"Go on with it: periflow-ray job resume {job_id}"
        )
    replace_unreadable_state(root, job_id)
    state = find_end(root, job_id)
    require_resumable(job_id, state)
    return record, state


def reopen_function_job(
    root: StorageRoot, record: JobRecord, state: JobState, *, accelerator: str, num_devices: int
) -> JobRecord:
    """Let an ended job go on under its number; of several who do so at once only one succeeds.

    Args:
        record, state: from ``read_resumable_job``.
    Raises:
        UsageError: somebody else is resuming it.
    """
    began_unix_ms = round((record.resumed_unix_s or record.created_unix_s) * 1000)
    if not claim_resume(root, record.job_id, f"python-{began_unix_ms}", state.attempt):
        raise describe_overtaken(record.job_id)
    changed = dataclasses.replace(record, accelerator=accelerator, num_devices=num_devices, resumed_unix_s=time.time())
    reopen_job(root, changed, state)
    return changed
