"""How much memory a node's member needs for an upload to S3, beyond what it has without one.

The column "baseline" is the checkpoint's own size.
"""

from __future__ import annotations

from pathlib import Path

from bench_figures.checkpoint_job import CHECKPOINT_BYTES, bench_directory, checkpoint_job
from bench_figures.row import Goal, Row
from bench_figures.storage_servers import StorageServer, serve_s3

GOAL = Goal("<", 256, "MiB")
SHAPES = {"1file": (1, 1), "64files": (64, 1), "4x_size": (1, 4)}


def measure_ckpt_memory() -> list[Row]:
    """MiB of the member's peak: one checkpoint in one file, in 64, and one of four times the size."""
    with bench_directory() as directory, serve_s3(directory) as server:
        return [
            _measure_upload(directory, server, f"ckpt_memory_{shape}", num_files, scale * CHECKPOINT_BYTES)
            for shape, (num_files, scale) in SHAPES.items()
        ]


def _measure_upload(directory: Path, server: StorageServer, name: str, num_files: int, num_bytes: int) -> Row:
    with checkpoint_job(
        directory,
        server.make_uri("storage"),
        num_files=num_files,
        num_bytes=num_bytes,
        environment=server.environment,
    ) as job:
        job.write_files()
        job.mark_memory()
        job.save()
        job.wait_for_commit()
        peak_mib = job.peak_memory_mib()
        job.delete_copies()
    size_mib = num_bytes / (1 << 20)
    return Row(name, peak_mib, size_mib, "MiB", peak_mib / size_mib, GOAL)
