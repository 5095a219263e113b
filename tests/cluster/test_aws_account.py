"""What a cluster has in an AWS account: made once, found again by its tag, removed without a trace.

Looked at through another client, as the account's owner would: the product is not asked about its own work.

Long because making, finding and removing are told by the same listing of the account.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
import yaml
from support.aws_account import AwsAccount
from support.provider_stand_in import ProviderStandIn, make_machine

from periflow_ray.cluster import lifecycle
from periflow_ray.cluster.config.render import render_yaml
from periflow_ray.cluster.config.spec import ClusterSpec, build_spec
from periflow_ray.cluster.lifecycle import take_down
from periflow_ray.cluster.providers.aws import AwsProvider
from periflow_ray.cluster.providers.aws_policies import head_policy, worker_policy
from periflow_ray.cluster.providers.provider import Preparation, Provider, ProviderError, Resource
from periflow_ray.plan.catalogue import find_vm

REGION = "us-east-1"
VM = "aws-16gb-t4-1g-us-east-1"
STORAGE = "s3://bucket/prefix"
KEY_FILES = {"kim": "AAAAC3NzaC1lZDI1NTE5AAAAIJ8dN2o0vW1l3t8xq1u3bM7vQ1cYvP0aK1rZ6w8sT2hX"}
KEY_OF_KIM = f"ssh-ed25519 {KEY_FILES['kim']} periflow-ray"


def make_spec(name: str = "mine", *vm_names: str) -> ClusterSpec:
    return build_spec(name, [find_vm(vm_name) for vm_name in vm_names or (VM, f"{VM}-spot")])


@functools.cache
def provider() -> AwsProvider:
    """One for all tests: it reads a description of all of EC2, which takes a second."""
    return AwsProvider(REGION)


def prepare(spec: ClusterSpec, ssh_from: str = "203.0.113.7/32") -> tuple[dict[str, Any], list[str]]:
    """The cluster's configuration after that, and what was told."""
    config = yaml.safe_load(render_yaml(spec, "cluster.yaml", spec.name))
    told: list[str] = []
    preparation = Preparation(spec, "/keys/mine/key", KEY_OF_KIM, ssh_from, STORAGE, told.append)
    provider().prepare(preparation, config)
    return config, told


def list_account() -> dict[str, list[str]]:
    """All that the account has and that its owner did not have before, by kind; kinds without any are left out."""
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam")
    reservations = ec2.describe_instances()["Reservations"]
    instances = [each for reservation in reservations for each in reservation["Instances"]]
    found = {
        "instances": [each["InstanceId"] for each in instances if each["State"]["Name"] != "terminated"],
        "volumes": [each["VolumeId"] for each in ec2.describe_volumes()["Volumes"]],
        "interfaces": [each["NetworkInterfaceId"] for each in ec2.describe_network_interfaces()["NetworkInterfaces"]],
        "addresses": [each["AllocationId"] for each in ec2.describe_addresses()["Addresses"]],
        "groups": [
            each["GroupName"]
            for each in ec2.describe_security_groups()["SecurityGroups"]
            if each["GroupName"] != "default"
        ],
        "keys": [each["KeyName"] for each in ec2.describe_key_pairs()["KeyPairs"]],
        "roles": [each["RoleName"] for each in iam.list_roles()["Roles"]],
        "profiles": [each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]],
    }
    return {kind: sorted(ids) for kind, ids in found.items() if ids}


def launch(config: dict[str, Any], node_type: str, *, setup: str = "up-to-date") -> str:
    """A machine as Ray launches it, with its tags; returns its id."""
    node_config = config["available_node_types"][node_type]["node_config"]
    name = config["cluster_name"]
    tags = {"ray-cluster-name": name, "ray-user-node-type": node_type, "ray-node-status": setup}
    ec2 = boto3.client("ec2", REGION)
    taken = ("ImageId", "InstanceType", "KeyName", "SecurityGroupIds", "IamInstanceProfile")
    given = {key: node_config[key] for key in taken}
    if "InstanceMarketOptions" in node_config:
        given["InstanceMarketOptions"] = node_config["InstanceMarketOptions"]
    made = ec2.run_instances(
        **given,
        SubnetId=node_config["SubnetIds"][0],
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            *node_config["TagSpecifications"],
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]},
        ],
    )
    return str(made["Instances"][0]["InstanceId"])


def test_a_cluster_has_one_group_one_key_and_two_roles_however_often_it_is_prepared(aws: AwsAccount) -> None:
    config, told = prepare(make_spec())
    expected = {
        "groups": ["periflow-ray-mine"],
        "keys": ["periflow-ray-mine"],
        "roles": ["periflow-ray-mine-head", "periflow-ray-mine-worker"],
        "profiles": ["periflow-ray-mine-head", "periflow-ray-mine-worker"],
    }
    assert list_account() == expected
    assert len(told) == 4
    again, told_again = prepare(make_spec())
    assert list_account() == expected
    assert (again, told_again) == (config, [])


def test_a_request_whose_answer_was_lost_is_made_again(aws: AwsAccount) -> None:
    lost: set[str] = set()

    def lose(operation: Any, **about: Any) -> int | None:
        if operation.name in lost or not operation.name.startswith(("Create", "Import", "Add", "Authorize", "Put")):
            return None
        lost.add(operation.name)
        return 0

    clients = [provider()._api.ec2, provider()._api.iam]
    for client in clients:
        client.meta.events.register_first("needs-retry", lose)
    try:
        config, _ = prepare(make_spec())
    finally:
        for client in clients:
            client.meta.events.unregister("needs-retry", lose)
    assert len(lost) == 7
    assert list_account()["groups"] == list_account()["keys"] == ["periflow-ray-mine"]
    assert prepare(make_spec()) == (config, [])


def test_ray_is_left_with_nothing_to_make_but_instances(aws: AwsAccount) -> None:
    config, _ = prepare(make_spec())
    ec2, iam = boto3.client("ec2", REGION), boto3.client("iam")
    (group,) = ec2.describe_security_groups(GroupNames=["periflow-ray-mine"])["SecurityGroups"]
    profiles = {each["InstanceProfileName"]: each for each in iam.list_instance_profiles()["InstanceProfiles"]}
    assert config["auth"] == {"ssh_user": "ubuntu", "ssh_private_key": "/keys/mine/key"}
    subnets = {each["SubnetId"]: each for each in ec2.describe_subnets()["Subnets"]}
    offers = ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["m6i.large", "g4dn.xlarge"]}]
    )["InstanceTypeOfferings"]
    for name, node_type in config["available_node_types"].items():
        node_config = node_type["node_config"]
        kind = "head" if name == "head" else "worker"
        assert node_config["KeyName"] == "periflow-ray-mine"
        assert node_config["SecurityGroupIds"] == [group["GroupId"]]
        assert node_config["IamInstanceProfile"] == {"Arn": profiles[f"periflow-ray-mine-{kind}"]["Arn"]}
        assert node_config["InstanceInitiatedShutdownBehavior"] == "terminate"
        zones = [subnets[subnet_id]["AvailabilityZone"] for subnet_id in node_config["SubnetIds"]]
        offering = {each["Location"] for each in offers if each["InstanceType"] == node_config["InstanceType"]}
        assert zones == sorted(offering)
    for kind, policy in {
        "head": head_policy(
            "mine", REGION, [iam.get_role(RoleName="periflow-ray-mine-worker")["Role"]["Arn"]], STORAGE
        ),
        "worker": worker_policy(STORAGE),
    }.items():
        role = f"periflow-ray-mine-{kind}"
        assert [each["RoleName"] for each in profiles[role]["Roles"]] == [role]
        stored = iam.get_role_policy(RoleName=role, PolicyName="periflow-ray")["PolicyDocument"]
        assert (json.loads(stored) if isinstance(stored, str) else stored) == policy


def find_ssh_rules() -> list[str]:
    ec2 = boto3.client("ec2", REGION)
    (group,) = ec2.describe_security_groups(GroupNames=["periflow-ray-mine"])["SecurityGroups"]
    outside = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert {(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside} == {("tcp", 22, 22)}
    inside = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    return [each["CidrIp"] for rule in outside for each in rule["IpRanges"]]


def test_only_the_given_addresses_may_use_ssh_and_no_earlier_ones(aws: AwsAccount) -> None:
    prepare(make_spec(), "203.0.113.7/32")
    assert find_ssh_rules() == ["203.0.113.7/32"]
    # At home.
    prepare(make_spec(), "198.51.100.0/24")
    assert find_ssh_rules() == ["198.51.100.0/24"]


def test_a_key_of_an_earlier_cluster_of_this_name_is_replaced(aws: AwsAccount) -> None:
    boto3.client("ec2", REGION).create_key_pair(KeyName="periflow-ray-mine")
    _, told = prepare(make_spec())
    assert "importing key pair periflow-ray-mine" in told
    (key,) = boto3.client("ec2", REGION).describe_key_pairs(IncludePublicKey=True)["KeyPairs"]
    assert key["PublicKey"].split()[1] == KEY_FILES["kim"]


def test_a_making_that_was_cut_off_goes_on_where_it_was(aws: AwsAccount) -> None:
    aws.api.fail(["Action=CreateInstanceProfile"], "AccessDenied", num_times=1)
    with pytest.raises(ProviderError, match="AccessDenied"):
        prepare(make_spec())
    _, told = prepare(make_spec())
    assert told == ["making role periflow-ray-mine-head"]
    assert list_account()["profiles"] == ["periflow-ray-mine-head", "periflow-ray-mine-worker"]


def test_a_role_that_the_account_has_no_room_for_is_told_as_that(aws: AwsAccount) -> None:
    aws.api.fail(["Action=CreateRole"], "LimitExceeded", num_times=1)
    with pytest.raises(ProviderError) as caught:
        prepare(make_spec())
    assert caught.value.code == "LimitExceeded"


def test_a_missing_permission_is_named(aws: AwsAccount) -> None:
    aws.api.fail(["Action=CreateSecurityGroup"], "UnauthorizedOperation", num_times=1)
    with pytest.raises(ProviderError, match=r"You need the permission ec2:CreateSecurityGroup; docs/aws.md has"):
        prepare(make_spec())


def test_a_region_without_a_default_network_is_told_how_to_get_one(aws: AwsAccount) -> None:
    ec2 = boto3.client("ec2", REGION)
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.delete_vpc(VpcId=vpc["VpcId"])
    with pytest.raises(ProviderError, match="aws ec2 create-default-vpc --region us-east-1"):
        prepare(make_spec())
    assert list_account() == {}


def test_machines_are_listed_as_ec2_and_ray_describe_them(aws: AwsAccount) -> None:
    config, _ = prepare(make_spec())
    head_id, spot_id = launch(config, "head"), launch(config, f"{VM}-spot", setup="setting-up")
    gone_id = launch(config, VM)
    boto3.client("ec2", REGION).terminate_instances(InstanceIds=[gone_id])
    machines = {machine.id: machine for machine in provider().list_machines("mine")}
    assert list(machines) == [head_id, spot_id]
    described = [
        (each.node_type, each.instance_type, each.is_spot, each.state, each.setup) for each in machines.values()
    ]
    assert described == [
        ("head", "m6i.large", False, "running", "up-to-date"),
        (f"{VM}-spot", "g4dn.xlarge", True, "running", "setting-up"),
    ]
    assert all(each.address and each.zone.startswith(REGION) for each in machines.values())


def leak(config: dict[str, Any], name: str) -> dict[str, str]:
    """What Ray's machines may leave behind in an account, by kind; all of it has a cluster's tag."""
    ec2 = boto3.client("ec2", REGION)
    tags = [{"Key": "ray-cluster-name", "Value": name}]
    subnet_id = config["available_node_types"]["head"]["node_config"]["SubnetIds"][0]
    volume = ec2.create_volume(
        AvailabilityZone="us-east-1a", Size=200, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
    )
    interface = ec2.create_network_interface(
        SubnetId=subnet_id, TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}]
    )["NetworkInterface"]
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": tags}])
    return {
        "volume": volume["VolumeId"],
        "network interface": interface["NetworkInterfaceId"],
        "address": address["AllocationId"],
    }


def test_what_machines_have_left_behind_is_found_with_its_price_and_nothing_of_another_cluster(aws: AwsAccount) -> None:
    configs = {name: prepare(make_spec(name))[0] for name in ("mine", "mine-2")}
    leaked = {name: leak(config, name) for name, config in configs.items()}
    launch(configs["mine-2"], "head")
    found = provider().list_resources("mine")
    assert [resource.kind for resource in found] == [
        "volume",
        "network interface",
        "address",
        "security group",
        "key pair",
        "instance profile",
        "role",
        "instance profile",
        "role",
    ]
    assert {resource.kind: resource.id for resource in found[:3]} == leaked["mine"]
    volume, _, address = found[:3]
    assert volume.usd_per_hour * 730 == pytest.approx(16.0)
    assert (address.usd_per_hour, sum(resource.usd_per_hour for resource in found[3:])) == (0.005, 0.0)


def test_a_cluster_is_taken_down_to_the_last_of_what_it_had(aws: AwsAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_REMOVE_POLL_S", 0.01)
    monkeypatch.setattr(lifecycle, "_LATE_S", 0.01)
    prepare(make_spec("theirs"))
    theirs = list_account()
    config, _ = prepare(make_spec())
    leak(config, "mine")
    for node_type in ("head", VM, f"{VM}-spot"):
        launch(config, node_type)
    # EC2 knows for a while that a machine that is gone used it.
    aws.api.fail(["Action=DeleteSecurityGroup"], "DependencyViolation", num_times=1)
    assert take_down(provider(), "mine", lambda text: None) == {}
    assert list_account() == theirs


def test_a_head_ends_all_machines_of_its_cluster_in_one_request_and_no_others(aws: AwsAccount) -> None:
    config, _ = prepare(make_spec())
    other_config, _ = prepare(make_spec("theirs"))
    for node_type in ("head", VM, VM):
        launch(config, node_type)
    other_id = launch(other_config, "head")
    provider().end_machines("mine")
    assert len([call for call in aws.api.calls if call.get("Action") == "TerminateInstances"]) == 1
    assert list_account()["instances"] == [other_id]
    # There is nothing to ask for any more.
    provider().end_machines("mine")


def test_without_credentials_it_says_how_to_get_some(aws: AwsAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(
        ProviderError, match=r"there are no AWS credentials on this machine. Log in with 'aws configure'"
    ):
        AwsProvider(REGION)


def test_credentials_that_have_ended_are_told_as_that(aws: AwsAccount) -> None:
    aws.api.fail(["Action=DescribeInstances"], "RequestExpired", num_times=1)
    with pytest.raises(ProviderError, match=r"RequestExpired: .* Log in again: aws configure, or aws sso login"):
        provider().list_machines("mine")


# The contract of all providers, held by the one that other tests use and by a real one.


@pytest.fixture(params=["stand-in", "aws"])
def full_account(request: pytest.FixtureRequest) -> Callable[[], Provider]:
    """Makes a provider whose account has cluster ``mine`` with a head and a volume."""

    def make() -> Provider:
        if request.param == "stand-in":
            stand_in = ProviderStandIn()
            stand_in.machines["mine"] = [make_machine()]
            stand_in.resources["mine"] = [Resource("volume", "vol-1"), Resource("security group", "sg-1")]
            return stand_in
        request.getfixturevalue("aws")
        config, _ = prepare(make_spec())
        leak(config, "mine")
        launch(config, "head")
        return provider()

    return make


def test_every_provider_removes_what_it_lists_and_what_is_gone_already_is_no_error(
    full_account: Callable[[], Provider],
) -> None:
    held = full_account()
    assert held.list_resources("nobody-s") == []
    assert [(machine.node_type, machine.state) for machine in held.list_machines("mine")] == [("head", "running")]
    resources = held.list_resources("mine")
    for resource in resources:
        held.remove(resource)
    for resource in resources:
        held.remove(resource)
    assert held.list_resources("mine") == []
    assert held.list_machines("mine") == []
    held.end_machines("mine")
