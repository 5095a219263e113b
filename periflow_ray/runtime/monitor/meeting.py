"""What the monitor is told of the job, and what it tells the members of an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.sinks import DEFAULT_SINKS, SinkPlan
from periflow_ray.store.checkpoints import Manifest


@dataclass(frozen=True)
class JobRules:
    """What the monitor is told of the job.

    Args:
        devices_per_member: devices of one Ray Train worker.
        max_failures: restarts after failures, beside those after preemptions; -1 for any number.
        hang_timeout_s: seconds without a step on any rank that count as a hang; None to wait for ever.
        sinks: where metrics go.
        member_noun: what one Ray Train worker is to the user: a node in a command job, a rank in a function job.
    """

    devices_per_member: int
    max_failures: int
    retention: Retention
    hang_timeout_s: float | None = None
    sinks: tuple[SinkPlan, ...] = DEFAULT_SINKS
    member_noun: Literal["node", "rank"] = "node"


@dataclass(frozen=True)
class Meeting:
    """What a member learns when all have joined. ``checkpoint`` is where to resume, None at the beginning.

    ``is_over``: the job has ended, and there is nothing left to do but to leave.
    """

    attempt: int
    num_members: int
    master_addr: str
    master_port: int
    checkpoint: Manifest | None
    is_over: bool = False


@dataclass(frozen=True)
class RestoreVerdict:
    """Whether all members could restore the checkpoint; if not, ``checkpoint`` is the one to try next."""

    is_agreed: bool
    checkpoint: Manifest | None


Next = Literal["end", "restart", "new_group"]
"""What follows an attempt: nothing, another one with the same workers, or one with new workers."""
