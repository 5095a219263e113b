"""Each launch mode that a template may name has a launcher, which says what starts on a node and reads its failures."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from failing_output import raised

from periflow_ray.plan import JobPlan, NodeFacts, build_plan, device_environment, find_vm, node_environment
from periflow_ray.runtime.command_jobs.launchers import LAUNCHERS, Run
from periflow_ray.runtime.diagnosis import FailureReport
from periflow_ray.spec import JobSpec
from periflow_ray.spec.models import LaunchMode

SECOND_NODE = NodeFacts(
    num_nodes=2,
    node_rank=1,
    master_addr="10.0.0.4",
    master_port=29500,
    attempt=3,
    processed_iters=40,
    output_checkpoint_dir="/workspace/ckpt",
)


def plan_with(launch_mode: str) -> JobPlan:
    spec: dict[str, Any] = {
        "vm": "azure-16gb-v100-4g-eastus",
        "num_devices": 8,
        "job_setting": {"type": "custom", "launch_mode": launch_mode, "docker": {"command": "main.py"}},
    }
    return build_plan(JobSpec.model_validate(spec), find_vm("azure-16gb-v100-4g-eastus"), storage_uri="file:///data")


def test_every_launch_mode_of_a_template_has_a_launcher_and_no_launcher_is_out_of_reach():
    assert set(LAUNCHERS) == set(get_args(LaunchMode))


def test_launch_mode_node_runs_once_per_node_and_leaves_the_ranks_to_the_command():
    plan = plan_with("node")
    assert LAUNCHERS[plan.launch_mode].runs(plan, SECOND_NODE) == [Run(node_environment(plan, SECOND_NODE), rank=None)]


def test_launch_mode_device_runs_once_per_device_and_each_run_is_a_rank():
    plan = plan_with("device")
    runs = LAUNCHERS[plan.launch_mode].runs(plan, SECOND_NODE)
    assert runs == [
        Run(device_environment(plan, SECOND_NODE, local_rank), rank=4 + local_rank) for local_rank in range(4)
    ]
    assert [run.environment["RANK"] for run in runs] == ["4", "5", "6", "7"]


@pytest.mark.parametrize("launch_mode", LAUNCHERS)
def test_lines_without_a_report_are_kept_but_for_empty_ones_and_torchs_own_log(launch_mode: str):
    error = raised("ValueError: the loss is not finite").split("\n")
    logged = "W1126 10:00:00.000000 4242 site-packages/torch/distributed/run.py:803] Setting OMP_NUM_THREADS"
    assert LAUNCHERS[launch_mode].read_failure([logged, "epoch 1", "", *error]) == FailureReport(("epoch 1", *error))


@pytest.mark.parametrize(
    ("exit_code", "report"),
    [
        ("7", FailureReport(("epoch 1",), rank=5, exit_code=7)),
        ("-9", FailureReport(("epoch 1",), rank=5, signal=9)),
    ],
)
def test_torchruns_report_says_which_rank_failed_first_and_how(exit_code: str, report: FailureReport):
    lines = [
        "epoch 1",
        "Traceback (most recent call last):",
        '  File "torchrun", line 8, in <module>',
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:",
        "Root Cause (first observed failure):",
        "[0]:",
        "  time      : 2026-11-26_10:00:00",
        "  rank      : 5 (local_rank: 1)",
        f"  exitcode  : {exit_code} (pid: 4242)",
    ]
    assert LAUNCHERS["node"].read_failure(lines) == report
