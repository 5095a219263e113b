"""What machines cost by the hour, from the catalogue; spot prices move, so the highest one known counts."""

from __future__ import annotations

from periflow_ray.cluster.config import aws, azure
from periflow_ray.cluster.providers.provider import Machine
from periflow_ray.plan.catalogue import VmType, load_catalogue

_HEAD_USD_PER_HOUR = {
    aws.HEAD_INSTANCE_TYPE: aws.HEAD_USD_PER_HOUR,
    azure.HEAD_INSTANCE_TYPE: azure.HEAD_USD_PER_HOUR,
}


def machine_usd_per_hour(machine: Machine) -> float:
    """About what a machine costs while it runs; 0 where no price is known."""
    if machine.instance_type in _HEAD_USD_PER_HOUR:
        return _HEAD_USD_PER_HOUR[machine.instance_type]
    vm = load_catalogue().get(machine.node_type)
    return 0.0 if vm is None else vm_usd_per_hour(vm)


def vm_usd_per_hour(vm: VmType) -> float:
    """About what a VM type costs by the hour, at most as far as is known; 0 where no price is known."""
    if vm.is_spot and vm.spot_price_per_hour_usd is not None:
        return vm.spot_price_per_hour_usd[1]
    return vm.on_demand_price_per_hour_usd or 0.0
