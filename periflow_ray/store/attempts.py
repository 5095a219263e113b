"""What became of each attempt of a job: when, from which step to which, why it ended, what it cost.

jobs/<job>/attempts/<number>.json
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from periflow_ray.store.jobs import job_key
from periflow_ray.store.root import StorageRoot

EndCause = Literal["failure", "lost", "hang", "preemption", "driver", "stop"]


@dataclass(frozen=True)
class SaveRecord:
    """A save that a notice or a stop asked for: seconds of notice, the step saved and how long after the notice."""

    notice_s: float
    step: int | None
    save_time_s: float | None


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt that has ended; ``cause`` is None if the job succeeded. Times in Unix seconds.

    ``resumable_step`` is that of the newest committed checkpoint at its end: where the next attempt goes on.
    """

    number: int
    num_nodes: int
    num_devices: int
    started_unix_s: float
    first_step_unix_s: float | None
    last_step_unix_s: float | None
    ended_unix_s: float
    resumed_step: int
    last_step: int
    resumable_step: int
    cause: EndCause | None
    text: str
    save: SaveRecord | None = None


def write_attempt(root: StorageRoot, job_id: int, record: AttemptRecord) -> None:
    """Store how an attempt ended."""
    root.write_json(job_key(job_id, "attempts", f"{record.number}.json"), dataclasses.asdict(record))


def read_attempts(root: StorageRoot, job_id: int) -> list[AttemptRecord]:
    """All attempts that have ended, in their order."""
    names = [name for name in root.list_names(job_key(job_id, "attempts")) if name.endswith(".json")]
    records = []
    for name in names:
        document = root.read_json(job_key(job_id, "attempts", name))
        save = document.pop("save")
        records.append(AttemptRecord(**document, save=SaveRecord(**save) if save else None))
    return sorted(records, key=lambda record: record.number)
