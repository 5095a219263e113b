"""Ranks that stand still: their stacks go to the log, and the attempt ends."""

from __future__ import annotations

from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import DumpStacks

# The first step of an attempt may load data and compile: it may take this many times longer.
FIRST_STEP_FACTOR = 5
MAX_NAMED = 8


class Hangs:
    """Ends an attempt in which no rank has made a step for the job's ``hang_timeout_s``."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def look(self) -> None:
        """End the attempt if it hangs."""
        attempt, timeout_s = self._context.attempt, self._context.rules.hang_timeout_s
        # Asked for every time, so that pauses do not count.
        standstill_s = attempt.standstill_s()
        factor = 1 if attempt.is_warm else FIRST_STEP_FACTOR
        if timeout_s is None or standstill_s < factor * timeout_s:
            return
        self._context.order(attempt, DumpStacks())
        late = ", ".join(str(member) for member in sorted(attempt.late_starters)[:MAX_NAMED])
        if late:
            noun = next(facts.noun for facts in attempt.members.values())
            text = f"{noun} {late} was not prepared {standstill_s:.0f} s after others had started"
        else:
            text = f"no rank made a step for {standstill_s:.0f} s after step {attempt.last_step}"
        self._context.note(
            f"{text}; the stacks of all ranks go to the log: periflow-ray job log {self._context.job_id}"
        )
        if not attempt.has_everybody_left:
            self._context.end(attempt, "hang", text)
