"""Keys of the storage root that more than one room builds on."""

from __future__ import annotations


def job_key(job_id: int, *parts: str) -> str:
    """The key of something that belongs to a job."""
    return "/".join(("jobs", str(job_id), *parts))
