"""From the SIGKILL of a rank to the first new step of all ranks, against plain Ray Train; torchrun for reference."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

from bench_figures.embedded_cluster import embedded_cluster
from bench_figures.interrupted_training import InterruptedTraining, JobTraining, RayTraining, TorchrunTraining
from bench_figures.programs import note
from bench_figures.recovery_parts import describe_parts
from bench_figures.row import Goal, Row, row_of_pairs

NUM_KILLS = int(os.environ.get("PERIFLOW_BENCH_NUM_KILLS", "4"))
STEPS_PER_CHECKPOINT = 20
KILLED_RANK = 1
GOAL = Goal("<=", 0.5)


def measure_recovery() -> list[Row]:
    """Seconds; each training is killed several times, two trainings of each kind in turn."""
    with embedded_cluster() as cluster:
        ours, our_torchrun, ray_train, torchrun = [], [], [], []
        for repeat in range(min(2, NUM_KILLS)):
            num_kills = (NUM_KILLS + 1 - repeat) // 2
            with JobTraining(cluster, STEPS_PER_CHECKPOINT) as job:
                ours += time_recoveries(job, num_kills, is_described=repeat == 0)
            with RayTraining(cluster, STEPS_PER_CHECKPOINT) as baseline:
                ray_train += time_recoveries(baseline, num_kills)
            with JobTraining(cluster, STEPS_PER_CHECKPOINT, uses_torchrun=True) as job:
                our_torchrun += time_recoveries(job, num_kills)
            with TorchrunTraining(cluster, STEPS_PER_CHECKPOINT) as reference:
                torchrun += time_recoveries(reference, num_kills)
    note(f"recovery: ours {_list(ours)}; a job with torchrun {_list(our_torchrun)}; Ray Train {_list(ray_train)}")
    note(f"recovery: a bare torchrun --max-restarts takes {median(torchrun):.2f} s ({_list(torchrun)})")
    return [
        row_of_pairs("recovery", ours, ray_train, "s", GOAL),
        row_of_pairs("recovery_torchrun_job", our_torchrun, ray_train, "s", GOAL),
    ]


def time_recoveries(training: InterruptedTraining, num_kills: int, is_described: bool = False) -> list[float]:
    """How long the training takes after each SIGKILL of a rank until all ranks have made a new step, in seconds."""
    training.wait_for_new_processes()
    seconds = []
    for _ in range(num_kills):
        training.wait_for_checkpoint()
        killed_unix_s = training.kill_rank(KILLED_RANK)
        new_step_unix_s = training.wait_for_new_processes(killed_unix_s)
        seconds.append(new_step_unix_s - killed_unix_s)
        if is_described and isinstance(training, JobTraining):
            note(f"recovery: {describe_parts(training, killed_unix_s, new_step_unix_s)}")
    return seconds


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)
