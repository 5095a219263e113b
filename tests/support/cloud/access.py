"""What a machine outside the cloud needs so that the cloud's clients reach the box: variables, files and names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.cloud.arm_messages import ENDPOINT_HOST, SUBSCRIPTION_ID, TENANT_ID
from support.cloud.azure_roles import OWNER
from support.cloud.virtual_machines import AWS_ENVIRONMENT, PROVIDER_ADDRESS

AUTHORITY = "box-ca.pem"
AZURE_HOSTS = (f"{PROVIDER_ADDRESS} {ENDPOINT_HOST}",)
# Azure's SDKs send the token that their credential has; it is who asks.
OWNER_TOKEN = f"principal-{OWNER}"
_AZ = """\
#!/bin/sh
# The command line of somebody who has logged in, as far as Azure's SDKs and scripts ask it.
case "$*" in
"account get-access-token"*) echo '{token}' ;;
"account show --query id"*) echo '{subscription}' ;;
"account show"*) echo '{account}' ;;
*) echo "az: the box does not know: $*" >&2; exit 2 ;;
esac
"""


@dataclass(frozen=True)
class Access:
    """Variables of the user's shell, files of the user's home by relative path, and lines for /etc/hosts.

    What is in ``bin`` can be run, and is on the user's PATH.
    """

    env: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()


def make_access(cloud: str, region: str, home: str, state_dir: Path) -> Access:
    """Access to the cloud whose provider has ``state_dir`` and is ready; ``home`` is the user's."""
    if cloud == "aws":
        return Access({**AWS_ENVIRONMENT, "AWS_DEFAULT_REGION": region})
    return Access(
        # The box has no Azure Blob: storage is S3.
        {"REQUESTS_CA_BUNDLE": f"{home}/{AUTHORITY}", **AWS_ENVIRONMENT, "AWS_DEFAULT_REGION": "us-east-1"},
        {"bin/az": _write_az(), AUTHORITY: (state_dir / AUTHORITY).read_text()},
        AZURE_HOSTS,
    )


def _write_az() -> str:
    token = {
        "accessToken": OWNER_TOKEN,
        "expiresOn": "2099-01-01 00:00:00.000000",
        "expires_on": 4_070_908_800,
        "subscription": SUBSCRIPTION_ID,
        "tenant": TENANT_ID,
        "tokenType": "Bearer",
    }
    account = {
        "id": SUBSCRIPTION_ID,
        "name": "Box",
        "state": "Enabled",
        "tenantId": TENANT_ID,
        "user": {"name": "user@example.com", "type": "user"},
    }
    return _AZ.format(token=json.dumps(token), subscription=SUBSCRIPTION_ID, account=json.dumps(account))
