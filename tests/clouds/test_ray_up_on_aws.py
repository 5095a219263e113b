"""``ray up`` with a file of cluster_configs/, as it is, on the cloud in a box: up, a worker, a notice, and down."""

from __future__ import annotations

import re

import pytest
from support.cloud.box import HOME, Box
from support.workbench import wait_until

pytestmark = [pytest.mark.clouds, pytest.mark.ray, pytest.mark.timeout(600)]

CONFIG = "cluster_configs/aws-16gb-v100-4g-us-west-2.yaml"
SPOT_VM = "aws-16gb-v100-4g-us-west-2-spot"
UP_TIMEOUT_S = 300.0
# It runs where a whole spot VM is, and says where that was.
TASK = f"""
import socket, ray
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_gpus=4, label_selector={{"periflow-ray/vm": "{SPOT_VM}"}})
def where():
    return socket.gethostname()

print("ran on", ray.get(where.remote(), timeout=240))
"""
# What somebody without the token gets from the head's ports.
INTRUDER = """
import os, socket, sys
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
address = sys.argv[1]
for port in (8265, 10001, 52365):
    with socket.socket() as probe:
        probe.settimeout(3)
        print(port, "open" if probe.connect_ex((address, port)) == 0 else "closed")
import ray
try:
    ray.init(address=f"{address}:6379", log_to_driver=False)
    print("joined")
except Exception as error:
    print("refused", type(error).__name__)
"""


@pytest.fixture(scope="module")
def cluster(aws: Box) -> Box:
    """The cluster of the file, up."""
    up = aws.run("ray", "up", "--yes", CONFIG, timeout_s=UP_TIMEOUT_S)
    assert up.returncode == 0, up.stdout + up.stderr
    return aws


def running(box: Box) -> dict[str, dict]:
    """The instances that cost money, by their Ray node type."""
    machines = box.ask("machines")
    return {m["tags"]["ray-user-node-type"]: m for m in machines if m["state"] in ("pending", "running")}


def on_head(box: Box, command: str):
    done = box.run("ray", "exec", CONFIG, command, timeout_s=UP_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_gets_the_spot_vm_that_it_asks_for_and_a_notice_reaches_ray(cluster: Box) -> None:
    assert set(running(cluster)) == {"head"}
    cluster.write("task.py", TASK)
    cluster.run("ray", "rsync-up", CONFIG, HOME + "/task.py", "~/task.py")
    output = on_head(cluster, "python ~/task.py")
    worker = running(cluster)[SPOT_VM]
    assert worker["is_spot"]
    assert f"ran on ip-{worker['address'].replace('.', '-')}" in output
    # The user's own processes on the nodes have the token, and the file is for its owner alone.
    assert re.search(r"-rw------- 1 ubuntu ubuntu \d+ .* auth_token", on_head(cluster, "ls -l ~/.ray"))
    cluster.ask("notice", instance=worker["instance"], notice_s=60)
    # Nothing runs on it any more, so Ray gives it up at once. Its idle timeout is much longer.
    wait_until(
        lambda: '"state": "DEAD"' in on_head(cluster, "ray list nodes --format=json --detail"),
        "Ray drains the worker",
        60,
    )


def test_whoever_has_no_token_gets_nothing(cluster: Box) -> None:
    head = running(cluster)["head"]["address"]
    cluster.write("intruder.py", INTRUDER)
    tried = cluster.run("python", f"{HOME}/intruder.py", head, timeout_s=120)
    lines = tried.stdout.splitlines()
    assert "8265 closed" in lines, tried
    assert "joined" not in tried.stdout, tried
    assert any(line.startswith("refused") for line in lines), tried


def test_down_leaves_no_machine(cluster: Box) -> None:
    down = cluster.run("ray", "down", "--yes", CONFIG, timeout_s=UP_TIMEOUT_S)
    assert down.returncode == 0, down.stdout + down.stderr
    assert running(cluster) == {}
