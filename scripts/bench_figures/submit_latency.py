"""From the submit command to the first line of user code on a warm cluster, against plain Ray Jobs and Ray Train.

Both put two workers on the same embedded cluster, package a directory of one script, and note the time at which the
later of the two workers reaches the user's first line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.programs import MEASURED_DIR, clean_environment, note, run_program, venv_program
from bench_figures.row import FigureError, Goal, Row, row_of_pairs

NUM_REPEATS = 3
NUM_WORKERS = 2
TIMEOUT_S = 180.0
GOAL = Goal("<=", 0.7)

TEMPLATE = """\
name: submit-latency
vm: local
num_devices: 2
job_setting:
  type: custom
  docker:
    image: python:3.11
    command: cd /workspace/{workspace} && python main.py {marks_dir}
"""


def measure_submit_latency() -> list[Row]:
    """Seconds from the start of ``periflow-ray submit`` or ``ray job submit`` to the user's first line."""
    with embedded_cluster() as cluster:
        _time_ours(cluster)  # Starts the cluster, and warms the files of both.
        _time_ray(cluster)
        ours, baseline = [], []
        for _ in range(NUM_REPEATS):
            ours.append(_time_ours(cluster))
            baseline.append(_time_ray(cluster))
    note(
        f"submit_latency: a torchrun command's script starts {_time_torchrun_import():.1f} s later, for torchrun "
        "imports torch first; the Ray Train worker has imported it by its first line"
    )
    return [row_of_pairs("submit_latency", ours, baseline, "s", GOAL)]


def _time_ours(cluster: EmbeddedCluster) -> float:
    workspace = MEASURED_DIR / "first_line"
    template = cluster.directory / "pf-template.yml"

    def submit(marks_dir: Path) -> None:
        template.write_text(TEMPLATE.format(workspace=workspace.name, marks_dir=marks_dir))
        cluster.submit(template, workspace, timeout_s=TIMEOUT_S)

    return _time_to_first_line(cluster, submit)


def _time_ray(cluster: EmbeddedCluster) -> float:
    def submit(marks_dir: Path) -> None:
        argv = [venv_program("ray"), "job", "submit", "--working-dir", str(MEASURED_DIR / "ray_train"), "--"]
        argv += [sys.executable, "main.py", str(marks_dir), str(cluster.directory / "ray-train")]
        run_program(argv, env=cluster.ray_env, timeout_s=TIMEOUT_S)

    return _time_to_first_line(cluster, submit)


def _time_to_first_line(cluster: EmbeddedCluster, submit: Callable[[Path], None]) -> float:
    start_unix_s = time.time()
    marks_dir = cluster.directory / f"marks-{start_unix_s}"
    marks_dir.mkdir()
    submit(marks_dir)
    times_unix_s = [float(mark.read_text()) for mark in marks_dir.iterdir()]
    if len(times_unix_s) != NUM_WORKERS:
        raise FigureError(f"{len(times_unix_s)} of {NUM_WORKERS} workers reached the user's first line")
    return max(times_unix_s) - start_unix_s


def _time_torchrun_import() -> float:
    def run() -> float:
        start_s = time.perf_counter()
        argv = [sys.executable, "-c", "import torch.distributed.run"]
        run_program(argv, env=clean_environment(), timeout_s=TIMEOUT_S)
        return time.perf_counter() - start_s

    return median(run() for _ in range(NUM_REPEATS))
