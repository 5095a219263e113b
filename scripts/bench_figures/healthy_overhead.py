"""What a healthy job's machinery costs its training: the same steps in a job and without one, in turn.

The ranks have fixed work on one core each, and half of the cores. The bare ones have no SDK calls, and everything of
the job stands still (SIGSTOP) while they work. The Ray cluster is there on both sides. Where the machine is less steady
than the overhead, the CPU time that the job's processes take and the SDK's calls say more: they are the second row,
as if no core were free, so that whatever the processes take was taken from steps. About half of it is what any Ray
Train job has: its controller, the supervisor of its driver, the polling of its workers.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from statistics import median, quantiles
from typing import Any

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.job_processes import cpu_s, find_job_processes, paused
from bench_figures.programs import MEASURED_DIR, clean_environment, note
from bench_figures.row import Goal, Row, row_of_pairs
from periflow_ray.processes import Command

NUM_PAIRS = int(os.environ.get("PERIFLOW_BENCH_NUM_PAIRS", "60"))
# Half of the cores are left, as beside devices; ddp_throughput has a rank on every core.
NUM_RANKS = max(1, (os.cpu_count() or 1) // 2)
SLICE_S = 2.0
PARTS_S = float(os.environ.get("PERIFLOW_BENCH_PARTS_S", "30"))
NUM_CALIBRATION_STEPS = 40
NUM_CALLS = 20_000
START_TIMEOUT_S = 180.0
GRACE_S = 5.0
SPEED_GOAL = Goal(">=", 0.995)
CPU_GOAL = Goal("<", 0.5, "%")

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
    command: python {program} {address} job
"""


@dataclass(frozen=True)
class Slice:
    """Some steps of all ranks: seconds of the slower one, and CPU seconds of the ranks' other threads."""

    seconds: float
    other_threads_cpu_s: float


class Side:
    """The ranks of one side."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def make_steps(self, num_steps: int) -> Slice:
        """Let all ranks make so many steps, at the same time."""
        answers = self._ask("steps", num_steps)
        return Slice(max(seconds for seconds, _ in answers), sum(others_s for _, others_s in answers))

    def time_calls(self) -> float:
        """Seconds of the SDK's calls in one step."""
        return float(median(self._ask("calls", NUM_CALLS)))

    def close(self) -> None:
        """Let the ranks end."""
        for connection in self._connections:
            connection.close()

    def _ask(self, *question: object) -> list[Any]:
        for connection in self._connections:
            connection.send(question)
        return [connection.recv() for connection in self._connections]


def measure_healthy_overhead() -> list[Row]:
    """Steps per second of a job and without; and percent of all cores that the job needs beside its steps."""
    with embedded_cluster() as cluster, _sides(cluster) as (job, bare):
        processes = find_job_processes(cluster.supervisor_pid)
        job.make_steps(NUM_CALIBRATION_STEPS)
        num_steps = round(NUM_CALIBRATION_STEPS * SLICE_S / job.make_steps(NUM_CALIBRATION_STEPS).seconds)
        rows = [_measure_parts(job, processes, round(num_steps * PARTS_S / SLICE_S))]
        ours, baseline = [], []
        for pair in range(NUM_PAIRS):
            # Taking turns at being first cancels what drifts.
            if pair % 2 == 0:
                ours.append(num_steps / job.make_steps(num_steps).seconds)
            with paused(processes):
                baseline.append(num_steps / bare.make_steps(num_steps).seconds)
            if pair % 2 == 1:
                ours.append(num_steps / job.make_steps(num_steps).seconds)
    ratios = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    # Standard error of a median of normally distributed values.
    error = 1.25 * (high - low) / 1.35 / len(ratios) ** 0.5
    note(
        f"healthy_overhead: half of the {len(ratios)} ratios are between {low:.4f} and {high:.4f}, so their median is "
        f"known to about {2 * error:.2%}; where that is more than 0.5% trust healthy_overhead_cpu"
    )
    return [row_of_pairs("healthy_overhead", ours, baseline, "steps/s", SPEED_GOAL), *rows]


def _measure_parts(job: Side, processes: dict[int, str], num_steps: int) -> Row:
    """Percent of all cores, and of a step, that go into anything but the script's own work."""
    machinery = [pid for pid, name in processes.items() if name != "rank"]
    before = {pid: cpu_s([pid]) for pid in machinery}
    made = job.make_steps(num_steps)
    used_s = {pid: cpu_s([pid]) - before[pid] for pid in machinery}
    calls_s = job.time_calls()
    step_s = made.seconds / num_steps
    cpu_share = (sum(used_s.values()) + made.other_threads_cpu_s) / (made.seconds * (os.cpu_count() or 1))
    share = cpu_share + calls_s / step_s
    by_name: Counter[str] = Counter()
    for pid, name in processes.items():
        by_name[name] += used_s.get(pid, 0.0)
    parts = ", ".join(f"{name} {value / made.seconds:.2%}" for name, value in by_name.most_common() if value > 0)
    note(
        f"healthy_overhead_cpu: of one core {parts}, SDK threads {made.other_threads_cpu_s / made.seconds:.2%}; SDK "
        f"calls {calls_s * 1e9:.0f} ns in a step of {step_s * 1e3:.1f} ms"
    )
    return Row("healthy_overhead_cpu", 100 * share, 100, "%", share, CPU_GOAL)


@contextlib.contextmanager
def _sides(cluster: EmbeddedCluster) -> Iterator[tuple[Side, Side]]:
    address = str(cluster.directory / "gate")
    template = cluster.directory / "pf-template.yml"
    template.write_text(_TEMPLATE.format(num_ranks=NUM_RANKS, program=_PROGRAM, address=address))
    with Listener(address) as listener, contextlib.ExitStack() as stack:
        cluster.start(template, MEASURED_DIR / "first_line", timeout_s=START_TIMEOUT_S)
        for _ in range(NUM_RANKS):
            rank = Command(
                [sys.executable, str(_PROGRAM), address, "bare"],
                env=clean_environment(OMP_NUM_THREADS="1"),
                working_dir=cluster.directory,
                grace_s=GRACE_S,
                on_line=note,
            )
            stack.callback(rank.stop)
        connections: dict[str, list[Connection]] = {"job": [], "bare": []}
        for _ in range(2 * NUM_RANKS):
            connection = listener.accept()
            connections[connection.recv()].append(connection)
        job, bare = Side(connections["job"]), Side(connections["bare"])
        yield job, bare
        job.close()
        bare.close()
