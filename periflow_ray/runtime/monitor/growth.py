"""Room for more members of an elastic job: the attempt ends for a larger one, after a save."""

from __future__ import annotations

import time

from periflow_ray.runtime.monitor.announced_save import AnnouncedSave
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoints import Checkpoints
from periflow_ray.runtime.monitor.context import JobContext

# A job that may grow is in no hurry: only a script that never saves when asked makes it wait.
SAVE_TIMEOUT_S = 600.0


class Growth:
    """Ends the attempt under way for one with more members."""

    def __init__(self, context: JobContext, checkpoints: Checkpoints, save: AnnouncedSave) -> None:
        self._context = context
        self._checkpoints = checkpoints
        self._save = save
        self._growing: Attempt | None = None

    async def grow(self, num_members: int) -> None:
        """Go on with this many members after a save, or after the next periodic one."""
        attempt = self._context.attempt
        if attempt.cause is not None or self._growing is attempt:
            return
        self._growing = attempt
        num_commits = self._checkpoints.num_commits
        reason = f"grows from {attempt.num_members} to {num_members} workers"
        if not await self._save.save(attempt, f"the job {reason}", time.time() + SAVE_TIMEOUT_S):
            # Commits are told to those who wait for reports, too.
            await self._context.reports.wait_for(
                lambda: self._checkpoints.num_commits > num_commits or attempt.is_ending
            )
        if not attempt.has_everybody_left:
            self._context.end(attempt, "resize", reason)
