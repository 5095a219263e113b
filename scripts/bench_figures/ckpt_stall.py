"""How long ``upload_checkpoint()`` holds up the training, against ``cp -r --reflink=auto`` of the same directory."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from bench_figures.checkpoint_job import CHECKPOINT_BYTES, LAYOUTS, CheckpointJob, bench_directory, checkpoint_job
from bench_figures.row import Goal, Row, row_of_pairs

NUM_REPEATS = 7
# After a commit the member deletes the snapshot before; no training calls again at once.
PAUSE_S = 0.5
CHANGED_GOAL = Goal("<=", 1.2)
UNCHANGED_GOAL = Goal("<", 0.01)


def measure_ckpt_stall() -> list[Row]:
    """Seconds of the call after all files were written anew, and of a second one that finds them unchanged."""
    rows = []
    for layout, num_files in LAYOUTS.items():
        with (
            bench_directory() as directory,
            checkpoint_job(
                directory, str(directory / "storage"), num_files=num_files, num_bytes=CHECKPOINT_BYTES
            ) as job,
        ):
            rows += _measure_layout(layout, job, directory / "copy")
    return rows


def _measure_layout(layout: str, job: CheckpointJob, copy_dir: Path) -> list[Row]:
    changed, unchanged, copying = [], [], []
    for repeat in range(1 + NUM_REPEATS):
        job.write_files()
        # Taking turns at being first cancels what drifts, and what the first leaves in the caches for the second.
        if repeat % 2 == 0:
            copying.append(_time_copy(job.output_dir, copy_dir))
        changed.append(_save(job))
        time.sleep(PAUSE_S)
        unchanged.append(_save(job))
        if repeat % 2 == 1:
            copying.append(_time_copy(job.output_dir, copy_dir))
        job.delete_copies()
    # The first is the warm-up.
    return [
        row_of_pairs(f"ckpt_stall_{layout}", changed[1:], copying[1:], "s", CHANGED_GOAL),
        row_of_pairs(f"ckpt_stall_{layout}_unchanged", unchanged[1:], copying[1:], "s", UNCHANGED_GOAL),
    ]


def _save(job: CheckpointJob) -> float:
    stall_s = job.save().stall_s
    job.wait_for_commit()
    return stall_s


def _time_copy(source: Path, target: Path) -> float:
    began_s = time.monotonic()
    subprocess.run(["cp", "-r", "--reflink=auto", str(source), str(target)], check=True)
    seconds = time.monotonic() - began_s
    shutil.rmtree(target)
    return seconds
