from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_ray.errors import PlanError
from periflow_ray.plan import WorkerGrid, find_vm, local_vm, split_devices

FOUR_GPUS = find_vm("azure-16gb-v100-4g-eastus-spot")


@pytest.mark.parametrize("num_devices", [1, 2, 3, 4])
def test_up_to_one_vm_of_devices_need_one_node(num_devices: int) -> None:
    assert split_devices(num_devices, FOUR_GPUS) == WorkerGrid(num_nodes=1, devices_per_node=num_devices)


def test_eight_devices_on_four_device_vms_need_two_nodes() -> None:
    assert split_devices(8, FOUR_GPUS) == WorkerGrid(num_nodes=2, devices_per_node=4)


def test_two_devices_on_this_machine_are_two_stand_in_nodes() -> None:
    assert split_devices(2, local_vm()) == WorkerGrid(num_nodes=2, devices_per_node=1)


@pytest.mark.parametrize(
    ("num_devices", "advice"), [(6, "Use 4 (1 VM) or 8 (2 VMs)."), (11, "Use 8 (2 VMs) or 12 (3 VMs).")]
)
def test_a_broken_number_of_vms_gets_the_two_nearest_counts(num_devices: int, advice: str) -> None:
    with pytest.raises(PlanError) as caught:
        split_devices(num_devices, FOUR_GPUS)
    assert caught.value.key_path == ("num_devices",)
    assert str(caught.value) == (
        f"num_devices {num_devices} is not a whole number of vm 'azure-16gb-v100-4g-eastus-spot', which has 4 devices "
        f"each. {advice}"
    )


def test_a_job_needs_a_device() -> None:
    with pytest.raises(PlanError, match="num_devices must be at least 1; got 0"):
        split_devices(0, FOUR_GPUS)


@given(num_devices=st.integers(1, 200), devices_per_node=st.integers(1, 16))
def test_a_grid_has_exactly_the_devices_asked_for(num_devices: int, devices_per_node: int) -> None:
    try:
        grid = split_devices(num_devices, local_vm(devices_per_node=devices_per_node))
    except PlanError:
        assert num_devices > devices_per_node
        assert num_devices % devices_per_node != 0
    else:
        assert grid.num_nodes * grid.devices_per_node == num_devices
        assert grid.devices_per_node <= devices_per_node
