"""A job in containers against the same job without: restarts in place, and steps per second."""

from __future__ import annotations

import platform
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.container_images import serve_podman

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.interrupted_training import ImageSetup, JobTraining
from bench_figures.programs import note
from bench_figures.recovery import time_recoveries
from bench_figures.row import Goal, Row, row_of_pairs

NUM_REPEATS = 2
NUM_KILLS = 3
STEPS_PER_CHECKPOINT = 20
# No step is worth a checkpoint while steps are counted.
NO_CHECKPOINT = 10**9
MEASURED_S = 10.0
RESTART_GOAL = Goal("<=", 1.3)
THROUGHPUT_GOAL = Goal(">=", 0.99)


def measure_image_overhead() -> list[Row]:
    """Seconds from the SIGKILL of a rank to the first new step of all, and steps per second that only compute."""
    with _image() as (image, variables), embedded_cluster(variables) as cluster:
        inside, outside, fast_inside, fast_outside = [], [], [], []
        for _ in range(NUM_REPEATS):
            for setup, seconds, speeds in ((image, inside, fast_inside), (None, outside, fast_outside)):
                with JobTraining(cluster, STEPS_PER_CHECKPOINT, image=setup) as job:
                    seconds += time_recoveries(job, NUM_KILLS)
                speeds.append(_measure_speed(cluster, setup))
    note(f"image_overhead: in containers {_list(inside)} s; without {_list(outside)} s")
    return [
        row_of_pairs("image_overhead", inside, outside, "s", RESTART_GOAL),
        row_of_pairs("image_throughput", fast_inside, fast_outside, "steps/s", THROUGHPUT_GOAL),
    ]


@contextmanager
def _image() -> Iterator[tuple[ImageSetup, dict[str, str]]]:
    """An image that finds this environment's torch, and what a cluster has to know to use it."""
    packages, libraries = sysconfig.get_path("purelib"), f"/usr/lib/{platform.machine()}-linux-gnu"
    options = tuple(f"--volume={path}:{path}:ro" for path in (packages, libraries))
    with (
        tempfile.TemporaryDirectory(prefix="pf-podman-", dir="/tmp", ignore_cleanup_errors=True) as directory,
        serve_podman(Path(directory)) as (podman, name),
    ):
        yield ImageSetup(name, options, f"PYTHONPATH=$PYTHONPATH:{packages} python"), podman.environment


def _measure_speed(cluster: EmbeddedCluster, image: ImageSetup | None) -> float:
    with JobTraining(cluster, NO_CHECKPOINT, 0.0, image=image) as job:
        job.wait_for_new_processes()
        begun_s, first = time.monotonic(), job.last_step()
        time.sleep(MEASURED_S)
        return (job.last_step() - first) / (time.monotonic() - begun_s)


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)
