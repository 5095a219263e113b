"""The VM sizes that the box's Azure offers, its quotas in vCPUs, and what of them is in use."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.cloud.virtual_machines import REPOSITORY_DIR

USUAL_QUOTA = 1_000
ALL_VCPUS, SPOT_VCPUS = "cores", "lowPriorityCores"
_CATALOGUE = REPOSITORY_DIR / "periflow_ray/plan/vms.json"
_ZONES = ("1", "2", "3")
_SIZE_NAME = re.compile(r"Standard_([A-Z]+)\d+([a-z]*)(?:_([A-Z]+\d+))?_(v\d+)")


@dataclass(frozen=True)
class Size:
    """One VM size; ``family`` is the name of its quota."""

    name: str
    num_vcpus: int
    memory_gib: float
    num_gpus: int
    regions: frozenset[str]

    @property
    def family(self) -> str:
        """Made of the size's name, as most of Azure's are."""
        found = _SIZE_NAME.fullmatch(self.name)
        assert found is not None, self.name
        series, letters, accelerator, version = found.groups()
        return f"standard{series}{letters.upper()}{accelerator or ''}{version}Family"


@dataclass
class Offers:
    """What a subscription may use where.

    Args:
        restricted: by size, the zones that the subscription may not use; None for the whole region.
        limits: by the quota's name, where it is not the usual one.
    """

    region: str
    restricted: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = {size.name: size for size in _read_sizes(self.region)}

    def find_fault(self, size_name: str, zones: list[str]) -> str:
        """Why a VM of this size cannot be here; empty if it can."""
        size = self.sizes.get(size_name)
        restricted = self.restricted.get(size_name, ())
        here = f"{self.region}{f' zone {zones[0]}' if zones else ''}"
        if size is None or self.region not in size.regions or restricted is None or set(zones) & set(restricted):
            return (
                f"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: "
                f"{size_name}' is currently not available in location '{here}'. Please try another size or deploy to "
                "a different location or different zone."
            )
        return ""

    def find_exceeded(self, wanted: list[tuple[str, bool]], used: list[tuple[str, bool]]) -> str:
        """Which quota more VMs would exceed, in Azure's words; empty if none. VMs are size and whether it is spot."""
        before, added = self._count(used), self._count(wanted)
        for name, num_vcpus in added.items():
            limit = self.limits.get(name, USUAL_QUOTA)
            if before.get(name, 0) + num_vcpus > limit:
                return (
                    f"Operation could not be completed as it results in exceeding approved {name} Cores quota. "
                    f"Additional details - Deployment Model: Resource Manager, Location: {self.region}, "
                    f"Current Limit: {limit}, Current Usage: {before.get(name, 0)}, "
                    f"Additional Required: {num_vcpus}, (Minimum) New Limit Required: "
                    f"{before.get(name, 0) + num_vcpus}."
                )
        return ""

    def list_usages(self, used: list[tuple[str, bool]]) -> list[dict[str, Any]]:
        """As ``Microsoft.Compute/locations/usages`` has them."""
        counts = self._count(used)
        names = [ALL_VCPUS, SPOT_VCPUS, *sorted({size.family for size in self.sizes.values()})]
        titles = {ALL_VCPUS: "Total Regional vCPUs", SPOT_VCPUS: "Total Regional Low-priority vCPUs"}
        return [
            {
                "unit": "Count",
                "currentValue": counts.get(name, 0),
                "limit": self.limits.get(name, USUAL_QUOTA),
                "name": {"value": name, "localizedValue": titles.get(name, f"{name} vCPUs")},
            }
            for name in names
        ]

    def list_skus(self, location: str | None) -> Iterator[dict[str, Any]]:
        """As ``Microsoft.Compute/skus`` has them: one for each size and region."""
        for size in self.sizes.values():
            for region in sorted(size.regions):
                if location in (None, region):
                    yield self._describe(size, region)

    def _count(self, vms: list[tuple[str, bool]]) -> Mapping[str, int]:
        """vCPUs by quota; spot VMs have one for all sizes."""
        counts: dict[str, int] = {}
        for name, is_spot in vms:
            size = self.sizes[name]
            for quota in (SPOT_VCPUS,) if is_spot else (ALL_VCPUS, size.family):
                counts[quota] = counts.get(quota, 0) + size.num_vcpus
        return counts

    def _describe(self, size: Size, region: str) -> dict[str, Any]:
        capabilities = {
            "vCPUs": size.num_vcpus,
            "MemoryGB": size.memory_gib,
            "GPUs": size.num_gpus,
            "CpuArchitectureType": "x64",
            "LowPriorityCapable": "True",
        }
        sku = {
            "resourceType": "virtualMachines",
            "name": size.name,
            "tier": "Standard",
            "size": size.name.removeprefix("Standard_"),
            "family": size.family,
            "locations": [region],
            "locationInfo": [{"location": region, "zones": list(_ZONES), "zoneDetails": []}],
            "capabilities": [{"name": name, "value": str(value)} for name, value in capabilities.items() if value],
            "restrictions": [],
        }
        if region == self.region and size.name in self.restricted:
            zones = self.restricted[size.name]
            sku["restrictions"] = [
                {
                    "type": "Location" if zones is None else "Zone",
                    "values": [region],
                    "restrictionInfo": {"locations": [region], "zones": list(zones or ())},
                    "reasonCode": "NotAvailableForSubscription",
                }
            ]
        return sku


def _read_sizes(region: str) -> Iterator[Size]:
    """The catalogue's sizes that can still be rented, and some without GPUs, which a head may have."""
    today = time.strftime("%Y-%m-%d")
    regions = {region}
    for instance in json.loads(_CATALOGUE.read_text())["instances"]:
        if instance["cloud"] == "azure" and instance.get("retired_on", "9999") > today:
            regions |= instance["regions"].keys()
            yield Size(
                instance["instance_type"],
                instance["num_vcpus"],
                instance["memory_gib"],
                instance["num_devices"],
                frozenset(instance["regions"]),
            )
    for num_vcpus in (2, 4, 8):
        yield Size(f"Standard_D{num_vcpus}s_v5", num_vcpus, num_vcpus * 4, 0, frozenset(regions))
