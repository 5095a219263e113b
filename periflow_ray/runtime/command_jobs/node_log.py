"""A node's log on its way to the storage root: secrets masked, and written as often as the root can take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable

from periflow_ray.errors import MASK, StorageError
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.store.root import StorageRoot

# Each flush to an object store is a request, and rewrites the last segment.
REMOTE_FLUSH_INTERVAL_S = 3.0


class NodeLog:
    """Lines of all commands of one node; safe to use from several threads.

    Args:
        secrets: values that are replaced by ``***`` wherever they appear.
    """

    def __init__(self, root: StorageRoot, job_id: int, node_rank: int, secrets: Iterable[str]) -> None:
        self._writer = LogWriter(root, job_id, node_rank)
        self._node_rank = node_rank
        self._secrets = [secret for secret in secrets if secret]
        self._min_interval_s = 0.0 if root.is_local else REMOTE_FLUSH_INTERVAL_S
        self._flushed_s = 0.0
        self._lock = threading.Lock()

    def write(self, text: str) -> str:
        """Add a line; returns it as it was written."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        with self._lock:
            self._writer.write(text)
        return text

    def flush(self, *, is_last: bool = False) -> None:
        """Make the lines visible to readers, unless that was done a moment ago."""
        if not is_last and time.monotonic() - self._flushed_s < self._min_interval_s:
            return
        self._flushed_s = time.monotonic()
        with self._lock:
            try:
                self._writer.flush()
            except (OSError, StorageError) as err:  # The lines stay buffered; the next flush tries again.
                print(f"log lines of node {self._node_rank} are delayed: {err}", file=sys.stderr)
