"""What a VM, or this machine, has for each device."""

from __future__ import annotations

import math

from periflow_ray.errors import PlanError
from periflow_ray.plan.catalogue import VmType
from periflow_ray.plan.grid import WorkerGrid
from periflow_ray.spec import JobSpec

# Ray's own processes, the member and the monitor share this vCPU of a VM; the rest is for the devices.
NUM_RESERVED_VCPUS = 1


def require_local_gpus(vm: VmType, num_devices: int, num_local_gpus: int | None) -> None:
    """Refuse more devices than this machine has GPUs, where devices are its GPUs.

    Args:
        num_local_gpus: None if unknown.
    Raises:
        PlanError: there are not enough.
    """
    if vm.is_local and vm.accelerator != "CPU" and num_local_gpus is not None and num_devices > num_local_gpus:
        raise PlanError(
            f"num_devices {num_devices} is more than the {num_local_gpus} GPUs of this machine. "
            f"Use at most {num_local_gpus}, or run on a cluster.",
            ("num_devices",),
        )


def require_same_shape(vm: VmType, other: VmType) -> None:
    """Refuse a VM type that a job could not fall back on from another one.

    Raises:
        PlanError: it is elsewhere, or has another number of devices.
    """
    if (vm.cloud, vm.region) != (other.cloud, other.region):
        raise PlanError(
            f"vm {other.name!r} is not in {vm.region} as {vm.name!r} is. A job runs on one cluster, which is in one "
            "region; name VM types of the same one.",
            ("vm",),
        )
    if vm.num_devices != other.num_devices:
        raise PlanError(
            f"vm {other.name!r} has {other.num_devices} devices, and {vm.name!r} has {vm.num_devices}. VM types of one "
            "list must have as many devices each, so that the job has as many nodes on any of them.",
            ("vm",),
        )


def share_cpus(vm: VmType, num_devices: int, num_local_cpus: int | None, at_most: float = 1.0) -> float:
    """CPUs of a device for which the template asks none, or on this machine no more than ``at_most``.

    Args:
        num_devices: devices of the whole job; on this machine they share its CPUs.
        num_local_cpus: CPUs of this machine; None if unknown.
    """
    if vm.num_vcpus is not None:
        return round_down((vm.num_vcpus - NUM_RESERVED_VCPUS) / vm.num_devices)
    share = math.inf if num_local_cpus is None else num_local_cpus / num_devices
    return round_down(min(at_most, share))


def cpus_per_device(spec: JobSpec, vm: VmType, grid: WorkerGrid, num_local_cpus: int | None) -> float:
    """CPUs of each device: what the template asks for, else its share.

    Raises:
        PlanError: the VM type has fewer.
    """
    resources = spec.job_setting.resources
    asked = resources.cpus if resources else None
    if vm.num_vcpus is None or asked is None:
        return share_cpus(vm, spec.num_devices, num_local_cpus, at_most=1.0 if asked is None else asked)
    if asked * grid.devices_per_node > vm.num_vcpus:
        raise PlanError(
            f"job_setting.resources.cpus is {asked:g} for each of {grid.devices_per_node} devices, but vm {vm.name!r} "
            f"has {vm.num_vcpus} vCPUs. Use at most {round_down(vm.num_vcpus / grid.devices_per_node):g}.",
            ("job_setting", "resources", "cpus"),
        )
    return asked


def memory_bytes_per_device(spec: JobSpec, vm: VmType, grid: WorkerGrid) -> int | None:
    """Memory that the template asks for; None where it asks for none, or the machine's is not known.

    Raises:
        PlanError: the VM type has less.
    """
    resources = spec.job_setting.resources
    asked_bytes = resources.memory_bytes if resources else None
    if asked_bytes is None or vm.memory_gib is None:
        return None
    if asked_bytes * grid.devices_per_node > vm.memory_gib * 2**30:
        raise PlanError(
            f"job_setting.resources.memory is {asked_bytes / 2**30:g} GiB for each of {grid.devices_per_node} devices, "
            f"but vm {vm.name!r} has {vm.memory_gib:g} GiB. "
            f"Use at most {round_down(vm.memory_gib / grid.devices_per_node):g}GiB.",
            ("job_setting", "resources", "memory"),
        )
    return asked_bytes


def round_down(amount: float) -> float:
    """An amount that Ray can count: in steps of 1/10,000; rounding up could ask for more than there is."""
    return math.floor(amount * 10_000) / 10_000
