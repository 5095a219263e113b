"""On the nodes of which VM type a worker group runs, where the cluster's nodes say by a label what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from periflow_ray.cluster.config.render import VM_LABEL
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.ray_private import ControllerCallback


class VmChoice(ControllerCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller.

    Args:
        vm_names: the VM types that the job may run on, the first choice first.
    """

    def __init__(self, vm_names: Sequence[str], monitor: MonitorClient) -> None:
        self._vm_names = vm_names
        self._monitor = monitor

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """The labels of the nodes for the next worker group; None for any nodes."""
        return {VM_LABEL: self._vm_names[0]} if has_labels() else None


def has_labels() -> bool:
    """Whether the cluster's nodes say of which VM type they are; those of ``cluster_configs/`` do, the head first."""
    return any(VM_LABEL in (node.get("Labels") or {}) for node in ray.nodes() if node["Alive"])
