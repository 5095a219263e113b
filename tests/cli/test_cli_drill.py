from __future__ import annotations

import dataclasses
import json
import threading

import pytest
from support.driver_stand_in import DriverStandIn, ended_attempt, running_attempt, running_state
from support.sample_jobs import build_record

from periflow_ray.cli import job_drill
from periflow_ray.jobs import JobState, write_record, write_state
from periflow_ray.jobs.attempts import SaveRecord, write_attempt
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.requests import KillNodeDrill, KillRankDrill, NoticeDrill, Request
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def running_root(root: StorageRoot) -> StorageRoot:
    """A storage root whose job 1 runs on two nodes and has made its first step."""
    write_record(root, build_record(1))
    write_state(root, 1, running_state())
    write_attempt(root, 1, running_attempt())
    return root


def test_a_killed_rank_is_followed_until_the_job_runs_again(run_cli, running_root):
    def react(request: Request) -> None:
        write_attempt(running_root, 1, ended_attempt())
        EventWriter(running_root, 1, "monitor").write("attempt_failed", "attempt 1 failed: node 0, rank 1", 1)
        write_state(running_root, 1, running_state(attempt=2))
        write_attempt(running_root, 1, running_attempt(2, resumed_step=40, started_unix_s=1006.25))

    with DriverStandIn(running_root, react) as driver:
        result = run_cli("job", "drill", "1", "--kill-rank", "1")
    assert (result.exit_code, result.stdout) == (
        0,
        "Attempt 1: node 0, rank 1 was killed by SIGKILL at step 41; resumed at step 40 after 1.2 s; "
        "lost 1 step, 0.2 device-seconds\n",
    )
    assert result.stderr.endswith("  attempt 1 failed: node 0, rank 1\n")
    assert driver.requests == [KillRankDrill(1)]


def test_a_damaged_record_of_an_earlier_attempt_keeps_nobody_from_a_drill(run_cli, running_root):
    running_root.write_bytes("jobs/1/attempts/1.json", b"")
    write_attempt(running_root, 1, running_attempt(2))

    def react(request: Request) -> None:
        write_attempt(running_root, 1, dataclasses.replace(ended_attempt(), number=2))
        write_attempt(running_root, 1, running_attempt(3, resumed_step=40, started_unix_s=1006.25))

    with DriverStandIn(running_root, react):
        result = run_cli("job", "drill", "1", "--kill-rank", "1")
    assert (result.exit_code, result.stdout.partition(":")[0]) == (0, "Attempt 2")
    assert "Left out: 'jobs/1/attempts/1.json'" in result.stderr


@pytest.mark.parametrize(
    ("options", "drill"),
    [
        (["--notice", "30s"], NoticeDrill(1, 30.0)),
        (["--notice", "2m", "--node", "0"], NoticeDrill(0, 120.0)),
        (["--kill-rank", "0"], KillRankDrill(0)),
        (["--kill-node", "1"], KillNodeDrill(1)),
    ],
)
def test_the_driver_is_told_what_to_rehearse(run_cli, running_root, options, drill):
    def react(request: Request) -> None:
        save = SaveRecord(30.0, 41, 3.125)
        taken = "node 1 was taken away in 30 s"
        write_attempt(running_root, 1, ended_attempt(resumable_step=41, cause="preemption", text=taken, save=save))
        write_attempt(running_root, 1, running_attempt(2, resumed_step=41, started_unix_s=1019.0))

    with DriverStandIn(running_root, react) as driver:
        result = run_cli("job", "drill", "1", *options, "-o", "json")
    assert driver.requests == [drill]
    document = json.loads(result.stdout)
    assert (document["cause"], document["num_lost_steps"], document["downtime_s"]) == ("preemption", 0, 14.0)
    assert document["text"] == (
        "node 1 was taken away, 30 s notice; saved at step 41, 3.1 s after the notice; resumed at step 41 after 14 s; "
        "lost 0 steps, 0 device-seconds"
    )


def test_a_job_that_does_not_come_back_is_an_error_after_its_account(run_cli, running_root):
    def react(request: Request) -> None:
        write_attempt(running_root, 1, ended_attempt())
        write_state(running_root, 1, JobState("failed", 1000.0, 1010.0, attempt=1, message="no node is left"))

    with DriverStandIn(running_root, react):
        result = run_cli("job", "drill", "1", "--kill-node", "0")
    assert result.exit_code == 1
    assert result.stdout == (
        "Attempt 1: node 0, rank 1 was killed by SIGKILL at step 41; lost 1 step, 0.2 device-seconds\n"
    )
    assert result.stderr.endswith("Error: job 1 ended before it ran again; it is failed: no node is left\n")


def test_a_driver_that_does_not_answer_is_asked_for_nothing_in_the_end(run_cli, running_root, monkeypatch):
    monkeypatch.setattr(job_drill, "ANSWER_TIMEOUT_S", 0.0)
    result = run_cli("job", "drill", "1", "--kill-rank", "0")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: the driver of job 1 did not take the request within 0 s, and it was withdrawn; nothing was done. "
        "See: periflow-ray job view 1\n",
    )
    assert running_root.list_names(job_key(1, "requests")) == []


def test_it_gives_up_after_its_time(run_cli, running_root):
    with DriverStandIn(running_root, lambda request: write_attempt(running_root, 1, ended_attempt())):
        result = run_cli("job", "drill", "1", "--kill-rank", "0", "--timeout", "0.1s")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        "Error: job 1 does not run again after 0 s; it is running. See: periflow-ray job events 1",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name one thing to rehearse: --notice 30s, --kill-rank R or --kill-node K."),
        (["--notice", "30s", "--kill-rank", "0"], "name one thing to rehearse: --notice 30s, --kill-rank R or "),
        (["--kill-rank", "0", "--node", "0"], "--node is for --notice; to kill a node use --kill-node K."),
        (["--kill-rank", "2"], "--kill-rank 2: job 1 has ranks 0 to 1."),
        (["--kill-node", "-1"], "--kill-node -1: job 1 has nodes 0 to 1."),
        (["--notice", "30s", "--node", "7"], "--node 7: job 1 has nodes 0 to 1."),
    ],
)
def test_mistakes_are_told_before_anything_happens(run_cli, running_root, options, message):
    result = run_cli("job", "drill", "1", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Error: {message}")
    assert running_root.list_names(job_key(1, "requests")) == []


@pytest.mark.parametrize("text", ["", "0s", "soon", "-1s", "30d", "1e9s"])
def test_a_notice_is_a_duration_above_zero(run_cli, running_root, text):
    result = run_cli("job", "drill", "1", f"--notice={text}")
    assert result.exit_code == 2
    assert f"{text!r} is not a duration above 0. Give a number and s, m or h: 30s, 2m, 1.5h." in result.stderr


def test_only_a_running_job_can_be_drilled(run_cli, running_root, sample_root):
    assert run_cli("job", "drill", "2", "--kill-rank", "0").stderr == (
        "Error: job 2 has failed; a drill needs a job that runs. Which ones do: "
        "periflow-ray job list --status running\n"
    )
    assert run_cli("job", "drill", "9", "--kill-rank", "0").exit_code == 1


def test_a_job_is_drilled_when_it_has_made_its_first_step(run_cli, running_root):
    # A driver was killed: the attempt that it left does not run.
    write_state(running_root, 1, dataclasses.replace(running_state(), status="allocating"))

    def react(request: Request) -> None:
        write_attempt(running_root, 1, ended_attempt())
        write_attempt(running_root, 1, running_attempt(2, resumed_step=40, started_unix_s=1006.25))

    running = threading.Timer(0.5, write_state, (running_root, 1, running_state()))
    running.start()
    with DriverStandIn(running_root, react):
        result = run_cli("job", "drill", "1", "--kill-rank", "1")
    running.join()
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == "waits until the job makes steps"


def test_a_job_that_makes_no_step_is_not_drilled(run_cli, sample_root):
    write_state(sample_root, 3, running_state())
    result = run_cli("job", "drill", "3", "--kill-rank", "0", "--timeout", "0.1s")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        "Error: job 3 made no step within 0 s. See: periflow-ray job view 3",
    )
    assert sample_root.list_names(job_key(3, "requests")) == []
