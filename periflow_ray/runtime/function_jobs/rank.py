"""One rank of a function job: its directories, its checkpoints, and how it leaves an attempt."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.context import get_train_context

from periflow_ray.errors import PeriFlowError
from periflow_ray.jobs.stop_times import END_TIMEOUT_S
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.function_jobs.output_tee import OutputCopy
from periflow_ray.runtime.function_jobs.signals import RankSignals
from periflow_ray.runtime.monitor.attempt import MemberFacts
from periflow_ray.runtime.monitor.meeting import Meeting, Next
from periflow_ray.runtime.ray_train.group_policy import GroupReplacedError, leave_group
from periflow_ray.runtime.worker.checkpoint_restore import restore_agreed
from periflow_ray.runtime.worker.checkpoint_uploads import CheckpointUploads, as_ray_checkpoint, report_newest
from periflow_ray.runtime.worker.lifeline import share_fate
from periflow_ray.runtime.worker.sandbox import Sandbox
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot

OUTPUT_MOUNT_PATH = "/ckpt"
# How long a rank that has to leave stays for its own uploads, and for the other ranks' last words.
LEAVE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class FunctionTask:
    """What a worker of a function job needs; travels in the train loop's config."""

    train_loop: Callable[..., Any]
    config: dict[str, Any] | None
    job_id: int
    claim: str
    root: StorageRoot
    storage_credential: str | None
    monitor: Any


class FunctionRank:
    """This worker's part in the job, from ``join`` to ``leave``, ``fail`` or Ray's end of the process."""

    signals: RankSignals

    def __init__(self, task: FunctionTask) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.local_rank = context.get_local_rank()
        self.node_rank = context.get_node_rank()
        self.monitor = task.monitor
        self._job_id = task.job_id
        self._claim = task.claim
        self._root = task.root
        self._storage_credential = task.storage_credential
        # The same path on every node: rank 0 tells the others where to write, as Lightning does.
        self._sandbox = Sandbox(task.root.uri, task.job_id, 0)
        self._output_dir = self._sandbox.path_of(OUTPUT_MOUNT_PATH)
        self._uploads: CheckpointUploads | None = None
        self._restored: Manifest | None = None
        self._num_saves_by_step: Counter[int] = Counter()
        self.attempt = 0

    def join(self) -> Meeting:
        """Meet the other ranks.

        Raises:
            GroupReplacedError: the job is over.
        """
        share_fate(self.monitor)
        context = ray.get_runtime_context()
        facts = MemberFacts(
            member=self.rank,
            num_members=ray.train.get_context().get_world_size(),
            node_rank=self.node_rank,
            address=ray.util.get_node_ip_address(),
            port=0,
            ray_node_id=context.get_node_id(),
        )
        meeting: Meeting = ray.get(self.monitor.join.remote((context.get_placement_group_id(), 0), facts))
        if meeting.is_over:
            raise GroupReplacedError("the job is over")
        self.attempt = meeting.attempt
        return meeting

    def prepare(self, meeting: Meeting, output: OutputCopy) -> None:
        """Follow the monitor; the first rank of each node makes its directories and restores the checkpoint."""
        self.signals = RankSignals(
            self.monitor,
            meeting.attempt,
            self.rank,
            self.node_rank,
            write_log=output.write,
            on_end=lambda reason: self._leave_from_outside(reason, output),
        )
        target = None
        if self.local_rank == 0:
            target = self._output_dir
            self._sandbox.create(self._claim)
            shutil.rmtree(target, ignore_errors=True)
        self._restored = restore_agreed(self._root, self.monitor, self.rank, self.node_rank, meeting.checkpoint, target)
        if self.local_rank == 0:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            self._uploads = CheckpointUploads(
                self._root, self._job_id, self.node_rank, self.monitor, meeting.attempt, self._sandbox.snapshots_dir
            )
        ray.get(self.monitor.start.remote(self.rank))
        ray.get(self.monitor.wait_for_start.remote(meeting.attempt))
        os.environ["PERIFLOW_ENABLED"] = "1"
        os.environ["PERIFLOW_STORAGE"] = self._root.uri
        os.environ["PERIFLOW_STORAGE_CREDENTIAL"] = self._storage_credential or ""
        os.environ["CKPT_DIR"] = str(self._output_dir)
        os.environ["PERIFLOW_ATTEMPT"] = str(meeting.attempt)
        os.environ["PROCESSED_ITERS"] = str(self._restored.step if self._restored else 0)
        if self._restored is not None:
            # For functions that ask Ray rather than look into $CKPT_DIR.
            get_train_context().checkpoint = as_ray_checkpoint(self._root, self._job_id, self._restored.checkpoint)

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        """Meet all ranks and copy the output directory aside on each node; the upload goes on beside the training.

        After the announced save it stays until the attempt's end: steps after it would be lost.
        """
        self._num_saves_by_step[step] += 1
        checkpoint = (step, self._num_saves_by_step[step])
        ray.get(self.monitor.meet.remote(self.rank, checkpoint, "written"))
        if self._uploads is not None:
            self._uploads.save_snapshot(self._output_dir, step, replace_waiting)
        ray.get(self.monitor.meet.remote(self.rank, checkpoint, "copied"))
        if self.signals.is_last_save(step):
            if self._uploads is not None:
                self._uploads.wait_until_settled()
            ray.get(self.monitor.meet.remote(self.rank, checkpoint, "settled"))
            if ray.get(self.monitor.has_committed.remote(step)):
                # The monitor ends the attempt; this bounds the wait for one that is gone.
                self.signals.wait_for_end(END_TIMEOUT_S)

    def finish_uploads(self) -> None:
        """Wait until this node's uploads are settled.

        Raises:
            PeriFlowError: the last one was not committed.
        """
        problem = None if self._uploads is None else self._uploads.finish()
        if problem is not None:
            raise PeriFlowError(f"the last checkpoint could not be saved: {problem}")

    def leave(self) -> Next:
        """The function is done; returns what follows when it is on all ranks."""
        ray.get(self.monitor.leave.remote(self.rank, None, self.attempt))
        following: Next = ray.get(self.monitor.decide.remote())
        return following

    def fail(self, failure: Failure) -> None:
        """The function raised an error: what it saved before is brought home, then the whole group ends."""
        ray.get(self.monitor.settle_uploads.remote())
        ray.get(self.monitor.leave.remote(self.rank, failure, self.attempt))

    def report_newest(self) -> None:
        """Give the job's newest checkpoint to Ray's result. Collective: call on all ranks after ``leave``."""
        report_newest(self._root, self.monitor, self.rank, self._restored)

    def _leave_from_outside(self, reason: str, output: OutputCopy) -> None:
        """Leave while the function runs, waits in its last save, or is stuck."""
        if self._uploads is not None:
            self._uploads.wait_until_settled(LEAVE_TIMEOUT_S)
        output.flush()
        ray.get(self.monitor.leave.remote(self.rank, None, self.attempt))
        # Ray ends all ranks with the first that leaves. One that cannot even do this is not waited for.
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            ray.get(self.monitor.decide.remote(), timeout=LEAVE_TIMEOUT_S)
        leave_group(reason)
