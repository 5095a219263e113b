"""How a function job is stopped: by Ctrl-C or SIGTERM of the process that runs it, or by ``job stop``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import ray

from periflow_ray.jobs.stop_times import END_TIMEOUT_S, SIGNAL_SAVE_TIMEOUT_S
from periflow_ray.runtime.job_state import StateKeeper

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """While it is open, the first SIGINT or SIGTERM saves the job and stops it; the second ends it at once.

    Only where it is opened in the main thread, because Python gives signals to no other; an ignored signal stays so.

    Args:
        end_now: ends the worker group, or the wait for one.
    """

    def __init__(self, state: StateKeeper, monitor: Any, end_now: Callable[[], None]) -> None:
        self._state = state
        self._monitor = monitor
        self._end_now = end_now
        self._former_handlers: dict[signal.Signals, Any] = {}
        self._closed = threading.Event()
        self.is_asked = False
        self.signum: signal.Signals | None = None
        """What asked for it, if it was a signal."""

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                handler = signal.getsignal(signum)
                if handler not in (None, signal.SIG_IGN):
                    self._former_handlers[signum] = handler
                    signal.signal(signum, self._take_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for signum, handler in self._former_handlers.items():
            signal.signal(signum, handler)

    def ask(self, timeout_s: float) -> None:
        """Let the ranks save within so many seconds and end the job; 0 saves nothing. Returns at once."""
        self.is_asked = True
        threading.Thread(target=self._stop, args=(timeout_s,), name="graceful-stop", daemon=True).start()

    def _take_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self.is_asked = True
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        self.signum = signal.Signals(signum)
        # A container's grace time is often shorter; then the save is cut off.
        self.ask(SIGNAL_SAVE_TIMEOUT_S)

    def _stop(self, timeout_s: float) -> None:
        if self._state.status != "stopping":
            self._state.enter("stopping", "stops on request")
            if timeout_s > 0 and self.signum is not None:
                print("Saving and stopping the job. Once more ends it at once.", file=sys.stderr, flush=True)
        try:
            has_ranks = ray.get(self._monitor.stop.remote(timeout_s))
        except ray.exceptions.RayError:
            has_ranks = False
        if not has_ranks or not self._closed.wait(END_TIMEOUT_S):
            self._end_now()
