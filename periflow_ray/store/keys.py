"""Keys of the storage root that more than one room builds on."""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata

from periflow_ray.store.local_files import PARTIAL_SUFFIX

# What every storage takes as it is, in a path that leaves room for the storage root's own.
_PLAIN_NAME = re.compile(r"(?! )[\w.+=@,()\[\] -]*[\w+=@,()\[\]-]")
_MAX_PLAIN_BYTES = 400
_HIDDEN_PREFIX = ".path-"
# Below a job: what its command finds, packed.
WORKSPACE_FILE = "workspace.tar.gz"


def job_key(job_id: int, *parts: str) -> str:
    """The key of something that belongs to a job."""
    return "/".join(("jobs", str(job_id), *parts))


def key_of_file(directory: str, path: str) -> str:
    """The key below ``directory`` for a file's path: the path itself where every storage takes it, else a digest of it.

    Object stores and their clients change or refuse some names that a file may have: with control characters, percent
    signs or backslashes, with a dot at the end, too long ones, or what is not UTF-8.
    """
    if _is_plain(path):
        return f"{directory}/{path}"
    return f"{directory}/{_HIDDEN_PREFIX}{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()}"


def _is_plain(path: str) -> bool:
    if len(path.encode(errors="surrogateescape")) > _MAX_PLAIN_BYTES or unicodedata.normalize("NFC", path) != path:
        return False
    return all(
        _PLAIN_NAME.fullmatch(name) and not name.startswith(_HIDDEN_PREFIX) and not name.endswith(PARTIAL_SUFFIX)
        for name in path.split("/")
    )


def leads_out(path: str) -> bool:
    """Whether a relative path in a stored document is none, or leads out of the directory that it is joined to.

    Whoever may write to a storage root must not decide about other files of those who read it.
    """
    normal = posixpath.normpath(path)
    return path != normal or normal in ("", ".", "..") or normal.startswith(("/", "../")) or "\0" in path
