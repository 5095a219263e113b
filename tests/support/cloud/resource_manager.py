"""Azure Resource Manager as pure state: what clusters and Ray's launcher ask of it, answered as Azure does.

manager = ResourceManager("eastus")
manager.answer(Call("PUT", "/subscriptions/.../resourceGroups/mine?api-version=2024-03-01", {"location": "eastus"}))

Operations are done when they are answered; only a deployment that fails is heard of later, as on the real cloud. A
virtual machine's addresses are the box's, whatever its subnet's prefix is. Longer than other modules: each kind of
resource needs a few lines, and all of them the same state.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from support.cloud.arm_templates import Template, TemplateError, TemplateResource
from support.cloud.azure_roles import OWNER, is_within, may, name_action
from support.cloud.azure_sizes import USUAL_QUOTA, Offers

SUBSCRIPTION_ID = "00000000-0000-0000-0000-00000000b0c5"
TENANT_ID = "00000000-0000-0000-0000-0000000007e9"
ENDPOINT_HOST = "management.azure.com"
ADDRESS_QUOTA = "PublicIPAddresses"
_ROOT = f"/subscriptions/{SUBSCRIPTION_ID}"
# The images of cluster_configs/, and the one of Ray's own examples.
_IMAGES = {("microsoft-dsvm", "ubuntu-hpc", "2404"), ("microsoft-dsvm", "ubuntu-2204", "2204-gen2")}
_IMAGE_VERSION = "24.04.2026010101"
_MAX_NAME_LENGTH = 64
_PRIVATE_ADDRESSES, _PUBLIC_ADDRESSES = "172.31.40.0", "54.214.40.0"
_PERMISSIONS = {"value": [{"actions": ["*"], "notActions": []}]}


class ArmError(Exception):
    """A refusal in Azure's words."""

    def __init__(self, status: int, code: str, message: str, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details

    def describe(self) -> dict[str, Any]:
        """As bodies of answers have it, within ``error``."""
        return {"code": self.code, "message": self.message, **({"details": self.details} if self.details else {})}


@dataclass(frozen=True)
class Call:
    """A request; ``principal`` is who makes it, ``OWNER`` or the principal id of a managed identity."""

    method: str
    target: str
    body: Mapping[str, Any] = field(default_factory=dict)
    principal: str = OWNER

    @property
    def path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.target).path)

    @property
    def filter(self) -> str:
        """What a list is restricted to, in OData's language."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.target).query)
        return next((values[0] for name, values in query.items() if name.lower() == "$filter"), "")

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the deployment that it asks for."""
        given = self.body.get("properties", {}).get("parameters", {})
        return {name: each.get("value") for name, each in given.items()}


@dataclass(frozen=True)
class Answer:
    """What a call gets."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One type of resource.

    Args:
        in_use_code: of the refusal to delete one that another resource needs.
        nested: the resources that are part of one, as its properties call them.
        api_version: the newest one.
    """

    type: str
    in_use_code: str = ""
    nested: str = ""
    api_version: str = "2024-10-01"

    @property
    def is_listed(self) -> bool:
        """Whether lists of everything in a group have it; they leave out what only extends other resources."""
        return not self.type.startswith("Microsoft.Authorization")


_ALL_KINDS = (
    Kind("Microsoft.Compute/virtualMachines"),
    Kind("Microsoft.Compute/disks", "OperationNotAllowed"),
    Kind("Microsoft.Network/networkInterfaces", "NicInUse"),
    Kind("Microsoft.Network/publicIPAddresses", "PublicIPAddressCannotBeDeleted"),
    Kind("Microsoft.Network/networkSecurityGroups", "InUseNetworkSecurityGroupCannotBeDeleted", "securityRules"),
    Kind("Microsoft.Network/virtualNetworks", "InUseSubnetCannotBeDeleted", "subnets"),
    Kind("Microsoft.ManagedIdentity/userAssignedIdentities", api_version="2024-11-30"),
    Kind("Microsoft.Authorization/roleAssignments", api_version="2022-04-01"),
    Kind("Microsoft.Authorization/roleDefinitions", api_version="2022-04-01"),
)
KINDS = {kind.type.lower(): kind for kind in _ALL_KINDS}
VM, DISK, NIC, ADDRESS, SECURITY_GROUP, NETWORK, IDENTITY, ASSIGNMENT, DEFINITION = _ALL_KINDS


class ResourceManager:
    """One subscription with one region's capacity. Call from one thread at a time.

    Args:
        refuse_vm: asked for each VM of a deployment, once it has its network interface, with its id and the
            deployment's parameters; what it returns is why the VM does not come.
    """

    def __init__(
        self, region: str, refuse_vm: Callable[[str, Mapping[str, Any]], ArmError | None] = lambda *_: None
    ) -> None:
        self.offers = Offers(region)
        self._refuse_vm = refuse_vm
        self._groups: dict[str, dict[str, Any]] = {}
        self._resources: dict[str, dict[str, Any]] = {}
        self._deployments: dict[str, dict[str, Any]] = {}
        self._failed_operations: dict[str, dict[str, Any]] = {}
        self._power: dict[str, str] = {}
        self._num_addresses = {_PRIVATE_ADDRESSES: 9, _PUBLIC_ADDRESSES: 9}

    def answer(self, call: Call) -> Answer:
        """Do what is asked for, or say why not."""
        try:
            return self._route(call)
        except ArmError as err:
            return Answer(err.status, {"error": err.describe()})

    # For the machines of the box, and for tests that look at what is there.

    def list_resources(self) -> list[dict[str, Any]]:
        """Everything that exists, of any kind, as it is shown."""
        return [*self._groups.values(), *map(self._show, self._resources.values())]

    def list_vms(self) -> list[dict[str, Any]]:
        """Every VM with what a machine needs to stand for it."""
        return [self._describe_vm(vm) for vm in self._of_kind(VM)]

    def evict(self, name: str) -> None:
        """Take a spot VM away, as its eviction policy says; its network interface and addresses stay."""
        vm = next(vm for vm in self._of_kind(VM) if vm["name"] == name)
        if vm["properties"].get("evictionPolicy") == "Deallocate":
            self._power[vm["id"].lower()] = "deallocated"
            return
        disk_id = vm["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"]
        self._delete_vm(vm)
        self._resources.pop(disk_id.lower(), None)

    # Where a call goes.

    def _route(self, call: Call) -> Answer:
        parts = call.path.strip("/").split("/")
        if parts[0].lower() != "subscriptions":
            raise _not_found("InvalidResourceType", f"The resource '{call.path}' could not be found.")
        if len(parts) == 1:
            return Answer(200, {"value": [self._describe_subscription()]})
        if parts[1].lower() != SUBSCRIPTION_ID:
            raise _not_found("SubscriptionNotFound", f"The subscription '{parts[1]}' could not be found.")
        scope, rest = _ROOT, parts[2:]
        if not rest:
            self._authorize(call, "Microsoft.Resources/subscriptions/read", scope)
            return Answer(200, self._describe_subscription())
        if rest[0].lower() == "resourcegroups":
            if len(rest) == 1:
                found = [group for group in self._groups.values() if self._may(call, "*/read", group["id"])]
                return Answer(200, {"value": found})
            if len(rest) == 2:
                return self._answer_group(call, rest[1])
            scope, rest = self._find_group(rest[1])["id"], rest[2:]
        if len(rest) == 1 and rest[0].lower() == "resources":
            self._authorize(call, "Microsoft.Resources/subscriptions/resourceGroups/resources/read", scope)
            return Answer(200, {"value": list(self._list_generic(scope, call.filter))})
        # What extends a resource has that resource's id before its own provider.
        provider = max((index for index, part in enumerate(rest) if part.lower() == "providers"), default=None)
        if provider is None:
            raise _not_found("InvalidResourceType", f"The resource '{call.path}' could not be found.")
        scope = "/".join((scope, *rest[:provider]))
        return self._answer_provider(call, scope, rest[provider + 1 :])

    def _answer_provider(self, call: Call, scope: str, rest: list[str]) -> Answer:
        if len(rest) == 1:
            return Answer(200, _describe_provider(rest[0]))
        named = "/".join(rest[:2]).lower()
        match named:
            case "microsoft.compute/skus":
                self._authorize(call, "Microsoft.Compute/skus/read", scope)
                location = re.search(r"location eq '([^']*)'", call.filter)
                return Answer(200, {"value": list(self.offers.list_skus(location[1] if location else None))})
            case "microsoft.compute/locations" | "microsoft.network/locations":
                self._authorize(call, f"{'/'.join(rest[:2])}/{rest[-1]}/read", scope)
                return self._answer_location(rest)
            case "microsoft.resources/deployments":
                return self._answer_deployment(call, scope, rest[2:])
            case "microsoft.authorization/permissions":
                return Answer(200, _PERMISSIONS)
        kind = KINDS.get(named)
        if kind is None:
            raise _not_found(
                "InvalidResourceType", f"The resource type could not be found in the namespace '{rest[0]}'."
            )
        if len(rest) == 2:
            self._authorize(call, name_action("GET", kind.type), scope)
            return Answer(200, {"value": [self._show(each) for each in self._list_kind(kind, scope, call.filter)]})
        resource_id = f"{scope}/providers/{kind.type}/{rest[2]}"
        if len(rest) == 3:
            self._authorize(call, name_action(call.method, kind.type), resource_id)
            return self._answer_resource(call, kind, resource_id)
        if kind.nested.lower() == rest[3].lower():
            self._authorize(call, name_action(call.method, f"{kind.type}/{kind.nested}"), resource_id)
            return self._answer_nested(call, kind, self._find(resource_id), rest[4:])
        if kind == VM:
            self._authorize(call, name_action(call.method, kind.type, rest[3]), resource_id)
            return self._operate_vm(self._find(resource_id), rest[3].lower())
        raise _not_found("InvalidResourceType", f"The resource '{call.path}' could not be found.")

    def _authorize(self, call: Call, action: str, target_id: str) -> None:
        if not self._may(call, action, target_id):
            raise ArmError(
                403,
                "AuthorizationFailed",
                f"The client '{call.principal}' with object id '{call.principal}' does not have authorization to "
                f"perform action '{action}' over scope '{target_id}' or the scope is invalid. If access was recently "
                "granted, please refresh your credentials.",
            )

    def _may(self, call: Call, action: str, target_id: str) -> bool:
        definitions = {each["id"].lower(): each for each in self._of_kind(DEFINITION)}
        return may(call.principal, action, target_id, self._of_kind(ASSIGNMENT), definitions)

    # Groups and lists.

    def _answer_group(self, call: Call, name: str) -> Answer:
        group_id = f"{_ROOT}/resourceGroups/{name}"
        self._authorize(call, name_action(call.method, "Microsoft.Resources/subscriptions/resourceGroups"), group_id)
        if call.method == "PUT":
            known = self._groups.get(name.lower())
            if known is not None and known["location"] != call.body["location"]:
                raise ArmError(
                    409,
                    "InvalidResourceGroupLocation",
                    f"Invalid resource group location '{call.body['location']}'. The Resource group already exists in "
                    f"location '{known['location']}'.",
                )
            self._groups[name.lower()] = {
                "id": group_id,
                "name": name,
                "type": "Microsoft.Resources/resourceGroups",
                "location": call.body["location"],
                "tags": dict(call.body.get("tags", {})),
                "properties": {"provisioningState": "Succeeded"},
            }
            return Answer(201 if known is None else 200, self._groups[name.lower()])
        group = self._find_group(name)
        if call.method == "HEAD":
            return Answer(204)
        if call.method == "DELETE":
            for resource_id in [each for each in self._resources if is_within(each, group["id"])]:
                del self._resources[resource_id]
                self._power.pop(resource_id, None)
            self._deployments = {
                key: each for key, each in self._deployments.items() if not is_within(key, group["id"])
            }
            del self._groups[name.lower()]
            return Answer(200)
        if call.method == "PATCH":
            group["tags"] = dict(call.body.get("tags", {}))
        return Answer(200, group)

    def _find_group(self, name: str) -> dict[str, Any]:
        if name.lower() not in self._groups:
            raise _not_found("ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        return self._groups[name.lower()]

    def _list_generic(self, scope: str, condition: str) -> Iterator[dict[str, Any]]:
        """Without properties, and only what matches the filter, which is made of these three forms."""
        wanted_type = re.search(r"resourceType eq '([^']*)'", condition, re.IGNORECASE)
        part = re.search(r"substringof\('([^']*)', *name\)", condition, re.IGNORECASE)
        tag = re.search(r"tagName eq '([^']*)'(?: and tagValue eq '([^']*)')?", condition, re.IGNORECASE)
        for resource in self._resources.values():
            tags = resource.get("tags", {})
            if (
                is_within(resource["id"], scope)
                and KINDS[resource["type"].lower()].is_listed
                and (wanted_type is None or resource["type"].lower() == wanted_type[1].lower())
                and (part is None or part[1].lower() in resource["name"].lower())
                and (tag is None or (tag[1] in tags and tag[2] in (None, tags[tag[1]])))
            ):
                yield {key: value for key, value in resource.items() if key != "properties"}

    def _list_kind(self, kind: Kind, scope: str, condition: str) -> list[dict[str, Any]]:
        if kind != ASSIGNMENT:
            return [each for each in self._of_kind(kind) if is_within(each["id"], scope)]
        # Those that count at a scope, and those below it.
        principal = re.search(r"principalId eq '([^']*)'", condition, re.IGNORECASE)
        return [
            each
            for each in self._of_kind(kind)
            if (is_within(each["id"], scope) or is_within(scope, each["properties"]["scope"]))
            and (principal is None or each["properties"]["principalId"] == principal[1])
        ]

    def _of_kind(self, kind: Kind) -> list[dict[str, Any]]:
        return [each for each in self._resources.values() if each["type"] == kind.type]

    # One resource.

    def _answer_resource(self, call: Call, kind: Kind, resource_id: str) -> Answer:
        match call.method:
            case "PUT":
                is_new = resource_id.lower() not in self._resources
                self._put(call, kind, resource_id, call.body)
                return Answer(201 if is_new else 200, self._show(self._find(resource_id)))
            case "DELETE":
                if resource_id.lower() not in self._resources:
                    return Answer(204)
                self._delete(kind, self._find(resource_id))
                return Answer(200)
            case "PATCH":
                self._find(resource_id)["tags"] = dict(call.body.get("tags") or {})
            case "HEAD":
                self._find(resource_id)
                return Answer(204)
        return Answer(200, self._show(self._find(resource_id)))

    def _find(self, resource_id: str) -> dict[str, Any]:
        """A resource, or one that is part of another."""
        parent, _, name = resource_id.rpartition("/")
        parent, _, nested = parent.rpartition("/")
        for each in self._resources.get(parent.lower(), {}).get("properties", {}).get(nested, []):
            if each["name"].lower() == name.lower():
                return each
        if resource_id.lower() not in self._resources:
            path = resource_id.partition("/providers/")[2]
            raise _not_found(
                "ResourceNotFound",
                f"The Resource '{path}' under resource group '{_group_name(resource_id)}' was not found. "
                "For more details please go to https://aka.ms/ARMResourceNotFoundFix",
            )
        return self._resources[resource_id.lower()]

    def _put(self, call: Call, kind: Kind, resource_id: str, body: Mapping[str, Any]) -> None:
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
                self._check_reference(call, needed_id, resource_id)
        if kind == VM:
            self._complete_vm(call, resource, known)
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

    def _check_reference(self, call: Call, needed_id: str, resource_id: str) -> None:
        try:
            needed = self._find(needed_id)
        except ArmError as err:
            raise ArmError(
                400,
                "InvalidResourceReference",
                f"Resource {needed_id} referenced by resource {resource_id} was not found. Please make sure that the "
                "referenced resource exists, and that both resources are in the same region.",
            ) from err
        if needed["type"] != DISK.type:
            self._authorize(call, f"{needed['type']}/join/action", needed_id)

    def _delete(self, kind: Kind, resource: dict[str, Any]) -> None:
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

    def _find_users(self, resource_id: str) -> list[str]:
        """The ids of what refers to a resource, or to a part of it."""
        return [
            other["id"]
            for other in self._resources.values()
            if not is_within(other["id"], resource_id)
            # A security group's user may be part of a network.
            and any(is_within(needed, resource_id) for needed in _references(other))
        ]

    def _show(self, resource: dict[str, Any]) -> dict[str, Any]:
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
            for interface in self._of_kind(NIC):
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

    def _answer_nested(self, call: Call, kind: Kind, parent: dict[str, Any], names: list[str]) -> Answer:
        parts: list[dict[str, Any]] = parent["properties"][kind.nested]
        if not names:
            return Answer(200, {"value": parts})
        known = next((part for part in parts if part["name"].lower() == names[0].lower()), None)
        if call.method == "PUT":
            part = {**copy.deepcopy(dict(call.body)), "name": names[0]}
            for needed_id in _references(part):
                if not is_within(needed_id, parent["id"]):
                    self._check_reference(call, needed_id, f"{parent['id']}/{kind.nested}/{names[0]}")
            _complete_nested(part, kind, parent["id"])
            parts[:] = [each for each in parts if each is not known] + [part]
            return Answer(201 if known is None else 200, part)
        if call.method == "DELETE":
            if known is None:
                return Answer(204)
            users = self._find_users(known["id"])
            users = [user for user in users if user != parent["id"]]
            if users:
                raise ArmError(
                    400,
                    kind.in_use_code,
                    f"{kind.nested} {names[0]} is in use by {users[0]} and cannot be deleted. In order to delete it, "
                    "delete all the resources within it.",
                )
            parts.remove(known)
            return Answer(200)
        return Answer(200, self._find(f"{parent['id']}/{kind.nested}/{names[0]}"))

    # What each kind has of its own.

    def _complete_interface(self, resource: dict[str, Any], known: dict[str, Any] | None) -> None:
        before = known["properties"]["ipConfigurations"] if known is not None else []
        for index, configuration in enumerate(resource["properties"]["ipConfigurations"]):
            configuration["id"] = f"{resource['id']}/ipConfigurations/{configuration['name']}"
            old = before[index]["properties"] if index < len(before) else {}
            configuration["properties"]["privateIPAddress"] = old.get("privateIPAddress") or self._take_address(
                _PRIVATE_ADDRESSES
            )
            configuration["properties"]["primary"] = index == 0

    def _complete_address(self, resource: dict[str, Any], known: dict[str, Any] | None) -> None:
        limit = self.offers.limits.get(ADDRESS_QUOTA, USUAL_QUOTA)
        if known is None and len(self._of_kind(ADDRESS)) >= limit:
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

    def _complete_assignment(self, resource: dict[str, Any], known: dict[str, Any] | None) -> None:
        properties = resource["properties"]
        properties["scope"] = resource["id"].partition("/providers/Microsoft.Authorization/")[0]
        identity = [properties["principalId"], properties["roleDefinitionId"].lower(), properties["scope"].lower()]
        for other in self._of_kind(ASSIGNMENT):
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

    def _complete_vm(self, call: Call, vm: dict[str, Any], known: dict[str, Any] | None) -> None:
        for identity_id in vm.get("identity", {}).get("userAssignedIdentities", {}):
            if identity_id.lower() not in self._resources:
                raise ArmError(
                    400, "FailedIdentityOperation", f"Identity operation failed: '{identity_id}' was not found."
                )
            self._authorize(call, f"{IDENTITY.type}/assign/action", identity_id)
        properties = vm["properties"]
        properties.get("osProfile", {}).pop("adminPassword", None)
        if known is not None:
            properties["vmId"] = known["properties"]["vmId"]
            properties["storageProfile"] = known["properties"]["storageProfile"]
            return
        self._check_vms([vm])
        properties["vmId"] = str(uuid.uuid4())
        disk = properties["storageProfile"].setdefault("osDisk", {})
        disk.setdefault("name", f"{vm['name']}_OsDisk_1_{uuid.uuid4().hex}")
        disk_id = f"{vm['id'].partition('/providers/')[0]}/providers/{DISK.type}/{disk['name']}"
        # Its tags are the owner's to set: nothing here finds a disk by its VM's.
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

    def _check_vms(self, vms: list[dict[str, Any]]) -> None:
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
            if "id" not in image and tuple(image.get(key) for key in ("publisher", "offer", "sku")) not in _IMAGES:
                raise ArmError(
                    404,
                    "PlatformImageNotFound",
                    f"The platform image '{':'.join(image.values())}' is not available. Verify that all fields in the "
                    "storage profile are correct.",
                )
        exceeded = self.offers.find_exceeded([_size_of(vm) for vm in vms], self._used_sizes())
        if exceeded:
            raise ArmError(409, "QuotaExceeded", exceeded)

    def _used_sizes(self) -> list[tuple[str, bool]]:
        return [_size_of(vm) for vm in self._of_kind(VM) if self._power[vm["id"].lower()] == "running"]

    def _delete_vm(self, vm: dict[str, Any]) -> None:
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

    def _operate_vm(self, vm: dict[str, Any], operation: str) -> Answer:
        key = vm["id"].lower()
        match operation:
            case "instanceview":
                statuses = ("ProvisioningState/succeeded", f"PowerState/{self._power[key]}")
                return Answer(200, {"statuses": [{"code": code, "level": "Info"} for code in statuses]})
            case "deallocate":
                self._power[key] = "deallocated"
            case "poweroff":
                self._power[key] = "stopped"
            case "start" | "restart":
                self._power[key] = "running"
            case _:
                raise _not_found("InvalidResourceType", f"There is no operation '{operation}' of a VM.")
        return Answer(200)

    def _describe_vm(self, vm: dict[str, Any]) -> dict[str, Any]:
        properties = vm["properties"]
        interface = self._find(properties["networkProfile"]["networkInterfaces"][0]["id"])
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
            "public_address": self._find(public["id"])["properties"]["ipAddress"] if public else None,
            "is_spot": properties.get("priority") == "Spot",
            "zones": vm.get("zones", []),
            "tags": vm.get("tags", {}),
            "public_key": os_profile["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"],
            "principals": [each["properties"]["principalId"] for each in identities if each is not None],
        }

    # Deployments.

    def _answer_deployment(self, call: Call, scope: str, names: list[str]) -> Answer:
        kind = "Microsoft.Resources/deployments"
        self._authorize(call, name_action(call.method, kind), scope)
        deployment_id = "/".join((scope, "providers", kind, *names[:1]))
        if names[1:2] == ["operationStatuses"]:
            return Answer(200, self._failed_operations[names[2]])
        if call.method == "PUT":
            return self._deploy(call, scope, deployment_id)
        if not names:
            return Answer(200, {"value": [each for key, each in self._deployments.items() if is_within(key, scope)]})
        if deployment_id.lower() not in self._deployments:
            raise _not_found("DeploymentNotFound", f"Deployment '{names[0]}' could not be found.")
        if call.method == "DELETE":
            del self._deployments[deployment_id.lower()]
            return Answer(200)
        return Answer(200, self._deployments[deployment_id.lower()])

    def _deploy(self, call: Call, scope: str, deployment_id: str) -> Answer:
        group = self._find_group(_group_name(scope))
        try:
            template = Template(
                call.body["properties"]["template"],
                call.parameters,
                group["id"],
                group["location"],
                lambda needed_id: self._find(needed_id)["properties"],
            )
            resources = template.resources()
        except TemplateError as err:
            message = f"Deployment template validation failed: '{err}'."
            raise ArmError(400, "InvalidTemplate", message) from err
        self._check_deployment(call, resources)
        faults = self._make(call, resources)
        properties: dict[str, Any] = {"provisioningState": "Failed" if faults else "Succeeded"}
        deployment = {"id": deployment_id, "name": deployment_id.split("/")[-1], "properties": properties}
        self._deployments[deployment_id.lower()] = deployment
        if not faults:
            properties["outputs"] = template.outputs()
            return Answer(201, deployment)
        properties["error"] = ArmError(
            409,
            "DeploymentFailed",
            "At least one resource deployment operation failed. Please list deployment operations for details. Please "
            "see https://aka.ms/arm-deployment-operations for usage details.",
            [fault.describe() for fault in faults],
        ).describe()
        operation = str(len(self._failed_operations))
        self._failed_operations[operation] = {"status": "Failed", "error": properties["error"]}
        path = f"{deployment_id}/operationStatuses/{operation}"
        accepted = {**deployment, "properties": {"provisioningState": "Accepted"}}
        poll = {"Azure-AsyncOperation": f"https://{ENDPOINT_HOST}{path}?api-version=2024-03-01", "Retry-After": "1"}
        return Answer(201, accepted, poll)

    def _check_deployment(self, call: Call, resources: list[TemplateResource]) -> None:
        """What Azure looks at before it makes anything."""
        vms = []
        for resource in resources:
            kind = KINDS[resource.type.lower()]
            self._authorize(call, name_action("PUT", kind.type), resource.id)
            if kind == VM and resource.id.lower() not in self._resources:
                vms.append({"id": resource.id, "name": resource.name, **resource.evaluate()})
        try:
            self._check_vms(vms)
        except ArmError as err:
            raise ArmError(
                400,
                "InvalidTemplateDeployment",
                "The template deployment is not valid according to the validation procedure. See inner errors for "
                "details.",
                [err.describe()],
            ) from err

    def _make(self, call: Call, resources: list[TemplateResource]) -> list[ArmError]:
        """Make what a template has, apart from what needs something that failed; what was made before stays."""
        failed: list[TemplateResource] = []
        faults = []
        for resource in resources:
            if any(other.is_needed_by(resource) for other in failed):
                failed.append(resource)
                continue
            kind = KINDS[resource.type.lower()]
            resource_id = f"{resource.id.partition('/providers/')[0]}/providers/{kind.type}/{resource.name}"
            try:
                fault = self._refuse_vm(resource_id, call.parameters) if kind == VM else None
                if fault is not None:
                    raise fault
                self._put(call, kind, resource_id, resource.evaluate())
            except ArmError as err:
                failed.append(resource)
                faults.append(err)
        return faults

    # What the subscription has in its region.

    def _answer_location(self, rest: list[str]) -> Answer:
        match [part.lower() for part in rest[3:]]:
            case ["usages"] if rest[0].lower() == "microsoft.compute":
                return Answer(200, {"value": self.offers.list_usages(self._used_sizes())})
            case ["usages"]:
                usage = {
                    "unit": "Count",
                    "currentValue": len(self._of_kind(ADDRESS)),
                    "limit": self.offers.limits.get(ADDRESS_QUOTA, USUAL_QUOTA),
                    "name": {"value": ADDRESS_QUOTA, "localizedValue": "Public IP Addresses"},
                }
                return Answer(200, {"value": [usage]})
            case ["publishers", publisher, "artifacttypes", "vmimage", "offers", offer, "skus", sku, "versions"]:
                is_there = (publisher, offer, sku) in _IMAGES
                return Answer(200, [{"name": _IMAGE_VERSION, "location": rest[2]}] if is_there else [])
        raise _not_found("InvalidResourceType", f"The resource '{'/'.join(rest)}' could not be found.")

    def _describe_subscription(self) -> dict[str, Any]:
        return {
            "id": _ROOT,
            "subscriptionId": SUBSCRIPTION_ID,
            "tenantId": TENANT_ID,
            "displayName": "Box",
            "state": "Enabled",
        }


def _not_found(code: str, message: str) -> ArmError:
    return ArmError(404, code, message)


def _group_name(resource_id: str) -> str:
    parts = resource_id.split("/")
    return parts[4] if len(parts) > 4 else ""


def _size_of(vm: Mapping[str, Any]) -> tuple[str, bool]:
    return vm["properties"]["hardwareProfile"]["vmSize"], vm["properties"].get("priority") == "Spot"


def _describe_provider(namespace: str) -> dict[str, Any]:
    types = [
        {"resourceType": kind.type.partition("/")[2], "apiVersions": [kind.api_version], "locations": []}
        for kind in _ALL_KINDS
        if kind.type.lower().startswith(f"{namespace.lower()}/")
    ]
    if not types:
        raise _not_found("InvalidResourceNamespace", f"The resource namespace '{namespace}' is invalid.")
    return {"namespace": namespace, "registrationState": "Registered", "resourceTypes": types}


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
