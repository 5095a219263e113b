"""Training speed of the CIFAR example as a job on two devices of this machine, against the same command without us.

The job's two stand-in nodes run torchrun with one process each; so does the baseline, with the same files, environment
variables and checkpoints. Speed is what the training script itself prints, over its steady part. Notes say what each
process beside the ranks takes of a core meanwhile, in a run of its own.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import socket
import threading
from pathlib import Path
from statistics import median

import yaml

from bench_figures.embedded_cluster import EmbeddedCluster, embedded_cluster
from bench_figures.process_table import ProcessTable
from bench_figures.programs import NUM_SHOWN_LINES, REPOSITORY_DIR, clean_environment, note
from bench_figures.row import FigureError, Goal, Row, row_of_pairs
from periflow_ray.processes import Command

EXAMPLE_DIR = REPOSITORY_DIR / "examples" / "cifar"
NUM_NODES = 2
NUM_REPEATS = 3
STEADY_S = 20.0
# The first part of each run is left out: caches fill, and the other rank may still be starting.
WARM_UP_SHARE = 0.2
CALIBRATION_EPOCHS = 5
TIMEOUT_S = 600.0
GRACE_S = 5.0
# Steps; the example's own 50 would be two checkpoints a second here, which no real training makes.
SAVE_INTERVAL = 500
GOAL = Goal(">=", 0.98)
# The beginning of a rank's command line.
RANK_PROGRAM = "python -u main.py"
MIN_SHOWN_SHARE = 0.001

_EPOCHS = re.compile(r"--total-epochs \d+")
_SAVE_INTERVAL = re.compile(r"--save-interval \d+")
_LOGGED_STEP = re.compile(r"step (\d+)/(\d+)  epoch .*  ([\d.]+) images/s")
_BATCH_SIZE = re.compile(r"--batch-size (\d+)")


def measure_ddp_throughput() -> list[Row]:
    """Steps per second of ``periflow-ray submit --local --num-devices 2`` and of two bare torchruns."""
    # What torchrun or Ray would choose for themselves: the two must not differ in it.
    threads = max(1, (os.cpu_count() or 1) // NUM_NODES)
    with embedded_cluster() as cluster:
        ours, baseline = [], []
        num_epochs = _choose_num_epochs(_run_bare(cluster.directory, threads, CALIBRATION_EPOCHS))
        _run_job(cluster, threads, CALIBRATION_EPOCHS)  # Starts the cluster.
        for repeat in range(NUM_REPEATS):
            # Taking turns at being first cancels what drifts, as the machine's temperature does.
            if repeat % 2 == 0:
                ours.append(_steps_per_s(_run_job(cluster, threads, num_epochs)))
            baseline.append(_steps_per_s(_run_bare(cluster.directory, threads, num_epochs)))
            if repeat % 2 == 1:
                ours.append(_steps_per_s(_run_job(cluster, threads, num_epochs)))
        _note_processes(cluster, threads, num_epochs)
    ratios = [mine / theirs for mine, theirs in zip(ours, baseline, strict=True)]
    spread = (max(baseline) - min(baseline)) / median(baseline)
    note(
        f"ddp_throughput: ratios {', '.join(f'{ratio:.3f}' for ratio in ratios)}; the baseline alone varies by "
        f"{spread:.1%} from run to run"
    )
    return [row_of_pairs("ddp_throughput", ours, baseline, "steps/s", GOAL)]


def _choose_num_epochs(calibration: list[str]) -> int:
    """Epochs that take ``STEADY_S`` after the warm-up share."""
    num_steps = int(_logged_steps(calibration)[-1][2])
    seconds = num_steps / _steps_per_s(calibration)
    return math.ceil(CALIBRATION_EPOCHS * STEADY_S / (1 - WARM_UP_SHARE) / seconds)


def _note_processes(cluster: EmbeddedCluster, threads: int, num_epochs: int) -> None:
    with ProcessTable(cluster.supervisor_pid, RANK_PROGRAM, NUM_NODES) as table:
        _run_job(cluster, threads, num_epochs)
    beside = [cost for cost in table.costs() if not table.is_rank(cost)]
    note(f"ddp_throughput: beside the ranks {sum(cost.core_share for cost in beside):.1%} of a core, of which")
    for cost in beside:
        if cost.core_share >= MIN_SHOWN_SHARE:
            note(f"  {cost.core_share:7.2%} of a core, {cost.wake_ups_per_s:5.0f} wake-ups/s  {cost.name}")


def _run_job(cluster: EmbeddedCluster, threads: int, num_epochs: int) -> list[str]:
    template = cluster.directory / "pf-template.yml"
    template.write_text(_lengthen((EXAMPLE_DIR / "pf-template.yml").read_text(), num_epochs))
    options = ("--devices-per-node", "1", "--env", f"OMP_NUM_THREADS={threads}")
    return cluster.submit(template, EXAMPLE_DIR, *options, timeout_s=TIMEOUT_S).splitlines()


def _run_bare(directory: Path, threads: int, num_epochs: int) -> list[str]:
    """Run the template's command once per node rank; returns what rank 0's node printed."""
    workspace = directory / "bare" / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(EXAMPLE_DIR, workspace / "cifar", ignore=shutil.ignore_patterns("__pycache__"))
    command = yaml.safe_load((EXAMPLE_DIR / "pf-template.yml").read_text())["job_setting"]["docker"]["command"]
    command = _lengthen(command, num_epochs).replace("/workspace", str(workspace))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines: list[list[str]] = [[] for _ in range(NUM_NODES)]
    nodes: list[Command] = []
    limit = threading.Timer(TIMEOUT_S, _stop_all, [nodes])
    limit.start()
    try:
        for node_rank in range(NUM_NODES):
            env = clean_environment(
                NUM_NODES=str(NUM_NODES),
                NODE_RANK=str(node_rank),
                NPROC_PER_NODE="1",
                WORLD_SIZE=str(NUM_NODES),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                OMP_NUM_THREADS=str(threads),
                PYTHONUNBUFFERED="1",
            )
            nodes.append(
                Command(
                    ["bash", "-c", command],
                    env=env,
                    working_dir=workspace,
                    grace_s=GRACE_S,
                    on_line=lines[node_rank].append,
                ).start()
            )
        results = [node.wait() for node in nodes]
    finally:
        limit.cancel()
        _stop_all(nodes)
    for node_rank, result in enumerate(results):
        if not result.is_success:
            tail = "\n  ".join(lines[node_rank][-NUM_SHOWN_LINES:])
            raise FigureError(f"the bare torchrun of node {node_rank} failed ({result}):\n  {tail}")
    return lines[0]


def _lengthen(command: str, num_epochs: int) -> str:
    """The example's command for a long run, with a checkpoint every few seconds rather than several a second."""
    command = _EPOCHS.sub(f"--total-epochs {num_epochs}", command)
    return _SAVE_INTERVAL.sub(f"--save-interval {SAVE_INTERVAL}", command)


def _stop_all(nodes: list[Command]) -> None:
    for node in nodes:
        node.stop()


def _steps_per_s(lines: list[str]) -> float:
    """Steps per second over the steady part, from the speeds printed since the step before."""
    logged = _logged_steps(lines)
    first_steady = max(1, int(len(logged) * WARM_UP_SHARE))
    num_steps = logged[-1][0] - logged[first_steady - 1][0]
    seconds = sum(seconds for _, seconds, _ in logged[first_steady:])
    return num_steps / seconds


def _logged_steps(lines: list[str]) -> list[tuple[int, float, int]]:
    """(step, seconds since the logged step before, total steps) of every line that tells them."""
    batch_size = int(_BATCH_SIZE.findall((EXAMPLE_DIR / "pf-template.yml").read_text())[-1])
    found: list[tuple[int, float, int]] = []
    for match in filter(None, map(_LOGGED_STEP.search, lines)):
        step = int(match[1])
        num_steps = step - (found[-1][0] if found else 0)
        found.append((step, num_steps * batch_size / float(match[3]), int(match[2])))
    if len(found) < 2:
        raise FigureError("the training printed no speed:\n  " + "\n  ".join(lines[-NUM_SHOWN_LINES:]))
    return found
