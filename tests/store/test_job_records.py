from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.jobs import (
    HEARTBEAT_LOST_S,
    Job,
    JobProgress,
    JobState,
    claim_job_id,
    delete_job,
    list_jobs,
    read_job,
    read_progress,
    read_record,
    read_state,
    write_progress,
    write_state,
)


def test_job_numbers_count_up_from_one(root):
    assert [claim_job_id(root) for _ in range(3)] == [1, 2, 3]


def test_twenty_threads_that_submit_at_once_get_twenty_numbers(local_root):
    barrier = threading.Barrier(20)

    def claim(_: int) -> int:
        barrier.wait()
        return claim_job_id(local_root)

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(claim, range(20))) == list(range(1, 21))


def test_a_job_reads_back_with_its_state_and_progress(root, add_job):
    record = add_job(root, 7, JobState("waiting"))
    assert read_job(root, 7) == Job(record, JobState("waiting"), JobProgress())
    state = JobState("success", started_unix_s=1.0, ended_unix_s=2.5, heartbeat_unix_s=2.0, attempt=2)
    progress = JobProgress(step=30, total_train_steps=40, steps_per_s=1.5, metrics={"loss": 0.25, "phase": "train"})
    write_state(root, 7, state)
    write_progress(root, 7, progress)
    assert read_job(root, 7) == Job(record, state, progress)
    assert read_progress(root, 8) == JobProgress()


def test_a_fresh_heartbeat_leaves_the_state_as_it_is(root, add_job):
    state = JobState("running", heartbeat_unix_s=time.time())
    add_job(root, 1, state)
    assert read_state(root, 1) == state


def test_a_job_without_a_first_heartbeat_waits(root, add_job):
    add_job(root, 1, JobState("waiting"))
    assert read_state(root, 1) == JobState("waiting")


def test_a_stale_heartbeat_is_reported_as_failed(root, add_job):
    heartbeat_unix_s = time.time() - HEARTBEAT_LOST_S - 40
    state = JobState("running", started_unix_s=5.0, heartbeat_unix_s=heartbeat_unix_s, attempt=3)
    add_job(root, 1, state)
    seen = read_state(root, 1)
    assert seen.message is not None
    assert seen.message.startswith("the job's driver died: no sign of life for ")
    assert seen.message.endswith(" s. Was its cluster shut down?")
    assert seen == dataclasses.replace(state, status="failed", ended_unix_s=heartbeat_unix_s, message=seen.message)


def test_an_ended_job_needs_no_heartbeat(root, add_job):
    state = JobState("success", heartbeat_unix_s=1.0, ended_unix_s=2.0)
    add_job(root, 1, state)
    assert read_state(root, 1) == state


def test_jobs_are_listed_newest_first_without_numbers_that_were_only_claimed(root, add_job):
    for job_id in (2, 9, 10):
        add_job(root, job_id, JobState("stopped"))
    assert claim_job_id(root) == 11
    root.write_bytes("jobs/notes.txt", b"somebody's own file")
    assert [job.record.job_id for job in list_jobs(root)] == [10, 9, 2]


def test_a_missing_job_is_answered_with_what_to_do(root):
    with pytest.raises(NotFoundError) as caught:
        read_record(root, 4)
    assert str(caught.value) == f"job 4 does not exist in storage root '{root.uri}'. List jobs: periflow-ray job list"


def test_a_running_job_is_not_deleted(root, add_job):
    add_job(root, 1, JobState("running", heartbeat_unix_s=time.time()))
    with pytest.raises(UsageError) as caught:
        delete_job(root, 1)
    assert str(caught.value) == (
        "job 1 is running; only an ended job can be deleted. Stop it first: periflow-ray job stop 1"
    )
    assert read_job(root, 1).state.status == "running"


def test_deleting_an_ended_job_leaves_the_others(root, add_job):
    for job_id in (1, 11):
        add_job(root, job_id, JobState("failed"))
    delete_job(root, 1)
    assert [job.record.job_id for job in list_jobs(root)] == [11]
    with pytest.raises(NotFoundError):
        delete_job(root, 1)


def test_the_number_of_a_deleted_job_is_not_given_again(root, add_job):
    assert claim_job_id(root) == 1
    add_job(root, 1, JobState("failed"))
    delete_job(root, 1)
    assert claim_job_id(root) == 2
