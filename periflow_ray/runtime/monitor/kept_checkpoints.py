"""The committed checkpoints of a job, and the deletion of those that its retention rules do not keep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from periflow_ray.errors import StorageError
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import CheckpointSummary, Manifest
from periflow_ray.store.checkpoints.pins import read_pins
from periflow_ray.store.checkpoints.retention import BestRule, choose_expired
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class Retention:
    """Which committed checkpoints to keep; without any rule all of them.

    Args:
        num_best: how many ``keep_best`` keeps.
    """

    keep_last: int | None = None
    keep_best: BestRule | None = None
    num_best: int = 1


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
        # Summaries, because there may be thousands; the files only matter of the newest one.
        self._kept: list[CheckpointSummary] = []
        self._unread_names: list[str] = []
        self._added: list[CheckpointSummary] = []
        self._tidying: asyncio.Task[None] | None = None
        self._has_warned = False
        self.newest: Manifest | None = None
        """The checkpoint that the next one may copy from, and that the job would resume from."""

    @property
    def names(self) -> set[str]:
        """Checkpoints that are known to be committed."""
        return {summary.checkpoint for summary in (*self._kept, *self._added)}.union(self._unread_names)

    def begin_attempt(self, newest: Manifest | None, committed: Sequence[str]) -> None:
        """A new attempt goes on from here; what its manifests say is read when the first deletion needs it.

        Args:
            committed: names of all that the job has.
        """
        self.newest = newest
        known = self.names - set(self._unread_names)
        self._unread_names = [name for name in committed if name not in known]
        self._kept = [summary for summary in self._kept if summary.checkpoint in committed]

    def add(self, manifest: Manifest) -> None:
        """A checkpoint was committed: others may expire."""
        self.newest = manifest
        self._added.append(self._summarize(manifest))
        if self._retention != Retention():
            self._tidying = asyncio.create_task(self._tidy(self._tidying))

    def forget(self, name: str) -> None:
        """A checkpoint is damaged: it counts for no rule."""
        self._unread_names = [known for known in self._unread_names if known != name]
        self._kept = [summary for summary in self._kept if summary.checkpoint != name]

    async def close(self) -> None:
        """Wait for deletions under way."""
        if self._tidying is not None:
            await self._tidying

    async def _tidy(self, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await earlier
        try:
            await self._take_in_added()
            pinned = await asyncio.to_thread(read_pins, self._root, self._job_id)
        except (OSError, StorageError) as err:  # The next commit tries again.
            self._warn(f"checkpoints that may expire could not be listed: {err}")
            return
        rules = self._retention
        for summary in choose_expired(self._kept, rules.keep_last, rules.keep_best, rules.num_best):
            if summary.checkpoint in pinned:
                continue
            try:
                is_gone = await asyncio.to_thread(
                    checkpoints.destroy_committed, self._root, self._job_id, summary.checkpoint
                )
            except (OSError, StorageError) as err:
                self._warn(f"checkpoint {summary.checkpoint} could not be deleted: {err}")
                continue
            if is_gone:
                self._kept.remove(summary)

    async def _take_in_added(self) -> None:
        names = self._unread_names
        if names:
            read = await asyncio.to_thread(checkpoints.read_summaries, self._root, self._job_id, names)
            self._unread_names = [name for name in self._unread_names if name not in names]
            self._kept = sorted([*self._kept, *read], key=lambda summary: summary.step)
        added, self._added = self._added, []
        self._kept += added

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._write_event("note", text)
        self._has_warned = True

    def _summarize(self, manifest: Manifest) -> CheckpointSummary:
        rule, summary = self._retention.keep_best, manifest.summary()
        wanted = () if rule is None else (rule.metric,)
        return replace(summary, metrics={name: summary.metrics[name] for name in wanted if name in summary.metrics})
