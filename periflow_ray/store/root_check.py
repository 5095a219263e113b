"""Whether a storage root can be written to, known within seconds."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from periflow_ray.errors import StorageError
from periflow_ray.private_files import make_private_directories
from periflow_ray.store.local_files import write_whole
from periflow_ray.store.operations import Operations
from periflow_ray.store.time_limits import read_timeout

# With connecting and another try when the first fails at once, a server that does not answer is known in 15 seconds.
_TIMEOUT_S = 6.0
_GIVE_UP_AFTER_S = 3.0


def check_directory(directory: str) -> None:
    """Write a small file into a directory, which is made, and delete it.

    Raises:
        StorageError: with the reason.
    """
    refused = f"storage root '{directory}' is not writable"
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise StorageError(f"{refused}: it is a file, not a directory")
    marker = os.path.join(directory, _marker())
    try:
        make_private_directories(Path(directory))
        write_whole(marker, b"")
        os.unlink(marker)
    except OSError as err:
        raise StorageError(f"{refused}: {err.strerror}") from err


def check_server(operations: Operations, open_filesystem: Callable[[float], tuple[Any, str]]) -> None:
    """Like any writing of a small key and deleting it, but with shorter timeouts and fewer tries.

    Args:
        open_filesystem: opens the root's file system with a read timeout in seconds; gives it and the root's path.
    Raises:
        StorageError: with the URI and the reason.
    """
    timeout_s = read_timeout(_TIMEOUT_S)
    fs, base = open_filesystem(timeout_s)
    path = f"{base.rstrip('/')}/{_marker()}"
    check = dataclasses.replace(
        operations,
        place_of_root="storage root '{uri}' is not writable",
        num_tries=2,
        give_up_after_s=_GIVE_UP_AFTER_S,
    )
    check.run("", lambda: check.call(fs, "pipe_file", path, b"", timeout_s=timeout_s))
    check.run("", lambda: check.call(fs, "rm_file", path, timeout_s=timeout_s))


def _marker() -> str:
    return f".writable-{uuid.uuid4().hex}"
