"""How long a checkpoint takes to be committed, against ``pyarrow.fs.copy_files`` of the same bytes to the same place.

On the local disk both outlive a loss of power: the copy is followed by an fsync of each file.

Ours is from the call of ``upload_checkpoint()`` to the monitor's word that the manifest is there: snapshot, checksums,
upload and commit. Local disk, and S3 by a server on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench_figures.checkpoint_job import (
    BASELINE_KEY,
    CHECKPOINT_BYTES,
    LAYOUTS,
    CheckpointJob,
    bench_directory,
    checkpoint_job,
)
from bench_figures.programs import Helper, clean_environment
from bench_figures.row import Goal, Row, row_of_pairs
from bench_figures.storage_servers import arrow_environment, serve_s3

NUM_REPEATS = 5
# Each takes some ten seconds, beside which nothing needs a warm-up.
NUM_S3_REPEATS = 3
GOAL = Goal("<=", 1.3)


def measure_ckpt_commit() -> list[Row]:
    """Seconds to the commit of a checkpoint whose files are all new."""
    with bench_directory() as directory, serve_s3(directory) as server:
        return [
            *_measure_place(directory, "local", str(directory / "storage"), {}),
            *_measure_place(directory, "s3", server.make_uri("storage"), server.environment),
        ]


def _measure_place(directory: Path, place: str, storage_uri: str, environment: Mapping[str, str]) -> list[Row]:
    rows = []
    num_warm_ups, num_repeats = (1, NUM_REPEATS) if place == "local" else (0, NUM_S3_REPEATS)
    copier_env = clean_environment(**arrow_environment(environment))
    for layout, num_files in LAYOUTS.items():
        with (
            checkpoint_job(
                directory, storage_uri, num_files=num_files, num_bytes=CHECKPOINT_BYTES, environment=environment
            ) as job,
            Helper("arrow_copier", env=copier_env) as copier,
        ):
            pairs = [_measure_pair(job, copier, ours_first=turn % 2 == 0) for turn in range(num_warm_ups + num_repeats)]
        name = f"ckpt_commit_{place}_{layout}"
        ours, baseline = zip(*pairs[num_warm_ups:], strict=True)
        rows.append(row_of_pairs(name, ours, baseline, "s", GOAL))
    return rows


def _measure_pair(job: CheckpointJob, copier: Helper, *, ours_first: bool) -> tuple[float, float]:
    job.write_files()
    if ours_first:
        ours_s, baseline_s = _time_commit(job), _time_copy(job, copier)
    else:
        baseline_s, ours_s = _time_copy(job, copier), _time_commit(job)
    return ours_s, baseline_s


def _time_commit(job: CheckpointJob) -> float:
    save = job.save()
    seconds = job.wait_for_commit() - save.began_s
    job.delete_copies()
    return seconds


def _time_copy(job: CheckpointJob, copier: Helper) -> float:
    seconds = float(copier.ask(f"{job.output_dir} {job.storage_uri}/{BASELINE_KEY}"))
    job.delete_copies()
    return seconds
