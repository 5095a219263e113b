"""When an attempt begins all members restore the same checkpoint: the newest that none of them finds damaged."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from periflow_ray.errors import CorruptCheckpointError, StorageError
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.patience import Patience
from periflow_ray.store.root import StorageRoot


def restore_agreed(
    root: StorageRoot,
    monitor: MonitorClient,
    member: int,
    node_rank: int,
    checkpoint: Manifest | None,
    target: Path | None,
    patience: Patience,
) -> Manifest | None:
    """Restore the monitor's checkpoint, or the one before if any member finds it damaged, and so on.

    Collective: call on all members.

    Args:
        checkpoint: the first to try; None if the job has none.
        target: directory to fill, empty if there is no checkpoint; None where another member of this machine does it.
        patience: with a storage that is away.
    Returns:
        What all members have restored; None if there is no sound one.
    Raises:
        OSError, StorageError: the storage cannot be reached, or this machine cannot take the files.
    """
    while checkpoint is not None:
        problem: str | None = None
        try:
            if target is not None:
                patience.insist(functools.partial(_restore, root, checkpoint, node_rank, target, patience))
        except CorruptCheckpointError as err:
            problem = str(err)
        verdict = monitor.settle_restore(member, checkpoint.checkpoint, problem)
        if verdict.is_agreed:
            break
        checkpoint = verdict.checkpoint
    if checkpoint is None and target is not None:
        # What an earlier attempt wrote but never saved as a checkpoint must not be taken for one.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
    return checkpoint


def _restore(root: StorageRoot, checkpoint: Manifest, node_rank: int, target: Path, patience: Patience) -> None:
    try:
        checkpoints.restore(root, checkpoint, node_rank, target)
    except CorruptCheckpointError as err:
        if not patience.is_away():
            raise
        # No verdict on this checkpoint: nothing of the job is there.
        raise StorageError(str(err)) from err
