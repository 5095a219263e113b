"""What a cluster's YAML says on Azure."""

from __future__ import annotations

import hashlib

from periflow_ray.cluster.config.spec import ClusterSpec

HEAD_INSTANCE_TYPE = "Standard_D2s_v5"
# In most regions; it is no GPU VM, so the catalogue does not have it.
HEAD_USD_PER_HOUR = 0.096
_PROVIDER = """\
provider:
  type: azure
  location: {spec.region}
  # A resource group of its own: whatever the cluster makes is in it, and goes with it (az group delete).
  resource_group: periflow-ray-{spec.name}
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
        imagePublisher: microsoft-dsvm
        imageOffer: ubuntu-hpc
        imageSku: "2404"
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
    return _NODE_CONFIG.format(instance_type=instance_type, disk_gib=disk_gib) + (_SPOT if is_spot else "")
