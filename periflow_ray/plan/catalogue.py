"""The VM types that a template's ``vm`` may name: AWS and Azure GPU VMs from ``vms.json``, and this machine.

The file lists each instance type once, with the regions that offer it; this module spells out the regional and
spot variants. Nothing here imports pydantic, so that ``periflow-ray vm list`` starts quickly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from periflow_ray.errors import PlanError
from periflow_ray.names import suggest_names

LOCAL_VM_NAME = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmType:
    """One kind of machine; on this machine (``cloud == "local"``) a stand-in for one.

    ``num_devices`` counts GPUs, or CPU slots where ``accelerator`` is ``"CPU"``. ``device_memory_gib`` is per GPU.
    What is not known of this machine is None. Spot prices move by the hour, so a spot VM has no
    ``price_per_hour_usd``; ``on_demand_price_per_hour_usd`` is what it costs at most. ``retired_on`` (ISO date) is
    set where the provider has withdrawn the instance type: it can be planned for, but no longer rented.
    """

    name: str
    cloud: Literal["aws", "azure", "local"]
    region: str
    accelerator: str
    num_devices: int
    device_memory_gib: float | None
    num_vcpus: int | None
    memory_gib: float | None
    is_spot: bool
    instance_type: str
    price_per_hour_usd: float | None
    on_demand_price_per_hour_usd: float | None
    price_date: str | None
    price_source: str | None
    retired_on: str | None = None

    @property
    def is_local(self) -> bool:
        return self.cloud == "local"


@cache
def load_catalogue() -> Mapping[str, VmType]:
    """Read every VM type, by name: ``[cloud]-[memory per GPU]gb-[gpu]-[count]g-[region][-spot]``, and ``local``."""
    document = json.loads(resources.files("periflow_ray.plan").joinpath("vms.json").read_text(encoding="utf-8"))
    vms = [local_vm()]
    for instance in document["instances"]:
        vms.extend(_variants(instance, document["sources"][instance["cloud"]]))
    return MappingProxyType({vm.name: vm for vm in vms})


def find_vm(name: str) -> VmType:
    """Look a VM type up by its exact name.

    Raises:
        PlanError: no such VM; the message gives the nearest names.
    """
    catalogue = load_catalogue()
    if name in catalogue:
        return catalogue[name]
    suggestion = suggest_names(name, catalogue, num_names=2)
    raise PlanError(f"vm {name!r} is not in the catalogue.{suggestion}  List all: periflow-ray vm list", ("vm",))


def local_vm(*, num_gpus: int = 0, devices_per_node: int | None = None) -> VmType:
    """Describe this machine as a VM type, so that any template can be tried on it.

    Without GPUs a node has one device, a CPU slot, so that ``num_devices: 2`` shows two nodes at work. With GPUs one
    node owns all of them.

    Args:
        num_gpus: GPUs of this machine that jobs may use.
        devices_per_node: devices that each stand-in node has, instead of the above.
    Raises:
        PlanError: ``devices_per_node`` is below 1, or more than the machine's GPUs.
    """
    limit = f", and at most the {num_gpus} GPUs of this machine" if num_gpus else ""
    if devices_per_node is not None and (devices_per_node < 1 or (num_gpus and devices_per_node > num_gpus)):
        raise PlanError(f"devices per node must be at least 1{limit}; got {devices_per_node}.")
    return VmType(
        name=LOCAL_VM_NAME,
        cloud="local",
        region="-",
        accelerator="GPU" if num_gpus else "CPU",
        num_devices=devices_per_node or num_gpus or 1,
        device_memory_gib=None,
        num_vcpus=None,
        memory_gib=None,
        is_spot=False,
        instance_type="-",
        price_per_hour_usd=None,
        on_demand_price_per_hour_usd=None,
        price_date=None,
        price_source=None,
    )


def _variants(instance: Mapping[str, Any], source: Mapping[str, str]) -> Iterator[VmType]:
    specs = {key: instance[key] for key in ("cloud", "instance_type", "accelerator", "num_devices", "num_vcpus")}
    size = f"{instance['device_memory_gib']}gb-{instance['accelerator'].lower()}-{instance['num_devices']}g"
    for region, list_price in instance["price_per_hour_usd"].items():
        for is_spot in (False, True):
            yield VmType(
                **specs,
                name=f"{instance['cloud']}-{size}-{region}{'-spot' if is_spot else ''}",
                region=region,
                device_memory_gib=float(instance["device_memory_gib"]),
                memory_gib=float(instance["memory_gib"]),
                is_spot=is_spot,
                price_per_hour_usd=None if is_spot else list_price,
                on_demand_price_per_hour_usd=list_price,
                price_date=source["price_date"] if list_price is not None else None,
                price_source=source["price_source"] if list_price is not None else None,
                retired_on=instance.get("retired_on"),
            )
