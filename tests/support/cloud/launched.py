"""A cluster that the user of a box makes with Ray's own launcher, and what every cloud's tests do with it.

cluster = Launched(box, "cluster_configs/aws-mixed.yaml")
cluster.up()
host = cluster.run_on("aws-16gb-t4-1g-us-east-1-spot")
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

from support.cloud.box import HOME, Box
from support.workbench import wait_until

_COMMAND_TIMEOUT_S = 300.0
_DRAIN_TIMEOUT_S = 60.0
# It runs where a whole VM is, and says where that was.
_TASK = """
import socket, sys, ray
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_gpus=4, label_selector={"periflow-ray/vm": sys.argv[1]})
def where():
    return socket.gethostname()

print("ran on", ray.get(where.remote(), timeout=240))
"""
# What somebody without the token gets from the head's ports.
_INTRUDER = """
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


class Launched:
    """The cluster of one file; ``config`` is its path in the user's checkout."""

    def __init__(self, box: Box, config: str) -> None:
        self.box = box
        self.config = config

    def up(self) -> None:
        self._ray("up", "--yes", self.config)

    def down(self) -> None:
        self._ray("down", "--yes", self.config)

    def run_on_head(self, command: str) -> str:
        """What a shell command says on the head."""
        return self._ray("exec", self.config, command).stdout

    def find_running(self) -> dict[str, dict[str, Any]]:
        """The machines that cost money, by their Ray node type."""
        machines = self.box.ask("machines")
        return {m["tags"]["ray-user-node-type"]: m for m in machines if m["state"] in ("pending", "running")}

    def run_on(self, vm_name: str) -> str:
        """The host name of a VM of this type, which comes because a task with all its four GPUs asks for it."""
        self.box.write("task.py", _TASK)
        self._ray("rsync-up", self.config, HOME + "/task.py", "~/task.py")
        found = re.search(r"ran on (\S+)", self.run_on_head(f"python ~/task.py {vm_name}"))
        assert found is not None
        return found[1]

    def announce_loss(self, machine: dict[str, Any], notice_s: float) -> None:
        """Let the cloud announce it, and wait until Ray has drained the node; nothing may run on it."""
        self.box.ask("notice", instance=machine["instance"], notice_s=notice_s)
        # Ray gives it up at once. Its idle timeout is much longer.
        wait_until(
            lambda: '"state": "DEAD"' in self.run_on_head("ray list nodes --format=json --detail"),
            "Ray drains the worker",
            _DRAIN_TIMEOUT_S,
        )

    def assert_token_is_private(self) -> None:
        """The user's own processes on the nodes have the token, and the file is for its owner alone."""
        assert re.search(r"-rw------- 1 ubuntu ubuntu \d+ .* auth_token", self.run_on_head("ls -l ~/.ray"))

    def assert_is_closed(self) -> None:
        """Somebody on the network who has no token gets nothing."""
        self.box.write("intruder.py", _INTRUDER)
        address = self.find_running()["head"]["address"]
        tried = self.box.run("python", f"{HOME}/intruder.py", address, timeout_s=120)
        lines = tried.stdout.splitlines()
        assert "8265 closed" in lines, tried
        assert "joined" not in tried.stdout, tried
        assert any(line.startswith("refused") for line in lines), tried

    def _ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.box.run("ray", *arguments, timeout_s=_COMMAND_TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done
