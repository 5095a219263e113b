"""TensorBoard event files of a job, so that ``tensorboard --logdir <storage root>/jobs`` shows its metrics."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from periflow_ray.jobs.metrics import Metric
from periflow_ray.store.keys import job_key
from periflow_ray.store.root import StorageRoot


class TensorBoardWriter:
    """Writes rank 0's numeric metrics as scalars; only on a local storage root, where event files can grow.

    It writes in the caller's thread: tensorboardX's own writer has a thread that dies of a full disk, and then blocks
    whoever gives it more.

    Args:
        hparams: hyperparameters, for TensorBoard's page of them.
        hparams_metric: the metric that they are compared by.
    """

    def __init__(
        self,
        root: StorageRoot,
        job_id: int,
        hparams: Mapping[str, Any] | None = None,
        hparams_metric: str | None = None,
    ) -> None:
        self._directory = root.local_path(job_key(job_id, "tensorboard"))
        self._hparams = hparams
        self._hparams_metric = hparams_metric
        self._file: _EventFile | None = None
        self._num_files = 0

    def append(self, metrics: Iterable[Metric]) -> None:
        """Add scalars; other values and other ranks are left out.

        Raises:
            OSError: the file cannot be written; what is appended after that goes to a new file.
        """
        for metric in metrics:
            if metric.rank != 0:
                continue
            for name, value in metric.values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._write(name, value, metric)

    def flush(self) -> None:
        """Make the scalars visible to TensorBoard.

        Raises:
            OSError: as ``append``.
        """
        if self._file is not None:
            with self._given_up_on_error():
                self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            with self._given_up_on_error():
                self._file.close()
            self._file = None

    def _write(self, name: str, value: float, metric: Metric) -> None:
        if self._file is None:
            # Its number keeps a file that takes another one's place in the same second from writing over it.
            self._file = _EventFile(self._directory, f".{self._num_files}")
            self._num_files += 1
            if self._hparams is not None:
                with self._given_up_on_error():
                    self._file.write_hparams(self._hparams, self._hparams_metric)
        # What the format has no room for is left out, and nothing else.
        with self._given_up_on_error(), contextlib.suppress(OverflowError, TypeError, ValueError):
            self._file.write_scalar(name, float(value), metric.step, metric.time_unix_s)

    @contextlib.contextmanager
    def _given_up_on_error(self) -> Any:
        try:
            yield
        except OSError:
            # The file may end in half a record, behind which nobody reads.
            file, self._file = self._file, None
            if file is not None:
                file.give_up()
            raise


class _EventFile:
    def __init__(self, directory: Path, suffix: str) -> None:
        # Imported late: it takes a second, and jobs without metrics do not need it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        directory.mkdir(parents=True, exist_ok=True)
        self._new_event = Event
        self._new_scalar = scalar
        self._has_content = False
        self._writer: Any = EventsWriter(os.path.join(directory, "events"), suffix)

    def write_scalar(self, name: str, value: float, step: int, time_unix_s: float) -> None:
        summary = self._new_scalar(name, value)
        self._writer.write_event(self._new_event(summary=summary, step=step, wall_time=time_unix_s))

    def write_hparams(self, hparams: Mapping[str, Any], metric: str | None) -> None:
        from tensorboardX.summary import hparams as build_summaries

        # Its experiment and the session's beginning; the end has a status that is not known yet.
        for summary in build_summaries(dict(hparams), {} if metric is None else {metric: 0})[:2]:
            self._writer.write_event(self._new_event(summary=summary, wall_time=time.time()))

    def flush(self) -> None:
        self._writer.flush()
        self._has_content = True

    def close(self) -> None:
        self._writer.close()

    def give_up(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()
        if not self._has_content:
            # A full disk must not gather an empty file for each try.
            with contextlib.suppress(OSError):
                os.unlink(self._writer._file_name)
