"""How long the command line takes where it needs neither Ray nor torch, against an interpreter that does nothing."""

from __future__ import annotations

import sys
import tempfile
import time

from bench_figures.programs import clean_environment, run_program, venv_program
from bench_figures.row import Goal, Row, row_of_pairs

NUM_REPEATS = 10
TIMEOUT_S = 60.0
GOAL = Goal("<", 0.4, "s")


def measure_cli_start() -> list[Row]:
    """Wall time in seconds of ``periflow-ray --help`` and of ``periflow-ray vm list``."""
    nothing = [sys.executable, "-c", "pass"]
    with tempfile.TemporaryDirectory(prefix="periflow-bench-") as storage:
        env = clean_environment(PERIFLOW_STORAGE=storage)
        rows = []
        for name, arguments in (("cli_start_help", ["--help"]), ("cli_start_vm_list", ["vm", "list"])):
            command = [venv_program("periflow-ray"), *arguments]
            _time_program(command, env)  # The first run may have to compile modules.
            ours, baseline = [], []
            for _ in range(NUM_REPEATS):
                ours.append(_time_program(command, env))
                baseline.append(_time_program(nothing, env))
            rows.append(row_of_pairs(name, ours, baseline, "s", GOAL))
    return rows


def _time_program(argv: list[str], env: dict[str, str]) -> float:
    start_s = time.perf_counter()
    run_program(argv, env=env, timeout_s=TIMEOUT_S)
    return time.perf_counter() - start_s
