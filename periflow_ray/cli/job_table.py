"""A job as a row of a table and as a document."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from periflow_ray.cli.format import NOTHING, format_duration, format_time, iso_time
from periflow_ray.cli.tables import draw_table
from periflow_ray.jobs import Job, JobProgress, JobState

JOB_COLUMNS = (
    "Number",
    "Name",
    "Status",
    "VM",
    "Device",
    "Device Cnt",
    "Data",
    "Created by",
    "Start",
    "Duration",
    "Progress",
)

_DROPPED_FIRST = ("Created by", "Data", "Device", "Device Cnt", "Start", "Duration", "Progress")


def draw_jobs(console: Console, jobs: Sequence[Job]) -> None:
    """A table with one row a job."""
    draw_table(console, JOB_COLUMNS, [_row(job) for job in jobs], dropped_first=_DROPPED_FIRST)


def job_document(job: Job) -> dict[str, Any]:
    """A job for programs; times are ISO 8601, durations are seconds."""
    record, state = job.record, job.state
    return {
        "number": record.job_id,
        "name": record.name,
        "status": state.status,
        "experiment": record.experiment,
        "vm": record.vm,
        "device": record.accelerator,
        "num_devices": record.num_devices,
        "num_nodes": record.num_nodes,
        "data": record.dataset,
        "created_by": record.created_by,
        "created": iso_time(record.created_unix_s),
        "started": iso_time(state.started_unix_s),
        "ended": iso_time(state.ended_unix_s),
        "duration_s": measure_duration_s(state),
        "attempt": state.attempt,
        "progress": {
            "step": job.progress.step,
            "total_train_steps": job.progress.total_train_steps,
            "steps_per_s": job.progress.steps_per_s,
            "metrics": job.progress.metrics,
        },
        "message": state.message,
    }


def measure_duration_s(state: JobState) -> float | None:
    """Seconds from the start to the end, or until now; None before the start."""
    if state.started_unix_s is None:
        return None
    ended_unix_s = state.ended_unix_s if state.ended_unix_s is not None else time.time()
    return round(max(0.0, ended_unix_s - state.started_unix_s), 3)


def format_progress(progress: JobProgress) -> str:
    """``120/1000 (12 %)``; the step alone when the total is not known, ``330/180 (too many)`` when it is passed."""
    if progress.total_train_steps and progress.step > progress.total_train_steps:
        return f"{progress.step}/{progress.total_train_steps} (too many)"
    if progress.total_train_steps:
        percent = 100 * progress.step // progress.total_train_steps
        return f"{progress.step}/{progress.total_train_steps} ({percent} %)"
    return f"step {progress.step}" if progress.step else NOTHING


def _row(job: Job) -> tuple[str, ...]:
    record, state = job.record, job.state
    return (
        str(record.job_id),
        record.name or NOTHING,
        state.status,
        record.vm,
        record.accelerator,
        str(record.num_devices),
        record.dataset or NOTHING,
        record.created_by,
        format_time(state.started_unix_s),
        format_duration(measure_duration_s(state)),
        format_progress(job.progress),
    )
