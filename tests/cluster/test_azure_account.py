"""What a cluster has in an Azure subscription: made once, found again by its group, removed without a trace."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from support.cloud.arm_messages import SUBSCRIPTION_ID, Call
from support.cloud.resource_manager import ResourceManager

from periflow_ray.cluster import lifecycle
from periflow_ray.cluster.config.render import render_yaml
from periflow_ray.cluster.config.spec import build_spec
from periflow_ray.cluster.lifecycle import take_down
from periflow_ray.cluster.providers.azure import AzureProvider, _parse_time
from periflow_ray.cluster.providers.azure_api import AzureApi, find_version
from periflow_ray.cluster.providers.azure_setup import parse_container
from periflow_ray.cluster.providers.provider import Finding, Preparation, ProviderError
from periflow_ray.plan.catalogue import find_vm

VM = "azure-80gb-a100-4g-eastus-spot"
SPEC = build_spec("mine", [find_vm(VM)])
ROOT = f"/subscriptions/{SUBSCRIPTION_ID}"
GROUP = f"{ROOT}/resourceGroups/periflow-ray-mine"
ACCOUNT = f"{ROOT}/resourceGroups/data/providers/Microsoft.Storage/storageAccounts/letters"
STORAGE = "abfs://models@letters.dfs.core.windows.net/root"


class BoxProvider(AzureProvider):
    """Asks a subscription in this process, which has a storage account."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.manager = ResourceManager("eastus")
        self.manager.answer(Call("PUT", f"{ROOT}/resourceGroups/data", {"location": "eastus"}))
        monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", SUBSCRIPTION_ID)
        monkeypatch.setattr("periflow_ray.cluster.providers.azure_api._read_metadata", dict)
        monkeypatch.setattr(AzureApi, "exchange", lambda _, request: self._exchange(request))
        super().__init__("eastus")

    def _exchange(self, request: Any) -> tuple[int, str]:
        if "storageAccounts" in request.url and request.url.startswith(f"https://management.azure.com{ROOT}/resources"):
            return 200, json.dumps({"value": [{"id": ACCOUNT}]})
        body = json.loads(request.content) if request.content else {}
        answer = self.manager.answer(Call(request.method, request.url, body))
        return answer.status, "" if answer.body is None else json.dumps(answer.body)

    def list_account(self, kind: str = "") -> list[dict[str, Any]]:
        """All that there is but the group of the storage account."""
        found = [each for each in self.manager.list_resources() if each["name"] != "data"]
        return [each for each in found if each["type"].endswith(kind)]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> BoxProvider:
    return BoxProvider(monkeypatch)


def prepare(provider: BoxProvider, ssh_from: str = "203.0.113.7/32") -> tuple[dict[str, Any], list[str]]:
    """The cluster's configuration after that, and what was told."""
    config = yaml.safe_load(render_yaml(SPEC, "cluster.yaml", "mine"))
    told: list[str] = []
    provider.prepare(Preparation(SPEC, "/keys/key", "ssh-rsa AAAA", ssh_from, STORAGE, told.append), config)
    return config, told


def find_bad(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.verdict == "bad"]


def test_head_and_workers_get_what_is_theirs(provider: BoxProvider) -> None:
    config, _ = prepare(provider)
    container = f"{ACCOUNT}/blobServices/default/containers/models"
    names = {each["properties"]["principalId"]: each["name"] for each in provider.list_account("Identities")}
    assert sorted(
        (names[role["properties"]["principalId"]].removeprefix("periflow-ray-mine-"), role["properties"]["scope"])
        for role in provider.list_account("roleAssignments")
    ) == [("head", container), ("head", GROUP), ("worker", container)]
    types = config["available_node_types"].items()
    identities = {name: each["node_config"]["azure_arm_parameters"]["msi"].split("/")[-1] for name, each in types}
    assert identities == {"head": "periflow-ray-mine-head", VM: "periflow-ray-mine-worker"}
    assert config["provider"]["resource_group"] == GROUP.split("/")[-1]


def test_a_second_time_only_who_may_use_ssh_is_new(provider: BoxProvider) -> None:
    prepare(provider)
    before = {each["id"] for each in provider.list_account()}
    _, told = prepare(provider, "198.51.100.0/24")
    assert [line for line in told if "making" in line] == []
    assert {each["id"] for each in provider.list_account()} == before
    (firewall,) = provider.list_account("networkSecurityGroups")
    rules = [rule["properties"] for rule in firewall["properties"]["securityRules"]]
    assert [rule["sourceAddressPrefix"] for rule in rules] == ["198.51.100.0/24"]


def test_down_removes_also_the_roles_outside_the_group(provider: BoxProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_REMOVE_POLL_S", 0.0)
    prepare(provider)
    # As the head leaves it, which may delete its group and no role.
    provider.end_machines("mine")
    assert [each["type"].split("/")[-1] for each in provider.list_account()] == ["roleAssignments"] * 2
    assert take_down(provider, "mine", lambda text: None) == {}
    assert provider.list_account() == []


def test_a_group_of_somebody_else_is_left_alone(provider: BoxProvider) -> None:
    provider.manager.answer(Call("PUT", GROUP, {"location": "eastus"}))
    for ask in (provider.list_resources, provider.list_machines):
        with pytest.raises(ProviderError, match="no tag ray-cluster-name=mine"):
            ask("mine")
    with pytest.raises(ProviderError, match="Choose another --name"):
        prepare(provider)


def test_what_is_in_the_way_is_seen_before(provider: BoxProvider) -> None:
    assert find_bad(provider.check(SPEC, is_new=True)) == []
    provider.manager.resources.offers.limits["lowPriorityCores"] = 95
    assert "95 vCPUs, 0 in use; the cluster needs up to 192" in find_bad(provider.check(SPEC, is_new=True))[0]
    # A cluster that is up has its part of what is in use.
    assert find_bad(provider.check(SPEC, is_new=False)) == []
    provider.manager.resources.offers.restricted["Standard_NC96ads_A100_v4"] = None
    assert "not available to this subscription" in find_bad(provider.check(SPEC, is_new=True))[0]


def test_every_path_is_asked_by_its_own_providers_version() -> None:
    assert find_version(f"{ROOT}/providers/Microsoft.Compute") == find_version(GROUP) == "2022-09-01"
    assert find_version(f"{GROUP}/providers/Microsoft.Compute/disks") == "2023-10-02"
    assert find_version(f"{ACCOUNT}/providers/Microsoft.Authorization/roleAssignments/1") == "2022-04-01"


def test_only_a_uri_with_an_account_names_a_container() -> None:
    assert parse_container(STORAGE) == ("models", "letters")
    assert parse_container("az://models/root") == parse_container("s3://models/root") == ("", None)


def test_a_time_is_read_however_azure_writes_it() -> None:
    for text in ("2026-09-18T08:22:00.1234567+00:00", "2026-09-18T08:22:00Z", "2026-09-18T10:22:00+02:00"):
        assert _parse_time(text) == 1789719720.0
