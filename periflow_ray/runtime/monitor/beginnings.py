"""Notices a script that trains on without having read the checkpoint that it was given back."""

from __future__ import annotations

from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import Report
from periflow_ray.sdk.beginning import BEGIN_ANEW_VARIABLE


class Beginnings:
    """Tells it once in an attempt; a script may have its state from elsewhere, so nothing is ended for it."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._attempt: Attempt | None = None
        self._have_read: dict[int, bool | None] = {}

    def take(self, report: Report) -> None:
        """Take in what a member's script had read when its first step was through."""
        attempt = self._context.attempt
        checkpoint = attempt.checkpoint
        if attempt is not self._attempt:
            self._attempt, self._have_read = attempt, {}
        if checkpoint is None or report.member in self._have_read:
            return
        # A step is counted when it begins.
        if max(report.steps.values(), default=0) < attempt.resumed_step + 2:
            return
        self._have_read[report.member] = report.has_read_checkpoint
        members = {member for member in attempt.members if attempt.brings_files(member)}
        is_last = report.member in members and members <= self._have_read.keys()
        if is_last and all(self._have_read[member] is False for member in members):
            self._context.note(
                f"the script went on from step {attempt.resumed_step} without opening a file of checkpoint "
                f"{checkpoint.checkpoint}, which is in $CKPT_DIR. If it began anew, stop it before its next ones take "
                f"the place of the earlier ones; {BEGIN_ANEW_VARIABLE}=1 in env_var says that this is meant"
            )
