"""A cluster from VM names to a subscription with nothing of it, on Azure in a box; the tests go through its life."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.cloud.arm_messages import SUBSCRIPTION_ID
from support.cloud.box import Box
from support.workbench import wait_until

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = "s3://periflow/root"
VM = "azure-80gb-a100-4g-eastus-spot"
GROUP = "periflow-ray-mine"
UP = (
    *("periflow-ray", "cluster", "up", "--vm", VM, "--name", "mine", "--yes", "--ssh-from", "10.77.0.0/24"),
    *("--storage", ROOT),
)
# A whole VM, as a job asks for one.
TASK = """
import socket, sys, ray
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_gpus=4, label_selector={"periflow-ray/vm": sys.argv[1]})
def where():
    return socket.gethostname()

print("ran on", ray.get(where.remote(), timeout=300))
"""


def run(box: Box, *argv: str, timeout_s: float = 240.0) -> str:
    """What a command of the user's says, which succeeds."""
    done = box.run(*argv, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_refusal(box: Box, *argv: str) -> str:
    """Why a command of the user's fails, in its own words."""
    done = box.run(*argv, timeout_s=240)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


def find(box: Box, kind: str) -> list[dict[str, Any]]:
    """Everything of a kind that the subscription has."""
    return [each for each in box.ask("resources") if each["type"].endswith(f"/{kind}")]


@pytest.fixture(scope="module", autouse=True)
def _bucket(azure: Box) -> None:
    run(azure, "python", "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='periflow')")


def test_whoever_is_not_logged_in_is_told_how(azure: Box) -> None:
    login = run(azure, "bash", "-c", "cat ~/bin/az")
    azure.write("bin/az", "#!/bin/sh\necho 'Please run az login' >&2\nexit 1\n", mode="700")
    try:
        assert "'az login'" in find_refusal(azure, *UP)
        refusal = find_refusal(azure, "env", f"AZURE_SUBSCRIPTION_ID={SUBSCRIPTION_ID}", *UP)
        assert "no usable Azure credentials" in refusal
    finally:
        azure.write("bin/az", login, mode="700")
    assert azure.ask("resources") == []


def test_too_small_a_quota_is_seen_before_anything_is_made(azure: Box) -> None:
    azure.ask("quota", code="lowPriorityCores", vcpus=95)
    try:
        refusal = find_refusal(azure, *UP)
    finally:
        azure.ask("quota", code="lowPriorityCores", vcpus=1000)
    assert "Low-priority vCPUs: 95 vCPUs, 0 in use; the cluster needs up to 192" in refusal
    assert azure.ask("resources") == []


def test_a_head_that_does_not_come_leaves_no_card_and_no_address(azure: Box) -> None:
    azure.ask("fail", match=["-head-"], code="SkuNotAvailable", num_times=1, part="vm")
    refusal = find_refusal(azure, *UP)
    assert "the provider refused the head: SkuNotAvailable" in refusal
    assert find(azure, "networkInterfaces") == find(azure, "publicIPAddresses") == []


def test_up_makes_a_head_that_only_its_owner_reaches(azure: Box) -> None:
    run(azure, *UP)
    status = json.loads(run(azure, "periflow-ray", "cluster", "status", "mine", "--storage", ROOT, "-o", "json"))
    (head,) = status["machines"]
    assert (status["status"], head["node_type"], head["state"]) == ("running", "head", "running")
    assert status["head_address"] == head["public_address"]
    assert {each["id"].split("/")[4] for each in azure.ask("resources")} == {GROUP}
    (firewall,) = find(azure, "networkSecurityGroups")
    rules = [rule["properties"] for rule in firewall["properties"]["securityRules"]]
    assert [(rule["sourceAddressPrefix"], rule["destinationPortRange"]) for rule in rules] == [("10.77.0.0/24", "22")]


def test_a_worker_may_do_nothing_in_the_subscription(azure: Box) -> None:
    on_head = ("periflow-ray", "cluster", "ssh", "mine", "--storage", ROOT, "--")
    assert "ran on ray-mine-worker-" in run(azure, *on_head, "python", "-c", TASK, VM, timeout_s=330)
    identities = {each["name"]: each["properties"]["principalId"] for each in find(azure, "userAssignedIdentities")}
    roles = [
        (each["properties"]["principalId"], each["properties"]["scope"]) for each in find(azure, "roleAssignments")
    ]
    assert roles == [(identities[f"{GROUP}-head"], f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{GROUP}")]
    (worker,) = [vm for vm in find(azure, "virtualMachines") if vm["tags"]["ray-user-node-type"] == VM]
    assert [path.split("/")[-1] for path in worker["identity"]["userAssignedIdentities"]] == [f"{GROUP}-worker"]
    launches = azure.ask("calls", match=["PUT", "/deployments/", "-worker-"])
    assert [call["principal"] for call in launches] == [identities[f"{GROUP}-head"]]


def test_the_head_keeps_the_account_by_its_own_identity(azure: Box) -> None:
    def cost_usd() -> float:
        listed = json.loads(run(azure, "periflow-ray", "cluster", "list", "--storage", ROOT, "-o", "json"))
        return listed[0]["cost_usd"] or 0.0

    wait_until(lambda: cost_usd() > 0, "the warden writes the account", 60)


def test_down_from_another_machine_leaves_nothing(azure: Box) -> None:
    azure.ask("leak", group=GROUP, name="ray-mine-worker-lost")
    down = azure.run_elsewhere("periflow-ray", "cluster", "down", "mine", "--yes", "--storage", ROOT, timeout_s=240)
    assert down.returncode == 0, down.stdout + down.stderr
    assert "network interface ray-mine-worker-lost-nic-public0" in down.stderr
    assert azure.ask("resources") == []
