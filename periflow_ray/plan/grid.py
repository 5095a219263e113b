"""How many machines a job gets, and how many devices of each."""

from __future__ import annotations

from dataclasses import dataclass

from periflow_ray.errors import PlanError
from periflow_ray.plan.catalogue import VmType


@dataclass(frozen=True, slots=True)
class WorkerGrid:
    """Identical nodes with the same number of devices in use on each."""

    num_nodes: int
    devices_per_node: int


def split_devices(num_devices: int, vm: VmType) -> WorkerGrid:
    """Spread devices evenly over identical machines; fewer than one machine's are taken from a single one.

    Args:
        num_devices: devices in the whole job, at least 1.
        vm: machine type; ``vm.num_devices`` is devices per machine.
    Returns:
        Grid where num_nodes * devices_per_node == num_devices.
    Raises:
        PlanError: less than 1, or more than one machine but not a whole number of them.
    """
    if num_devices < 1:
        raise PlanError(f"num_devices must be at least 1; got {num_devices}.", ("num_devices",))
    if num_devices <= vm.num_devices:
        return WorkerGrid(num_nodes=1, devices_per_node=num_devices)
    num_nodes, num_left_over = divmod(num_devices, vm.num_devices)
    if num_left_over:
        fewer, more = num_nodes * vm.num_devices, (num_nodes + 1) * vm.num_devices
        raise PlanError(
            f"num_devices {num_devices} is not a whole number of vm {vm.name!r}, which has {vm.num_devices} devices "
            f"each. Use {fewer} ({num_nodes} {'VM' if num_nodes == 1 else 'VMs'}) or {more} ({num_nodes + 1} VMs).",
            ("num_devices",),
        )
    return WorkerGrid(num_nodes=num_nodes, devices_per_node=vm.num_devices)
