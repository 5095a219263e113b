"""Which ended jobs a user took up again, and that only one of several who do so at once wins.

jobs/<job>/resumes/<id of the driver that had ended>-<try>.json
"""

from __future__ import annotations

import dataclasses
import sys
import time
import uuid
from dataclasses import dataclass

from periflow_ray.errors import DamagedDocumentError, NotFoundError, UsageError
from periflow_ray.jobs.attempts import close_attempt, list_attempt_numbers, read_attempts, write_attempt
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.records import (
    HEARTBEAT_LOST_S,
    JobRecord,
    JobState,
    drop_damaged_progress,
    read_reported_step,
    read_written_state,
    write_record,
    write_state,
)
from periflow_ray.jobs.requests import clear_requests
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.documents import OnUnreadable, dump_document, read_document, read_each
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

# Between its claim and the new driver a command that resumes does a handful of requests; one that takes longer is dead.
CLAIM_LASTS_S = 120.0
_POLL_S = 0.5


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


def replace_unreadable_state(root: StorageRoot, job_id: int) -> None:
    """Take a job for failed whose state is damaged or gone: else nobody could resume it.

    A driver writes the whole state with each heartbeat; so this waits, for as long as the silence of a dead one lasts.

    Raises:
        NewerFormatError: a later version wrote the state, which is left as it is.
    """
    if _has_readable_state(root, job_id):
        return
    print(
        f"The state of job {job_id} is damaged; waits for up to {HEARTBEAT_LOST_S:.0f} s for a driver that writes it "
        "anew.",
        file=sys.stderr,
    )
    deadline_s = time.monotonic() + HEARTBEAT_LOST_S
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        if _has_readable_state(root, job_id):
            return
    text = "the job's driver died, and how the job stood is not known: its state is damaged"
    attempt = max(list_attempt_numbers(root, job_id), default=0)
    EventWriter(root, job_id, "submitter").write("failed", text, attempt)
    write_state(root, job_id, JobState("failed", ended_unix_s=time.time(), attempt=attempt, message=text))


def _has_readable_state(root: StorageRoot, job_id: int) -> bool:
    try:
        read_written_state(root, job_id)
    except (DamagedDocumentError, NotFoundError):
        return False
    return True


def claim_resume(root: StorageRoot, job_id: int, driver_id: str, attempt: int) -> bool:
    """Win the right to take up a job; False if somebody else is doing it.

    The claim of a command that died before it started a driver expires; one that is damaged has expired.

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
        if time.time() - _read_claim_unix_s(root, key) < CLAIM_LASTS_S:
            return False
        index += 1


def describe_overtaken(job_id: int) -> UsageError:
    """For whoever did not win."""
    return UsageError(f"job {job_id} is being resumed by somebody else just now. See: periflow-ray job view {job_id}")


def reopen_job(root: StorageRoot, record: JobRecord, state: JobState, why: str = "a user resumes the job") -> None:
    """Let an ended job wait for its next driver.

    Args:
        record: what it is from now on.
        state: how it ended.
        why: the beginning of a sentence about where it goes on.
    """
    job_id = record.job_id
    # Nobody asked the new driver for anything yet.
    clear_requests(root, job_id)
    newest = latest_committed(root, job_id)
    _close_last_attempt(root, job_id, state, 0 if newest is None else newest.step)
    drop_damaged_progress(root, job_id)
    where = "from its beginning" if newest is None else f"from step {newest.step}"
    EventWriter(root, job_id, "submitter").write("resumed", f"{why} {where}", state.attempt)
    # The record after the state, as it was read; a sign of life keeps readers from asking for the old driver meanwhile.
    waiting = JobState("waiting", started_unix_s=state.started_unix_s, attempt=state.attempt)
    write_state(root, job_id, dataclasses.replace(waiting, heartbeat_unix_s=time.time()))
    write_record(root, record)
    write_state(root, job_id, waiting)


def _close_last_attempt(root: StorageRoot, job_id: int, state: JobState, resumable_step: int) -> None:
    """Record the end of an attempt that died with its driver, before the time until now counts as the attempt's."""
    # The driver tells of those that are left out.
    records = read_attempts(root, job_id, on_unreadable=lambda err: None)
    if not records or records[-1].ended_unix_s is not None:
        return
    closed = close_attempt(
        records[-1],
        ended_unix_s=state.ended_unix_s or time.time(),
        last_step=read_reported_step(root, job_id),
        resumable_step=resumable_step,
    )
    write_attempt(root, job_id, closed)


def _read_claim_unix_s(root: StorageRoot, key: str) -> float:
    try:
        return read_document(root, key, ResumeClaim).time_unix_s
    except DamagedDocumentError:
        # A claim is created whole: what is damaged has been there for a while.
        return 0.0


def read_resumed_attempts(root: StorageRoot, job_id: int, on_unreadable: OnUnreadable | None = None) -> frozenset[int]:
    """Numbers of the attempts after which the job had ended, and a user took it up again.

    Args:
        on_unreadable: told of each claim that cannot be read, which is left out then.
    Raises:
        DocumentError: there is such a claim, and nobody to be told of it.
    """
    prefix = job_key(job_id, "resumes")
    keys = [f"{prefix}/{name}" for name in root.list_names(prefix)]
    claims = read_each(lambda key: read_document(root, key, ResumeClaim), keys, on_unreadable)
    return frozenset(claim.attempt for claim in claims)
