"""The plan of a job that goes on elsewhere: on other VMs or another number of devices."""

from __future__ import annotations

import math

from periflow_ray.plan.catalogue import VmType
from periflow_ray.plan.grid import WorkerGrid, split_devices
from periflow_ray.plan.job_plan import ElasticPlan, JobPlan
from periflow_ray.plan.resources import require_local_gpus, share_cpus


def move_plan(
    plan: JobPlan,
    *,
    vm: VmType,
    num_devices: int,
    storage_uri: str,
    storage_credential: str | None = None,
    num_local_cpus: int | None = None,
    num_local_gpus: int | None = None,
) -> JobPlan:
    """Change where a job runs, and nothing of what it runs.

    On VMs of the same type a device keeps what it was given. On others it gets its share of the vCPUs as with a new
    template; what the template asked for (``job_setting.resources``) was for the old ones.

    Args:
        vm: the VM type to run on.
        num_devices: devices of the whole job.
        storage_uri: the storage root as this submitter names it.
        storage_credential: name of the credential that opens it; None for the cloud's usual chain.
        num_local_cpus: CPUs of this machine; None if unknown.
        num_local_gpus: GPUs of this machine; None if unknown.
    Raises:
        PlanError: the devices do not divide over VMs, or are more than this machine's GPUs.
    """
    grid = split_devices(num_devices, vm)
    require_local_gpus(vm, num_devices, num_local_gpus)
    is_same_vm = vm.name == plan.vm.name and not vm.is_local
    price = vm.price_per_hour_usd
    return plan.model_copy(
        update={
            "vm": vm,
            "fallback_vms": plan.fallback_vms if is_same_vm else (),
            "num_devices": num_devices,
            "num_nodes": grid.num_nodes,
            "devices_per_node": grid.devices_per_node,
            "cpus_per_device": plan.cpus_per_device if is_same_vm else share_cpus(vm, num_devices, num_local_cpus),
            "memory_bytes_per_device": plan.memory_bytes_per_device if is_same_vm else None,
            "gpus_per_device": 0 if vm.accelerator == "CPU" else 1,
            "storage_uri": storage_uri,
            "storage_credential": storage_credential,
            "elastic": _move_elastic(plan, grid),
            "price_per_hour_usd": None if price is None else round(grid.num_nodes * price, 4),
        }
    )


def _move_elastic(plan: JobPlan, grid: WorkerGrid) -> ElasticPlan | None:
    if plan.elastic is None:
        return None
    min_num_devices = plan.elastic.min_num_nodes * plan.devices_per_node
    return ElasticPlan(min_num_nodes=min(grid.num_nodes, math.ceil(min_num_devices / grid.devices_per_node)))
