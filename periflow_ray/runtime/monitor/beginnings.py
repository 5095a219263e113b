"""Notices a script that trains on from another state than the one that its steps are counted from."""

from __future__ import annotations

from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import Beginning, Report
from periflow_ray.sdk.beginning import BEGIN_ANEW_VARIABLE

_MAX_NAMED_RANKS = 8


class Beginnings:
    """Tells each kind once in an attempt; a script may have its state from elsewhere, so nothing is ended for it."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._attempt: Attempt | None = None
        self._have_read: dict[int, bool | None] = {}
        self._beginnings: dict[int, Beginning] = {}
        self._told: set[str] = set()

    def take(self, report: Report) -> None:
        """Take in where a member's ranks began, how far they are, and what they had read after their first step."""
        attempt = self._context.attempt
        if attempt is not self._attempt:
            self._attempt, self._have_read, self._beginnings, self._told = attempt, {}, {}, set()
        self._beginnings.update(report.beginnings)
        self._compare_ranks()
        self._look_beyond_total(report)
        self._look_for_readers(attempt, report)

    def _compare_ranks(self) -> None:
        # Ranks are started together: the second process of one belongs to the second ones of the others.
        for number in {beginning.number for beginning in self._beginnings.values()}:
            ranks_at: dict[int, list[int]] = {}
            for rank, beginning in sorted(self._beginnings.items()):
                if beginning.number == number:
                    ranks_at.setdefault(beginning.resumed_step, []).append(rank)
            if len(ranks_at) > 1:
                where = ", ".join(f"{_name_ranks(ranks)} at step {step}" for step, ranks in ranks_at.items())
                self._tell(
                    "ranks",
                    f"the ranks began at different steps: {where}. Their states do not belong together: end the job, "
                    "and let all ranks load the checkpoint of one step",
                )

    def _look_beyond_total(self, report: Report) -> None:
        total = report.total_train_steps
        first_step = self._context.attempt.resumed_step
        beyond = {rank: step for rank, step in report.steps.items() if total is not None and step > total}
        if beyond and first_step > 0:
            where = ", ".join(f"rank {rank} makes step {step}" for rank, step in sorted(beyond.items()))
            self._tell(
                "total",
                f"{where} of {total}: it loaded an earlier step than {first_step}, from which its steps are counted, "
                "or total_train_steps is too small",
            )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._context.note(text)

    def _look_for_readers(self, attempt: Attempt, report: Report) -> None:
        checkpoint = attempt.checkpoint
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


def _name_ranks(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks[:_MAX_NAMED_RANKS]))
    more = f" and {len(ranks) - _MAX_NAMED_RANKS} more" if len(ranks) > _MAX_NAMED_RANKS else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {names}{more}"
