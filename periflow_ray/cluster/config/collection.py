"""The clusters of ``cluster_configs/``: of the tutorials' VMs, of GPUs that many use, and some with several types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from periflow_ray.cluster.config.render import render_yaml
from periflow_ray.cluster.config.spec import build_spec
from periflow_ray.plan.catalogue import VmType, load_catalogue

FOLDER = "cluster_configs"
# Each is there on demand and as spot.
TUTORIAL_VMS = (
    "azure-32gb-v100-8g-eastus",
    "aws-16gb-v100-8g-us-east-2",
    "azure-40gb-a100-8g-westus2",
    "aws-16gb-v100-8g-us-west-2",
    "azure-16gb-v100-1g-eastus",
    "azure-16gb-v100-2g-eastus",
    "azure-16gb-v100-4g-eastus",
    "aws-16gb-v100-4g-us-west-2",
)
USUAL_VMS = (
    "aws-16gb-t4-1g-us-east-1",
    "aws-16gb-t4-4g-us-east-1",
    "aws-24gb-a10g-1g-us-east-1",
    "aws-24gb-a10g-4g-us-east-1",
    "aws-24gb-a10g-8g-us-east-1",
    "aws-24gb-l4-1g-us-east-1",
    "aws-24gb-l4-4g-us-east-1",
    "aws-48gb-l40s-1g-us-east-1",
    "aws-48gb-l40s-4g-us-east-1",
    "aws-48gb-l40s-8g-us-east-1",
    "aws-96gb-rtx-pro-6000-1g-us-east-1",
    "aws-16gb-v100-1g-us-east-1",
    "aws-40gb-a100-8g-us-east-1",
    "aws-80gb-a100-8g-us-east-1",
    "aws-80gb-h100-1g-us-east-1",
    "aws-80gb-h100-8g-us-east-1",
    "aws-141gb-h200-8g-us-east-2",
    "aws-179gb-b200-8g-us-east-1",
    "azure-16gb-t4-1g-eastus",
    "azure-16gb-t4-4g-eastus",
    "azure-24gb-a10-1g-eastus",
    "azure-80gb-a100-1g-eastus",
    "azure-80gb-a100-2g-eastus",
    "azure-80gb-a100-4g-eastus",
    "azure-80gb-a100-8g-eastus",
    "azure-94gb-h100-1g-eastus2",
    "azure-80gb-h100-8g-eastus",
)
MIXED = {
    "aws-mixed": ("aws-16gb-t4-1g-us-east-1", "aws-24gb-a10g-4g-us-east-1", "aws-40gb-a100-8g-us-east-1"),
    "azure-mixed": ("azure-16gb-t4-1g-eastus", "azure-24gb-a10-1g-eastus", "azure-80gb-a100-4g-eastus"),
}


@dataclass(frozen=True)
class ConfigFile:
    """One file of the folder."""

    name: str
    text: str


def render_collection() -> Iterator[ConfigFile]:
    """Every file of the folder, from the catalogue that comes with periflow-ray."""
    catalogue = load_catalogue()
    for name in (*TUTORIAL_VMS, *USUAL_VMS):
        vm = catalogue[name]
        title = _describe(vm)
        if vm.successor is not None:
            title = f"{vm.name} was withdrawn by its provider on {vm.retired_on}. This is what comes nearest to it:\n# "
            vm = catalogue[vm.successor]
            title += _describe(vm)
        yield _render(name, [vm.name], title)
    for name, vm_names in MIXED.items():
        gpus = ", ".join(catalogue[vm_name].accelerator for vm_name in vm_names)
        yield _render(name, vm_names, f"Several GPU types in one cluster: {gpus}.")


def _render(name: str, vm_names: Sequence[str], title: str) -> ConfigFile:
    catalogue = load_catalogue()
    vms = [catalogue[variant] for vm_name in vm_names for variant in (vm_name, f"{vm_name}-spot")]
    file_name = f"{name}.yaml"
    return ConfigFile(file_name, render_yaml(build_spec(name, vms), f"{FOLDER}/{file_name}", title))


def _describe(vm: VmType) -> str:
    return f"{vm.instance_type} in {vm.region}: {vm.num_devices} x {vm.accelerator}, {vm.device_memory_gib:g} GiB each."
