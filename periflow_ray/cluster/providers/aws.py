"""AWS: what a cluster needs in an account, and what of it is there. Instances are Ray's own to launch.

Everything is called ``periflow-ray-NAME`` or has the tag ``ray-cluster-name=NAME``, and is found again by that alone.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from periflow_ray.cluster.config import aws as config_of_aws
from periflow_ray.cluster.config.aws import AwsPieces
from periflow_ray.cluster.config.render import find_instance_types
from periflow_ray.cluster.config.spec import ClusterSpec
from periflow_ray.cluster.providers.aws_policies import head_policy, trust_policy, worker_policy
from periflow_ray.cluster.providers.aws_quotas import find_quota
from periflow_ray.cluster.providers.prices import machine_usd_per_hour
from periflow_ray.cluster.providers.provider import Finding, Machine, Preparation, ProviderError, Resource

_TAG = "ray-cluster-name"
_GONE = frozenset({"terminated"})
# Still in the account for some minutes, but at no cost.
_FREE = frozenset({"terminated", "shutting-down"})
# gp3 in most regions, per GiB and hour; an address that is not in use, or in use, per hour.
_DISK_USD = 0.08 / 730
_ADDRESS_USD = 0.005
# IAM tells EC2 of a new profile within some seconds, mostly.
_PROFILE_TIMEOUT_S = 60.0
_POLL_S = 2.0
_ALREADY_THERE = frozenset({"EntityAlreadyExists", "InvalidPermission.Duplicate", "LimitExceeded"})


class AwsProvider:
    """EC2 and IAM of one region; see ``Provider``."""

    def __init__(self, region: str) -> None:
        try:
            import boto3
        except ImportError as err:
            raise ProviderError("clusters on AWS need boto3: pip install 'periflow-ray[aws]'") from err
        self._region = region
        self._session = boto3.Session(region_name=region)
        with _told("asking for credentials"):
            credentials = self._session.get_credentials()
        if credentials is None:
            raise ProviderError(
                "there are no AWS credentials on this machine. Log in with 'aws configure' or 'aws sso login', or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        self._ec2 = self._session.client("ec2")
        self._iam = self._session.client("iam")

    def check(self, spec: ClusterSpec, *, is_new: bool) -> list[Finding]:
        with _told("asking who you are", "sts:GetCallerIdentity"):
            identity = self._session.client("sts").get_caller_identity()
        findings = [Finding("credentials", "good", f"account {identity['Account']}, {identity['Arn']}")]
        zones = self._find_zones(spec)
        for name, instance_type in find_instance_types(spec).items():
            findings.append(self._check_offer(name, instance_type, zones[instance_type]))
        findings += [self._check_image(architecture) for architecture in sorted({vm.architecture for vm in spec.vms})]
        findings.append(self._check_launch_permission())
        findings += self._check_quotas(spec, is_new=is_new)
        return findings

    def prepare(self, preparation: Preparation, config: dict[str, Any]) -> None:
        spec, tell = preparation.spec, preparation.tell
        vpc_id = self._find_vpc()
        group_id = self._make_security_group(spec.name, vpc_id, preparation.ssh_from, tell)
        key_name = self._import_key(spec.name, preparation.public_key, tell)
        worker_arn = self._make_role(spec.name, "worker", worker_policy(preparation.storage_uri), tell)
        role_arns = [self._role_arn(spec.name, "worker")]
        head = head_policy(spec.name, self._region, role_arns, preparation.storage_uri)
        head_arn = self._make_role(spec.name, "head", head, tell)
        subnets = self._find_subnets(spec, vpc_id)
        config_of_aws.complete(
            config, preparation.key_path, AwsPieces(key_name, group_id, head_arn, worker_arn, subnets)
        )
        self._wait_for_profiles([head_arn, worker_arn], tell)

    def list_machines(self, name: str) -> list[Machine]:
        return [self._describe_machine(instance) for instance in self._instances(name)]

    def list_resources(self, name: str) -> list[Resource]:
        with _told(f"listing what cluster '{name}' has in {self._region}"):
            found = [self._describe_instance(machine) for machine in self.list_machines(name)]
            tagged = [{"Name": f"tag:{_TAG}", "Values": [name]}]
            groups = self._find_groups(name)
            for volume in self._pages("describe_volumes", "Volumes", tagged):
                found.append(Resource("volume", volume["VolumeId"], volume["State"], float(volume["Size"]) * _DISK_USD))
            interfaces = self._pages("describe_network_interfaces", "NetworkInterfaces", tagged)
            in_groups = [{"Name": "group-id", "Values": [group["GroupId"] for group in groups]}]
            if groups:
                interfaces += self._pages("describe_network_interfaces", "NetworkInterfaces", in_groups)
            for interface_id, status in {each["NetworkInterfaceId"]: each["Status"] for each in interfaces}.items():
                found.append(Resource("network interface", interface_id, status))
            for address in self._ec2.describe_addresses(Filters=tagged)["Addresses"]:
                found.append(Resource("address", address["AllocationId"], address["PublicIp"], _ADDRESS_USD))
            found += [Resource("security group", group["GroupId"]) for group in groups]
            keys = self._ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": [_own_name(name)]}])
            found += [Resource("key pair", key["KeyName"]) for key in keys["KeyPairs"]]
            for kind in ("head", "worker"):
                found += self._find_profile(name, kind)
        return found

    def remove(self, resource: Resource) -> None:
        with _told(f"removing {resource.kind} {resource.id}"), _unless(_is_missing):
            match resource.kind:
                case "instance":
                    self._ec2.terminate_instances(InstanceIds=[resource.id])
                case "volume":
                    if resource.state != "deleting":
                        self._ec2.delete_volume(VolumeId=resource.id)
                case "network interface":
                    self._ec2.delete_network_interface(NetworkInterfaceId=resource.id)
                case "address":
                    self._ec2.release_address(AllocationId=resource.id)
                case "security group":
                    self._ec2.delete_security_group(GroupId=resource.id)
                case "key pair":
                    self._ec2.delete_key_pair(KeyName=resource.id)
                case "instance profile":
                    with _unless(_is_missing):
                        self._iam.remove_role_from_instance_profile(
                            InstanceProfileName=resource.id, RoleName=resource.id
                        )
                    self._iam.delete_instance_profile(InstanceProfileName=resource.id)
                case "role":
                    for policy in self._iam.list_role_policies(RoleName=resource.id)["PolicyNames"]:
                        self._iam.delete_role_policy(RoleName=resource.id, PolicyName=policy)
                    self._iam.delete_role(RoleName=resource.id)

    # What is looked at before.

    def _find_zones(self, spec: ClusterSpec) -> dict[str, list[str]]:
        """The zones that offer each instance type."""
        zones: dict[str, list[str]] = {instance_type: [] for instance_type in find_instance_types(spec).values()}
        filters = [{"Name": "instance-type", "Values": list(zones)}]
        with _told("asking which zones offer the VM types", "ec2:DescribeInstanceTypeOfferings"):
            pages = self._ec2.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="availability-zone", Filters=filters
            )
            for page in pages:
                for offer in page["InstanceTypeOfferings"]:
                    zones[offer["InstanceType"]].append(offer["Location"])
        return {instance_type: sorted(found) for instance_type, found in zones.items()}

    def _check_offer(self, name: str, instance_type: str, zones: list[str]) -> Finding:
        if zones:
            return Finding(name, "good", f"{instance_type} is offered in {', '.join(zones)}")
        return Finding(
            name,
            "bad",
            f"{instance_type} is not offered in any zone of {self._region}. Choose another VM: periflow-ray vm list",
        )

    def _check_image(self, architecture: str) -> Finding:
        parameter = config_of_aws.IMAGE.format(architecture=architecture).removeprefix("resolve:ssm:")
        try:
            with _told("looking the image up", "ssm:GetParameters"):
                answer = self._session.client("ssm").get_parameters(Names=[parameter])
        except ProviderError as err:
            return Finding("image", "warning", f"could not be looked up: {err}")
        if not answer["Parameters"]:
            return Finding("image", "bad", f"there is no image {parameter} in {self._region}")
        return Finding("image", "good", f"{answer['Parameters'][0]['Value']} for {architecture}, {parameter}")

    def _check_launch_permission(self) -> Finding:
        with contextlib.suppress(ProviderError):
            self._find_vpc()
        code = ""
        try:
            with _told("asking whether you may launch instances"):
                self._ec2.create_security_group(GroupName="periflow-ray-check", Description="periflow-ray", DryRun=True)
        except ProviderError as err:
            code = err.code
            if code not in ("DryRunOperation", "UnauthorizedOperation"):
                raise
        if code == "UnauthorizedOperation":
            return Finding(
                "permissions", "bad", "you may not make security groups; docs/aws.md has the policy that 'up' needs"
            )
        return Finding("permissions", "good", "you may make what the cluster needs in EC2")

    def _check_quotas(self, spec: ClusterSpec, *, is_new: bool) -> Iterator[Finding]:
        """The account's quota for each kind of machine, and how much of it is in use, in vCPUs."""
        wanted: dict[tuple[str, str], int] = {}
        for vm in spec.vms:
            quota = find_quota(vm.instance_type, is_spot=vm.is_spot)
            if quota is not None and vm.num_vcpus is not None:
                # The largest one of them: a job asks for VMs of one type.
                wanted[quota] = max(wanted.get(quota, 0), vm.num_vcpus * spec.max_num_nodes)
        for (code, title), num_vcpus in wanted.items():
            try:
                with _told("asking for your quota", "servicequotas:GetServiceQuota"):
                    answer = self._session.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
            except ProviderError as err:
                yield Finding("quota", "warning", f"{title}: could not be asked for: {err}")
                continue
            limit, used = float(answer["Quota"]["Value"]), self._count_used_vcpus(code)
            text = f"{title}: {limit:.0f} vCPUs, {used} in use; {spec.max_num_nodes} nodes need {num_vcpus}"
            if limit - used >= num_vcpus:
                yield Finding("quota", "good", text)
            else:
                link = f"https://{self._region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{code}"
                least = min(vm.num_vcpus or 0 for vm in spec.vms if _quota_code(vm.instance_type, vm.is_spot) == code)
                verdict = "bad" if is_new and limit - used < least else "warning"
                yield Finding("quota", "bad" if verdict == "bad" else "warning", f"{text}. Ask for more: {link}")

    def _count_used_vcpus(self, quota_code: str) -> int:
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        used = 0
        for reservation in self._pages("describe_instances", "Reservations", states):
            for instance in reservation["Instances"]:
                is_spot = instance.get("InstanceLifecycle") == "spot"
                if _quota_code(instance["InstanceType"], is_spot) == quota_code:
                    options = instance.get("CpuOptions", {})
                    used += int(options.get("CoreCount", 1)) * int(options.get("ThreadsPerCore", 1))
        return used

    # What is made before the first instance.

    def _find_vpc(self) -> str:
        with _told("looking for the region's default network", "ec2:DescribeVpcs"):
            found = self._ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not found:
            raise ProviderError(
                f"there is no default VPC in {self._region}. Make one: aws ec2 create-default-vpc --region "
                f"{self._region}"
            )
        return str(found[0]["VpcId"])

    def _find_subnets(self, spec: ClusterSpec, vpc_id: str) -> dict[str, list[str]]:
        with _told("looking for the network's subnets", "ec2:DescribeSubnets"):
            subnets = self._pages("describe_subnets", "Subnets", [{"Name": "vpc-id", "Values": [vpc_id]}])
        usable = [each for each in subnets if each["State"] == "available" and each["MapPublicIpOnLaunch"]]
        usable.sort(key=lambda each: str(each["AvailabilityZone"]))
        found = {}
        for instance_type, zones in self._find_zones(spec).items():
            found[instance_type] = [each["SubnetId"] for each in usable if each["AvailabilityZone"] in zones]
            if not found[instance_type]:
                raise ProviderError(
                    f"the default VPC {vpc_id} has no subnet with public addresses in a zone that offers "
                    f"{instance_type} ({', '.join(zones) or 'none does'})."
                )
        return found

    def _make_security_group(self, name: str, vpc_id: str, ssh_from: str, tell: Callable[[str], None]) -> str:
        with _told("making the security group", "ec2:CreateSecurityGroup"):
            groups = self._find_groups(name)
            if groups:
                group = groups[0]
            else:
                tell(f"making security group {_own_name(name)}: SSH from {ssh_from}, nothing else from outside")
                made = self._ec2.create_security_group(
                    GroupName=_own_name(name),
                    Description=f"Ray cluster {name}",
                    VpcId=vpc_id,
                    TagSpecifications=[
                        {"ResourceType": "security-group", "Tags": [{"Key": _TAG, "Value": name}]},
                    ],
                )
                group = {"GroupId": made["GroupId"], "IpPermissions": []}
            group_id = str(group["GroupId"])
            wanted = [
                {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]},
                {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]},
            ]
            for permission in wanted:
                with _unless(_is_there):
                    self._ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
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
                self._ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
        return group_id

    def _import_key(self, name: str, public_key: str, tell: Callable[[str], None]) -> str:
        key_name = _own_name(name)
        with _told("importing the SSH key", "ec2:ImportKeyPair"):
            filters = [{"Name": "key-name", "Values": [key_name]}]
            found = self._ec2.describe_key_pairs(Filters=filters, IncludePublicKey=True)["KeyPairs"]
            if found and found[0].get("PublicKey", "").split()[:2] == public_key.split()[:2]:
                return key_name
            if found:
                # Of an earlier cluster of this name, made by somebody else.
                self._ec2.delete_key_pair(KeyName=key_name)
            tell(f"importing key pair {key_name}")
            self._ec2.import_key_pair(KeyName=key_name, PublicKeyMaterial=public_key.encode())
        return key_name

    def _make_role(self, name: str, kind: str, policy: dict[str, Any], tell: Callable[[str], None]) -> str:
        role_name = _role_name(name, kind)
        with _told("making the nodes' roles", "iam:CreateRole"):
            tags = [{"Key": _TAG, "Value": name}]
            with _unless(_is_there):
                self._iam.create_role(
                    RoleName=role_name, AssumeRolePolicyDocument=json.dumps(trust_policy()), Tags=tags
                )
                tell(f"making role {role_name}")
            self._iam.put_role_policy(RoleName=role_name, PolicyName="periflow-ray", PolicyDocument=json.dumps(policy))
            with _unless(_is_there):
                self._iam.create_instance_profile(InstanceProfileName=role_name, Tags=tags)
            profile = self._iam.get_instance_profile(InstanceProfileName=role_name)["InstanceProfile"]
            if not profile["Roles"]:
                self._iam.add_role_to_instance_profile(InstanceProfileName=role_name, RoleName=role_name)
        return str(profile["Arn"])

    def _role_arn(self, name: str, kind: str) -> str:
        with _told("making the nodes' roles", "iam:GetRole"):
            return str(self._iam.get_role(RoleName=_role_name(name, kind))["Role"]["Arn"])

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
            with _told("asking EC2 for the roles"):
                self._ec2.run_instances(
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

    # What is there.

    def _instances(self, name: str) -> list[dict[str, Any]]:
        with _told(f"listing the instances of cluster '{name}'", "ec2:DescribeInstances"):
            tagged = [{"Name": f"tag:{_TAG}", "Values": [name]}]
            reservations = self._pages("describe_instances", "Reservations", tagged)
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

    def _find_groups(self, name: str) -> list[dict[str, Any]]:
        return self._pages("describe_security_groups", "SecurityGroups", [{"Name": f"tag:{_TAG}", "Values": [name]}])

    def _find_profile(self, name: str, kind: str) -> Iterator[Resource]:
        role_name = _role_name(name, kind)
        with _unless(_is_missing):
            self._iam.get_instance_profile(InstanceProfileName=role_name)
            yield Resource("instance profile", role_name)
        with _unless(_is_missing):
            self._iam.get_role(RoleName=role_name)
            yield Resource("role", role_name)

    def _pages(self, operation: str, key: str, filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pages = self._ec2.get_paginator(operation).paginate(Filters=filters)
        return [item for page in pages for item in page[key]]


def _own_name(name: str) -> str:
    return f"periflow-ray-{name}"


def _role_name(name: str, kind: str) -> str:
    return f"{_own_name(name)}-{kind}"


def _quota_code(instance_type: str, is_spot: bool) -> str | None:
    quota = find_quota(instance_type, is_spot=is_spot)
    return None if quota is None else quota[0]


def _is_missing(code: str) -> bool:
    return "NotFound" in code or code in ("NoSuchEntity", "InvalidVolume.NotFound")


def _is_there(code: str) -> bool:
    return code in _ALREADY_THERE or code.endswith(".Duplicate")


@contextlib.contextmanager
def _unless(is_fine: Callable[[str], bool]) -> Iterator[None]:
    """Go on after an error with a code that is fine here."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as err:
        if not is_fine(str(err.response.get("Error", {}).get("Code", ""))):
            raise


@contextlib.contextmanager
def _told(doing: str, permission: str = "") -> Iterator[None]:
    """Turn what boto3 raises into words.

    Args:
        permission: the action that IAM has to allow for it.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as err:
        error = err.response.get("Error", {})
        code, text = str(error.get("Code", "")), str(error.get("Message", ""))
        hint = ""
        if "Unauthorized" in code or "AccessDenied" in code:
            hint = f" You need the permission {permission or 'of docs/aws.md'}; docs/aws.md has the whole policy."
        elif code in ("AuthFailure", "InvalidClientTokenId", "ExpiredToken", "RequestExpired", "SignatureDoesNotMatch"):
            hint = " Log in again: aws configure, or aws sso login."
        raise ProviderError(f"AWS refused {doing}: {code}: {text}{hint}", code) from err
    except BotoCoreError as err:
        raise ProviderError(f"AWS cannot be reached for {doing}: {err}") from err
