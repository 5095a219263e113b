"""Machines that are gone without a word: the job goes on on others, or waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hash_chain import HashChain, finish, wait_for_checkpoint
from support.machines import Cluster
from support.workbench import wait_until

from periflow_ray import jobs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

Submit = Callable[[HashChain], int]


@pytest.mark.long
@pytest.mark.parametrize(("loss", "node"), [("raylet", 0), ("power", 1)])
def test_a_lost_machine_costs_only_the_steps_after_the_last_checkpoint(
    cluster: Cluster, submit: Submit, tmp_path: Path, loss: str, node: int
) -> None:
    cluster.provide_machines(3)
    chain = HashChain()
    job_id = submit(chain)
    wait_for_checkpoint(cluster.root, job_id)
    machine = cluster.machine_of(job_id, node)
    lose = machine.kill_raylet if loss == "raylet" else machine.power_off
    lost_unix_s = time.time()
    lose()
    first, second = finish(cluster.root, job_id)
    assert (first.cause, first.text, second.cause) == (
        "lost",
        f"node {node} was lost: its agent or its machine died",
        None,
    )
    assert second.resumed_step >= first.resumable_step >= 50
    chain.assert_exact(cluster.root, job_id, tmp_path)
    print(f"{second.first_step_unix_s - lost_unix_s:.1f} s to the first new step")


def test_without_a_replacement_the_job_says_what_it_waits_for(cluster: Cluster, submit: Submit, tmp_path: Path) -> None:
    cluster.provide_machines(2)
    chain = HashChain()
    job_id = submit(chain)
    wait_for_checkpoint(cluster.root, job_id)
    cluster.machine_of(job_id, 1).power_off()
    wait_until(lambda: jobs.read_state(cluster.root, job_id).status == "allocating", "the job asks for machines")
    wait_until(lambda: jobs.read_state(cluster.root, job_id).message is not None, "it says what it waits for")
    state = jobs.read_state(cluster.root, job_id)
    assert (state.attempt, state.message) == (1, "waits for 2 x (1 CPU, 1 GPU); the cluster has 1 CPU, 1 GPU free")
    assert state.message in cluster.run("job", "view", job_id).stdout.replace("\n", " ")
    cluster.start_machines(1)
    first, second = finish(cluster.root, job_id)
    assert first.cause == "lost"
    assert second.resumed_step >= first.resumable_step >= 50
    chain.assert_exact(cluster.root, job_id, tmp_path)
