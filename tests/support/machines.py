"""A Ray cluster of several machines on loopback: each is a `ray start` of its own with its own temporary directory.

    with run_cluster(storage) as cluster:
        first, second = cluster.provide_machines(2)
        first.power_off()

Everything that a machine starts is below one keeper, so that a lost machine leaves nothing behind.

Long because a machine and the cluster around it start and end together.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from periflow_ray.processes import Command
from periflow_ray.processes.keeper import find_descendants
from periflow_ray.store.root import StorageRoot
from support.children import keep_child
from support.workbench import Outcome, processes_with, wait_until

START_TIMEOUT_S = 120
COMMAND_TIMEOUT_S = 180
OBJECT_STORE_BYTES = 80 << 20
WATCHER = "periflow_ray.runtime.notices.watcher"
HEAD_IP = "127.0.0.2"
# A dead machine is noticed in seconds; Ray's defaults take half a minute or more.
HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# Ray chooses free ports itself: the fixed default range would be searched by every machine of the host at once.
WORKER_PORTS = {"min-worker-port": 0, "max-worker-port": 0}


class Machine:
    """One `ray start --block` and whatever runs below it."""

    def __init__(self, name: str, temp_dir: Path, options: dict[str, object], env: dict[str, str]) -> None:
        self.name = name
        self.temp_dir = temp_dir
        self.lines: list[str] = []
        self.is_off = False
        program = str(Path(sys.executable).with_name("ray"))
        flags = [f"--{option}={value}" if value is not None else f"--{option}" for option, value in options.items()]
        self._command = Command(
            # The machine outlives Ray's processes.
            [
                "sh",
                "-c",
                '"$@"; exec sleep infinity',
                "sh",
                program,
                "start",
                "--block",
                "--disable-usage-stats",
                *flags,
            ],
            env=env,
            working_dir=Path("/"),
            grace_s=2.0,
            on_line=self.lines.append,
        ).start()
        keep_child(self._command.keeper_pid)

    def power_off(self) -> None:
        """Kill every process of the machine, as far as possible at once; nothing can say goodbye."""
        if self.is_off:
            return
        # The keeper would tell the others to end, once the first of them is dead.
        os.kill(self._command.keeper_pid, signal.SIGSTOP)
        while left := find_descendants(self._command.keeper_pid):
            for pid in left:
                _kill(pid)
        os.kill(self._command.keeper_pid, signal.SIGCONT)
        self._command.wait()
        self.is_off = True

    def shut_down(self) -> None:
        """End every process as an orderly shutdown does: SIGTERM to all, and soon SIGKILL."""
        self._command.stop()
        self._command.wait()
        self.is_off = True

    def kill_raylet(self) -> None:
        """Kill Ray's own process on the machine and nothing else."""
        (raylet,) = (pid for pid in find_descendants(self._command.keeper_pid) if _program_name(pid) == "raylet")
        _kill(raylet)


class Cluster:
    """A head without devices, and machines with one GPU each as far as Ray knows.

    Args:
        directory: short, because Ray's sockets lie below it.
        storage: the storage root, a path or a URI.
    """

    def __init__(self, directory: Path, storage: Path | str) -> None:
        self._directory = directory
        self.root = StorageRoot(str(storage))
        token_path = directory / "token"
        token_path.touch(mode=0o600)
        token_path.write_text(secrets.token_hex(32))
        self._machines: list[Machine] = []
        self._num_started = 0
        self._gcs, self._dashboard, self._client = _free_ports(3)
        self.gcs_address = f"{HEAD_IP}:{self._gcs}"
        self.address = f"http://127.0.0.1:{self._dashboard}"
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {token_path.read_text()}"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PERIFLOW_STORAGE": str(storage),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for machine in self._machines:
            machine.power_off()
        self._session.close()

    @property
    def head(self) -> Machine:
        """The newest head."""
        return next(machine for machine in reversed(self._machines) if machine.name == "head")

    @property
    def workers(self) -> list[Machine]:
        """The machines beside the head that are not switched off."""
        return [machine for machine in self._machines if machine.name != "head" and not machine.is_off]

    def start_head(self) -> Machine:
        """Start the machine with Ray's control store and job server; a second time on the same ports."""
        head = self._start(
            "head",
            {
                "head": None,
                "port": self._gcs,
                "dashboard-host": "127.0.0.1",
                "dashboard-port": self._dashboard,
                "include-dashboard": "true",
                "ray-client-server-port": self._client,
                "num-cpus": 0,
                "num-gpus": 0,
            },
        )
        assert self._wait_for("head"), head.lines[-20:]
        return head

    def start_machines(self, num_machines: int) -> list[Machine]:
        """Start machines and wait until all are part of the cluster."""
        options = {"address": self.gcs_address, "num-cpus": 1, "num-gpus": 1}
        machines = [self._start(f"machine-{self._num_started + 1}", options) for _ in range(num_machines)]
        for index in range(num_machines):
            while not self._wait_for(machines[index].name):
                machines[index].power_off()
                machines[index] = self._start(f"machine-{self._num_started + 1}", options)
        return machines

    def provide_machines(self, num_machines: int) -> list[Machine]:
        """Have this many machines beside the head: those that live, and new ones as far as they are not enough."""
        living = self.living_nodes()
        workers = [machine for machine in self._machines if machine is not self.head]
        kept = [machine for machine in workers if machine.name in living and not machine.is_off][:num_machines]
        for machine in workers:
            if machine not in kept:
                machine.power_off()
                self._machines.remove(machine)
        wanted = {machine.name for machine in (self.head, *kept)}
        # Ray would give a job machines that are off until it has noticed.
        wait_until(lambda: self.living_nodes().keys() == wanted, "only these machines are there", START_TIMEOUT_S)
        return [*kept, *self.start_machines(num_machines - len(kept))]

    def machine_of(self, job_id: int, node_rank: int) -> Machine:
        """The machine that runs a node of a job."""
        (machine,) = (
            machine
            for machine in self._machines
            for sandbox in machine.temp_dir.glob(f"periflow-*/*-{job_id}/node-{node_rank}")
            # An earlier attempt's stays where it was.
            if processes_with(str(sandbox))
        )
        return machine

    def node_id_of(self, name: str) -> str | None:
        """Ray's id of a living machine."""
        return self.living_nodes().get(name)

    def living_nodes(self) -> dict[str, str]:
        """Names of the machines that Ray takes for alive, and their ids; empty while the head does not answer."""
        try:
            found = self._ask("nodes")
        except (requests.RequestException, ValueError, KeyError):
            return {}
        return {node["node_name"]: node["node_id"] for node in found if node["state"] == "ALIVE"}

    def live_placement_groups(self) -> list[dict[str, Any]]:
        """Placement groups that are there, or waited for."""
        return [group for group in self._ask("placement_groups") if group["state"] != "REMOVED"]

    def _ask(self, what: str) -> list[dict[str, Any]]:
        answer = self._session.get(f"{self.address}/api/v0/{what}", timeout=10)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
        return found

    def run(self, *arguments: object) -> Outcome:
        """Run ``periflow-ray`` to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "periflow_ray.cli.main", *map(str, arguments)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def submit(self, template: Path, workspace: Path, *options: object) -> int:
        """Submit a job without following it; returns its number."""
        outcome = self.run(
            "submit", "--no-follow", "--address", self.address, "-f", template, "-d", workspace, *options
        )
        number = re.match(r"Job \((\d+)\)", outcome.stdout)
        assert number is not None, outcome
        return int(number[1])

    def _start(self, name: str, options: dict[str, object]) -> Machine:
        self._num_started += 1
        temp_dir = self._directory / f"{self._num_started}-{name}"
        temp_dir.mkdir()
        listen, grpc, metrics, autoscaler_metrics, dashboard_metrics = _free_ports(5)
        own: dict[str, object] = {
            "node-name": name,
            # Ray would replace 127.0.0.1 by an address that others can reach.
            "node-ip-address": HEAD_IP if "head" in options else f"127.0.0.{1 + self._num_started}",
            "dashboard-agent-listen-port": listen,
            "dashboard-agent-grpc-port": grpc,
            "metrics-export-port": metrics,
            "object-store-memory": OBJECT_STORE_BYTES,
            "temp-dir": temp_dir,
            "include-log-monitor": "false",
            **WORKER_PORTS,
        }
        env = {
            **self.env,
            **HEALTH_CHECK,
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
            "RAY_TMPDIR": str(temp_dir),
            # A disk of its own: a job's sandbox on one machine is not there on another.
            "TMPDIR": str(temp_dir),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        }
        machine = Machine(name, temp_dir, {**own, **options}, env)
        self._machines.append(machine)
        return machine

    def _wait_for(self, name: str) -> bool:
        """Whether the newest machine of a name has joined; False if Ray gave up, for which 30 s suffice to it."""
        newest = next(machine for machine in reversed(self._machines) if machine.name == name)

        def has_given_up() -> bool:
            return any("node timed out during startup" in line for line in newest.lines)

        try:
            wait_until(
                lambda: self.node_id_of(name) is not None or has_given_up(),
                f"machine {name} joins the cluster",
                START_TIMEOUT_S,
            )
        except AssertionError as err:
            raise AssertionError("\n".join([str(err), *newest.lines[-20:]])) from None
        return self.node_id_of(name) is not None


@contextlib.contextmanager
def run_cluster(storage: Path) -> Iterator[Cluster]:
    """A cluster that has a head only."""
    # Ray's sockets lie below it, and their paths are limited to about 100 characters.
    with (
        tempfile.TemporaryDirectory(prefix="pf-", ignore_cleanup_errors=True) as directory,
        Cluster(Path(directory), storage) as cluster,
    ):
        cluster.start_head()
        yield cluster


class NoticeWatcher:
    """The watcher program of one machine, asking a metadata service on loopback."""

    def __init__(self, cluster: Cluster, machine: Machine, metadata_endpoint: str, log_path: Path) -> None:
        self._log_path = log_path
        node_id = cluster.node_id_of(machine.name)
        assert node_id is not None
        with log_path.open("wb") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WATCHER, "--address", cluster.gcs_address, "--node-id", node_id],
                env={**cluster.env, "PERIFLOW_METADATA_ENDPOINT": metadata_endpoint},
                stdin=subprocess.DEVNULL,
                stderr=log_file,
            )
        wait_until(lambda: "watching" in self.log, "the watcher has found its metadata service", 60)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log_path.read_text()

    def end(self) -> None:
        """End it, as the end of its machine would."""
        self._process.kill()
        self._process.wait()


def _free_ports(num_ports: int) -> Sequence[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(num_ports)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _program_name(pid: int) -> str:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""
