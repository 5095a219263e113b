"""Who may do what in the box's Azure: role assignments and definitions, weighed as Azure Resource Manager does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

# Who logged in at the user's machine: the subscription's owner.
OWNER = "owner"
_BUILT_IN: dict[str, dict[str, list[str]]] = {
    # Contributor
    "b24988ac-6180-42a0-ab88-20f7382dd24c": {
        "actions": ["*"],
        "notActions": ["Microsoft.Authorization/*/Delete", "Microsoft.Authorization/*/Write"],
    },
    # Reader
    "acdd72a7-3385-48ef-bd42-f606fba81ae7": {"actions": ["*/read"], "notActions": []},
    # Virtual Machine Contributor, as far as clusters need it
    "9980e02c-c2be-4d73-94e8-173b1dc7cf3c": {
        "actions": [
            "Microsoft.Compute/virtualMachines/*",
            "Microsoft.Compute/disks/read",
            "Microsoft.Compute/disks/write",
            "Microsoft.Compute/disks/delete",
            "Microsoft.Compute/locations/*",
            "Microsoft.Network/networkInterfaces/*",
            "Microsoft.Network/networkSecurityGroups/join/action",
            "Microsoft.Network/networkSecurityGroups/read",
            "Microsoft.Network/publicIPAddresses/join/action",
            "Microsoft.Network/publicIPAddresses/read",
            "Microsoft.Network/virtualNetworks/read",
            "Microsoft.Network/virtualNetworks/subnets/join/action",
            "Microsoft.Resources/deployments/*",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        "notActions": [],
    },
    # Network Contributor, as far as clusters need it
    "4d97b98b-1d4f-4787-a291-c67834d212e7": {"actions": ["Microsoft.Network/*"], "notActions": []},
    # Managed Identity Operator
    "f1a07417-d97a-45cb-824c-7a7467783830": {
        "actions": [
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/assign/action",
            "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
        ],
        "notActions": [],
    },
}
_VERBS = {"GET": "read", "HEAD": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}


def name_action(method: str, resource_type: str, operation: str = "") -> str:
    """As roles have it: ``Microsoft.Compute/virtualMachines/start/action``."""
    parts = [resource_type, *([operation] if operation else []), _VERBS.get(method, "action")]
    return "/".join(parts)


def may(
    principal: str,
    action: str,
    target_id: str,
    assignments: Iterable[Mapping[str, Any]],
    definitions: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Whether a role that ``principal`` has at the target, or above it, allows the action.

    Args:
        definitions: those that somebody made, by their ids in small letters.
    """
    if principal == OWNER:
        return True
    for assignment in assignments:
        properties = assignment["properties"]
        if properties["principalId"] == principal and is_within(target_id, properties["scope"]):
            role_id = properties["roleDefinitionId"].lower()
            own = [_BUILT_IN.get(role_id.split("/")[-1], {})]
            if role_id in definitions:
                own = definitions[role_id]["properties"]["permissions"]
            if any(_allows(permission, action) for permission in own):
                return True
    return False


def is_within(resource_id: str, scope: str) -> bool:
    """Whether an id is a scope's own, or of something below it."""
    return f"{resource_id.lower()}/".startswith(f"{scope.lower().rstrip('/')}/")


def _allows(permission: Mapping[str, list[str]], action: str) -> bool:
    def names(patterns: list[str]) -> bool:
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)

    return names(permission.get("actions", [])) and not names(permission.get("notActions", []))
