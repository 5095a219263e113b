"""Which checkpoint the members of an attempt restore: the newest that none of them finds damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.meeting import RestoreVerdict
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot


class RestoreAgreement:
    """The monitor's side of ``restore_agreed``.

    Args:
        changed: the monitor's condition.
        write_event: takes an event's kind and text.
    """

    def __init__(
        self, root: StorageRoot, job_id: int, changed: asyncio.Condition, write_event: Callable[[str, str], None]
    ) -> None:
        self._root = root
        self._job_id = job_id
        self._changed = changed
        self._write_event = write_event
        self._unusable: set[str] = set()

    async def find_checkpoint(self) -> Manifest | None:
        """The newest committed checkpoint that nobody found damaged."""
        return await asyncio.to_thread(checkpoints.latest_committed, self._root, self._job_id, self._unusable)

    async def settle(self, attempt: Attempt, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Take in what became of a member's restore and wait for the others; see ``Monitor.settle_restore``."""
        async with self._changed:
            candidate = attempt.checkpoint
            attempt.restored.setdefault(name, set()).add(member)
            if problem is not None and name not in self._unusable:
                self._unusable.add(name)
                self._write_event("notice", f"checkpoint {name} is not used: {problem}")
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: len(attempt.restored[name] | attempt.left) >= attempt.num_members or attempt.cause is not None
            )
            if name not in self._unusable:
                return RestoreVerdict(True, candidate)
            if attempt.checkpoint is candidate:
                attempt.checkpoint = await self.find_checkpoint()
            return RestoreVerdict(False, attempt.checkpoint)
