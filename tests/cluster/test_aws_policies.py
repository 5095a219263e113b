"""What a cluster's nodes may do in the account of its user: no more than it takes, and only with what is theirs."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from periflow_ray.cluster.providers.aws_policies import head_policy, trust_policy, worker_policy

WORKER_ROLE = "arn:aws:iam::123456789012:role/periflow-ray-mine-worker"
HEAD = head_policy("mine", "us-east-1", [WORKER_ROLE], "s3://bucket/some/prefix")
WORKER = worker_policy("s3://bucket/some/prefix")
POLICIES = {"head": HEAD, "worker": WORKER, "trust": trust_policy()}
INSTANCE = "arn:aws:ec2:us-east-1:123456789012:instance/i-1"
OWN_TAG = {"aws:ResourceTag/ray-cluster-name": "mine"}
OTHER_TAG = {"aws:ResourceTag/ray-cluster-name": "theirs"}


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def may(policy: dict[str, Any], action: str, resource: str, context: Mapping[str, str] = {}) -> bool:
    """What IAM decides, as far as these policies go: some statement allows it, and its conditions hold."""
    return any(
        action in as_list(statement["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in as_list(statement["Resource"]))
        and all(
            context.get(key) == expected
            for key, expected in statement.get("Condition", {}).get("StringEquals", {}).items()
        )
        for statement in policy["Statement"]
    )


@pytest.mark.parametrize("name", POLICIES)
def test_each_is_a_policy_document(name: str) -> None:
    policy = json.loads(json.dumps(POLICIES[name]))
    assert set(policy) == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert set(statement) <= {"Effect", "Action", "Resource", "Principal", "Condition"}
        assert statement["Effect"] == "Allow"
        assert ("Resource" in statement) != ("Principal" in statement)
        assert set(statement.get("Condition", {})) <= {"StringEquals"}


@pytest.mark.parametrize("name", POLICIES)
def test_no_action_is_a_pattern(name: str) -> None:
    actions = [action for statement in POLICIES[name]["Statement"] for action in as_list(statement["Action"])]
    assert [action for action in actions if re.fullmatch(r"[a-z0-9]+:[A-Za-z]+", action) is None] == []


def test_instances_and_nobody_else_may_take_the_roles() -> None:
    (statement,) = trust_policy()["Statement"]
    assert statement["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_workers_have_the_storage_and_nothing_else() -> None:
    actions = [action for statement in WORKER["Statement"] for action in as_list(statement["Action"])]
    assert {action.split(":")[0] for action in actions} == {"s3"}
    assert worker_policy("abfs://container@account.dfs.core.windows.net/prefix")["Statement"] == []


@pytest.mark.parametrize("action", ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:CreateTags"])
def test_a_head_ends_and_tags_its_own_machines_only(action: str) -> None:
    assert may(HEAD, action, INSTANCE, OWN_TAG)
    assert not may(HEAD, action, INSTANCE, OTHER_TAG)
    assert not may(HEAD, action, INSTANCE)


def test_a_head_launches_only_machines_that_have_its_tag_and_only_in_its_region() -> None:
    own = {"aws:RequestTag/ray-cluster-name": "mine", "aws:RequestedRegion": "us-east-1"}
    assert may(HEAD, "ec2:RunInstances", INSTANCE, own)
    assert not may(HEAD, "ec2:RunInstances", INSTANCE, {**own, "aws:RequestTag/ray-cluster-name": "theirs"})
    assert not may(HEAD, "ec2:RunInstances", INSTANCE, {**own, "aws:RequestedRegion": "eu-west-1"})
    assert not may(HEAD, "ec2:RunInstances", INSTANCE, {"aws:RequestedRegion": "us-east-1"})


@pytest.mark.parametrize(
    "kind", ["subnet", "security-group", "network-interface", "volume", "key-pair", "spot-instances-request"]
)
def test_a_head_may_use_what_machines_are_made_of(kind: str) -> None:
    resource = f"arn:aws:ec2:us-east-1:123456789012:{kind}/x-1"
    assert may(HEAD, "ec2:RunInstances", resource, {"aws:RequestedRegion": "us-east-1"})
    assert not may(HEAD, "ec2:TerminateInstances", resource, OWN_TAG)


def test_a_head_gives_its_workers_their_role_and_nobody_another_one() -> None:
    assert may(HEAD, "iam:PassRole", WORKER_ROLE)
    assert not may(HEAD, "iam:PassRole", "arn:aws:iam::123456789012:role/administrator")
    actions = [action for statement in HEAD["Statement"] for action in as_list(statement["Action"])]
    assert [action for action in actions if action.startswith("iam:")] == ["iam:PassRole"]


@pytest.mark.parametrize("policy", [HEAD, WORKER], ids=["head", "worker"])
@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"])
def test_nodes_read_and_write_below_the_storage_root_only(policy: dict[str, Any], action: str) -> None:
    assert may(policy, action, "arn:aws:s3:::bucket/some/prefix/jobs/1/job.json")
    assert not may(policy, action, "arn:aws:s3:::bucket/some/other/file")
    assert not may(policy, action, "arn:aws:s3:::bucket/some/prefix-of-others/file")
    assert not may(policy, action, "arn:aws:s3:::bucket-2/some/prefix/file")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3a://bucket?region=us-east-1"])
def test_a_storage_root_that_is_a_whole_bucket_is_that_bucket(uri: str) -> None:
    policy = worker_policy(uri)
    assert may(policy, "s3:GetObject", "arn:aws:s3:::bucket/jobs/1/job.json")
    assert may(policy, "s3:ListBucket", "arn:aws:s3:::bucket")
    assert not may(policy, "s3:ListBucket", "arn:aws:s3:::bucket-2")
