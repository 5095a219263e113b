"""What goes wrong on AWS and costs the user nothing, in a box; the tests go through the life of two clusters."""

from __future__ import annotations

import pytest
from support.cloud.box import Box
from support.cloud.user import (
    ROOT,
    ask_json,
    assert_exact,
    find_machines,
    find_refusal,
    read_events,
    run,
    submit_chain,
    up,
    wait_for_status,
)
from support.hash_chain import HashChain
from support.workbench import wait_until

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

VM = "aws-24gb-a10g-1g-us-west-2-spot"
OTHER_VM = "aws-16gb-t4-1g-us-west-2"
MINE = "aws-24gb-a10g-1g-us-west-2"
CHAIN = HashChain(num_steps=400, step_time_s=0.05, save_every=50)


def test_a_job_makes_its_cluster_and_waits_for_all_its_machines(aws: Box) -> None:
    # An answer that never comes, one connection that ends, and a region that has one machine where two are asked for.
    aws.ask("hang", match=["Action=DescribeInstanceTypeOfferings"], num_times=1)
    aws.ask("cut", match=["Action=DescribeVpcs"], num_times=1)
    aws.ask("scarce", is_scarce=True)
    run(aws, "env", "PERIFLOW_SSH_FROM=10.77.0.0/24", *submit_chain(aws, CHAIN, VM, "--no-follow", "--up", "--yes"))
    wait_until(lambda: len(find_machines(aws, VM)) == 1, "one machine comes", 120)
    assert ask_json(aws, "job", "view", "1")["status"] in ("allocating", "waiting")
    aws.ask("scarce", is_scarce=False)
    wait_for_status(aws, 1, "running")
    assert len(find_machines(aws, VM)) == 2


def test_a_machine_dies_without_a_word(aws: Box) -> None:
    def has_checkpoint() -> bool:
        return bool(ask_json(aws, "checkpoint", "list", "--job", "1"))

    wait_until(has_checkpoint, "the job has something to lose", 120)
    aws.ask("lose", instance=find_machines(aws, VM)[0]["instance"])
    assert_exact(aws, 1, CHAIN)
    first, second, *_ = ask_json(aws, "job", "view", "1")["attempts"]
    # The other machine's rank goes on until the loss is noticed.
    assert first["num_lost_steps"] > 0, first
    assert second["resumed_step"] >= CHAIN.save_every, second


def test_a_cluster_beside_it_is_another_one(aws: Box) -> None:
    mine = find_machines(aws, "head")
    run(aws, *up("other", OTHER_VM))
    assert len(find_machines(aws, "head")) == 2
    listed = {cluster["name"]: cluster["status"] for cluster in ask_json(aws, "cluster", "list")}
    assert listed == {MINE: "running", "other": "running"}
    tokens = run(aws, "bash", "-c", "cat ~/.local/share/periflow-ray/clusters/*/token | fold -w 64").split()
    assert len(set(tokens)) == 2
    run(aws, "periflow-ray", "cluster", "down", MINE, "--yes", "--storage", ROOT)
    assert [head for head in find_machines(aws, "head") if head in mine] == []
    (other,) = ask_json(aws, "cluster", "status", "other")["machines"]
    assert (other["node_type"], other["state"]) == ("head", "running")
    assert "other" in run(
        aws, "periflow-ray", "cluster", "ssh", "other", "--storage", ROOT, "--", "cat", "periflow-ray/about.json"
    )


def test_a_quota_that_is_too_small_ends_the_wait_with_its_name(aws: Box) -> None:
    aws.ask("fail", match=["Action=RunInstances"], code="VcpuLimitExceeded", num_times=99)
    refusal = find_refusal(aws, *submit_chain(aws, CHAIN, OTHER_VM, "--wait", "20s"))
    aws.ask("heal")
    assert "VcpuLimitExceeded" in refusal
    assert ask_json(aws, "job", "view", "2")["status"] == "failed"
    assert any("VcpuLimitExceeded" in text for text in read_events(aws, 2))


def test_a_cluster_that_has_cost_enough_ends(aws: Box) -> None:
    run(aws, *submit_chain(aws, HashChain(num_steps=10**6, step_time_s=0.1, save_every=10**7), OTHER_VM, "--no-follow"))
    wait_for_status(aws, 3, "running")
    run(aws, *up("other", OTHER_VM), "--max-cost", "0.001")
    wait_until(lambda: find_machines(aws, OTHER_VM) == find_machines(aws, "head") == [], "all of it ends", 120)
    (listed,) = ask_json(aws, "cluster", "list")
    assert "--max-cost is $0.00" in listed["ended_because"]
    # It was asked to save, and did.
    view = ask_json(aws, "job", "view", "3")
    assert view["status"] == "stopped"
    (saved,) = ask_json(aws, "checkpoint", "list", "--job", "3")
    assert saved["step"] == view["attempts"][0]["last_step"] > 0
    run(aws, "periflow-ray", "cluster", "down", "other", "--yes", "--storage", ROOT)
