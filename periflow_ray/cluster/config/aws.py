"""What a cluster's YAML says on AWS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from periflow_ray.cluster.config.spec import ClusterSpec

HEAD_INSTANCE_TYPE = "m6i.large"
# In most regions; it is no GPU VM, so the catalogue does not have it.
HEAD_USD_PER_HOUR = 0.096
# EC2 looks the newest image up by a name that Amazon keeps; an image's own id is withdrawn after a while.
IMAGE = (
    "resolve:ssm:/aws/service/deeplearning/ami/{architecture}/oss-nvidia-driver-gpu-pytorch-2.7-ubuntu-22.04/"
    "latest/ami-id"
)
_PROVIDER = """\
provider:
  type: aws
  region: {spec.region}
  # All zones of the region; to have fewer: availability_zone: {spec.region}a,{spec.region}b
  # Nodes are ended and not stopped: a stopped one costs its disk.
  cache_stopped_nodes: false
  # Anybody can reach port 22, and nobody any other. For your address alone: put the id of a security group that lets it
  # in, and all nodes to each other, into each node_config as SecurityGroupIds: [sg-...].
"""
_NODE_CONFIG = """\
      InstanceType: {instance_type}
      ImageId: {image}
      BlockDeviceMappings:
        - DeviceName: /dev/sda1
          Ebs: {{VolumeSize: {disk_gib}, VolumeType: gp3, DeleteOnTermination: true}}
      # By these all that belongs to the cluster is found again.
      TagSpecifications:
        - {{ResourceType: volume, Tags: [{{Key: ray-cluster-name, Value: {name}}}]}}
        - {{ResourceType: network-interface, Tags: [{{Key: ray-cluster-name, Value: {name}}}]}}
      MetadataOptions: {{HttpTokens: required}}
"""
_SPOT = """\
      InstanceMarketOptions:
        MarketType: spot
        SpotOptions: {SpotInstanceType: one-time, InstanceInterruptionBehavior: terminate}
"""


def render_provider(spec: ClusterSpec) -> str:
    """Where it is and how its nodes are reached."""
    return _PROVIDER.format(spec=spec)


def render_node_config(spec: ClusterSpec, instance_type: str, architecture: str, disk_gib: int, is_spot: bool) -> str:
    """What EC2 is asked for one node."""
    config = _NODE_CONFIG.format(
        name=spec.name, instance_type=instance_type, image=IMAGE.format(architecture=architecture), disk_gib=disk_gib
    )
    return config + (_SPOT if is_spot else "")


@dataclass(frozen=True)
class AwsPieces:
    """What a cluster has in the account, so that Ray makes nothing there but instances.

    Args:
        subnet_ids: by instance type, of zones that offer it; EC2 is asked in their order.
    """

    key_name: str
    security_group_id: str
    head_profile_arn: str
    worker_profile_arn: str
    subnet_ids: Mapping[str, Sequence[str]]


def complete(config: dict[str, Any], key_path: str, pieces: AwsPieces) -> None:
    """Put what a cluster has in the account into its configuration, as Ray's launcher reads it."""
    config["auth"]["ssh_private_key"] = key_path
    for name, node_type in config["available_node_types"].items():
        is_head = name == config["head_node_type"]
        node_config = node_type["node_config"]
        node_config |= {
            "KeyName": pieces.key_name,
            "SecurityGroupIds": [pieces.security_group_id],
            "IamInstanceProfile": {"Arn": pieces.head_profile_arn if is_head else pieces.worker_profile_arn},
            "SubnetIds": list(pieces.subnet_ids[node_config["InstanceType"]]),
            # A machine that shuts itself down costs nothing from then on.
            "InstanceInitiatedShutdownBehavior": "terminate",
        }
