"""AWS: what a cluster needs in an account, and what of it is there. Instances are Ray's own to launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from periflow_ray.cluster.config.spec import CLUSTER_TAG, ClusterSpec, own_name
from periflow_ray.cluster.providers.aws_api import AwsApi, is_missing, role_name_of, told, unless
from periflow_ray.cluster.providers.aws_checks import AwsChecks
from periflow_ray.cluster.providers.aws_setup import AwsSetup
from periflow_ray.cluster.providers.prices import machine_usd_per_hour
from periflow_ray.cluster.providers.provider import Finding, Machine, Preparation, Resource

_GONE = frozenset({"terminated"})
# Still in the account for some minutes, but at no cost.
_FREE = frozenset({"terminated", "shutting-down"})
# gp3 in most regions, per GiB and hour; an address that is not in use, or in use, per hour.
_DISK_USD = 0.08 / 730
_ADDRESS_USD = 0.005


class AwsProvider:
    """EC2 and IAM of one region; see ``Provider``."""

    def __init__(self, region: str) -> None:
        self._api = AwsApi(region)

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        return AwsChecks(self._api).check(spec, is_new=is_new)

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        AwsSetup(self._api).prepare(preparation, config)

    def list_machines(self, name: str) -> list[Machine]:
        return [self._describe_machine(instance) for instance in self._instances(name)]

    def end_machines(self, name: str) -> None:
        ids = [machine.id for machine in self.list_machines(name) if machine.state not in _FREE]
        if ids:
            with told(f"ending the instances of cluster '{name}'", "ec2:TerminateInstances"):
                self._api.ec2.terminate_instances(InstanceIds=ids)

    def list_resources(self, name: str) -> list[Resource]:
        with told(f"listing what cluster '{name}' has in {self._api.region}"):
            found = [self._describe_instance(machine) for machine in self.list_machines(name)]
            tagged = [{"Name": f"tag:{CLUSTER_TAG}", "Values": [name]}]
            groups = self._api.find_groups(name)
            for volume in self._api.pages("describe_volumes", "Volumes", tagged):
                found.append(Resource("volume", volume["VolumeId"], volume["State"], float(volume["Size"]) * _DISK_USD))
            interfaces = self._api.pages("describe_network_interfaces", "NetworkInterfaces", tagged)
            in_groups = [{"Name": "group-id", "Values": [group["GroupId"] for group in groups]}]
            if groups:
                interfaces += self._api.pages("describe_network_interfaces", "NetworkInterfaces", in_groups)
            for interface_id, status in {each["NetworkInterfaceId"]: each["Status"] for each in interfaces}.items():
                found.append(Resource("network interface", interface_id, status))
            for address in self._api.ec2.describe_addresses(Filters=tagged)["Addresses"]:
                found.append(Resource("address", address["AllocationId"], address["PublicIp"], _ADDRESS_USD))
            found += [Resource("security group", group["GroupId"]) for group in groups]
            keys = self._api.ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": [own_name(name)]}])
            found += [Resource("key pair", key["KeyName"]) for key in keys["KeyPairs"]]
            for kind in ("head", "worker"):
                found += self._find_profile(name, kind)
        return found

    def remove(self, resource: Resource) -> None:
        with told(f"removing {resource.kind} {resource.id}"), unless(is_missing):
            match resource.kind:
                case "instance":
                    self._api.ec2.terminate_instances(InstanceIds=[resource.id])
                case "volume":
                    if resource.state != "deleting":
                        self._api.ec2.delete_volume(VolumeId=resource.id)
                case "network interface":
                    self._api.ec2.delete_network_interface(NetworkInterfaceId=resource.id)
                case "address":
                    self._api.ec2.release_address(AllocationId=resource.id)
                case "security group":
                    self._api.ec2.delete_security_group(GroupId=resource.id)
                case "key pair":
                    self._api.ec2.delete_key_pair(KeyName=resource.id)
                case "instance profile":
                    with unless(is_missing):
                        self._api.iam.remove_role_from_instance_profile(
                            InstanceProfileName=resource.id, RoleName=resource.id
                        )
                    self._api.iam.delete_instance_profile(InstanceProfileName=resource.id)
                case "role":
                    for policy in self._api.iam.list_role_policies(RoleName=resource.id)["PolicyNames"]:
                        self._api.iam.delete_role_policy(RoleName=resource.id, PolicyName=policy)
                    self._api.iam.delete_role(RoleName=resource.id)

    def _instances(self, name: str) -> list[dict[str, Any]]:
        with told(f"listing the instances of cluster '{name}'", "ec2:DescribeInstances"):
            tagged = [{"Name": f"tag:{CLUSTER_TAG}", "Values": [name]}]
            reservations = self._api.pages("describe_instances", "Reservations", tagged)
        instances = [instance for reservation in reservations for instance in reservation["Instances"]]
        return [instance for instance in instances if instance["State"]["Name"] not in _GONE]

    def _describe_machine(self, instance: dict[str, Any]) -> Machine:
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
        return Machine(
            id=instance["InstanceId"],
            node_type=tags.get("ray-user-node-type", ""),
            instance_type=instance["InstanceType"],
            is_spot=instance.get("InstanceLifecycle") == "spot",
            state=instance["State"]["Name"],
            setup=tags.get("ray-node-status", ""),
            zone=instance.get("Placement", {}).get("AvailabilityZone", ""),
            address=instance.get("PrivateIpAddress"),
            public_address=instance.get("PublicIpAddress"),
            launched_unix_s=instance["LaunchTime"].timestamp(),
            reason=instance.get("StateReason", {}).get("Message", ""),
        )

    def _describe_instance(self, machine: Machine) -> Resource:
        usd = 0.0 if machine.state in _FREE else machine_usd_per_hour(machine)
        return Resource("instance", machine.id, machine.state, usd)

    def _find_profile(self, name: str, kind: str) -> Iterator[Resource]:
        role_name = role_name_of(name, kind)
        with unless(is_missing):
            self._api.iam.get_instance_profile(InstanceProfileName=role_name)
            yield Resource("instance profile", role_name)
        with unless(is_missing):
            self._api.iam.get_role(RoleName=role_name)
            yield Resource("role", role_name)
