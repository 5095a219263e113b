from __future__ import annotations

import json
import time

import pytest
import yaml
from support.sample_jobs import build_record

from periflow_ray.jobs import JobState, write_record, write_state
from periflow_ray.store.root import StorageRoot


def list_numbers(result) -> list[int]:
    assert result.exit_code == 0, result.stderr
    return [job["number"] for job in json.loads(result.stdout)]


def test_jobs_are_a_table_newest_first(run_cli, sample_root):
    result = run_cli("job", "list")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    header = [cell.strip() for cell in result.stdout.splitlines()[1].split("┃")[1:-1]]
    vm = "aws-16gb-v100-8g-us-east-2"
    data = "my-cifar-100"
    assert (result.exit_code, result.stderr) == (0, "")
    assert header == [
        "Number",
        "Name",
        "Status",
        "VM",
        "Device",
        "Device Cnt",
        "Data",
        "Created by",
        "Start",
        "Duration",
        "Progress",
    ]
    assert rows == [
        ["3", "llm [large]", "waiting", vm, "V100", "16", "-", "kim", "-", "-", "-"],
        ["2", "-", "failed", "local", "CPU", "1", data, "kim", "2026-01-01 01:00:10", "3s", "-"],
        [
            "1",
            "cifar-job",
            "success",
            "local",
            "CPU",
            "2",
            data,
            "kim",
            "2026-01-01 00:00:05",
            "1h 02m 03s",
            "20/20 (100 %)",
        ],
    ]


def test_json_and_yaml_hold_the_same(run_cli, sample_root):
    as_json = json.loads(run_cli("job", "list", "-o", "json").stdout)
    assert yaml.safe_load(run_cli("job", "list", "-o", "yaml").stdout) == as_json
    assert as_json[2] == {
        "number": 1,
        "name": "cifar-job",
        "status": "success",
        "experiment": "vision",
        "vm": "local",
        "device": "CPU",
        "num_devices": 2,
        "num_nodes": 2,
        "data": "my-cifar-100",
        "created_by": "kim",
        "created": "2026-01-01T00:00:00.000+00:00",
        "started": "2026-01-01T00:00:05.000+00:00",
        "ended": "2026-01-01T01:02:08.000+00:00",
        "duration_s": 3723.0,
        "attempt": 2,
        "progress": {
            "step": 20,
            "total_train_steps": 20,
            "steps_per_s": 2.5,
            "metrics": {"loss": 0.25, "lr": 0.1},
        },
        "message": None,
    }


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], [3, 2, 1]),
        (["--status", "failed"], [2]),
        (["--status", "failed", "--status", "success"], [2, 1]),
        (["--job-name", "cifar-job"], [1]),
        (["--job-name", "cif*"], [1]),
        (["--job-name", "llm [large]"], [3]),
        (["--vm", "aws-*"], [3]),
        (["--experiment", "vision"], [2, 1]),
        (["--vm", "aws"], []),
        (["--since", "2026-01-01T00:30"], [3, 2]),
        (["--since", "2026-01-01T01:00:00Z"], [3, 2]),
        (["--until", "2026-01-01"], [2, 1]),
        (["--until", "2026-01-01T00:59"], [1]),
        (["--since", "2026-01-02", "--until", "2026-01-02"], [3]),
        (["--limit", "2"], [3, 2]),
        (["--limit", "2", "--all"], [3, 2, 1]),
    ],
)
def test_filters(run_cli, sample_root, options, numbers):
    assert list_numbers(run_cli("job", "list", "-o", "json", *options)) == numbers


def test_an_age_selects_jobs_by_when_they_were_submitted(run_cli, root: StorageRoot):
    for job_id, age_s in ((1, 3 * 3600), (2, 1800)):
        write_state(root, job_id, JobState("stopped"))
        write_record(root, build_record(job_id, created_unix_s=time.time() - age_s))
    assert list_numbers(run_cli("job", "list", "-o", "json", "--since", "2h")) == [2]
    assert list_numbers(run_cli("job", "list", "-o", "json", "--until", "120m")) == [1]


def test_what_the_limit_hides_is_said_on_stderr(run_cli, sample_root):
    result = run_cli("job", "list", "-l", "1")
    assert result.stderr == "2 older jobs are not shown. All of them: --all\n"


def test_a_time_that_is_none_is_a_usage_error(run_cli, sample_root):
    result = run_cli("job", "list", "--since", "yesterday")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--since': 'yesterday' is not a time. "
        "Give 2026-01-31, 2026-01-31T18:00 or an age: 30m, 2h, 3d, 1w."
    )


def test_no_jobs_are_an_empty_list(run_cli, root):
    assert list_numbers(run_cli("job", "list", "-o", "json")) == []
    result = run_cli("job", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        f"No jobs in storage root '{root.uri}', which does not exist yet. Make one: periflow-ray submit --local "
        "-f pf-template.yml -d DIRECTORY\n"
    )


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("sweep", "list"), "sweeps"),
        (("experiment", "list"), "experiments"),
        (("datastore", "list"), "datasets"),
        (("checkpoint", "list"), "checkpoints"),
        (("cluster", "list"), "clusters that are up"),
    ],
)
def test_an_empty_list_names_its_storage_root_and_what_makes_the_first(run_cli, tmp_path, command, what):
    result = run_cli(*command, "--storage", str(tmp_path / "stroage"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(
        f"No {what} in storage root '{tmp_path}/stroage', which does not exist yet. Make one: "
    )
    assert json.loads(run_cli(*command, "-o", "json").stdout) == []


def test_where_no_job_is_wanted_the_others_are_not_denied(run_cli, sample_root):
    result = run_cli("job", "list", "--experiment", "visoin")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "No job is as these options want it. All of them: periflow-ray job list --all\n"
