"""Takes up a job that has ended: under its number, from its newest checkpoint, wherever the plan now says."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs import JobRecord
from periflow_ray.jobs.resumes import (
    claim_resume,
    describe_overtaken,
    reopen_job,
    replace_unreadable_state,
    require_resumable,
)
from periflow_ray.plan import JobPlan
from periflow_ray.ray_jobs import RayJobs
from periflow_ray.store.documents import read_document, write_private_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import HoldCluster, choose_submission_id, settle_state, start_driver


def read_resumable_plan(root: StorageRoot, job_id: int) -> JobPlan:
    """The plan of a job that may be resumed.

    Raises:
        NotFoundError: there is no such job.
        UsageError: it has not ended, has succeeded, was started from Python, or is a trial of a sweep.
        DocumentError: its plan or its record cannot be read.
    """
    record = jobs.read_record(root, job_id)
    if record.sweep is not None:
        raise UsageError(
            f"job {job_id} is trial {record.trial} of sweep {record.sweep}, whose driver runs it. To go on with it: "
            f"periflow-ray sweep resume {record.sweep}; if it has failed, before that: periflow-ray sweep retry "
            f"{record.sweep} --failed"
        )
    replace_unreadable_state(root, job_id)
    require_resumable(job_id, settle_state(root, job_id))
    try:
        return read_document(root, job_key(job_id, "plan.json"), JobPlan)
    except NotFoundError:
        raise UsageError(
            f"job {job_id} was started from Python, not from a template: run its script again. "
            f"To go on from its newest checkpoint: TorchTrainer(..., resume={job_id})"
        ) from None


def resume_job(
    root: StorageRoot,
    job_id: int,
    plan: JobPlan,
    cluster: RayJobs,
    *,
    secrets: Mapping[str, str],
    python: str = "python",
    cloud_environment_dir: Path | None = None,
    hold_cluster: HoldCluster | None = None,
) -> JobRecord:
    """Start an ended job's driver again; of several who do so at once only one succeeds.

    Args:
        plan: from ``read_resumable_plan``, moved to where it is to run now.
        secrets: values of ``plan.secret_names``.
        python, cloud_environment_dir, hold_cluster: see ``submit_job``.
    Raises:
        NotFoundError: there is no such job.
        UsageError: it has not ended or has succeeded, or somebody else is resuming it.
        ClusterError: the cluster refused; the job is recorded as failed.
        StorageError: the job could not be stored.
    """
    # The record before the state: one who was overtaken between both finds the state of the new driver.
    record = jobs.read_record(root, job_id)
    state = settle_state(root, job_id)
    require_resumable(job_id, state)
    # A sweep that a Python process drove has none.
    former = record.ray_submission_id or f"python-{round((record.resumed_unix_s or record.created_unix_s) * 1000)}"
    if not claim_resume(root, job_id, former, state.attempt):
        raise describe_overtaken(job_id)
    record = dataclasses.replace(
        record,
        vm=plan.vm.name,
        accelerator=plan.vm.accelerator,
        num_devices=plan.num_devices,
        num_nodes=plan.num_nodes,
        ray_address=cluster.reference,
        ray_submission_id=choose_submission_id(root, job_id),
        resumed_unix_s=time.time(),
    )
    write_private_document(root, job_key(job_id, "plan.json"), plan)
    reopen_job(root, record, state)
    return start_driver(root, plan, record, cluster, secrets, python, cloud_environment_dir, hold_cluster)
