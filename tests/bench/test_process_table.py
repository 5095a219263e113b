"""The table of what processes cost beside a training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench_figures import process_table

BUSY = "while True: pass"


def test_a_busy_process_is_told_from_one_that_sleeps(monkeypatch, wait_until):
    monkeypatch.setattr(process_table, "INTERVAL_S", 0.05)
    programs = [subprocess.Popen([sys.executable, "-c", code]) for code in (BUSY, "import time; time.sleep(600)")]
    try:
        with process_table.ProcessTable(os.getpid(), BUSY, num_ranks=1) as table:
            wait_until(lambda: any(table.is_rank(cost) and cost.core_share > 0 for cost in table.costs()))
        costs = table.costs()
        sleeping = next(cost for cost in costs if "time.sleep" in cost.name)
        busy = next(cost for cost in costs if table.is_rank(cost))
        assert sleeping.core_share < busy.core_share
    finally:
        for program in programs:
            program.kill()
            program.wait()


def test_without_its_ranks_a_run_has_no_costs(monkeypatch):
    monkeypatch.setattr(process_table, "INTERVAL_S", 0.01)
    with process_table.ProcessTable(os.getpid(), "no such program", num_ranks=2) as table:
        pass
    assert table.costs() == []
