"""How a job is stopped: by SIGINT or SIGTERM of the process that runs it, or by a request."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from periflow_ray.jobs.stop_times import END_TIMEOUT_S, SIGNAL_SAVE_TIMEOUT_S
from periflow_ray.runtime.job_state import StateKeeper
from periflow_ray.runtime.monitor.client import MonitorClient

_END_INTERVAL_S = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """While it is open, SIGINT or SIGTERM saves the job and stops it.

    Only where it is opened in the main thread, because Python gives signals to no other; an ignored signal stays so.

    Args:
        is_interactive: whether a person is there, whose second signal ends the job at once. Ray Jobs signals every
            process of a driver, which thus gets the signal several times.
    """

    def __init__(self, state: StateKeeper, *, is_interactive: bool) -> None:
        self._state = state
        self._is_interactive = is_interactive
        self._former_handlers: dict[signal.Signals, Any] = {}
        self._closed = threading.Event()
        self._attached = threading.Event()
        self._monitor: MonitorClient | None = None
        self._end_now: Callable[[], None] = lambda: None
        self.is_asked = False
        self._parent_pid = os.getppid()
        self.reason = "requested by the user"
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

    def attach(self, monitor: MonitorClient, end_now: Callable[[], None]) -> None:
        """Tell what there is to stop now.

        Args:
            end_now: ends the worker group, or the wait for one.
        """
        self._monitor, self._end_now = monitor, end_now
        self._attached.set()

    def ask(self, timeout_s: float) -> None:
        """Let the ranks save within this many seconds and end the job; 0 saves nothing. Returns at once."""
        self.is_asked = True
        if self._state.status != "stopping":
            self._state.enter("stopping", f"stopping: {self.reason}")
        threading.Thread(target=self._stop, args=(timeout_s,), name="graceful-stop", daemon=True).start()

    def _take_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            if self._is_interactive:
                raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
            return
        self.signum = signal.Signals(signum)
        if self._is_interactive:
            print("Saving and stopping the job. Once more ends it at once.", file=sys.stderr, flush=True)
        if not self.is_asked and os.getppid() != self._parent_pid:
            self.reason = "the process that started the job's driver was killed"
        # A container's grace time is often shorter; then the save is cut off.
        self.ask(SIGNAL_SAVE_TIMEOUT_S)

    def _stop(self, timeout_s: float) -> None:
        self._attached.wait()
        assert self._monitor is not None
        try:
            has_members = self._monitor.stop(timeout_s)
        except Exception as err:
            print(f"the job is ended without a save: {type(err).__name__}: {err}", file=sys.stderr)
            has_members = False
        if has_members and self._closed.wait(END_TIMEOUT_S):
            return
        # Until it has an effect: what is to be ended may only be about to begin.
        while not self._closed.wait(_END_INTERVAL_S if has_members else 0.1):
            self._end_now()
            has_members = True


@contextlib.contextmanager
def on_stop_signals(stop: Callable[[str], None], *, is_interactive: bool = False) -> Iterator[list[signal.Signals]]:
    """While it is open, the first SIGINT or SIGTERM calls ``stop``, in a thread, with the reason.

    Only where it is opened in the main thread, because Python gives signals to no other.

    Args:
        is_interactive: whether a person is there, whose second signal ends all at once; see ``GracefulStop``.
    Returns:
        A list that gets each signal.
    """
    taken: list[signal.Signals] = []

    def take(signum: int, frame: FrameType | None) -> None:
        taken.append(signal.Signals(signum))
        if len(taken) > 1:
            if is_interactive:
                raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
            return
        if is_interactive:
            print("Saving and stopping the trials. Once more ends it at once.", file=sys.stderr, flush=True)
        reason = f"by {signal.Signals(signum).name}"
        threading.Thread(target=stop, args=(reason,), name="graceful-stop", daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield taken
        return
    former = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    # None is one that is not Python's own; what is ignored stays so.
    former = {signum: handler for signum, handler in former.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for signum in former:
            signal.signal(signum, take)
        yield taken
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
