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
AWS_PRICE_SOURCE = "AWS prices for Linux, SkyPilot catalogue v9 at 2c3d7ea"
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
        price_date="2026",
        price_source=AWS_PRICE_SOURCE,
        spot_price_per_hour_usd=(16.9508, 55.04),
        zones=("use1-atl2-az1", "use1-az1", "use1-az2", "use1-az3", "use1-az4", "use1-az5", "use1-az6"),
    )


def test_a_spot_vm_has_a_range_of_prices_and_knows_what_it_costs_at_most() -> None:
    spot = find_vm("azure-80gb-a100-4g-eastus-spot")
    assert (spot.is_spot, spot.price_per_hour_usd, spot.on_demand_price_per_hour_usd) == (True, None, 14.692)
    assert spot.spot_price_per_hour_usd == (1.777732, 1.777732)


def test_withdrawn_instance_types_name_a_vm_that_can_be_had_in_the_same_region() -> None:
    retired = [vm for vm in ALL_VMS if vm.retired_on]
    assert {vm.instance_type for vm in retired} == {
        *("Standard_NC6s_v3", "Standard_NC12s_v3", "Standard_NC24s_v3", "Standard_NC24rs_v3"),
        *("Standard_NV12s_v3", "Standard_NV24s_v3", "Standard_NV48s_v3"),
    }
    for vm in retired:
        assert vm.successor is not None
        successor = find_vm(vm.successor)
        assert successor.retired_on is None
        assert (successor.region, successor.is_spot) == (vm.region, vm.is_spot)
        assert successor.num_devices == vm.num_devices
        assert (successor.device_memory_gib or 0) >= (vm.device_memory_gib or 0)
    assert find_vm("azure-16gb-v100-4g-eastus-spot").successor == "azure-80gb-a100-4g-eastus-spot"
    assert all(vm.successor is None for vm in ALL_VMS if not vm.retired_on)


def test_the_newest_machines_are_there() -> None:
    assert {"B200", "B300", "GB200", "RTX-PRO-6000"} <= {vm.accelerator for vm in CLOUD_VMS}
    assert {vm.accelerator for vm in CLOUD_VMS if vm.architecture == "arm64"} == {"GB200"}


@pytest.mark.parametrize("cloud", ["aws", "azure"])
def test_both_clouds_offer_gpus_up_to_h200(cloud: str) -> None:
    assert {"T4", "V100", "A100", "H100", "H200"} <= {vm.accelerator for vm in CLOUD_VMS if vm.cloud == cloud}


def test_every_name_says_what_the_vm_is() -> None:
    for vm in CLOUD_VMS:
        spot = "-spot" if vm.is_spot else ""
        size = f"{vm.device_memory_gib:g}gb-{vm.accelerator.lower()}-{vm.num_devices}g"
        instance_type = re.sub(r"[._]", "-", vm.instance_type.removeprefix("Standard_").lower())
        assert vm.name in (
            f"{vm.cloud}-{size}-{vm.region}{spot}",
            f"{vm.cloud}-{size}-{instance_type}-{vm.region}{spot}",
        )


def test_of_instance_types_with_the_same_gpus_the_one_with_the_fewest_cpus_has_the_short_name() -> None:
    assert find_vm("aws-16gb-t4-1g-us-east-1").instance_type == "g4dn.xlarge"
    assert find_vm("aws-16gb-t4-1g-g4dn-8xlarge-us-east-1").instance_type == "g4dn.8xlarge"
    assert find_vm("azure-16gb-t4-1g-nc16as-t4-v3-eastus-spot").instance_type == "Standard_NC16as_T4_v3"
    num_variants = sum(2 for vm in CLOUD_VMS if not vm.is_spot)
    assert len({vm.name for vm in CLOUD_VMS}) == num_variants


def test_every_vm_has_plausible_numbers() -> None:
    for vm in CLOUD_VMS:
        assert vm.num_vcpus is not None
        assert vm.memory_gib is not None
        assert vm.num_devices in (1, 2, 4, 8)
        assert vm.num_vcpus >= 4
        assert vm.num_vcpus > vm.num_devices
        assert vm.memory_gib >= 16
        price = vm.on_demand_price_per_hour_usd
        spot_prices = vm.spot_price_per_hour_usd
        assert (price is None and spot_prices is None) == (vm.price_date is None) == (vm.price_source is None)
        if spot_prices is not None:
            assert 0.02 < spot_prices[0] / vm.num_devices <= spot_prices[1] / vm.num_devices < 20
        if price is not None:
            assert 0.2 < price / vm.num_devices < 20
            assert re.fullmatch(r"20\d\d(-\d\d)*", vm.price_date or "")


def test_every_cloud_vm_can_be_had_on_demand_and_as_spot() -> None:
    on_demand = {vm.name for vm in CLOUD_VMS if not vm.is_spot}
    assert {f"{name}-spot" for name in on_demand} == {vm.name for vm in CLOUD_VMS if vm.is_spot}


def test_a_misspelt_vm_gets_the_nearest_names() -> None:
    with pytest.raises(PlanError) as caught:
        find_vm("azure-16gb-v100-4g-eastu-spot")
    assert caught.value.key_path == ("vm",)
    assert str(caught.value) == (
        "vm 'azure-16gb-v100-4g-eastu-spot' is not in the catalogue. Did you mean 'azure-16gb-v100-4g-eastus-spot' or "
        "'azure-16gb-v100-4g-eastus2-spot'? List all: periflow-ray vm list"
    )


def test_a_vm_unlike_any_other_gets_no_suggestion() -> None:
    with pytest.raises(PlanError) as caught:
        find_vm("my laptop")
    assert str(caught.value) == "vm 'my laptop' is not in the catalogue. List all: periflow-ray vm list"


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
