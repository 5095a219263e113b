"""What a cluster has in an AWS account before its first instance: a security group, a key pair, two roles."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from periflow_ray.cluster.config import aws as config_of_aws
from periflow_ray.cluster.config.aws import AwsPieces
from periflow_ray.cluster.config.spec import CLUSTER_TAG, ClusterSpec, own_name
from periflow_ray.cluster.providers.aws_api import AwsApi, is_there, role_name_of, told, unless
from periflow_ray.cluster.providers.aws_policies import head_policy, trust_policy, worker_policy
from periflow_ray.cluster.providers.provider import Preparation, ProviderError

# IAM tells EC2 of a new profile within some seconds, mostly.
_PROFILE_TIMEOUT_S = 60.0
_POLL_S = 2.0


class AwsSetup:
    """Makes what is missing; what is there already stays."""

    def __init__(self, api: AwsApi) -> None:
        self._api = api

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        spec, tell = preparation.spec, preparation.tell
        vpc_id = self._api.find_vpc()
        group_id = self._make_security_group(spec.name, vpc_id, preparation.ssh_from, tell)
        key_name = self._import_key(spec.name, preparation.public_key, tell)
        worker_arn = self._make_role(spec.name, "worker", worker_policy(preparation.storage_uri), tell)
        role_arns = [self._role_arn(spec.name, "worker")]
        head = head_policy(spec.name, self._api.region, role_arns, preparation.storage_uri)
        head_arn = self._make_role(spec.name, "head", head, tell)
        subnets = self._find_subnets(spec, vpc_id)
        config_of_aws.complete(
            config, preparation.key_path, AwsPieces(key_name, group_id, head_arn, worker_arn, subnets)
        )
        self._wait_for_profiles([head_arn, worker_arn], tell)

    def _find_subnets(self, spec: ClusterSpec, vpc_id: str) -> dict[str, list[str]]:
        with told("looking for the network's subnets", "ec2:DescribeSubnets"):
            subnets = self._api.pages("describe_subnets", "Subnets", [{"Name": "vpc-id", "Values": [vpc_id]}])
        usable = [each for each in subnets if each["State"] == "available" and each["MapPublicIpOnLaunch"]]
        usable.sort(key=lambda each: str(each["AvailabilityZone"]))
        found = {}
        for instance_type, zones in self._api.find_zones(spec).items():
            found[instance_type] = [each["SubnetId"] for each in usable if each["AvailabilityZone"] in zones]
            if not found[instance_type]:
                raise ProviderError(
                    f"the default VPC {vpc_id} has no subnet with public addresses in a zone that offers "
                    f"{instance_type} ({', '.join(zones) or 'none does'})."
                )
        return found

    def _make_security_group(self, name: str, vpc_id: str, ssh_from: str, tell: Callable[[str], None]) -> str:
        with told("making the security group", "ec2:CreateSecurityGroup"):
            groups = self._api.find_groups(name)
            if not groups:
                tell(f"making security group {own_name(name)}: SSH from {ssh_from}, nothing else from outside")
                groups = self._create_security_group(name, vpc_id)
            group = groups[0]
            group_id = str(group["GroupId"])
            wanted = [
                {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]},
                {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]},
            ]
            for permission in wanted:
                with unless(is_there):
                    self._api.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
            # An address that the caller no longer has.
            stale = [
                each["CidrIp"]
                for permission in group["IpPermissions"]
                if permission.get("FromPort") == 22
                for each in permission["IpRanges"]
                if each["CidrIp"] != ssh_from
            ]
            for cidr in stale:
                rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": cidr}]}
                self._api.ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
        return group_id

    def _create_security_group(self, name: str, vpc_id: str) -> list[dict[str, Any]]:
        tags = [{"Key": CLUSTER_TAG, "Value": name}]
        try:
            made = self._api.ec2.create_security_group(
                GroupName=own_name(name),
                Description=f"Ray cluster {name}",
                VpcId=vpc_id,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
            )
        except self._api.ec2.exceptions.ClientError as err:
            # An answer may be lost on its way, and the request made again.
            groups = self._api.find_groups(name) if is_there(err.response["Error"]["Code"]) else []
            if not groups:
                raise
            return groups
        return [{"GroupId": made["GroupId"], "IpPermissions": []}]

    def _import_key(self, name: str, public_key: str, tell: Callable[[str], None]) -> str:
        key_name = own_name(name)
        with told("importing the SSH key", "ec2:ImportKeyPair"):
            filters = [{"Name": "key-name", "Values": [key_name]}]
            found = self._api.ec2.describe_key_pairs(Filters=filters, IncludePublicKey=True)["KeyPairs"]
            if found and found[0].get("PublicKey", "").split()[:2] == public_key.split()[:2]:
                return key_name
            if found:
                # Of an earlier cluster of this name, made by somebody else.
                self._api.ec2.delete_key_pair(KeyName=key_name)
            tell(f"importing key pair {key_name}")
            with unless(is_there):
                self._api.ec2.import_key_pair(KeyName=key_name, PublicKeyMaterial=public_key.encode())
        return key_name

    def _make_role(self, name: str, kind: str, policy: dict[str, Any], tell: Callable[[str], None]) -> str:
        role_name = role_name_of(name, kind)
        with told("making the nodes' roles", "iam:CreateRole"):
            tags = [{"Key": CLUSTER_TAG, "Value": name}]
            with unless(is_there):
                self._api.iam.create_role(
                    RoleName=role_name, AssumeRolePolicyDocument=json.dumps(trust_policy()), Tags=tags
                )
                tell(f"making role {role_name}")
            self._api.iam.put_role_policy(
                RoleName=role_name, PolicyName="periflow-ray", PolicyDocument=json.dumps(policy)
            )
            with unless(is_there):
                self._api.iam.create_instance_profile(InstanceProfileName=role_name, Tags=tags)
            profile = self._api.iam.get_instance_profile(InstanceProfileName=role_name)["InstanceProfile"]
            if not profile["Roles"]:
                # A profile has one role.
                with unless(lambda code: code == "LimitExceeded"):
                    self._api.iam.add_role_to_instance_profile(InstanceProfileName=role_name, RoleName=role_name)
        return str(profile["Arn"])

    def _role_arn(self, name: str, kind: str) -> str:
        with told("making the nodes' roles", "iam:GetRole"):
            return str(self._api.iam.get_role(RoleName=role_name_of(name, kind))["Role"]["Arn"])

    def _wait_for_profiles(self, arns: list[str], tell: Callable[[str], None]) -> None:
        """Until EC2 knows the profiles, which IAM has just made."""
        deadline = time.monotonic() + _PROFILE_TIMEOUT_S
        for arn in arns:
            while not self._ec2_knows(arn):
                if time.monotonic() > deadline:
                    raise ProviderError(
                        f"EC2 does not know the instance profile {arn} after {_PROFILE_TIMEOUT_S:.0f} s"
                    )
                tell("waiting until EC2 knows the new roles")
                time.sleep(_POLL_S)

    def _ec2_knows(self, arn: str) -> bool:
        try:
            with told("asking EC2 for the roles"):
                self._api.ec2.run_instances(
                    ImageId="resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
                    InstanceType=config_of_aws.HEAD_INSTANCE_TYPE,
                    MinCount=1,
                    MaxCount=1,
                    IamInstanceProfile={"Arn": arn},
                    DryRun=True,
                )
        except ProviderError as err:
            return "iamInstanceProfile" not in str(err) and "Invalid IAM Instance Profile" not in str(err)
        return True
