"""A node's side of checkpoints: snapshot now, upload beside the training, report to Ray Train when committed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter, deque
from pathlib import Path
from typing import Any

import fsspec.asyn
import ray
import ray.train

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.runtime.monitor.agreed_save import CheckpointId
from periflow_ray.runtime.worker.snapshot import Snapshot, Snapshots
from periflow_ray.store import checkpoints
from periflow_ray.store.arrow import open_arrow_filesystem
from periflow_ray.store.checkpoints import Manifest, PlannedFile
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem

# Snapshots taken and not yet settled; a further upload_checkpoint() waits until one is through.
MAX_IN_FLIGHT = 2
_NICENESS = 10


class CheckpointUploads:
    """Takes snapshots of a node's output directory and uploads them in order from a background thread.

    Args:
        snapshots_dir: where snapshots lie until they are uploaded.
        upload_bandwidth: bytes per second that the uploads of this node may use; None for all.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        node_rank: int,
        monitor: Any,
        attempt: int,
        snapshots_dir: Path,
        upload_bandwidth: int | None = None,
    ) -> None:
        self._node_rank = node_rank
        self._monitor = monitor
        self._attempt = attempt
        self._snapshots = Snapshots(snapshots_dir)
        self._uploader = SnapshotUploader(root, job_id, node_rank, monitor, self._snapshots, upload_bandwidth)
        self._num_saves_by_step: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[CheckpointId, Snapshot]] = deque()
        self._num_in_flight = 0
        self._is_finishing = False
        self.last_error: str | None = None
        self._thread = threading.Thread(target=self._upload_in_order, name="checkpoint-upload", daemon=True)
        self._thread.start()

    def save_snapshot(self, output_dir: Path | None, step: int, replace_waiting: bool = False) -> None:
        """Copy the output checkpoint directory aside and queue its upload; nothing if the job declares none.

        Args:
            replace_waiting: give up a checkpoint whose upload has not begun, rather than wait for its turn.
        Raises:
            OSError: the copy failed, for example because the disk is full.
        """
        if output_dir is None:
            return
        self._num_saves_by_step[step] += 1
        checkpoint = (step, self._num_saves_by_step[step])
        self._wait_for_turn(step, replace_waiting)
        # Known to the monitor before the ranks train on: a rank beyond the step is else taken for one that will not
        # save.
        announced = self._monitor.announce_snapshot.remote(self._node_rank, checkpoint, self._attempt)
        try:
            snapshot = self._snapshots.take(output_dir, f"{step}-{checkpoint[1]}")
        except OSError as err:
            self._monitor.withdraw_snapshot.remote(checkpoint, f"node {self._node_rank}: {err}", self._attempt)
            raise
        ray.get(announced)
        with self._changed:
            self._num_in_flight += 1
            self._waiting.append((checkpoint, snapshot))
            self._changed.notify_all()

    def wait_until_settled(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is on its way, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_in_flight == 0, timeout_s)

    def finish(self) -> str | None:
        """Wait until every snapshot is settled; the reason if the last one was not committed."""
        with self._changed:
            self._is_finishing = True
            self._changed.notify_all()
        self._thread.join()
        return self.last_error

    def _wait_for_turn(self, step: int, replace_waiting: bool) -> None:
        with self._changed:
            if replace_waiting and self._waiting:
                replaced, snapshot = self._waiting.pop()
                self._num_in_flight -= 1
                reason = f"replaced by that of step {step} before its upload"
                self._monitor.withdraw_snapshot.remote(replaced, reason, self._attempt)
                self._snapshots.release(snapshot)
            self._changed.wait_for(lambda: self._num_in_flight < MAX_IN_FLIGHT)

    def _upload_in_order(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_finishing)
                if not self._waiting:
                    return
                checkpoint, snapshot = self._waiting.popleft()
            try:
                self.last_error, _ = self._uploader.upload(self._attempt, checkpoint, snapshot)
            except ray.exceptions.RayError as err:
                self.last_error = str(err)
            self._snapshots.release(snapshot)
            with self._changed:
                self._num_in_flight -= 1
                self._changed.notify_all()


class SnapshotUploader:
    """Brings one node's files of a checkpoint to the storage root and waits for the other nodes'."""

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        node_rank: int,
        monitor: Any,
        snapshots: Snapshots,
        upload_bandwidth: int | None,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._node_rank = node_rank
        self._monitor = monitor
        self._snapshots = snapshots
        self._transfer = Transfer(root, bandwidth_bytes_per_s=upload_bandwidth)

    def upload(self, attempt: int, checkpoint: CheckpointId, snapshot: Snapshot) -> tuple[str | None, str]:
        """None, or why the checkpoint is not committed; and its name."""
        _be_nice(self._root)
        error: str | None = None
        name = ""
        try:
            files = self._snapshots.describe(snapshot)
            name, planned = ray.get(self._monitor.begin_checkpoint.remote(self._node_rank, checkpoint, files, attempt))
            bring_files(self._root, self._job_id, name, planned, snapshot.directory, self._transfer)
        except (OSError, StorageError) as err:
            error = f"node {self._node_rank}: {err}"
        outcome: str | None = ray.get(self._monitor.end_checkpoint.remote(self._node_rank, checkpoint, error, attempt))
        return outcome, name


def bring_files(
    root: StorageRoot, job_id: int, name: str, planned: list[PlannedFile], snapshot_dir: Path, transfer: Transfer
) -> None:
    """Copy inside the storage root what an earlier checkpoint has already, upload the rest.

    Raises:
        OSError, StorageError: not all files are there.
    """
    uploads = []
    for file in planned:
        key = checkpoints.checkpoint_key(job_id, name, file.key)
        if file.copy_from is not None:
            try:
                root.copy_file(checkpoints.checkpoint_key(job_id, file.copy_from), key)
                continue
            except (OSError, StorageError, NotFoundError):
                # Somebody deleted the earlier checkpoint meanwhile, or the storage cannot copy this.
                pass
        uploads.append(UploadItem(snapshot_dir / file.path, key, is_immutable=True))
    transfer.upload_files(uploads)


def _be_nice(root: StorageRoot) -> None:
    """Let the training go first on a busy machine: this thread and all that it starts, and fsspec's network thread."""
    threads = [threading.get_native_id()]
    if not root.is_local and fsspec.asyn.iothread[0] is not None:
        threads.append(fsspec.asyn.iothread[0].native_id)
    for thread in threads:
        with contextlib.suppress(OSError):  # Only Linux has a niceness for each thread.
            os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)


def report_newest(root: StorageRoot, monitor: Any, worker: int, newest: Manifest | None = None) -> None:
    """Give the job's newest checkpoint to Ray Train's result, once all members have left.

    Collective: call on all workers, because ``ray.train.report`` is a barrier. Each report takes as long as Ray Train
    polls its workers, so there is one.

    Args:
        newest: the one that the attempt was given, if any.
    """
    index = 0
    while (manifest := ray.get(monitor.next_commit.remote(index))) is not None:
        newest, index = manifest, index + 1
    if newest is not None:
        _report(root, newest, worker)


def _report(root: StorageRoot, manifest: Manifest, worker: int) -> None:
    assert manifest.job_id is not None
    metrics = {name: value for name, value in manifest.metrics.items() if isinstance(value, (int, float, str))}
    ray.train.report(
        {**metrics, "step": manifest.step},
        checkpoint=as_ray_checkpoint(root, manifest.job_id, manifest.checkpoint) if worker == 0 else None,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def as_ray_checkpoint(root: StorageRoot, job_id: int, name: str) -> ray.train.Checkpoint:
    """A committed checkpoint as Ray Train names it: the directory with its files."""
    path = root.path_of(checkpoints.checkpoint_key(job_id, name, "files"))
    return ray.train.Checkpoint(path, filesystem=open_arrow_filesystem(root))
