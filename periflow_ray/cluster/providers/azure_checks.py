"""What is looked at in an Azure subscription before a cluster is made there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from periflow_ray.cluster.config import azure as config_of_azure
from periflow_ray.cluster.config.render import find_instance_types
from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.cluster.providers.azure_api import PERMISSIONS_HINT, AzureApi, told
from periflow_ray.cluster.providers.provider import Finding, ProviderError

_NAMESPACES = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.ManagedIdentity")
_ACTIONS = (
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Resources/deployments/write",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Network/networkSecurityGroups/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/write",
    "Microsoft.Authorization/roleAssignments/write",
)
_SPOT_QUOTA, _ALL_QUOTA = "lowPriorityCores", "cores"
_ADDRESS_QUOTAS = frozenset({"publicipaddresses", "standardskupublicipaddresses"})
_MORE_QUOTA = "Ask for more: https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas"


class AzureChecks:
    """Looks at the subscription, permissions, offers, the image and quotas."""

    def __init__(self, api: AzureApi) -> None:
        self._api = api

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        with told("asking for the subscription"):
            subscription = self._api.call("GET", self._api.root)
        title = f"subscription {subscription['displayName']} ({self._api.subscription_id})"
        if subscription.get("state") not in ("Enabled", "Warned"):
            return [Finding("subscription", "bad", f"{title} is {subscription.get('state')}")]
        sizes = self._find_sizes()
        findings = [Finding("subscription", "good", title), *self._check_registrations(), *self._check_permissions()]
        spot_sizes = {vm.instance_type for vm in spec.vms if vm.is_spot}
        for instance_type in dict.fromkeys(find_instance_types(spec).values()):
            findings.append(self._check_offer(instance_type, sizes, is_spot=instance_type in spot_sizes))
        findings.append(self._check_image())
        findings += self._check_quotas(spec, sizes, is_new=is_new)
        return findings

    def _find_sizes(self) -> dict[str, dict[str, Any]]:
        """The region's VM sizes by name."""
        with told("asking which VM sizes the region has"):
            path = f"{self._api.root}/providers/Microsoft.Compute/skus"
            skus = self._api.pages(path, filter=f"location eq '{self._api.region}'")
        return {sku["name"]: sku for sku in skus if sku["resourceType"] == "virtualMachines"}

    def _check_registrations(self) -> Iterator[Finding]:
        with told("asking which services are registered"):
            for namespace in _NAMESPACES:
                found = self._api.call("GET", f"{self._api.root}/providers/{namespace}")
                if found["registrationState"] != "Registered":
                    text = f"{namespace} is {found['registrationState']}: az provider register --namespace {namespace}"
                    yield Finding("services", "bad", text)

    def _check_permissions(self) -> Iterator[Finding]:
        with told("asking for your permissions"):
            path = f"{self._api.root}/providers/Microsoft.Authorization/permissions"
            granted = self._api.pages(path)
        missing = [action for action in _ACTIONS if not any(_allows(each, action) for each in granted)]
        if missing:
            text = f"you may not do {', '.join(missing)}. {PERMISSIONS_HINT}"
            yield Finding("permissions", "bad", text)
        else:
            yield Finding("permissions", "good", "you may make what the cluster needs")

    def _check_offer(self, instance_type: str, sizes: dict[str, dict[str, Any]], *, is_spot: bool) -> Finding:
        sku = sizes.get(instance_type)
        if sku is None:
            text = f"{instance_type} is not offered in {self._api.region}. Choose another: periflow-ray vm list"
            return Finding("VM size", "bad", text)
        for restriction in sku.get("restrictions", []):
            if restriction["type"] == "Location":
                text = (
                    f"{instance_type} is not available to this subscription in {self._api.region} "
                    f"({restriction.get('reasonCode')}). {_MORE_QUOTA}"
                )
                return Finding("VM size", "bad", text)
        if is_spot and _capability(sku, "LowPriorityCapable") == "False":
            return Finding("VM size", "bad", f"{instance_type} cannot be had as spot; take it without '-spot'")
        zones = sorted({zone for each in sku.get("locationInfo", []) for zone in each.get("zones", [])} - _barred(sku))
        where = f"zones {', '.join(zones)}" if zones else "no zone in particular"
        return Finding("VM size", "good", f"{instance_type} is offered in {self._api.region}, {where}")

    def _check_image(self) -> Finding:
        publisher, offer, sku = config_of_azure.IMAGE
        title = f"{publisher}:{offer}:{sku}"
        path = (
            f"{self._api.root}/providers/Microsoft.Compute/locations/{self._api.region}/publishers/{publisher}"
            f"/artifacttypes/vmimage/offers/{offer}/skus/{sku}/versions"
        )
        try:
            with told("looking the image up"):
                versions = self._api.pages(path, top="1", orderby="name desc")
        except ProviderError as err:
            return Finding("image", "warning", f"could not be looked up: {err}")
        if not versions:
            return Finding("image", "bad", f"there is no image {title} in {self._api.region}")
        return Finding("image", "good", f"{title}, version {versions[0]['name']}")

    def _check_quotas(self, spec: ClusterSpec, sizes: dict[str, dict[str, Any]], *, is_new: bool) -> Iterator[Finding]:
        """What the cluster needs at most of each quota, and what it cannot do without."""
        needs = _count_needs(spec, sizes, is_new=is_new)
        for provider in ("Microsoft.Compute", "Microsoft.Network"):
            try:
                with told("asking for your quota"):
                    path = f"{self._api.root}/providers/{provider}/locations/{self._api.region}/usages"
                    usages = self._api.pages(path)
            except ProviderError as err:
                yield Finding("quota", "warning", f"could not be asked for: {err}")
                continue
            for usage in usages:
                name = str(usage["name"]["value"]).lower()
                if name in needs:
                    yield _compare(usage, *needs[name], is_new=is_new)


def _count_needs(
    spec: ClusterSpec, sizes: dict[str, dict[str, Any]], *, is_new: bool
) -> dict[str, tuple[int, int, str]]:
    """By the quota's name in small letters: the most and the least that is needed, and of what."""
    head = sizes.get(config_of_azure.HEAD_INSTANCE_TYPE, {})
    num_head_vcpus = int(_capability(head, "vCPUs") or 0) if is_new else 0
    most: dict[str, int] = {}
    least: dict[str, int] = {}
    for vm in spec.vms:
        family = str(sizes.get(vm.instance_type, {}).get("family", ""))
        for quota in (_SPOT_QUOTA,) if vm.is_spot else (_ALL_QUOTA, family):
            # The largest one of them: a job asks for VMs of one type.
            name, num_vcpus = quota.lower(), vm.num_vcpus or 0
            most[name] = max(most.get(name, 0), num_vcpus * spec.max_num_nodes)
            least[name] = min(least.get(name, num_vcpus), num_vcpus)
    for quota in (_ALL_QUOTA, str(head.get("family", ""))) if num_head_vcpus else ():
        name = quota.lower()
        most[name] = most.get(name, 0) + num_head_vcpus
        least[name] = least.get(name, 0) + num_head_vcpus
    needs = {name: (most[name], least[name], "vCPUs") for name in most if name}
    num_heads = 1 if is_new else 0
    needs |= dict.fromkeys(_ADDRESS_QUOTAS, (spec.max_num_nodes + num_heads, 1 + num_heads, "addresses"))
    return needs


def _compare(usage: dict[str, Any], most: int, least: int, unit: str, *, is_new: bool) -> Finding:
    free = int(usage["limit"]) - int(usage["currentValue"])
    title = usage["name"].get("localizedValue") or usage["name"]["value"]
    text = f"{title}: {usage['limit']} {unit}, {usage['currentValue']} in use; the cluster needs up to {most}"
    if free >= most:
        return Finding("quota", "good", text)
    # One that is up has its part of what is in use.
    return Finding("quota", "bad" if is_new and free < least else "warning", f"{text}. {_MORE_QUOTA}")


def _capability(sku: dict[str, Any], name: str) -> str:
    return next((str(each["value"]) for each in sku.get("capabilities", []) if each["name"] == name), "")


def _barred(sku: dict[str, Any]) -> set[str]:
    """The zones that this subscription may not use."""
    restrictions = [each for each in sku.get("restrictions", []) if each["type"] == "Zone"]
    return {zone for each in restrictions for zone in each.get("restrictionInfo", {}).get("zones", [])}


def _allows(permission: dict[str, Any], action: str) -> bool:
    def names(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)

    return names(permission.get("actions", [])) and not names(permission.get("notActions", []))
