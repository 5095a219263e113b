"""AWS's API for one region: a session, what several rooms ask of it, and its errors in words.

Everything of a cluster is called ``periflow-ray-NAME`` or has the tag ``ray-cluster-name=NAME``, and is found again by
that alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from periflow_ray.cluster.config.render import find_instance_types
from periflow_ray.cluster.config.spec import CLUSTER_TAG, ClusterSpec, own_name
from periflow_ray.cluster.providers.provider import ProviderError

_ALREADY_THERE = frozenset({"EntityAlreadyExists", "InvalidPermission.Duplicate"})
# A call that gets no answer is made again; boto3's own values would take five minutes to give up.
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S, _NUM_TRIES = 10, 15, 6


class AwsApi:
    """EC2 and IAM with this machine's credentials.

    Raises:
        ProviderError: boto3 is not installed, or there are no credentials.
    """

    def __init__(self, region: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as err:
            raise ProviderError("clusters on AWS need boto3: pip install 'periflow-ray[aws]'") from err
        self.region = region
        self._session = boto3.Session(region_name=region)
        with told("asking for credentials"):
            credentials = self._session.get_credentials()
        if credentials is None:
            raise ProviderError(
                "there are no AWS credentials on this machine. Log in with 'aws configure' or 'aws sso login', or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        self._config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": _NUM_TRIES},
        )
        self.ec2 = self.client("ec2")
        self.iam = self.client("iam")

    def client(self, service: str) -> Any:
        """One of AWS's services, which is asked again where it does not answer."""
        return self._session.client(service, config=self._config)

    def find_zones(self, spec: ClusterSpec) -> dict[str, list[str]]:
        """The zones that offer each instance type."""
        zones: dict[str, list[str]] = {instance_type: [] for instance_type in find_instance_types(spec).values()}
        filters = [{"Name": "instance-type", "Values": list(zones)}]
        with told("asking which zones offer the VM types", "ec2:DescribeInstanceTypeOfferings"):
            pages = self.ec2.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="availability-zone", Filters=filters
            )
            for page in pages:
                for offer in page["InstanceTypeOfferings"]:
                    zones[offer["InstanceType"]].append(offer["Location"])
        return {instance_type: sorted(found) for instance_type, found in zones.items()}

    def find_vpc(self) -> str:
        with told("looking for the region's default network", "ec2:DescribeVpcs"):
            found = self.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not found:
            raise ProviderError(
                f"there is no default VPC in {self.region}. Make one: aws ec2 create-default-vpc --region {self.region}"
            )
        return str(found[0]["VpcId"])

    def find_groups(self, name: str) -> list[dict[str, Any]]:
        return self.pages(
            "describe_security_groups", "SecurityGroups", [{"Name": f"tag:{CLUSTER_TAG}", "Values": [name]}]
        )

    def pages(self, operation: str, key: str, filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pages = self.ec2.get_paginator(operation).paginate(Filters=filters)
        return [item for page in pages for item in page[key]]


def role_name_of(name: str, kind: str) -> str:
    return f"{own_name(name)}-{kind}"


def is_missing(code: str) -> bool:
    return "NotFound" in code or code in ("NoSuchEntity", "InvalidVolume.NotFound")


def is_there(code: str) -> bool:
    return code in _ALREADY_THERE or code.endswith(".Duplicate")


@contextlib.contextmanager
def unless(is_fine: Callable[[str], bool]) -> Iterator[None]:
    """Go on after an error with a code that is fine here."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as err:
        if not is_fine(str(err.response.get("Error", {}).get("Code", ""))):
            raise


@contextlib.contextmanager
def told(doing: str, permission: str = "") -> Iterator[None]:
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
