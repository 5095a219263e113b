from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from support.driver_stand_in import DriverStandIn, ended_attempt, running_state
from support.job_server import JobServer, serve_jobs
from support.sample_jobs import build_record

from periflow_ray.jobs import JobState, read_state, read_written_state, write_record, write_state
from periflow_ray.jobs.attempts import SaveRecord, write_attempt
from periflow_ray.jobs.requests import Request, StopRequest
from periflow_ray.store.checkpoints import Manifest, StoredFile, checkpoint_key, commit
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit import stop

SUBMISSION_ID = "periflow-1"


@pytest.fixture
def cluster() -> Iterator[JobServer]:
    with serve_jobs() as server:
        server.jobs[SUBMISSION_ID] = {"status": "RUNNING", "message": None}
        yield server


@pytest.fixture
def running_root(root: StorageRoot, cluster: JobServer) -> StorageRoot:
    """A storage root whose job 1 runs, and has a checkpoint of step 40."""
    write_record(
        root, dataclasses.replace(build_record(1), ray_address=cluster.address, ray_submission_id=SUBMISSION_ID)
    )
    write_state(root, 1, running_state())
    write_checkpoint(root, 40)
    return root


def write_checkpoint(root: StorageRoot, step: int) -> None:
    name = f"step-{step:08d}"
    file = StoredFile("model.pt", 7, "0" * 64, 0, "files/model.pt")
    root.write_bytes(checkpoint_key(1, name, file.key), b"weights")
    commit(root, Manifest(name, 1, step, 1, 2, 2, 1000.0, (file,)))


def stops_requested(cluster: JobServer) -> int:
    return sum(path.endswith("/stop") for _, path, _ in cluster.requests)


def test_a_damaged_record_of_an_earlier_attempt_hides_nothing_of_a_stop(run_cli, running_root, cluster):
    running_root.write_bytes("jobs/1/attempts/1.json", b"")

    def react(request: Request) -> None:
        save = SaveRecord(60.0, 40, 0.5)
        record = ended_attempt(resumable_step=40, cause="stop", text="stopped on request", save=save)
        write_attempt(running_root, 1, dataclasses.replace(record, number=2))
        write_state(running_root, 1, JobState("stopped", 1000.0, 1010.0, attempt=2, message="stopped on request"))

    with DriverStandIn(running_root, react):
        result = run_cli("job", "stop", "1")
    assert result.exit_code == 0
    assert "Job (1) ended: stopped; saved at step 40." in result.stderr
    assert "Left out: 'jobs/1/attempts/1.json'" in result.stderr


def test_stop_asks_for_a_save_and_says_how_to_go_on(run_cli, running_root, cluster):
    def react(request: Request) -> None:
        write_state(running_root, 1, dataclasses.replace(running_state(), status="stopping"))
        write_checkpoint(running_root, 41)
        save = SaveRecord(60.0, 41, 0.5)
        write_attempt(
            running_root, 1, ended_attempt(resumable_step=41, cause="stop", text="stopped on request", save=save)
        )
        write_state(running_root, 1, JobState("stopped", 1000.0, 1010.0, attempt=1, message="stopped on request"))

    with DriverStandIn(running_root, react) as driver:
        result = run_cli("job", "stop", "1")
    assert (result.exit_code, result.stderr.splitlines()) == (
        0,
        ["Job (1) ended: stopped; saved at step 41.", "Go on with it: periflow-ray job resume 1"],
    )
    assert driver.requests == [StopRequest(60.0)]
    assert stops_requested(cluster) == 0


def test_the_time_for_the_save_can_be_given(run_cli, running_root):
    def react(request: Request) -> None:
        write_state(running_root, 1, JobState("stopped", 1000.0, 1010.0, attempt=1))

    with DriverStandIn(running_root, react) as driver:
        result = run_cli("job", "stop", "1", "--timeout", "5m")
    assert driver.requests == [StopRequest(300.0)]
    assert result.stderr.startswith("Job (1) ended: stopped; its newest checkpoint is of step 40.\n")


def test_now_asks_for_no_save(run_cli, running_root, cluster):
    def react(request: Request) -> None:
        write_state(running_root, 1, JobState("stopped", 1000.0, 1010.0, attempt=1))

    with DriverStandIn(running_root, react) as driver:
        result = run_cli("job", "stop", "1", "--now")
    assert driver.requests == [StopRequest(0.0)]
    assert result.exit_code == 0
    assert stops_requested(cluster) == 0


def test_now_ends_a_stop_that_is_saving(run_cli, running_root):
    write_state(running_root, 1, dataclasses.replace(running_state(), status="stopping"))

    def react(request: Request) -> None:
        write_state(running_root, 1, JobState("stopped", 1000.0, 1010.0, attempt=1))

    with DriverStandIn(running_root, react) as driver:
        assert run_cli("job", "stop", "1", "--now").exit_code == 0
    assert driver.requests == [StopRequest(0.0)]


def test_a_second_stop_waits_for_the_first(run_cli, running_root, cluster, monkeypatch):
    write_state(running_root, 1, dataclasses.replace(running_state(), status="stopping"))
    monkeypatch.setattr(stop, "END_TIMEOUT_S", 0.0)
    result = run_cli("job", "stop", "1", "--timeout", "0.1")
    message = "Error: job 1 did not end within 0 s. End it at once: periflow-ray job stop 1 --now\n"
    assert (result.exit_code, result.stderr) == (1, message)
    assert running_root.list_names(job_key(1, "requests")) == []
    assert stops_requested(cluster) == 0


@pytest.mark.parametrize("option", [[], ["--now"]])
def test_a_driver_that_does_not_answer_is_stopped_by_ray(run_cli, running_root, cluster, monkeypatch, option):
    monkeypatch.setattr(stop, "ANSWER_TIMEOUT_S", 0.0)
    monkeypatch.setattr(stop, "NOW_GRACE_S", 0.0)
    result = run_cli("job", "stop", "1", *option)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        0,
        "Job (1) ended: stopped; its newest checkpoint is of step 40.",
    )
    assert stops_requested(cluster) == 1
    assert read_state(running_root, 1).message == "stopped on request"


HOURS_S = 7200.0


def of_another_clock(state: JobState) -> JobState:
    """As a driver says it whose machine's clock is hours behind."""
    assert state.heartbeat_unix_s is not None
    return dataclasses.replace(state, heartbeat_unix_s=state.heartbeat_unix_s - HOURS_S)


@pytest.mark.parametrize("option", [[], ["--now"]])
def test_a_driver_whose_clock_is_hours_behind_is_asked(run_cli, running_root, cluster, option):
    write_state(running_root, 1, of_another_clock(running_state()))

    def react(request: Request) -> None:
        write_state(running_root, 1, of_another_clock(dataclasses.replace(running_state(), status="stopping")))
        ended = JobState("stopped", 1000.0, 1010.0, attempt=1, message="stopped on request")
        write_state(running_root, 1, ended)

    with DriverStandIn(running_root, react) as driver:
        result = run_cli("job", "stop", "1", *option)
    assert result.exit_code == 0
    assert "Job (1) ended: stopped; " in result.stderr
    assert len(driver.requests) == 1
    assert stops_requested(cluster) == 0


@pytest.mark.parametrize("option", [[], ["--now"]])
def test_one_that_ray_ends_is_recorded_as_stopped_whatever_its_clock_said(
    run_cli, running_root, cluster, monkeypatch, option
):
    monkeypatch.setattr(stop, "ANSWER_TIMEOUT_S", 0.0)
    monkeypatch.setattr(stop, "NOW_GRACE_S", 0.0)
    write_state(running_root, 1, of_another_clock(running_state()))
    result = run_cli("job", "stop", "1", *option)
    assert result.exit_code == 0
    assert "Job (1) ended: stopped; " in result.stderr
    assert stops_requested(cluster) == 1
    assert read_written_state(running_root, 1).status == "stopped"


def test_a_job_that_waits_for_its_driver_is_stopped_by_ray(run_cli, running_root, cluster):
    write_state(running_root, 1, JobState("waiting"))
    running_root.delete(job_key(1, "checkpoints"))
    result = run_cli("job", "stop", "1")
    assert result.stderr.startswith("Job (1) ended: stopped; it has no checkpoint.\n")
    assert stops_requested(cluster) == 1


def test_a_python_job_whose_driver_is_silent_is_ended_where_it_runs(run_cli, root, monkeypatch):
    monkeypatch.setattr(stop, "ANSWER_TIMEOUT_S", 0.0)
    write_record(root, build_record(1))
    write_state(root, 1, running_state())
    result = run_cli("job", "stop", "1")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: job 1 was started from Python, and its driver does not answer. End it where it runs: Ctrl-C in its "
        "terminal, or end its process.\n",
    )


def test_now_and_a_timeout_exclude_each_other(run_cli, running_root):
    result = run_cli("job", "stop", "1", "--now", "--timeout", "5s")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --now saves nothing; it cannot be used with --timeout.\n",
    )
