"""The monitor of a job with 1,000 members of 8 ranks each: its CPU, how soon an order is everywhere, its memory.

The column "baseline" is, for CPU and order, an actor of Ray that takes the same calls and does nothing; for memory, the
size of the manifests of the committed checkpoints.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

from bench_figures.programs import MEASURED_DIR, REPOSITORY_DIR, clean_environment, run_program
from bench_figures.row import Goal, Row
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.contract import MemberFacts, Report
from periflow_ray.runtime.monitor.in_process import InProcessMonitor
from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer

LOAD_PROGRAM = MEASURED_DIR / "monitor_load.py"
TIMEOUT_S = 300.0
NUM_FILES = 512
NUM_COMMITS = 1000
CPU_GOAL = Goal("<=", 0.10, "cores")
ORDER_GOAL = Goal("<=", 1.0, "s")
MEMORY_GOAL = Goal("<=", 10.0, "MiB")


def measure_monitor_scale() -> list[Row]:
    """Share of a core, seconds until the last member has an order, MiB per 1,000 commits of 512 files."""
    ours, baseline = _run_load("ours"), _run_load("empty")
    cores, order_s = ours["cores"], ours["order_s"]
    return [
        Row("monitor_scale_cpu", cores, baseline["cores"], "cores", cores / baseline["cores"], CPU_GOAL),
        Row("monitor_scale_order", order_s, baseline["order_s"], "s", order_s / baseline["order_s"], ORDER_GOAL),
        _measure_memory(),
    ]


def _run_load(which: str) -> dict[str, float]:
    environment = clean_environment(PYTHONPATH=str(REPOSITORY_DIR))
    output = run_program([sys.executable, str(LOAD_PROGRAM), which], env=environment, timeout_s=TIMEOUT_S)
    answer: dict[str, float] = json.loads(output.splitlines()[-1])
    return answer


def _measure_memory() -> Row:
    rules = JobRules(devices_per_member=1, max_failures=0, retention=Retention())
    with tempfile.TemporaryDirectory(prefix="periflow-bench-") as scratch:
        root, output_dir = StorageRoot(f"{scratch}/storage"), Path(scratch, "output")
        output_dir.mkdir()
        for index in range(NUM_FILES):
            (output_dir / f"shard-{index:05}.distcp").write_bytes(index.to_bytes(4, "little"))
        with InProcessMonitor(lambda: Monitor(root, 1, rules)) as monitor:
            attempt = monitor.join(("bench", 0), MemberFacts(0, 1, 0, "127.0.0.1", 1, "machine")).attempt
            with CheckpointUploads(root, 1, 0, monitor, attempt, Path(scratch, "snapshots"), Transfer(root)) as uploads:

                def save(step: int) -> None:
                    uploads.save(output_dir, (step, 1), Report(attempt, 0, step, {0: step}))
                    uploads.wait_until_settled()

                # What the newest checkpoint takes is known before, because each commit replaces it.
                tracemalloc.start()
                for step in range(1, 11):
                    save(step)
                gc.collect()
                before, _ = tracemalloc.get_traced_memory()
                for step in range(11, 11 + NUM_COMMITS):
                    save(step)
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
        manifest_bytes = len(root.read_bytes(job_key(1, "checkpoints", "step-00000010", "manifest.json")))
    ours, baseline = (after - before) / (1 << 20), manifest_bytes * NUM_COMMITS / (1 << 20)
    return Row("monitor_scale_memory", ours, baseline, "MiB", ours / baseline, MEMORY_GOAL)
