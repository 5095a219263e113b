"""The real command line on an embedded Ray cluster, for tests that run whole jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from periflow_ray import jobs
from periflow_ray.jobs import Job
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.local_cluster import LocalClusterDir

JOB_TIMEOUT_S = 150


@dataclass(frozen=True)
class Outcome:
    """What one run of the command line gave."""

    exit_code: int
    stdout: str
    stderr: str


class Workbench:
    """A storage root, an embedded cluster, and ``periflow-ray`` as a user runs it."""

    def __init__(self, storage: Path | str, cluster_dir: Path) -> None:
        self.root = StorageRoot(str(storage))
        self.cluster_dir = cluster_dir
        self.options: tuple[str, ...] = ()
        self.env = {
            **os.environ,
            "PERIFLOW_STORAGE": str(storage),
            "PERIFLOW_LOCAL_CLUSTER_DIR": str(cluster_dir),
        }

    def on(self, uri: str, *options: str) -> Workbench:
        """The same cluster with another storage root, which only ``--storage`` names, as this process sees the cloud.

        Args:
            options: for every command beside ``--storage``.
        """
        other = Workbench(uri, self.cluster_dir)
        other.env["PERIFLOW_STORAGE"] = self.env["PERIFLOW_STORAGE"]
        other.options = ("--storage", uri, *options)
        return other

    def start_cluster(self) -> None:
        """Start the embedded cluster unless it runs, so that it is not a job's shell that does."""
        start = "from periflow_ray.submit.local_cluster import ensure_local_cluster; ensure_local_cluster()"
        subprocess.run([sys.executable, "-c", start], env=self.env, stdin=subprocess.DEVNULL, check=True, timeout=180)

    def ray_env(self) -> dict[str, str]:
        """Variables with which ``ray.init`` joins the running cluster, which is started if it is not there."""
        cluster_dir = LocalClusterDir(self.cluster_dir)
        if cluster_dir.read() is None:
            self.start_cluster()
        cluster_dir.touch()
        address_path = self.ray_dir / "ray_current_cluster"
        # Ray writes it at the end of its start, when it already answers.
        wait_until(address_path.exists, "Ray has written down its address")
        return {
            "RAY_ADDRESS": address_path.read_text(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(cluster_dir.token_path),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    @property
    def ray_dir(self) -> Path:
        """Where the running cluster keeps its logs and whatever else it writes."""
        cluster = LocalClusterDir(self.cluster_dir).read()
        assert cluster is not None
        return Path(f"/tmp/periflow-{os.getuid()}-ray/{cluster.supervisor_pid}")

    def run(self, *arguments: object, timeout_s: float = JOB_TIMEOUT_S) -> Outcome:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "periflow_ray.cli.main", *map(str, arguments), *self.options],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def submit(self, template: Path, workspace: Path, *options: object) -> tuple[Outcome, Job]:
        """Submit to the embedded cluster and follow the job to its end."""
        outcome = self.run("submit", "--local", "-f", template, "-d", workspace, *options)
        return outcome, jobs.read_job(self.root, _job_id(outcome))

    def start(self, template: Path, workspace: Path, *options: object) -> int:
        """Submit without following; returns the job's number."""
        return _job_id(self.run("submit", "--local", "--no-follow", "-f", template, "-d", workspace, *options))

    def follow(self, job_id: int) -> tuple[Outcome, Job]:
        """Follow a started job to its end."""
        outcome = self.run("job", "log", job_id, "--follow")
        return outcome, jobs.read_job(self.root, job_id)

    def kill_ranks(self, job_id: int) -> int:
        """SIGKILL the processes that run the job's ``main.py``, and none around them; returns how many there were."""
        sandbox = f"{Sandbox(self.root.uri, job_id, 0).job_dir}/"
        num_killed = 0
        for pid in processes_with(sandbox):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"main.py" in words and not any(word.endswith(b"torchrun") for word in words):
                    os.kill(pid, signal.SIGKILL)
                    num_killed += 1
        return num_killed


def _job_id(outcome: Outcome) -> int:
    assert outcome.stdout.startswith("Job ("), outcome
    return int(outcome.stdout.split("(", 1)[1].split(")", 1)[0])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = JOB_TIMEOUT_S) -> None:
    """Wait for a condition; fails the test at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


def processes_with(text: str) -> list[int]:
    """Ids of processes whose command line or environment contains a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            content = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if text.encode() in content and not is_zombie:
            found.append(int(entry.name))
    return found


def find_agent(sandbox: str) -> int | None:
    """The agent of a node: the parent of its command's keeper, a Ray worker process; None if no command runs."""
    for pid in processes_with(sandbox):
        with contextlib.suppress(OSError):
            if "keeper.py" in Path(f"/proc/{pid}/cmdline").read_text():
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                # A keeper outlives its agent for a moment, as the child of whoever takes in orphans.
                if Path(f"/proc/{parent}/cmdline").read_text().startswith("ray::"):
                    return parent
    return None


def find_driver(storage_uri: str, job_id: int) -> int | None:
    """The driver of a job; not the program that keeps it running. None while there is none."""
    for pid in processes_with("periflow_ray.runtime.driver"):
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            # Jobs of other storage roots have the same numbers.
            if {"periflow_ray.runtime.driver", storage_uri, str(job_id)} <= set(arguments):
                return pid
    return None


def find_drivers(cluster_dir: Path) -> list[int]:
    """The drivers of all jobs on an embedded cluster."""
    found = []
    for pid in processes_with(str(cluster_dir)):
        with contextlib.suppress(OSError):
            if b"periflow_ray.runtime.driver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
