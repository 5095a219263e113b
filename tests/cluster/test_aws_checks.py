"""What is looked at in an AWS account before a cluster is made, and what of it stops the making."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import boto3
import pytest
from support.aws_account import AwsAccount

from periflow_ray.cluster.config.spec import build_spec
from periflow_ray.cluster.providers.aws import AwsProvider
from periflow_ray.cluster.providers.aws_quotas import find_quota
from periflow_ray.cluster.providers.provider import Finding, ProviderError
from periflow_ray.plan.catalogue import VmType, find_vm, load_catalogue

REGION = "us-east-1"
T4 = "aws-16gb-t4-1g-us-east-1"
ON_DEMAND, SPOT = find_vm(T4), find_vm(f"{T4}-spot")
ON_DEMAND_G, SPOT_G = "L-DB2E81BA", "L-3819A6DF"


class Check(Protocol):
    def __call__(self, *vms: VmType, is_new: bool = True) -> list[Finding]: ...


@pytest.fixture
def check(aws_provider: AwsProvider) -> Check:
    """Looks at the account for a cluster of at most two workers."""

    def look(*vms: VmType, is_new: bool = True) -> list[Finding]:
        return list(aws_provider.check(build_spec("mine", vms, max_num_nodes=2), is_new=is_new))

    return look


@pytest.fixture
def find_quotas(check: Check) -> Check:
    """What is said of quotas alone."""
    return lambda *vms, is_new=True: [each for each in check(*vms, is_new=is_new) if each.subject == "quota"]


def test_of_an_account_that_is_ready_everything_is_good(check: Check) -> None:
    findings = check(ON_DEMAND, SPOT)
    assert [(finding.subject, finding.verdict) for finding in findings] == [
        ("credentials", "good"),
        ("head", "good"),
        (T4, "good"),
        (f"{T4}-spot", "good"),
        ("image", "good"),
        ("permissions", "good"),
        ("quota", "good"),
        ("quota", "good"),
    ]
    quotas = [finding.text for finding in findings if finding.subject == "quota"]
    assert quotas == [
        "Running On-Demand G and VT instances: 1000 vCPUs, 0 in use; 2 nodes need 8",
        "All G and VT Spot Instance Requests: 1000 vCPUs, 0 in use; 2 nodes need 8",
    ]
    # It has only looked.
    assert [
        group["GroupName"] for group in boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    ] == ["default"]


def test_a_vm_type_that_no_zone_offers_is_bad(check: Check) -> None:
    planned = dataclasses.replace(find_vm(T4), name="aws-next-year", instance_type="g99.xlarge")
    (finding,) = [each for each in check(planned) if each.subject == "aws-next-year"]
    assert finding == Finding(
        "aws-next-year",
        "bad",
        "g99.xlarge is not offered in any zone of us-east-1. Choose another: periflow-ray vm list",
    )


def test_a_quota_that_has_no_room_for_one_worker_is_bad(aws: AwsAccount, find_quotas: Check) -> None:
    aws.api.quotas[ON_DEMAND_G] = 0
    assert find_quotas(ON_DEMAND) == [
        Finding(
            "quota",
            "bad",
            "Running On-Demand G and VT instances: 0 vCPUs, 0 in use; 2 nodes need 8. Ask for more: "
            "https://us-east-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/L-DB2E81BA",
        )
    ]


def test_a_quota_for_some_of_the_workers_is_a_warning(aws: AwsAccount, find_quotas: Check) -> None:
    aws.api.quotas[ON_DEMAND_G] = 4
    (finding,) = find_quotas(ON_DEMAND)
    assert (finding.verdict, "4 vCPUs, 0 in use; 2 nodes need 8" in finding.text) == ("warning", True)


def test_a_cluster_that_is_up_already_is_not_stopped_by_the_quota_that_it_uses(
    aws: AwsAccount, find_quotas: Check
) -> None:
    aws.api.quotas[ON_DEMAND_G] = 0
    assert [finding.verdict for finding in find_quotas(ON_DEMAND, is_new=False)] == ["warning"]


def test_spot_and_on_demand_have_quotas_of_their_own(aws: AwsAccount, find_quotas: Check) -> None:
    aws.api.quotas[SPOT_G] = 0
    assert [(finding.verdict, finding.text.split(":")[0]) for finding in find_quotas(ON_DEMAND, SPOT)] == [
        ("good", "Running On-Demand G and VT instances"),
        ("bad", "All G and VT Spot Instance Requests"),
    ]


def test_what_others_use_of_a_quota_counts(aws: AwsAccount, find_quotas: Check) -> None:
    aws.api.quotas[ON_DEMAND_G] = 8
    assert [finding.verdict for finding in find_quotas(ON_DEMAND)] == ["good"]
    # moto does not say how many vCPUs a machine has; it counts as one then.
    ec2 = boto3.client("ec2", REGION)
    ec2.run_instances(ImageId="ami-1", InstanceType="g4dn.xlarge", MinCount=4, MaxCount=4)
    ec2.run_instances(ImageId="ami-1", InstanceType="m6i.large", MinCount=1, MaxCount=1)
    (finding,) = find_quotas(ON_DEMAND)
    assert (finding.verdict, "8 vCPUs, 4 in use" in finding.text) == ("warning", True)


def test_a_missing_permission_is_bad_and_says_where_the_policy_is(aws: AwsAccount, check: Check) -> None:
    aws.api.fail(["Action=CreateSecurityGroup"], "UnauthorizedOperation", num_times=1)
    (finding,) = [each for each in check(ON_DEMAND) if each.subject == "permissions"]
    assert (finding.verdict, "docs/aws.md has the policy" in finding.text) == ("bad", True)


def test_credentials_that_are_refused_are_an_error(aws: AwsAccount, check: Check) -> None:
    aws.api.fail(["Action=GetCallerIdentity"], "InvalidClientTokenId", num_times=1)
    with pytest.raises(
        ProviderError, match=r"InvalidClientTokenId: .* Log in again: aws configure, or aws sso login\."
    ):
        check(ON_DEMAND)


def test_a_region_without_a_default_network_is_found_before_anything_is_made(check: Check) -> None:
    ec2 = boto3.client("ec2", REGION)
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.delete_vpc(VpcId=vpc["VpcId"])
    (finding,) = [each for each in check(ON_DEMAND) if each.verdict == "bad"]
    assert finding.text == (
        "there is no default VPC in us-east-1. Make one: aws ec2 create-default-vpc --region us-east-1"
    )


@pytest.mark.parametrize(
    ("instance_type", "is_spot", "title"),
    [
        ("g5.12xlarge", False, "Running On-Demand G and VT instances"),
        ("g6e.4xlarge", True, "All G and VT Spot Instance Requests"),
        ("gr6.4xlarge", False, "Running On-Demand G and VT instances"),
        ("p3.8xlarge", False, "Running On-Demand P instances"),
        ("p3.8xlarge", True, "All P4, P3 and P2 Spot Instance Requests"),
        ("p4de.24xlarge", True, "All P4, P3 and P2 Spot Instance Requests"),
        ("p5.48xlarge", False, "Running On-Demand P instances"),
        ("p5en.48xlarge", True, "All P5 Spot Instance Requests"),
        ("m6i.large", False, "Running On-Demand Standard instances"),
        ("t3.micro", True, "All Standard Spot Instance Requests"),
        # Each of these has a quota of its own, which is not looked at.
        ("inf2.xlarge", False, None),
        ("trn1.2xlarge", True, None),
        ("hpc7a.96xlarge", False, None),
        ("x2idn.16xlarge", False, None),
        ("u-6tb1.112xlarge", False, None),
        ("7zip", False, None),
    ],
)
def test_each_instance_counts_for_the_quota_of_its_family(instance_type: str, is_spot: bool, title: str | None) -> None:
    quota = find_quota(instance_type, is_spot=is_spot)
    assert (None if quota is None else quota[1]) == title


def test_every_vm_of_the_catalogue_that_may_be_rented_on_demand_has_a_quota() -> None:
    vms = [vm for vm in load_catalogue().values() if vm.cloud == "aws" and not vm.is_spot]
    assert [vm.name for vm in vms if find_quota(vm.instance_type, is_spot=False) is None] == []
