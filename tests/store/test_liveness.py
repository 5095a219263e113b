"""What is done to jobs that have ended is not done to one that lives, whatever the clocks say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from periflow_ray.errors import UsageError
from periflow_ray.jobs import JobState, delete_job, liveness, read_state, read_written_state, write_state
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.liveness import find_end
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.runtime.function_jobs.record import read_resumable_job
from periflow_ray.store.checkpoints import checkpoint_key

# By how much the clock of the driver's machine is behind.
SKEW_S = 3600.0


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch):
    monkeypatch.setattr(liveness, "WATCH_S", 1.0)
    monkeypatch.setattr(liveness, "_POLL_S", 0.02)


@pytest.fixture
def live_job(root, add_job) -> Iterator[None]:
    """Job 1, whose driver writes heartbeats of a clock that is an hour behind."""
    add_job(root, 1, JobState("running", heartbeat_unix_s=time.time() - SKEW_S))
    beat = BackgroundLoop(
        "heartbeat",
        lambda: write_state(root, 1, JobState("running", heartbeat_unix_s=time.time() - SKEW_S)),
        0.05,
        faults=Faults("the heartbeat"),
    )
    beat.start()
    yield
    beat.close()


def test_a_job_that_lives_by_another_clock_is_neither_deleted_nor_resumed(root, live_job):
    assert read_state(root, 1).status == "failed"  # As it seems.
    assert find_end(root, 1).status == "running"
    with pytest.raises(UsageError, match="only a job that has ended can be resumed"):
        read_resumable_job(root, 1)
    root.write_bytes(checkpoint_key(1, "step-00000010", "manifest.json"), b"{}")
    with pytest.raises(UsageError, match="only an ended job can be deleted"):
        delete_job(root, 1)
    assert root.exists(checkpoint_key(1, "step-00000010", "manifest.json"))


@pytest.mark.parametrize("heartbeat_unix_s", [None, 1.0, 4e9])
def test_a_job_without_any_sign_of_life_has_ended_and_that_is_written_down(root, add_job, heartbeat_unix_s):
    add_job(root, 1, JobState("running", heartbeat_unix_s=heartbeat_unix_s, attempt=2))
    with pytest.raises(UsageError):
        delete_job(root, 1)
    ended = find_end(root, 1)
    assert (ended.status, ended.attempt) == ("failed", 2)
    assert ended == read_written_state(root, 1)
    assert [event.kind for event in read_events(root, 1)] == ["failed"]
    delete_job(root, 1)
    assert not root.exists("jobs/1/state.json")


def test_who_watches_hears_of_the_end(root, add_job):
    add_job(root, 1, JobState("running", heartbeat_unix_s=1.0))
    ending = threading.Timer(0.1, lambda: write_state(root, 1, JobState("success", ended_unix_s=2.0)))
    ending.start()
    assert find_end(root, 1).status == "success"
    ending.join()
