"""What became of each attempt of a job: when, from which step to which, why it ended, what it cost.

jobs/<job>/attempts/<number>.json
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from periflow_ray.store.documents import OnUnreadable, read_document, read_each, write_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot

_NUMBER = re.compile(r"[1-9][0-9]*")

EndCause = Literal["failure", "lost", "hang", "preemption", "resize", "driver", "stop"]
"""Why an attempt ended: the user's code failed, a worker or machine was lost without notice, no rank made progress, a
machine was taken away with notice, there was room for more workers, the job's own driver died, or a user stopped it."""


@dataclass(frozen=True)
class SaveRecord:
    """A save that a notice or a stop asked for: seconds of notice, the step saved and how long after the notice."""

    notice_s: float
    step: int | None
    save_time_s: float | None


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt; ``cause`` is None if the job succeeded. Times in Unix seconds.

    ``ended_unix_s`` is None while it runs; then ``last_step`` and ``last_step_unix_s`` need not be the newest.
    ``resumable_step`` is that of the newest committed checkpoint at its end: where the next attempt goes on.
    """

    number: int
    num_nodes: int
    num_devices: int
    started_unix_s: float
    first_step_unix_s: float | None
    last_step_unix_s: float | None
    ended_unix_s: float | None
    resumed_step: int
    last_step: int
    resumable_step: int
    cause: EndCause | None
    text: str
    save: SaveRecord | None = None


def write_attempt(root: StorageRoot, job_id: int, record: AttemptRecord) -> None:
    """Store how an attempt goes or how it ended."""
    write_document(root, job_key(job_id, "attempts", f"{record.number}.json"), record)


def read_attempts(root: StorageRoot, job_id: int, on_unreadable: OnUnreadable | None = None) -> list[AttemptRecord]:
    """All attempts in their order; only the newest can be one that has not ended, unless a driver died.

    Args:
        on_unreadable: told of each record that cannot be read, which is left out then.
    Raises:
        DocumentError: there is such a record, and nobody to be told of it.
    """
    keys = [job_key(job_id, "attempts", f"{number}.json") for number in list_attempt_numbers(root, job_id)]
    records = read_each(lambda key: read_document(root, key, AttemptRecord), keys, on_unreadable)
    return sorted(records, key=lambda record: record.number)


def list_attempt_numbers(root: StorageRoot, job_id: int) -> list[int]:
    """Numbers of the attempts that have a record, whether or not it can be read; the newest last."""
    names = [name.removesuffix(".json") for name in root.list_names(job_key(job_id, "attempts"))]
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def close_attempt(record: AttemptRecord, *, ended_unix_s: float, last_step: int, resumable_step: int) -> AttemptRecord:
    """An attempt whose end nobody could record, because the job's driver died with it; an ended one stays as it is.

    Args:
        ended_unix_s: when it had surely ended.
        last_step: the last step that was reported.
        resumable_step: step of the newest committed checkpoint, 0 without one.
    """
    if record.ended_unix_s is not None:
        return record
    has_steps = record.first_step_unix_s is not None
    # What is in a checkpoint was made, whether or not it was reported.
    last_step = max(last_step, resumable_step)
    return dataclasses.replace(
        record,
        ended_unix_s=max(ended_unix_s, record.last_step_unix_s or record.started_unix_s),
        last_step=max(record.last_step, last_step) if has_steps else record.last_step,
        last_step_unix_s=_estimate_last_step_unix_s(record, ended_unix_s, last_step),
        resumable_step=max(record.resumable_step, resumable_step),
        cause="driver",
        text="the job's driver died",
    )


def count_checkpoint(record: AttemptRecord, resumable_step: int) -> AttemptRecord:
    """An attempt that has ended, with the steps of a checkpoint that was committed after its end had been recorded.

    Whoever takes a driver for dead may record the end of an attempt that is still saving; other ends are recorded by
    those who know.
    """
    if record.cause != "driver" or resumable_step <= record.resumable_step:
        return record
    has_steps = record.first_step_unix_s is not None
    return dataclasses.replace(
        record,
        last_step=max(record.last_step, resumable_step) if has_steps else record.last_step,
        resumable_step=resumable_step,
    )


def _estimate_last_step_unix_s(record: AttemptRecord, ended_unix_s: float, last_step: int) -> float | None:
    """When the last step was made, if the steps after the record's newest one took as long as those before."""
    first_unix_s, last_unix_s = record.first_step_unix_s, record.last_step_unix_s
    if first_unix_s is None or last_unix_s is None or last_step <= record.last_step:
        return last_unix_s
    num_intervals = record.last_step - record.resumed_step - 1
    if num_intervals < 1:
        return max(ended_unix_s, last_unix_s)
    step_time_s = (last_unix_s - first_unix_s) / num_intervals
    return max(last_unix_s, min(ended_unix_s, last_unix_s + (last_step - record.last_step) * step_time_s))
