"""Checkpoints that another job is about to go on from: the retention rules of their own job do not delete them.

jobs/<job>/pins/<checkpoint>@<the other job>
"""

from __future__ import annotations

from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


def pin(root: StorageRoot, job_id: int, checkpoint: str, by_job: int) -> None:
    """Keep a checkpoint for another job, until ``unpin``."""
    root.write_bytes(_key(job_id, checkpoint, by_job), b"")


def unpin(root: StorageRoot, job_id: int, checkpoint: str, by_job: int) -> None:
    """The other job has its own checkpoints now, or has ended."""
    root.delete(_key(job_id, checkpoint, by_job))


def read_pins(root: StorageRoot, job_id: int) -> frozenset[str]:
    """The names of a job's checkpoints that are kept for others."""
    return frozenset(checkpoint for checkpoint, _ in list_pins(root, job_id))


def list_pins(root: StorageRoot, job_id: int) -> list[tuple[str, int]]:
    """Each checkpoint of a job that is kept, and for which other job."""
    pins = []
    for name in root.list_names(job_key(job_id, "pins")):
        checkpoint, _, by_job = name.rpartition("@")
        if by_job.isdigit():
            pins.append((checkpoint, int(by_job)))
    return pins


def _key(job_id: int, checkpoint: str, by_job: int) -> str:
    return job_key(job_id, "pins", f"{checkpoint}@{by_job}")
