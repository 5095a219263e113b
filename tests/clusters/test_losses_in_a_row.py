"""One job on a cluster that takes it one machine after the other, in every way, and at last its head."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.hash_chain import HashChain, finish, wait_for_checkpoint, wait_for_notice
from support.machines import Cluster, Machine, NoticeWatcher
from support.metadata_servers import FakeAws, FakeAzure, FakeMetadata, Reply, announce_loss, serve_metadata
from support.workbench import processes_with, wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import AttemptRecord, read_attempts
from periflow_ray.store.checkpoints import latest_committed
from periflow_ray.store.root import StorageRoot

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

Watch = Callable[[Machine, FakeMetadata], NoticeWatcher]


@dataclass
class WitnessAzure(FakeAzure):
    """Notes which step is committed when an event is acknowledged."""

    root: StorageRoot | None = None
    job_id: int = 0
    steps_at_acknowledgement: list[int] = field(default_factory=list)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        if method == "POST" and self.root is not None:
            newest = latest_committed(self.root, self.job_id)
            self.steps_at_acknowledgement.append(0 if newest is None else newest.step)
        return super().reply(method, path, headers, body)


def view(cluster: Cluster, job_id: int) -> dict[str, Any]:
    """What ``job view`` says."""
    outcome = cluster.run("job", "view", job_id, "-o", "json")
    assert outcome.exit_code == 0, outcome
    document: dict[str, Any] = json.loads(outcome.stdout)
    return document


def wait_for_attempt(cluster: Cluster, job_id: int, number: int) -> list[AttemptRecord]:
    """Wait until an attempt has saved a checkpoint of its own; returns all attempts."""

    def has_saved() -> bool:
        newest = latest_committed(cluster.root, job_id)
        return newest is not None and newest.attempt == number

    wait_until(has_saved, f"attempt {number} saves a checkpoint")
    return read_attempts(cluster.root, job_id)


def test_a_job_outlives_two_notices_a_lost_machine_and_its_head(
    cluster: Cluster, submit: Callable[[HashChain], int], watch: Watch, tmp_path: Path
) -> None:
    hurry, slow_save = tmp_path / "hurry", tmp_path / "slow-save"
    chain = HashChain(num_steps=5000, num_slow_starts=sys.maxsize, hurry_path=str(hurry), slow_save_path=str(slow_save))
    cluster.provide_machines(3)
    job_id = submit(chain)
    wait_for_checkpoint(cluster.root, job_id)

    # A notice in time costs no step, and Azure may have the machine as soon as nothing can be lost there any more.
    azure = WitnessAzure(root=cluster.root, job_id=job_id)
    machine = cluster.machine_of(job_id, 1)
    with serve_metadata(azure):
        watcher = watch(machine, azure)
        announce_loss(azure, 60)
        first, second = wait_for_attempt(cluster, job_id, 2)
        assert first.cause == "preemption"
        assert first.text.startswith("node 1 was taken away in ")
        assert first.save is not None
        # Saved where all ranks stopped: no step is made twice.
        assert first.last_step == first.save.step == first.resumable_step == second.resumed_step
        wait_until(lambda: azure.started == ["event-1"], "the event is acknowledged")
        assert min(azure.steps_at_acknowledgement) >= first.save.step
        assert "told Azure that it may take this machine now" in watcher.log
        # Nothing runs there any more, so Ray lets it go without waiting for the deadline.
        wait_until(lambda: cluster.node_id_of(machine.name) is None, "the machine leaves the cluster")

    # One that is too short for a save costs the steps after the last checkpoint.
    cluster.provide_machines(3)
    slow_save.touch()
    aws = FakeAws()
    machine = cluster.machine_of(job_id, 1)
    with serve_metadata(aws):
        watch(machine, aws)
        wait_for_notice(cluster.root, job_id, announce_loss(aws, 5) + 5, num_notices=2)
        machine.shut_down()
        wait_until(lambda: len(read_attempts(cluster.root, job_id)) == 3, "the third attempt begins")
    slow_save.unlink()
    _, second, third = wait_for_attempt(cluster, job_id, 3)
    assert second.cause == "preemption"
    assert third.resumed_step == second.resumable_step > second.resumed_step

    # Without another machine in the place of one whose Ray dies without a word, the job says what it waits for.
    cluster.provide_machines(2)
    cluster.machine_of(job_id, 1).kill_raylet()
    wait_until(lambda: jobs.read_state(cluster.root, job_id).status == "allocating", "the job asks for machines")
    message = (
        "waits for 2 x (1 CPU, 1 GPU); the cluster has 1 CPU, 1 GPU free, and a job that asks for less may start "
        "before it"
    )
    # At first the machine that is left may still be the former attempt's.
    wait_until(lambda: jobs.read_state(cluster.root, job_id).message == message, "it says what it waits for")
    assert jobs.read_state(cluster.root, job_id).attempt == 3
    assert message in cluster.run("job", "view", job_id).stdout.replace("\n", " ")
    cluster.start_machines(1)
    *_, third, fourth = wait_for_attempt(cluster, job_id, 4)
    assert (third.cause, third.text) == ("lost", "node 1 was lost: its agent or its machine died")
    assert fourth.resumed_step == third.resumable_step > third.resumed_step

    # With the head go Ray's control store, the driver and the monitor: only the storage root is left of the job.
    old_machines = cluster.provide_machines(2)
    lost_unix_s = time.time()
    cluster.head.power_off()
    # Perhaps only this machine cannot reach the cluster, so the job does not count as ended yet.
    wait_until(lambda: "no sign of life" in (view(cluster, job_id)["message"] or ""), "the silence is told")
    silent = view(cluster, job_id)
    assert silent["status"] == "running"
    assert silent["message"].endswith(f" s, and {cluster.address} does not answer")
    cluster.start_head()
    new_machines = cluster.start_machines(2)
    assert cluster.living_nodes().keys() == {"head", *(machine.name for machine in new_machines)}
    lost = view(cluster, job_id)
    assert lost["status"] == "failed"
    assert lost["message"] == "the job's driver ended without a word; its cluster does not know it any more"
    hurry.touch()
    resumed = cluster.run("job", "resume", job_id, "--address", cluster.address, "--no-follow")
    assert resumed.exit_code == 0, resumed
    assert [processes_with(f"{machine.temp_dir}/periflow-") for machine in old_machines] == [[], []]
    *_, fourth, fifth = finish(cluster.root, job_id)
    assert (fourth.cause, fifth.number, fifth.cause) == ("driver", 5, None)
    assert fourth.last_step >= fourth.resumable_step == fifth.resumed_step > fourth.resumed_step
    # The time without a head is nobody's: the job had ended until it was resumed.
    assert fourth.ended_unix_s is not None
    assert fourth.ended_unix_s <= lost_unix_s
    chain.assert_exact(cluster.root, job_id, tmp_path)
