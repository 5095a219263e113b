"""The node provider of a cluster on Azure: Ray's own, apart from how VMs are launched.

It runs where ``cluster up`` does, for the head, and on the head, for the workers. The cluster's resource group has all
that its VMs need; each VM gets the identity of its kind, and takes its disk, card and address with it when it goes.
"""

from __future__ import annotations

import logging
import threading
import uuid
from typing import Any

from periflow_ray.cluster.config.spec import CLUSTER_TAG
from periflow_ray.runtime.ray_private import (
    AzureNodeProvider,
    NodeLaunchException,
    read_azure_vm_template,
    read_node_start_wait_s,
)

# Of Ray's launcher.
_NODE_NAME_TAG = "ray-node-name"
# Of Azure's 64, with room for the number of a VM.
_MAX_NAME_CHARS = 60
_SUFFIX_CHARS = 14
_DELETE_TIMEOUT_S = 60
_logger = logging.getLogger(__name__)


class AzureNodes(AzureNodeProvider):  # type: ignore[misc]
    """See the module."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        # Of every provider that is not Ray's own it says so twice, each time that it reads its configuration.
        logging.getLogger("ray.autoscaler._private.util").addFilter(_is_news)
        self._launching_lock = threading.Lock()
        self._launching: set[str] = set()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to be made: ``periflow_ray.cluster.config.azure.complete`` was there before."""
        return cluster_config

    def cleanup_cluster_resources(self) -> None:
        """Leave it to ``cluster down``, which deletes the whole group."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        tags = {**tags, CLUSTER_TAG: self.cluster_name}
        short_name = tags.get(_NODE_NAME_TAG, "node")[: _MAX_NAME_CHARS - _SUFFIX_CHARS]
        name = f"{short_name}-{self.provider_config['unique_id'][:4]}-{uuid.uuid4().hex[:8]}"
        given = {
            **node_config["azure_arm_parameters"],
            "vmName": name,
            "vmTags": tags,
            "vmCount": count,
            # Without an address of its own a VM reaches nothing outside; the network lets nobody in by it but SSH.
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
        self._sweep()
        with self._launching_lock:
            self._launching.add(name)
        try:
            launch = self.resource_client.deployments.begin_create_or_update(
                resource_group_name=self._group, deployment_name=name, parameters=deployment
            )
            launch.wait(read_node_start_wait_s())
        except Exception as err:
            self._forget(name)
            for index in range(count):
                # It may be there as one that failed.
                self._delete(self.compute_client.virtual_machines.begin_delete, f"{name}{index}")
            self._sweep()
            raise describe_refusal(err) from err
        # What is still on its way then keeps its parts.
        if launch.done():
            self._forget(name)

    @property
    def _group(self) -> str:
        return str(self.provider_config["resource_group"])

    def _forget(self, name: str) -> None:
        with self._launching_lock:
            self._launching.discard(name)

    def _sweep(self) -> None:
        """Delete cards and addresses without a VM, which cost and count as if they had one.

        They are made before the VM, and stay when that does not come. Azure keeps a card for it for some minutes; the
        sweep of the next launch finds it then.
        """
        network = self.network_client
        for card in list(network.network_interfaces.list(self._group)):
            if card.virtual_machine is None and not self._is_being_launched(card.name):
                self._delete(network.network_interfaces.begin_delete, card.name)
        for address in list(network.public_ip_addresses.list(self._group)):
            if address.ip_configuration is None and not self._is_being_launched(address.name):
                self._delete(network.public_ip_addresses.begin_delete, address.name)

    def _is_being_launched(self, part_name: str) -> bool:
        with self._launching_lock:
            return any(part_name.startswith(name) for name in self._launching)

    def _delete(self, delete: Any, name: str) -> None:
        try:
            # What is not there is no error of Azure's.
            delete(self._group, name).wait(_DELETE_TIMEOUT_S)
        except Exception as err:  # The SDK's classes have nothing in common; `cluster down` finds what is left.
            _logger.warning("%s of a VM that did not come could not be deleted: %s", name, err)


def describe_refusal(err: Exception) -> NodeLaunchException:
    """The reason inside of what Azure says; around it is only that a deployment failed."""
    inner: Any = getattr(err, "error", None)
    while inner is not None and inner.details:
        inner = inner.details[0]
    code, text = ("", str(err)) if inner is None else (inner.code or "", inner.message or "")
    # It ends in a log of which each line is told by itself.
    return NodeLaunchException(code or type(err).__name__, " ".join(text.split()), None)


def _is_news(record: logging.LogRecord) -> bool:
    return "Dropping the empty legacy field" not in record.getMessage()


def _read_template(tags: dict[str, str]) -> dict[str, Any]:
    """Ray's template of a VM, where all that is made for it goes with it and has its tags."""
    template = read_azure_vm_template()
    goes_too = {"deleteOption": "Delete"}
    for resource in template["resources"]:
        properties = resource["properties"]
        if resource["type"] == "Microsoft.Compute/virtualMachines":
            properties["storageProfile"]["osDisk"] |= goes_too
            for card in properties["networkProfile"]["networkInterfaces"]:
                card["properties"] = goes_too
            continue
        resource["tags"] = {CLUSTER_TAG: tags[CLUSTER_TAG]}
        for configuration in properties.get("ipConfigurations", []):
            address = configuration["properties"].get("publicIpAddress")
            if address is not None:
                address["properties"] = goes_too
    return template
