"""A Ray cluster of several machines, each on its own network, and the command line as it is used on its head."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.workbench import Outcome
from machines import Machine, Network

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
_IS_ALIVE = "import ray, sys; ray.init(address='auto', log_to_driver=False); "
_LIST_ALIVE = _IS_ALIVE + "print(*(node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']))"


class RayCluster:
    """A head without resources and worker machines with one GPU each (as far as Ray is told).

    Args:
        log_dir: for what ``ray start`` prints.
        env: for every process of the cluster.
    """

    def __init__(self, network: Network, names: Sequence[str], log_dir: Path, env: Mapping[str, str]) -> None:
        self.network = network
        self._log_dir = log_dir
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
        _wait_for_start([self._start_head()])
        _wait_for_start([self._start_worker(worker) for worker in self.workers])

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
        """Connect a machine that was cut off, and start Ray there if it has ended."""
        self.network.connect(worker)
        if not any("raylet/raylet" in command for command in worker.find_processes().values()):
            _wait_for_start([self._start_worker(worker)])

    def find_alive(self) -> set[str]:
        """Addresses of the machines that Ray takes for alive."""
        env = {**self._env, "RAY_ADDRESS": f"{self.head.address}:{RAY_PORT}"}
        return set(self.head.run("python", "-c", _LIST_ALIVE, env=env, timeout_s=START_TIMEOUT_S).stdout.split())

    def _start_head(self) -> subprocess.Popen[bytes]:
        return self._start(
            self.head,
            "--head",
            f"--port={RAY_PORT}",
            f"--dashboard-host={self.head.address}",
            f"--dashboard-port={DASHBOARD_PORT}",
            "--num-cpus=0",
            "--num-gpus=0",
        )

    def _start_worker(self, worker: Machine) -> subprocess.Popen[bytes]:
        return self._start(worker, f"--address={self.head.address}:{RAY_PORT}", "--num-cpus=1", "--num-gpus=1")

    def _start(self, machine: Machine, *options: str) -> subprocess.Popen[bytes]:
        arguments = [f"--node-ip-address={machine.address}", f"--object-store-memory={_OBJECT_STORE_BYTES}", *options]
        with (self._log_dir / f"ray-start-{machine.name}.log").open("ab") as log:
            return subprocess.Popen(
                machine.wrap("ray", "start", *arguments),
                env={**machine.env, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def _wait_for_start(starting: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in starting:
        assert process.wait(START_TIMEOUT_S) == 0, f"ray start failed: {os.fsdecode(process.args[-1])}"
