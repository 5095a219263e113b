"""What a cluster is to be: which VM types, how many of them at most, and for how long it may be idle. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from periflow_ray.errors import UsageError
from periflow_ray.plan.catalogue import VmType

MAX_NODES = 1000
# Part of the names of VMs, disks and addresses, of tags and of paths on the nodes.
MAX_NAME_CHARS = 40
# Ray's launcher gives it to machines, and this project to all else that belongs to a cluster; its value is the name.
CLUSTER_TAG = "ray-cluster-name"
_NAME = re.compile(rf"[a-z](?:[a-z0-9-]{{0,{MAX_NAME_CHARS - 2}}}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """A cluster of one cloud and one region: a head without GPUs, and workers that come when a job asks for them.

    Args:
        name: of the cluster and of everything that belongs to it; lower-case letters, digits and dashes.
        vms: the workers' VM types; each has a worker type of its own.
        max_num_nodes: workers at the same time, of all types together.
        idle_timeout_minutes: a worker that nothing runs on for so long is ended.
        disk_gib: size of each worker's system disk.
    """

    name: str
    vms: tuple[VmType, ...]
    max_num_nodes: int = 2
    idle_timeout_minutes: int = 10
    disk_gib: int = 200

    @property
    def cloud(self) -> str:
        """Where all of it is."""
        return self.vms[0].cloud

    @property
    def region(self) -> str:
        """Where all of it is."""
        return self.vms[0].region


def build_spec(
    name: str,
    vms: Sequence[VmType],
    *,
    max_num_nodes: int = 2,
    idle_timeout_minutes: int = 10,
    disk_gib: int = 200,
) -> ClusterSpec:
    """Check what a cluster is to be.

    Raises:
        UsageError: the name cannot be one, there is no VM type or no node, or they are not all in one region.
    """
    if not can_be_name(name):
        raise UsageError(
            f"cluster name '{name}' cannot be used: it takes 1 to {MAX_NAME_CHARS} lower-case letters, digits and "
            "dashes, a letter first and no dash at the end."
        )
    if not vms:
        raise UsageError("a cluster needs a VM type. List them: periflow-ray vm list")
    for vm in vms:
        if vm.is_local:
            raise UsageError(f"vm '{vm.name}' is this machine; a cluster takes a VM type of AWS or Azure.")
        if (vm.cloud, vm.region) != (vms[0].cloud, vms[0].region):
            raise UsageError(
                f"vm '{vm.name}' and vm '{vms[0].name}' are not in one region. A cluster is in one region of one "
                "cloud; make a second one for the other."
            )
    if not 1 <= max_num_nodes <= MAX_NODES:
        raise UsageError(f"a cluster has 1 to {MAX_NODES} nodes, not {max_num_nodes}.")
    return ClusterSpec(
        name=name,
        vms=tuple(dict.fromkeys(vms)),
        max_num_nodes=max_num_nodes,
        idle_timeout_minutes=idle_timeout_minutes,
        disk_gib=disk_gib,
    )


def can_be_name(text: str) -> bool:
    """Whether a cluster may be called so; the name is part of keys, of addresses and of names at the provider."""
    return _NAME.fullmatch(text) is not None


def suggest_name(vm: VmType) -> str:
    """A name for a cluster of this VM type: ``aws-24gb-a10g-1g-us-east-1``."""
    return vm.name.removesuffix("-spot")[:MAX_NAME_CHARS].rstrip("-")


def own_name(name: str) -> str:
    """What a cluster's things are called at its provider: ``periflow-ray-mine``."""
    return f"periflow-ray-{name}"
