"""The machines that other tests cut off: they reach each other and nothing else, and nothing of them stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from support.namespaces import Machine, Network
from support.workbench import processes_with

# Tells a refused connection (the machine answers) from silence.
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=1)
except ConnectionRefusedError:
    print("answers")
except OSError as err:
    print("silent" if isinstance(err, TimeoutError) else err.strerror)
"""
_INTERRUPTED = """
import sys
from support.namespaces import open_network
with open_network() as network:
    machine = network.add_machine("left")
    machine.run("bash", "-c", "sleep 600 >/dev/null 2>&1 &")
    print("ready", flush=True)
    sys.stdin.read()
"""


def call(caller: Machine, address: str) -> str:
    return caller.run("python", "-c", _CONNECT, address).stdout.strip()


def test_machines_reach_each_other_until_one_is_cut_off(network: Network) -> None:
    one, other = network.add_machine("one"), network.add_machine("other")
    assert call(one, other.address) == "answers"
    network.cut(other)
    assert call(one, other.address) == "silent"
    assert call(other, one.address) == "silent"
    network.connect(other)
    assert call(one, other.address) == "answers"


def test_nothing_outside_can_be_reached(network: Network) -> None:
    machine = network.add_machine("one")
    assert machine.run("ip", "route").stdout.split(" proto")[0] == "10.77.0.0/24 dev eth0"
    assert call(machine, "198.51.100.1") == "Network is unreachable"


def test_a_machine_has_its_own_name_processes_and_temporary_files(
    network: Network, wait_until: Callable[..., None]
) -> None:
    one, other = network.add_machine("one"), network.add_machine("other")
    assert one.run("hostname").stdout == "one\n"
    one.run("touch", "/dev/shm/mine")
    assert one.run("ls", "/dev/shm").stdout == "mine\n"
    assert other.run("ls", "/dev/shm").stdout == ""
    one.run("bash", "-c", "sleep 600 >/dev/null 2>&1 &")
    # Until the new process runs the program, it has its parent's command line.
    wait_until(lambda: list(one.find_processes().values()) == ["sleep 600"])
    assert other.find_processes() == {}


def test_a_killed_test_run_leaves_nothing_behind(network: Network, wait_until: Callable[..., None]) -> None:
    name, value = "NETWORK_TEST", uuid4().hex
    running = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), name: value},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdin is not None
    with running.stdout, running.stdin:
        assert running.stdout.readline() == "ready\n"
        # The run itself, the bridge and the machine with what runs there; namespaces and mounts live in these alone.
        assert len(processes_with(f"{name}={value}")) >= 5
        running.send_signal(signal.SIGKILL)
        running.wait()
        wait_until(lambda: not processes_with(f"{name}={value}"))
