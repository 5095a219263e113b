"""What the nodes of a cluster may do on AWS: the head launches and ends its machines, all of them use the storage.

``docs/aws.md`` shows them, together with what whoever runs ``cluster up`` needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

_VERSION = "2012-10-17"


def trust_policy() -> dict[str, Any]:
    """Who may take the roles: instances."""
    statement = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    return {"Version": _VERSION, "Statement": [statement]}


def worker_policy(storage_uri: str) -> dict[str, Any]:
    """The storage root, if it is a bucket, and nothing else."""
    return {"Version": _VERSION, "Statement": _use_storage(storage_uri)}


def head_policy(name: str, region: str, worker_role_arns: Sequence[str], storage_uri: str) -> dict[str, Any]:
    """What the workers may, and what Ray's autoscaler does: launch, tag and end instances of this cluster."""
    own = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": name}}
    in_region = {"StringEquals": {"aws:RequestedRegion": region}}
    launch = [
        # The instances themselves have to be tagged as the cluster's; what they are made of has no tag.
        _allow(
            ["ec2:RunInstances"],
            "arn:aws:ec2:*:*:instance/*",
            {"StringEquals": {"aws:RequestTag/ray-cluster-name": name, "aws:RequestedRegion": region}},
        ),
        _allow(
            ["ec2:RunInstances"],
            [
                "arn:aws:ec2:*::image/*",
                *(
                    f"arn:aws:ec2:*:*:{kind}/*"
                    for kind in (
                        "subnet",
                        "security-group",
                        "network-interface",
                        "volume",
                        "key-pair",
                        "spot-instances-request",
                    )
                ),
            ],
            in_region,
        ),
        _allow(["ec2:CreateTags"], "*", {"StringEquals": {"ec2:CreateAction": "RunInstances"}}),
        _allow(["ec2:CreateTags", "ec2:TerminateInstances", "ec2:StopInstances"], "arn:aws:ec2:*:*:instance/*", own),
        _allow(["iam:PassRole"], list(worker_role_arns)),
        _allow(["ssm:GetParameters"], "arn:aws:ssm:*::parameter/aws/service/*"),
        _allow(
            [
                "ec2:DescribeInstances",
                "ec2:DescribeInstanceTypes",
                "ec2:DescribeInstanceStatus",
                "ec2:DescribeSubnets",
                "ec2:DescribeSecurityGroups",
                "ec2:DescribeKeyPairs",
                "ec2:DescribeImages",
                "ec2:DescribeVolumes",
            ],
            "*",
        ),
    ]
    return {"Version": _VERSION, "Statement": [*launch, *_use_storage(storage_uri)]}


def _use_storage(storage_uri: str) -> list[dict[str, Any]]:
    parts = urlsplit(storage_uri)
    if parts.scheme not in ("s3", "s3a"):
        return []
    bucket, prefix = f"arn:aws:s3:::{parts.netloc}", parts.path.strip("/")
    objects = f"{bucket}/{prefix}/*" if prefix else f"{bucket}/*"
    return [
        _allow(["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"], bucket),
        _allow(
            [
                "s3:GetObject",
                "s3:PutObject",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:ListMultipartUploadParts",
            ],
            objects,
        ),
    ]


def _allow(
    actions: Sequence[str], resources: str | Sequence[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return statement if condition is None else {**statement, "Condition": condition}
