"""The VM types that a template's ``vm`` may name: AWS and Azure GPU VMs from ``vms.json``, and this machine.

The file lists each instance type once, with the regions that offer it; this module spells out the regional and
spot variants. Nothing here imports pydantic, so that ``periflow-ray vm list`` starts quickly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
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
    What is not known is None. Spot prices move by the hour, so a spot VM has no ``price_per_hour_usd``;
    ``on_demand_price_per_hour_usd`` is what it costs at most. ``spot_price_per_hour_usd`` has the lowest and the
    highest price over the region's ``zones`` (given by their ids) at ``price_date``. ``retired_on`` (ISO date) is set
    where the provider has withdrawn the instance type, so that it can be planned for, but no longer rented;
    ``successor`` is then the VM type that comes nearest to it.
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
    spot_price_per_hour_usd: tuple[float, float] | None = None
    zones: tuple[str, ...] = ()
    architecture: Literal["x86_64", "arm64"] = "x86_64"
    retired_on: str | None = None
    successor: str | None = None

    @property
    def is_local(self) -> bool:
        return self.cloud == "local"


@dataclass(frozen=True)
class PriceCopy:
    """Prices that were asked for later than those of the catalogue.

    Args:
        date: ISO date on which they were asked for.
        source: who said so.
        usd: by instance type and region: the price on demand, and the lowest and highest spot price over its zones;
            None where there is none.
    """

    date: str
    source: str
    usd: Mapping[str, Mapping[str, tuple[float | None, tuple[float, float] | None]]]


_price_copies: dict[str, PriceCopy] = {}


def use_prices(copies: Mapping[str, PriceCopy]) -> None:
    """Let ``load_catalogue`` have these prices from now on, by cloud, where they say something."""
    _price_copies.clear()
    _price_copies.update(copies)
    load_catalogue.cache_clear()


@cache
def load_catalogue() -> Mapping[str, VmType]:
    """Read every VM type, by name, and ``local``.

    A name is ``[cloud]-[memory per GPU]gb-[gpu]-[count]g-[region][-spot]``. Of several instance types with these GPUs
    the usual one, often with the fewest CPUs, is called so; the others have their own name after the count:
    ``aws-16gb-t4-1g-g4dn-8xlarge-us-east-1``.
    """
    document = json.loads(resources.files("periflow_ray.plan").joinpath("vms.json").read_text(encoding="utf-8"))
    instances = {instance["instance_type"]: instance for instance in document["instances"]}
    vms = [local_vm()]
    for instance in instances.values():
        successor = instances.get(instance.get("successor", ""))
        vms.extend(_variants(instance, document["sources"][instance["cloud"]], successor))
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
    raise PlanError(f"vm {name!r} is not in the catalogue.{suggestion} List all: periflow-ray vm list", ("vm",))


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


def describe_usd(amounts: Iterable[float]) -> str:
    """``$12.24``, or from the lowest to the highest ``$1.49 to $2.00``."""
    return " to ".join(dict.fromkeys(f"${amount:,.2f}" for amount in amounts))


def _variants(
    instance: Mapping[str, Any], source: Mapping[str, str], successor: Mapping[str, Any] | None
) -> Iterator[VmType]:
    specs = {key: instance[key] for key in ("cloud", "instance_type", "accelerator", "num_devices", "num_vcpus")}
    size = _size_of(instance)
    for region, offer in instance["regions"].items():
        list_price, spot_prices = offer["usd"], offer.get("spot_usd")
        price_date, price_source = source["price_date"], source["price_source"]
        copy = _price_copies.get(instance["cloud"])
        if copy is not None and region in copy.usd.get(instance["instance_type"], {}):
            list_price, spot_prices = copy.usd[instance["instance_type"]][region]
            price_date, price_source = copy.date, copy.source
        has_price = list_price is not None or spot_prices is not None
        for suffix in ("", "-spot"):
            is_spot = bool(suffix)
            yield VmType(
                **specs,
                name=f"{size}-{region}{suffix}",
                region=region,
                device_memory_gib=float(instance["device_memory_gib"]),
                memory_gib=float(instance["memory_gib"]),
                is_spot=is_spot,
                price_per_hour_usd=None if is_spot else list_price,
                on_demand_price_per_hour_usd=list_price,
                spot_price_per_hour_usd=tuple(spot_prices) if spot_prices is not None else None,
                price_date=price_date if has_price else None,
                price_source=price_source if has_price else None,
                zones=tuple(offer.get("zones", ())),
                architecture=instance.get("architecture", "x86_64"),
                retired_on=instance.get("retired_on"),
                successor=None if successor is None else f"{_size_of(successor)}-{region}{suffix}",
            )


def _size_of(instance: Mapping[str, Any]) -> str:
    """A VM's name without its region."""
    size = "{cloud}-{device_memory_gib}gb-{accelerator}-{num_devices}g".format_map(instance).lower()
    if not instance.get("name_has_type"):
        return size
    instance_type = instance["instance_type"].removeprefix("Standard_").lower()
    return f"{size}-{instance_type.replace('.', '-').replace('_', '-')}"
