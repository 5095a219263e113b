"""The job's one actor: node agents meet here, report progress and metrics, and agree on checkpoints."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from periflow_ray.errors import StorageError
from periflow_ray.runtime.checkpoint_board import AttemptFacts, CheckpointBoard, CheckpointId, Retention
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.recorder import Recorder
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import LocalFile, Manifest, PlannedFile
from periflow_ray.store.events import EventWriter
from periflow_ray.store.metrics import Metric
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class Meeting:
    """What an agent learns when all have joined. ``checkpoint`` is where to resume, None at the beginning."""

    attempt: int
    master_addr: str
    master_port: int
    checkpoint: Manifest | None


@dataclass(frozen=True)
class RestoreVerdict:
    """Whether all members could restore the checkpoint; if not, ``checkpoint`` is the one to try next."""

    is_agreed: bool
    checkpoint: Manifest | None


class Monitor:
    """Runs as an asynchronous Ray actor; every method is one short critical section or a wait on a condition.

    A member is a Ray Train worker: a node's agent in a command job, a rank in a function job.

    Args:
        num_members: workers to expect.
        world_size: devices of the job.
    """

    def __init__(self, root: StorageRoot, job_id: int, num_members: int, world_size: int, retention: Retention) -> None:
        self._root = root
        self._job_id = job_id
        self._num_members = num_members
        self._world_size = world_size
        self._events = EventWriter(self._root, job_id, "monitor")
        self._event_thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._recorder = Recorder(self._root, job_id)
        self._changed = asyncio.Condition()
        self._board = CheckpointBoard(root, job_id, retention, self._changed, self)
        self._unusable: set[str] = set()
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
                    self.write_event("attempt_failed", f"attempt {self._attempt} ended: a worker or its machine died")
                self._reset_attempt()
                self._attempt += 1
                await self._board.begin_attempt()
                self._checkpoint = await self._find_checkpoint()
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

    async def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Tell how restoring a checkpoint went and wait for the others: one that any member finds damaged is not used.

        Collective: call on all members after ``join`` gave a checkpoint, until the verdict is that all agree.
        """
        async with self._changed:
            candidate = self._checkpoint
            self._restored.setdefault(name, set()).add(member)
            if problem is not None and name not in self._unusable:
                self._unusable.add(name)
                self.write_event("notice", f"checkpoint {name} is not used: {problem}")
            self._changed.notify_all()
            await self._changed.wait_for(lambda: len(self._restored[name] | self._left) >= self._num_members)
            if name not in self._unusable:
                return RestoreVerdict(True, candidate)
            if self._checkpoint is candidate:
                self._checkpoint = await self._find_checkpoint()
            return RestoreVerdict(False, self._checkpoint)

    async def announce_snapshot(self, node_rank: int, checkpoint: CheckpointId) -> None:
        """A node takes a snapshot before its ranks train on; ``begin_checkpoint`` or ``withdraw_snapshot`` follows."""
        self._board.announce(node_rank, checkpoint)

    async def withdraw_snapshot(self, checkpoint: CheckpointId, reason: str) -> None:
        """A node that announced a snapshot does not upload it."""
        async with self._changed:
            self._board.withdraw(checkpoint, reason)
            self._changed.notify_all()

    async def begin_checkpoint(
        self, node_rank: int, checkpoint: CheckpointId, files: list[LocalFile]
    ) -> tuple[str, list[PlannedFile]]:
        """Describe a node's snapshot; returns the checkpoint's name and the files that this node has to bring."""
        return await self._board.begin(node_rank, checkpoint, files)

    async def end_checkpoint(self, node_rank: int, checkpoint: CheckpointId, error: str | None) -> str | None:
        """Report a node's upload as done (or failed); None once the checkpoint is committed, else why it is not."""
        return await self._board.finish(node_rank, checkpoint, error)

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
            commits = self._board.commits
            await self._changed.wait_for(lambda: index < len(commits) or len(self._left) >= self._num_members)
            return commits[index] if index < len(commits) else None

    async def leave(self, member: int, failure: Failure | None) -> None:
        """A member's part has ended and its checkpoints are settled."""
        async with self._changed:
            self._left.add(member)
            node_rank = self._node_of[member]
            if failure is not None:
                if not self._failures:
                    self.write_event("attempt_failed", f"attempt {self._attempt} failed: {failure.headline()}")
                self._failures.append(failure)
                self._board.drop_node(node_rank)
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
        await self._board.close()
        await asyncio.to_thread(self._event_thread.shutdown)
        self._recorder.close()

    # The board asks these.

    def facts(self) -> AttemptFacts:
        """What manifests say of the attempt."""
        return AttemptFacts(self._attempt, self._world_size, len(set(self._node_of.values())))

    def restored_checkpoint(self) -> Manifest | None:
        """What the nodes were given at the beginning of the attempt."""
        return self._checkpoint

    def present_nodes(self) -> set[int]:
        """Ranks of the nodes that still take part."""
        return {node_rank for member, node_rank in self._node_of.items() if member not in self._left}

    def may_still_save(self, node_rank: int, step: int) -> bool:
        """Whether some rank of a node is not beyond this step, as far as is known."""
        ranks = self._ranks_by_node.get(node_rank, set())
        return not ranks or any(self._steps[rank] <= step for rank in ranks)

    def newest_metrics(self) -> Mapping[str, Any]:
        """The newest value of each metric."""
        return self._recorder.progress.metrics

    def write_event(self, kind: str, text: str) -> None:
        """Add to the job's events."""
        # Elsewhere, because a storage that hangs must not hold up the members.
        self._event_thread.submit(self._events.write, kind, text, self._attempt)

    async def _flush_until_closed(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._recorder.flush_interval_s)
            try:
                await asyncio.to_thread(self._recorder.flush)
            except (OSError, StorageError) as err:  # Nothing is lost: the next flush has it too.
                print(f"metrics are delayed: {err}", file=sys.stderr)

    def _reset_attempt(self) -> None:
        self._node_of: dict[int, int] = {}
        self._addresses: dict[int, tuple[str, int]] = {}
        self._meetings: dict[tuple[CheckpointId, str], set[int]] = {}
        self._started: set[int] = set()
        self._left: set[int] = set()
        self._steps: dict[int, int] = {}
        self._ranks_by_node: dict[int, set[int]] = {}
        self._restored: dict[str, set[int]] = {}
        self._failures: list[Failure] = []
        self._recorder.forget_speed()

    async def _find_checkpoint(self) -> Manifest | None:
        return await asyncio.to_thread(checkpoints.latest_committed, self._root, self._job_id, self._unusable)

    def _has_all_members(self) -> bool:
        return len(self._node_of) == self._num_members
