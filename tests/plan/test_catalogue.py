from __future__ import annotations

import re
import subprocess
import sys

import pytest

from periflow_ray.errors import PlanError
from periflow_ray.plan import VmType, find_vm, load_catalogue, local_vm

TUTORIAL_VMS = {
    # name: (accelerator, devices, memory per device in GiB, instance type)
    "azure-32gb-v100-8g-eastus": ("V100", 8, 32, "Standard_ND40rs_v2"),
    "aws-16gb-v100-8g-us-east-2": ("V100", 8, 16, "p3.16xlarge"),
    "azure-40gb-a100-8g-westus2": ("A100", 8, 40, "Standard_ND96asr_v4"),
    "aws-16gb-v100-8g-us-west-2": ("V100", 8, 16, "p3.16xlarge"),
    "azure-32gb-v100-8g-eastus-spot": ("V100", 8, 32, "Standard_ND40rs_v2"),
    "azure-16gb-v100-2g-eastus-spot": ("V100", 2, 16, "Standard_NC12s_v3"),
    "azure-16gb-v100-1g-eastus-spot": ("V100", 1, 16, "Standard_NC6s_v3"),
    "azure-16gb-v100-4g-eastus-spot": ("V100", 4, 16, "Standard_NC24s_v3"),
}
ALL_VMS = tuple(load_catalogue().values())
CLOUD_VMS = tuple(vm for vm in ALL_VMS if not vm.is_local)


@pytest.mark.parametrize("name", TUTORIAL_VMS)
def test_the_vms_of_the_tutorial_are_found_by_their_names(name: str) -> None:
    vm = find_vm(name)
    assert (vm.accelerator, vm.num_devices, vm.device_memory_gib, vm.instance_type) == TUTORIAL_VMS[name]


def test_an_on_demand_vm_has_a_price_with_its_date_and_source() -> None:
    assert find_vm("aws-80gb-h100-8g-us-east-1") == VmType(
        name="aws-80gb-h100-8g-us-east-1",
        cloud="aws",
        region="us-east-1",
        accelerator="H100",
        num_devices=8,
        device_memory_gib=80.0,
        num_vcpus=192,
        memory_gib=2048.0,
        is_spot=False,
        instance_type="p5.48xlarge",
        price_per_hour_usd=55.04,
        on_demand_price_per_hour_usd=55.04,
        price_date="2025-10",
        price_source="AWS on-demand list price for Linux, approximate",
    )


def test_a_spot_vm_has_no_price_of_its_own_but_knows_what_it_costs_at_most() -> None:
    spot = find_vm("azure-80gb-a100-4g-eastus-spot")
    assert (spot.is_spot, spot.price_per_hour_usd, spot.on_demand_price_per_hour_usd) == (True, None, 14.692)


def test_withdrawn_instance_types_say_when_they_went() -> None:
    assert {vm.instance_type for vm in ALL_VMS if vm.retired_on} == {
        "Standard_NC6s_v3",
        "Standard_NC12s_v3",
        "Standard_NC24s_v3",
    }


@pytest.mark.parametrize("cloud", ["aws", "azure"])
def test_both_clouds_offer_gpus_up_to_h200(cloud: str) -> None:
    assert {"T4", "V100", "A100", "H100", "H200"} <= {vm.accelerator for vm in CLOUD_VMS if vm.cloud == cloud}


def test_every_name_says_what_the_vm_is() -> None:
    for vm in CLOUD_VMS:
        spot = "-spot" if vm.is_spot else ""
        size = f"{vm.device_memory_gib:g}gb-{vm.accelerator.lower()}-{vm.num_devices}g"
        assert vm.name == f"{vm.cloud}-{size}-{vm.region}{spot}"


def test_names_are_unique_because_no_two_instance_types_share_one() -> None:
    named_by = {(vm.cloud, vm.device_memory_gib, vm.accelerator, vm.num_devices): vm.instance_type for vm in CLOUD_VMS}
    assert len(named_by) == len({(vm.cloud, vm.instance_type) for vm in CLOUD_VMS})


def test_every_vm_has_plausible_numbers() -> None:
    for vm in CLOUD_VMS:
        assert vm.num_vcpus is not None
        assert vm.memory_gib is not None
        assert vm.num_devices in (1, 2, 4, 8)
        assert vm.num_vcpus >= 4
        assert vm.num_vcpus > vm.num_devices
        assert vm.memory_gib >= 16
        price = vm.on_demand_price_per_hour_usd
        assert (price is None) == (vm.price_date is None) == (vm.price_source is None)
        if price is not None:
            assert 0.2 < price / vm.num_devices < 20
            assert re.fullmatch(r"20\d\d-\d\d", vm.price_date or "")


def test_every_cloud_vm_can_be_had_on_demand_and_as_spot() -> None:
    on_demand = {vm.name for vm in CLOUD_VMS if not vm.is_spot}
    assert {f"{name}-spot" for name in on_demand} == {vm.name for vm in CLOUD_VMS if vm.is_spot}


def test_a_misspelt_vm_gets_the_nearest_names() -> None:
    with pytest.raises(PlanError) as caught:
        find_vm("azure-16gb-v100-4g-eastu-spot")
    assert caught.value.key_path == ("vm",)
    assert str(caught.value) == (
        "vm 'azure-16gb-v100-4g-eastu-spot' is not in the catalogue. Did you mean 'azure-16gb-v100-4g-eastus-spot' or "
        "'azure-16gb-v100-4g-eastus2-spot'?  List all: periflow-ray vm list"
    )


def test_a_vm_unlike_any_other_gets_no_suggestion() -> None:
    with pytest.raises(PlanError) as caught:
        find_vm("my laptop")
    assert str(caught.value) == "vm 'my laptop' is not in the catalogue.  List all: periflow-ray vm list"


def test_this_machine_without_gpus_is_nodes_of_one_cpu_slot() -> None:
    vm = local_vm()
    assert vm == find_vm("local")
    assert (vm.name, vm.cloud, vm.region, vm.accelerator, vm.num_devices) == ("local", "local", "-", "CPU", 1)


def test_a_node_on_this_machine_owns_all_gpus_unless_told_otherwise() -> None:
    assert (local_vm(num_gpus=4).accelerator, local_vm(num_gpus=4).num_devices) == ("GPU", 4)
    assert local_vm(num_gpus=4, devices_per_node=2).num_devices == 2
    assert local_vm(devices_per_node=3).num_devices == 3


@pytest.mark.parametrize("devices_per_node", [0, 5])
def test_a_node_cannot_have_more_devices_than_this_machine_or_none(devices_per_node: int) -> None:
    with pytest.raises(PlanError, match="at least 1, and at most the 4 GPUs of this machine; got"):
        local_vm(num_gpus=4, devices_per_node=devices_per_node)


def test_listing_the_vms_needs_none_of_the_slow_imports() -> None:
    script = (
        "import sys; from periflow_ray.plan import load_catalogue; load_catalogue(); "
        "print([m for m in ('ray', 'torch', 'pydantic', 'click', 'fsspec', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
