"""The resources of one Azure subscription as pure state: what each needs, gets, and leaves behind.

Addresses of virtual machines are the box's, whatever their subnet's prefix is.

Long because each kind of resource needs a few lines, and all of them the same state.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from support.cloud.arm_messages import (
    ADDRESS,
    ASSIGNMENT,
    DISK,
    IDENTITY,
    KINDS,
    NIC,
    SECURITY_GROUP,
    TENANT_ID,
    VM,
    ArmError,
    Kind,
    not_found,
)
from support.cloud.azure_roles import is_within
from support.cloud.azure_sizes import USUAL_QUOTA, Offers

ADDRESS_QUOTA = "PublicIPAddresses"
# The images of cluster_configs/, and the one of Ray's own examples.
IMAGES = {("microsoft-dsvm", "ubuntu-hpc", "2404"), ("microsoft-dsvm", "ubuntu-2204", "2204-gen2")}
_MAX_NAME_LENGTH = 64
_PRIVATE_ADDRESSES, _PUBLIC_ADDRESSES = "172.31.40.0", "54.214.40.0"
Resource = dict[str, Any]
# Raises an ArmError where whoever asks may not do an action to a resource.
Authorize = Callable[[str, str], None]


class Resources:
    """Everything in the subscription but its groups; ``offers`` is what it may use of its region."""

    def __init__(self, region: str) -> None:
        self.offers = Offers(region)
        self._resources: dict[str, Resource] = {}
        self._power: dict[str, str] = {}
        self._num_addresses = {_PRIVATE_ADDRESSES: 9, _PUBLIC_ADDRESSES: 9}

    def __contains__(self, resource_id: str) -> bool:
        return resource_id.lower() in self._resources

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources.values())

    def of_kind(self, kind: Kind) -> list[Resource]:
        """Every resource of a kind."""
        return [each for each in self._resources.values() if each["type"] == kind.type]

    def find(self, resource_id: str) -> Resource:
        """A resource, or one that is part of another."""
        parent, _, name = resource_id.rpartition("/")
        parent, _, nested = parent.rpartition("/")
        parts: list[Resource] = self._resources.get(parent.lower(), {}).get("properties", {}).get(nested, [])
        for each in parts:
            if each["name"].lower() == name.lower():
                return each
        if resource_id.lower() not in self._resources:
            path = resource_id.partition("/providers/")[2]
            raise not_found(
                "ResourceNotFound",
                f"The Resource '{path}' under resource group '{group_name(resource_id)}' was not found. "
                "For more details please go to https://aka.ms/ARMResourceNotFoundFix",
            )
        return self._resources[resource_id.lower()]

    def show(self, resource: Resource) -> dict[str, Any]:
        """A resource with what Azure says of its users."""
        shown = copy.deepcopy(resource)
        properties = shown.get("properties", {})
        users = self._find_users(resource["id"])
        kind = KINDS[resource["type"].lower()]
        if kind == DISK:
            properties["diskState"] = "Attached" if users else "Unattached"
            shown |= {"managedBy": users[0]} if users else {}
        elif kind == NIC and users:
            properties["virtualMachine"] = {"id": users[0]}
        elif kind == ADDRESS:
            for interface in self.of_kind(NIC):
                for configuration in interface["properties"]["ipConfigurations"]:
                    if any(is_within(needed, resource["id"]) for needed in _references(configuration)):
                        properties["ipConfiguration"] = {"id": configuration["id"]}
        elif kind == SECURITY_GROUP:
            properties["networkInterfaces"] = [{"id": user} for user in users if f"/{NIC.type}/" in user]
        elif kind == VM:
            for identity_id in shown.get("identity", {}).get("userAssignedIdentities", {}):
                identity = self._resources.get(identity_id.lower(), {}).get("properties", {})
                shown["identity"]["userAssignedIdentities"][identity_id] = {
                    name: identity[name] for name in ("principalId", "clientId") if identity
                }
        return shown

    def put(self, authorize: Authorize, kind: Kind, resource_id: str, body: Mapping[str, Any]) -> None:
        """Make a resource, in the place of the one of that id."""
        known = self._resources.get(resource_id.lower())
        resource = {
            "id": resource_id,
            "name": resource_id.split("/")[-1],
            "type": kind.type,
            **_spelled_right(copy.deepcopy(dict(body))),
        }
        resource.setdefault("properties", {})["provisioningState"] = "Succeeded"
        for needed_id in _references(resource):
            if not is_within(needed_id, resource_id):
                self._check_reference(authorize, needed_id, resource_id)
        if kind == VM:
            self._complete_vm(authorize, resource, known)
        elif kind == NIC:
            self._complete_interface(resource, known)
        elif kind == ADDRESS:
            self._complete_address(resource, known)
        elif kind == IDENTITY:
            own = {name: str(uuid.uuid4()) for name in ("principalId", "clientId")}
            resource["properties"] |= {"tenantId": TENANT_ID, **own} if known is None else known["properties"]
        elif kind == ASSIGNMENT:
            self._complete_assignment(resource, known)
        elif kind.nested:
            for part in resource["properties"].setdefault(kind.nested, []):
                _complete_nested(part, kind, resource_id)
        self._resources[resource_id.lower()] = resource

    def delete(self, kind: Kind, resource: Resource) -> None:
        """Delete a resource that nothing else needs."""
        users = self._find_users(resource["id"])
        if users and kind.in_use_code:
            raise ArmError(
                409 if kind == DISK else 400,
                kind.in_use_code,
                f"{kind.type} '{resource['name']}' ({resource['id']}) is in use by {users[0]} and cannot be deleted.",
            )
        if kind == VM:
            self._delete_vm(resource)
        else:
            del self._resources[resource["id"].lower()]

    def delete_all(self, scope: str) -> None:
        """Delete whatever is in a group, used or not."""
        for resource_id in [each for each in self._resources if is_within(each, scope)]:
            del self._resources[resource_id]
            self._power.pop(resource_id, None)

    def put_nested(
        self, authorize: Authorize, kind: Kind, parent: Resource, name: str, body: Mapping[str, Any]
    ) -> Resource:
        """Make a part of a resource, in the place of the one of that name."""
        parts = parent["properties"][kind.nested]
        part = {**copy.deepcopy(dict(body)), "name": name}
        for needed_id in _references(part):
            if not is_within(needed_id, parent["id"]):
                self._check_reference(authorize, needed_id, f"{parent['id']}/{kind.nested}/{name}")
        _complete_nested(part, kind, parent["id"])
        parts[:] = [each for each in parts if each["name"].lower() != name.lower()] + [part]
        return part

    def delete_nested(self, kind: Kind, parent: Resource, name: str) -> None:
        """Delete a part of a resource that nothing else needs."""
        part = self.find(f"{parent['id']}/{kind.nested}/{name}")
        users = [user for user in self._find_users(part["id"]) if user != parent["id"]]
        if users:
            raise ArmError(
                400,
                kind.in_use_code,
                f"{kind.nested} {name} is in use by {users[0]} and cannot be deleted. In order to delete it, delete "
                "all the resources within it.",
            )
        parent["properties"][kind.nested].remove(part)

    # Virtual machines.

    def check_vms(self, vms: list[dict[str, Any]]) -> None:
        """Refuse new VMs for which size, name, image or quota do not do."""
        for vm in vms:
            size = vm["properties"]["hardwareProfile"]["vmSize"]
            if len(vm["name"]) > _MAX_NAME_LENGTH:
                raise ArmError(
                    400,
                    "InvalidParameter",
                    f"The name '{vm['name']}' of a Linux VM has more than {_MAX_NAME_LENGTH} characters.",
                )
            fault = self.offers.find_fault(size, vm.get("zones", []))
            if fault:
                raise ArmError(409, "SkuNotAvailable", fault)
            image = vm["properties"]["storageProfile"].get("imageReference", {})
            if "id" not in image and tuple(image.get(key) for key in ("publisher", "offer", "sku")) not in IMAGES:
                raise ArmError(
                    404,
                    "PlatformImageNotFound",
                    f"The platform image '{':'.join(image.values())}' is not available. Verify that all fields in the "
                    "storage profile are correct.",
                )
        exceeded = self.offers.find_exceeded([_size_of(vm) for vm in vms], self.used_sizes())
        if exceeded:
            raise ArmError(409, "QuotaExceeded", exceeded)

    def used_sizes(self) -> list[tuple[str, bool]]:
        """What counts against the quotas: the size of each running VM, and whether it is spot."""
        return [_size_of(vm) for vm in self.of_kind(VM) if self._power[vm["id"].lower()] == "running"]

    def list_vms(self) -> list[dict[str, Any]]:
        """Every VM with what a machine needs to stand for it."""
        return [self._describe_vm(vm) for vm in self.of_kind(VM)]

    def power_of(self, vm: Resource) -> str:
        """``running``, ``stopped`` or ``deallocated``."""
        return self._power[vm["id"].lower()]

    def set_power(self, vm: Resource, power: str) -> None:
        """One of those words; the VM's machine follows."""
        self._power[vm["id"].lower()] = power

    def evict(self, name: str) -> None:
        """Take a spot VM away, as its eviction policy says; its network interface and addresses stay."""
        vm = next(vm for vm in self.of_kind(VM) if vm["name"] == name)
        if vm["properties"].get("evictionPolicy") == "Deallocate":
            self.set_power(vm, "deallocated")
            return
        disk_id = vm["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"]
        self._delete_vm(vm)
        self._resources.pop(disk_id.lower(), None)

    # What each kind has of its own.

    def _check_reference(self, authorize: Authorize, needed_id: str, resource_id: str) -> None:
        try:
            needed = self.find(needed_id)
        except ArmError as err:
            raise ArmError(
                400,
                "InvalidResourceReference",
                f"Resource {needed_id} referenced by resource {resource_id} was not found. Please make sure that the "
                "referenced resource exists, and that both resources are in the same region.",
            ) from err
        if needed["type"] != DISK.type:
            authorize(f"{needed['type']}/join/action", needed_id)

    def _find_users(self, resource_id: str) -> list[str]:
        """The ids of what refers to a resource, or to a part of it."""
        return [
            other["id"]
            for other in self._resources.values()
            if not is_within(other["id"], resource_id)
            # A security group's user may be part of a network.
            and any(is_within(needed, resource_id) for needed in _references(other))
        ]

    def _complete_interface(self, resource: Resource, known: Resource | None) -> None:
        before = known["properties"]["ipConfigurations"] if known is not None else []
        for index, configuration in enumerate(resource["properties"]["ipConfigurations"]):
            configuration["id"] = f"{resource['id']}/ipConfigurations/{configuration['name']}"
            old = before[index]["properties"] if index < len(before) else {}
            configuration["properties"]["privateIPAddress"] = old.get("privateIPAddress") or self._take_address(
                _PRIVATE_ADDRESSES
            )
            configuration["properties"]["primary"] = index == 0

    def _complete_address(self, resource: Resource, known: Resource | None) -> None:
        limit = self.offers.limits.get(ADDRESS_QUOTA, USUAL_QUOTA)
        if known is None and len(self.of_kind(ADDRESS)) >= limit:
            raise ArmError(
                400,
                "PublicIPCountLimitReached",
                f"Cannot create more than {limit} public IP addresses for this subscription in this region.",
            )
        resource["properties"]["ipAddress"] = (
            known["properties"]["ipAddress"] if known is not None else self._take_address(_PUBLIC_ADDRESSES)
        )

    def _take_address(self, first: str) -> str:
        self._num_addresses[first] += 1
        return str(ipaddress.IPv4Address(first) + self._num_addresses[first])

    def _complete_assignment(self, resource: Resource, known: Resource | None) -> None:
        properties = resource["properties"]
        properties["scope"] = resource["id"].partition("/providers/Microsoft.Authorization/")[0]
        identity = [properties["principalId"], properties["roleDefinitionId"].lower(), properties["scope"].lower()]
        for other in self.of_kind(ASSIGNMENT):
            same = [other["properties"][name] for name in ("principalId", "roleDefinitionId", "scope")]
            is_same = [same[0], same[1].lower(), same[2].lower()] == identity
            if other is known and not is_same:
                raise ArmError(
                    400,
                    "RoleAssignmentUpdateNotPermitted",
                    "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.",
                )
            if other is not known and is_same:
                raise ArmError(409, "RoleAssignmentExists", "The role assignment already exists.")

    def _complete_vm(self, authorize: Authorize, vm: Resource, known: Resource | None) -> None:
        for identity_id in vm.get("identity", {}).get("userAssignedIdentities", {}):
            if identity_id.lower() not in self._resources:
                raise ArmError(
                    400, "FailedIdentityOperation", f"Identity operation failed: '{identity_id}' was not found."
                )
            authorize(f"{IDENTITY.type}/assign/action", identity_id)
        properties = vm["properties"]
        properties.get("osProfile", {}).pop("adminPassword", None)
        if known is not None:
            properties["vmId"] = known["properties"]["vmId"]
            properties["storageProfile"] = known["properties"]["storageProfile"]
            return
        self.check_vms([vm])
        properties["vmId"] = str(uuid.uuid4())
        properties["timeCreated"] = datetime.now(timezone.utc).isoformat()
        disk = properties["storageProfile"].setdefault("osDisk", {})
        disk.setdefault("name", f"{vm['name']}_OsDisk_1_{uuid.uuid4().hex}")
        disk_id = f"{vm['id'].partition('/providers/')[0]}/providers/{DISK.type}/{disk['name']}"
        # It has no tags, so that nobody relies on finding a disk by its VM's.
        self._resources[disk_id.lower()] = {
            "id": disk_id,
            "name": disk["name"],
            "type": DISK.type,
            "location": vm["location"],
            **({"zones": vm["zones"]} if "zones" in vm else {}),
            "sku": {"name": disk.get("managedDisk", {}).get("storageAccountType", "Standard_LRS"), "tier": "Standard"},
            "properties": {"diskSizeGB": disk.get("diskSizeGB", 30), "provisioningState": "Succeeded"},
        }
        disk["managedDisk"] = {**disk.get("managedDisk", {}), "id": disk_id}
        self._power[vm["id"].lower()] = "running"

    def _delete_vm(self, vm: Resource) -> None:
        """Delete a VM with what it says goes with it; the rest stays and costs."""
        del self._resources[vm["id"].lower()]
        del self._power[vm["id"].lower()]
        disk = vm["properties"]["storageProfile"]["osDisk"]
        if disk.get("deleteOption") == "Delete":
            self._resources.pop(disk["managedDisk"]["id"].lower(), None)
        for reference in vm["properties"]["networkProfile"]["networkInterfaces"]:
            if reference.get("properties", {}).get("deleteOption") == "Delete":
                interface = self._resources.pop(reference["id"].lower())
                for configuration in interface["properties"]["ipConfigurations"]:
                    address = configuration["properties"].get("publicIPAddress", {})
                    if address.get("properties", {}).get("deleteOption") == "Delete":
                        self._resources.pop(address["id"].lower(), None)

    def _describe_vm(self, vm: Resource) -> dict[str, Any]:
        properties = vm["properties"]
        interface = self.find(properties["networkProfile"]["networkInterfaces"][0]["id"])
        configuration = interface["properties"]["ipConfigurations"][0]["properties"]
        public = configuration.get("publicIPAddress")
        os_profile = properties["osProfile"]
        identities = [
            self._resources.get(each.lower()) for each in vm.get("identity", {}).get("userAssignedIdentities", {})
        ]
        return {
            "id": vm["id"],
            "name": vm["name"],
            "type": properties["hardwareProfile"]["vmSize"],
            "state": self._power[vm["id"].lower()],
            "address": configuration["privateIPAddress"],
            "public_address": self.find(public["id"])["properties"]["ipAddress"] if public else None,
            "is_spot": properties.get("priority") == "Spot",
            "zones": vm.get("zones", []),
            "tags": vm.get("tags", {}),
            "public_key": os_profile["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"],
            "principals": [each["properties"]["principalId"] for each in identities if each is not None],
        }


def group_name(resource_id: str) -> str:
    """The group that an id is of or in; empty for the subscription's own."""
    parts = resource_id.split("/")
    return parts[4] if len(parts) > 4 else ""


def _size_of(vm: Mapping[str, Any]) -> tuple[str, bool]:
    return vm["properties"]["hardwareProfile"]["vmSize"], vm["properties"].get("priority") == "Spot"


def _complete_nested(part: dict[str, Any], kind: Kind, parent_id: str) -> None:
    part["id"] = f"{parent_id}/{kind.nested}/{part['name']}"
    part["type"] = f"{kind.type}/{kind.nested}"
    part.setdefault("properties", {})["provisioningState"] = "Succeeded"


def _references(document: Mapping[str, Any]) -> Iterator[str]:
    """The ids of what a resource needs: those within its properties."""
    waiting: list[Any] = [document.get("properties", {})]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("id"), str) and "/providers/" in value["id"]:
                yield value["id"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _spelled_right(value: Any) -> Any:
    """Azure takes names of properties in any case; here it matters for one, which templates spell in two ways."""
    return json.loads(re.sub(r'"publicIpAddress"(?=\s*:)', '"publicIPAddress"', json.dumps(value)))
