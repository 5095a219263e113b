"""Machines that are gone without a word: the job goes on on others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hash_chain import HashChain, finish, wait_for_checkpoint
from support.machines import Cluster

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
