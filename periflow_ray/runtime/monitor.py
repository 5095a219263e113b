"""The job's one actor: node agents meet here, report progress and metrics, and agree on checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.recorder import Recorder
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import LocalFile, Manifest, StoredFile
from periflow_ray.store.events import EventWriter
from periflow_ray.store.metrics import Metric
from periflow_ray.store.root import StorageRoot

CheckpointId = tuple[int, int]
"""(step, how many-th upload of that step): the same on every node that takes part."""


@dataclass(frozen=True)
class Meeting:
    """What an agent learns when all have joined. ``checkpoint`` is where to resume, None at the beginning."""

    attempt: int
    master_addr: str
    master_port: int
    checkpoint: Manifest | None


@dataclass
class _PendingCheckpoint:
    name: str
    announced_nodes: set[int] = field(default_factory=set)
    files_by_node: dict[int, list[LocalFile]] = field(default_factory=dict)
    plan: list[StoredFile] | None = None
    finished_nodes: set[int] = field(default_factory=set)
    error: str | None = None
    is_settled: bool = False


class Monitor:
    """Runs as an asynchronous Ray actor; every method is one short critical section or a wait on a condition.

    A member is a Ray Train worker: a node's agent in a command job, a rank in a function job.

    Args:
        storage_uri: the storage root.
        job_id: the job.
        num_members: workers to expect.
        world_size: devices of the job.
    """

    def __init__(self, storage_uri: str, job_id: int, num_members: int, world_size: int) -> None:
        self._root = StorageRoot(storage_uri)
        self._job_id = job_id
        self._num_members = num_members
        self._world_size = world_size
        self._events = EventWriter(self._root, job_id, "monitor")
        self._recorder = Recorder(self._root, job_id)
        self._changed = asyncio.Condition()
        self._closing = asyncio.Event()
        self._worker_group = ""
        self._is_stopping = False
        self._attempt = 0
        self._checkpoint: Manifest | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._reset_attempt()

    # Members call these.

    async def join(self, worker_group: str, member: int, node_rank: int, address: str, port: int) -> Meeting:
        """Wait until every member of the attempt has joined; each worker group of Ray Train is one attempt."""
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_until_closed())
        async with self._changed:
            if worker_group != self._worker_group:
                self._worker_group = worker_group
                if self._attempt > 0 and not self._failures:
                    self._write_event("attempt_failed", f"attempt {self._attempt} ended: a worker or its machine died")
                self._reset_attempt()
                self._attempt += 1
                self._checkpoint = await asyncio.to_thread(checkpoints.latest_committed, self._root, self._job_id)
            self._node_of[member] = node_rank
            self._addresses[member] = (address, port)
            self._changed.notify_all()
            await self._changed.wait_for(self._has_all_members)
            return Meeting(self._attempt, *self._addresses[0], self._checkpoint)

    async def start(self, member: int) -> None:
        """A member is prepared and the user's code starts."""
        async with self._changed:
            self._started.add(member)
            self._changed.notify_all()

    async def record(
        self, steps: dict[int, int], total_train_steps: int | None, metrics: list[Metric], node_rank: int
    ) -> None:
        """Take in what the ranks of a node did since the last call."""
        self._steps.update(steps)
        self._ranks_by_node.setdefault(node_rank, set()).update(steps)
        self._recorder.record(self._steps.get(0), total_train_steps, metrics)
        async with self._changed:
            self._changed.notify_all()

    async def announce_snapshot(self, node_rank: int, checkpoint: CheckpointId) -> None:
        """A node has a snapshot and its ranks are about to train on; ``begin_checkpoint`` follows."""
        async with self._changed:
            (await self._open_checkpoint(checkpoint)).announced_nodes.add(node_rank)

    async def begin_checkpoint(
        self, node_rank: int, checkpoint: CheckpointId, files: list[LocalFile]
    ) -> tuple[str, list[StoredFile]]:
        """Describe a node's snapshot; returns the checkpoint's name and the files that this node has to upload."""
        async with self._changed:
            pending = await self._open_checkpoint(checkpoint)
            pending.files_by_node[node_rank] = files
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: pending.plan is not None or self._has_all_snapshots(checkpoint, pending)
            )
            if pending.plan is None:
                pending.plan = checkpoints.merge_files(pending.files_by_node)
            return pending.name, [file for file in pending.plan if file.node_rank == node_rank]

    async def end_checkpoint(self, node_rank: int, checkpoint: CheckpointId, error: str | None) -> str | None:
        """Report a node's upload as done (or failed); None once the checkpoint is committed, else why it is not."""
        pending = self._pending[checkpoint]
        async with self._changed:
            pending.finished_nodes.add(node_rank)
            pending.error = pending.error or error
            if not pending.is_settled and pending.finished_nodes >= set(pending.files_by_node):
                await self._settle(checkpoint, pending)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: pending.is_settled)
        return pending.error

    async def wait_for_stop(self) -> None:
        """Wait until the job is asked to stop."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_stopping)

    async def meet(self, member: int, checkpoint: CheckpointId, phase: str) -> None:
        """Wait until every member came to this phase of a checkpoint, has left, or is beyond its step."""
        async with self._changed:
            present = self._meetings.setdefault((checkpoint, phase), set())
            present.add(member)
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: all(
                    other in present or other in self._left or self._steps.get(other, 0) > checkpoint[0]
                    for other in self._node_of
                )
            )

    async def next_commit(self, index: int) -> Manifest | None:
        """The attempt's checkpoint number ``index`` once it is committed; None when the attempt has no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: index < len(self._commits) or len(self._left) >= self._num_members)
            return self._commits[index] if index < len(self._commits) else None

    async def leave(self, member: int, failure: Failure | None) -> None:
        """A member's part has ended and its checkpoints are settled."""
        async with self._changed:
            self._left.add(member)
            node_rank = self._node_of[member]
            if failure is not None:
                if not self._failures:
                    self._write_event("attempt_failed", f"attempt {self._attempt} failed: {failure.headline()}")
                self._failures.append(failure)
                self._failed_nodes.add(node_rank)
                for pending in self._pending.values():
                    self._abandon_without_failed_nodes(pending)
            self._changed.notify_all()

    # The driver calls these.

    async def wait_for_attempt(self, attempt: int) -> int:
        """Wait until all members of this attempt, or of a later one, have joined; returns its number."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._attempt >= attempt and self._has_all_members())
            return self._attempt

    async def wait_for_start(self, attempt: int) -> None:
        """Wait until all members of this attempt run the user's code, or the attempt is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._attempt != attempt or len(self._started) == self._num_members)

    async def stop(self) -> None:
        """Ask every member to end the user's code and leave."""
        async with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    async def attempt_failures(self) -> list[Failure]:
        """Failures of the newest attempt in time order; the first is the cause."""
        return sorted(self._failures, key=lambda failure: failure.time_unix_s)

    async def close(self) -> None:
        """Write out everything that was received."""
        self._closing.set()
        if self._flusher is not None:
            await self._flusher
        self._recorder.close()

    async def _flush_until_closed(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._recorder.flush_interval_s)
            await asyncio.to_thread(self._recorder.flush)

    def _reset_attempt(self) -> None:
        self._node_of: dict[int, int] = {}
        self._addresses: dict[int, tuple[str, int]] = {}
        self._meetings: dict[tuple[CheckpointId, str], set[int]] = {}
        self._started: set[int] = set()
        self._left: set[int] = set()
        self._steps: dict[int, int] = {}
        self._ranks_by_node: dict[int, set[int]] = {}
        self._pending: dict[CheckpointId, _PendingCheckpoint] = {}
        self._commits: list[Manifest] = []
        self._failures: list[Failure] = []
        self._failed_nodes: set[int] = set()
        self._recorder.forget_speed()

    async def _open_checkpoint(self, checkpoint: CheckpointId) -> _PendingCheckpoint:
        if checkpoint not in self._pending:
            taken = [pending.name for pending in self._pending.values()]
            name = await asyncio.to_thread(checkpoints.choose_name, self._root, self._job_id, checkpoint[0], taken)
            pending = self._pending.setdefault(checkpoint, _PendingCheckpoint(name))
            self._abandon_without_failed_nodes(pending)
        return self._pending[checkpoint]

    def _abandon_without_failed_nodes(self, pending: _PendingCheckpoint) -> None:
        missing = self._failed_nodes - set(pending.files_by_node)
        if missing:
            # Without their files it would be half a checkpoint.
            pending.error = f"node {min(missing)} failed before its files were copied"
            pending.plan = []

    def _has_all_members(self) -> bool:
        return len(self._node_of) == self._num_members

    def _has_all_snapshots(self, checkpoint: CheckpointId, pending: _PendingCheckpoint) -> bool:
        present = {node_rank for member, node_rank in self._node_of.items() if member not in self._left}
        for node_rank in present - set(pending.files_by_node):
            if node_rank in pending.announced_nodes:
                return False
            # A node whose ranks are all beyond the step will not come.
            ranks = self._ranks_by_node.get(node_rank, set())
            if not ranks or any(self._steps[rank] <= checkpoint[0] for rank in ranks):
                return False
        return True

    async def _settle(self, checkpoint: CheckpointId, pending: _PendingCheckpoint) -> None:
        step = checkpoint[0]
        manifest = Manifest(
            checkpoint=pending.name,
            job_id=self._job_id,
            step=step,
            attempt=self._attempt,
            world_size=self._world_size,
            num_nodes=len(set(self._node_of.values())),
            created_unix_s=time.time(),
            files=tuple(pending.plan or ()),
            metrics=dict(self._recorder.progress.metrics),
        )
        if pending.error is None:
            try:
                await asyncio.to_thread(checkpoints.commit, self._root, manifest)
            except OSError as err:
                pending.error = str(err)
        if pending.error is None:
            self._commits.append(manifest)
            self._write_event("checkpoint", f"checkpoint {pending.name} committed at step {step} ({_size(manifest)})")
        else:
            self._write_event("checkpoint_failed", f"checkpoint at step {step} was not saved: {pending.error}")
        pending.is_settled = True
        del self._pending[checkpoint]

    def _write_event(self, kind: str, text: str) -> None:
        self._events.write(kind, text, self._attempt)


def _size(manifest: Manifest) -> str:
    size = float(manifest.size)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "B" else f"{int(size)} B"
        size /= 1000
    return f"{size:.1f} TB"
