"""An elastic job goes on with fewer machines while some are missing, and grows when they are back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.hash_chain import HashChain
from support.machines import Cluster
from support.workbench import wait_until

from periflow_ray import jobs
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.store import checkpoints

pytestmark = pytest.mark.ray

# Each start says how many ranks there are. It is slow until it has grown again.
CHAIN = HashChain(num_steps=1500, step_time_s=0.04, save_every=25, num_slow_starts=2, is_elastic=True)
TEMPLATE = """\
vm: aws-16gb-v100-1g-us-east-2
num_devices: 2
max_failures: 2
elastic:
  min_devices: 1
job_setting:
  type: custom
  launch_mode: device
  resources: {cpus: 1, memory: 100MiB}
  docker:
    command: cd /workspace/app && python main.py
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
"""


def test_a_lost_machine_makes_the_job_smaller_and_a_new_one_makes_it_whole_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    _, lost = cluster.provide_machines(2)
    workspace = tmp_path / "app"
    workspace.mkdir()
    (workspace / "main.py").write_text(CHAIN.script())
    template = tmp_path / "pf-template.yml"
    template.write_text(TEMPLATE)
    job_id = cluster.submit(template, workspace)
    wait_until(lambda: checkpoints.latest_committed(cluster.root, job_id) is not None, "a checkpoint", 180)

    lost.power_off()
    wait_until(lambda: read_attempts(cluster.root, job_id)[-1].num_devices == 1, "a smaller attempt", 180)
    wait_until(lambda: jobs.read_state(cluster.root, job_id).status == "running", "it runs", 120)
    cluster.start_machines(1)
    wait_until(lambda: jobs.read_state(cluster.root, job_id).has_ended, "the job ends", 300)

    assert jobs.read_state(cluster.root, job_id).status == "success"
    attempts = read_attempts(cluster.root, job_id)
    assert [(attempt.num_devices, attempt.cause) for attempt in attempts] == [(2, "lost"), (1, "resize"), (2, None)]
    # Growing costs no step: the ranks saved where they stopped.
    assert attempts[1].last_step == attempts[1].resumable_step == attempts[2].resumed_step
    manifest = checkpoints.latest_committed(cluster.root, job_id)
    assert manifest is not None
    checkpoints.restore(cluster.root, manifest, 0, tmp_path / "final")
    step, state, starts = json.loads((tmp_path / "final" / "state-0.json").read_text())
    assert (step, state) == (CHAIN.num_steps, CHAIN.final_state(0))
    assert [start[1:] for start in starts] == [[2, 2], [1, 1], [2, 2]]
