"""A cluster from VM names to GPUs that train, and back to nothing, on AWS in a box; the tests go through its life."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.cloud.box import Box
from support.cloud.user import (
    ROOT,
    ask_json,
    assert_exact,
    find_machines,
    read_events,
    run,
    start_and_kill,
    submit_chain,
    up,
    wait_for_status,
)
from support.cloud.virtual_machines import PROVIDER_ADDRESS, REPOSITORY_DIR
from support.hash_chain import HashChain
from support.workbench import wait_until

from periflow_ray.cluster.providers.aws_policies import head_policy

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

VM = "aws-24gb-a10g-1g-us-west-2"
UP = up("mine", f"{VM}-spot", VM)
CHAIN = HashChain(num_steps=300, step_time_s=0.05, save_every=1000)
# What an account has of a cluster, by the provider's own word and not by the product's.
LISTING = """
import boto3, json
ec2, iam = boto3.client("ec2"), boto3.client("iam")
found = [i["InstanceId"] for r in ec2.describe_instances()["Reservations"] for i in r["Instances"]
         if i["State"]["Name"] != "terminated"]
found += [v["VolumeId"] for v in ec2.describe_volumes()["Volumes"]]
found += [n["NetworkInterfaceId"] for n in ec2.describe_network_interfaces()["NetworkInterfaces"]]
found += [a["AllocationId"] for a in ec2.describe_addresses()["Addresses"]]
found += [g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] != "default"]
found += [k["KeyName"] for k in ec2.describe_key_pairs()["KeyPairs"]]
found += [r["RoleName"] for r in iam.list_roles()["Roles"]]
found += [p["InstanceProfileName"] for p in iam.list_instance_profiles()["InstanceProfiles"]]
print(json.dumps(found))
"""
# A disk, a network card and an address that nothing uses any more.
LEAKS = """
import boto3
ec2 = boto3.client("ec2")
tags = lambda kind: [{"ResourceType": kind, "Tags": [{"Key": "ray-cluster-name", "Value": "mine"}]}]
subnet = ec2.describe_subnets()["Subnets"][0]
ec2.create_volume(AvailabilityZone=subnet["AvailabilityZone"], Size=100, TagSpecifications=tags("volume"))
ec2.create_network_interface(SubnetId=subnet["SubnetId"], TagSpecifications=tags("network-interface"))
ec2.allocate_address(Domain="vpc", TagSpecifications=tags("elastic-ip"))
"""


# What a program on the head itself gets from the Jobs API without the token, and with that of another cluster.
ATTACK = """
import urllib.error, urllib.request
for headers in ({}, {"Authorization": "Bearer " + "f" * 64}):
    body = b'{"entrypoint": "touch /tmp/attacked"}'
    request = urllib.request.Request(
        "http://127.0.0.1:8265/api/jobs/", body, {"Content-Type": "application/json", **headers}
    )
    try:
        print(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
# Every port at which something of a machine listens, by the machine's own word.
LISTENING = """
lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").read().splitlines()[1:]]
print(*sorted({int(fields[1].rpartition(":")[2], 16) for fields in lines if fields[3] == "0A"}))
"""
# What another tenant's machine on the network gets: which of these ports answer, and whether Ray lets it in.
INTRUDER = """
import os, socket, sys
address, *ports = sys.argv[1:]
found = []
for port in ports:
    with socket.socket() as probe:
        probe.settimeout(3)
        if probe.connect_ex((address, int(port))) == 0:
            found.append(port)
print("open", *found)
import ray
for mode, token in (("disabled", ""), ("token", "f" * 64)):
    os.environ.update(RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)
    try:
        ray.init(address=f"{address}:6379", log_to_driver=False)
        print("joined")
    except Exception as error:
        print("refused", type(error).__name__)
"""


def list_account(box: Box) -> list[str]:
    return json.loads(run(box, "python", "-c", LISTING))


def test_up_goes_on_where_it_was_killed(aws: Box) -> None:
    # The first zone that is asked has none, and the API is busy.
    aws.ask("fail", match=["Action=RunInstances", "MaxCount"], code="InsufficientInstanceCapacity", num_times=1)
    aws.ask("fail", match=["Action=DescribeInstances"], code="RequestLimitExceeded", num_times=2)
    start_and_kill(aws, UP, "the head boots")
    state = ask_json(aws, "cluster", "status", "mine")
    assert (state["status"], [machine["node_type"] for machine in state["machines"]]) == ("creating", ["head"])
    assert "Cluster 'mine' is up." in run(aws, *UP)
    assert ask_json(aws, "cluster", "status", "mine")["status"] == "running"
    assert len(find_machines(aws, "head")) == 1


def test_a_cluster_that_runs_stays_as_it_is(aws: Box) -> None:
    (head,) = find_machines(aws, "head")
    num_launches = len(aws.ask("calls", action="RunInstances"))
    assert "launching" not in aws.run(*UP, timeout_s=120).stderr
    assert find_machines(aws, "head") == [head]
    launches = aws.ask("calls", action="RunInstances")[num_launches:]
    assert [call for call in launches if call.get("DryRun") != "true"] == []


def test_a_job_takes_what_the_cloud_has_and_says_so(aws: Box) -> None:
    aws.ask("fail", match=["Action=RunInstances", "MarketType=spot"], code="InsufficientInstanceCapacity", num_times=99)
    template = run(aws, "cat", "examples/cifar/pf-template.yml")
    changed = re.sub(r"(?m)^vm: .*$", f"vm: {VM}-spot\nfallback: on_demand", template)
    # Trained for one epoch: what counts here is where.
    aws.write("periflow-ray/examples/cifar/pf-template.yml", changed.replace("--total-epochs 5", "--total-epochs 1"))
    try:
        run(
            aws,
            *("periflow-ray", "submit", "-f", "examples/cifar/pf-template.yml", "-d", "examples/cifar"),
            *("--storage", ROOT),
            timeout_s=480,
        )
    finally:
        aws.ask("heal")
    events = read_events(aws, 1)
    assert any(
        f"the provider refused {VM}-spot (InsufficientInstanceCapacity" in text and f"asks for {VM} instead" in text
        for text in events
    ), events
    assert len(find_machines(aws, VM)) == 2
    assert ask_json(aws, "job", "view", "1")["status"] == "success"


def test_a_spot_machine_is_taken_away_and_no_step_is_lost(aws: Box) -> None:
    run(aws, *submit_chain(aws, CHAIN, f"{VM}-spot", "--no-follow"))
    wait_for_status(aws, 2, "running")
    machine = find_machines(aws, f"{VM}-spot")[0]
    aws.ask("notice", instance=machine["instance"], notice_s=30)
    assert_exact(aws, 2, CHAIN)
    first, *_ = ask_json(aws, "job", "view", "2")["attempts"]
    assert (first["cause"], first["num_lost_steps"]) == ("preemption", 0), first


def test_its_secrets_are_where_they_belong_and_nowhere_else(aws: Box) -> None:
    (directory,) = run(aws, "bash", "-c", "ls -d ~/.local/share/periflow-ray/clusters/mine-*").split()
    token = run(aws, "cat", f"{directory}/token")
    modes = run(aws, "stat", "-c", "%a", directory, f"{directory}/token", f"{directory}/key").split()
    assert modes == ["700", "600", "600"]
    key_line = run(aws, "sed", "-n", "2p", f"{directory}/key").strip()
    for secret in (token, key_line):
        found = aws.run("bash", "-c", 'grep -rl --exclude-dir=clusters -- "$0" /tmp ~', secret, timeout_s=120)
        assert found.stdout == ""
        stored = "import sys, s3fs; fs = s3fs.S3FileSystem(); print(*[p for p in fs.find('periflow') if "
        stored += "sys.argv[1].encode() in fs.cat(p)])"
        assert run(aws, "python", "-c", stored, secret).strip() == ""
    on_head = run(aws, "periflow-ray", "cluster", "ssh", "mine", "--storage", ROOT, "--", "ps", "-eo", "args")
    assert "ray" in on_head
    assert token not in on_head


def test_nobody_gets_in_without_the_token(aws: Box) -> None:
    aws.write("attack.py", ATTACK)
    on_head = f"periflow-ray cluster ssh mine --storage {ROOT} -- "
    said = run(aws, "bash", "-c", f"{on_head}python - <~/attack.py")
    assert said.split() == ["401", "403"]
    (head,) = find_machines(aws, "head")
    aws.write("listening.py", LISTENING)
    ports = run(aws, "bash", "-c", f"{on_head}python - <~/listening.py").split()
    assert {"22", "6379", "8265"} <= set(ports)
    scanned = aws.run_elsewhere("python", "-c", INTRUDER, head["address"], *ports, timeout_s=240)
    found, *tries = scanned.stdout.splitlines()
    assert "22" in found.split(), scanned
    assert "8265" not in found.split()
    assert len(tries) == 2, scanned
    assert all(line.startswith("refused") for line in tries), scanned


def find_allowed(policy: dict[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def test_nobody_did_more_than_their_policy_allows(aws: Box) -> None:
    nodes = {machine["address"] for machine in aws.ask("machines")}
    heads = {machine["address"] for machine in aws.ask("machines") if machine["tags"]["ray-node-type"] == "head"}
    done: dict[str, set[str]] = {"user": set(), "head": set(), "worker": set()}
    for address, action in aws.ask("actions"):
        who = "head" if address in heads else "worker" if address in nodes else "user"
        if address != PROVIDER_ADDRESS:
            done[who].add(action)
    mine = json.loads((REPOSITORY_DIR / "docs/policies/aws-cluster.json").read_text())
    assert "ec2:RunInstances" in done["user"]
    # Making the bucket is the test's own.
    assert done["user"] - find_allowed(mine) == set()
    assert "ec2:RunInstances" in done["head"]
    assert done["head"] - find_allowed(head_policy("mine", "us-west-2", ["arn"], ROOT)) == set()
    assert done["worker"] == set()


def test_it_ends_by_itself_when_no_job_runs(aws: Box) -> None:
    run(aws, *UP, "--autostop", "1s")
    wait_until(
        lambda: all(machine["state"] == "terminated" for machine in aws.ask("machines")), "the head ends all of it", 90
    )
    (listed,) = ask_json(aws, "cluster", "list")
    assert "no job has run" in listed["ended_because"]
    assert 0 < listed["cost_usd"] < 5
    late = aws.run("periflow-ray", "submit", "-f", "../chain/pf-template.yml", "--storage", ROOT)
    assert (late.returncode, "none of this storage root has it" in late.stderr) == (1, True), late


def test_down_from_another_machine_leaves_nothing(aws: Box) -> None:
    run(aws, "python", "-c", LEAKS)
    down = aws.run_elsewhere("periflow-ray", "cluster", "down", "mine", "--yes", "--storage", ROOT, timeout_s=120)
    assert down.returncode == 0, down.stdout + down.stderr
    assert list_account(aws) == []
    again = aws.run_elsewhere(
        *("periflow-ray", "cluster", "down", "never", "--vm", VM, "--yes", "--storage", ROOT), timeout_s=60
    )
    assert "There is nothing of cluster 'never'" in again.stdout
    assert list_account(aws) == []
