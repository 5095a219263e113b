from __future__ import annotations

import dataclasses
import json

import pytest
from support.driver_stand_in import ended_attempt
from support.sample_jobs import build_record

from periflow_ray.jobs import JobState, list_jobs, write_record, write_state
from periflow_ray.jobs.attempts import write_attempt

JOB_1 = """\
╭──────────── Overview ─────────────╮
│  Number      1                    │
│  Name        cifar-job            │
│  Status      success              │
│  VM          local                │
│  Nodes       2 x 1 CPU            │
│  Experiment  vision               │
│  Data        my-cifar-100         │
│  Created by  kim                  │
│  Created     2026-01-01 00:00:00  │
│  Started     2026-01-01 00:00:05  │
│  Ended       2026-01-01 01:02:08  │
│  Duration    1h 02m 03s           │
│  Attempt     2                    │
│  Progress    20/20 (100 %)        │
│  Metrics     loss 0.25, lr 0.1    │
╰───────────────────────────────────╯
╭───────────────────── Checkpoints ─────────────────────╮
│  ID               Step  Size     Created              │
│  1/step-00000010  10    31.0 MB  2026-01-01 00:10:00  │
│  1/step-00000020  20    31.0 MB  2026-01-01 00:20:00  │
╰───────────────────────────────────────────────────────╯
╭─────────────────────── Last events ───────────────────────╮
│  2026-01-01 00:00:00  Attempt 1 starts on 2 nodes.        │
│  2026-01-01 00:00:09  Every node ended with exit code 0.  │
╰───────────────────────────────────────────────────────────╯
"""


def test_a_job_is_shown_with_its_committed_checkpoints_and_events(run_cli, sample_root):
    result = run_cli("job", "view", "1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, JOB_1, "")


def test_a_failed_job_shows_its_whole_error(run_cli, sample_root):
    lines = [line.strip("│ ") for line in run_cli("job", "view", "2").stdout.splitlines()]
    start = lines.index("Error       node 0 failed: exit code 1.")
    assert lines[start + 1] == "ModuleNotFoundError: No module named 'einops'"


def test_a_long_error_is_not_cut_off(run_cli, root):
    message = "worker of node 1 failed: " + "/very/long/path" * 100
    write_state(root, 1, JobState("failed", message=message))
    write_record(root, build_record(1))
    assert message in run_cli("job", "view", "1").stdout


def test_json_has_checkpoints_and_events(run_cli, sample_root):
    document = json.loads(run_cli("job", "view", "1", "-o", "json").stdout)
    assert document["status"] == "success"
    assert document["checkpoints"][1] == {
        "id": "1/step-00000020",
        "step": 20,
        "size_bytes": 31_000_020,
        "created": "2026-01-01T00:20:00.000+00:00",
        "attempt": 1,
        "num_files": 1,
    }
    assert document["events"][0] == {
        "time": "2026-01-01T00:00:00.000+00:00",
        "attempt": 1,
        "kind": "started",
        "text": "Attempt 1 starts on 2 nodes.",
    }


def test_attempts_are_shown_with_what_they_cost(run_cli, root):
    write_record(root, build_record(1))
    write_state(root, 1, JobState("success", 1000.0, 1011.0, attempt=2))
    write_attempt(root, 1, ended_attempt(resumable_step=33))
    write_attempt(
        root,
        1,
        dataclasses.replace(
            ended_attempt(2, last_step=41, cause="stop"),
            started_unix_s=1008.0,
            first_step_unix_s=1009.0,
            last_step_unix_s=1009.875,
            ended_unix_s=1010.0,
            resumed_step=33,
            cause=None,
        ),
    )
    lines = [" ".join(line.strip("│").split()) for line in run_cli("job", "view", "1").stdout.splitlines()]
    start = lines.index("Attempt Steps Duration What happened")
    assert lines[start + 1 : start + 3] == [
        "1 0 to 41 6s node 0, rank 1 was killed by SIGKILL at step 41; resumed at step 33 after 3 s; "
        "lost 8 steps, 2 device-seconds",
        "2 33 to 41 2s ran to the end at step 41",
    ]
    assert lines[start + 5 : start + 7] == [
        "Goodput 51.2 % of 20 device-seconds made steps that were kept",
        "Lost 8 steps, 2 device-seconds",
    ]
    document = json.loads(run_cli("job", "view", "1", "-o", "json").stdout)
    assert document["account"] == {
        "goodput": 0.5125,
        "productive_device_s": 10.25,
        "wall_device_s": 20.0,
        "num_lost_steps": 8,
        "lost_device_s": 2.0,
    }
    assert document["attempts"][0] == {
        "number": 1,
        "num_devices": 2,
        "started": "1970-01-01T00:16:40.000+00:00",
        "ended": "1970-01-01T00:16:46.000+00:00",
        "resumed_step": 0,
        "last_step": 41,
        "cause": "failure",
        "text": "node 0, rank 1 was killed by SIGKILL at step 41; resumed at step 33 after 3 s; "
        "lost 8 steps, 2 device-seconds",
        "downtime_s": 3.0,
        "num_lost_steps": 8,
        "lost_device_s": 2.0,
    }


def test_an_unknown_job_is_an_error(run_cli, sample_root):
    for words in (
        ["view", "9"],
        ["events", "9"],
        ["log", "9"],
        ["metrics", "list", "9"],
        ["stop", "9"],
        ["resume", "9"],
    ):
        result = run_cli("job", *words)
        message = f"Error: job 9 does not exist in storage root '{sample_root.uri}'. List jobs: periflow-ray job list\n"
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", message)


@pytest.mark.parametrize(("given", "number"), [("1", 1), ("cifar-job", 1), ("llm [large]", 3), ("last", 3)])
def test_a_job_is_named_by_its_number_its_name_or_as_the_last(run_cli, sample_root, given, number):
    assert json.loads(run_cli("job", "view", given, "-o", "json").stdout)["number"] == number


@pytest.mark.parametrize(
    ("given", "exit_code", "message"),
    [
        (
            "0",
            2,
            "'0' is no job. Name it by its number, which is 1 or more, by its name, or as 'last', the newest job.",
        ),
        ("", 2, "'' is no job."),
        ("cifar-jop", 1, "no job is called 'cifar-jop' in storage root"),
        ("cifar-jop", 1, "Did you mean 'cifar-job'?"),
        ("Last", 1, "Did you mean 'last'?"),
        ("99", 1, "job 99 does not exist in storage root"),
    ],
)
def test_what_names_no_job_is_answered_with_what_does(run_cli, sample_root, given, exit_code, message):
    result = run_cli("job", "view", given)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr
    assert "periflow-ray job list" in result.stderr


def test_of_several_jobs_of_a_name_the_newest_is_shown_and_none_deleted(run_cli, sample_root):
    write_record(sample_root, build_record(4, name="cifar-job"))
    write_state(sample_root, 4, JobState("success"))
    result = run_cli("job", "view", "cifar-job", "-o", "json")
    assert json.loads(result.stdout)["number"] == 4
    assert result.stderr == "2 are called 'cifar-job'; the newest is 4, before it came 1.\n"
    result = run_cli("job", "delete", "cifar-job", "--yes")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: 2 jobs are called 'cifar-job'. Name one by its number: 4, 1\n",
    )


def test_delete_asks_and_a_no_changes_nothing(run_cli, sample_root):
    result = run_cli("job", "delete", "1", input="n\n")
    assert result.exit_code == 1
    question = "Delete job 1 'cifar-job' with its log, metrics and checkpoints? [y/N]: "
    assert result.stderr.startswith(question)
    assert result.stderr.endswith("Nothing was changed.\n")
    assert [job.record.job_id for job in list_jobs(sample_root)] == [3, 2, 1]


def test_delete_takes_a_yes_from_the_keyboard_or_the_option(run_cli, sample_root):
    assert run_cli("job", "delete", "1", input="y\n").exit_code == 0
    result = run_cli("job", "delete", "2", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Job (2) is deleted.\n")
    assert [job.record.job_id for job in list_jobs(sample_root)] == [3]


def test_a_job_that_has_not_ended_cannot_be_deleted(run_cli, sample_root):
    result = run_cli("job", "delete", "3", "-y")
    message = "Error: job 3 is waiting; only an ended job can be deleted. Stop it first: periflow-ray job stop 3\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_stopping_an_ended_job_says_so(run_cli, sample_root):
    result = run_cli("job", "stop", "2")
    assert (result.exit_code, result.stderr) == (0, "Job (2) has already ended: failed.\n")
