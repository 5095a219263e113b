"""Job records: what was submitted (``job.json``, ``plan.json``) and how it stands (``state.json``).

``job.json`` is written by the submitter alone, and again by who resumes the job. ``state.json`` has one writer at a
time: the submitter until the driver starts, then the driver. A driver that dies leaves a stale heartbeat, which readers
report. ``trials/<job>``, beside the jobs, marks one that is the trial of a sweep.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from periflow_ray.errors import DamagedDocumentError, DocumentError, NotFoundError, StorageError, UsageError
from periflow_ray.store.documents import OnUnreadable, read_document, read_each, write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

JobStatus = Literal[
    "waiting",
    "allocating",
    "preparing",
    "running",
    "success",
    "failed",
    "stopping",
    "stopped",
    # PeriFlow's word for a job that was stopped before it ran. No job gets it here, but `job list --status` takes it.
    "cancelled",
]
JOB_STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
ENDED_STATUSES: frozenset[JobStatus] = frozenset({"success", "failed", "stopped", "cancelled"})
# The driver writes a heartbeat every HEARTBEAT_INTERVAL_S; after this many seconds without one it is taken for dead.
HEARTBEAT_INTERVAL_S = 5.0
HEARTBEAT_LOST_S = 60.0
_TRIALS = "trials"


@dataclass(frozen=True)
class JobRecord:
    """What was submitted. Times in Unix seconds; ``ray_submission_id`` is the Ray job's id at ``ray_address``.

    ``resumed_unix_s`` is when a user last took the job up again after it had ended; of a trial, when an agent took it
    up. ``sweep`` is the job of which it is a trial, and ``trial`` its number there.
    """

    job_id: int
    name: str | None
    experiment: str | None
    vm: str
    accelerator: str
    num_devices: int
    num_nodes: int
    dataset: str | None
    created_by: str
    created_unix_s: float
    ray_address: str | None = None
    ray_submission_id: str | None = None
    resumed_unix_s: float | None = None
    sweep: int | None = None
    trial: int | None = None


@dataclass(frozen=True)
class JobState:
    """How a job stands. ``message`` is the diagnosis of a failed job, or why it waits."""

    status: JobStatus
    started_unix_s: float | None = None
    ended_unix_s: float | None = None
    heartbeat_unix_s: float | None = None
    attempt: int = 0
    message: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED_STATUSES


@dataclass(frozen=True)
class JobProgress:
    """Rank 0's place in the training: steps done, steps in all, steps a second, and its newest metrics."""

    step: int = 0
    total_train_steps: int | None = None
    steps_per_s: float | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A job as readers see it."""

    record: JobRecord
    state: JobState
    progress: JobProgress


def claim_job_id(root: StorageRoot, after: int | None = None) -> int:
    """Reserve the next free job number, safe against others who submit at the same moment.

    Args:
        after: a number that is known to be taken, so that the others need not be listed.
    """
    if after is None:
        after = max((int(name) for name in root.list_names("jobs") if name.isdigit()), default=0)
    job_id = after + 1
    while not root.create_exclusive(job_key(job_id, "claim"), uuid.uuid4().hex.encode()):
        job_id += 1
    return job_id


def read_claim(root: StorageRoot, job_id: int) -> str:
    """What tells a job from an earlier one that had its number, in a storage root that was deleted and made anew."""
    try:
        return root.read_bytes(job_key(job_id, "claim")).decode()
    except NotFoundError:
        return ""


def require_job(root: StorageRoot, job_id: int, claim: str) -> None:
    """See to it that the storage root has the job: where a file system is not mounted, its folder may be empty.

    Args:
        claim: what ``read_claim`` said of it.
    Raises:
        StorageError: the storage root does not have it, or does not answer.
        OSError: likewise, of a local root.
    """
    if read_claim(root, job_id) != claim:
        raise StorageError(f"storage root '{root.uri}' has no documents of job {job_id} here; is it mounted?")


def write_record(root: StorageRoot, record: JobRecord) -> None:
    """Store what was submitted."""
    key = job_key(record.job_id, "job.json")
    write_document(root, key, record)
    root.sync([key])


def write_state(root: StorageRoot, job_id: int, state: JobState) -> None:
    """Store how the job stands."""
    key = job_key(job_id, "state.json")
    write_document(root, key, state)
    if state.has_ended:
        root.sync([key])


def write_progress(root: StorageRoot, job_id: int, progress: JobProgress) -> None:
    """Store how far the job is."""
    write_document(root, job_key(job_id, "progress.json"), progress)


def read_record(root: StorageRoot, job_id: int) -> JobRecord:
    """What was submitted.

    Raises:
        NotFoundError: there is no such job in this storage root.
        DocumentError: the record cannot be read.
    """
    try:
        return read_document(root, job_key(job_id, "job.json"), JobRecord)
    except NotFoundError:
        raise NotFoundError(
            f"job {job_id} does not exist in storage root '{root.uri}'. List jobs: periflow-ray job list"
        ) from None


def read_written_state(root: StorageRoot, job_id: int) -> JobState:
    """How the job stood when its state was written last, however long ago that is.

    Raises:
        NotFoundError: there is no such job.
    """
    return read_document(root, job_key(job_id, "state.json"), JobState)


def read_state(root: StorageRoot, job_id: int) -> JobState:
    """How the job seems to stand: one whose heartbeat is old by this machine's clock is reported as failed.

    For views; what depends on a job's end asks ``find_end`` of ``jobs.liveness``.

    Raises:
        NotFoundError: there is no such job.
        DocumentError: the state cannot be read.
    """
    state = read_written_state(root, job_id)
    if state.has_ended or state.heartbeat_unix_s is None:
        return state
    silent_s = time.time() - state.heartbeat_unix_s
    if silent_s <= HEARTBEAT_LOST_S:
        return state
    return dataclasses.replace(
        state,
        status="failed",
        ended_unix_s=state.heartbeat_unix_s,
        message=f"the job's driver died: no sign of life for {silent_s:.0f} s. Was its cluster shut down?",
    )


def read_progress(root: StorageRoot, job_id: int) -> JobProgress:
    """How far the job is; step 0 before the first report."""
    try:
        return read_document(root, job_key(job_id, "progress.json"), JobProgress)
    except NotFoundError:
        return JobProgress()


def read_reported_step(root: StorageRoot, job_id: int) -> int:
    """The last step that was reported; 0 where that cannot be read, because no more than an account hangs on it."""
    try:
        return read_progress(root, job_id).step
    except DocumentError:
        return 0


def drop_damaged_progress(root: StorageRoot, job_id: int) -> None:
    """Forget a progress that cannot be read: the next report writes it anew, and until then it would hide the job."""
    try:
        read_progress(root, job_id)
    except DamagedDocumentError:
        root.delete(job_key(job_id, "progress.json"))


def read_job(root: StorageRoot, job_id: int) -> Job:
    """Record, state and progress of one job.

    Raises:
        NotFoundError: there is no such job.
        DocumentError: one of the three cannot be read.
    """
    return Job(read_record(root, job_id), read_state(root, job_id), read_progress(root, job_id))


def list_jobs(root: StorageRoot, on_unreadable: OnUnreadable | None = None) -> list[Job]:
    """All jobs but the trials of sweeps, newest first; a number that was claimed but never submitted is left out.

    Args:
        on_unreadable: told of each job that has a document that cannot be read; it is left out then.
    Raises:
        DocumentError: there is such a job, and nobody to be told of it.
    """
    job_ids = {int(name) for name in root.list_names("jobs") if name.isdigit()}
    trials = {int(name) for name in root.list_names(_TRIALS) if name.isdigit()}
    return [job for job in read_jobs(root, job_ids - trials, on_unreadable) if job.record.sweep is None]


def read_jobs(root: StorageRoot, job_ids: Iterable[int], on_unreadable: OnUnreadable | None = None) -> list[Job]:
    """The jobs of these numbers that there are, newest first; see ``list_jobs``."""
    return read_each(lambda job_id: read_job(root, job_id), sorted(job_ids, reverse=True), on_unreadable)


def mark_trial(root: StorageRoot, job_id: int) -> None:
    """Spare ``list_jobs`` the record of a job that is a trial: there may be thousands."""
    root.write_bytes(f"{_TRIALS}/{job_id}", b"")


def delete_job(root: StorageRoot, job_id: int) -> None:
    """Delete everything of a job that has said, or was found, to have ended.

    Raises:
        NotFoundError: there is no such job.
        UsageError: it has not ended.
    """
    read_record(root, job_id)
    state = read_written_state(root, job_id)
    if not state.has_ended:
        raise UsageError(
            f"job {job_id} is {state.status}; only an ended job can be deleted. "
            f"Stop it first: periflow-ray job stop {job_id}"
        )
    erase_job(root, job_id)


def erase_job(root: StorageRoot, job_id: int) -> None:
    """Delete everything of a job, as much as there is, whatever it says of itself."""
    root.delete(job_key(job_id))
    # The number is not given to another job.
    root.create_exclusive(job_key(job_id, "claim"), uuid.uuid4().hex.encode())
