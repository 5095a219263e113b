"""Azure Resource Manager as pure state: what clusters and Ray's launcher ask of it, answered as Azure does.

manager = ResourceManager("eastus")
manager.answer(Call("PUT", "/subscriptions/.../resourceGroups/mine?api-version=2024-03-01", {"location": "eastus"}))

Operations are done when they are answered; only a deployment that fails is heard of later, as on the real cloud.

Long because it is the one list of all that can be asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from support.cloud.arm_messages import (
    ADDRESS,
    ALL_KINDS,
    ASSIGNMENT,
    DEFINITION,
    ENDPOINT_HOST,
    KINDS,
    SUBSCRIPTION_ID,
    TENANT_ID,
    VM,
    Answer,
    ArmError,
    Call,
    Kind,
    not_found,
)
from support.cloud.arm_templates import Template, TemplateError, TemplateResource
from support.cloud.azure_resources import ADDRESS_QUOTA, IMAGES, Resources, group_name
from support.cloud.azure_roles import is_within, may, name_action
from support.cloud.azure_sizes import USUAL_QUOTA

_ROOT = f"/subscriptions/{SUBSCRIPTION_ID}"
_IMAGE_VERSION = "24.04.2026010101"
_PERMISSIONS = {"value": [{"actions": ["*"], "notActions": []}]}
_POWER_AFTER = {"deallocate": "deallocated", "poweroff": "stopped", "start": "running", "restart": "running"}


class ResourceManager:
    """One subscription with one region's capacity. Call from one thread at a time.

    Args:
        refuse_vm: asked for each VM of a deployment, once it has its network interface, with its id and the
            deployment's parameters; what it returns is why the VM does not come.
    """

    def __init__(
        self, region: str, refuse_vm: Callable[[str, Mapping[str, Any]], ArmError | None] = lambda *_: None
    ) -> None:
        self.resources = Resources(region)
        self._refuse_vm = refuse_vm
        self._groups: dict[str, dict[str, Any]] = {}
        self._deployments: dict[str, dict[str, Any]] = {}
        self._failed_operations: dict[str, dict[str, Any]] = {}

    def answer(self, call: Call) -> Answer:
        """Do what is asked for, or say why not."""
        try:
            return self._route(call)
        except ArmError as err:
            return Answer(err.status, {"error": err.describe()})

    # For the machines of the box, and for tests that look at what is there.

    def list_resources(self) -> list[dict[str, Any]]:
        """Everything that exists, of any kind, as it is shown."""
        return [*self._groups.values(), *map(self.resources.show, self.resources)]

    # Where a call goes.

    def _route(self, call: Call) -> Answer:
        parts = call.path.strip("/").split("/")
        if parts[0].lower() != "subscriptions":
            raise not_found("InvalidResourceType", f"The resource '{call.path}' could not be found.")
        if len(parts) == 1:
            return Answer(200, {"value": [self._describe_subscription()]})
        if parts[1].lower() != SUBSCRIPTION_ID:
            raise not_found("SubscriptionNotFound", f"The subscription '{parts[1]}' could not be found.")
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
            raise not_found("InvalidResourceType", f"The resource '{call.path}' could not be found.")
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
                return Answer(200, {"value": list(self.resources.offers.list_skus(location[1] if location else None))})
            case "microsoft.compute/locations" | "microsoft.network/locations":
                self._authorize(call, f"{'/'.join(rest[:2])}/{rest[-1]}/read", scope)
                return self._answer_location(rest)
            case "microsoft.resources/deployments":
                return self._answer_deployment(call, scope, rest[2:])
            case "microsoft.authorization/permissions":
                return Answer(200, _PERMISSIONS)
        kind = KINDS.get(named)
        if kind is None:
            raise not_found(
                "InvalidResourceType", f"The resource type could not be found in the namespace '{rest[0]}'."
            )
        if len(rest) == 2:
            self._authorize(call, name_action("GET", kind.type), scope)
            return Answer(
                200, {"value": [self.resources.show(each) for each in self._list_kind(kind, scope, call.filter)]}
            )
        resource_id = f"{scope}/providers/{kind.type}/{rest[2]}"
        if len(rest) == 3:
            self._authorize(call, name_action(call.method, kind.type), resource_id)
            return self._answer_resource(call, kind, resource_id)
        if kind.nested.lower() == rest[3].lower():
            self._authorize(call, name_action(call.method, f"{kind.type}/{kind.nested}"), resource_id)
            return self._answer_nested(call, kind, self.resources.find(resource_id), rest[4:])
        if kind == VM:
            self._authorize(call, name_action(call.method, kind.type, rest[3]), resource_id)
            return self._operate_vm(self.resources.find(resource_id), rest[3].lower())
        raise not_found("InvalidResourceType", f"The resource '{call.path}' could not be found.")

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
        definitions = {each["id"].lower(): each for each in self.resources.of_kind(DEFINITION)}
        return may(call.principal, action, target_id, self.resources.of_kind(ASSIGNMENT), definitions)

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
            self.resources.delete_all(group["id"])
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
            raise not_found("ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        return self._groups[name.lower()]

    def _list_generic(self, scope: str, condition: str) -> Iterator[dict[str, Any]]:
        """Without properties, and only what matches the filter, which is made of these three forms."""
        wanted_type = re.search(r"resourceType eq '([^']*)'", condition, re.IGNORECASE)
        part = re.search(r"substringof\('([^']*)', *name\)", condition, re.IGNORECASE)
        tag = re.search(r"tagName eq '([^']*)'(?: and tagValue eq '([^']*)')?", condition, re.IGNORECASE)
        for resource in self.resources:
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
            return [each for each in self.resources.of_kind(kind) if is_within(each["id"], scope)]
        # Those that count at a scope, and those below it.
        principal = re.search(r"principalId eq '([^']*)'", condition, re.IGNORECASE)
        return [
            each
            for each in self.resources.of_kind(kind)
            if (is_within(each["id"], scope) or is_within(scope, each["properties"]["scope"]))
            and (principal is None or each["properties"]["principalId"] == principal[1])
        ]

    # One resource.

    def _answer_resource(self, call: Call, kind: Kind, resource_id: str) -> Answer:
        match call.method:
            case "PUT":
                is_new = resource_id not in self.resources
                self.resources.put(partial(self._authorize, call), kind, resource_id, call.body)
                return Answer(201 if is_new else 200, self.resources.show(self.resources.find(resource_id)))
            case "DELETE":
                if resource_id not in self.resources:
                    return Answer(204)
                self.resources.delete(kind, self.resources.find(resource_id))
                return Answer(200)
            case "PATCH":
                self.resources.find(resource_id)["tags"] = dict(call.body.get("tags") or {})
            case "HEAD":
                self.resources.find(resource_id)
                return Answer(204)
        return Answer(200, self.resources.show(self.resources.find(resource_id)))

    def _answer_nested(self, call: Call, kind: Kind, parent: dict[str, Any], names: list[str]) -> Answer:
        parts: list[dict[str, Any]] = parent["properties"][kind.nested]
        if not names:
            return Answer(200, {"value": parts})
        is_new = not any(part["name"].lower() == names[0].lower() for part in parts)
        if call.method == "PUT":
            part = self.resources.put_nested(partial(self._authorize, call), kind, parent, names[0], call.body)
            return Answer(201 if is_new else 200, part)
        if call.method == "DELETE":
            if is_new:
                return Answer(204)
            self.resources.delete_nested(kind, parent, names[0])
            return Answer(200)
        return Answer(200, self.resources.find(f"{parent['id']}/{kind.nested}/{names[0]}"))

    # What each kind has of its own.

    def _operate_vm(self, vm: dict[str, Any], operation: str) -> Answer:
        if operation == "instanceview":
            statuses = ("ProvisioningState/succeeded", f"PowerState/{self.resources.power_of(vm)}")
            return Answer(200, {"statuses": [{"code": code, "level": "Info"} for code in statuses]})
        if operation not in _POWER_AFTER:
            raise not_found("InvalidResourceType", f"There is no operation '{operation}' of a VM.")
        self.resources.set_power(vm, _POWER_AFTER[operation])
        return Answer(200)

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
            raise not_found("DeploymentNotFound", f"Deployment '{names[0]}' could not be found.")
        if call.method == "DELETE":
            del self._deployments[deployment_id.lower()]
            return Answer(200)
        return Answer(200, self._deployments[deployment_id.lower()])

    def _deploy(self, call: Call, scope: str, deployment_id: str) -> Answer:
        group = self._find_group(group_name(scope))
        try:
            template = Template(
                call.body["properties"]["template"],
                call.parameters,
                group["id"],
                group["location"],
                lambda needed_id: self.resources.find(needed_id)["properties"],
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
            if kind == VM and resource.id not in self.resources:
                vms.append({"id": resource.id, "name": resource.name, **resource.evaluate()})
        try:
            self.resources.check_vms(vms)
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
                self.resources.put(partial(self._authorize, call), kind, resource_id, resource.evaluate())
            except ArmError as err:
                failed.append(resource)
                faults.append(err)
        return faults

    # What the subscription has in its region.

    def _answer_location(self, rest: list[str]) -> Answer:
        match [part.lower() for part in rest[3:]]:
            case ["usages"] if rest[0].lower() == "microsoft.compute":
                return Answer(200, {"value": self.resources.offers.list_usages(self.resources.used_sizes())})
            case ["usages"]:
                usage = {
                    "unit": "Count",
                    "currentValue": len(self.resources.of_kind(ADDRESS)),
                    "limit": self.resources.offers.limits.get(ADDRESS_QUOTA, USUAL_QUOTA),
                    "name": {"value": ADDRESS_QUOTA, "localizedValue": "Public IP Addresses"},
                }
                return Answer(200, {"value": [usage]})
            case ["publishers", publisher, "artifacttypes", "vmimage", "offers", offer, "skus", sku, "versions"]:
                is_there = (publisher, offer, sku) in IMAGES
                return Answer(200, [{"name": _IMAGE_VERSION, "location": rest[2]}] if is_there else [])
        raise not_found("InvalidResourceType", f"The resource '{'/'.join(rest)}' could not be found.")

    def _describe_subscription(self) -> dict[str, Any]:
        return {
            "id": _ROOT,
            "subscriptionId": SUBSCRIPTION_ID,
            "tenantId": TENANT_ID,
            "displayName": "Box",
            "state": "Enabled",
        }


def _describe_provider(namespace: str) -> dict[str, Any]:
    types = [
        {"resourceType": kind.type.partition("/")[2], "apiVersions": [kind.api_version], "locations": []}
        for kind in ALL_KINDS
        if kind.type.lower().startswith(f"{namespace.lower()}/")
    ]
    if not types:
        raise not_found("InvalidResourceNamespace", f"The resource namespace '{namespace}' is invalid.")
    return {"namespace": namespace, "registrationState": "Registered", "resourceTypes": types}
