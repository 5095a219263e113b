"""What the monitor asks of one rank of a function job while the user's function runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from signal import SIGKILL
from typing import Any

from periflow_ray.runtime.monitor.attempt import Signal
from periflow_ray.runtime.monitor.restart_policy import Cause
from periflow_ray.runtime.worker.follow_signals import follow_signals
from periflow_ray.runtime.worker.stacks import dump_stacks
from periflow_ray.sdk.session import NO_STEP

# After other ends Ray Train knows of a worker that failed, and ends the rest of the group.
_LEAVING_CAUSES: frozenset[Cause | str | None] = frozenset({"stop", "preemption", "resize", "hang"})


class RankSignals:
    """A background thread that carries out the signals of one attempt, until the one that ends it.

    Args:
        write_log: takes a line for the job's log.
        on_end: called once, with the reason, when the rank has to leave whatever the function does.
    """

    def __init__(
        self,
        monitor: Any,
        attempt: int,
        rank: int,
        node_rank: int,
        write_log: Callable[[str], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._monitor = monitor
        self._attempt = attempt
        self._rank = rank
        self._node_rank = node_rank
        self._write_log = write_log
        self._on_end = on_end
        self._lock = threading.Lock()
        self._announced_step: int | None = None
        self._on_announced_step: Callable[[int], bool] | None = None
        self._read_step: Callable[[], int] | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._follow, name="monitor-signals", daemon=True).start()

    def connect(self, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        """The function has opened a session; see ``sdk.channel.Channel.open``."""
        with self._lock:
            self._on_announced_step, self._read_step = on_announced_step, read_step
            announced_step = self._announced_step
        if announced_step is not None:
            on_announced_step(announced_step)

    def is_last_save(self, step: int) -> bool:
        """Whether this is the save that was announced."""
        return self._announced_step is not None and step >= self._announced_step

    def wait_for_end(self, timeout_s: float) -> None:
        """Stay until Ray ends this process; returns only if the monitor does not end the attempt in time."""
        if self._ended.wait(timeout_s):
            threading.Event().wait()

    def _follow(self) -> None:
        for signal in follow_signals(self._monitor, self._attempt):
            if signal.kind == "end":
                if signal.cause in _LEAVING_CAUSES:
                    self._ended.set()
                    self._on_end(signal.text)
                return
            self._carry_out(signal)

    def _carry_out(self, signal: Signal) -> None:
        if signal.kind == "report":
            if self._read_step is not None:
                steps = {self._rank: self._read_step()}
                self._monitor.record.remote(steps, None, [], self._node_rank, True, self._attempt)
        elif signal.kind == "save":
            with self._lock:
                self._announced_step = None if signal.step == NO_STEP else signal.step
                on_announced_step = self._on_announced_step
            if on_announced_step is not None and not on_announced_step(signal.step):
                self._monitor.miss_save.remote(self._attempt, signal.step)
        elif signal.kind == "dump":
            for line in dump_stacks(os.getpid()):
                self._write_log(f"[rank {self._rank}] {line}")
        elif (signal.kind, signal.target) in (("kill_rank", self._rank), ("kill_node", self._node_rank)):
            os.kill(os.getpid(), SIGKILL)
