"""Whether a job goes on after an attempt has ended. Pure: it decides, the monitor and Ray Train carry it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from periflow_ray.jobs.attempts import EndCause

# The user's code or the machines are at fault; anything else costs the job nothing of its max_failures.
COUNTED_CAUSES: frozenset[EndCause] = frozenset({"failure", "lost", "hang"})
MAX_ENDS_WITHOUT_PROGRESS = 3


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended: at which step it was, and which step the next one resumes from."""

    cause: EndCause
    last_step: int
    resumable_step: int


def refuse_restart(ends: Sequence[AttemptEnd], max_failures: int, num_unknown: int = 0) -> str | None:
    """Why the job must not be started again; None if it may.

    Args:
        ends: of all attempts so far whose end is known, the newest last.
        max_failures: how many counted ends the job survives; -1 for any number.
        num_unknown: attempts of which nobody knows how they ended. Each may have been a failure, so it counts as one
            when the newest attempt failed; but a preemption ends no job for its sake.
    """
    counted = [end for end in ends if end.cause in COUNTED_CAUSES]
    newest = counted[-MAX_ENDS_WITHOUT_PROGRESS:]
    if len(newest) == MAX_ENDS_WITHOUT_PROGRESS and len({(end.last_step, end.resumable_step) for end in newest}) == 1:
        return f"it failed {MAX_ENDS_WITHOUT_PROGRESS} times in a row at step {newest[-1].last_step} without progress"
    if max_failures >= 0 and len(counted) > max_failures:
        return f"it failed {len(counted)} time(s); max_failures allows {max_failures}"
    has_just_failed = bool(ends) and ends[-1].cause in COUNTED_CAUSES
    if max_failures >= 0 and has_just_failed and len(counted) + num_unknown > max_failures:
        return (
            f"it failed {len(counted)} time(s), and how {num_unknown} other attempt(s) ended cannot be read; "
            f"max_failures allows {max_failures}"
        )
    return None
