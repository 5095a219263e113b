"""What a VM, or this machine, has for each device."""

from __future__ import annotations

import math

from periflow_ray.errors import PlanError
from periflow_ray.plan.catalogue import VmType

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


def round_down(amount: float) -> float:
    """An amount that Ray can count: in steps of 1/10,000; rounding up could ask for more than there is."""
    return math.floor(amount * 10_000) / 10_000
