"""The processes of this machine that a job on an embedded cluster consists of, and what they cost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from periflow_ray.processes.keeper import find_descendants

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RAY_PREFIX = "ray::"
# What Ray names so and has for any job or none.
_RAY_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_OUR_MODULE = "periflow_ray."
_RANK_PROGRAM = "fixed_work.py"
_SUPERVISOR_MODULE = "local_supervisor"


def find_job_machinery(supervisor_pid: int) -> dict[int, str]:
    """What is below the cluster's supervisor for its one job, but the ranks: process id and a short name.

    The driver, the actors (monitor, members, Ray Train's controller, Ray's supervisor of the driver) and the
    ranks' keepers. Ray's own daemons are not among them.
    """
    found = {}
    for pid in find_descendants(supervisor_pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if (name := _name_of(words)) is not None:
                found[pid] = name
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that processes have used so far."""
    num_ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            num_ticks += int(fields[11]) + int(fields[12])
    return num_ticks / _TICKS_PER_S


@contextlib.contextmanager
def paused(pids: Iterable[int]) -> Iterator[None]:
    """Keep processes from running at all."""
    pids = list(pids)
    try:
        _send(pids, signal.SIGSTOP)
        yield
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _name_of(words: list[str]) -> str | None:
    text = " ".join(words)
    if _RANK_PROGRAM in text:
        return "keeper" if "keeper.py" in text else None
    if words[0].startswith(_RAY_PREFIX):
        return None if words[0].startswith(_RAY_OWN) else words[0].removeprefix(_RAY_PREFIX).partition("(")[0]
    if _OUR_MODULE in text and _SUPERVISOR_MODULE not in text:
        return next(word for word in words if _OUR_MODULE in word).rpartition(".")[2]
    return None
