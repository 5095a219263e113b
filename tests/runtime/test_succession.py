"""A driver that stood still while its job was resumed ends itself without another byte in the job's documents."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from simulated_nodes import ObservedMonitor
from support.trees import read_tree

from periflow_ray.jobs import JobRecord, JobState, write_record, write_state
from periflow_ray.jobs.succession import driver_id_of
from periflow_ray.plan import build_plan, find_vm
from periflow_ray.runtime import job_state
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor import actor as actor_module
from periflow_ray.runtime.monitor import context as context_module
from periflow_ray.spec import JobSpec
from periflow_ray.store.checkpoints import list_committed
from periflow_ray.store.documents import write_document
from periflow_ray.store.root import StorageRoot

RECORD = JobRecord(
    job_id=1,
    name="cifar",
    experiment=None,
    vm="local",
    accelerator="CPU",
    num_devices=2,
    num_nodes=2,
    dataset=None,
    created_by="ada",
    created_unix_s=1_700_000_000.0,
    ray_submission_id="older",
)


@pytest.fixture
def job(root: StorageRoot) -> Path:
    """Job 1, which a driver runs; its directory."""
    write_record(root, RECORD)
    write_state(root, 1, JobState("running", attempt=1))
    return root.local_path("jobs/1")


def resume(root: StorageRoot) -> None:
    write_record(root, dataclasses.replace(RECORD, ray_submission_id="newer"))


@pytest.mark.parametrize("ends", [True, False], ids=["at its end", "at a heartbeat"])
def test_a_driver_writes_no_state_and_no_event_for_its_successor(root, job, monkeypatch, ends):
    left = threading.Event()

    def leave(job_id: int) -> None:
        left.set()
        raise SystemExit

    monkeypatch.setattr(job_state, "leave_to_successor", leave)
    monkeypatch.setattr(job_state, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(job_state, "RETRY_INTERVAL_S", 0.02)
    with StateKeeper(root, 1, driver_id="older", final_timeout_s=0.1) as state:
        resume(root)
        assert left.wait(30) or not ends
        documents = read_tree(job)
        state.note("I was asleep")
        if ends:
            state.enter("failed", "the job failed")
    assert left.is_set()
    assert read_tree(job) == documents


def test_its_monitor_commits_nothing_any_more(run_monitor, nodes, root, job, monkeypatch):
    def leave(job_id: int) -> None:
        raise RuntimeError("this process would have ended")

    monkeypatch.setattr(context_module, "leave_to_successor", leave)

    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        assert await node.save((10, 1)) is None
        resume(root)
        assert "this process would have ended" in str(await node.save((20, 1)))

    run_monitor(scenario, num_members=1, driver_id="older")
    assert [manifest.step for manifest in list_committed(root, 1)] == [10]


def test_its_monitor_looks_for_a_successor_by_itself(run_monitor, nodes, root, job, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(context_module, "leave_to_successor", lambda job_id: left.set())
    monkeypatch.setattr(actor_module, "SUCCESSION_INTERVAL_S", 0.02)

    async def scenario(monitor: ObservedMonitor) -> None:
        (node,) = nodes(monitor, 1)
        await node.join()
        assert not left.is_set()
        resume(root)
        assert await actor_module.asyncio.to_thread(left.wait, 30)

    run_monitor(scenario, num_members=1, driver_id="older")


def test_a_driver_that_is_started_again_for_a_job_that_was_resumed_ends_at_once(root, job):
    spec = JobSpec.model_validate(
        {"vm": "local", "num_devices": 1, "job_setting": {"type": "custom", "docker": {"command": "true"}}}
    )
    write_document(root, "jobs/1/plan.json", build_plan(spec, find_vm("local"), storage_uri=root.uri))
    resume(root)
    documents = read_tree(job)
    options = ["--storage", root.uri, "--job-id", "1", "--driver-id", driver_id_of(RECORD)]
    done = subprocess.run(
        [sys.executable, "-m", "periflow_ray.runtime.driver", *options],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (3, "job 1 was taken up by a newer driver; this one ends\n")
    assert read_tree(job) == documents
