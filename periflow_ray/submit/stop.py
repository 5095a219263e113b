"""Ends a job: with a save at an agreed step, which its driver is asked for, or at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from periflow_ray import jobs
from periflow_ray.errors import ClusterError
from periflow_ray.jobs import JobRecord, JobState
from periflow_ray.jobs.requests import StopRequest, post_request
from periflow_ray.jobs.stop_times import END_TIMEOUT_S, SAVE_TIMEOUT_S
from periflow_ray.ray_jobs import ENDED_RAY_STATUSES
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import connect_to_job, settle_state

# The driver looks for requests about once a second; its storage root may be slow.
ANSWER_TIMEOUT_S = 10.0
# What the driver is given to end the job by itself, without a save, before Ray does it.
NOW_GRACE_S = 5.0
_POLL_S = 0.2


def ask_to_stop(root: StorageRoot, job_id: int, *, save_timeout_s: float = SAVE_TIMEOUT_S) -> JobState:
    """Begin to stop a job, with a save first; returns once its driver, or else Ray, is at it.

    Raises:
        NotFoundError: there is no such job.
        ClusterError: neither its driver nor its cluster can be reached.
    """
    record = jobs.read_record(root, job_id)
    state = settle_state(root, job_id)
    if state.has_ended or state.status == "stopping":
        return state
    if _has_begun(state):
        post_request(root, job_id, StopRequest(save_timeout_s))
        state = _wait(root, job_id, ANSWER_TIMEOUT_S, lambda state: state.status == "stopping")
        if state.has_ended or state.status == "stopping":
            return state
    _stop_through_ray(root, record)
    return jobs.read_written_state(root, job_id)


def stop_job(root: StorageRoot, job_id: int, *, save_timeout_s: float = SAVE_TIMEOUT_S) -> JobState:
    """Stop a job with a save first and wait until it has ended; an ended job is left as it is.

    Args:
        save_timeout_s: how long the save may take.
    Raises:
        NotFoundError: there is no such job.
        ClusterError: neither its driver nor its cluster can be reached, or it did not end in time.
    """
    state = ask_to_stop(root, job_id, save_timeout_s=save_timeout_s)
    timeout_s = save_timeout_s + END_TIMEOUT_S
    if state.status != "stopping":
        return state if state.has_ended else _wait_with_ray(root, job_id, timeout_s)
    state = _wait(root, job_id, timeout_s, lambda state: False)
    if not state.has_ended:
        raise _took_too_long(job_id, timeout_s)
    return state


def stop_job_now(root: StorageRoot, job_id: int) -> JobState:
    """End a job without a save and wait until it has ended; an ended job is left as it is.

    Raises:
        NotFoundError: there is no such job.
        ClusterError: its cluster cannot be reached, or the job did not end in time.
    """
    record = jobs.read_record(root, job_id)
    state = settle_state(root, job_id)
    if not state.has_ended and _has_begun(state):
        # Also ends a save that is under way. Ray's signal alone would ask for one.
        post_request(root, job_id, StopRequest(0.0))
        # A function job has no Ray job that could be ended instead.
        grace_s = END_TIMEOUT_S if record.ray_submission_id is None else NOW_GRACE_S
        state = _wait(root, job_id, grace_s, lambda state: False)
    if state.has_ended:
        return state
    _stop_through_ray(root, record)
    return _wait_with_ray(root, job_id, END_TIMEOUT_S)


def _has_begun(state: JobState) -> bool:
    """Whether there is, or was, a driver; whether it lives is seen by its answer, and not by the time of its clock."""
    return state.heartbeat_unix_s is not None


def _wait(root: StorageRoot, job_id: int, timeout_s: float, is_enough: Callable[[JobState], bool]) -> JobState:
    deadline = time.monotonic() + timeout_s
    while True:
        state = settle_state(root, job_id)
        if state.has_ended or is_enough(state) or time.monotonic() > deadline:
            return state
        time.sleep(_POLL_S)


def _stop_through_ray(root: StorageRoot, record: JobRecord) -> None:
    if record.ray_submission_id is None:
        raise ClusterError(
            f"job {record.job_id} was started from Python, and its driver does not answer. End it where it runs: "
            "Ctrl-C in its terminal, or end its process."
        )
    connect_to_job(root, record).stop(record.ray_submission_id)


def _wait_with_ray(root: StorageRoot, job_id: int, timeout_s: float) -> JobState:
    """Wait for the end of a job that Ray was asked to stop, and record it if the driver cannot."""
    record = jobs.read_record(root, job_id)
    assert record.ray_submission_id is not None
    cluster = connect_to_job(root, record)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state = jobs.read_written_state(root, job_id)
        if state.has_ended:
            # Ray itself takes its whole grace time to see that a stopped driver has ended.
            return state
        ray_job = cluster.read(record.ray_submission_id)
        if ray_job is None or ray_job.status in ENDED_RAY_STATUSES:
            state = jobs.read_written_state(root, job_id)
            if not state.has_ended:
                # The driver was ended before it could say so.
                state = dataclasses.replace(
                    state, status="stopped", ended_unix_s=time.time(), message="stopped on request"
                )
                jobs.write_state(root, job_id, state)
            return state
        time.sleep(_POLL_S)
    raise _took_too_long(job_id, timeout_s)


def _took_too_long(job_id: int, timeout_s: float) -> ClusterError:
    return ClusterError(
        f"job {job_id} did not end within {timeout_s:.0f} s. End it at once: periflow-ray job stop {job_id} --now"
    )
