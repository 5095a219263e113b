"""One training step's SDK calls inside a job, against PeriFlow SDK 0.1.2 in its cloud mode and in its local mode.

Ours talks to a real ``SessionServer`` in another process. PeriFlow's cloud mode talks to a peer that does nothing but
acknowledge. All three run in turn, each as fast as it can for longer than our sender's interval, so that our
background sender competes with the steps as much as it ever will.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench_figures.programs import REPOSITORY_DIR, Helper, clean_environment, note, run_program
from bench_figures.row import FigureError, Goal, Row, row_of_pairs

NUM_REPEATS = 7
BASELINE_REQUIREMENT = "periflow-sdk==0.1.2"
BASELINE_DIR = REPOSITORY_DIR / ".venv" / "periflow-sdk-0.1.2"
INSTALL_TIMEOUT_S = 300.0
# Some seconds pass between two messages of hundreds of thousands of metrics.
SILENCE_S = 15.0
CLOUD_GOAL = Goal("<=", 0.01)
LOCAL_GOAL = Goal("<=", 0.333)


def measure_sdk_step() -> list[Row]:
    """Microseconds of ``with train_step(): metric({two keys})`` and ``is_emergency_save()``."""
    _install_baseline()
    # PeriFlow names its pipes in /tmp by local rank; this process's id keeps two benches apart.
    local_rank = str(os.getpid())
    # A Unix-domain socket's path has 107 bytes at most, so not below a long TMPDIR.
    with tempfile.TemporaryDirectory(prefix="periflow-bench-", dir="/tmp") as directory, ExitStack() as helpers:
        socket_path = str(Path(directory) / "session")
        job_env = {"PERIFLOW_ENABLED": "1", "PROCESSED_ITERS": "0", "NUM_NODES": "1", "NODE_RANK": "0"}
        cloud_env = {**job_env, "RANK": local_rank, "WORLD_SIZE": str(int(local_rank) + 1)}
        theirs = {"PYTHONPATH": str(BASELINE_DIR)}
        log_path = str(Path(directory) / "local.log")

        def start(name: str, *arguments: str, **env: str) -> Helper:
            return helpers.enter_context(Helper(name, *arguments, env=clean_environment(**env)))

        member = start("session_peer", socket_path)
        ours = start("step_timer", "periflow_ray", log_path, PERIFLOW_SESSION=socket_path, **job_env)
        start("fifo_peer", local_rank)
        cloud = start("step_timer", "periflow_sdk", log_path, **cloud_env, **theirs)
        local = start("step_timer", "periflow_sdk", log_path, **theirs)
        rows = [
            _compare("sdk_step_cloud", ours, cloud, member, CLOUD_GOAL),
            _compare("sdk_step_local", ours, local, member, LOCAL_GOAL),
        ]
        note(f"sdk_step: the member received {_received(member)} of the {ours.ask('count')} metrics of our side")
    return rows


def _compare(name: str, ours: Helper, theirs: Helper, member: Helper, goal: Goal) -> Row:
    pairs = []
    for _ in range(1 + NUM_REPEATS):
        ours_us = _time_steps(ours)
        _wait_for_delivery(ours, member)
        pairs.append((ours_us, _time_steps(theirs)))
    del pairs[0]  # Warm-up.
    return row_of_pairs(name, [pair[0] for pair in pairs], [pair[1] for pair in pairs], "us", goal)


def _time_steps(timer: Helper) -> float:
    return float(timer.ask("time"))


def _wait_for_delivery(ours: Helper, member: Helper) -> None:
    """Wait until the member has all metrics, so that their delivery does not slow the next measurement.

    Or until no more come: a machine that takes a step in less than a microsecond fills the SDK's buffer.
    """
    num_sent = int(ours.ask("count"))
    num_received = _received(member)
    last_news_s = time.monotonic()
    while num_received < num_sent and time.monotonic() - last_news_s < SILENCE_S:
        time.sleep(0.05)
        if (now_received := _received(member)) > num_received:
            num_received, last_news_s = now_received, time.monotonic()
    if num_received == 0:
        raise FigureError(f"the member received none of {num_sent} metrics within {SILENCE_S:.0f} s")


def _received(member: Helper) -> int:
    return int(member.ask())


def _install_baseline() -> None:
    if (BASELINE_DIR / "periflow_sdk").is_dir():
        return
    note(f"installing {BASELINE_REQUIREMENT} into {BASELINE_DIR.relative_to(REPOSITORY_DIR)}")
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--target", str(BASELINE_DIR), BASELINE_REQUIREMENT]
    run_program(argv, env=clean_environment(), timeout_s=INSTALL_TIMEOUT_S)
