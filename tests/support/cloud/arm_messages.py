"""What goes to Azure Resource Manager and comes from it, and the types of the resources that it knows in the box."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.cloud.azure_roles import OWNER

SUBSCRIPTION_ID = "00000000-0000-0000-0000-00000000b0c5"
TENANT_ID = "00000000-0000-0000-0000-0000000007e9"
ENDPOINT_HOST = "management.azure.com"


class ArmError(Exception):
    """A refusal in Azure's words."""

    def __init__(self, status: int, code: str, message: str, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details

    def describe(self) -> dict[str, Any]:
        """As bodies of answers have it, within ``error``."""
        return {"code": self.code, "message": self.message, **({"details": self.details} if self.details else {})}


def not_found(code: str, message: str) -> ArmError:
    """The refusal for something that is not there."""
    return ArmError(404, code, message)


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


ALL_KINDS = (
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
KINDS = {kind.type.lower(): kind for kind in ALL_KINDS}
VM, DISK, NIC, ADDRESS, SECURITY_GROUP, NETWORK, IDENTITY, ASSIGNMENT, DEFINITION = ALL_KINDS
