"""A node's side of checkpoints: snapshot now, upload beside the training."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType

import fsspec.asyn

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.runtime.member.snapshot import Snapshot, Snapshots
from periflow_ray.runtime.monitor.client import MonitorClient, MonitorLostError
from periflow_ray.runtime.monitor.contract import Assignment, Report, SnapshotId
from periflow_ray.store import checkpoints
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem

# Snapshots taken and not yet settled; a further upload_checkpoint() waits until one is through.
MAX_IN_FLIGHT = 2
_NICENESS = 10
MAX_SKIPPED_TOLD = 10


class CheckpointUploads:
    """Takes snapshots of a node's output directory and uploads them in order from a background thread.

    Args:
        monitor: an insistent one, because an announced snapshot must be settled.
        snapshots_dir: where snapshots lie until they are uploaded.
        transfer: how bytes get into the root.
        tell_given_up: takes a snapshot that could not be settled nevertheless, and why; it brings that to the monitor,
            if need be later.
        find_writers: ids of the node's ranks.
        note: takes a sentence that the user should read.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        node_rank: int,
        monitor: MonitorClient,
        attempt: int,
        snapshots_dir: Path,
        transfer: Transfer,
        tell_given_up: Callable[[SnapshotId, str], None] = lambda snapshot, reason: None,
        find_writers: Callable[[], Collection[int]] = lambda: (),
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._node_rank = node_rank
        self._monitor = monitor
        self._attempt = attempt
        self._snapshots = Snapshots(snapshots_dir, find_writers, self._tell_skipped)
        self._note = note
        self._told_skipped: set[str] = set()
        self._transfer = transfer
        self._tell_given_up = tell_given_up
        self._changed = threading.Condition()
        self._waiting: deque[tuple[SnapshotId, Snapshot]] = deque()
        self._num_in_flight = 0
        self._is_finishing = False
        self.last_error: str | None = None
        """Why the newest settled checkpoint was not committed."""
        self._thread = threading.Thread(target=self._upload_in_order, name="checkpoint-upload", daemon=True)

    def __enter__(self) -> CheckpointUploads:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not waited for: where the attempt has failed, nobody needs what is left.
        self._begin_finish()

    def save(self, output_dir: Path, snapshot_id: SnapshotId, report: Report, replace_waiting: bool = False) -> None:
        """Copy the output checkpoint directory aside and queue its upload.

        Args:
            report: what the ranks did up to now; the manifest has its metrics.
            replace_waiting: give up a checkpoint whose upload has not begun, rather than wait for its turn.
        Raises:
            OSError: the copy failed, for example because the disk is full.
        """
        self._wait_for_turn(snapshot_id[0], replace_waiting)
        try:
            # Known to the monitor before the ranks train on: a rank beyond the step is else taken for one that will
            # not save.
            self._monitor.announce_snapshot(self._attempt, self._node_rank, snapshot_id, report)
            snapshot = self._snapshots.take(output_dir, f"{snapshot_id[0]}-{snapshot_id[1]}")
        except BaseException as err:
            self._withdraw(snapshot_id, f"node {self._node_rank}: {_describe(err)}")
            raise
        with self._changed:
            self._num_in_flight += 1
            self._waiting.append((snapshot_id, snapshot))
            self._changed.notify_all()

    def wait_until_settled(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is on its way, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_in_flight == 0, timeout_s)

    def finish(self) -> str | None:
        """Wait until every snapshot is settled; the reason if the last one was not committed."""
        self._begin_finish()
        self._thread.join()
        return self.last_error

    def _begin_finish(self) -> None:
        with self._changed:
            self._is_finishing = True
            self._changed.notify_all()

    def _wait_for_turn(self, step: int, replace_waiting: bool) -> None:
        replaced: tuple[SnapshotId, Snapshot] | None = None
        with self._changed:
            if replace_waiting and self._waiting:
                replaced = self._waiting.pop()
                self._num_in_flight -= 1
            else:
                self._changed.wait_for(lambda: self._num_in_flight < MAX_IN_FLIGHT)
        if replaced is not None:
            self._withdraw(replaced[0], f"replaced by that of step {step} before its upload")
            self._snapshots.release(replaced[1])

    def _tell_skipped(self, path: str, reason: str) -> None:
        if path not in self._told_skipped and len(self._told_skipped) < MAX_SKIPPED_TOLD:
            self._told_skipped.add(path)
            self._note(f"checkpoints are saved without '{path}': it {reason}")

    def _withdraw(self, snapshot_id: SnapshotId, reason: str) -> None:
        try:
            self._monitor.withdraw_snapshot(self._attempt, snapshot_id, reason)
        except Exception as err:
            print(f"the checkpoint of step {snapshot_id[0]} could not be withdrawn: {err}", file=sys.stderr)
            # Others may wait for it.
            self._tell_given_up(snapshot_id, reason)

    def _upload_in_order(self) -> None:
        while (waiting := self._take_next()) is not None:
            snapshot_id, snapshot = waiting
            try:
                self.last_error = self._settle(snapshot_id, self._upload(snapshot_id, snapshot))
                self._snapshots.release(snapshot)
            except Exception as err:
                self.last_error = _describe(err)
                traceback.print_exc()
            finally:
                with self._changed:
                    self._num_in_flight -= 1
                    self._changed.notify_all()

    def _take_next(self) -> tuple[SnapshotId, Snapshot] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_finishing)
            return self._waiting.popleft() if self._waiting else None

    def _upload(self, snapshot_id: SnapshotId, snapshot: Snapshot) -> str | None:
        """Bring this node's files to the storage root; returns why that failed."""
        _be_nice(self._root)
        try:
            content = self._snapshots.describe(snapshot)
            assignment = self._monitor.begin_checkpoint(self._attempt, self._node_rank, snapshot_id, content)
            bring_files(self._root, self._job_id, assignment, snapshot.directory, self._transfer)
        except Exception as err:
            if not isinstance(err, OSError | StorageError | MonitorLostError):
                traceback.print_exc()
            return f"node {self._node_rank}: {_describe(err)}"
        return None

    def _settle(self, snapshot_id: SnapshotId, error: str | None) -> str | None:
        """Tell how the upload went; returns why the checkpoint is not committed."""
        try:
            return self._monitor.end_checkpoint(self._attempt, self._node_rank, snapshot_id, error)
        except MonitorLostError as err:
            # Nobody is there to be told, and the others hear it, too.
            return _describe(err)
        except Exception as err:
            reason = error or f"node {self._node_rank}: {_describe(err)}"
            self._tell_given_up(snapshot_id, reason)
            # It may be that only the answers were lost.
            return None if self._has_committed(snapshot_id) else reason

    def _has_committed(self, snapshot_id: SnapshotId) -> bool:
        try:
            return self._monitor.has_committed(snapshot_id)
        except Exception:
            traceback.print_exc()
            return False


def bring_files(root: StorageRoot, job_id: int, assignment: Assignment, snapshot_dir: Path, transfer: Transfer) -> None:
    """Copy inside the storage root what an earlier checkpoint has already, upload the rest.

    Raises:
        OSError, StorageError: not all files are there.
    """
    uploads, copied = [], []
    for file in assignment.files:
        key = checkpoints.checkpoint_key(job_id, assignment.name, file.key)
        if file.copy_from is not None:
            try:
                root.copy_file(checkpoints.checkpoint_key(job_id, file.copy_from), key)
                copied.append(key)
                continue
            except (OSError, StorageError, NotFoundError):
                # Somebody deleted the earlier checkpoint meanwhile, or the storage cannot copy this.
                pass
        uploads.append(UploadItem(snapshot_dir / file.path, key, is_immutable=True))
    transfer.upload_files(uploads)
    root.sync(copied, has_content=False)


def _describe(error: BaseException) -> str:
    is_expected = isinstance(error, OSError | StorageError | MonitorLostError)
    return str(error) if is_expected else f"{type(error).__name__}: {error}"


def _be_nice(root: StorageRoot) -> None:
    """Let the training go first on a busy machine: this thread and all that it starts, and fsspec's network thread."""
    threads = [threading.get_native_id()]
    if not root.is_local and fsspec.asyn.iothread[0] is not None:
        threads.append(fsspec.asyn.iothread[0].native_id)
    for thread in threads:
        with contextlib.suppress(OSError):  # Only Linux has a niceness for each thread.
            os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
