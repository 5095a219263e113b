"""``upload_checkpoint`` in one member: all ranks meet, the files are copied aside, the last save waits for the end."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from periflow_ray.jobs.stop_times import END_TIMEOUT_S
from periflow_ray.runtime.member.reporter import Reporter
from periflow_ray.runtime.member.shell import Shell
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import Phase, SnapshotId
from periflow_ray.sdk.session import NO_STEP


class Saving:
    """The saves of one attempt.

    Args:
        uploads: this member's; None if another member of the node brings the files, or nothing is saved.
    """

    def __init__(
        self,
        monitor: MonitorClient,
        attempt: int,
        member: int,
        shell: Shell,
        uploads: CheckpointUploads | None,
        reporter: Reporter,
    ) -> None:
        self._monitor = monitor
        self._attempt = attempt
        self._member = member
        self._shell = shell
        self._uploads = uploads
        self._reporter = reporter
        self._num_saves_by_step: Counter[int] = Counter()
        self._changed = threading.Condition()
        self._announced_step = NO_STEP
        self._num_announced = 0
        self._is_ending = False
        self._has_ended = threading.Event()

    def announce(self, step: int) -> None:
        """The monitor has announced a save at this step; ``NO_STEP`` takes that back."""
        with self._changed:
            self._announced_step = step
            self._num_announced += 1
            self._changed.notify_all()

    @property
    def is_ending(self) -> bool:
        """Whether the monitor has ended the attempt."""
        return self._is_ending

    def end(self) -> None:
        """The monitor has ended the attempt."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()

    def release(self) -> None:
        """The user's code has ended: nobody makes a step any more."""
        self._has_ended.set()

    def save(self, step: int, replace_waiting: bool) -> None:
        """Copy the output folder aside; the upload goes on beside the training.

        After the announced save it stays until the attempt's end: steps after it would be lost. They go on if it is
        not committed, or if the monitor announces another one because not all ranks saved this one.

        Raises:
            OSError: the copy failed.
        """
        if self._shell.output_dir is not None:
            self._save(step, self._shell.output_dir, replace_waiting, is_awaited=False)

    def save_from(self, step: int, source: Path, is_awaited: bool) -> None:
        """As ``save``, but copy another directory aside.

        Args:
            is_awaited: return only when the checkpoint is committed or given up.
        """
        self._save(step, source, False, is_awaited)

    def _save(self, step: int, source: Path, replace_waiting: bool, is_awaited: bool) -> None:
        self._num_saves_by_step[step] += 1
        snapshot_id = (step, self._num_saves_by_step[step])
        self._meet(snapshot_id, "written")
        if self._uploads is not None:
            report = self._reporter.take()
            try:
                self._uploads.save(source, snapshot_id, report, replace_waiting)
            except BaseException:
                self._reporter.give_back(report)
                raise
        self._meet(snapshot_id, "copied")
        with self._changed:
            is_last = self._announced_step != NO_STEP and step >= self._announced_step
            num_announced = self._num_announced
        if is_last or is_awaited:
            if self._uploads is not None:
                self._uploads.wait_until_settled()
            self._meet(snapshot_id, "settled")
        if is_last:
            self._wait_for_end(snapshot_id, num_announced)

    def _wait_for_end(self, snapshot_id: SnapshotId, num_announced: int) -> None:
        if not self._monitor.has_committed(snapshot_id):
            return
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_ending or self._num_announced != num_announced, timeout=END_TIMEOUT_S
            )
        if self._is_ending:
            # Until the user's code has ended: ranks that are released from their last save would make a step more.
            self._has_ended.wait()

    def _meet(self, snapshot_id: SnapshotId, phase: Phase) -> None:
        if self._shell.meets_others:
            self._monitor.barrier(self._attempt, self._member, snapshot_id, phase)
