"""The SDK session of a function job's rank, in the same process as its member."""

from __future__ import annotations

import threading
from collections.abc import Callable

from periflow_ray.errors import PeriFlowError
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.member.shell import Records
from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.session import NO_STEP


class FunctionChannel:
    """Keeps a rank's records until its member takes them; see ``sdk.channel.Channel``.

    Args:
        save: takes the step and whether a waiting checkpoint may be replaced.
        miss_save: called with the announced step when the rank is beyond it already.
    """

    def __init__(
        self, rank: int, local_rank: int, save: Callable[[int, bool], None], miss_save: Callable[[int], None]
    ) -> None:
        self._rank = rank
        self._local_rank = local_rank
        self._save = save
        self._miss_save = miss_save
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._step: int | None = None
        self._asked_step = -1
        self._total_train_steps: int | None = None
        self._is_saving = False
        self._announced_step = NO_STEP
        self._on_announced_step: Callable[[int], bool] | None = None
        self._read_step: Callable[[], int] | None = None
        self.num_sessions = 0
        """How often a session was opened."""

    # The session calls these.

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        with self._lock:
            self.num_sessions += 1
            self._total_train_steps = hello.total_train_steps
            self._on_announced_step, self._read_step = on_announced_step, read_step
            announced_step = self._announced_step
        if announced_step != NO_STEP:
            on_announced_step(announced_step)

    def greet(self, hello: Hello) -> None:
        """Its member knows which rank this is."""

    def send(self, step: int, records: list[MetricRecord], asked_step: int) -> None:
        with self._lock:
            self._step = step
            self._asked_step = asked_step
            self._metrics += [
                Metric(record.step, self._rank, self._local_rank, record.time_unix_s, record.values)
                for record in records
            ]

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        self._is_saving = True
        try:
            self._save(step, replace_waiting)
        except Exception as err:
            reason = str(err) if isinstance(err, OSError) else f"{type(err).__name__}: {err}"
            raise PeriFlowError(f"the checkpoint of step {step} could not be saved: {reason}") from err
        finally:
            self._is_saving = False

    def close(self, has_failed: bool = False) -> None:
        """Nothing is held open."""

    # The member calls these, from its own threads.

    def take_records(self) -> Records:
        """Everything since the last call."""
        with self._lock:
            metrics, self._metrics = self._metrics, []
            if self._step is None:
                return Records({}, self._total_train_steps, tuple(metrics))
            is_done = self._total_train_steps is not None and self._step >= self._total_train_steps
            return Records(
                {self._rank: self._step},
                self._total_train_steps,
                tuple(metrics),
                is_pausing=self._is_saving or is_done,
                asks_for_saves=self._asked_step >= 0,
            )

    def read_step(self) -> int:
        """The rank's step of now; 0 before a session is opened."""
        return 0 if self._read_step is None else self._read_step()

    def ask_step(self) -> None:
        """Let the next ``take_records`` have the rank's step of now."""
        if self._read_step is not None:
            with self._lock:
                self._step = self._read_step()

    def announce(self, step: int) -> None:
        """Tell the session, even one that is opened later, the step of an announced save."""
        with self._lock:
            self._announced_step = step
            on_announced_step = self._on_announced_step
        if on_announced_step is not None and not on_announced_step(step):
            self._miss_save(step)
