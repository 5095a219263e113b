"""What we will run: the VM catalogue, the worker grid, mounts, environment and the ``JobPlan`` itself.

Names are imported when they are first used: the catalogue needs neither pydantic nor the template's models, and
``periflow-ray vm list`` should not wait for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from periflow_ray.plan.catalogue import LOCAL_VM_NAME, VmType, find_vm, load_catalogue, local_vm
    from periflow_ray.plan.describe import describe_plan, plan_document
    from periflow_ray.plan.environment import NodeFacts, device_environment, node_environment
    from periflow_ray.plan.grid import WorkerGrid, split_devices
    from periflow_ray.plan.job_plan import JobPlan, build_plan
    from periflow_ray.plan.mounts import Mount, rewrite_paths, rewritten_mounts
    from periflow_ray.plan.variables import drop_internal_variables

__all__ = [
    "LOCAL_VM_NAME",
    "JobPlan",
    "Mount",
    "NodeFacts",
    "VmType",
    "WorkerGrid",
    "build_plan",
    "describe_plan",
    "device_environment",
    "drop_internal_variables",
    "find_vm",
    "load_catalogue",
    "local_vm",
    "node_environment",
    "plan_document",
    "rewrite_paths",
    "rewritten_mounts",
    "split_devices",
]

_MODULES = {
    "catalogue": ("LOCAL_VM_NAME", "VmType", "find_vm", "load_catalogue", "local_vm"),
    "describe": ("describe_plan", "plan_document"),
    "environment": ("NodeFacts", "device_environment", "node_environment"),
    "grid": ("WorkerGrid", "split_devices"),
    "job_plan": ("JobPlan", "build_plan"),
    "mounts": ("Mount", "rewrite_paths", "rewritten_mounts"),
    "variables": ("drop_internal_variables",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'periflow_ray.plan' has no attribute {name!r}")
    return getattr(importlib.import_module(f"periflow_ray.plan.{_MODULE_OF[name]}"), name)
