"""Which checkpoint the members of an attempt restore: the newest that none of them finds damaged."""

from __future__ import annotations

import asyncio
import contextlib

from periflow_ray.errors import CorruptCheckpointError, NewerFormatError, NotFoundError, StorageError
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import RestoreVerdict
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.checkpoints.damage import set_aside


class RestoreAgreement:
    """The monitor's side of ``restore_agreed``."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._unusable: set[str] = set()
        self._choosing = asyncio.Lock()

    def find_checkpoint(self) -> Manifest | None:
        """The newest committed checkpoint that nobody found damaged; waits for the storage.

        Without one of its own the job goes on from that of another job, if its rules name one.
        """
        root, other = self._context.root, self._context.rules.start_from
        own = checkpoints.latest_committed(root, self._context.job_id, self._unusable)
        if own is not None or other is None or other.rpartition("/")[2] in self._unusable:
            return own
        with contextlib.suppress(NotFoundError, CorruptCheckpointError, NewerFormatError):
            return checkpoints.find_checkpoint(root, other)
        self._context.note(f"checkpoint {other}, from which the job was to begin, cannot be read")
        return None

    async def settle(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Take in what became of a member's restore and wait for the others; see ``Monitor.settle_restore``."""
        attempt = self._context.attempt
        attempt.restored.setdefault(name, set()).add(member)
        is_new = problem is not None and name not in self._unusable
        if problem is not None and is_new:
            self._unusable.add(name)
            self._context.note(f"checkpoint {name} is not used: {problem}")
        self._context.membership.tell()
        if problem is not None and is_new:
            # For later drivers, and everybody else; where the storage refuses, this one remembers it.
            with contextlib.suppress(OSError, StorageError, CorruptCheckpointError, NewerFormatError):
                await asyncio.to_thread(set_aside, self._context.root, self._context.job_id, name, problem)
        await self._context.membership.wait_for(
            lambda: len(attempt.restored[name] | attempt.left) >= attempt.num_members or attempt.cause is not None
        )
        async with self._choosing:
            candidate = attempt.checkpoint
            is_candidate = candidate is not None and candidate.checkpoint == name
            if name not in self._unusable and is_candidate:
                return RestoreVerdict(True, candidate)
            if is_candidate:
                patience = self._context.patience(lambda: attempt.cause is not None)
                attempt.resume_at(await asyncio.to_thread(patience.insist, self.find_checkpoint))
            return RestoreVerdict(False, attempt.checkpoint)
