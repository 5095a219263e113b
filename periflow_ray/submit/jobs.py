"""Submits and checks jobs through the Jobs API of the cluster that runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.credentials import cloud_environment
from periflow_ray.errors import ClusterError, PeriflowRayError
from periflow_ray.jobs import HEARTBEAT_INTERVAL_S, JobRecord, JobState, JobStatus, key_handover, sealed_secrets
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.liveness import find_end
from periflow_ray.jobs.succession import driver_id_of
from periflow_ray.plan import JobPlan
from periflow_ray.plan.variables import DRIVER_VARIABLES
from periflow_ray.ray_jobs import ENDED_RAY_STATUSES, RayJobs, connect
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.store.documents import write_private_document
from periflow_ray.store.keys import WORKSPACE_FILE, job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import upload_file
from periflow_ray.submit.clusters import connect_by_address
from periflow_ray.submit.local_cluster import LocalClusterDir
from periflow_ray.submit.workspace import Workspace, pack_workspace
from periflow_ray.sweeps.documents import write_sweep

# A driver that is this late with its heartbeat may be dead: ask Ray.
SUSPECT_AFTER_S = 3 * HEARTBEAT_INTERVAL_S
# A new job's driver needs a few seconds to its first heartbeat.
DRIVER_START_S = 10.0
NUM_OUTPUT_LINES = 15
HoldCluster = Callable[[], AbstractContextManager[RayJobs]]


def submit_job(
    root: StorageRoot,
    plan: JobPlan,
    cluster: RayJobs,
    *,
    workspace: Workspace | None,
    secrets: Mapping[str, str],
    created_by: str,
    python: str = "python",
    cloud_environment_dir: Path | None = None,
    hold_cluster: HoldCluster | None = None,
    sweep: SweepSpec | None = None,
) -> JobRecord:
    """Store the job and start its driver on the cluster.

    Args:
        sweep: what to search for, where the job is a sweep, and the plan that of its trials.
        created_by: user name, for the views.
        python: the cluster's Python that has periflow-ray.
        cloud_environment_dir: directory of this machine through which the driver gets this process's variables; None
            where the cluster has its own.
        hold_cluster: gives the cluster that takes the job now, and keeps it; None where it is ``cluster`` in any case.
    Raises:
        ClusterError: the cluster refused, or the driver did not fetch its secrets; the job is recorded as failed.
        StorageError, WorkspaceError: the job could not be stored.
    """
    record = store_job(root, plan, workspace=workspace, created_by=created_by, sweep=sweep, cluster=cluster)
    return start_driver(root, plan, record, cluster, secrets, python, cloud_environment_dir, hold_cluster)


def store_job(
    root: StorageRoot,
    plan: JobPlan,
    *,
    workspace: Workspace | None,
    created_by: str,
    sweep: SweepSpec | None = None,
    cluster: RayJobs | None = None,
) -> JobRecord:
    """Store a job, which waits for its driver; see ``submit_job`` for the arguments.

    Args:
        cluster: where its driver is to run; None where that is the process that asks.
    Raises:
        StorageError, WorkspaceError: it could not be stored.
    """
    job_id = jobs.claim_job_id(root)
    record = JobRecord(
        job_id=job_id,
        **plan.record_fields,
        created_by=created_by,
        created_unix_s=time.time(),
        ray_address=None if cluster is None else cluster.reference,
        ray_submission_id=None if cluster is None else choose_submission_id(root, job_id),
    )
    write_private_document(root, job_key(job_id, "plan.json"), plan)
    if sweep is not None:
        write_sweep(root, job_id, sweep)
    if workspace is not None:
        store_workspace(root, job_id, workspace)
    jobs.write_state(root, job_id, JobState("waiting"))
    jobs.write_record(root, record)
    return record


def start_driver(
    root: StorageRoot,
    plan: JobPlan,
    record: JobRecord,
    cluster: RayJobs,
    secrets: Mapping[str, str],
    python: str,
    cloud_environment_dir: Path | None,
    hold_cluster: HoldCluster | None = None,
) -> JobRecord:
    """Start the driver of a job that is stored and waits; see ``submit_job`` for the arguments.

    Returns:
        The job's record, with the cluster that took it.
    Raises:
        ClusterError: the cluster refused, or the driver did not fetch its secrets; the job is recorded as failed.
        StorageError: the secrets could not be stored; so is it then.
    """
    job_id, submission_id = record.job_id, record.ray_submission_id
    assert submission_id is not None
    cloud_path = None
    with contextlib.ExitStack() as stack:
        try:
            if hold_cluster is not None:
                cluster = stack.enter_context(hold_cluster())
                if cluster.reference != record.ray_address:
                    record = dataclasses.replace(record, ray_address=cluster.reference)
                    jobs.write_record(root, record)
            key = sealed_secrets.seal(root, job_id, secrets) if secrets else None
            if cloud_environment_dir is not None:
                driver_env = {name: os.environ[name] for name in DRIVER_VARIABLES if name in os.environ}
                if key is not None:
                    driver_env[sealed_secrets.KEY_VARIABLE] = key
                cloud_path = cloud_environment.write_shell_environment(cloud_environment_dir, os.environ, driver_env)
            elif key is not None:
                key_handover.forget_asked(root, job_id)
            cluster.submit(_entrypoint(root, plan, record, python, cloud_path), submission_id)
            if key is not None and cloud_path is None:
                _give_key(root, record, cluster, key)
        except BaseException as err:
            # Nobody reads it any more, and it has all that the shell knows.
            if cloud_path is not None:
                cloud_path.unlink(missing_ok=True)
            if not isinstance(err, PeriflowRayError | OSError):
                raise
            ended = dataclasses.replace(
                jobs.read_state(root, job_id), status="failed", ended_unix_s=time.time(), message=str(err)
            )
            jobs.write_state(root, job_id, ended)
            raise
    return record


def _give_key(root: StorageRoot, record: JobRecord, cluster: RayJobs, key: str) -> None:
    submission_id = record.ray_submission_id
    assert submission_id is not None

    def has_ended() -> bool:
        ray_job = cluster.read(submission_id)
        return ray_job is None or ray_job.status in ENDED_RAY_STATUSES

    try:
        key_handover.give_key(root, record.job_id, key, has_ended=has_ended)
    except ClusterError:
        # One that starts later would wait for somebody who has gone.
        cluster.stop(submission_id)
        raise


def settle_state(root: StorageRoot, job_id: int) -> JobState:
    """How a job stands, for what may be done to ended jobs only: ended by its own, its cluster's, or no sign of life.

    Raises:
        NotFoundError: there is no such job.
    """
    state = check_state(root, job_id)
    if not state.has_ended or jobs.read_written_state(root, job_id).has_ended:
        return state
    return find_end(root, job_id, state.message)


def check_state(root: StorageRoot, job_id: int) -> JobState:
    """How a job seems to stand; asks its cluster when the driver seems to be dead, and records an answer that is sure.

    Raises:
        NotFoundError: there is no such job.
    """
    record = jobs.read_record(root, job_id)
    state = jobs.read_written_state(root, job_id)
    submitted_unix_s = record.resumed_unix_s or record.created_unix_s
    last_sign_unix_s = state.heartbeat_unix_s or submitted_unix_s + DRIVER_START_S
    if state.has_ended or time.time() - last_sign_unix_s < SUSPECT_AFTER_S:
        return state
    if record.ray_submission_id is None:
        return jobs.read_state(root, job_id)
    if jobs.read_record(root, job_id) != record:  # Resumed between the two reads: the state is of the next driver.
        return state
    cluster = connect_to_job(root, record)
    try:
        ray_job = cluster.read(record.ray_submission_id)
        if ray_job is not None and ray_job.status not in ENDED_RAY_STATUSES:
            # Whatever this machine's clock says: Ray knows its driver.
            return state
        has_succeeded = ray_job is not None and ray_job.status == "SUCCEEDED"
        output = "" if ray_job is None else cluster.read_driver_output(record.ray_submission_id)
    except ClusterError:
        seems = jobs.read_state(root, job_id)
        if seems.has_ended:
            return seems
        # Perhaps it is only this machine that cannot reach it; after a while the state itself says that it is over.
        silent_s = time.time() - last_sign_unix_s
        text = f"no sign of life from the job's driver for {silent_s:.0f} s, and {record.ray_address} does not answer"
        return dataclasses.replace(state, message=text)
    state = jobs.read_written_state(root, job_id)
    if state.has_ended:  # The driver's last word came in meanwhile.
        return state
    if has_succeeded:
        # A driver's exit code is 0 only if its job succeeded.
        return _end(root, job_id, state, "success", None)
    how = (
        "its cluster does not know it any more" if ray_job is None else f"Ray says: {ray_job.message or ray_job.status}"
    )
    message = _describe_dead_driver(how, output)
    if state.heartbeat_unix_s is None or (ray_job is not None and ray_job.ended_by_itself):
        return _end(root, job_id, state, "failed", message)
    # Ray does not watch the driver but its keeper. A driver whose keeper was killed is still saving, and one that this
    # cluster does not know may run on another one: its heartbeat says more.
    return dataclasses.replace(state, status="failed", ended_unix_s=state.heartbeat_unix_s, message=message)


def connect_to_job(root: StorageRoot, record: JobRecord) -> RayJobs:
    """The Jobs API of the cluster that a job was submitted to.

    Raises:
        ClusterError: it is a cluster of a cloud that is not up any more, or cannot be reached.
    """
    assert record.ray_address is not None
    directory = LocalClusterDir()
    local = directory.read()
    is_local = local is not None and local.address == record.ray_address
    if is_local:
        return connect(record.ray_address, directory.token_path)
    return connect_by_address(root, record.ray_address)


def choose_submission_id(root: StorageRoot, job_id: int) -> str:
    """An id for a new Ray job that runs a job's driver; jobs of several storage roots may run on one cluster."""
    return f"periflow-{hashlib.sha256(root.uri.encode()).hexdigest()[:8]}-{job_id}-{os.urandom(3).hex()}"


def _entrypoint(root: StorageRoot, plan: JobPlan, record: JobRecord, python: str, cloud_path: Path | None) -> str:
    options = ["--storage", root.uri, "--job-id", str(record.job_id), "--driver-id", driver_id_of(record)]
    if plan.storage_credential is not None:
        options += ["--storage-credential", plan.storage_credential]
    command = shlex.join([python, "-m", "periflow_ray.runtime.driver_keeper", *options])
    if cloud_path is None:
        return command
    # Set by the shell and not by a runtime environment, for which Ray would start all of the job's workers anew.
    return f"{cloud_environment.CLOUD_ENVIRONMENT_VARIABLE}={shlex.quote(str(cloud_path))} {command}"


def store_workspace(root: StorageRoot, job_id: int, workspace: Workspace) -> None:
    """Give a job the workspace that its command finds."""
    with tempfile.TemporaryDirectory(prefix="periflow-workspace-") as directory:
        archive = Path(directory) / WORKSPACE_FILE
        pack_workspace(workspace, archive)
        upload_file(root, archive, job_key(job_id, WORKSPACE_FILE))


def _describe_dead_driver(how: str, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()][-NUM_OUTPUT_LINES:]
    text = f"the job's driver ended without a word; {how}"
    if any("No module named 'periflow_ray'" in line or "No module named periflow_ray" in line for line in lines):
        text += "\nHint: periflow-ray is not installed on the cluster; put 'pip install periflow-ray' into its setup."
    return text + "".join(f"\n  {line}" for line in lines)


def _end(root: StorageRoot, job_id: int, state: JobState, status: JobStatus, message: str | None) -> JobState:
    # Nobody knows when the driver ended, but it was after this.
    ended_unix_s = state.heartbeat_unix_s or time.time()
    ended = dataclasses.replace(state, status=status, ended_unix_s=ended_unix_s, message=message)
    text = "the job ended: success; its driver could not write that down" if message is None else message
    EventWriter(root, job_id, "submitter").write(status, text, state.attempt)
    jobs.write_state(root, job_id, ended)
    return ended
