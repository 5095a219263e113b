"""Sweeps of short trials: against a shell loop, against Ray Tune over Ray Train, and how many steps ASHA saves.

All of them run the script of ``examples/sweep``, two trials at a time.
"""

from __future__ import annotations

import json
import os
import sys
import time

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.programs import MEASURED_DIR, REPOSITORY_DIR, run_program
from bench_figures.row import Goal, Row, row_of_pairs

NUM_TRIALS = int(os.environ.get("PERIFLOW_BENCH_NUM_TRIALS", "16"))
NUM_ASHA_TRIALS = 27
NUM_STEPS = 600
TIMEOUT_S = 900.0
LOOP_GOAL = Goal("<=", 1.3)
TUNE_GOAL = Goal("<=", 1 / 3)
STEPS_GOAL = Goal("<=", 0.4)
ACCURACY_GOAL = Goal("<=", 0.5, "pt")

_EXAMPLE = REPOSITORY_DIR / "examples" / "sweep"
_SWEEP = json.loads(
    '{"metric": "accuracy", "mode": "max", "max_concurrent": 2, "parameters": {"lr": {"loguniform": [0.001, 1]}, '
    '"momentum": {"uniform": [0, 0.95]}, "width": {"choice": [16, 32, 64]}, "dropout": {"uniform": [0, 0.5]}}}'
)
_ASHA = {"type": "asha", "max_t": NUM_STEPS, "grace_period": 60, "reduction_factor": 3}
# The same as what a trial is: a directory of its own, and nothing of the others.
_LOOP = """\
seq {num_trials} | xargs -P 2 -I N bash -c 'mkdir {directory}/N && cd {directory}/N && {python} {script} > output'
"""


def measure_sweep() -> list[Row]:
    """Seconds for all trials, and steps of a search with ASHA over those of one without."""
    with embedded_cluster() as cluster:
        _run_sweep(cluster, 2)  # Starts the cluster, and warms the files.
        loop, ours = _time_loop(cluster), _time_sweep(cluster)
        tune = _time_tune(cluster)
        asha, whole = _run_sweep(cluster, NUM_ASHA_TRIALS, scheduler=_ASHA), _run_sweep(cluster, NUM_ASHA_TRIALS)
    best_whole = _best(whole)
    lost = 100 * (best_whole - _best(asha))
    steps_asha, steps_whole = _num_steps(asha), _num_steps(whole)
    return [
        row_of_pairs("sweep_wall", [ours], [loop], "s", LOOP_GOAL),
        row_of_pairs("sweep_wall_tune", [ours], [tune], "s", TUNE_GOAL),
        row_of_pairs("asha_steps", [steps_asha], [steps_whole], "steps", STEPS_GOAL),
        Row("asha_accuracy_lost", lost, 100 * best_whole, "pt", lost / (100 * best_whole), ACCURACY_GOAL),
    ]


def _time_sweep(cluster: EmbeddedCluster) -> float:
    began_s = time.monotonic()
    _run_sweep(cluster, NUM_TRIALS)
    return time.monotonic() - began_s


def _time_loop(cluster: EmbeddedCluster) -> float:
    directory = cluster.directory / "loop"
    directory.mkdir()
    command = _LOOP.format(
        num_trials=NUM_TRIALS, directory=directory, python=sys.executable, script=_EXAMPLE / "main.py"
    )
    began_s = time.monotonic()
    run_program(["bash", "-c", command], env=cluster.env, timeout_s=TIMEOUT_S)
    return time.monotonic() - began_s


def _time_tune(cluster: EmbeddedCluster) -> float:
    began_s = time.monotonic()
    argv = [sys.executable, str(MEASURED_DIR / "tune_over_train.py"), str(cluster.directory / "tune"), str(NUM_TRIALS)]
    # In a cluster of its own, so that its workers start as ours did.
    run_program(argv, env=cluster.env, cwd=cluster.directory, timeout_s=TIMEOUT_S)
    return time.monotonic() - began_s


def _run_sweep(cluster: EmbeddedCluster, num_trials: int, **changes: object) -> list[dict[str, float]]:
    path = cluster.directory / "sweep.json"
    path.write_text(json.dumps({**_SWEEP, "num_trials": num_trials, **changes}))
    options = ["-f", str(_EXAMPLE / "pf-template.yml"), "--sweep", str(path), "-d", str(_EXAMPLE), "--yes"]
    answer = cluster.run("sweep", "run", "--local", *options, timeout_s=TIMEOUT_S)
    number = answer.partition("(")[2].partition(")")[0]
    told = json.loads(cluster.run("sweep", "view", number, "--all", "-o", "json", timeout_s=TIMEOUT_S))
    trials: list[dict[str, float]] = told["trials"]
    return trials


def _best(trials: list[dict[str, float]]) -> float:
    return max(trial["best"] for trial in trials)


def _num_steps(trials: list[dict[str, float]]) -> float:
    return float(sum(trial["step"] for trial in trials))
