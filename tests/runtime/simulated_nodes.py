"""Nodes as the monitor sees them: what they say, one call at a time; their saves are the members' own."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from periflow_ray.jobs.events import read_events
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.member.uploads import CheckpointUploads
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.client import MonitorClient
from periflow_ray.runtime.monitor.contract import Assignment, AttemptStart, MemberFacts, Report, SnapshotId
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.checkpoints import Content
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem

# Of its own, because nodes that wait for each other must not keep the monitor's storage calls waiting for a thread.
_THREADS = ThreadPoolExecutor(64, thread_name_prefix="simulated")

Result = TypeVar("Result")


class ObservedMonitor(Monitor):
    """A monitor that remembers what it was asked, so that a test can wait for that.

    Args:
        num_members: of its job.
    """

    client: MonitorClient
    """How members in threads talk to it."""

    def __init__(self, root: StorageRoot, job_id: int, rules: JobRules, num_members: int) -> None:
        super().__init__(root, job_id, rules)
        self.num_members = num_members
        self.described: set[tuple[int, SnapshotId]] = set()
        """Which node has described which snapshot."""

    def has_unsettled_checkpoints(self) -> bool:
        """Whether somebody may still wait for a checkpoint."""
        return self._checkpoints.has_pending

    def knows_speed(self) -> bool:
        """Whether it can say which step a rank will be at."""
        return self._context.attempt.step_time_s() is not None

    async def begin_checkpoint(
        self, attempt: int, node_rank: int, snapshot: SnapshotId, content: Content
    ) -> Assignment:
        self.described.add((node_rank, snapshot))
        return await super().begin_checkpoint(attempt, node_rank, snapshot, content)


class Node:
    """A node's member, as far as a test lets it speak; what its command wrote is in ``output_dir``."""

    def __init__(self, monitor: ObservedMonitor, root: StorageRoot, base_dir: Path, node_rank: int) -> None:
        self.monitor = monitor
        self.node_rank = node_rank
        self.attempt = 1
        self.output_dir = base_dir / f"node-{node_rank}"
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._snapshots_dir = base_dir / f"snapshots-{node_rank}"
        self._numbers = itertools.count(1)
        self._is_pausing = False

    async def join(self, worker_group: str = "group-1", round_in_group: int = 0) -> AttemptStart:
        facts = facts_of(self.node_rank, self.monitor.num_members)
        start = await self.monitor.join((worker_group, round_in_group), facts)
        self.attempt = start.attempt
        return start

    async def record(
        self, step: int, metrics: Sequence[Metric] = (), is_pausing: bool = False, is_answer: bool = False
    ) -> None:
        """Its two ranks are at this step."""
        first = 2 * self.node_rank
        self._is_pausing = is_pausing
        await self.monitor.report(self._report({first: step, first + 1: step}, metrics, is_answer))

    async def announce(self, snapshot: SnapshotId) -> None:
        """Say that it takes a snapshot; ``save`` says so again."""
        await self.monitor.announce_snapshot(self.attempt, self.node_rank, snapshot, self._report())

    async def save(self, snapshot: SnapshotId, transfer: Transfer | None = None) -> str | None:
        """Save the output directory; None once that is committed, else why it is not."""
        return await in_thread(lambda: self._save(snapshot, self._report(), transfer or Transfer(self._root)))

    async def begin_save(self, snapshot: SnapshotId, transfer: Transfer | None = None) -> asyncio.Task[str | None]:
        """As ``save``, so far that the files are described."""
        saving = asyncio.create_task(self.save(snapshot, transfer))
        await wait_for(lambda: (self.node_rank, snapshot) in self.monitor.described)
        return saving

    async def leave(self, failure: Failure | None = None) -> None:
        await self.monitor.leave(self.attempt, self.node_rank, failure)

    def _save(self, snapshot: SnapshotId, report: Report, transfer: Transfer) -> str | None:
        snapshots_dir = self._snapshots_dir / f"{report.attempt}-{report.number}"
        with CheckpointUploads(
            self._root, 1, self.node_rank, self.monitor.client, self.attempt, snapshots_dir, transfer
        ) as uploads:
            uploads.save(self.output_dir, snapshot, report)
            return uploads.finish()

    def _report(
        self, steps: dict[int, int] | None = None, metrics: Sequence[Metric] = (), is_answer: bool = False
    ) -> Report:
        return Report(
            self.attempt,
            self.node_rank,
            next(self._numbers),
            steps or {},
            metrics=tuple(metrics),
            is_pausing=self._is_pausing,
            is_answer=is_answer,
        )


class FailingTransfer(Transfer):
    """Uploads nothing."""

    def __init__(self, root: StorageRoot, error: Exception) -> None:
        super().__init__(root)
        self._error = error

    def upload_files(self, items: Sequence[UploadItem]) -> None:
        raise self._error


class HeldTransfer(Transfer):
    """Waits before it uploads; ``is_held`` is set when it does."""

    def __init__(self, root: StorageRoot) -> None:
        super().__init__(root)
        self.is_held = threading.Event()
        self._free = threading.Event()

    def let_go(self) -> None:
        self._free.set()

    def upload_files(self, items: Sequence[UploadItem]) -> None:
        self.is_held.set()
        self._free.wait()
        super().upload_files(items)


async def in_thread(call: Callable[[], Result]) -> Result:
    """What a member in a thread does."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)


async def wait_for(condition: Callable[[], object]) -> None:
    """Until it is true; the scenario as a whole has a deadline."""
    while not condition():
        await asyncio.sleep(0.001)


def facts_of(node_rank: int, num_members: int) -> MemberFacts:
    return MemberFacts(
        node_rank, num_members, node_rank, f"10.0.0.{node_rank}", 29500 + node_rank, f"ray-node-{node_rank}"
    )


def report_of(
    member: int,
    number: int,
    steps: dict[int, int],
    metrics: Sequence[Metric] = (),
    total_train_steps: int | None = None,
    attempt: int = 1,
) -> Report:
    """What a member says without a node in its place."""
    return Report(attempt, member, number, steps, total_train_steps, tuple(metrics))


def take_steps(attempt: Attempt, member: int, steps: dict[int, int], is_pausing: bool = False) -> None:
    """Give an attempt a member's next report: where each of its ranks is."""
    known = attempt.progress.get(member)
    number = 1 if known is None else known.last_number + 1
    attempt.take_report(Report(attempt.number, member, number, steps, is_pausing=is_pausing))


async def join_all(nodes: Sequence[Node], worker_group: str = "group-1") -> list[AttemptStart]:
    return await asyncio.gather(*(node.join(worker_group) for node in nodes))


async def join_ranks_of_one_node(monitor: Monitor, num_ranks: int = 2) -> None:
    """As the workers of a function job on one machine."""
    ranks = [
        MemberFacts(rank, num_ranks, 0, "10.0.0.0", 0, "ray-node-0", noun="rank", process="process")
        for rank in range(num_ranks)
    ]
    await asyncio.gather(*(monitor.join(("group-1", 0), facts) for facts in ranks))


async def record_all(nodes: Sequence[Node], step: int) -> None:
    for node in nodes:
        await node.record(step)


async def save_all(nodes: Sequence[Node], snapshot: SnapshotId) -> list[str | None]:
    return await asyncio.gather(*(node.save(snapshot) for node in nodes))


async def leave_all(nodes: Sequence[Node]) -> None:
    for node in nodes:
        await node.leave()


def failure_of(node_rank: int, time_unix_s: float = 1.0) -> Failure:
    return Failure(node_rank, time_unix_s, exit_code=1)


def event_texts(root: StorageRoot) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in read_events(root, 1)]
