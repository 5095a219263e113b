"""What the monitor is told of the job."""

from __future__ import annotations

from dataclasses import dataclass

from periflow_ray.runtime.monitor.kept_checkpoints import Retention
from periflow_ray.runtime.monitor.sinks import DEFAULT_SINKS, SinkPlan


@dataclass(frozen=True)
class JobRules:
    """What the monitor is told of the job.

    Args:
        devices_per_member: devices of one Ray Train worker.
        max_failures: restarts after failures, beside those after preemptions; -1 for any number.
        hang_timeout_s: seconds without a step on any rank that count as a hang; None to wait without end.
        sinks: where metrics go.
        driver_id: of the driver that the monitor belongs to; None if there can be no other one.
        start_from: id of another job's checkpoint that the job resumes until it has its own.
        report_interval_s: how long what rank 0 reports may wait in its member; None for the usual time.
    """

    devices_per_member: int
    max_failures: int
    retention: Retention
    hang_timeout_s: float | None = None
    sinks: tuple[SinkPlan, ...] = DEFAULT_SINKS
    driver_id: str | None = None
    report_interval_s: float | None = None
    start_from: str | None = None
