"""What a cluster's YAML says on Azure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from periflow_ray.cluster.config.spec import ClusterSpec

HEAD_INSTANCE_TYPE = "Standard_D2s_v5"
# In most regions; it is no GPU VM, so the catalogue does not have it.
HEAD_USD_PER_HOUR = 0.096
# Publisher, offer and SKU.
IMAGE = ("microsoft-dsvm", "ubuntu-hpc", "2404")
# Ray's own node provider for Azure, with what a cluster of ``cluster up`` has otherwise.
NODE_PROVIDER = "periflow_ray.runtime.head.azure_nodes.AzureNodes"
_PROVIDER = """\
provider:
  type: azure
  location: {spec.region}
  # A resource group of its own: whatever the cluster makes is in it, and goes with it (az group delete).
  resource_group: periflow-ray-{spec.name}
  tags: {{ray-cluster-name: {spec.name}}}
  # Of this cluster alone, which two clusters in one resource group would else share.
  unique_id: "{unique_id}"
  # As `az account show --query id` says it. Without this line Ray asks the package azure-cli-core for it.
  # subscription_id: 00000000-0000-0000-0000-000000000000
  # Nodes are deleted and not deallocated: a deallocated one costs its disk and its address.
  cache_stopped_nodes: false
"""
_NODE_CONFIG = """\
      azure_arm_parameters:
        vmSize: {instance_type}
        imagePublisher: {image[0]}
        imageOffer: {image[1]}
        imageSku: "{image[2]}"
        imageVersion: latest
        osDiskSize: {disk_gib}
"""
_SPOT = """\
        priority: Spot
        evictionPolicy: Delete
        billingProfile: {maxPrice: -1}
"""


def render_provider(spec: ClusterSpec) -> str:
    """Where it is and how its nodes are reached."""
    return _PROVIDER.format(spec=spec, unique_id=hashlib.sha256(spec.name.encode()).hexdigest()[:8])


def render_node_config(spec: ClusterSpec, instance_type: str, architecture: str, disk_gib: int, is_spot: bool) -> str:
    """What Azure is asked for one node; the image is for one architecture, that of all its GPU VMs here."""
    config = _NODE_CONFIG.format(instance_type=instance_type, image=IMAGE, disk_gib=disk_gib)
    return config + (_SPOT if is_spot else "")


@dataclass(frozen=True)
class AzurePieces:
    """What a cluster has in its resource group, so that Ray makes nothing there but VMs; all but the first are ids."""

    subscription_id: str
    security_group_id: str
    subnet_id: str
    head_identity_id: str
    worker_identity_id: str


def complete(config: dict[str, Any], key_path: str, public_key: str, pieces: AzurePieces) -> None:
    """Put what a cluster has in the account into its configuration, as its node provider reads it."""
    config["auth"]["ssh_private_key"] = key_path
    config["provider"] |= {
        # Ray's own would make a network that anybody reaches by SSH, and one identity that may do all for all nodes.
        "type": "external",
        "module": NODE_PROVIDER,
        "subscription_id": pieces.subscription_id,
        "nsg": pieces.security_group_id,
        "subnet": pieces.subnet_id,
    }
    # Ray has defaults for them only with providers of its own.
    config |= {"docker": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False}
    config |= {"rsync_exclude": [], "rsync_filter": []}
    for name, node_type in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        node_type["node_config"]["azure_arm_parameters"] |= {
            "adminUsername": config["auth"]["ssh_user"],
            "publicKey": public_key,
            "msi": pieces.head_identity_id if is_head else pieces.worker_identity_id,
        }
