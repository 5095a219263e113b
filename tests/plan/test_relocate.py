from __future__ import annotations

import json
from typing import Any

import pytest

from periflow_ray.errors import PlanError
from periflow_ray.plan import JobPlan, build_plan, find_vm, local_vm
from periflow_ray.plan.job_plan import ElasticPlan
from periflow_ray.plan.relocate import move_plan
from periflow_ray.spec import JobSpec

SPOT = "aws-16gb-v100-4g-us-east-2-spot"
LIST_PRICE = "aws-16gb-v100-4g-us-east-2"


def plan_of(vm_name: str, *, num_devices: int = 8, min_devices: int | None = None, **resources: Any) -> JobPlan:
    setting: dict[str, Any] = {"type": "custom", "docker": {"command": "true"}}
    if resources:
        setting["resources"] = resources
    elastic = None if min_devices is None else {"min_devices": min_devices}
    spec = JobSpec.model_validate(
        {"vm": vm_name, "num_devices": num_devices, "job_setting": setting, "elastic": elastic}
    )
    vm = find_vm(vm_name)
    return build_plan(spec, vm, storage_uri="/storage", num_local_cpus=16)


@pytest.mark.parametrize("vm_name", ["local", SPOT, LIST_PRICE])
@pytest.mark.parametrize("num_devices", [4, 8, 16])
def test_moving_gives_what_a_new_template_would(vm_name, num_devices):
    moved = move_plan(
        plan_of(SPOT), vm=find_vm(vm_name), num_devices=num_devices, storage_uri="/storage", num_local_cpus=16
    )
    assert moved == plan_of(vm_name, num_devices=num_devices)


def test_on_vms_of_the_same_type_a_device_keeps_what_the_template_asked_for():
    plan = plan_of(SPOT, cpus=2, memory="8GiB")
    moved = move_plan(plan, vm=plan.vm, num_devices=4, storage_uri="/storage")
    assert moved == plan_of(SPOT, num_devices=4, cpus=2, memory="8GiB")
    elsewhere = move_plan(plan, vm=local_vm(), num_devices=8, storage_uri="/storage", num_local_cpus=4)
    assert (elsewhere.cpus_per_device, elsewhere.memory_bytes_per_device) == (0.5, None)


def test_the_storage_root_is_named_anew():
    plan = plan_of(SPOT)
    moved = move_plan(plan, vm=plan.vm, num_devices=8, storage_uri="s3://bucket", storage_credential="team-s3")
    assert (moved.storage_uri, moved.storage_credential) == ("s3://bucket", "team-s3")


def test_devices_that_do_not_divide_are_refused():
    plan = plan_of(SPOT)
    with pytest.raises(PlanError, match="num_devices 6 is not a whole number of vm"):
        move_plan(plan, vm=plan.vm, num_devices=6, storage_uri="/storage")
    with pytest.raises(PlanError, match="num_devices 8 is more than the 2 GPUs of this machine"):
        move_plan(plan, vm=local_vm(num_gpus=2), num_devices=8, storage_uri="/storage", num_local_gpus=2)


def test_an_elastic_job_keeps_its_least_number_of_devices_where_it_can():
    plan = plan_of(SPOT, num_devices=16, min_devices=8)
    assert plan.min_num_nodes == 2
    assert move_plan(plan, vm=plan.vm, num_devices=12, storage_uri="/storage").min_num_nodes == 2
    assert move_plan(plan, vm=plan.vm, num_devices=4, storage_uri="/storage").min_num_nodes == 1
    assert move_plan(plan, vm=local_vm(), num_devices=16, storage_uri="/storage").min_num_nodes == 8


def test_the_least_number_of_devices_is_one_of_whole_nodes():
    with pytest.raises(PlanError, match=r"min_devices 6 is not a whole number of nodes, .* Use 4 or 8\."):
        plan_of(SPOT, num_devices=16, min_devices=6)


def test_an_elastic_job_that_moves_to_its_least_number_of_nodes_stays_elastic():
    plan = plan_of(SPOT, num_devices=16, min_devices=16)
    assert plan.elastic == ElasticPlan(min_num_nodes=4)
    smaller = move_plan(plan, vm=plan.vm, num_devices=8, storage_uri="/storage")
    assert smaller.elastic == ElasticPlan(min_num_nodes=2)
    assert move_plan(smaller, vm=plan.vm, num_devices=16, storage_uri="/storage").elastic == ElasticPlan(
        min_num_nodes=2
    )
    assert move_plan(plan_of(SPOT), vm=plan.vm, num_devices=16, storage_uri="/storage").elastic is None


@pytest.mark.parametrize(("min_devices", "stored"), [(None, 2), (4, 1)])
def test_a_plan_that_was_stored_with_a_number_of_nodes_is_read(min_devices, stored):
    plan = plan_of(SPOT, min_devices=min_devices)
    document = json.loads(plan.model_dump_json())
    del document["elastic"]
    assert JobPlan.model_validate_json(json.dumps(document | {"min_num_nodes": stored})) == plan
