from __future__ import annotations

import dataclasses
import json
import shlex
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.driver_stand_in import running_state
from support.job_server import JobServer, serve_jobs
from support.sample_jobs import build_record

from periflow_ray.errors import PeriflowRayError
from periflow_ray.jobs import JobState, read_record, read_state, resumes, write_record, write_state
from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.key_handover import ask_for_key
from periflow_ray.jobs.requests import StopRequest, post_request, take_requests
from periflow_ray.jobs.resumes import read_resumed_attempts
from periflow_ray.jobs.sealed_secrets import unseal
from periflow_ray.plan import JobPlan, build_plan, find_vm
from periflow_ray.ray_jobs import RayJobs
from periflow_ray.spec import JobSpec
from periflow_ray.store.checkpoints import Manifest, StoredFile, checkpoint_key, commit
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.resume import resume_job

VM = "azure-16gb-v100-1g-eastus-spot"
SUBMISSION_ID = "periflow-1"
STOPPED = JobState("stopped", 1000.0, 1010.0, 1009.0, attempt=2, message="stopped on request")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with serve_jobs() as server:
        yield server


@pytest.fixture
def stopped_root(root: StorageRoot, cluster: JobServer) -> StorageRoot:
    """A storage root whose job 1 ran on two spot VMs and was stopped after its second attempt."""
    write_job(root, cluster.address)
    return root


def write_job(root: StorageRoot, address: str, *, vm: str = VM, secret_names: tuple[str, ...] = ()) -> JobPlan:
    template = {"vm": vm, "num_devices": 2, "job_setting": {"type": "custom", "docker": {"command": "python main.py"}}}
    plan = build_plan(
        JobSpec.model_validate(template), find_vm(vm), storage_uri=root.uri, secret_names=secret_names, num_local_cpus=8
    )
    root.write_bytes(job_key(1, "plan.json"), plan.model_dump_json().encode())
    record = build_record(1, vm=vm, accelerator="V100")
    write_record(root, dataclasses.replace(record, ray_address=address, ray_submission_id=SUBMISSION_ID))
    write_state(root, 1, STOPPED)
    return plan


def write_checkpoint(root: StorageRoot, step: int) -> None:
    name = f"step-{step:08d}"
    file = StoredFile("model.pt", 7, "0" * 64, 0, "files/model.pt")
    root.write_bytes(checkpoint_key(1, name, file.key), b"weights")
    commit(root, Manifest(name, 1, step, 1, 2, 2, 1000.0, (file,)))


def submitted(cluster: JobServer) -> list[dict[str, Any]]:
    return [body for method, path, body in cluster.requests if (method, path) == ("POST", "/api/jobs/")]


def read_plan(root: StorageRoot) -> JobPlan:
    return JobPlan.model_validate_json(root.read_bytes(job_key(1, "plan.json")))


def test_a_stopped_job_goes_on_under_its_number_where_it_was(run_cli, stopped_root, cluster):
    write_checkpoint(stopped_root, 40)
    before, plan = read_record(stopped_root, 1), read_plan(stopped_root)
    post_request(stopped_root, 1, StopRequest(60.0))
    result = run_cli("job", "resume", "1", "--no-follow")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "Job (1) resumes at step 40.\n",
        f"VM {VM}, nodes 2 x 1 V100.    Log: periflow-ray job log 1 -f\n",
    )
    (body,) = submitted(cluster)
    assert shlex.split(body["entrypoint"]) == [
        *("python", "-m", "periflow_ray.runtime.driver_keeper", "--storage", stopped_root.uri, "--job-id", "1"),
        *("--driver-id", body["submission_id"]),
    ]
    record = read_record(stopped_root, 1)
    assert record == dataclasses.replace(
        before, ray_submission_id=body["submission_id"], resumed_unix_s=record.resumed_unix_s
    )
    assert record.ray_submission_id != SUBMISSION_ID
    assert record.resumed_unix_s == pytest.approx(time.time(), abs=60)
    assert read_state(stopped_root, 1) == JobState("waiting", started_unix_s=1000.0, attempt=2)
    assert read_plan(stopped_root) == plan
    assert [(e.kind, e.text, e.attempt) for e in read_events(stopped_root, 1)] == [
        ("resumed", "a user resumes the job from step 40", 2)
    ]
    assert take_requests(stopped_root, 1) == []
    assert read_resumed_attempts(stopped_root, 1) == {2}


def test_a_job_whose_driver_died_and_left_damaged_documents_goes_on(run_cli, stopped_root, cluster, monkeypatch):
    monkeypatch.setattr(resumes, "HEARTBEAT_LOST_S", 0.0)
    write_checkpoint(stopped_root, 40)
    for name in ("state.json", "progress.json", "attempts/2.json"):
        stopped_root.write_bytes(job_key(1, name), b'{"format": 1, "sta')
    result = run_cli("job", "resume", "1", "--no-follow")
    assert (result.exit_code, result.stdout) == (0, "Job (1) resumes at step 40.\n")
    assert "The state of job 1 is damaged; waits for up to 0 s for a driver that writes it anew." in result.stderr
    assert len(submitted(cluster)) == 1
    assert read_state(stopped_root, 1) == JobState("waiting", attempt=2)
    assert read_resumed_attempts(stopped_root, 1) == {2}


def test_it_can_go_on_elsewhere_and_on_another_number_of_devices(run_cli, stopped_root, cluster):
    before = read_plan(stopped_root)
    with serve_jobs() as other:
        vm = "aws-16gb-v100-4g-us-east-2"
        options = ("--address", other.address, "--vm", vm, "--num-devices", "8", "--no-follow")
        result = run_cli("job", "resume", "1", *options)
        assert (result.exit_code, result.stdout) == (0, "Job (1) resumes from its beginning: it has no checkpoint.\n")
        assert (len(submitted(cluster)), len(submitted(other))) == (0, 1)
        assert read_record(stopped_root, 1).ray_address == other.address
    record, plan = read_record(stopped_root, 1), read_plan(stopped_root)
    assert (record.vm, record.num_devices, record.num_nodes) == (vm, 8, 2)
    moved = {"vm", "num_devices", "devices_per_node", "cpus_per_device", "price_per_hour_usd"}
    assert {name for name in JobPlan.model_fields if getattr(plan, name) != getattr(before, name)} == moved
    assert (plan.vm.name, plan.num_devices, plan.num_nodes, plan.devices_per_node) == (vm, 8, 2, 4)


def test_the_job_server_that_the_shell_names_comes_before_the_old_one(run_cli, stopped_root, cluster, monkeypatch):
    with serve_jobs() as other:
        monkeypatch.setenv("RAY_ADDRESS", other.address)
        assert run_cli("job", "resume", "1", "--no-follow").exit_code == 0
        assert (len(submitted(cluster)), len(submitted(other))) == (0, 1)


def test_a_job_whose_driver_died_can_be_resumed(run_cli, stopped_root, cluster):
    write_state(stopped_root, 1, JobState("running", 1000.0, heartbeat_unix_s=1009.0, attempt=3))
    assert run_cli("job", "resume", "1", "--no-follow").exit_code == 0
    assert read_state(stopped_root, 1) == JobState("waiting", started_unix_s=1000.0, attempt=3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "job 1 is running; only a job that has ended can be resumed. Stop it first: periflow-ray job stop 1"),
        (JobState("success", 1.0, 2.0), "job 1 has succeeded; there is nothing left to resume."),
    ],
)
def test_a_job_that_runs_or_has_succeeded_is_not_resumed(run_cli, stopped_root, cluster, state, message):
    write_state(stopped_root, 1, state or running_state())
    result = run_cli("job", "resume", "1")
    assert (result.exit_code, result.stderr) == (2, f"Error: {message}\n")
    assert submitted(cluster) == []


def test_a_python_job_is_run_again_by_its_script(run_cli, sample_root):
    result = run_cli("job", "resume", "2")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: job 2 was started from Python, not from a template: run its script again.")


def test_of_two_who_resume_at_once_one_wins(stopped_root, cluster):
    plan = read_plan(stopped_root)
    barrier = threading.Barrier(4)

    def resume(_: int) -> str:
        barrier.wait()
        try:
            resume_job(stopped_root, 1, plan, RayJobs(cluster.address), secrets={})
        except PeriflowRayError as err:
            return str(err)
        return "won"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(resume, range(4)))
    assert outcomes.pop() == "won"
    assert set(outcomes) <= {
        "job 1 is being resumed by somebody else just now. See: periflow-ray job view 1",
        "job 1 is waiting; only a job that has ended can be resumed. Stop it first: periflow-ray job stop 1",
    }
    assert len(submitted(cluster)) == 1


def test_secrets_are_taken_from_the_shell_again(run_cli, stopped_root, cluster, monkeypatch):
    write_job(stopped_root, cluster.address, secret_names=("TOKEN", "WANDB_API_KEY"))
    monkeypatch.setenv("TOKEN", "t0k3n")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    result = run_cli("job", "resume", "1", "--no-follow")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: job 1 was submitted with --secret TOKEN --secret WANDB_API_KEY, and not set here: WANDB_API_KEY. "
        "Set it first: export WANDB_API_KEY=...\n",
    )
    assert read_state(stopped_root, 1) == STOPPED
    monkeypatch.setenv("WANDB_API_KEY", "k3y-of-w")
    keys: list[str] = []
    cluster.on_submit = lambda: keys.append(ask_for_key(stopped_root, 1))
    assert run_cli("job", "resume", "1", "--no-follow").exit_code == 0
    assert unseal(stopped_root, 1, keys[0]) == {"TOKEN": "t0k3n", "WANDB_API_KEY": "k3y-of-w"}


def test_a_cluster_that_refuses_leaves_a_job_that_can_be_resumed_again(run_cli, stopped_root, cluster, monkeypatch):
    plan = read_plan(stopped_root)
    cluster.token = "asked-for"
    with pytest.raises(PeriflowRayError, match="refused the token"):
        resume_job(stopped_root, 1, plan, RayJobs(cluster.address), secrets={})
    state = read_state(stopped_root, 1)
    assert (state.status, state.attempt, state.started_unix_s) == ("failed", 2, 1000.0)
    cluster.token = None
    assert run_cli("job", "resume", "1", "--no-follow").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-devices", "0"], "num_devices must be at least 1; got 0."),
        (["--vm", "nowhere-1g"], "vm 'nowhere-1g' is not in the catalogue."),
        (["--local", "--address", "http://127.0.0.1:1"], "--local means this machine; it cannot be used with "),
        (["--devices-per-node", "2"], "--devices-per-node is for this machine; elsewhere the VM type decides."),
    ],
)
def test_mistakes_are_told_before_anything_is_changed(run_cli, stopped_root, cluster, options, message):
    result = run_cli("job", "resume", "1", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {message}")
    assert (cluster.requests, read_state(stopped_root, 1)) == ([], STOPPED)


def test_a_local_job_that_moves_to_vms_needs_a_cluster(run_cli, root, cluster):
    write_job(root, cluster.address, vm="local")
    result = run_cli("job", "resume", "1", "--vm", VM)
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: VM '{VM}' needs a Ray cluster, and none is named. Name it: --address http://127.0.0.1:8265 (or "
        "RAY_ADDRESS). To go on on this machine instead: --local\n",
    )


def test_the_plan_of_a_local_job_moves_with_its_stand_in_nodes(run_cli, root, cluster):
    write_job(root, cluster.address, vm="local")
    options = ("--address", cluster.address, "--num-devices", "1", "--no-follow")
    assert run_cli("job", "resume", "1", *options).exit_code == 0
    document = json.loads(root.read_bytes(job_key(1, "plan.json")))
    assert (document["vm"]["name"], document["num_devices"], document["num_nodes"]) == ("local", 1, 1)
