"""The node provider of a cluster on Azure: Ray's own, apart from how VMs are launched.

It runs where ``cluster up`` does, for the head, and on the head, for the workers. The cluster's resource group has all
that its VMs need; each VM gets the identity of its kind, and takes its disk, card and address with it when it goes.
"""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from ray.autoscaler._private._azure import node_provider
from ray.autoscaler._private._azure.node_provider import AzureNodeProvider
from ray.autoscaler._private.constants import AUTOSCALER_NODE_START_WAIT_S
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME, TAG_RAY_NODE_NAME

_MAX_NAME_CHARS = 60
_CLEAN_UP_TIMEOUT_S = 300
_logger = logging.getLogger(__name__)


class AzureNodes(AzureNodeProvider):  # type: ignore[misc]
    """See the module."""

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to be made: ``periflow_ray.cluster.config.azure.complete`` was there before."""
        return cluster_config

    def cleanup_cluster_resources(self) -> None:
        """Leave it to ``cluster down``, which deletes the whole group."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        tags = {**tags, TAG_RAY_CLUSTER_NAME: self.cluster_name}
        group: str = self.provider_config["resource_group"]
        name = tags.get(TAG_RAY_NODE_NAME, "node")[: _MAX_NAME_CHARS - 14]
        name = f"{name}-{self.provider_config['unique_id'][:4]}-{uuid.uuid4().hex[:8]}"
        given = {
            **node_config["azure_arm_parameters"],
            "vmName": name,
            "vmTags": tags,
            "vmCount": count,
            "provisionPublicIp": True,
            "nsg": self.provider_config["nsg"],
            "subnet": self.provider_config["subnet"],
            # Azure chooses: a VM that is bound to a zone does not come while another zone has one.
            "zones": [],
        }
        deployment = {
            "properties": {
                "mode": "Incremental",
                "template": _read_template(tags),
                "parameters": {key: {"value": value} for key, value in given.items()},
            }
        }
        deployments = self.resource_client.deployments
        try:
            deployments.begin_create_or_update(
                resource_group_name=group, deployment_name=name, parameters=deployment
            ).result(AUTOSCALER_NODE_START_WAIT_S)
        except Exception:
            # Cards and addresses are made before the VMs, and are paid for without them.
            for index in range(count):
                self._clean_up(group, name, index)
            raise

    def _clean_up(self, group: str, name: str, index: int) -> None:
        network = self.network_client
        for delete, own_name in (
            (self.compute_client.virtual_machines.begin_delete, f"{name}{index}"),
            (network.network_interfaces.begin_delete, f"{name}-nic-public{index}"),
            (network.public_ip_addresses.begin_delete, f"{name}-ip{index}"),
        ):
            try:
                # What is not there is no error of Azure's.
                delete(group, own_name).wait(_CLEAN_UP_TIMEOUT_S)
            except Exception as err:  # The SDK's classes have nothing in common; `cluster down` finds what is left.
                _logger.warning("%s of a VM that did not come could not be deleted: %s", own_name, err)


def _read_template(tags: dict[str, str]) -> dict[str, Any]:
    """Ray's template of a VM, where all that is made for it goes with it and has its tags."""
    text = Path(node_provider.__file__).with_name("azure-vm-template.json").read_text("utf-8")
    template: dict[str, Any] = json.loads(text)
    goes_too = {"deleteOption": "Delete"}
    for resource in template["resources"]:
        properties = resource["properties"]
        if resource["type"] == "Microsoft.Compute/virtualMachines":
            properties["storageProfile"]["osDisk"] |= goes_too
            for card in properties["networkProfile"]["networkInterfaces"]:
                card["properties"] = goes_too
            continue
        resource["tags"] = {TAG_RAY_CLUSTER_NAME: tags[TAG_RAY_CLUSTER_NAME]}
        for configuration in properties.get("ipConfigurations", []):
            address = configuration["properties"].get("publicIpAddress")
            if address is not None:
                address["properties"] = goes_too
    return template
