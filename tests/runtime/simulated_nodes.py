"""Node agents as the monitor sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from periflow_ray.runtime.checkpoint_board import CheckpointId
from periflow_ray.runtime.checkpoint_uploads import bring_files
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor import Meeting, Monitor
from periflow_ray.store.checkpoints import describe_files
from periflow_ray.store.events import read_events
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer


class Node:
    """A node agent's side of the monitor; what its command wrote is in ``snapshot_dir``."""

    def __init__(self, monitor: Monitor, root: StorageRoot, base_dir: Path, node_rank: int) -> None:
        self.monitor = monitor
        self.node_rank = node_rank
        self.snapshot_dir = base_dir / f"node-{node_rank}"
        self.snapshot_dir.mkdir(parents=True, exist_ok=True)
        self._root = root

    async def join(self, worker_group: str = "group-1") -> Meeting:
        address = f"10.0.0.{self.node_rank}"
        return await self.monitor.join(worker_group, self.node_rank, self.node_rank, address, 29500 + self.node_rank)

    async def record(self, step: int) -> None:
        """Its two ranks are at this step."""
        first = 2 * self.node_rank
        await self.monitor.record({first: step, first + 1: step}, None, [], self.node_rank)

    async def save(self, checkpoint: CheckpointId, error: str | None = None) -> str | None:
        """Announce the snapshot, upload what the monitor asks for, report it."""
        await self.monitor.announce_snapshot(self.node_rank, checkpoint)
        files = describe_files(self.snapshot_dir)
        name, own_files = await self.monitor.begin_checkpoint(self.node_rank, checkpoint, files)
        bring_files(self._root, 1, name, own_files, self.snapshot_dir, Transfer(self._root))
        return await self.monitor.end_checkpoint(self.node_rank, checkpoint, error)


async def join_all(nodes: Sequence[Node], worker_group: str = "group-1") -> list[Meeting]:
    return await asyncio.gather(*(node.join(worker_group) for node in nodes))


async def save_all(nodes: Sequence[Node], checkpoint: CheckpointId) -> list[str | None]:
    return await asyncio.gather(*(node.save(checkpoint) for node in nodes))


def failure_of(node_rank: int, time_unix_s: float = 1.0) -> Failure:
    return Failure(node_rank, time_unix_s, exit_code=1)


def event_texts(root: StorageRoot) -> list[tuple[str, str]]:
    return [(event.kind, event.text) for event in read_events(root, 1)]
