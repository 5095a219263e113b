"""Steps that a training keeps when a rank is killed every minute, as a share of those of the uninterrupted training."""

from __future__ import annotations

import os
import time

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.interrupted_training import STEP_TIME_S, InterruptedTraining, JobTraining, RayTraining
from bench_figures.programs import note
from bench_figures.row import Goal, Row

NUM_KILLS = int(os.environ.get("PERIFLOW_BENCH_NUM_KILLS", "3"))
KILL_PERIOD_S = float(os.environ.get("PERIFLOW_BENCH_KILL_PERIOD_S", "60"))
CHECKPOINT_PERIOD_S = 5.0
# The uninterrupted training's speed needs no more; it has its checkpoints too.
UNINTERRUPTED_S = min(60.0, KILL_PERIOD_S)
KILLED_RANK = 1
GOAL = Goal(">=", 85, "%")


def measure_goodput() -> list[Row]:
    """Percent, ours and plain Ray Train's, each of its own uninterrupted training."""
    with embedded_cluster() as cluster:
        ours = _measure(cluster, JobTraining)
        baseline = _measure(cluster, RayTraining)
    return [Row("goodput", 100 * ours, 100 * baseline, "%", ours / baseline, GOAL)]


def _measure(cluster: EmbeddedCluster, kind: type[JobTraining] | type[RayTraining]) -> float:
    with kind(cluster, round(CHECKPOINT_PERIOD_S / STEP_TIME_S)) as training:
        training.wait_for_new_processes()
        full_steps_per_s = _train(training, 1, UNINTERRUPTED_S, is_killed=False)
        steps_per_s = _train(training, NUM_KILLS, KILL_PERIOD_S, is_killed=True)
    note(f"goodput: {kind.__name__} kept {steps_per_s:.2f} steps/s of {full_steps_per_s:.2f} without kills")
    return steps_per_s / full_steps_per_s


def _train(training: InterruptedTraining, num_periods: int, period_s: float, *, is_killed: bool) -> float:
    """Steps per second; one that is made again counts once."""
    began_unix_s = time.time()
    for period in range(num_periods):
        # In the middle of its period, so that each kill has a whole period to it.
        _sleep_until(began_unix_s + (period + 0.5) * period_s)
        if is_killed:
            training.kill_rank(KILLED_RANK)
    ends_unix_s = began_unix_s + num_periods * period_s
    _sleep_until(ends_unix_s)
    training.wait_for_step(ends_unix_s)
    return (training.step_at(ends_unix_s) - training.step_at(began_unix_s)) / (num_periods * period_s)


def _sleep_until(time_unix_s: float) -> None:
    time.sleep(max(0.0, time_unix_s - time.time()))
