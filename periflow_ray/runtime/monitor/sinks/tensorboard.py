"""TensorBoard event files beside the metrics, where the storage root is a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from periflow_ray.jobs.metrics import Metric
from periflow_ray.jobs.tensorboard import TensorBoardWriter
from periflow_ray.runtime.outbox import DeliveryError, Outbox
from periflow_ray.store.root import StorageRoot

# Members report up to about twice a second: some minutes of them, while the disk is full.
MAX_WAITING_BATCHES = 600
RETRY_DELAYS_S = (1.0, 5.0, 30.0)
# The library is imported with the first metric, which takes seconds on a busy machine.
CLOSE_TIMEOUT_S = 12.0


@dataclass(frozen=True)
class TensorBoardFiles:
    """The plan of it; a sweep's trial has hyperparameters, and the metric that they are compared by."""

    hparams: Mapping[str, Any] | None = None
    hparams_metric: str | None = None

    def open(self, root: StorageRoot, job_id: int, on_problem: Callable[[str], None]) -> TensorBoardSink | None:
        if not root.is_local:
            return None
        return TensorBoardSink(TensorBoardWriter(root, job_id, self.hparams, self.hparams_metric), on_problem)

    def environment(self) -> Mapping[str, str]:
        return {}


class TensorBoardSink:
    """A thread of its own writes the files, so that a full disk or a fault of the library holds nobody up.

    What a full disk refuses is tried again in a new file; an error of any other kind gives the sink up. The user is
    told once.
    """

    def __init__(
        self,
        writer: TensorBoardWriter,
        on_problem: Callable[[str], None],
        *,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._writer = writer
        self._close_timeout_s = close_timeout_s
        self._is_given_up = False
        self._outbox: Outbox[Sequence[Metric]] = Outbox(
            "TensorBoard",
            self._write,
            on_problem,
            max_items=MAX_WAITING_BATCHES,
            retry_delays_s=retry_delays_s,
            finish=self._finish,
        )

    def record(self, metrics: Sequence[Metric]) -> None:
        own = [metric for metric in metrics if metric.rank == 0]
        if own and not self._is_given_up:
            self._outbox.put(own)

    def flush(self) -> None:
        """Nothing to do: the thread writes each batch when it comes."""

    def close(self) -> None:
        self._outbox.begin_close()
        self._outbox.end_close(time.monotonic() + self._close_timeout_s)

    def _write(self, metrics: Sequence[Metric]) -> None:
        if self._is_given_up:
            return
        try:
            self._writer.append(metrics)
            self._writer.flush()
        except OSError as err:
            reason = os.strerror(err.errno) if err.errno else type(err).__name__
            raise DeliveryError(f"its files cannot be written ({reason})", is_temporary=True) from None
        except BaseException:
            self._is_given_up = True
            raise

    def _finish(self) -> None:
        if not self._is_given_up:
            self._writer.close()
