"""Commands on a storage root in which a document is damaged, or of a later version."""

from __future__ import annotations

import json

import pytest

from periflow_ray import __version__
from periflow_ray.jobs.attempts import AttemptRecord, write_attempt
from periflow_ray.jobs.experiments import create_experiment
from periflow_ray.store.datasets import link_dataset

ADVICE = "Put a copy of it back, or delete it."
TORN = b'{"format": 1, "job_id": '
WHY_TORN = "Expecting value: line 1 column 25 (char 24)"


def damaged(root, key: str) -> str:
    root.write_bytes(key, TORN)
    return f"'{key}' in storage root '{root.uri}' is damaged: {WHY_TORN}. {ADVICE}\n"


@pytest.mark.parametrize("name", ["job.json", "state.json", "progress.json"])
def test_a_list_of_jobs_shows_the_rest(run_cli, sample_root, name):
    text = damaged(sample_root, f"jobs/2/{name}")
    result = run_cli("job", "list", "-o", "json")
    assert (result.exit_code, result.stderr) == (0, f"Left out: {text}")
    assert [job["number"] for job in json.loads(result.stdout)] == [3, 1]


@pytest.mark.parametrize("name", ["job.json", "state.json", "progress.json"])
def test_a_view_of_the_job_itself_says_which_document_it_is(run_cli, sample_root, name):
    text = damaged(sample_root, f"jobs/2/{name}")
    result = run_cli("job", "view", "2")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {text}")


def test_a_view_of_a_job_shows_the_attempts_that_can_be_read(run_cli, sample_root):
    for number in (1, 2):
        record = AttemptRecord(number, 1, 1, 1.0, 2.0, 9.0, 10.0, 0, 5, 5, "failure", "node 0 failed")
        write_attempt(sample_root, 1, record)
    text = damaged(sample_root, "jobs/1/attempts/1.json")
    result = run_cli("job", "view", "1", "-o", "json")
    assert (result.exit_code, result.stderr) == (0, f"Left out: {text}")
    assert [entry["number"] for entry in json.loads(result.stdout)["attempts"]] == [2]


def test_a_view_of_a_job_does_without_a_claim_that_cannot_be_read(run_cli, sample_root):
    text = damaged(sample_root, "jobs/1/resumes/driver-0.json")
    result = run_cli("job", "view", "1", "-o", "json")
    assert (result.exit_code, result.stderr) == (0, f"Left out: {text}")


def test_lists_of_experiments_and_datasets_show_the_rest(run_cli, root, tmp_path):
    for name in ("a", "b"):
        create_experiment(root, name)
        link_dataset(root, name, str(tmp_path))
    for command, key in (("experiment", "experiments/a.json"), ("datastore", "datasets/a/dataset.json")):
        text = damaged(root, key)
        result = run_cli(command, "list", "-o", "json")
        assert (result.exit_code, result.stderr) == (0, f"Left out: {text}")
        assert [entry["name"] for entry in json.loads(result.stdout)] == ["b"]
        result = run_cli(command, "view", "a")
        assert (result.exit_code, result.stderr) == (1, f"Error: {text}")


@pytest.mark.parametrize(
    "command",
    [("job", "view", "1"), ("job", "log", "1", "--follow"), ("job", "stop", "1"), ("job", "delete", "1", "--yes")],
    ids=" ".join,
)
def test_a_job_of_a_later_version_is_answered_with_what_reads_it_at_once(run_cli, sample_root, command):
    sample_root.write_json("jobs/1/state.json", {"format": 2, "format_since": "0.4.0"})
    result = run_cli(*command)
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: 'jobs/1/state.json' in storage root '{sample_root.uri}' has format 2, and this version of "
        f"periflow-ray ({__version__}) reads format 1. Version 0.4.0 or later reads it: "
        "pip install --upgrade periflow-ray\n",
    )


def test_half_a_line_in_a_jobs_events_and_metrics_hides_nothing_else(run_cli, sample_root):
    commands = (("job", "events", "1"), ("job", "metrics", "show", "1"), ("job", "view", "1"), ("job", "log", "1"))
    before = [run_cli(*command, "-o", "json").stdout for command in commands]
    for prefix in ("jobs/1/events/driver", "jobs/1/metrics", "jobs/1/logs/node-0"):
        key = f"{prefix}/{sample_root.list_names(prefix)[-1]}"
        sample_root.write_bytes(key, sample_root.read_bytes(key) + b'{"time_unix_s": 17')
        sample_root.write_bytes(f"{prefix}/00000007", b"")
    assert [run_cli(*command, "-o", "json").stdout for command in commands] == before


def test_checkpoints_that_cannot_be_read_are_listed_with_why(run_cli, sample_root):
    damaged(sample_root, "jobs/2/state.json")
    damaged(sample_root, "jobs/2/checkpoints/step-00000010/manifest.json")
    sample_root.write_json("jobs/2/checkpoints/step-00000020/manifest.json", {"format": 2})
    result = run_cli("checkpoint", "list", "--job", "2", "--all", "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [(entry["id"], entry["status"], entry["reason"]) for entry in reversed(json.loads(result.stdout))] == [
        (
            "2/step-00000010",
            "partial",
            f"the manifest 'jobs/2/checkpoints/step-00000010/manifest.json' is damaged: {WHY_TORN}",
        ),
        (
            "2/step-00000020",
            "committed",
            "the manifest 'jobs/2/checkpoints/step-00000020/manifest.json' has format 2, and this version of "
            f"periflow-ray ({__version__}) reads format 1. A later version reads it: "
            "pip install --upgrade periflow-ray",
        ),
    ]
    result = run_cli("checkpoint", "delete", "2/step-00000020", "--yes")
    assert (result.exit_code, "has format 2" in result.stderr) == (1, True)
    assert sample_root.exists("jobs/2/checkpoints/step-00000020/manifest.json")
