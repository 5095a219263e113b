"""The plan of a job that may run on several VM types: as many nodes on each, and what all of them have."""

from __future__ import annotations

from typing import Any

import pytest

from periflow_ray.errors import PlanError
from periflow_ray.plan import JobPlan, build_plan, describe_plan, find_vm, plan_document
from periflow_ray.plan.relocate import move_plan
from periflow_ray.spec import JobSpec

T4 = "aws-16gb-t4-4g-us-east-1"
V100 = "aws-16gb-v100-4g-us-east-1"
A10G = "aws-24gb-a10g-4g-us-east-1"


def plan_of(*vm_names: str, num_devices: int = 8, **resources: Any) -> JobPlan:
    setting: dict[str, Any] = {"type": "custom", "docker": {"command": "true"}}
    if resources:
        setting["resources"] = resources
    spec = JobSpec.model_validate({"vm": list(vm_names), "num_devices": num_devices, "job_setting": setting})
    vm, *fallback_vms = [find_vm(name) for name in vm_names]
    return build_plan(spec, vm, fallback_vms=fallback_vms, storage_uri="s3://bucket/prefix")


def test_a_plan_names_the_types_in_their_order_and_counts_nodes_by_the_first() -> None:
    plan = plan_of(f"{T4}-spot", T4, A10G)
    assert (plan.vm.name, [vm.name for vm in plan.fallback_vms]) == (f"{T4}-spot", [T4, A10G])
    assert (plan.num_nodes, plan.devices_per_node) == (2, 4)
    assert JobPlan.model_validate_json(plan.model_dump_json()) == plan


def test_a_plan_from_before_there_were_fallbacks_has_none() -> None:
    document = plan_of(T4).model_dump(mode="json")
    del document["fallback_vms"]
    assert JobPlan.model_validate(document) == plan_of(T4)


def test_a_device_gets_what_the_smallest_of_the_types_has() -> None:
    assert (find_vm(T4).num_vcpus, find_vm(V100).num_vcpus) == (48, 32)
    assert plan_of(T4, V100).cpus_per_device == plan_of(V100).cpus_per_device == 7.75
    assert plan_of(T4).cpus_per_device == 11.75


def test_what_one_of_the_types_does_not_have_is_refused_with_its_name() -> None:
    with pytest.raises(PlanError, match="vm 'aws-16gb-v100-4g-us-east-1' has 32 vCPUs"):
        plan_of(T4, V100, cpus=10)
    assert plan_of(T4, cpus=10).cpus_per_device == 10


@pytest.mark.parametrize(
    ("vm_names", "message"),
    [
        (
            (T4, "aws-16gb-t4-4g-us-east-2"),
            "vm 'aws-16gb-t4-4g-us-east-2' is not in us-east-1 as 'aws-16gb-t4-4g-us-east-1' is. A job runs on one "
            "cluster, which is in one region; name VM types of the same one.",
        ),
        (
            (T4, A10G, "azure-16gb-t4-4g-eastus"),
            "vm 'azure-16gb-t4-4g-eastus' is not in us-east-1 as 'aws-16gb-t4-4g-us-east-1' is. A job runs on one "
            "cluster, which is in one region; name VM types of the same one.",
        ),
        (
            (T4, "aws-16gb-t4-1g-us-east-1"),
            "vm 'aws-16gb-t4-1g-us-east-1' has 1 devices, and 'aws-16gb-t4-4g-us-east-1' has 4. VM types of one list "
            "must have as many devices each, so that the job has as many nodes on any of them.",
        ),
    ],
)
def test_types_that_cannot_stand_in_for_one_another_are_refused(vm_names: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(*vm_names)
    assert (str(caught.value), caught.value.key_path) == (message, ("vm",))


def test_what_is_shown_of_a_plan_has_the_fallbacks() -> None:
    rows = dict(describe_plan(plan_of(f"{T4}-spot", T4, A10G)))
    assert rows["VM"].startswith(f"{T4}-spot (g4dn.12xlarge in us-east-1, 4 x T4 ")
    assert rows["Else on"] == f"{T4}, {A10G}"
    assert "Else on" not in dict(describe_plan(plan_of(T4)))
    document = plan_document(plan_of(f"{T4}-spot", T4))
    assert [vm["name"] for vm in document["fallback_vms"]] == [T4]


def test_a_job_that_goes_on_elsewhere_leaves_its_fallbacks_behind() -> None:
    plan = plan_of(f"{T4}-spot", T4)
    same = move_plan(plan, vm=find_vm(f"{T4}-spot"), num_devices=4, storage_uri="s3://bucket/prefix")
    assert [vm.name for vm in same.fallback_vms] == [T4]
    moved = move_plan(plan, vm=find_vm("azure-16gb-t4-4g-eastus"), num_devices=8, storage_uri="s3://bucket/prefix")
    assert moved.fallback_vms == ()
