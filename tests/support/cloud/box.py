"""The test's side of the box: the provider, and the machine at which a user sits.

with open_box("aws", "us-west-2", directory) as box:
    box.user.run("ray", "up", "--yes", "cluster_configs/mine.yaml", env=box.env)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.cloud.access import make_access
from support.cloud.virtual_machines import PRIVATE_NETWORK, PUBLIC_NETWORK, REPOSITORY_DIR
from support.namespaces import Machine, Network, find_missing, open_network

HOME = "/dev/shm/home"
CHECKOUT = f"{HOME}/periflow-ray"
# What a user of cluster_configs/ has of the repository.
_CHECKED_OUT = (
    "periflow_ray",
    "cluster_configs",
    "examples",
    "scripts",
    "pyproject.toml",
    "README.md",
    "constraints.txt",
)
_PROGRAMS = {"/usr/sbin/sshd": "openssh-server", "rsync": "rsync", "ssh": "openssh-client", "sudo": "sudo"}
# The user's own /tmp, for what Ray's launcher leaves there; the repository may lie below the real one.
_OWN_TMP = (
    'mkdir -p /dev/shm/repository /dev/shm/home && mount --bind "$0" /dev/shm/repository && mount -t tmpfs tmpfs /tmp '
    '&& mkdir -p "$0" && mount --bind /dev/shm/repository "$0"'
)


# The names of the cloud's services lead to the box on this machine; its real list of names stays as it is.
_OWN_HOSTS = '{ cat /etc/hosts && printf "%s\\n" "$@"; } >/dev/shm/hosts && mount --bind /dev/shm/hosts /etc/hosts'


def find_missing_for_box() -> str | None:
    """What this machine lacks to hold a cloud; None if it can."""
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        return f"the cloud in a box needs: apt-get install {' '.join(missing)}"
    return find_missing()


class Box:
    """A cloud, and ``user``, a machine beside it; ``env`` is what the user's shell has of the cloud."""

    def __init__(self, cloud: str, region: str, network: Network, state_dir: Path) -> None:
        self.cloud = cloud
        log_path = state_dir / "provider.log"
        with open(log_path, "wb") as log:
            self._provider = subprocess.Popen(
                network.wrap_bridge(sys.executable, "-m", f"support.cloud.{cloud}_provider", str(state_dir), region),
                env={
                    **os.environ,
                    "PYTHONPATH": str(REPOSITORY_DIR / "tests"),
                    # Ray's launcher looks for policies of AWS by their names.
                    "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._provider.stdout is not None
        assert self._provider.stdout.readline() == "ready\n", log_path.read_text()
        access = make_access(cloud, region, HOME, state_dir)
        self._hosts = access.hosts
        self.user = self.add_host(network, "user")
        self._elsewhere = self.add_host(network, "elsewhere")
        self.env = {
            "HOME": HOME,
            "PATH": os.pathsep.join((f"{HOME}/bin", self.user.env["PATH"])),
            # This repository's periflow-ray, also where the Python in use belongs to another copy of it.
            "PYTHONPATH": str(REPOSITORY_DIR),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PERIFLOW_CLUSTER_WHEELS": f"{CHECKOUT}/cluster_configs/wheels",
            **access.env,
        }
        self._files = access.files
        for host in (self.user, self._elsewhere):
            self._give_access(host)

    def add_host(self, network: Network, name: str) -> Machine:
        """A machine that is not the cloud's, with a home and a /tmp of its own."""
        host = network.add_machine(name)
        for routed in (PRIVATE_NETWORK, PUBLIC_NETWORK):
            host.run("ip", "route", "add", routed, "dev", "eth0")
        prepared = host.run("bash", "-c", _OWN_TMP, str(REPOSITORY_DIR))
        assert prepared.returncode == 0, prepared.stderr
        if self._hosts:
            prepared = host.run("bash", "-c", _OWN_HOSTS, "box", *self._hosts)
            assert prepared.returncode == 0, prepared.stderr
        return host

    def run(self, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the user's machine, in the root of the user's checkout."""
        command = 'cd "$0" && exec "$@"'
        return self.user.run("bash", "-c", command, CHECKOUT, *argv, env=self.env, timeout_s=timeout_s)

    def run_elsewhere(self, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on another machine of the same user's, which has access to the cloud and no other files."""
        return self._elsewhere.run(*argv, env=self.env, timeout_s=timeout_s)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Begin a command on the user's machine; what it says comes through a pipe."""
        command = 'cd "$0" && exec "$@"'
        return subprocess.Popen(
            self.user.wrap("bash", "-c", command, CHECKOUT, *argv),
            env={**self.user.env, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def check_out(self) -> None:
        """Give the user a checkout, with the wheel for the nodes; what it needs is in their image."""
        copied = self.user.run(
            *("bash", "-c", 'mkdir "$0" && cp -r "${@}" "$0" && rm -rf "$0/cluster_configs/wheels"', CHECKOUT),
            *(REPOSITORY_DIR / name for name in _CHECKED_OUT),
        )
        assert copied.returncode == 0, copied.stderr
        built = self.run("periflow-ray", "cluster", "wheels", "--only-own", timeout_s=120)
        assert built.returncode == 0, built.stdout + built.stderr

    def write(self, path: str, content: str, *, mode: str = "600") -> None:
        """Write a file, by its path from the user's home, for the user alone unless ``mode`` says otherwise."""
        self._write_on(self.user, path, content, mode)

    def _give_access(self, host: Machine) -> None:
        for path, content in self._files.items():
            self._write_on(host, path, content, "700" if path.startswith("bin/") else "600")

    def _write_on(self, host: Machine, path: str, content: str, mode: str) -> None:
        command = 'cd && umask 077 && mkdir -p "$(dirname "$0")" && printf %s "$1" >"$0" && chmod "$2" "$0"'
        done = host.run("bash", "-c", command, path, content, mode, env=self.env)
        assert done.returncode == 0, done.stderr

    def ask(self, do: str, **arguments: Any) -> Any:
        """Let the provider do something."""
        assert self._provider.stdin is not None
        assert self._provider.stdout is not None
        print(json.dumps({"do": do, **arguments}), file=self._provider.stdin, flush=True)
        answer = json.loads(self._provider.stdout.readline())
        assert not (isinstance(answer, dict) and "error" in answer), answer["error"]
        return answer

    def close(self) -> None:
        """End the provider, and with it every machine of the cloud."""
        assert self._provider.stdin is not None
        assert self._provider.stdout is not None
        self._provider.stdin.close()
        try:
            self._provider.wait(30)
        except subprocess.TimeoutExpired:
            self._provider.kill()
            self._provider.wait()
        self._provider.stdout.close()


@contextlib.contextmanager
def open_box(cloud: str, region: str) -> Iterator[Box]:
    """A cloud that ends with the block, with all its machines."""
    with (
        tempfile.TemporaryDirectory(prefix="box-", ignore_cleanup_errors=True) as directory,
        open_network() as network,
    ):
        box = Box(cloud, region, network, Path(directory))
        try:
            yield box
        finally:
            box.close()
