"""A cluster from VM names to a subscription with nothing of it, on Azure in a box; the tests go through its life."""

from __future__ import annotations

from typing import Any

import pytest
from support.cloud.arm_messages import SUBSCRIPTION_ID
from support.cloud.box import Box
from support.cloud.user import (
    ROOT,
    ask_json,
    assert_exact,
    find_machines,
    find_refusal,
    read_events,
    run,
    start_and_kill,
    submit_chain,
    up,
)
from support.hash_chain import HashChain
from support.workbench import wait_until

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

VM = "azure-16gb-t4-1g-eastus"
SPOT = f"{VM}-spot"
GROUP = "periflow-ray-mine"
UP = up("mine", SPOT, VM)
CHAIN = HashChain(num_steps=600, step_time_s=0.05, save_every=40, num_slow_starts=2)


def find(box: Box, kind: str) -> list[dict[str, Any]]:
    """Everything of a kind that the subscription has."""
    return [each for each in box.ask("resources") if each["type"].endswith(f"/{kind}")]


def wait_for_steps(box: Box, attempt: int) -> None:
    """Wait until an attempt of the job makes steps, and has saved some."""

    def has_saved() -> bool:
        view = ask_json(box, "job", "view", "1")
        assert view["status"] in ("allocating", "waiting", "preparing", "running"), view
        if len(view["attempts"]) < attempt:
            return False
        saved = ask_json(box, "checkpoint", "list", "--job", "1")
        return any(each["step"] > view["attempts"][attempt - 1]["resumed_step"] for each in saved)

    wait_until(has_saved, f"attempt {attempt} trains", 240)


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
    azure.ask("quota", code="lowPriorityCores", vcpus=3)
    try:
        refusal = find_refusal(azure, *UP)
    finally:
        azure.ask("quota", code="lowPriorityCores", vcpus=1000)
    assert "Low-priority vCPUs: 3 vCPUs, 0 in use; the cluster needs up to 16" in refusal
    assert azure.ask("resources") == []


def test_a_head_that_does_not_come_leaves_no_card_and_no_address(azure: Box) -> None:
    azure.ask("fail", match=["-head-"], code="SkuNotAvailable", num_times=1, part="vm")
    refusal = find_refusal(azure, *UP)
    assert "the provider refused the head: SkuNotAvailable" in refusal
    assert find(azure, "networkInterfaces") == find(azure, "publicIPAddresses") == []


def test_up_goes_on_where_it_was_killed_and_makes_a_head_that_only_its_owner_reaches(azure: Box) -> None:
    # Azure is busy, and an answer gets lost.
    azure.ask(
        "fail", match=["GET", "/providers/Microsoft.Compute/skus"], code="TooManyRequests", num_times=2, status=429
    )
    azure.ask("fail", match=["GET", "/usages"], code="InternalServerError", num_times=1, status=500)
    start_and_kill(azure, UP, "the head boots")
    assert ask_json(azure, "cluster", "status", "mine")["status"] == "creating"
    run(azure, *UP)
    status = ask_json(azure, "cluster", "status", "mine")
    (head,) = status["machines"]
    assert (status["status"], head["node_type"], head["state"]) == ("running", "head", "running")
    assert status["head_address"] == head["public_address"]
    assert {each["id"].split("/")[4] for each in azure.ask("resources")} == {GROUP}
    (firewall,) = find(azure, "networkSecurityGroups")
    rules = [rule["properties"] for rule in firewall["properties"]["securityRules"]]
    assert [(rule["sourceAddressPrefix"], rule["destinationPortRange"]) for rule in rules] == [("10.77.0.0/24", "22")]


def test_a_job_takes_what_the_cloud_has_and_says_so(azure: Box) -> None:
    azure.ask("fail", match=["-worker-", '"Spot"'], code="SkuNotAvailable", num_times=99, part="vm")
    run(azure, *submit_chain(azure, CHAIN, f"{SPOT}\nfallback: on_demand", "--no-follow"))
    wait_for_steps(azure, 1)
    (fallen_back,) = [text for text in read_events(azure, 1) if f"asks for {VM} instead" in text]
    print(read_events(azure, 1))
    assert fallen_back.startswith(f"the provider refused {SPOT} (SkuNotAvailable"), fallen_back
    assert len(find_machines(azure, VM)) == 2


def test_a_worker_may_do_nothing_in_the_subscription(azure: Box) -> None:
    identities = {each["name"]: each["properties"]["principalId"] for each in find(azure, "userAssignedIdentities")}
    roles = [
        (each["properties"]["principalId"], each["properties"]["scope"]) for each in find(azure, "roleAssignments")
    ]
    assert roles == [(identities[f"{GROUP}-head"], f"/subscriptions/{SUBSCRIPTION_ID}/resourceGroups/{GROUP}")]
    for worker in [vm for vm in find(azure, "virtualMachines") if vm["tags"]["ray-user-node-type"] == VM]:
        assert [path.split("/")[-1] for path in worker["identity"]["userAssignedIdentities"]] == [f"{GROUP}-worker"]
    launches = azure.ask("calls", match=["PUT", "/deployments/", "-worker-"])
    assert {call["principal"] for call in launches} == {identities[f"{GROUP}-head"]}


def test_after_a_loss_without_a_word_it_tries_spot_again(azure: Box) -> None:
    azure.ask("heal")
    azure.ask("lose", instance=find_machines(azure, VM)[0]["instance"])
    wait_for_steps(azure, 2)
    assert len(find_machines(azure, SPOT)) == 2


def test_a_spot_machine_is_taken_away_and_no_step_is_lost(azure: Box) -> None:
    azure.ask("notice", instance=find_machines(azure, SPOT)[0]["instance"], notice_s=30)
    assert_exact(azure, 1, CHAIN)
    _, announced, *_ = ask_json(azure, "job", "view", "1")["attempts"]
    assert announced["resumed_step"] >= CHAIN.save_every, announced
    assert (announced["cause"], announced["num_lost_steps"]) == ("preemption", 0), announced


def test_the_head_keeps_the_account_by_its_own_identity(azure: Box) -> None:
    wait_until(
        lambda: (ask_json(azure, "cluster", "list")[0]["cost_usd"] or 0) > 0, "the warden writes the account", 60
    )


def test_it_ends_by_itself_when_no_job_runs(azure: Box) -> None:
    run(azure, *UP, "--autostop", "1s")
    wait_until(lambda: azure.ask("machines") == [], "the head ends all of it", 90)
    (listed,) = ask_json(azure, "cluster", "list")
    assert "no job has run" in listed["ended_because"]


def test_down_from_another_machine_leaves_nothing(azure: Box) -> None:
    # Its end took the whole group; a new one of the same name.
    run(azure, *UP)
    azure.ask("leak", group=GROUP, name="ray-mine-worker-lost")
    down = azure.run_elsewhere("periflow-ray", "cluster", "down", "mine", "--yes", "--storage", ROOT, timeout_s=240)
    assert down.returncode == 0, down.stdout + down.stderr
    for lost in ("network interface ray-mine-worker-lost-nic-public0", "disk ray-mine-worker-lost-disk0"):
        assert lost in down.stderr
    assert azure.ask("resources") == []
    never = ("periflow-ray", "cluster", "down", "never", "--vm", VM, "--yes", "--storage", ROOT)
    assert "There is nothing of cluster 'never'" in azure.run_elsewhere(*never, timeout_s=60).stdout
