"""Azure Resource Manager for one region: who asks, calls, and its errors in words.

A cluster has a resource group of its own, ``periflow-ray-NAME`` with the tag ``ray-cluster-name=NAME``, and all that it
has in the account is in it, apart from its roles on the storage, which carry the group's name as their description.
The calls are plain REST: the SDKs' classes change with each version, and what Azure answers does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import requests

from periflow_ray.cluster.config.spec import own_name
from periflow_ray.cluster.providers.provider import ProviderError

PERMISSIONS_HINT = "docs/azure.md has all that you need, and who can give it."
# One version for each family of resources; each is several years from its end.
VERSIONS = {
    "microsoft.resources": "2022-09-01",
    "microsoft.compute/skus": "2021-07-01",
    "microsoft.compute/disks": "2023-10-02",
    "microsoft.compute": "2024-07-01",
    "microsoft.network": "2024-05-01",
    "microsoft.managedidentity": "2023-01-31",
    "microsoft.authorization": "2022-04-01",
}
_ENDPOINT = "https://management.azure.com"
# Answers only on a machine of Azure's own.
_METADATA = "http://169.254.169.254/metadata/instance?api-version=2021-02-01"
_METADATA_TIMEOUT_S = 1.0
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 60.0
_LOGIN_TIMEOUT_S = 20
_NUM_RETRIES = 5
_READY_TIMEOUT_S = 120.0
_POLL_S = 1.0
_ACTION = re.compile(r"perform action '([^']+)' over scope '([^']+)'")
_LOG_IN = "Log in with 'az login' and choose with 'az account set --subscription ...'."


class ArmError(Exception):
    """A refusal in Azure's words; ``told`` makes a ``ProviderError`` of it."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.status, self.code, self.text = status, code, text


class AzureApi:
    """Calls with this machine's credentials; on a cluster's head these are its own identity's.

    Raises:
        ProviderError: the SDK is not installed, nobody is logged in, or no subscription is chosen.
    """

    def __init__(self, region: str) -> None:
        try:
            from azure.core.configuration import Configuration
            from azure.core.pipeline.policies import HeadersPolicy, RetryPolicy, UserAgentPolicy
            from azure.identity import DefaultAzureCredential
            from azure.mgmt.core import ARMPipelineClient
            from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy
        except ImportError as err:
            raise ProviderError("clusters on Azure need its SDK: pip install 'periflow-ray[azure]'") from err
        self.region = region
        machine = _read_metadata()
        # Without Azure's own machine below it, the search for a machine's identity only takes time.
        credential = DefaultAzureCredential(
            exclude_managed_identity_credential=not machine,
            exclude_workload_identity_credential=not machine,
            exclude_shared_token_cache_credential=True,
            process_timeout=_LOGIN_TIMEOUT_S,
        )
        configuration: Any = Configuration()
        configuration.headers_policy = HeadersPolicy({"Accept": "application/json"})
        configuration.user_agent_policy = UserAgentPolicy("periflow-ray")
        # It waits as long as Azure says, when that is busy.
        configuration.retry_policy = RetryPolicy(retry_total=_NUM_RETRIES)
        configuration.authentication_policy = ARMChallengeAuthenticationPolicy(credential, f"{_ENDPOINT}/.default")
        self._client: Any = ARMPipelineClient(_ENDPOINT, config=configuration)
        subscription_id = os.environ.get("AZURE_SUBSCRIPTION_ID") or _ask_az() or machine.get("subscriptionId")
        if not subscription_id:
            raise ProviderError(f"no Azure subscription is known. {_LOG_IN} Or set AZURE_SUBSCRIPTION_ID.")
        self.subscription_id = str(subscription_id)
        self.root = f"/subscriptions/{subscription_id}"

    def group_id(self, name: str) -> str:
        """The id of a cluster's resource group, whether or not it is there."""
        return f"{self.root}/resourceGroups/{own_name(name)}"

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str) -> Any:
        """What Azure answers; None for nothing.

        Raises:
            ArmError: it refused.
        """
        from azure.core.rest import HttpRequest

        given = {"api-version": find_version(path), **{f"${name}": value for name, value in query.items()}}
        return self._send(HttpRequest(method, f"{_ENDPOINT}{path}", params=given, json=body))

    def pages(self, path: str, **query: str) -> list[dict[str, Any]]:
        """All pages of a list; nothing where that is gone whose list it is."""
        from azure.core.rest import HttpRequest

        try:
            answer = self.call("GET", path, None, **query)
        except ArmError as err:
            if err.status == 404:
                return []
            raise
        if isinstance(answer, list):
            return answer
        found = list(answer["value"])
        while answer.get("nextLink"):
            answer = self._send(HttpRequest("GET", answer["nextLink"]))
            found += answer["value"]
        return found

    def find(self, path: str) -> dict[str, Any] | None:
        """A resource, or None where there is none."""
        try:
            found: dict[str, Any] = self.call("GET", path)
        except ArmError as err:
            if err.status == 404:
                return None
            raise
        return found

    def make(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make a resource, or make it as it is asked for, and wait until it is."""
        found: dict[str, Any] = self.call("PUT", path, body)
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while (state := found.get("properties", {}).get("provisioningState", "Succeeded")) != "Succeeded":
            if state in ("Failed", "Canceled") or time.monotonic() > deadline:
                raise ArmError(409, state, f"{path} has not been made")
            time.sleep(_POLL_S)
            found = self.call("GET", path)
        return found

    def _send(self, request: Any) -> Any:
        status, text = self.exchange(request)
        if status < 400:
            return json.loads(text) if text else None
        if request.method == "DELETE" and status == 404:
            return None
        try:
            error = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            error = {"code": str(status), "message": text[:500]}
        details = "".join(f" {each.get('code')}: {each.get('message')}" for each in error.get("details") or [])
        raise ArmError(status, str(error.get("code", "")), f"{error.get('message', '')}{details}")

    def exchange(self, request: Any) -> tuple[int, str]:
        """Send a request, and say the status and the text of the answer."""
        response = self._client.send_request(
            request, connection_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S
        )
        return response.status_code, response.text()


def find_version(path: str) -> str:
    """The version of the API that the last provider of a path is asked by."""
    _, _, last = path.lower().rpartition("/providers/")
    family, slash, rest = last.partition("/")
    kind = f"{family}/{rest.split('/')[0]}"
    # Groups, lists of everything, and a provider itself belong to the resource manager.
    return VERSIONS.get(kind) or (VERSIONS.get(family) if slash else None) or VERSIONS["microsoft.resources"]


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn what Azure says into words."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        yield
    except ArmError as err:
        hint = ""
        if err.status == 429:
            hint = " It was asked too often, also by others in this subscription; try again in some minutes."
        elif found := _ACTION.search(err.text):
            hint = f" You need the permission {found[1]} on {found[2]}; {PERMISSIONS_HINT}"
        elif err.status == 403:
            hint = f" {PERMISSIONS_HINT}"
        elif err.code in ("SubscriptionNotFound", "InvalidSubscriptionId"):
            hint = f" {_LOG_IN}"
        elif err.code == "MissingSubscriptionRegistration":
            hint = " Register it: az provider register --namespace NAMESPACE"
        elif err.status == 401:
            hint = " Log in again: az login"
        raise ProviderError(f"Azure refused {doing}: {err}{hint}", err.code) from err
    except ClientAuthenticationError as err:
        raise ProviderError(
            f"there are no usable Azure credentials for {doing}. {_LOG_IN} Azure's own words: {_shorten(str(err))}",
            "NotLoggedIn",
        ) from err
    except AzureError as err:
        raise ProviderError(f"Azure cannot be reached for {doing}: {_shorten(str(err))}") from err


def _shorten(text: str) -> str:
    """Its first line; the SDK writes a paragraph about each place where it has looked."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "none"


def _read_metadata() -> dict[str, Any]:
    """What this machine of Azure's is; empty elsewhere."""
    session = requests.Session()
    # It is on this machine, whatever proxy leads elsewhere.
    session.trust_env = False
    with contextlib.suppress(requests.RequestException, ValueError, KeyError):
        answer = session.get(_METADATA, headers={"Metadata": "true"}, timeout=_METADATA_TIMEOUT_S)
        if answer.ok:
            compute: dict[str, Any] = answer.json()["compute"]
            return compute
    return {}


def _ask_az() -> str | None:
    """The subscription that the command line is set to."""
    program = shutil.which("az")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "account", "show", "--query", "id", "-o", "tsv"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LOGIN_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
