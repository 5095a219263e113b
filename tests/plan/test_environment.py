from __future__ import annotations

import dataclasses
from typing import Any

from periflow_ray.plan import JobPlan, NodeFacts, build_plan, device_environment, find_vm, node_environment
from periflow_ray.spec import JobSpec

SECOND_NODE = NodeFacts(
    num_nodes=2,
    node_rank=1,
    master_addr="10.0.0.4",
    master_port=29500,
    attempt=1,
    processed_iters=0,
    output_checkpoint_dir=None,
)


def plan_with(env_var: dict[str, str]) -> JobPlan:
    spec: dict[str, Any] = {
        "vm": "azure-16gb-v100-4g-eastus",
        "num_devices": 8,
        "job_setting": {"type": "custom", "docker": {"command": "main.py", "env_var": env_var}},
    }
    return build_plan(JobSpec.model_validate(spec), find_vm("azure-16gb-v100-4g-eastus"), storage_uri="file:///data")


def test_a_node_learns_its_place_in_the_job() -> None:
    environment = node_environment(
        plan_with({"OMP_NUM_THREADS": "1"}),
        dataclasses.replace(SECOND_NODE, attempt=4, processed_iters=300, output_checkpoint_dir="/workspace/ckpt"),
    )
    assert environment == {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "10.0.0.4",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "8",
        "NODE_RANK": "1",
        "NUM_NODES": "2",
        "NPROC_PER_NODE": "4",
        "PERIFLOW_ENABLED": "1",
        "PERIFLOW_ATTEMPT": "4",
        "PROCESSED_ITERS": "300",
        "CKPT_DIR": "/workspace/ckpt",
    }


def test_a_device_learns_its_ranks_too() -> None:
    environment = device_environment(plan_with({}), SECOND_NODE, local_rank=2)
    assert environment == {
        "MASTER_ADDR": "10.0.0.4",
        "MASTER_PORT": "29500",
        "WORLD_SIZE": "8",
        "NODE_RANK": "1",
        "NUM_NODES": "2",
        "NPROC_PER_NODE": "4",
        "PERIFLOW_ENABLED": "1",
        "PERIFLOW_ATTEMPT": "1",
        "PROCESSED_ITERS": "0",
        "RANK": "6",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
    }


def test_the_template_may_choose_the_master_port_but_not_the_world_size() -> None:
    plan = plan_with({"MASTER_PORT": "6000", "WORLD_SIZE": "1", "CKPT_DIR": "/elsewhere"})
    environment = node_environment(plan, SECOND_NODE)
    assert (environment["MASTER_PORT"], environment["WORLD_SIZE"], environment["CKPT_DIR"]) == (
        "6000",
        "8",
        "/elsewhere",
    )


def test_an_elastic_job_that_lost_a_node_has_a_smaller_world() -> None:
    only_node = dataclasses.replace(SECOND_NODE, num_nodes=1, node_rank=0, attempt=2)
    environment = node_environment(plan_with({}), only_node)
    assert (environment["WORLD_SIZE"], environment["NUM_NODES"], environment["NPROC_PER_NODE"]) == ("4", "1", "4")
