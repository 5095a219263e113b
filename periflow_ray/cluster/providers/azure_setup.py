"""What a cluster has on Azure before its first VM: a resource group with a network, and two identities."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from periflow_ray.cluster.config import azure as config_of_azure
from periflow_ray.cluster.config.azure import AzurePieces
from periflow_ray.cluster.config.spec import CLUSTER_TAG, own_name
from periflow_ray.cluster.providers.azure_api import PERMISSIONS_HINT, ArmError, AzureApi, told
from periflow_ray.cluster.providers.provider import Preparation, ProviderError

# Built-in roles have the same ids everywhere.
_CONTRIBUTOR = "b24988ac-6180-42a0-ab88-20f7382dd24c"
_STORAGE_BLOB_DATA_CONTRIBUTOR = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
# Private addresses of this network alone; clusters' networks do not see each other.
_NETWORK = "10.42.0.0/16"
# A new identity is known everywhere after some seconds, mostly.
_IDENTITY_TIMEOUT_S = 90.0
_POLL_S = 3.0


class AzureSetup:
    """Makes what is missing; what is there already stays, apart from who may use SSH."""

    def __init__(self, api: AzureApi) -> None:
        self._api = api

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        name, tell = preparation.spec.name, preparation.tell
        self._make_group(name, tell)
        firewall_id = self._make_firewall(name, preparation.ssh_from, tell)
        subnet_id = self._make_network(name, firewall_id, tell)
        head_id, head_principal = self._make_identity(name, "head", tell)
        worker_id, worker_principal = self._make_identity(name, "worker", tell)
        # All of the cluster's own group and nothing outside: the head launches and ends VMs with their disks, cards and
        # addresses, and at the end asks for the end of the group. No smaller role that Azure has can do that, and one
        # of our own would stay behind in the directory. It cannot give roles to anybody.
        self._assign(name, self._api.group_id(name), head_principal, _CONTRIBUTOR)
        self._open_storage(name, preparation.storage_uri, [head_principal, worker_principal], tell)
        config_of_azure.complete(
            config,
            preparation.key_path,
            preparation.public_key,
            AzurePieces(self._api.subscription_id, firewall_id, subnet_id, head_id, worker_id),
        )

    def _make_group(self, name: str, tell: Callable[[str], None]) -> None:
        group_id = self._api.group_id(name)
        with told("making the resource group"):
            group = self._api.find(group_id)
            if group is None:
                tell(f"making resource group {own_name(name)} in {self._api.region}")
                self._api.make(group_id, {"location": self._api.region, "tags": {CLUSTER_TAG: name}})
                return
        if group["properties"]["provisioningState"] == "Deleting":
            raise ProviderError(
                f"resource group {own_name(name)} of an earlier cluster '{name}' is still being deleted. Wait for its "
                f"end: periflow-ray cluster down {name}"
            )
        require_own(group, name)

    def _make_firewall(self, name: str, ssh_from: str, tell: Callable[[str], None]) -> str:
        firewall_id = f"{self._api.group_id(name)}/providers/Microsoft.Network/networkSecurityGroups/{own_name(name)}"
        rule = {
            "priority": 1000,
            "direction": "Inbound",
            "access": "Allow",
            "protocol": "Tcp",
            "sourceAddressPrefix": ssh_from,
            "sourcePortRange": "*",
            "destinationAddressPrefix": "*",
            "destinationPortRange": "22",
        }
        with told("making the network security group"):
            known = self._api.find(firewall_id)
            rules = [] if known is None else known["properties"]["securityRules"]
            if [each["properties"]["sourceAddressPrefix"] for each in rules] != [ssh_from]:
                tell(f"network security group {own_name(name)}: SSH from {ssh_from}, nothing else from outside")
                self._api.make(
                    firewall_id,
                    {
                        "location": self._api.region,
                        "tags": {CLUSTER_TAG: name},
                        "properties": {"securityRules": [{"name": "ssh", "properties": rule}]},
                    },
                )
        return firewall_id

    def _make_network(self, name: str, firewall_id: str, tell: Callable[[str], None]) -> str:
        network_id = f"{self._api.group_id(name)}/providers/Microsoft.Network/virtualNetworks/{own_name(name)}"
        subnet = {"addressPrefix": _NETWORK, "networkSecurityGroup": {"id": firewall_id}}
        with told("making the network"):
            if self._api.find(network_id) is None:
                tell(f"making network {own_name(name)}")
                self._api.make(
                    network_id,
                    {
                        "location": self._api.region,
                        "tags": {CLUSTER_TAG: name},
                        "properties": {
                            "addressSpace": {"addressPrefixes": [_NETWORK]},
                            "subnets": [{"name": "nodes", "properties": subnet}],
                        },
                    },
                )
        return f"{network_id}/subnets/nodes"

    def _make_identity(self, name: str, kind: str, tell: Callable[[str], None]) -> tuple[str, str]:
        """Its id, and the id by which roles name it."""
        own = f"{own_name(name)}-{kind}"
        path = f"{self._api.group_id(name)}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{own}"
        with told("making the nodes' identities"):
            identity = self._api.find(path)
            if identity is None:
                tell(f"making identity {own}")
                identity = self._api.make(path, {"location": self._api.region, "tags": {CLUSTER_TAG: name}})
        return path, str(identity["properties"]["principalId"])

    def _open_storage(self, name: str, storage_uri: str, principal_ids: list[str], tell: Callable[[str], None]) -> None:
        """Let the nodes read and write the storage root's container, if it is one of this subscription's."""
        container, account = parse_container(storage_uri)
        if account is None:
            return
        with told("looking for the storage account"):
            wanted = f"resourceType eq 'Microsoft.Storage/storageAccounts' and name eq '{account}'"
            accounts = self._api.pages(f"{self._api.root}/resources", filter=wanted)
        if not accounts:
            tell(
                f"storage account {account} is not in this subscription: give {own_name(name)}-head and "
                f"{own_name(name)}-worker the role Storage Blob Data Contributor on it, unless the nodes have its keys"
            )
            return
        tell(f"letting the nodes use container {container} of storage account {account}")
        scope = f"{accounts[0]['id']}/blobServices/default/containers/{container}"
        for principal_id in principal_ids:
            self._assign(name, scope, principal_id, _STORAGE_BLOB_DATA_CONTRIBUTOR)

    def _assign(self, name: str, scope: str, principal_id: str, role_id: str) -> None:
        role = f"{self._api.root}/providers/Microsoft.Authorization/roleDefinitions/{role_id}"
        guid = uuid.uuid5(uuid.NAMESPACE_URL, f"{scope.lower()} {principal_id} {role_id}")
        body = {
            "properties": {
                "roleDefinitionId": role,
                "principalId": principal_id,
                "principalType": "ServicePrincipal",
                # By it the roles are found again when the group is gone.
                "description": own_name(name),
            }
        }
        path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{guid}"
        deadline = time.monotonic() + _IDENTITY_TIMEOUT_S
        while True:
            with told(f"giving the nodes their role on {scope} (Owner and User Access Administrator can)"):
                try:
                    self._api.call("PUT", path, body)
                    return
                except ArmError as err:
                    if err.code == "RoleAssignmentExists":
                        return
                    if err.code != "PrincipalNotFound" or time.monotonic() > deadline:
                        raise
            time.sleep(_POLL_S)


def require_own(group: dict[str, Any], name: str) -> None:
    """Keep away from a resource group that somebody made for something else.

    Raises:
        ProviderError: it is not the cluster's.
    """
    if (group.get("tags") or {}).get(CLUSTER_TAG) != name:
        raise ProviderError(
            f"there is a resource group {own_name(name)} that is not of cluster '{name}': it has no tag "
            f"{CLUSTER_TAG}={name}. Choose another --name. If all in it is the cluster's: az group update "
            f"-n {own_name(name)} --set tags.{CLUSTER_TAG}={name}. {PERMISSIONS_HINT}"
        )


def parse_container(storage_uri: str) -> tuple[str, str | None]:
    """The container and the account of ``abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/...``; no account for others."""
    parts = urlsplit(storage_uri)
    if parts.scheme not in ("abfs", "abfss", "az") or "@" not in parts.netloc:
        return "", None
    container, _, host = parts.netloc.partition("@")
    return container, host.split(".")[0]
