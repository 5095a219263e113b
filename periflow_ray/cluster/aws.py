"""What a cluster's YAML says on AWS."""

from __future__ import annotations

from periflow_ray.cluster.spec import ClusterSpec

HEAD_INSTANCE_TYPE = "m6i.large"
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


def render_node_config(instance_type: str, architecture: str, disk_gib: int, is_spot: bool) -> str:
    """What EC2 is asked for one node."""
    config = _NODE_CONFIG.format(
        instance_type=instance_type, image=IMAGE.format(architecture=architecture), disk_gib=disk_gib
    )
    return config + (_SPOT if is_spot else "")
