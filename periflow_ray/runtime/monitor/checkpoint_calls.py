"""What members ask the monitor about checkpoints: base class of the monitor."""

from __future__ import annotations

import asyncio

from periflow_ray.runtime.monitor.agreed_save import CheckpointId
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoint_board import CheckpointBoard
from periflow_ray.runtime.monitor.meeting import RestoreVerdict
from periflow_ray.runtime.monitor.restore_agreement import RestoreAgreement
from periflow_ray.store.checkpoints import LocalFile, Manifest, PlannedFile


class CheckpointCalls:
    """Restoring one, saving one, and learning what was committed. What could harm a later attempt names its own."""

    _changed: asyncio.Condition
    _attempt: Attempt
    _board: CheckpointBoard
    _restores: RestoreAgreement

    async def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Tell how restoring a checkpoint went and wait for the others: one that any member finds damaged is not used.

        Collective: call on all members after ``join`` gave a checkpoint, until the verdict is that all agree.
        """
        return await self._restores.settle(self._attempt, member, name, problem)

    async def announce_snapshot(
        self, node_rank: int, checkpoint: CheckpointId, attempt_number: int | None = None
    ) -> None:
        """A node takes a snapshot before its ranks train on; ``begin_checkpoint`` or ``withdraw_snapshot`` follows."""
        if not self._is_past(attempt_number):
            self._board.announce(node_rank, checkpoint)

    async def withdraw_snapshot(self, checkpoint: CheckpointId, reason: str, attempt_number: int | None = None) -> None:
        """A node that announced a snapshot does not upload it."""
        if self._is_past(attempt_number):
            return
        async with self._changed:
            self._board.withdraw(checkpoint, reason)
            self._changed.notify_all()

    async def begin_checkpoint(
        self, node_rank: int, checkpoint: CheckpointId, files: list[LocalFile], attempt_number: int | None = None
    ) -> tuple[str, list[PlannedFile]]:
        """Describe a node's snapshot; returns the checkpoint's name and the files that this node has to bring."""
        if self._is_past(attempt_number):
            return "", []
        return await self._board.begin(node_rank, checkpoint, files)

    async def end_checkpoint(
        self, node_rank: int, checkpoint: CheckpointId, error: str | None, attempt_number: int | None = None
    ) -> str | None:
        """Report a node's upload as done (or failed); None once the checkpoint is committed, else why it is not."""
        if self._is_past(attempt_number):
            return f"attempt {attempt_number} is over"
        return await self._board.finish(node_rank, checkpoint, error)

    async def meet(self, member: int, checkpoint: CheckpointId, phase: str) -> None:
        """Wait until every member came to this phase of a checkpoint, has left, or is beyond its step."""
        async with self._changed:
            attempt = self._attempt
            self._board.see(checkpoint)
            attempt.meetings.setdefault((checkpoint, phase), set()).add(member)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: attempt.has_met(checkpoint, phase))

    async def settle_uploads(self) -> None:
        """Wait for checkpoints on their way, before a member leaves with a failure and the others are ended."""
        async with self._changed:
            await self._board.wait_for_uploads()

    async def has_committed(self, step: int) -> bool:
        """Whether this attempt has saved a checkpoint of this step."""
        return any(manifest.step == step for manifest in self._board.commits)

    async def next_commit(self, index: int) -> Manifest | None:
        """The attempt's checkpoint number ``index`` once it is committed; None when the attempt has no more."""
        async with self._changed:
            attempt, commits = self._attempt, self._board.commits
            await self._changed.wait_for(lambda: index < len(commits) or attempt.has_everybody_left)
            return commits[index] if index < len(commits) else None

    def _is_past(self, attempt_number: int | None) -> bool:
        """Whether a member speaks of an attempt that is over; None means the one under way.

        A machine that was cut off goes on with its attempt while the others begin the next one, and what it said
        arrives when its network is back.
        """
        return attempt_number is not None and attempt_number != self._attempt.number
