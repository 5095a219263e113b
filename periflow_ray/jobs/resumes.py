"""Which ended jobs a user took up again, and that only one of several who do so at once wins.

jobs/<job>/resumes/<id of the driver that had ended>-<try>.json
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from dataclasses import dataclass

from periflow_ray.errors import UsageError
from periflow_ray.jobs.attempts import close_attempt, read_attempts, write_attempt
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.records import JobRecord, JobState, read_progress, write_record, write_state
from periflow_ray.jobs.requests import clear_requests
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.documents import dump_document, read_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

# Between its claim and the new driver a command that resumes does a handful of requests; one that takes longer is dead.
CLAIM_LASTS_S = 120.0


@dataclass(frozen=True)
class ResumeClaim:
    """Who takes up a job after which attempt, and since when."""

    attempt: int
    time_unix_s: float
    claimant: str


def require_resumable(job_id: int, state: JobState) -> None:
    """Refuse a job of which nothing can be resumed.

    Raises:
        UsageError: it has not ended, or has succeeded.
    """
    if not state.has_ended:
        raise UsageError(
            f"job {job_id} is {state.status}; only a job that has ended can be resumed. "
            f"Stop it first: periflow-ray job stop {job_id}"
        )
    if state.status == "success":
        raise UsageError(f"job {job_id} has succeeded; there is nothing left to resume.")


def claim_resume(root: StorageRoot, job_id: int, driver_id: str, attempt: int) -> bool:
    """Win the right to take up a job; False if somebody else is doing it.

    The claim of a command that died before it started a driver expires.

    Args:
        driver_id: of the driver that has ended; in a command job its Ray submission id.
        attempt: the job's last attempt.
    """
    index = 0
    while True:
        key = job_key(job_id, "resumes", f"{driver_id}-{index}.json")
        claim = ResumeClaim(attempt, time.time(), uuid.uuid4().hex)
        if root.create_exclusive(key, dump_document(claim)):
            return True
        if time.time() - read_document(root, key, ResumeClaim).time_unix_s < CLAIM_LASTS_S:
            return False
        index += 1


def describe_overtaken(job_id: int) -> UsageError:
    """For whoever did not win."""
    return UsageError(f"job {job_id} is being resumed by somebody else just now. See: periflow-ray job view {job_id}")


def reopen_job(root: StorageRoot, record: JobRecord, state: JobState) -> None:
    """Let an ended job wait for its next driver.

    Args:
        record: what it is from now on.
        state: how it ended.
    """
    job_id = record.job_id
    # Nobody asked the new driver for anything yet.
    clear_requests(root, job_id)
    newest = latest_committed(root, job_id)
    _close_last_attempt(root, job_id, state, 0 if newest is None else newest.step)
    where = "from its beginning" if newest is None else f"from step {newest.step}"
    EventWriter(root, job_id, "submitter").write("resumed", f"a user resumes the job {where}", state.attempt)
    # The record after the state, as it was read; a sign of life keeps readers from asking for the old driver meanwhile.
    waiting = JobState("waiting", started_unix_s=state.started_unix_s, attempt=state.attempt)
    write_state(root, job_id, dataclasses.replace(waiting, heartbeat_unix_s=time.time()))
    write_record(root, record)
    write_state(root, job_id, waiting)


def _close_last_attempt(root: StorageRoot, job_id: int, state: JobState, resumable_step: int) -> None:
    """Record the end of an attempt that died with its driver, before the time until now counts as the attempt's."""
    records = read_attempts(root, job_id)
    if not records or records[-1].ended_unix_s is not None:
        return
    closed = close_attempt(
        records[-1],
        ended_unix_s=state.ended_unix_s or time.time(),
        last_step=read_progress(root, job_id).step,
        resumable_step=resumable_step,
    )
    write_attempt(root, job_id, closed)


def read_resumed_attempts(root: StorageRoot, job_id: int) -> frozenset[int]:
    """Numbers of the attempts after which the job had ended, and a user took it up again."""
    prefix = job_key(job_id, "resumes")
    keys = [f"{prefix}/{name}" for name in root.list_names(prefix)]
    return frozenset(read_document(root, key, ResumeClaim).attempt for key in keys)
