"""A dataset of many small files to and from S3, against one file after the other through fsspec."""

from __future__ import annotations

import os
import random
from pathlib import Path

from bench_figures.checkpoint_job import bench_directory
from bench_figures.programs import Helper, clean_environment, note
from bench_figures.row import Goal, Row, row_of_pairs
from bench_figures.storage_servers import serve_s3

NUM_FILES = int(os.environ.get("PERIFLOW_BENCH_NUM_FILES", "10000"))
# The baseline's speed does not depend on how many there are, and all of them would take minutes.
NUM_BASELINE_FILES = min(NUM_FILES, 1000)
NUM_FILES_PER_DIR = 100
MAX_FILE_BYTES = 16 << 10
NUM_REPEATS = 3
ANSWER_TIMEOUT_S = 300.0
GOAL = Goal(">=", 3)


def measure_dataset_small_files() -> list[Row]:
    """Files per second of ``datastore upload``, and of making the dataset available on a node."""
    with bench_directory() as directory, serve_s3(directory) as server:
        source_dir = directory / "source"
        _write_files(source_dir)
        arguments = (server.make_uri("storage"), str(source_dir), str(directory))
        env = clean_environment(**server.environment)
        uploads, fetches, puts, gets = [], [], [], []
        with Helper("dataset_mover", *arguments, env=env, answer_timeout_s=ANSWER_TIMEOUT_S) as mover:
            for _ in range(NUM_REPEATS):
                puts.append(float(mover.ask(f"put {NUM_BASELINE_FILES}")))
                uploads.append(float(mover.ask("upload")))
                gets.append(float(mover.ask(f"get {NUM_BASELINE_FILES}")))
                fetches.append(float(mover.ask("fetch")))
    note(f"dataset_small_files: {NUM_FILES} files as a dataset, {NUM_BASELINE_FILES} of them one after the other")
    return [
        row_of_pairs("dataset_small_files_upload", uploads, puts, "files/s", GOAL),
        row_of_pairs("dataset_small_files_fetch", fetches, gets, "files/s", GOAL),
    ]


def _write_files(directory: Path) -> None:
    sizes = random.Random(1)
    for index in range(NUM_FILES):
        path = directory / f"{index // NUM_FILES_PER_DIR:03}" / f"{index:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(sizes.randint(1, MAX_FILE_BYTES)))
