"""When an attempt begins all members restore the same checkpoint: the newest that none of them finds damaged."""

from __future__ import annotations

from pathlib import Path

from periflow_ray.errors import CorruptCheckpointError
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot


def restore_agreed(
    root: StorageRoot,
    monitor: MonitorClient,
    member: int,
    node_rank: int,
    checkpoint: Manifest | None,
    target: Path | None,
) -> Manifest | None:
    """Restore the monitor's checkpoint, or the one before if any member finds it damaged, and so on.

    Collective: call on all members.

    Args:
        checkpoint: the first to try; None if the job has none.
        target: directory to fill; None where another member of this machine does it.
    Returns:
        What all members have restored; None if there is no sound one.
    Raises:
        StorageError: the storage cannot be reached.
    """
    while checkpoint is not None:
        problem: str | None = None
        try:
            if target is not None:
                checkpoints.restore(root, checkpoint, node_rank, target)
        except CorruptCheckpointError as err:
            problem = str(err)
        verdict = monitor.settle_restore(member, checkpoint.checkpoint, problem)
        if verdict.is_agreed:
            break
        checkpoint = verdict.checkpoint
    return checkpoint
