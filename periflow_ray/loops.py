"""Background loops that an unexpected error does not end.

A loop that dies silently takes what it did with it: heartbeats, metrics, requests of the user. These put the traceback
where the process's own output goes, tell the user once where somebody listens, and go on. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import traceback
from collections.abc import Callable

CLOSE_TIMEOUT_S = 5.0
_MAX_REASON_CHARS = 300


class Faults:
    """What becomes of a loop's unexpected exceptions; ``take`` never raises.

    Args:
        loop_name: as people know the loop, at the beginning of a sentence: "the heartbeat of job 3".
        on_problem: gets a sentence for the user, the first time only, from any thread.
        write_trace: gets every traceback that differs from the one before; stderr without it.
    """

    def __init__(
        self,
        loop_name: str,
        on_problem: Callable[[str], None] | None = None,
        write_trace: Callable[[str], None] | None = None,
    ) -> None:
        self._loop_name = loop_name
        self._on_problem = on_problem
        self._write_trace = write_trace or _write_to_stderr
        self._last_reason = ""
        self.num_taken = 0

    def take(self, err: BaseException) -> None:
        """Write down an exception, and tell it if it is the first one."""
        self.num_taken += 1
        reason = describe_error(err)
        if reason != self._last_reason:
            # A loop that fails every half second must not fill the disk with the same lines.
            self._last_reason = reason
            with contextlib.suppress(Exception):
                trace = "".join(traceback.format_exception(type(err), err, err.__traceback__))
                self._write_trace(f"{self._loop_name} failed unexpectedly and goes on:\n{trace}")
        if self.num_taken == 1 and self._on_problem is not None:
            tell(self._on_problem, f"{self._loop_name} failed unexpectedly ({reason}) and goes on.")


class BackgroundLoop:
    """A thread that repeats an action until it is closed, whatever the action raises.

    Args:
        name: the thread's, and how problems call the loop.
        action: what is repeated, first after one interval.
        interval_s: seconds between the end of one time and the beginning of the next; None waits for ``wake``.
        acts_at_close: once more when it is closed, so that nothing is left.
        faults: what becomes of exceptions; without it, they go to stderr under the loop's name.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], object],
        interval_s: float | None,
        *,
        acts_at_close: bool = False,
        faults: Faults | None = None,
    ) -> None:
        self._name = name
        self._action = action
        self._interval_s = interval_s
        self._acts_at_close = acts_at_close
        self._faults = faults or Faults(f"the loop '{name}'")
        # Unlike an Event it may be used by a signal handler that interrupts another use of it.
        self._wakings: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_woken = False
        self._is_closing = False
        self._start_lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> BackgroundLoop:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> BackgroundLoop:
        """Begin; a second call changes nothing."""
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return self

    def wake(self) -> None:
        """Act now, and not at the end of the interval. Never waits; a signal handler may call it."""
        if not self._is_woken:
            self._is_woken = True
            self._wakings.put(None)

    def begin_close(self) -> None:
        """Let it end soon, without waiting for that."""
        self._is_closing = True
        self._wakings.put(None)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """End it and wait for that; False if it is still in its action after ``timeout_s``, which it then ends with."""
        self.begin_close()
        if self._thread is None:
            return True
        if self._thread is threading.current_thread():
            return False
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._is_closing:
            self._wait()
            if self._is_closing:
                break
            self._act()
        if self._acts_at_close:
            self._act()

    def _wait(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._wakings.get(timeout=self._interval_s)
            while True:
                self._wakings.get_nowait()

    def _act(self) -> None:
        # Before the action: whoever wakes the loop during it wants another one.
        self._is_woken = False
        try:
            self._action()
        except BaseException as err:  # SystemExit of a library is no reason to end the loop either.
            self._faults.take(err)


def tell(on_problem: Callable[[str], None], text: str) -> None:
    """Hand a sentence over; that it cannot be written down is no reason to end anything."""
    with contextlib.suppress(Exception):
        on_problem(text)


def describe_error(err: BaseException) -> str:
    """An exception as one short line: its class and the first line of its text."""
    with contextlib.suppress(Exception):
        first_line = next((line.strip() for line in str(err).splitlines() if line.strip()), "")
        shown = "".join(char if char.isprintable() else "?" for char in first_line[:_MAX_REASON_CHARS])
        return f"{type(err).__name__}: {shown}" if shown else type(err).__name__
    return type(err).__name__


def _write_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, end="" if text.endswith("\n") else "\n", flush=True)
