"""A Ray cluster of several machines, each on its own network, and the command line as it is used on its head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from support.namespaces import Machine, Network
from support.workbench import Outcome, wait_until

RAY_PORT = 6379
DASHBOARD_PORT = 8265
START_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 150.0
# A lost machine is noticed after 3 checks that each wait a second for their answer.
FAST_HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# Ray's smallest; nothing here goes through the object store.
_OBJECT_STORE_BYTES = 80 << 20
_FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


class RayCluster:
    """A head without resources and worker machines with one GPU each (as far as Ray is told).

    Args:
        env: for every process of the cluster.
    """

    def __init__(self, network: Network, names: Sequence[str], env: Mapping[str, str]) -> None:
        self.network = network
        self._env = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": "/dev/shm",
            # Where a token lies in the home directory, a head without this asks for it and the others do not give it.
            "RAY_AUTH_MODE": "disabled",
            **FAST_HEALTH_CHECK,
            **env,
        }
        self.head = network.add_machine("head")
        self.workers = [network.add_machine(name) for name in names]
        self._start_head()
        with ThreadPoolExecutor(len(self.workers)) as starters:
            list(starters.map(self._start_worker, self.workers))
        self.wait_until_alive(self.workers)

    def run(self, *arguments: object) -> Outcome:
        """Run ``periflow-ray`` on the head."""
        address = f"http://{self.head.address}:{DASHBOARD_PORT}"
        done = self.head.run(
            *("python", "-m", "periflow_ray.cli.main"),
            *arguments,
            env={**self._env, "RAY_ADDRESS": address},
            timeout_s=COMMAND_TIMEOUT_S,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def bring_back(self, worker: Machine) -> None:
        """Connect a machine that was cut off; if Ray has given it up, start it there again."""
        self.network.connect(worker)
        if worker.address not in self.find_alive():
            # Ray's processes there are told that they are taken for dead, and end.
            wait_until(lambda: not worker.find_processes(), f"Ray ends on {worker.name}", START_TIMEOUT_S)
            self._start_worker(worker)
            self.wait_until_alive([worker])

    def wait_until_alive(self, machines: Sequence[Machine]) -> None:
        """Wait until Ray knows these machines and has not given them up."""
        wanted = {machine.address for machine in machines}
        wait_until(lambda: wanted <= self.find_alive(), f"Ray runs on {wanted}", START_TIMEOUT_S)

    def find_alive(self) -> set[str]:
        """Addresses of the machines that Ray takes for alive; empty while its dashboard does not answer."""
        url = f"http://{self.head.address}:{DASHBOARD_PORT}/api/v0/nodes"
        fetched = self.head.run("python", "-c", _FETCH, url)
        if fetched.returncode != 0:
            return set()
        nodes = json.loads(fetched.stdout)["data"]["result"]["result"]
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def _start_head(self) -> None:
        self._start(
            self.head,
            "--head",
            f"--port={RAY_PORT}",
            f"--dashboard-host={self.head.address}",
            f"--dashboard-port={DASHBOARD_PORT}",
            "--num-cpus=0",
            "--num-gpus=0",
        )

    def _start_worker(self, worker: Machine) -> None:
        self._start(worker, f"--address={self.head.address}:{RAY_PORT}", "--num-cpus=1", "--num-gpus=1")

    def _start(self, machine: Machine, *options: str) -> None:
        arguments = [f"--node-ip-address={machine.address}", f"--object-store-memory={_OBJECT_STORE_BYTES}", *options]
        started = machine.run(
            "ray", "start", "--include-log-monitor=false", *arguments, env=self._env, timeout_s=START_TIMEOUT_S
        )
        # On a busy machine it stops waiting for what it has started after 30 s, and that comes up all the same.
        assert started.returncode == 0 or self._has_raylet(machine), started.stdout + started.stderr

    def _has_raylet(self, machine: Machine) -> bool:
        return any("raylet/raylet" in command for command in machine.find_processes().values())
