"""A node's side of checkpoints: snapshot now, upload beside the training, report to Ray Train when committed."""

from __future__ import annotations

import queue
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import ray.train

from periflow_ray.runtime.monitor import CheckpointId
from periflow_ray.runtime.sandbox import Sandbox
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot

# Snapshots taken and not yet settled; a further upload_checkpoint() waits until one is through.
MAX_IN_FLIGHT = 2


class CheckpointUploads:
    """Takes snapshots and uploads them in order from a background thread."""

    def __init__(self, root: StorageRoot, job_id: int, node_rank: int, monitor: Any, sandbox: Sandbox) -> None:
        self._root = root
        self._job_id = job_id
        self._node_rank = node_rank
        self._monitor = monitor
        self._sandbox = sandbox
        self._num_saves_by_step: Counter[int] = Counter()
        # One more is in the uploader's hands.
        self._waiting: queue.Queue[tuple[CheckpointId, Path] | None] = queue.Queue(maxsize=MAX_IN_FLIGHT - 1)
        self._last_error: str | None = None
        self._uploader = threading.Thread(target=self._upload_in_order, name="checkpoint-upload", daemon=True)
        self._uploader.start()

    def save_snapshot(self, output_dir: Path | None, step: int) -> None:
        """Copy the output checkpoint directory aside and queue its upload; nothing if the job declares none.

        Raises:
            OSError: the copy failed, for example because the disk is full.
        """
        if output_dir is None:
            return
        self._num_saves_by_step[step] += 1
        checkpoint = (step, self._num_saves_by_step[step])
        snapshot_dir = self._sandbox.snapshots_dir / f"{step}-{checkpoint[1]}"
        copy_snapshot(output_dir, snapshot_dir)
        # Before the ranks train on: a rank beyond the step is otherwise taken for one that will not save.
        ray.get(self._monitor.announce_snapshot.remote(self._node_rank, checkpoint))
        self._waiting.put((checkpoint, snapshot_dir))

    def finish(self) -> str | None:
        """Wait until every snapshot is settled; the reason if the last one was not committed."""
        self._waiting.put(None)
        self._uploader.join()
        return self._last_error

    def _upload_in_order(self) -> None:
        while (item := self._waiting.get()) is not None:
            checkpoint, snapshot_dir = item
            try:
                self._last_error, _ = upload_snapshot(
                    self._root, self._job_id, self._node_rank, self._monitor, checkpoint, snapshot_dir
                )
            except (OSError, ray.exceptions.RayError) as err:
                self._last_error = str(err)
            shutil.rmtree(snapshot_dir, ignore_errors=True)


def copy_snapshot(output_dir: Path, snapshot_dir: Path) -> None:
    """Copy a directory aside; links to files become files.

    Raises:
        OSError: the copy failed, for example because the disk is full; nothing is left of it.
    """
    try:
        shutil.copytree(output_dir, snapshot_dir, ignore_dangling_symlinks=True)
    except OSError as err:
        shutil.rmtree(snapshot_dir, ignore_errors=True)
        # shutil.Error carries one (source, target, reason) per file that failed.
        reasons = [reason for _, _, reason in err.args[0]] if isinstance(err, shutil.Error) else [str(err)]
        raise OSError("; ".join(reasons)) from err


def upload_snapshot(
    root: StorageRoot, job_id: int, node_rank: int, monitor: Any, checkpoint: CheckpointId, snapshot_dir: Path
) -> tuple[str | None, str]:
    """Upload this node's files of a checkpoint and wait for the others'.

    Returns:
        None, or why the checkpoint is not committed; and its name.
    """
    files = checkpoints.describe_files(snapshot_dir)
    name, own_files = ray.get(monitor.begin_checkpoint.remote(node_rank, checkpoint, files))
    error: str | None = None
    try:
        for file in own_files:
            root.upload_file(snapshot_dir / file.path, checkpoints.checkpoint_key(job_id, name, file.key))
    except OSError as err:
        error = f"node {node_rank}: {err}"
    outcome: str | None = ray.get(monitor.end_checkpoint.remote(node_rank, checkpoint, error))
    return outcome, name


def report_commits(root: StorageRoot, monitor: Any, node_rank: int) -> None:
    """Tell Ray Train of every checkpoint of the attempt as it is committed, until all nodes have left.

    Collective: call on all nodes, because ``ray.train.report`` is a barrier.
    """
    index = 0
    while (manifest := ray.get(monitor.next_commit.remote(index))) is not None:
        index += 1
        metrics = {name: value for name, value in manifest.metrics.items() if isinstance(value, (int, float, str))}
        ray.train.report(
            {**metrics, "step": manifest.step},
            checkpoint=as_ray_checkpoint(root, manifest.job_id, manifest.checkpoint) if node_rank == 0 else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


def as_ray_checkpoint(root: StorageRoot, job_id: int, name: str) -> ray.train.Checkpoint:
    """A committed checkpoint as Ray Train names it: the directory with its files."""
    path = root.path_of(checkpoints.checkpoint_key(job_id, name, "files"))
    return ray.train.Checkpoint(path, filesystem=root.arrow_filesystem())
