"""Machines of a test, on one network of their own: Linux namespaces, joined by a bridge that leads nowhere else.

Each machine has its own network, process table, host name and ``/dev/shm``, which also holds its temporary files.
The rest of the file system is shared, as on machines that mount the same NFS directory.

Nothing here has a name or a file outside: a namespace lives as long as its first process, and that one ends when the
pipe from this process closes. So nothing is left behind either, even if this process is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_NEEDED_PROGRAMS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "mount": "mount"}
_UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"]
# In a machine: what is specific to it, then wait for the end of the pipe. Bash collects what ends meanwhile.
_INIT = 'mount -t tmpfs -o size=1g tmpfs /dev/shm && hostname "$0" && ip link set lo up && echo ready && read -r'
_SETUP_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 30.0


def find_missing() -> str | None:
    """What this machine lacks to hold others; None if it can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in _NEEDED_PROGRAMS.items():
        if shutil.which(program) is None:
            return f"network namespaces need the program '{program}': apt-get install {package}"
    trial = subprocess.run([*_UNSHARE, "bash", "-c", _INIT, "trial"], input="", capture_output=True, text=True)
    if "ready" not in trial.stdout:
        return f"this machine does not let root make namespaces: {trial.stderr.strip()}"
    return None


class Machine:
    """One machine on the network; ``address`` is its IP address."""

    def __init__(self, name: str, address: str, init: subprocess.Popen[str]) -> None:
        self.name = name
        self.address = address
        self._init = init
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.env |= {
            "TMPDIR": "/dev/shm",
            # No address in a loopback test may go through a proxy.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        }

    def wrap(self, *argv: object) -> list[str]:
        """A command line that runs another one on the machine."""
        pid = self._init.pid
        return [
            *("nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--ipc"),
            # unshare itself stays outside of the process table that it made for its children.
            *(f"--pid=/proc/{pid}/ns/pid_for_children", "--", *map(str, argv)),
        ]

    def run(
        self, *argv: object, env: Mapping[str, str] | None = None, timeout_s: float = _SETUP_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end, with variables beside the machine's own."""
        return subprocess.run(
            self.wrap(*argv),
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def find_processes(self) -> dict[int, str]:
        """Every process of the machine but its first: id, as seen from outside, and command line."""
        own = os.readlink(f"/proc/{self._init.pid}/ns/pid_for_children")
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == own:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return {pid: command for pid, command in found.items() if command and not command.startswith("bash -c mount")}


class Network:
    """A bridge and the machines on it; use ``open_network``."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._bridge = self._start_init("bridge")
        self._ip(self._bridge, "link", "add", "bridge", "type", "bridge")
        self._ip(self._bridge, "link", "set", "dev", "bridge", "up")
        self._num_machines = 0

    def add_machine(self, name: str) -> Machine:
        """Start a machine and connect it."""
        self._num_machines += 1
        machine = Machine(name, f"10.77.0.{self._num_machines}", self._start_init(name))
        bridge_pid = str(self._bridge.pid)
        self._ip(machine._init, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", bridge_pid)
        self._ip(machine._init, "address", "add", f"{machine.address}/24", "dev", "eth0")
        self._ip(machine._init, "link", "set", "dev", "eth0", "up")
        self._ip(self._bridge, "link", "set", "dev", name, "master", "bridge")
        self.connect(machine)
        return machine

    def wrap_bridge(self, *argv: str) -> list[str]:
        """A command line that runs another one where all cables come together."""
        return ["nsenter", f"--target={self._bridge.pid}", "--net", "--", *argv]

    def connect(self, machine: Machine) -> None:
        """Plug a machine's cable in."""
        self._ip(self._bridge, "link", "set", "dev", machine.name, "up")

    def cut(self, machine: Machine) -> None:
        """Pull a machine's cable: nobody is told, packets are just gone."""
        self._ip(self._bridge, "link", "set", "dev", machine.name, "down")

    def destroy(self, machine: Machine) -> None:
        """Take a machine's power: every process on it ends."""
        _end(machine._init)

    def _start_init(self, name: str) -> subprocess.Popen[str]:
        init = subprocess.Popen(
            [*_UNSHARE, "bash", "-c", _INIT, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._stack.callback(_end, init)
        assert init.stdout is not None
        assert init.stdout.readline() == "ready\n", f"machine {name} does not start"
        return init

    def _ip(self, init: subprocess.Popen[str], *arguments: str) -> None:
        command = ["nsenter", f"--target={init.pid}", "--net", "--", "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SETUP_TIMEOUT_S)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@contextlib.contextmanager
def open_network() -> Iterator[Network]:
    """A network whose machines end with the block."""
    with contextlib.ExitStack() as stack:
        yield Network(stack)


def _end(init: subprocess.Popen[str]) -> None:
    assert init.stdin is not None
    assert init.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        init.stdin.close()
    try:
        init.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # --kill-child ends the machine's first process with this one, and the kernel the others.
        init.kill()
        init.wait()
    init.stdout.close()
