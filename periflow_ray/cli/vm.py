"""``vm list``: the machines that a template's ``vm`` may name."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from periflow_ray.cli.choice import Choice, require_known
from periflow_ray.cli.complete import complete_device, complete_region
from periflow_ray.cli.format import NOTHING
from periflow_ray.cli.lazy import LazyGroup
from periflow_ray.cli.output import output_option, write_output
from periflow_ray.cli.tables import draw_table
from periflow_ray.plan.catalogue import VmType, load_catalogue

_COLUMNS = (
    "VM",
    "Cloud",
    "Region",
    "Instance type",
    "Device",
    "Device Cnt",
    "GPU Memory",
    "vCPU",
    "Memory",
    "Spot",
    "USD/hour",
)
# The name says most of it.
_DROPPED_FIRST = ("Cloud", "Region", "Spot", "GPU Memory", "Device Cnt", "Device", "vCPU", "Memory", "Instance type")


_COMMANDS = {
    "list": ("periflow_ray.cli.vm:list_vms", "List the VM types."),
    "refresh": ("periflow_ray.cli.vm_refresh:refresh", "Ask the clouds for today's prices."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
def vm() -> None:
    """VM types that a template may name.

    \b
    Example:
      periflow-ray vm list --cloud aws --device H100
    """


@click.command("list")
@click.option(
    "--cloud", type=Choice(("aws", "azure", "local"), case_sensitive=False), help="Only the VMs of one cloud."
)
@click.option("--region", shell_complete=complete_region, help="Only this region.")
@click.option("--device", shell_complete=complete_device, help="Only this accelerator, for example V100.")
@click.option("--num-devices", type=click.IntRange(min=1), help="Only VMs with this many devices.")
@click.option("--spot/--on-demand", "is_spot", default=None, help="Only spot VMs, or only on-demand ones.")
@output_option
def list_vms(
    cloud: str | None,
    region: str | None,
    device: str | None,
    num_devices: int | None,
    is_spot: bool | None,
    output: str,
) -> None:
    """List the VM types of the catalogue, with list prices per hour.

    A spot VM has no fixed price: its price was between these two, over the region's zones, or at most that after "<",
    which is the price of the same VM on demand.

    \b
    Example:
      periflow-ray vm list --cloud azure --device V100 --spot
    """
    catalogue = load_catalogue().values()
    region = require_known("--region", region, {vm_type.region for vm_type in catalogue})
    device = require_known("--device", device, {vm_type.accelerator for vm_type in catalogue})
    found = [
        vm_type
        for vm_type in catalogue
        if (cloud is None or vm_type.cloud == cloud)
        and (region is None or vm_type.region == region)
        and (device is None or vm_type.accelerator == device)
        and (num_devices is None or vm_type.num_devices == num_devices)
        and (is_spot is None or vm_type.is_spot == is_spot)
    ]

    def draw(console: Console) -> None:
        if found:
            draw_table(console, _COLUMNS, [_row(vm_type) for vm_type in found], dropped_first=_DROPPED_FIRST)

    write_output(output, [_document(vm_type) for vm_type in found], draw)
    if not found:
        click.echo("No VM type is as all of these options want it. Leave one of them out.", err=True)
    dates = {f"{v.price_source}, {v.price_date}": v.price_date for v in found if v.price_date is not None}
    for source in dates:
        click.echo(f"Prices: {source}", err=True)
    if any(len(day) < len("2026-01-31") for day in dates.values()):
        click.echo("Of their day only the year is known. Today's prices: periflow-ray vm refresh", err=True)


def _row(vm_type: VmType) -> tuple[str, ...]:
    return (
        vm_type.name,
        vm_type.cloud,
        vm_type.region,
        vm_type.instance_type,
        vm_type.accelerator,
        str(vm_type.num_devices),
        _gib(vm_type.device_memory_gib),
        NOTHING if vm_type.num_vcpus is None else str(vm_type.num_vcpus),
        _gib(vm_type.memory_gib),
        "Y" if vm_type.is_spot else "N",
        _price(vm_type),
    )


def _gib(memory_gib: float | None) -> str:
    return NOTHING if memory_gib is None else f"{memory_gib:g} GiB"


def _price(vm_type: VmType) -> str:
    if vm_type.retired_on is not None:
        return f"retired {vm_type.retired_on}"
    if vm_type.price_per_hour_usd is not None:
        return f"{vm_type.price_per_hour_usd:.2f}"
    if vm_type.is_spot and vm_type.spot_price_per_hour_usd is not None:
        return " - ".join(dict.fromkeys(f"{price:.2f}" for price in vm_type.spot_price_per_hour_usd))
    ceiling = vm_type.on_demand_price_per_hour_usd
    return NOTHING if ceiling is None else f"< {ceiling:.2f}"


def _document(vm_type: VmType) -> dict[str, Any]:
    return {name: getattr(vm_type, name) for name in VmType.__dataclass_fields__}
