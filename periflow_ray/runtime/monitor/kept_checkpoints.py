"""The committed checkpoints of a job, and the deletion of those that its retention rules do not keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from periflow_ray.errors import StorageError
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.checkpoints.retention import KeepBest, choose_expired
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class Retention:
    """Which committed checkpoints to keep; without any rule all of them."""

    keep_last: int | None = None
    keep_best: KeepBest | None = None


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
        # Without their files, which only the newest one needs: there may be thousands.
        self._kept: list[Manifest] = []
        self._added: list[Manifest] = []
        self._tidying: asyncio.Task[None] | None = None
        self._is_read = False
        self._has_warned = False
        self.newest: Manifest | None = None
        """The checkpoint that was committed last."""

    def begin_attempt(self, newest: Manifest | None) -> None:
        """A new attempt goes on from here; the others are read beside it, when the first deletion needs them."""
        self.newest = newest
        self._is_read = False
        self._added = []

    def add(self, manifest: Manifest) -> None:
        """A checkpoint was committed: others may expire."""
        self.newest = manifest
        if self._retention == Retention():
            return
        self._added.append(self._without_files(manifest))
        self._tidying = asyncio.create_task(self._tidy(self._tidying))

    async def close(self) -> None:
        """Wait for deletions under way."""
        if self._tidying is not None:
            await self._tidying

    async def _tidy(self, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await earlier
        try:
            await self._take_in_added()
        except (OSError, StorageError) as err:  # The next commit tries again.
            self._warn(f"checkpoints that may expire could not be listed: {err}")
            return
        rules = self._retention
        for manifest in choose_expired(self._kept, rules.keep_last, rules.keep_best):
            try:
                await asyncio.to_thread(checkpoints.remove, self._root, self._job_id, manifest.checkpoint)
            except (OSError, StorageError) as err:
                self._warn(f"checkpoint {manifest.checkpoint} could not be deleted: {err}")
            else:
                self._kept.remove(manifest)

    async def _take_in_added(self) -> None:
        if not self._is_read:
            found = await asyncio.to_thread(checkpoints.list_committed, self._root, self._job_id)
            names = {manifest.checkpoint for manifest in self._added}
            self._kept = [self._without_files(manifest) for manifest in found if manifest.checkpoint not in names]
            self._is_read = True
        self._kept += self._added
        self._added = []

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._write_event("notice", text)
        self._has_warned = True

    def _without_files(self, manifest: Manifest) -> Manifest:
        rule = self._retention.keep_best
        metrics = (
            {} if rule is None else {name: manifest.metrics[name] for name in manifest.metrics if name == rule.metric}
        )
        return replace(manifest, files=(), metrics=metrics)
