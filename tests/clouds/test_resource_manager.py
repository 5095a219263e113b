"""The box's Azure answers what Ray's launcher asks, with the names and refusals of the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
from support.cloud.arm_messages import SUBSCRIPTION_ID, Answer, ArmError, Call
from support.cloud.resource_manager import ResourceManager

RAY_TEMPLATES = Path(ray.autoscaler.__file__).parent / "_private/_azure"
GROUP = f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/mine"
NETWORK, COMPUTE = f"{GROUP}/providers/Microsoft.Network", f"{GROUP}/providers/Microsoft.Compute"
DEPLOYMENT = f"{GROUP}/providers/Microsoft.Resources/deployments"
CLUSTER = {
    "subnet": "10.20.0.0/16",
    "clusterId": "mine-1234",
    "msiName": "ray-mine-1234-msi",
    "msiResourceGroup": "mine",
    "createMsi": True,
    "roleAssignmentGuid": "8c1e7f0a-0000-4000-8000-000000000001",
}


def deploy(manager: ResourceManager, kind: str, parameters: dict[str, Any], principal: str = "owner") -> Answer:
    template = json.loads((RAY_TEMPLATES / f"azure-{kind}-template.json").read_text())
    given = {name: {"value": value} for name, value in parameters.items()}
    body = {"properties": {"mode": "Incremental", "template": template, "parameters": given}}
    return manager.answer(Call("PUT", f"{DEPLOYMENT}/{kind}-{len(manager.list_resources())}", body, principal))


def worker(manager: ResourceManager, **parameters: Any) -> dict[str, Any]:
    outputs = manager.answer(Call("GET", f"{DEPLOYMENT}/config-1")).body["properties"]["outputs"]
    return {
        "vmName": "ray-mine-worker-1234-ab12",
        "adminUsername": "ubuntu",
        "publicKey": "ssh-rsa AAAA",
        "imagePublisher": "microsoft-dsvm",
        "imageOffer": "ubuntu-hpc",
        "imageSku": "2404",
        "imageVersion": "latest",
        "vmSize": "Standard_NC4as_T4_v3",
        "vmTags": {"ray-cluster-name": "mine"},
        "vmCount": 1,
        "zones": ["1", "2"],
        **{name: output["value"] for name, output in outputs.items()},
        **parameters,
    }


def refuse_spot(vm_id: str, parameters: Any) -> ArmError | None:
    is_spot = parameters.get("priority") == "Spot"
    return ArmError(409, "SkuNotAvailable", "no capacity") if is_spot else None


@pytest.fixture
def manager() -> ResourceManager:
    """A group with what Ray makes in it before the first VM."""
    manager = ResourceManager("eastus", refuse_spot)
    assert manager.answer(Call("PUT", GROUP, {"location": "eastus"})).status == 201
    assert deploy(manager, "config", CLUSTER).status == 201
    return manager


def names(manager: ResourceManager) -> set[str]:
    return {resource["name"] for resource in manager.list_resources()}


def refusal(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.body["error"]["code"]


BEFORE_THE_FIRST_VM = {
    "mine",
    "ray-mine-1234-msi",
    "ray-mine-1234-nsg",
    "ray-mine-1234-vnet",
    "8c1e7f0a-0000-4000-8000-000000000001",
}


def test_rays_templates_make_what_they_name(manager: ResourceManager) -> None:
    assert names(manager) == BEFORE_THE_FIRST_VM
    answer = deploy(manager, "vm", worker(manager, vmCount=2, osDiskSize=100))
    assert answer.body["properties"]["provisioningState"] == "Succeeded", answer
    base = "ray-mine-worker-1234-ab12"
    made = names(manager) - BEFORE_THE_FIRST_VM
    assert {name for name in made if "OsDisk" not in name} == {
        *(f"{base}{index}" for index in (0, 1)),
        *(f"{base}-ip{index}" for index in (0, 1)),
        *(f"{base}-nic-public{index}" for index in (0, 1)),
    }
    vms = manager.resources.list_vms()
    assert [(vm["zones"], vm["state"], vm["is_spot"]) for vm in vms] == [
        (["1"], "running", False),
        (["2"], "running", False),
    ]
    outputs = answer.body["properties"]["outputs"]
    assert [vm["public_address"] for vm in vms] == outputs["publicIp"]["value"]
    assert [vm["address"] for vm in vms] == outputs["privateIp"]["value"]


def test_what_a_vm_needs_has_no_tags_and_stays_when_its_deployment_fails(manager: ResourceManager) -> None:
    answer = deploy(manager, "vm", worker(manager, priority="Spot"))
    assert answer.body["properties"]["provisioningState"] == "Accepted"
    status = manager.answer(Call("GET", answer.headers["Azure-AsyncOperation"].partition(".com")[2])).body
    assert (status["status"], status["error"]["code"]) == ("Failed", "DeploymentFailed")
    assert [detail["code"] for detail in status["error"]["details"]] == ["SkuNotAvailable"]
    left = [each for each in manager.list_resources() if each["name"].startswith("ray-mine-worker")]
    assert {each["name"] for each in left} == {"ray-mine-worker-1234-ab12-nic-public0", "ray-mine-worker-1234-ab12-ip0"}
    assert not any(each.get("tags") for each in left)


def test_a_deployment_is_looked_at_before_anything_is_made(manager: ResourceManager) -> None:
    without_size = worker(manager)
    del without_size["vmSize"]
    assert refusal(deploy(manager, "vm", without_size)) == (400, "InvalidTemplate")
    assert refusal(deploy(manager, "vm", worker(manager, vmSise="x"))) == (400, "InvalidTemplate")
    assert refusal(deploy(manager, "vm", worker(manager, vmCount="1"))) == (400, "InvalidTemplate")
    manager.resources.offers.limits["lowPriorityCores"] = 3
    manager.resources.offers.restricted["Standard_NC8as_T4_v3"] = ("1",)
    for parameters, code in (
        ({"priority": "Spot"}, "QuotaExceeded"),
        ({"vmSize": "Standard_NC8as_T4_v3"}, "SkuNotAvailable"),
        ({"vmSize": "Standard_NC6s_v3"}, "SkuNotAvailable"),
        ({"imageSku": "1804"}, "PlatformImageNotFound"),
        ({"vmName": "x" * 64}, "InvalidParameter"),
    ):
        answer = deploy(manager, "vm", worker(manager, **parameters))
        assert refusal(answer) == (400, "InvalidTemplateDeployment")
        assert [detail["code"] for detail in answer.body["error"]["details"]] == [code]
    assert names(manager) == BEFORE_THE_FIRST_VM


def test_nothing_that_is_in_use_can_be_deleted(manager: ResourceManager) -> None:
    deploy(manager, "vm", worker(manager))
    base = "ray-mine-worker-1234-ab12"
    disk = manager.answer(Call("GET", f"{COMPUTE}/disks")).body["value"][0]
    in_use = {
        f"{NETWORK}/networkSecurityGroups/ray-mine-1234-nsg": "InUseNetworkSecurityGroupCannotBeDeleted",
        f"{NETWORK}/virtualNetworks/ray-mine-1234-vnet": "InUseSubnetCannotBeDeleted",
        f"{NETWORK}/virtualNetworks/ray-mine-1234-vnet/subnets/ray-mine-1234-subnet": "InUseSubnetCannotBeDeleted",
        f"{NETWORK}/publicIPAddresses/{base}-ip0": "PublicIPAddressCannotBeDeleted",
        f"{NETWORK}/networkInterfaces/{base}-nic-public0": "NicInUse",
        disk["id"]: "OperationNotAllowed",
    }
    for resource_id, code in in_use.items():
        assert refusal(manager.answer(Call("DELETE", resource_id)))[1] == code
    assert disk["properties"]["diskState"] == "Attached"
    assert manager.answer(Call("DELETE", f"{COMPUTE}/virtualMachines/{base}0")).status == 200
    assert names(manager) == BEFORE_THE_FIRST_VM | {f"{base}-ip0", f"{base}-nic-public0", disk["name"]}
    for resource_id in reversed(in_use):
        assert manager.answer(Call("DELETE", resource_id)).status == 200
    assert names(manager) == {"mine", "ray-mine-1234-msi", "8c1e7f0a-0000-4000-8000-000000000001"}
    assert manager.answer(Call("DELETE", GROUP)).status == 200
    assert names(manager) == set()


def test_an_evicted_vm_leaves_its_interface_and_its_address(manager: ResourceManager) -> None:
    deploy(manager, "vm", worker(manager))
    manager.resources.evict("ray-mine-worker-1234-ab120")
    assert names(manager) - BEFORE_THE_FIRST_VM == {
        "ray-mine-worker-1234-ab12-ip0",
        "ray-mine-worker-1234-ab12-nic-public0",
    }


def test_a_head_may_do_what_its_roles_allow(manager: ResourceManager) -> None:
    identity = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/ray-mine-1234-msi"
    principal = manager.answer(Call("GET", identity)).body["properties"]["principalId"]
    assert deploy(manager, "vm", worker(manager), principal).status == 201
    # Contributor of its group: not of the subscription, and it may not give roles.
    skus = f"/subscriptions/{SUBSCRIPTION_ID}/providers/Microsoft.Compute/skus"
    assert refusal(manager.answer(Call("GET", skus, principal=principal))) == (403, "AuthorizationFailed")
    assert refusal(deploy(manager, "config", CLUSTER, principal)) == (403, "AuthorizationFailed")
    role = f"{GROUP}/providers/Microsoft.Authorization/roleAssignments/{CLUSTER['roleAssignmentGuid']}"
    assert manager.answer(Call("DELETE", role)).status == 200
    assert refusal(manager.answer(Call("GET", f"{COMPUTE}/virtualMachines", principal=principal)))[0] == 403


def test_a_role_is_given_once(manager: ResourceManager) -> None:
    again = {**CLUSTER, "roleAssignmentGuid": "8c1e7f0a-0000-4000-8000-000000000002"}
    answer = deploy(manager, "config", again)
    error = manager.answer(Call("GET", answer.headers["Azure-AsyncOperation"].partition(".com")[2])).body["error"]
    assert [detail["code"] for detail in error["details"]] == ["RoleAssignmentExists"]


def test_a_groups_list_shows_neither_properties_nor_roles(manager: ResourceManager) -> None:
    condition = "substringof('1234', name) and resourceType eq 'Microsoft.Network/virtualNetworks'"
    found = manager.answer(Call("GET", f"{GROUP}/resources?api-version=2024-03-01&$filter={condition}")).body["value"]
    assert [each["name"] for each in found] == ["ray-mine-1234-vnet"]
    assert "properties" not in found[0]
    everything = manager.answer(Call("GET", f"{GROUP}/resources")).body["value"]
    assert len(everything) == 3
    missing = manager.answer(Call("GET", f"{COMPUTE}/virtualMachines/nobody"))
    assert refusal(missing) == (404, "ResourceNotFound")
    assert refusal(manager.answer(Call("GET", GROUP.replace("mine", "yours")))) == (404, "ResourceGroupNotFound")
