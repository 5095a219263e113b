"""Of two drivers of one job, only the one that was started last may write: the other one ends itself.

A driver may have stood still, with its machine or alone, while a user resumed its job. The job's record names the newer
one from then on, before that one starts; so a driver and its monitor look there before they write.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import NoReturn

from periflow_ray.errors import DocumentError, NotFoundError
from periflow_ray.jobs.records import JobRecord, read_record
from periflow_ray.store.root import StorageRoot

_EXIT_CODE = 3


def driver_id_of(record: JobRecord) -> str:
    """What tells a job's drivers apart: of a command job the id of the Ray job, else when it was started."""
    return record.ray_submission_id or f"python-{record.resumed_unix_s or record.created_unix_s}"


@dataclass(frozen=True)
class Ownership:
    """A driver's right to write a job's documents; without ``driver_id`` nobody takes it away."""

    root: StorageRoot
    job_id: int
    driver_id: str | None = None

    def is_lost(self) -> bool:
        """Whether another driver was started for the job.

        Raises:
            OSError, StorageError: the storage does not say.
        """
        if self.driver_id is None:
            return False
        try:
            return driver_id_of(read_record(self.root, self.job_id)) != self.driver_id
        except (NotFoundError, DocumentError):
            # A driver goes on without a record, too.
            return False


def leave_to_successor(job_id: int) -> NoReturn:
    """End this process at once, without another word in the job's documents."""
    print(f"job {job_id} was taken up by a newer driver; this one ends", file=sys.stderr, flush=True)
    os._exit(_EXIT_CODE)
