"""What uploads beside the training cost a loop that keeps one core busy: steps per second with and without them.

One checkpoint, all files new, at the start of every window. The seconds inside ``upload_checkpoint()`` do not count
here, they are what ``ckpt_stall`` measures. The S3 server runs at the lowest priority, because a real one would not run
on the machine that trains.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from bench_figures.checkpoint_job import CHECKPOINT_BYTES, CheckpointJob, bench_directory, checkpoint_job
from bench_figures.programs import note
from bench_figures.row import Goal, Row, row_of_pairs
from bench_figures.storage_servers import serve_s3

NUM_REPEATS = 3
# One GiB this often is more than trainings do.
WINDOW_S = 15.0
# Without checkpoints the speed is the same all the time.
ALONE_S = 5.0
NUM_FILES = 64
LOWEST_PRIORITY = 19
GOAL = Goal(">=", 0.95)


def measure_ckpt_interference() -> list[Row]:
    """Steps per second beside uploads to local disk and to S3."""
    with bench_directory() as directory, serve_s3(directory) as server:
        for thread in os.listdir(f"/proc/{server.pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), LOWEST_PRIORITY)
        return [
            _measure_place(directory, "local", str(directory / "storage"), {}),
            _measure_place(directory, "s3", server.make_uri("storage"), server.environment),
        ]


def _measure_place(directory: Path, place: str, storage_uri: str, environment: Mapping[str, str]) -> Row:
    beside, seconds_to_commit = [], []
    with checkpoint_job(
        directory, storage_uri, num_files=NUM_FILES, num_bytes=CHECKPOINT_BYTES, environment=environment
    ) as job:
        _train_alone(job)  # Warm-up.
        alone = [_train_alone(job)]
        for _ in range(NUM_REPEATS):
            job.write_files()
            steps_per_s, commit_s = _train_beside_upload(job)
            job.delete_copies()
            beside.append(steps_per_s)
            seconds_to_commit.append(commit_s)
            alone.append(_train_alone(job))
    name = f"ckpt_interference_{place}"
    uploading = ", ".join(f"{seconds:.1f}" for seconds in seconds_to_commit)
    note(f"{name}: {CHECKPOINT_BYTES >> 20} MiB every {WINDOW_S:.0f} s; uploading took {uploading} s of that")
    # The windows before and after, so that what drifts meanwhile cancels.
    baseline = [(before + after) / 2 for before, after in itertools.pairwise(alone)]
    spread = (max(alone) - min(alone)) / median(alone)
    ratios = ", ".join(f"{mine / theirs:.3f}" for mine, theirs in zip(beside, baseline, strict=True))
    note(f"{name}: ratios {ratios}; the loop alone varies by {spread:.1%} from window to window")
    return row_of_pairs(name, beside, baseline, "steps/s", GOAL)


def _train_alone(job: CheckpointJob) -> float:
    """Steps per second after the same writing of files, but with no checkpoint."""
    job.write_files()
    num_steps, seconds = job.train(ALONE_S, saves=False)
    return num_steps / seconds


def _train_beside_upload(job: CheckpointJob) -> tuple[float, float]:
    """Steps per second outside ``upload_checkpoint()``, and seconds from the window's start to the commit."""
    with ThreadPoolExecutor(1) as waiting:
        committed_s = waiting.submit(job.wait_for_commit)
        began_s = time.monotonic()
        num_steps, seconds = job.train(WINDOW_S, saves=True)
        return num_steps / seconds, committed_s.result() - began_s
