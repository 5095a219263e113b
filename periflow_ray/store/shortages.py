"""What a machine has too little of, said so that people know what to do; the kernel's own words leave that open."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile

from periflow_ray.store.size_text import format_size


def describe_error(error: BaseException) -> str:
    """An error's text, and what is full or used up if it, or what caused it, comes from that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    shortage = None if cause is None else _describe_shortage(cause)
    return str(error) if shortage is None else f"{error}: {shortage}"


def _describe_shortage(error: OSError) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Who writes into a file that is open has no name for it; what a job has on a machine is there.
        place = error.filename if isinstance(error.filename, str) else tempfile.gettempdir()
        try:
            usage = shutil.disk_usage(place if os.path.exists(place) else os.path.dirname(place))
        except OSError:
            return None
        return (
            f"the disk of '{place}' has {format_size(usage.total)}, of which {format_size(usage.free)} are free now. "
            "Free some; or have temporary files elsewhere, with TMPDIR set where Ray is started"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"a process may open {limit} files. Raise it where Ray is started: ulimit -n 65536"
    return None
