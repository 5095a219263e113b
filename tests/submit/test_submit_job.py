from __future__ import annotations

import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from support.job_server import JobServer

from periflow_ray import jobs
from periflow_ray.errors import ClusterError
from periflow_ray.jobs import JobRecord, JobState, liveness
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.key_handover import ask_for_key
from periflow_ray.jobs.sealed_secrets import KEY_VARIABLE, unseal
from periflow_ray.loops import BackgroundLoop, Faults
from periflow_ray.plan import JobPlan, build_plan, local_vm
from periflow_ray.ray_jobs import RayJobs
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import check_state, settle_state, submit_job


@pytest.fixture
def root(tmp_path: Path) -> StorageRoot:
    return StorageRoot(str(tmp_path / "storage"))


def plan_of(root: StorageRoot, **options: Any) -> JobPlan:
    template = {"vm": "local", "num_devices": 1, "job_setting": {"type": "custom", "docker": {"command": "true"}}}
    return build_plan(JobSpec.model_validate(template), local_vm(), storage_uri=root.uri, **options)


def submit(root: StorageRoot, server: JobServer, plan: JobPlan | None = None, **options: Any) -> JobRecord:
    options = {"workspace": None, "secrets": {}, "created_by": "ada", **options}
    return submit_job(root, plan or plan_of(root), RayJobs(server.address), **options)


def test_the_drivers_command_line_names_the_root_the_job_and_the_credential(root, server):
    first = submit(root, server)
    second = submit(root, server, plan_of(root, storage_credential="team-s3"), python="/opt/python")
    module = ("-m", "periflow_ray.runtime.driver_keeper")
    assert [shlex.split(body["entrypoint"]) for _, _, body in server.requests] == [
        ["python", *module, "--storage", root.uri, "--job-id", "1", "--driver-id", first.ray_submission_id],
        [
            *("/opt/python", *module, "--storage", root.uri, "--job-id", "2", "--driver-id", second.ray_submission_id),
            *("--storage-credential", "team-s3"),
        ],
    ]
    assert json.loads(root.read_bytes("jobs/2/plan.json"))["storage_credential"] == "team-s3"


def test_cloud_variables_reach_a_local_driver_in_a_file_and_not_through_ray(root, server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    submit(root, server, cloud_environment_dir=tmp_path / "cloud")
    (path,) = (tmp_path / "cloud").iterdir()
    (request,) = server.requests
    assert sorted(request[2]) == ["entrypoint", "submission_id"]
    assert shlex.split(request[2]["entrypoint"])[:3] == [f"PERIFLOW_CLOUD_ENV_FILE={path}", "python", "-m"]
    assert json.loads(path.read_text())["shell"]["AWS_SECRET_ACCESS_KEY"] == "s3cr3t"
    stored = [file.read_bytes() for file in Path(root.base_path).rglob("*") if file.is_file()]
    assert len(stored) > 0
    assert not any(b"s3cr3t" in content for content in [*stored, json.dumps(server.requests).encode()])


def test_a_local_driver_gets_what_it_reads_itself_from_the_submitting_shell(root, server, monkeypatch, tmp_path):
    monkeypatch.setenv("PERIFLOW_SLACK_API", "http://127.0.0.1:9/api")
    submit(root, server, cloud_environment_dir=tmp_path / "cloud")
    (path,) = (tmp_path / "cloud").iterdir()
    assert json.loads(path.read_text())["driver"]["PERIFLOW_SLACK_API"] == "http://127.0.0.1:9/api"


def test_the_key_of_the_secrets_reaches_a_local_driver_in_that_file_and_another_on_its_request(root, server, tmp_path):
    plan, secrets = plan_of(root, secret_names=("TOKEN",)), {"TOKEN": "t0k3n"}
    submit(root, server, plan, secrets=secrets, cloud_environment_dir=tmp_path / "cloud")
    keys: list[str] = []
    server.on_submit = lambda: keys.append(ask_for_key(root, 2))
    submit(root, server, plan, secrets=secrets, cloud_environment_dir=None)
    (path,) = (tmp_path / "cloud").iterdir()
    keys.insert(0, json.loads(path.read_text())["driver"][KEY_VARIABLE])
    assert [unseal(root, job_id, key) for job_id, key in enumerate(keys, 1)] == [secrets] * 2
    assert [sorted(body) for _, _, body in server.requests] == [["entrypoint", "submission_id"]] * 2
    # Neither Ray nor whoever reads the storage root has seen one.
    stored = [file.read_text() for file in Path(root.base_path).rglob("*") if file.is_file()]
    assert not any(key in text for key in keys for text in [*stored, json.dumps(server.requests)])


def test_a_driver_that_ends_before_it_has_its_secrets_is_said_to(root, server):
    def end() -> None:
        for job in server.jobs.values():
            job["status"] = "FAILED"

    server.on_submit = end
    with pytest.raises(ClusterError, match="the driver of job 1 ended before it had the job's secrets"):
        submit(root, server, plan_of(root, secret_names=("TOKEN",)), secrets={"TOKEN": "t0k3n"})
    assert jobs.read_state(root, 1).status == "failed"


def test_a_cluster_that_refuses_leaves_no_cloud_variables_behind(root, server, tmp_path):
    server.token = "asked-for"
    with pytest.raises(ClusterError):
        submit(root, server, cloud_environment_dir=tmp_path / "cloud")
    assert list((tmp_path / "cloud").iterdir()) == []
    assert jobs.read_state(root, 1).status == "failed"


@pytest.mark.parametrize("silent_s", [20.0, 3600.0])
@pytest.mark.parametrize(
    ("ray_status", "status", "message"),
    [
        ("SUCCEEDED", "success", None),
        ("FAILED", "failed", "the job's driver"),
        ("STOPPED", "failed", "the job's driver"),
    ],
)
def test_ray_s_success_is_believed_where_the_driver_could_not_write_it_down(
    root, server, silent_s, ray_status, status, message
):
    record = submit(root, server)
    jobs.write_state(root, 1, JobState("running", heartbeat_unix_s=time.time() - silent_s, attempt=2))
    server.jobs[record.ray_submission_id]["status"] = ray_status
    state = check_state(root, 1)
    assert state.status == status
    assert state.attempt == 2
    assert state.message is None if message is None else state.message.startswith(message)
    if status == "success":
        assert jobs.read_written_state(root, 1) == state
        assert [(event.kind, event.text) for event in read_events(root, 1)] == [
            ("success", "the job ended: success; its driver could not write that down")
        ]


@pytest.mark.parametrize("silent_s", [20.0, 3600.0])
def test_a_driver_that_ray_knows_is_believed_to_live_whatever_this_machine_s_clock_says(root, server, silent_s):
    submit(root, server)
    jobs.write_state(root, 1, JobState("running", heartbeat_unix_s=time.time() - silent_s, attempt=2))
    assert check_state(root, 1).status == "running"
    assert settle_state(root, 1).status == "running"


@pytest.mark.parametrize("exit_code", [None, 137])
def test_a_driver_whose_keeper_was_killed_is_watched_before_its_job_counts_as_ended(
    root, server, monkeypatch, exit_code
):
    monkeypatch.setattr(liveness, "WATCH_S", 0.3)
    monkeypatch.setattr(liveness, "_POLL_S", 0.02)
    record = submit(root, server)
    live = JobState("stopping", heartbeat_unix_s=time.time() - 3600.0, attempt=2)
    jobs.write_state(root, 1, live)
    server.jobs[record.ray_submission_id] |= {"status": "FAILED", "driver_exit_code": exit_code}
    beat = BackgroundLoop(
        "heartbeat",
        lambda: jobs.write_state(root, 1, dataclasses.replace(live, heartbeat_unix_s=time.time() - 3600.0)),
        0.02,
        faults=Faults("the heartbeat"),
    )
    beat.start()
    try:
        # As it seems; nothing is written down for it.
        assert check_state(root, 1).status == "failed"
        assert settle_state(root, 1).status == "stopping"
        assert read_events(root, 1) == []
    finally:
        beat.close()
    ended = settle_state(root, 1)
    assert (ended.status, ended.attempt) == ("failed", 2)
    assert ended.message.startswith("the job's driver ended without a word; Ray says")
    assert jobs.read_written_state(root, 1) == ended
    assert [event.kind for event in read_events(root, 1)] == ["failed"]


def test_a_driver_that_ended_by_itself_has_ended(root, server):
    record = submit(root, server)
    jobs.write_state(root, 1, JobState("running", heartbeat_unix_s=time.time() - 20.0))
    server.jobs[record.ray_submission_id] |= {"status": "FAILED", "driver_exit_code": 1}
    ended = check_state(root, 1)
    assert ended.status == "failed"
    assert jobs.read_written_state(root, 1) == ended


def test_a_job_that_ended_is_not_asked_for(root, server):
    submit(root, server)
    ended = JobState("stopped", heartbeat_unix_s=time.time() - 3600.0, message="stopped on request")
    jobs.write_state(root, 1, ended)
    num_requests = len(server.requests)
    assert check_state(root, 1) == ended
    assert len(server.requests) == num_requests
