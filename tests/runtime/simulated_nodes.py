"""Node agents as the monitor sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from periflow_ray.runtime.monitor.meeting import Meeting

from periflow_ray.jobs.events import read_events
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.member.uploads import bring_files
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.agreed_save import CheckpointId
from periflow_ray.runtime.monitor.attempt import MemberFacts
from periflow_ray.store.checkpoints import describe_files
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer


class Node:
    """A node agent's side of the monitor; what its command wrote is in ``snapshot_dir``."""

    num_members = 2

    def __init__(self, monitor: Monitor, root: StorageRoot, base_dir: Path, node_rank: int) -> None:
        self.monitor = monitor
        self.node_rank = node_rank
        self.snapshot_dir = base_dir / f"node-{node_rank}"
        self.snapshot_dir.mkdir(parents=True, exist_ok=True)
        self._root = root

    async def join(self, worker_group: str = "group-1", round_in_group: int = 0) -> Meeting:
        return await self.monitor.join((worker_group, round_in_group), facts_of(self.node_rank, self.num_members))

    async def record(self, step: int, is_pausing: bool = False) -> None:
        """Its two ranks are at this step."""
        first = 2 * self.node_rank
        await self.monitor.record({first: step, first + 1: step}, None, [], self.node_rank, is_pausing=is_pausing)

    async def save(self, checkpoint: CheckpointId, error: str | None = None) -> str | None:
        """Announce the snapshot, upload what the monitor asks for, report it."""
        await self.monitor.announce_snapshot(self.node_rank, checkpoint)
        files = describe_files(self.snapshot_dir)
        name, own_files = await self.monitor.begin_checkpoint(self.node_rank, checkpoint, files)
        bring_files(self._root, 1, name, own_files, self.snapshot_dir, Transfer(self._root))
        return await self.monitor.end_checkpoint(self.node_rank, checkpoint, error)


def facts_of(node_rank: int, num_members: int) -> MemberFacts:
    return MemberFacts(
        node_rank, num_members, node_rank, f"10.0.0.{node_rank}", 29500 + node_rank, f"ray-node-{node_rank}"
    )


async def join_all(nodes: Sequence[Node], worker_group: str = "group-1") -> list[Meeting]:
    return await asyncio.gather(*(node.join(worker_group) for node in nodes))


async def join_ranks_of_one_node(monitor: Monitor, num_ranks: int = 2) -> None:
    """As the workers of a function job on one machine."""
    ranks = [MemberFacts(rank, num_ranks, 0, "10.0.0.0", 0, "ray-node-0") for rank in range(num_ranks)]
    await asyncio.gather(*(monitor.join(("group-1", 0), facts) for facts in ranks))


async def save_all(nodes: Sequence[Node], checkpoint: CheckpointId) -> list[str | None]:
    return await asyncio.gather(*(node.save(checkpoint) for node in nodes))


def failure_of(node_rank: int, time_unix_s: float = 1.0) -> Failure:
    return Failure(node_rank, time_unix_s, exit_code=1)


def event_texts(root: StorageRoot) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in read_events(root, 1)]
