"""Azure: what a cluster needs in a subscription, and what of it is there. VMs are Ray's to launch.

A cluster's whole resource group is deleted at once. Azure then finds the order in which disks, cards, addresses and
networks let go of each other, and goes on when whoever asked is gone, even if that was a VM of the group.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

from periflow_ray.cluster.config.spec import ClusterSpec, own_name
from periflow_ray.cluster.providers.azure_api import AzureApi, told
from periflow_ray.cluster.providers.azure_checks import AzureChecks
from periflow_ray.cluster.providers.azure_setup import AzureSetup, require_own
from periflow_ray.cluster.providers.prices import machine_usd_per_hour
from periflow_ray.cluster.providers.provider import Finding, Machine, Preparation, Resource

# Standard HDD in most regions, per GiB and hour; a static address, per hour.
_DISK_USD = 0.045 / 730
_ADDRESS_USD = 0.005
_GROUP, _ROLE = "resource group", "role assignment"
# In the order in which they are worth knowing; everything else of the group comes after them.
_VM = "microsoft.compute/virtualmachines"
_KINDS = {
    "microsoft.compute/disks": "disk",
    "microsoft.network/networkinterfaces": "network interface",
    "microsoft.network/publicipaddresses": "address",
    "microsoft.network/networksecuritygroups": "network security group",
    "microsoft.network/virtualnetworks": "network",
    "microsoft.managedidentity/userassignedidentities": "identity",
}
# A VM without its computer costs nothing but its disk and its address.
_FREE_STATES = frozenset({"deallocated", "deallocating", "deleting"})


class AzureProvider:
    """Azure Resource Manager of one region; see ``Provider``."""

    def __init__(self, region: str) -> None:
        self._api = AzureApi(region)
        # Ids of groups whose end was asked for.
        self._is_ending: set[str] = set()

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        return AzureChecks(self._api).check(spec, is_new=is_new)

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        AzureSetup(self._api).prepare(preparation, config)

    def list_machines(self, name: str) -> list[Machine]:
        with told(f"listing the VMs of cluster '{name}'"):
            if self._find_group(name) is None:
                return []
            vms = self._list_kind(name, "Microsoft.Compute/virtualMachines")
            if not vms:
                return []
            cards = {_key(card): card for card in self._list_kind(name, "Microsoft.Network/networkInterfaces")}
            addresses = {_key(each): each for each in self._list_kind(name, "Microsoft.Network/publicIPAddresses")}
            found = []
            for vm in vms:
                view = self._api.find(f"{vm['id']}/instanceView")
                if view is not None:
                    found.append(_describe_machine(vm, view, *_find_addresses(vm, cards, addresses)))
        return found

    def end_machines(self, name: str) -> None:
        self._end_group(self._api.group_id(name), name)

    def list_resources(self, name: str) -> list[Resource]:
        with told(f"listing what cluster '{name}' has in subscription {self._api.subscription_id}"):
            group = self._find_group(name)
            # Those on the group itself go with it; the others would stay for ever, for identities that are gone.
            roles = self._api.pages(f"{self._api.root}/providers/Microsoft.Authorization/roleAssignments")
            found = [
                Resource(_ROLE, role["id"]) for role in roles if role["properties"].get("description") == own_name(name)
            ]
            if group is None:
                return found
            is_ending = group["properties"]["provisioningState"] == "Deleting"
            self._is_ending = {group["id"]} if is_ending else set()
            listed = self._api.pages(f"{group['id']}/resources")
            sizes = {_key(disk): disk["properties"].get("diskSizeGB") or 0 for disk in self._list_disks(name, listed)}
            machines = [self._describe_vm(machine) for machine in self.list_machines(name)]
        others = [each for each in listed if each["type"].lower() != _VM]
        parts = [_describe_part(each, sizes) for each in sorted(others, key=_rank)]
        end = Resource(_GROUP, own_name(name), "deleting" if is_ending else "")
        return [*machines, *parts, *found, end]

    def remove(self, resource: Resource) -> None:
        if resource.kind == _ROLE:
            with told(f"removing {resource.kind} {resource.id}"):
                self._api.call("DELETE", resource.id)
        elif resource.kind == _GROUP:
            # With it everything that was listed before it.
            self._end_group(f"{self._api.root}/resourceGroups/{resource.id}", resource.id)

    def _find_group(self, name: str) -> dict[str, Any] | None:
        group = self._api.find(self._api.group_id(name))
        if group is not None:
            require_own(group, name)
        return group

    def _end_group(self, group_id: str, title: str) -> None:
        if group_id in self._is_ending:
            return
        with told(f"deleting the resource group of {title}"):
            self._api.call("DELETE", group_id)
        self._is_ending.add(group_id)

    def _list_kind(self, name: str, kind: str) -> list[dict[str, Any]]:
        return self._api.pages(f"{self._api.group_id(name)}/providers/{kind}")

    def _list_disks(self, name: str, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With their sizes, which the list of everything does not have."""
        if any(each["type"].lower() == "microsoft.compute/disks" for each in listed):
            return self._list_kind(name, "Microsoft.Compute/disks")
        return []

    def _describe_vm(self, machine: Machine) -> Resource:
        usd = 0.0 if machine.state in _FREE_STATES else machine_usd_per_hour(machine)
        return Resource("virtual machine", machine.id, machine.state, usd)


def _describe_machine(
    vm: dict[str, Any], view: dict[str, Any], address: str | None, public_address: str | None
) -> Machine:
    properties, tags = vm["properties"], vm.get("tags") or {}
    statuses = view.get("statuses", [])
    return Machine(
        id=vm["name"],
        node_type=tags.get("ray-user-node-type", ""),
        instance_type=properties["hardwareProfile"]["vmSize"],
        is_spot=properties.get("priority") == "Spot",
        state=_find_state(properties, statuses),
        setup=tags.get("ray-node-status", ""),
        zone=next(iter(vm.get("zones") or []), ""),
        address=address,
        public_address=public_address,
        launched_unix_s=_parse_time(properties.get("timeCreated")),
        reason=" ".join(
            each.get("message") or each.get("displayStatus") or "" for each in statuses if each.get("level") == "Error"
        ),
    )


def _find_state(properties: dict[str, Any], statuses: list[dict[str, Any]]) -> str:
    """What it is as a computer, or how far its making or its end is."""
    making = str(properties.get("provisioningState", "")).lower()
    powers = [each["code"].partition("/")[2] for each in statuses if each["code"].startswith("PowerState/")]
    return making if making == "deleting" or not powers else powers[0]


def _find_addresses(
    vm: dict[str, Any], cards: dict[str, dict[str, Any]], addresses: dict[str, dict[str, Any]]
) -> tuple[str | None, str | None]:
    """Its own address, and the one by which others reach it."""
    for reference in vm["properties"]["networkProfile"]["networkInterfaces"]:
        card = cards.get(_key(reference))
        for configuration in card["properties"]["ipConfigurations"] if card else []:
            own = configuration["properties"]
            public = addresses.get(_key(own.get("publicIPAddress") or {}), {})
            return own.get("privateIPAddress"), public.get("properties", {}).get("ipAddress")
    return None, None


def _rank(listed: dict[str, Any]) -> int:
    kinds = list(_KINDS)
    kind = listed["type"].lower()
    return kinds.index(kind) if kind in kinds else len(kinds)


def _describe_part(listed: dict[str, Any], disk_sizes: dict[str, int]) -> Resource:
    kind = listed["type"].lower()
    usd = 0.0
    if kind == "microsoft.compute/disks":
        usd = disk_sizes.get(_key(listed), 0) * _DISK_USD
    elif kind == "microsoft.network/publicipaddresses":
        usd = _ADDRESS_USD
    return Resource(_KINDS.get(kind, listed["type"]), listed["name"], usd_per_hour=usd)


def _key(resource: dict[str, Any]) -> str:
    """Azure writes the same id in several ways."""
    return str(resource.get("id", "")).lower()


def _parse_time(text: str | None) -> float:
    """Azure writes seven digits of a second, or none."""
    if not text:
        return time.time()
    # Python 3.10 does not read the Z.
    return datetime.fromisoformat(re.sub(r"\.\d+", "", text).replace("Z", "+00:00")).timestamp()
