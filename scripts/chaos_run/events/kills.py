"""SIGKILL of each process of a job, of Ray's own on a machine, and of whole machines."""

from __future__ import annotations

import contextlib
import os
import random
import signal

from support.machines import Machine
from support.workbench import wait_until

from chaos_run.events.event import Event
from chaos_run.training import KINDS, Training

APPEARS_WITHIN_S = 60.0
ENDS_WITHIN_S = 90.0


def find_victim(training: Training, chance: random.Random, kind: str) -> int:
    """One process of a kind; waits until there is one, because the job may be just recovering."""
    found: list[int] = []

    def appears() -> bool:
        found[:] = training.find(kind)
        return bool(found)

    wait_until(appears, f"there is a {kind}", APPEARS_WITHIN_S)
    return chance.choice(found)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill(kind: str) -> Event:
    def act(training: Training, chance: random.Random) -> str:
        pid = find_victim(training, chance, kind)
        send(pid, signal.SIGKILL)
        return f"process {pid}"

    return Event(f"kill {kind}", act)


def _kill_keeper(training: Training, chance: random.Random) -> str:
    pid = find_victim(training, chance, "driver's keeper")
    send(pid, signal.SIGKILL)
    # It is what Ray knows of the job: without it the cluster takes the job for over, and so the driver saves and ends.
    wait_until(lambda: training.view()["status"] in ("failed", "stopped"), "the job has ended", ENDS_WITHIN_S)
    resumed = training.resume()
    assert resumed.exit_code == 0, resumed
    return f"process {pid}, and resumed"


def _choose_machine(training: Training, chance: random.Random) -> Machine:
    return chance.choice(training.cluster.workers)


def _kill_raylet(training: Training, chance: random.Random) -> str:
    machine = _choose_machine(training, chance)
    machine.kill_raylet()
    # Ray counts it among the living until it has noticed.
    wait_until(lambda: training.cluster.node_id_of(machine.name) is None, f"{machine.name} leaves the cluster", 60)
    training.restore_machines()
    return machine.name


def _switch_off(training: Training, chance: random.Random) -> str:
    machine = _choose_machine(training, chance)
    machine.power_off()
    training.restore_machines()
    return machine.name


EVENTS = [
    *(_kill(kind) for kind in KINDS if kind != "driver's keeper"),
    Event("kill driver's keeper", _kill_keeper),
    Event("kill raylet", _kill_raylet),
    Event("switch machine off", _switch_off),
]
