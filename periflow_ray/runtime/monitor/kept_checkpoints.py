"""The committed checkpoints of a job, and the deletion of those that its retention rules do not keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from periflow_ray.errors import StorageError
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.checkpoints.retention import BestRule, choose_expired
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class Retention:
    """Which committed checkpoints to keep; without any rule all of them."""

    keep_last: int | None = None
    keep_best: BestRule | None = None


class KeptCheckpoints:
    """Deletes beside everything else, one after the other.

    Args:
        write_event: takes an event's kind and text.
    """

    def __init__(
        self, root: StorageRoot, job_id: int, retention: Retention, write_event: Callable[[str, str], None]
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._retention = retention
        self._write_event = write_event
        self._kept: list[Manifest] = []
        self._tidying: asyncio.Task[None] | None = None
        self._has_warned = False

    @property
    def newest(self) -> Manifest | None:
        """The checkpoint that was committed last."""
        return self._kept[-1] if self._kept else None

    async def read(self) -> None:
        """Take in what the job has in its storage root."""
        self._kept = await asyncio.to_thread(checkpoints.list_committed, self._root, self._job_id)

    def add(self, manifest: Manifest) -> None:
        """A checkpoint was committed: others may expire."""
        self._kept.append(manifest)
        self._tidying = asyncio.create_task(self._tidy(self._tidying))

    async def close(self) -> None:
        """Wait for deletions under way."""
        if self._tidying is not None:
            await self._tidying

    async def _tidy(self, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await earlier
        rules = self._retention
        for manifest in choose_expired(self._kept, rules.keep_last, rules.keep_best):
            try:
                await asyncio.to_thread(checkpoints.remove, self._root, self._job_id, manifest.checkpoint)
            except (OSError, StorageError) as err:
                if not self._has_warned:
                    self._write_event("notice", f"checkpoint {manifest.checkpoint} could not be deleted: {err}")
                self._has_warned = True
            else:
                self._kept.remove(manifest)
