"""The sink that every job has: its metrics in the storage root, where ``job metrics`` reads them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from periflow_ray.jobs.metrics import Metric, MetricsWriter
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class StoredMetrics:
    """The plan of it."""

    def open(self, root: StorageRoot, job_id: int, on_problem: Callable[[str], None]) -> StoredSink:
        return StoredSink(root, job_id)

    def environment(self) -> Mapping[str, str]:
        return {}


class StoredSink:
    """Where the storage fails nothing is lost: the next flush has it too."""

    def __init__(self, root: StorageRoot, job_id: int) -> None:
        self._root = root
        self._job_id = job_id
        self._writer: MetricsWriter | None = None
        # Held during I/O, and never by ``record``.
        self._writing = threading.Lock()
        # Filled by one thread and emptied by another; its ends need no lock.
        self._unwritten: deque[Metric] = deque()

    def record(self, metrics: Sequence[Metric]) -> None:
        self._unwritten.extend(metrics)

    def flush(self) -> None:
        with self._writing:
            if self._writer is None:
                # It looks for what earlier drivers wrote, and the storage may be away for that as well.
                self._writer = MetricsWriter(self._root, self._job_id)
            self._writer.append(self._unwritten.popleft() for _ in range(len(self._unwritten)))
            self._writer.flush()

    def close(self) -> None:
        self.flush()
