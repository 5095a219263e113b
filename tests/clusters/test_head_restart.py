"""The machine with Ray's control store, the driver and the monitor is lost: only the storage root is left of a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hash_chain import HashChain, finish, wait_for_checkpoint
from support.machines import Cluster
from support.workbench import processes_with, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def view(cluster: Cluster, job_id: int) -> dict[str, Any]:
    """What ``job view`` says."""
    outcome = cluster.run("job", "view", job_id, "-o", "json")
    assert outcome.exit_code == 0, outcome
    document: dict[str, Any] = json.loads(outcome.stdout)
    return document


def test_a_job_whose_head_was_lost_is_resumed_on_a_new_one(
    cluster: Cluster, submit: Callable[[HashChain], int], tmp_path: Path
) -> None:
    old_machines = cluster.provide_machines(2)
    chain = HashChain()
    job_id = submit(chain)
    wait_for_checkpoint(cluster.root, job_id)
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
    resumed = cluster.run("job", "resume", job_id, "--address", cluster.address, "--no-follow")
    assert resumed.exit_code == 0, resumed
    assert [processes_with(f"{machine.temp_dir}/periflow-") for machine in old_machines] == [[], []]
    first, second = finish(cluster.root, job_id)
    assert (first.cause, second.cause) == ("driver", None)
    assert first.last_step >= first.resumable_step == second.resumed_step >= 50
    # The time without a head is nobody's: the job had ended until it was resumed.
    assert first.ended_unix_s is not None
    assert first.ended_unix_s <= lost_unix_s
    chain.assert_exact(cluster.root, job_id, tmp_path)
