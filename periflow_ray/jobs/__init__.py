"""What a job leaves in the storage root: its record, state, attempts, events, log and metrics."""

from __future__ import annotations

from periflow_ray.jobs.records import (
    ENDED_STATUSES,
    HEARTBEAT_INTERVAL_S,
    HEARTBEAT_LOST_S,
    JOB_STATUSES,
    Job,
    JobProgress,
    JobRecord,
    JobState,
    JobStatus,
    claim_job_id,
    delete_job,
    list_jobs,
    read_claim,
    read_job,
    read_progress,
    read_record,
    read_state,
    write_progress,
    write_record,
    write_state,
)

__all__ = [
    "ENDED_STATUSES",
    "HEARTBEAT_INTERVAL_S",
    "HEARTBEAT_LOST_S",
    "JOB_STATUSES",
    "Job",
    "JobProgress",
    "JobRecord",
    "JobState",
    "JobStatus",
    "claim_job_id",
    "delete_job",
    "list_jobs",
    "read_claim",
    "read_job",
    "read_progress",
    "read_record",
    "read_state",
    "write_progress",
    "write_record",
    "write_state",
]
