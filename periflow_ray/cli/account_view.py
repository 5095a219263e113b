"""A job's attempts and what they cost, as panels for people and as a document for programs."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table

from periflow_ray.cli.format import format_duration, iso_time
from periflow_ray.cli.output import tell_left_out
from periflow_ray.cli.plain_text import escape_block
from periflow_ray.jobs import Job
from periflow_ray.jobs.account import AttemptAccount, JobAccount, build_account, describe_goodput, describe_lost
from periflow_ray.jobs.attempts import read_attempts
from periflow_ray.jobs.resumes import read_resumed_attempts
from periflow_ray.store.root import StorageRoot


def read_account(root: StorageRoot, job: Job, resumable_step: int) -> JobAccount:
    """Work out what a job's attempts cost so far.

    Args:
        resumable_step: step of its newest committed checkpoint, 0 without one.
    """
    return build_account(
        read_attempts(root, job.record.job_id, tell_left_out),
        job.state,
        now_unix_s=time.time(),
        step=job.progress.step,
        resumable_step=resumable_step,
        resumed_after=read_resumed_attempts(root, job.record.job_id, tell_left_out),
    )


def build_attempt_table(account: JobAccount) -> Table:
    """One row an attempt."""
    table = Table(box=None, header_style="bold")
    for column in ("Attempt", "Steps", "Duration"):
        table.add_column(column, no_wrap=True)
    table.add_column("What happened", overflow="fold")
    for attempt in account.attempts:
        steps = f"{attempt.resumed_step} to {attempt.last_step}"
        table.add_row(
            str(attempt.number), steps, format_duration(_measure_duration_s(attempt)), escape_block(attempt.text)
        )
    return table


def describe_account(account: JobAccount) -> dict[str, str]:
    """Fields of the panel with the sums."""
    # A driver that dies takes the newest steps that it knew of with it.
    is_least = any(attempt.cause == "driver" for attempt in account.attempts)
    lost = describe_lost(account.num_lost_steps, account.lost_device_s, is_least=is_least)
    return {"Goodput": describe_goodput(account), "Lost": lost}


def account_document(account: JobAccount) -> dict[str, Any]:
    """The sums for programs."""
    return {
        "goodput": account.goodput,
        "productive_device_s": round(account.productive_device_s, 3),
        "wall_device_s": round(account.wall_device_s, 3),
        "num_lost_steps": account.num_lost_steps,
        "lost_device_s": round(account.lost_device_s, 3),
    }


def attempt_document(attempt: AttemptAccount) -> dict[str, Any]:
    """One attempt for programs; ``cause`` is null while it runs and when it succeeded."""
    return {
        "number": attempt.number,
        "num_devices": attempt.num_devices,
        "started": iso_time(attempt.started_unix_s),
        "ended": iso_time(attempt.ended_unix_s),
        "resumed_step": attempt.resumed_step,
        "last_step": attempt.last_step,
        "cause": attempt.cause,
        "text": attempt.text,
        "downtime_s": None if attempt.downtime_s is None else round(attempt.downtime_s, 3),
        "num_lost_steps": attempt.num_lost_steps,
        "lost_device_s": round(attempt.lost_device_s, 3),
    }


def _measure_duration_s(attempt: AttemptAccount) -> float:
    ended_unix_s = time.time() if attempt.ended_unix_s is None else attempt.ended_unix_s
    return max(0.0, ended_unix_s - attempt.started_unix_s)
