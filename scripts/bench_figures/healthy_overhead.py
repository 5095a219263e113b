"""What a healthy job's machinery costs its training: the same processes make steps with it and without it, in turn.

The ranks have fixed work on one core each, and half of the cores. Without it means: no SDK calls, and everything of the
job but the ranks stands still (SIGSTOP). The Ray cluster and the SDK's idle threads are there on both sides. A note
says what the job's processes take of all cores, which is what they take from the steps where no core is free. About
half of it is what any Ray Train job has: its controller, the supervisor of its driver, the polling of its workers.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from statistics import median, quantiles
from typing import Any

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.job_processes import cpu_s, find_job_machinery, paused
from bench_figures.programs import MEASURED_DIR, note
from bench_figures.row import Goal, Row, row_of_pairs

NUM_PAIRS = int(os.environ.get("PERIFLOW_BENCH_NUM_PAIRS", "120"))
# Half of the cores are left, as beside devices; ddp_throughput has a rank on every core.
NUM_RANKS = max(1, (os.cpu_count() or 1) // 2)
SLICE_S = 1.0
PARTS_S = float(os.environ.get("PERIFLOW_BENCH_PARTS_S", "30"))
NUM_CALIBRATION_STEPS = 40
NUM_CALLS = 20_000
START_TIMEOUT_S = 180.0
GOAL = Goal(">=", 0.995)

_PROGRAM = MEASURED_DIR / "fixed_work.py"
_TEMPLATE = """\
name: healthy
vm: local
num_devices: {num_ranks}
job_setting:
  type: custom
  launch_mode: device
  docker:
    image: python:3.11
    env_var:
      OMP_NUM_THREADS: 1
    command: python {program} {address}
"""


@dataclass(frozen=True)
class Slice:
    """Some steps of all ranks: seconds of the slower one, and CPU seconds of the ranks' other threads."""

    seconds: float
    other_threads_cpu_s: float


class Ranks:
    """All ranks of the job."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def make_steps(self, num_steps: int) -> Slice:
        """Let all ranks make so many steps, at the same time."""
        return _slice_of(self._ask("steps", num_steps))

    def make_bare_steps(self, num_steps: int) -> Slice:
        """The same without the SDK's calls."""
        return _slice_of(self._ask("bare_steps", num_steps))

    def time_calls(self) -> float:
        """Seconds of the SDK's calls in one step."""
        return float(median(self._ask("calls", NUM_CALLS)))

    def _ask(self, *question: object) -> list[Any]:
        for connection in self._connections:
            connection.send(question)
        return [connection.recv() for connection in self._connections]


def _slice_of(answers: list[tuple[float, float]]) -> Slice:
    return Slice(max(seconds for seconds, _ in answers), sum(others_s for _, others_s in answers))


def measure_healthy_overhead() -> list[Row]:
    """Steps per second with the machinery and without."""
    with embedded_cluster() as cluster, _running_job(cluster) as ranks:
        machinery = find_job_machinery(cluster.supervisor_pid)
        ranks.make_steps(NUM_CALIBRATION_STEPS)
        num_steps = round(NUM_CALIBRATION_STEPS * SLICE_S / ranks.make_steps(NUM_CALIBRATION_STEPS).seconds)
        _note_parts(ranks, machinery, round(num_steps * PARTS_S / SLICE_S))
        ours, baseline = [], []
        for pair in range(NUM_PAIRS):
            # Taking turns at being first cancels what drifts.
            if pair % 2 == 0:
                ours.append(num_steps / ranks.make_steps(num_steps).seconds)
            with paused(machinery):
                baseline.append(num_steps / ranks.make_bare_steps(num_steps).seconds)
            if pair % 2 == 1:
                ours.append(num_steps / ranks.make_steps(num_steps).seconds)
    ratios = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    # Standard error of a median of normally distributed values.
    error = 1.25 * (high - low) / 1.35 / len(ratios) ** 0.5
    note(
        f"healthy_overhead: half of the {len(ratios)} ratios are between {low:.4f} and {high:.4f}, so their median is "
        f"known to about {2 * error:.2%}"
    )
    return [row_of_pairs("healthy_overhead", ours, baseline, "steps/s", GOAL)]


def _note_parts(ranks: Ranks, machinery: dict[int, str], num_steps: int) -> None:
    """Say how much of the cores, and of a step, goes into anything but the script's own work."""
    before = {pid: cpu_s([pid]) for pid in machinery}
    made = ranks.make_steps(num_steps)
    used_s = {pid: cpu_s([pid]) - before[pid] for pid in machinery}
    calls_s = ranks.time_calls()
    step_s = made.seconds / num_steps
    cpu_share = (sum(used_s.values()) + made.other_threads_cpu_s) / (made.seconds * (os.cpu_count() or 1))
    by_name: Counter[str] = Counter()
    for pid, name in machinery.items():
        by_name[name] += used_s[pid]
    parts = ", ".join(f"{name} {value / made.seconds:.2%}" for name, value in by_name.most_common() if value > 0)
    note(
        f"healthy_overhead: the job's processes take {cpu_share:.1%} of all cores; of one core {parts}, SDK threads "
        f"{made.other_threads_cpu_s / made.seconds:.2%}; SDK calls {calls_s * 1e9:.0f} ns in a step of "
        f"{step_s * 1e3:.1f} ms"
    )


@contextlib.contextmanager
def _running_job(cluster: EmbeddedCluster) -> Iterator[Ranks]:
    address = str(cluster.directory / "gate")
    template = cluster.directory / "pf-template.yml"
    template.write_text(_TEMPLATE.format(num_ranks=NUM_RANKS, program=_PROGRAM, address=address))
    with Listener(address) as listener, contextlib.ExitStack() as stack:
        cluster.start(template, MEASURED_DIR / "first_line", timeout_s=START_TIMEOUT_S)
        yield Ranks([stack.enter_context(listener.accept()) for _ in range(NUM_RANKS)])
