"""A checkpoint on its way: which nodes it waits for, who has brought what, and whether it can still be committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from periflow_ray.runtime.monitor.contract import SnapshotId
from periflow_ray.store.checkpoints import Content, Plan, PlannedFile


@dataclass
class PendingCheckpoint:
    """Not settled yet; with an ``error`` it never will be committed.

    Args:
        awaited_nodes: nodes that may still describe their files.
    """

    snapshot: SnapshotId
    awaited_nodes: set[int]
    name: asyncio.Task[str] | None = None
    announced_nodes: set[int] = field(default_factory=set)
    contents: dict[int, Content] = field(default_factory=dict)
    plan: Plan | None = None
    finished_nodes: set[int] = field(default_factory=set)
    settling: asyncio.Task[None] | None = None
    metrics: dict[str, object] = field(default_factory=dict)
    error: str | None = None
    is_void: bool = False
    """It belongs to an agreed save that failed for all nodes."""
    is_committing: bool = False
    is_written: asyncio.Event = field(default_factory=asyncio.Event)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def is_planned(self) -> bool:
        """Whether it is decided who brings which file."""
        return self.plan is not None

    def files_of(self, node_rank: int) -> tuple[PlannedFile, ...]:
        """What a node has to bring."""
        return () if self.plan is None else tuple(file for file in self.plan.files if file.node_rank == node_rank)

    def abandon(self, reason: str) -> None:
        """Give it up, unless all of its files are there: then whatever happens does not make it less."""
        if self.is_committing:
            return
        self.error = self.error or reason
        self.plan = self.plan or Plan([], [])

    @property
    def nodes(self) -> set[int]:
        """Those that came to it."""
        return {*self.announced_nodes, *self.contents}

    def waits_for(self, node_rank: int) -> bool:
        """Whether this node came to it and has not come to the end of its part."""
        return node_rank in self.nodes - self.finished_nodes

    def is_coming(self, dead_nodes: Collection[int]) -> bool:
        """Whether it may still be committed, though these nodes died."""
        waits_for_dead = any(node in dead_nodes and node not in self.finished_nodes for node in self.announced_nodes)
        return self.error is None and not waits_for_dead
