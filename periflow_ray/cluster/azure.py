"""What a cluster's YAML says on Azure."""

from __future__ import annotations

import hashlib

from periflow_ray.cluster.spec import ClusterSpec
from periflow_ray.plan.catalogue import VmType

HEAD_VM_SIZE = "Standard_D2s_v5"
HEAD_NUM_VCPUS = 2
HEAD_DISK_GIB = 100
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
auth:
  ssh_user: ubuntu
"""
_HEAD = """\
  head:
    resources: {{CPU: {num_vcpus}, GPU: 0}}
    node_config:
      azure_arm_parameters:
        vmSize: {vm_size}
"""
_NODE_CONFIG = """\
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


def render_head(spec: ClusterSpec) -> str:
    """The head's node type."""
    head = _HEAD.format(num_vcpus=HEAD_NUM_VCPUS, vm_size=HEAD_VM_SIZE)
    return head + _NODE_CONFIG.format(disk_gib=HEAD_DISK_GIB)


def render_node_config(spec: ClusterSpec, vm: VmType) -> str:
    """What Azure is asked for one worker."""
    config = f"      azure_arm_parameters:\n        vmSize: {vm.instance_type}\n"
    return config + _NODE_CONFIG.format(disk_gib=spec.disk_gib) + (_SPOT if vm.is_spot else "")
