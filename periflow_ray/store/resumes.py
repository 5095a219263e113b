"""Which ended jobs a user took up again, and that only one of several who do so at once wins.

jobs/<job>/resumes/<Ray submission id of the driver that had ended>-<try>.json
"""

from __future__ import annotations

import json
import time
import uuid

from periflow_ray.store.jobs import job_key
from periflow_ray.store.root import StorageRoot

# Between its claim and the new driver a command that resumes does a handful of requests; one that takes longer is dead.
CLAIM_LASTS_S = 120.0


def claim_resume(root: StorageRoot, job_id: int, submission_id: str, attempt: int) -> bool:
    """Win the right to take up a job; False if somebody else is doing it.

    The claim of a command that died before it started a driver expires.

    Args:
        submission_id: of the driver that has ended.
        attempt: the job's last attempt.
    """
    index = 0
    while True:
        key = job_key(job_id, "resumes", f"{submission_id}-{index}.json")
        claim = {"attempt": attempt, "time_unix_s": time.time(), "claimant": uuid.uuid4().hex}
        if root.create_exclusive(key, json.dumps(claim).encode()):
            return True
        if time.time() - root.read_json(key)["time_unix_s"] < CLAIM_LASTS_S:
            return False
        index += 1


def read_resumed_attempts(root: StorageRoot, job_id: int) -> frozenset[int]:
    """Numbers of the attempts after which the job had ended, and a user took it up again."""
    prefix = job_key(job_id, "resumes")
    return frozenset(root.read_json(f"{prefix}/{name}")["attempt"] for name in root.list_names(prefix))
