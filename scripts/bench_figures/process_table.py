"""What every process below another one costs while a training runs, from ``/proc``."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench_figures.job_processes import cpu_s
from periflow_ray.processes.keeper import find_descendants

# Looking costs some milliseconds, which the training has not got.
INTERVAL_S = 2.0
# The beginning is left out: programs start, and files are read for the first time.
WARM_UP_SHARE = 0.2
_NUM_NAME_LETTERS = 60


@dataclass(frozen=True)
class ProcessCost:
    """A process: share of one core, and how often a second it was woken."""

    name: str
    core_share: float
    wake_ups_per_s: float


@dataclass(frozen=True)
class _Sample:
    time_s: float
    names: dict[int, str]
    cpu_s: dict[int, float]
    num_wake_ups: dict[int, int]


class ProcessTable:
    """Looks at all processes below one while the ``with`` block runs.

    Args:
        parent_pid: the process above them.
        rank_program: what the command lines of the ranks, and of no other Python, contain.
        num_ranks: processes of that kind; the costs are those of the time when all of them run.
    """

    def __init__(self, parent_pid: int, rank_program: str, num_ranks: int) -> None:
        self._parent_pid = parent_pid
        self._rank_program = rank_program
        self._num_ranks = num_ranks
        self._samples: list[_Sample] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look_until_closed, name="process-table", daemon=True)

    def __enter__(self) -> ProcessTable:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def costs(self) -> list[ProcessCost]:
        """Costs of all processes that lived through the steady part of the training, highest first."""
        training = [sample for sample in self._samples if self._count_ranks(sample) == self._num_ranks]
        if len(training) < 2:
            return []
        first, last = training[int(len(training) * WARM_UP_SHARE)], training[-1]
        seconds = max(last.time_s - first.time_s, 1e-9)
        costs = [
            ProcessCost(
                name,
                (last.cpu_s[pid] - first.cpu_s[pid]) / seconds,
                (last.num_wake_ups[pid] - first.num_wake_ups[pid]) / seconds,
            )
            for pid, name in last.names.items()
            if pid in first.names
        ]
        return sorted(costs, key=lambda cost: -cost.core_share)

    def is_rank(self, cost: ProcessCost) -> bool:
        """Whether this is a rank of the training, and not something beside it."""
        return self._rank_program in cost.name

    def _count_ranks(self, sample: _Sample) -> int:
        return sum(self._rank_program in name for name in sample.names.values())

    def _look_until_closed(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            pids = [self._parent_pid, *find_descendants(self._parent_pid)]
            self._samples.append(
                _Sample(
                    time.monotonic(),
                    {pid: _name_of(pid) for pid in pids},
                    {pid: cpu_s([pid]) for pid in pids},
                    {pid: _count_wake_ups(pid) for pid in pids},
                )
            )


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        names = [Path(word).name if word.startswith("/") else word for word in words if word]
        return " ".join(names)[:_NUM_NAME_LETTERS]
    return "?"


def _count_wake_ups(pid: int) -> int:
    """How often the process's threads have waited for something so far."""
    num_wake_ups = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
                num_wake_ups += int(status.partition("\nvoluntary_ctxt_switches:")[2].split("\n", 1)[0])
    return num_wake_ups
