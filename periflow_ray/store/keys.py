"""Keys of the storage root that more than one room builds on."""

from __future__ import annotations

import posixpath


def job_key(job_id: int, *parts: str) -> str:
    """The key of something that belongs to a job."""
    return "/".join(("jobs", str(job_id), *parts))


def leads_out(path: str) -> bool:
    """Whether a relative path in a stored document is none, or leads out of the directory that it is joined to.

    Whoever may write to a storage root must not decide about other files of those who read it.
    """
    normal = posixpath.normpath(path)
    return path != normal or normal in ("", ".", "..") or normal.startswith(("/", "../")) or "\0" in path
