"""TensorBoard event files of a job, so that ``tensorboard --logdir <storage root>/jobs`` shows its metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from periflow_ray.jobs.metrics import Metric
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


class TensorBoardWriter:
    """Writes rank 0's numeric metrics as scalars; only on a local storage root, where event files can grow."""

    def __init__(self, root: StorageRoot, job_id: int) -> None:
        self._directory = root.local_path(job_key(job_id, "tensorboard"))
        self._writer: Any = None

    def append(self, metrics: Iterable[Metric]) -> None:
        """Add scalars; other values and other ranks are left out."""
        for metric in metrics:
            if metric.rank != 0:
                continue
            for name, value in metric.values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._open().add_scalar(name, value, metric.step, walltime=metric.time_unix_s)

    def flush(self) -> None:
        """Make the scalars visible to TensorBoard."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        if self._writer is None:
            # Imported late: it takes a second, and jobs without metrics do not need it.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory))
        return self._writer
